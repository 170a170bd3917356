"""What J is of: a model, its input and a layer pair; or a saved J. One dataclass for each group of options.

Making a request checks the values of its own options. ``check`` looks at files, and at all that needs slower imports.
Commands call it before they import torch, so that a wrong command line is answered at once.
"""

from __future__ import annotations

from functools import cached_property

from jaccli.cli import parse
from jaccli.cli.figures_request import FiguresRequest
from jaccli.cli.option import argument, option, request
from jaccli.cli.run_request import seed_option
from jaccli.errors import UsageError
from jaccli.samples.expected import SAVED_J
from jaccli.samples.spec import ArgValue, InputSpec, Selection, check_input, parse_input, parse_model_arg, parse_samples
from jaccli.text.escape import quote

DTYPES = ("float32", "float64", "bfloat16", "float16")
_MODEL = (
    "A model file (TorchScript, state dict, .pt2; told by its content), or package.module:callable. "
    "FILE[KEY] takes one of several state dicts in a file."
)
_SAMPLES = "Which samples: 0:8, or 3,5, counted from 0."


@request
class ModelRequest:
    """MODEL, how it is read, and where it runs."""

    path: str = argument("MODEL", _MODEL)
    device: str = option(
        "--device",
        metavar="NAME",
        help="cpu (if not given), cuda[:n], mps, xpu or auto.",
        parse=parse.device,
        absent="cpu",
    )
    dtype: str | None = option(
        "--dtype",
        metavar="NAME",
        help="float32, float64, bfloat16 or float16; the model's own if not given.",
        parse=parse.one_of(DTYPES),
    )
    arch: str | None = option(
        "--arch", metavar="SPEC", help="The network of a state dict: package.module:callable or file.py:name."
    )
    arch_texts: tuple[str, ...] = option(
        "--arch-arg", metavar="NAME=VALUE", help="An argument for --arch; may be repeated.", many=True
    )
    activation: str | None = option(
        "--activation", metavar="NAME", help="Rebuild a plain chain of linear layers with this activation."
    )
    trust: bool = option("--trust", default=False, help="The model file may run code, and read and write other files.")
    seed: int | None = seed_option()
    threads: int | None = option(
        "--threads", metavar="N", help="CPU threads; all cores if not given.", parse=parse.whole_number(1)
    )

    @cached_property
    def arch_args(self) -> dict[str, object]:
        """``--arch-arg`` by name."""
        from jaccli.models.identify.import_spec import parse_arch_args

        return parse_arch_args(self.arch_texts)

    def check(self) -> None:
        """Whether MODEL exists, is a model, and comes with the network that it needs.

        Raises:
            UsageError: flags that cannot be meant, weights without a network.
            RefusedError: no such file, or not a model.
        """
        from jaccli.models.identify.file_kind import kind_of
        from jaccli.models.identify.import_spec import is_spec
        from jaccli.models.weights.quick_look import is_weights

        _ = self.arch_args
        if is_spec(self.path):
            return
        file, kind, _ = kind_of(self.path)
        weights = kind == "safetensors" or (kind == "checkpoint" and not self.trust and is_weights(file))
        if weights and self.arch is None and self.activation is None:
            raise UsageError(
                f"{quote(self.path)} holds weights without a network",
                "expected --arch package.module:callable or file.py:callable",
                "or --activation NAME, if it is a plain chain of linear layers",
            )
        if self.arch is not None:
            parse.check_arch(self.arch)


@request
class OptionalModelRequest(ModelRequest):
    """MODEL, where a saved Jacobian may stand in its place."""

    path: str = argument("MODEL", _MODEL, required=False)

    def check(self) -> None:
        """As for MODEL; and it must be given."""
        if self.path is None:
            raise UsageError(
                "no MODEL is given",
                "expected MODEL -i INPUT --layer LAYER, or --jacobian FILE",
                "as model.pt -i x.npy --layer fc1",
            )
        super().check()


@request
class InputRequest:
    """INPUT, which of its samples, and further arguments of the model."""

    source: InputSpec | None = option(
        "-i",
        "--input",
        metavar="INPUT",
        help="Samples: npy, npz[key], safetensors[key], pt, csv, a folder of images, -, or random:3x32x32,n=8.",
        parse=parse_input,
    )
    samples: Selection | None = option("--samples", metavar="PICK", help=_SAMPLES, parse=parse_samples)
    arguments: tuple[tuple[str | int, ArgValue], ...] = option(
        "--arg",
        metavar="NAME=VALUE",
        help="A further argument of the model, by name or position (1=16000, m=@m.npy).",
        parse=parse_model_arg,
        many=True,
    )

    @property
    def spec(self) -> InputSpec:
        """INPUT.

        Raises:
            UsageError: not given.
        """
        if self.source is None:
            raise UsageError("no samples are given", "expected -i INPUT", "as -i x.npy, -i - or -i random:3x32x32")
        return self.source

    def check(self) -> None:
        """Whether INPUT is given and exists, and each further argument is given once.

        Raises:
            UsageError: not given, or an argument twice.
            RefusedError: no such file.
        """
        names = [name for name, _ in self.arguments]
        spec = self.spec
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"--arg {name} is given twice", "expected each argument once", "leave one out")
            if name == 0:
                raise UsageError("--arg 0 is the samples' place", "expected positions from 1", "samples go in by -i")
        check_input(spec)


@request
class PairRequest:
    """Layer names as typed, to be compared with those of the model: a name may have any character but a dot."""

    layers: tuple[str, ...] = option(
        "--layer", metavar="LAYER", help="Source layer, glob, or all calls (cell#*); may be repeated.", many=True
    )
    froms: tuple[str, ...] = option("--from", metavar="LAYER", help="Source layer; 'input' if not given.", many=True)
    to: str | None = option("--to", metavar="LAYER", help="Target layer; 'output' if not given.")

    @property
    def sources(self) -> tuple[str, ...]:
        """The source layers."""
        return (*self.layers, *self.froms) or ("input",)

    @property
    def target(self) -> str:
        """The target layer."""
        return self.to or "output"

    def check(self) -> None:
        """Whether no name is empty.

        Raises:
            UsageError: one is.
        """
        from jaccli.activations.address import parse_address

        for name in (*self.sources, self.target):
            if not name:
                parse_address(name)


@request
class FromPairRequest(PairRequest):
    """Layer names of ``compute``: those of ``--from`` come first."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The source layers."""
        return (*self.froms, *self.layers) or ("input",)


@request
class NamedPairRequest(PairRequest):
    """Layer names where at least one must be given."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The source layers.

        Raises:
            UsageError: none is given.
        """
        if not (*self.layers, *self.froms):
            raise UsageError(
                "no layer is given", "expected --layer LAYER", "'jaccli layers MODEL' lists them; 'input' is one too"
            )
        return super().sources


@request
class SavedRequest:
    """A saved Jacobian and which of its samples."""

    jacobian: str | None = option("--jacobian", metavar="FILE|-", help="A saved Jacobian, in place of MODEL and -i.")
    samples: Selection | None = option("--samples", metavar="PICK", help=_SAMPLES, parse=parse_samples)

    @property
    def path(self) -> str:
        """The file, or ``-``."""
        return str(self.jacobian)

    def check(self) -> None:
        """Whether the file exists.

        Raises:
            UsageError: its name is not understood.
            RefusedError: no such file.
        """
        check_input(parse_input(self.path, "--jacobian"), SAVED_J)

    def stands_alone(
        self, model: ModelRequest, inputs: InputRequest, pair: PairRequest, figures: FiguresRequest
    ) -> None:
        """Refuse what belongs to a model beside a saved Jacobian.

        Raises:
            UsageError: both are given.
        """
        others = {
            "MODEL": model.path,
            "--input": inputs.source,
            "--layer": pair.layers,
            "--from": pair.froms,
            "--to": pair.to,
            "--arg": inputs.arguments,
            "--arch": model.arch,
            "--activation": model.activation,
            "--estimate": figures.wanted,
        }
        name = next((name for name, value in others.items() if value), None)
        if name is not None:
            raise UsageError(
                f"--jacobian and {name} are both given",
                "expected a saved Jacobian, or a model and its input",
                f"leave --jacobian or {name} out",
            )


@request
class ShownRequest(SavedRequest):
    """A saved Jacobian, by its place or by ``--jacobian``."""

    file: str | None = argument("FILE", "What compute saved; - for a pipe.", required=False)

    @property
    def path(self) -> str:
        """The file, or ``-``.

        Raises:
            UsageError: both or neither is given.
        """
        if (self.file is None) == (self.jacobian is None):
            raise UsageError(
                "got two saved Jacobians" if self.file else "got no saved Jacobian",
                "expected one saved Jacobian",
                "as 'jaccli show J.npy', or '-' for a pipe",
            )
        return str(self.file if self.file is not None else self.jacobian)
