"""The commands: their help, and the requests that their options make. Bodies are imported when a command runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

from jaccli import __version__
from jaccli.cli import figures_request as f
from jaccli.cli import output_request as o
from jaccli.cli import request as r
from jaccli.cli.command import Command, Group
from jaccli.cli.option import takes_requests
from jaccli.cli.run_request import BenchRequest, BlocksRequest, DoctorRequest, RunRequest, TimedRequest
from jaccli.cli.train_request import TrainRequest

app = typer.Typer(
    name="jaccli",
    cls=Group,
    help="Jacobians between layers of trained PyTorch networks, from a model file, in one command.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  jaccli layers model.pt
  jaccli compute model.pt -i x.npy --from blocks.1 -o J.npy
  jaccli deviation model.pt -i x.npy --layer 'blocks.*' --fail-above relative=0.1

\b
Exit codes: 0 done, 1 a gate or check failed, 2 wrong usage, 3 model or input
refused, 4 not supported for this model, 5 not enough memory, disk or time,
70 a bug in jaccli, 130 interrupted, 141 the reader of a pipe left, 143
terminated.""",
)

_Body = Callable[..., None]


def _command(
    short_help: str, epilog: str | None = None, first: Sequence[str] = ("--input",)
) -> Callable[[_Body], _Body]:
    """A command of ``app`` whose parameters are requests; ``first``: options that come first in its help."""

    def register(body: _Body) -> _Body:
        return app.command(cls=Command, short_help=short_help, epilog=epilog)(takes_requests(first)(body))

    return register


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"jaccli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    del version


@_command(
    short_help="Jacobian matrices.",
    epilog="""\b
Examples:
  jaccli compute model.pt -i x.npy -o J.npy
  jaccli compute weights.safetensors --arch nets.py:Net -i random:3x32x32,n=4 --from conv1 -o J.safetensors
  cat x.npy | jaccli compute model.pt -i - -o - | jaccli show -""",
    first=("--input", "--from"),
)
def compute(
    model: r.ModelRequest, inputs: r.InputRequest, pair: r.FromPairRequest, out: o.MatrixRequest, how: RunRequest
) -> None:
    """Jacobian matrices: J[o, i] = ∂target[o] / ∂source[i] for every sample.

    On a terminal they are drawn; in a pipe they are written as npy; with -o the extension decides.
    """
    from jaccli.cli import cmd_compute

    cmd_compute.run(model, inputs, pair, how, out)


@_command(
    short_help="How far J is from the identity.",
    epilog="""\b
Examples:
  jaccli deviation model.pt -i x.npy --layer fc1
  jaccli deviation model.pt -i x.npy --layer 'blocks.*' --fail-above relative=0.1
  jaccli deviation --jacobian J.npy --format json""",
)
def deviation(
    model: r.OptionalModelRequest,
    inputs: r.InputRequest,
    pair: r.NamedPairRequest,
    saved: r.SavedRequest,
    gates: f.GateRequest,
    figures: f.FiguresRequest,
    out: o.OutputRequest,
    how: RunRequest,
) -> None:
    """How far J is from the identity: norms of J - I, the trace, the share along the identity."""
    from jaccli.cli import cmd_deviation

    if saved.jacobian is None:
        cmd_deviation.run(model, inputs, pair, figures, gates.gates, how, out)
    else:
        saved.stands_alone(model, inputs, pair, figures)
        cmd_deviation.run_saved(saved, figures, gates.gates, how, out)


@_command(
    short_help="Singular values and isometry.",
    epilog="""\b
Examples:
  jaccli spectrum model.pt -i x.npy --layer fc1
  jaccli spectrum model.pt -i x.npy --layer 'blocks.*'
  jaccli spectrum model.pt -i x.npy --estimate --tolerance 5%
  jaccli spectrum model.pt -i x.npy --layer 'blocks.*' --lyapunov""",
)
def spectrum(
    model: r.OptionalModelRequest,
    inputs: r.InputRequest,
    pair: r.PairRequest,
    saved: r.SavedRequest,
    spectrum: f.SpectrumRequest,
    figures: f.FiguresRequest,
    out: o.OutputRequest,
    how: RunRequest,
) -> None:
    """Singular values of J and what follows from them: condition, log|det|, ranks, isometry.

    Exact where J fits the memory, else estimated from products, with standard errors. Several layers
    give a line each: how far J from there is from an isometry.
    """
    from jaccli.cli import cmd_spectrum

    if saved.jacobian is None:
        cmd_spectrum.run(model, inputs, pair, figures, spectrum, how, out)
    else:
        saved.stands_alone(model, inputs, pair, figures)
        cmd_spectrum.run_saved(saved, figures, spectrum, how, out)


@_command(
    short_help="Methods side by side: time, memory, error.",
    epilog="""\b
Examples:
  jaccli bench model.pt -i x.npy --layer fc1 --methods auto,loop
  jaccli bench model.pt -i x.npy --rounds 5 -o bench.md""",
)
def bench(
    model: r.ModelRequest,
    inputs: r.InputRequest,
    pair: r.PairRequest,
    bench: BenchRequest,
    out: o.OutputRequest,
    how: BlocksRequest,
) -> None:
    """Methods side by side: time, memory and error against a float64 reference."""
    from jaccli.cli import cmd_bench

    cmd_bench.run(model, inputs, pair, bench, how, out)


@_command(
    short_help="Train J towards the identity.",
    epilog="""\b
Examples:
  jaccli regularize model.pt -i x.npy --layer fc1 -o near.pt
  jaccli regularize w.safetensors --arch nets.py:Net -i x.npy --targets y.npy --layer 'blocks.*' -o v.safetensors
  jaccli regularize model.pt -i x.npy --layer fc1 --towards orthogonal --weight 0.1""",
)
def regularize(
    model: r.ModelRequest,
    inputs: r.InputRequest,
    pair: r.NamedPairRequest,
    train: TrainRequest,
    out: o.ReportRequest,
    how: TimedRequest,
) -> None:
    """Fine-tune the parameters so that J comes near the identity, and the outputs stay.

    Loss: task + weight * mean |J-I|^2/n. The report says how far J was and is, on samples trained on and on
    others. The best parameters on the latter are kept; Ctrl-C stops and keeps them too.
    """
    from jaccli.cli import cmd_regularize

    cmd_regularize.run(model, inputs, pair, train, how, out)


@_command(
    short_help="What can be named as a layer.",
    epilog="""\b
Examples:
  jaccli layers model.pt
  jaccli layers model.pt -i x.npy --format json""",
)
def layers(model: r.ModelRequest, inputs: r.InputRequest, out: o.OutputRequest, how: TimedRequest) -> None:
    """What can be named as a layer; with -i also how often each is called and the shape of its output."""
    from jaccli.cli import cmd_layers

    cmd_layers.run(model, inputs, how, out)


@_command(
    short_help="Look at a saved Jacobian.",
    epilog="""\b
Examples:
  jaccli show J.safetensors --samples 0:3""",
    first=("--jacobian", "--samples"),
)
def show(saved: r.ShownRequest, out: o.OutputRequest, how: TimedRequest) -> None:
    """Look at a saved Jacobian: where it is from, its norms, and a picture of it."""
    from jaccli.cli import cmd_show

    cmd_show.run(saved, how, out)


@_command(short_help="Versions, devices, threads, extras, speed.")
def doctor(doctor: DoctorRequest, out: o.OutputRequest) -> None:
    """Versions, devices, threads and extras of this installation, and the speed that plans count on."""
    from jaccli.cli import cmd_doctor

    cmd_doctor.run(doctor, out)
