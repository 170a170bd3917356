"""What ``jaccli regularize`` trains, and how."""

from __future__ import annotations

from typing import Any, get_args

from jaccli.cli import parse
from jaccli.cli.option import option, request
from jaccli.cli.request import InputRequest, ModelRequest
from jaccli.cli.run_request import seed_option
from jaccli.errors import UsageError
from jaccli.penalty.choices import Estimator, EstimatorOption, Towards
from jaccli.samples.spec import InputSpec, StdinInput, check_input, parse_input
from jaccli.sinks.choose import check_output
from jaccli.text.escape import quote

_WRITTEN = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pth.tar")


def _count(flag: str, help: str, **more: Any) -> Any:
    return option(flag, metavar="N", help=help, parse=parse.whole_number(1), **more)


@request
class TrainRequest:
    """What is to be trained, and how; None where the numerics choose.

    Raises:
        UsageError: values that do not go together, an output that cannot be written.
    """

    output: str | None = option(
        "-o",
        "--output",
        metavar="FILE",
        help="Weights: NAME.safetensors; NAME.pth, with all that is in the file of MODEL; or NAME.pt of a "
        "TorchScript MODEL. Without it nothing is written.",
    )
    towards: Towards = option(
        "--towards",
        default="identity",
        metavar="END",
        help="identity; scaled-identity (any multiple of it); orthogonal (J J^T = I); zero.",
        parse=parse.one_of(get_args(Towards)),
    )
    targets: InputSpec | None = option(
        "--targets",
        metavar="INPUT",
        help="Also fit these, a row a sample: floats by squared error, integers as classes. Without it the "
        "outputs are held where they are.",
        parse=parse_input,
    )
    weight: float = option(
        "--weight",
        default="1",
        metavar="W",
        help="Of the deviation, |J-I|^2/n, against the task.",
        parse=parse.number(),
    )
    steps: int = _count("--steps", "Steps of Adam.", default="1000")
    lr: float = option("--lr", default="3e-3", metavar="LR", help="The highest learning rate.", parse=parse.number())
    batch_size: int | None = _count("--batch-size", "Samples of a step; all, but at most 256, if not given.")
    estimator: EstimatorOption = option(
        "--estimator",
        default="auto",
        metavar="NAME",
        help="While training: exact, hutchinson (by products), or by the size of J.",
        parse=parse.one_of(("auto", *get_args(Estimator))),
    )
    probes: int | None = _count("--probes", "Products a sample of hutchinson; 1 if not given.")
    validate: InputSpec | None = option(
        "--validate",
        metavar="INPUT",
        help="Held-out samples; every fifth of -i if not given (--samples 4::5).",
        parse=parse_input,
    )
    validate_targets: InputSpec | None = option(
        "--validate-targets", metavar="INPUT", help="Targets of --validate.", parse=parse_input
    )
    patience: int | None = _count("--patience", "Stop after N steps without a better one on held-out samples.")
    jitter: float | None = option(
        "--jitter",
        metavar="S",
        help="Hold the outputs at noisy copies too, noise of S times the spread; 0.5 up to 256 samples, else 0.",
        parse=parse.number("from 0"),
    )
    trained: tuple[str, ...] = option(
        "--train", metavar="GLOB", help="Which parameters, as 'fc2.*'; all if not given.", many=True
    )
    force: bool = option("--force", default=False, help="Replace an existing output.")
    seed: int = seed_option(0)

    def __post_init__(self) -> None:
        if self.probes is not None and self.estimator == "exact":
            raise UsageError("--probes is given with --estimator exact", "expected it with hutchinson", "leave one out")
        if self.jitter is not None and self.targets is not None:
            raise UsageError("--jitter and --targets are both given", "noisy copies have no targets", "leave one out")
        if self.output is not None and not self.output.lower().endswith(_WRITTEN):
            raise UsageError(
                f"--output {self.output!r}: weights are written as .safetensors or .pth, "
                "or, of a TorchScript MODEL, as .pt",
                "expected -o NAME.safetensors or NAME.pth; the report goes to standard output",
                "choose such a name",
            )
        check_output(self.output, self.force)

    def check(self, model: ModelRequest, inputs: InputRequest) -> None:
        """Whether the files exist and go together, and MODEL can be written in the form of the output.

        Raises:
            UsageError: two inputs are standard input; targets of one kind of samples only; ``.pt`` of a MODEL that is
                neither TorchScript nor a file of ``torch.save``.
            RefusedError: no such file.
        """
        self._check_arrays(inputs)
        self._check_form(model)

    def _check_arrays(self, inputs: InputRequest) -> None:
        arrays = {"--targets": self.targets, "--validate": self.validate, "--validate-targets": self.validate_targets}
        sources = {"--input": inputs.source} | arrays
        piped = [flag for flag, spec in sources.items() if isinstance(spec, StdinInput)]
        if len(piped) > 1:
            raise UsageError(
                f"{' and '.join(piped)} are both standard input",
                "expected one of them",
                "write the other to a file and give its name",
            )
        if self.validate is not None and (self.targets is None) != (self.validate_targets is None):
            raise UsageError(
                "--validate: targets are given for one half only",
                "expected --targets and --validate-targets",
                "give both, or leave both out",
            )
        if self.validate_targets is not None and self.validate is None:
            raise UsageError(
                "--validate-targets is given without --validate",
                "expected the samples that they are for",
                "give --validate INPUT too, or leave --validate-targets out",
            )
        for spec in arrays.values():
            if spec is not None:
                check_input(spec)

    def _check_form(self, model: ModelRequest) -> None:
        """``.pt`` is for what can be written as a TorchScript archive, or was a file of ``torch.save``."""
        from jaccli.models.identify.file_kind import kind_of
        from jaccli.models.identify.import_spec import is_spec

        if self.output is None or not self.output.lower().endswith(".pt"):
            return
        if is_spec(model.path) or kind_of(model.path)[1] not in ("torchscript", "checkpoint"):
            raise UsageError(
                f"--output {self.output!r}: .pt is for a TorchScript MODEL, and {quote(model.path)} is none",
                "expected -o NAME.safetensors or NAME.pth",
                "choose such a name",
            )
