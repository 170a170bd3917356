"""What ``jaccli regularize`` was asked for, checked as far as that goes without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from jaccli.cli.options import parse_count, parse_number
from jaccli.cli.request import ModelRequest
from jaccli.errors import UsageError
from jaccli.models.identify.file_kind import kind_of
from jaccli.models.identify.import_spec import is_spec
from jaccli.samples.spec import InputSpec, StdinInput, check_input, parse_input
from jaccli.sinks.choose import check_output
from jaccli.text.escape import quote

Towards = Literal["identity", "scaled-identity", "orthogonal", "zero"]
Estimator = Literal["auto", "exact", "hutchinson"]
T = TypeVar("T")
_WRITTEN = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".pth.tar")
_FILES = ("--input", "--targets", "--validate", "--validate-targets")


@dataclass(frozen=True)
class TrainRequest:
    """What is to be trained, and how; ``None`` where the numerics choose."""

    towards: Towards
    estimator: Estimator
    probes: int
    weight: float
    steps: int
    lr: float
    batch_size: int | None
    patience: int | None
    jitter: float | None
    seed: int
    trained: tuple[str, ...]
    files: Mapping[str, InputSpec]
    output: str | None
    force: bool


def train_request(
    texts: Mapping[str, str | None], trained: list[str] | None, output: str | None, force: bool
) -> TrainRequest:
    """Check everything about a training run that needs neither torch nor the model.

    Args:
        texts: what was typed, by flag.
        trained: ``--train``.
        output: where the weights go.
        force: replace that.

    Raises:
        UsageError: values that are not understood or do not go together, an output that cannot be written.
        RefusedError: no such file.
    """
    towards: Towards = _one_of(texts, "--towards", get_args(Towards))
    estimator: Estimator = _one_of(texts, "--estimator", get_args(Estimator))
    if texts["--probes"] is not None and estimator == "exact":
        raise UsageError("--probes is given with --estimator exact", "expected it with hutchinson", "leave one out")
    jitter = texts["--jitter"]
    if jitter is not None and texts["--targets"] is not None:
        raise UsageError("--jitter and --targets are both given", "noisy copies have no targets", "leave one out")
    found = TrainRequest(
        towards,
        estimator,
        parse_count(texts["--probes"], "--probes") or 1,
        parse_number(str(texts["--weight"]), "--weight"),
        parse_count(texts["--steps"], "--steps") or 1,
        parse_number(str(texts["--lr"]), "--lr"),
        parse_count(texts["--batch-size"], "--batch-size"),
        parse_count(texts["--patience"], "--patience"),
        parse_number(jitter, "--jitter", zero=True) if jitter is not None else None,
        parse_count(texts["--seed"], "--seed", 0) or 0,
        tuple(trained or ()),
        _files(texts),
        output,
        force,
    )
    if output is not None and not output.lower().endswith(_WRITTEN):
        raise UsageError(
            f"--output {output!r}: weights are written as .safetensors or .pth, or, of a TorchScript MODEL, as .pt",
            "expected -o NAME.safetensors or NAME.pth; the report goes to standard output",
        )
    check_output(output, force)
    return found


def _one_of(texts: Mapping[str, str | None], flag: str, known: tuple[T, ...]) -> T:
    for one in known:
        if one == texts[flag]:
            return one
    raise UsageError(f"{flag} {texts[flag]!r} is not known", f"expected one of {', '.join(map(str, known))}")


def _files(texts: Mapping[str, str | None]) -> dict[str, InputSpec]:
    """INPUTs by flag. Standard input is read once; held-out samples need targets where the others have them."""
    given = {flag: text for flag in _FILES if (text := texts[flag]) is not None}
    specs = {flag: parse_input(text, flag) for flag, text in given.items()}
    piped = [flag for flag, spec in specs.items() if isinstance(spec, StdinInput)]
    if len(piped) > 1:
        raise UsageError(f"{' and '.join(piped)} are both standard input", "expected one of them")
    if "--validate" in specs and ("--targets" in specs) != ("--validate-targets" in specs):
        raise UsageError("--validate: targets are given for one half only", "expected --targets and --validate-targets")
    if "--validate-targets" in specs and "--validate" not in specs:
        raise UsageError("--validate-targets is given without --validate", "expected the samples that they are for")
    for flag, spec in specs.items():
        if flag != "--input" and not isinstance(spec, StdinInput):
            check_input(spec)
    return specs


def check_archive(model: ModelRequest, output: str | None) -> None:
    """``.pt`` is for what can be written as a TorchScript archive, or was a file of ``torch.save``.

    Raises:
        UsageError: MODEL is neither.
    """
    if output is None or not output.lower().endswith(".pt"):
        return
    if is_spec(model.path) or kind_of(model.path)[1] not in ("torchscript", "checkpoint"):
        raise UsageError(
            f"--output {output!r}: .pt is for a TorchScript MODEL, and {quote(model.path)} is none",
            "expected -o NAME.safetensors or NAME.pth",
        )
