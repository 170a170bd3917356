"""The commands and their options. Bodies are imported when a command runs."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from jaccli import __version__
from jaccli.cli import options as o
from jaccli.cli.command import Command, Group

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

_command = partial(app.command, cls=Command)


def _version(wanted: bool) -> None:
    if wanted:
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
)
def compute(
    model: o.Model,
    input: o.Input = None,
    source: o.From = None,
    layer: o.Layers = None,
    target: o.To = None,
    output: o.Output = None,
    format: o.MatrixFormat = None,
    sparse: o.Sparse = False,
    force: o.Force = False,
    samples: o.Samples = None,
    arg: o.ModelArgs = None,
    method: o.Method = "auto",
    chunk: o.Chunk = "auto",
    max_memory: o.MaxMemory = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    arch: o.Arch = None,
    arch_arg: o.ArchArgs = None,
    activation: o.Activation = None,
    trust: o.Trust = False,
    seed: o.Seed = None,
    threads: o.Threads = None,
    timeout: o.Timeout = None,
    compile: o.Compile = False,
    explain: o.Explain = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Jacobian matrices: J[o, i] = ∂target[o] / ∂source[i] for every sample.

    On a terminal they are drawn; in a pipe they are written as npy; with -o the extension decides.
    """
    from jaccli.cli import cmd_compute as command
    from jaccli.cli import request as r

    command.run(
        partial(r.model_request, model, arch, arch_arg, activation, trust, seed, device, dtype, threads),
        partial(r.input_request, input, samples, arg),
        r.pair_request([*(source or []), *(layer or [])] or ["input"], target or "output"),
        r.run_request(method, chunk, max_memory, timeout, explain, quiet, no_color, compile),
        r.output_request(output, format, force, no_color, "matrix", sparse),
    )


@_command(
    short_help="How far J is from the identity.",
    epilog="""\b
Examples:
  jaccli deviation model.pt -i x.npy --layer fc1
  jaccli deviation model.pt -i x.npy --layer 'blocks.*' --fail-above relative=0.1
  jaccli deviation --jacobian J.npy --format json""",
)
def deviation(
    model: o.OptionalModel = None,
    input: o.Input = None,
    layer: o.Layers = None,
    source: o.From = None,
    target: o.To = None,
    jacobian: o.Jacobian = None,
    fail_above: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-above",
            metavar="NORM=VALUE",
            help="Exit with 1 if any sample is above, as relative=0.1; may be repeated.",
            show_default=False,
        ),
    ] = None,
    estimate: o.Estimate = False,
    probes: o.Probes = None,
    tolerance: o.Tolerance = None,
    per_sample: o.PerSample = False,
    output: o.Output = None,
    format: o.Format = None,
    force: o.Force = False,
    samples: o.Samples = None,
    arg: o.ModelArgs = None,
    method: o.Method = "auto",
    chunk: o.Chunk = "auto",
    max_memory: o.MaxMemory = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    arch: o.Arch = None,
    arch_arg: o.ArchArgs = None,
    activation: o.Activation = None,
    trust: o.Trust = False,
    seed: o.Seed = None,
    threads: o.Threads = None,
    timeout: o.Timeout = None,
    compile: o.Compile = False,
    explain: o.Explain = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """How far J is from the identity: norms of J - I, the trace, the share along the identity."""
    from jaccli.cli import cmd_deviation as command
    from jaccli.cli import request as r

    gates = r.parse_gates(fail_above or [])
    effort = r.estimate_request(estimate, probes, tolerance, seed)
    out = r.output_request(output, format, force, no_color, "numbers")
    how = r.run_request(method, chunk, max_memory, timeout, explain, quiet, no_color, compile)
    if jacobian is not None:
        r.refuse_with_jacobian(
            {"MODEL": model, "--input": input, "--layer": layer, "--from": source, "--to": target}
            | {"--arg": arg, "--arch": arch, "--activation": activation, "--estimate": effort.wanted}
        )
        command.run_saved(r.saved_request(jacobian, samples), how, out, gates, per_sample)
        return
    command.run(
        partial(
            r.model_request, r.needed_model(model), arch, arch_arg, activation, trust, seed, device, dtype, threads
        ),
        partial(r.input_request, input, samples, arg),
        r.pair_request(r.needed_layers([*(layer or []), *(source or [])]), target or "output"),
        how,
        out,
        gates,
        effort,
        per_sample,
    )


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
    model: o.OptionalModel = None,
    input: o.Input = None,
    layer: o.Layers = None,
    source: o.From = None,
    target: o.To = None,
    jacobian: o.Jacobian = None,
    eigenvalues: Annotated[
        bool, typer.Option("--eigenvalues", help="Also eigenvalues, spectral radius, non-normality; J must be square.")
    ] = False,
    lyapunov: Annotated[
        bool,
        typer.Option("--lyapunov", help="Lyapunov exponents along the layers named, one after the other, to --to."),
    ] = False,
    top: Annotated[
        str | None,
        typer.Option("--top", metavar="N", help="List the N largest singular values only.", show_default=False),
    ] = None,
    estimate: o.Estimate = False,
    probes: o.Probes = None,
    tolerance: o.Tolerance = None,
    per_sample: o.PerSample = False,
    output: o.Output = None,
    format: o.Format = None,
    force: o.Force = False,
    samples: o.Samples = None,
    arg: o.ModelArgs = None,
    method: o.Method = "auto",
    chunk: o.Chunk = "auto",
    max_memory: o.MaxMemory = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    arch: o.Arch = None,
    arch_arg: o.ArchArgs = None,
    activation: o.Activation = None,
    trust: o.Trust = False,
    seed: o.Seed = None,
    threads: o.Threads = None,
    timeout: o.Timeout = None,
    compile: o.Compile = False,
    explain: o.Explain = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Singular values of J and what follows from them: condition, log|det|, ranks, isometry.

    Exact where J fits the memory, else estimated from products, with standard errors. Several layers
    give a line each: how far J from there is from an isometry.
    """
    from jaccli.cli import cmd_spectrum as command
    from jaccli.cli import request as r

    effort = r.estimate_request(estimate, probes, tolerance, seed)
    wanted = command.Wanted(eigenvalues, lyapunov, o.parse_count(top, "--top"), per_sample)
    out = r.output_request(output, format, force, no_color, "numbers")
    how = r.run_request(method, chunk, max_memory, timeout, explain, quiet, no_color, compile)
    if jacobian is not None:
        r.refuse_with_jacobian(
            {"MODEL": model, "--input": input, "--layer": layer, "--from": source, "--to": target}
            | {"--arg": arg, "--arch": arch, "--activation": activation, "--estimate": effort.wanted}
        )
        command.run_saved(r.saved_request(jacobian, samples), how, out, wanted)
        return
    command.run(
        partial(
            r.model_request, r.needed_model(model), arch, arch_arg, activation, trust, seed, device, dtype, threads
        ),
        partial(r.input_request, input, samples, arg),
        r.pair_request([*(layer or []), *(source or [])] or ["input"], target or "output"),
        how,
        out,
        effort,
        wanted,
    )


@_command(
    short_help="Methods side by side: time, memory, error.",
    epilog="""\b
Examples:
  jaccli bench model.pt -i x.npy --layer fc1 --methods auto,loop
  jaccli bench model.pt -i x.npy --rounds 5 -o bench.md""",
)
def bench(
    model: o.Model,
    input: o.Input = None,
    layer: o.Layers = None,
    source: o.From = None,
    target: o.To = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="A,B", help="Which methods; all of them if not given.", show_default=False),
    ] = None,
    rounds: Annotated[
        str | None,
        typer.Option(
            "--rounds", metavar="N", help="Rounds; as many as fit --max-time if not given.", show_default=False
        ),
    ] = None,
    max_time: Annotated[str, typer.Option("--max-time", metavar="TIME", help="Aim for all rounds together.")] = "10s",
    output: o.Output = None,
    format: o.Format = None,
    force: o.Force = False,
    samples: o.Samples = None,
    arg: o.ModelArgs = None,
    chunk: o.Chunk = "auto",
    max_memory: o.MaxMemory = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    arch: o.Arch = None,
    arch_arg: o.ArchArgs = None,
    activation: o.Activation = None,
    trust: o.Trust = False,
    seed: o.Seed = None,
    threads: o.Threads = None,
    timeout: o.Timeout = None,
    compile: o.Compile = False,
    explain: o.Explain = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Methods side by side: time, memory and error against a float64 reference."""
    from jaccli.cli import cmd_bench as command
    from jaccli.cli import request as r

    command.run(
        partial(r.model_request, model, arch, arch_arg, activation, trust, seed, device, dtype, threads),
        partial(r.input_request, input, samples, arg),
        r.pair_request([*(layer or []), *(source or [])] or ["input"], target or "output"),
        r.run_request("auto", chunk, max_memory, timeout, explain, quiet, no_color),
        r.output_request(output, format, force, no_color, "numbers"),
        r.bench_request(methods, rounds, max_time, compile),
    )


@_command(
    short_help="Train J towards the identity.",
    epilog="""\b
Examples:
  jaccli regularize model.pt -i x.npy --layer fc1 -o near.pt
  jaccli regularize w.safetensors --arch nets.py:Net -i x.npy --targets y.npy --layer 'blocks.*' -o v.safetensors
  jaccli regularize model.pt -i x.npy --layer fc1 --towards orthogonal --weight 0.1""",
)
def regularize(
    model: o.Model,
    input: o.Input = None,
    layer: o.Layers = None,
    source: o.From = None,
    target: o.To = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Weights: NAME.safetensors; NAME.pth, with all that is in the file of MODEL; or NAME.pt of a "
            "TorchScript MODEL. Without it nothing is written.",
            show_default=False,
        ),
    ] = None,
    towards: Annotated[
        str,
        typer.Option(
            "--towards",
            metavar="END",
            help="identity; scaled-identity (any multiple of it); orthogonal (J J^T = I); zero.",
        ),
    ] = "identity",
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            metavar="INPUT",
            help="Also fit these, a row a sample: floats by squared error, integers as classes. Without it the "
            "outputs are held where they are.",
            show_default=False,
        ),
    ] = None,
    weight: Annotated[
        str, typer.Option("--weight", metavar="W", help="Of the deviation, |J-I|^2/n, against the task.")
    ] = "1",
    steps: Annotated[str, typer.Option("--steps", metavar="N", help="Steps of Adam.")] = "1000",
    lr: Annotated[str, typer.Option("--lr", metavar="LR", help="The highest learning rate.")] = "3e-3",
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Samples of a step; all, but at most 256, if not given.",
            show_default=False,
        ),
    ] = None,
    estimator: Annotated[
        str,
        typer.Option(
            "--estimator", metavar="NAME", help="While training: exact, hutchinson (by products), or by the size of J."
        ),
    ] = "auto",
    probes: Annotated[
        str | None,
        typer.Option(
            "--probes", metavar="N", help="Products a sample of hutchinson; 1 if not given.", show_default=False
        ),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            "--validate",
            metavar="INPUT",
            help="Held-out samples; every fifth of -i if not given (--samples 4::5).",
            show_default=False,
        ),
    ] = None,
    validate_targets: Annotated[
        str | None,
        typer.Option("--validate-targets", metavar="INPUT", help="Targets of --validate.", show_default=False),
    ] = None,
    patience: Annotated[
        str | None,
        typer.Option(
            "--patience",
            metavar="N",
            help="Stop after N steps without a better one on held-out samples.",
            show_default=False,
        ),
    ] = None,
    jitter: Annotated[
        str | None,
        typer.Option(
            "--jitter",
            metavar="S",
            help="Hold the outputs at noisy copies too, noise of S times the spread; 0.5 up to 256 samples, else 0.",
            show_default=False,
        ),
    ] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            "--train", metavar="GLOB", help="Which parameters, as 'fc2.*'; all if not given.", show_default=False
        ),
    ] = None,
    format: o.Format = None,
    force: o.Force = False,
    samples: o.Samples = None,
    arg: o.ModelArgs = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    arch: o.Arch = None,
    arch_arg: o.ArchArgs = None,
    activation: o.Activation = None,
    trust: o.Trust = False,
    seed: o.Seed = None,
    threads: o.Threads = None,
    timeout: o.Timeout = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Fine-tune the parameters so that J comes near the identity, and the outputs stay.

    Loss: task + weight * mean |J-I|^2/n. The report says how far J was and is, on samples trained on and on
    others. The best parameters on the latter are kept; Ctrl-C stops and keeps them too.
    """
    from jaccli.cli import cmd_regularize as command
    from jaccli.cli import request as r
    from jaccli.cli import train_request as t

    wanted = t.train_request(
        {"--towards": towards, "--estimator": estimator, "--probes": probes, "--weight": weight, "--seed": seed}
        | {"--steps": steps, "--lr": lr, "--batch-size": batch_size, "--patience": patience, "--jitter": jitter}
        | {"--input": input, "--targets": targets, "--validate": validate, "--validate-targets": validate_targets},
        train,
        output,
        force,
    )
    command.run(
        partial(r.model_request, model, arch, arch_arg, activation, trust, seed, device, dtype, threads),
        partial(r.input_request, input, samples, arg),
        r.pair_request(r.needed_layers([*(layer or []), *(source or [])]), target or "output"),
        r.run_request("auto", "auto", None, timeout, False, quiet, no_color),
        r.output_request(None, format, force, no_color, "numbers"),
        wanted,
    )


@_command(
    short_help="What can be named as a layer.",
    epilog="""\b
Examples:
  jaccli layers model.pt
  jaccli layers model.pt -i x.npy --format json""",
)
def layers(
    model: o.Model,
    input: o.Input = None,
    output: o.Output = None,
    format: o.Format = None,
    force: o.Force = False,
    samples: o.Samples = None,
    arg: o.ModelArgs = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    arch: o.Arch = None,
    arch_arg: o.ArchArgs = None,
    activation: o.Activation = None,
    trust: o.Trust = False,
    seed: o.Seed = None,
    threads: o.Threads = None,
    timeout: o.Timeout = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """What can be named as a layer; with -i also how often each is called and the shape of its output."""
    del quiet
    from jaccli.cli import cmd_layers as command
    from jaccli.cli import request as r

    command.run(
        partial(r.model_request, model, arch, arch_arg, activation, trust, seed, device, dtype, threads),
        partial(r.input_request, input, samples, arg) if input is not None else None,
        r.output_request(output, format, force, no_color, "numbers"),
        o.parse_seconds(timeout),
    )


@_command(
    short_help="Look at a saved Jacobian.",
    epilog="""\b
Examples:
  jaccli show J.safetensors --samples 0:3""",
)
def show(
    file: Annotated[
        str | None,
        typer.Argument(metavar="FILE", help="What compute saved; - for a pipe.", show_default=False),
    ] = None,
    jacobian: o.Jacobian = None,
    samples: o.Samples = None,
    output: o.Output = None,
    format: o.Format = None,
    force: o.Force = False,
    timeout: o.Timeout = None,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Look at a saved Jacobian: where it is from, its norms, and a picture of it."""
    del quiet
    from jaccli.cli import cmd_show as command
    from jaccli.cli import request as r

    command.run(
        r.saved_request(r.one_of(file, jacobian), samples),
        r.output_request(output, format, force, no_color, "numbers"),
        o.parse_seconds(timeout),
    )


@_command(short_help="Versions, devices, threads, extras, speed.")
def doctor(
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure how fast each device is (about a second), and keep that."),
    ] = False,
    output: o.Output = None,
    format: o.Format = None,
    force: o.Force = False,
    quiet: o.Quiet = False,
    no_color: o.NoColor = False,
) -> None:
    """Versions, devices, threads and extras of this installation, and the speed that plans count on."""
    del quiet
    from jaccli.cli import cmd_doctor as command
    from jaccli.cli import request as r

    command.run(r.output_request(output, format, force, no_color, "numbers"), calibrate)
