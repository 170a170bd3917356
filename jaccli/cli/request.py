"""What a command was asked for, checked as far as that goes without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaccli.activations.address import parse_address
from jaccli.cli.options import (
    check_device,
    check_dtype,
    parse_chunk,
    parse_count,
    parse_seconds,
    parse_share,
)
from jaccli.cli.peek import check_arch, is_weights
from jaccli.errors import UsageError
from jaccli.models.identify.file_kind import kind_of
from jaccli.models.identify.import_spec import is_spec, parse_arch_args
from jaccli.names import METHOD_NAMES, NORMS, MethodName, check_compile, check_method
from jaccli.samples.expected import SAVED_J
from jaccli.samples.spec import (
    ArgValue,
    InputSpec,
    Selection,
    StdinInput,
    check_input,
    parse_input,
    parse_model_arg,
    parse_samples,
)
from jaccli.sinks.choose import Format, Kind, check_output, choose_format
from jaccli.sinks.standard import results
from jaccli.text.escape import quote
from jaccli.text.sizes import memory_limit

# The formats that hold a sparse J.
SPARSE: tuple[Format, ...] = ("npz", "safetensors")


@dataclass(frozen=True)
class ModelRequest:
    """MODEL and what goes with it."""

    path: str
    arch: str | None
    arch_args: dict[str, object]
    activation: str | None
    trust: bool
    seed: int | None
    device: str
    dtype: str | None
    threads: int | None


@dataclass(frozen=True)
class InputRequest:
    """INPUT and what goes with it."""

    spec: InputSpec
    samples: Selection | None
    arguments: tuple[tuple[str | int, ArgValue], ...]


@dataclass(frozen=True)
class PairRequest:
    """Layer names as typed."""

    sources: tuple[str, ...]
    target: str


@dataclass(frozen=True)
class RunRequest:
    """How J is to be obtained."""

    method: str
    chunk: int | None
    max_memory: int | None
    timeout: float | None
    explain: bool
    quiet: bool
    no_color: bool = False
    compile: bool = False


def model_request(
    path: str,
    arch: str | None,
    arch_arg: list[str] | None,
    activation: str | None,
    trust: bool,
    seed: str | None,
    device: str | None,
    dtype: str | None,
    threads: str | None,
) -> ModelRequest:
    """Check everything about MODEL that needs no torch: that it is there, and what kind of file.

    Raises:
        UsageError: flags that cannot be meant, weights without a network.
        RefusedError: no such file, or not a model.
    """
    arch_args = parse_arch_args(arch_arg or [])
    checked = check_device(device), check_dtype(dtype)
    counts = parse_count(seed, "--seed", 0), parse_count(threads, "--threads")
    if not is_spec(path):
        file, kind, _ = kind_of(path)
        weights = kind == "safetensors" or (kind == "checkpoint" and not trust and is_weights(file))
        if weights and arch is None and activation is None:
            raise UsageError(
                f"{quote(path)} holds weights without a network",
                "expected --arch package.module:callable or file.py:callable",
                "or --activation NAME, if it is a plain chain of linear layers",
            )
        if arch is not None:
            check_arch(arch)
    return ModelRequest(path, arch, arch_args, activation, trust, counts[0], *checked, counts[1])


def input_request(text: str | None, samples: str | None, arguments: Sequence[str] | None) -> InputRequest:
    """Check INPUT, ``--samples`` and ``--arg``.

    Raises:
        UsageError: not given, or not understood.
        RefusedError: no such file.
    """
    if text is None:
        raise UsageError("no samples are given", "expected -i INPUT", "as -i x.npy, -i - or -i random:3x32x32")
    spec = parse_input(text)
    picked = parse_samples(samples) if samples is not None else None
    given = tuple(parse_model_arg(argument) for argument in arguments or ())
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--arg {name} is given twice", "expected each argument once")
        if name == 0:
            raise UsageError("--arg 0 is the samples' place", "expected positions from 1", "samples go in by -i")
    if not isinstance(spec, StdinInput):
        check_input(spec)
    return InputRequest(spec, picked, given)


def pair_request(sources: Sequence[str], target: str) -> PairRequest:
    """Layer names, to be read against those of the model: a module's name may have any character but a dot.

    Raises:
        UsageError: an empty one.
    """
    for name in (*sources, target):
        if not name:
            parse_address(name)
    return PairRequest(tuple(sources), target)


def run_request(
    method: str,
    chunk: str,
    max_memory: str | None,
    timeout: str | None,
    explain: bool,
    quiet: bool,
    no_color: bool = False,
    compile: bool = False,
) -> RunRequest:
    """Check how J is to be obtained.

    Raises:
        UsageError: an unknown method, one that cannot be compiled, or values that are not understood.
    """
    check_method(method)
    check_compile(compile, method)
    size, seconds = memory_limit(max_memory), parse_seconds(timeout)
    return RunRequest(method, parse_chunk(chunk), size, seconds, explain, quiet, no_color, compile)


@dataclass(frozen=True)
class EstimateRequest:
    """Whether figures are estimated, how well, and from which seed."""

    wanted: bool
    probes: int | None
    tolerance: float | None
    seed: int


def estimate_request(wanted: bool, probes: str | None, tolerance: str | None, seed: str | None) -> EstimateRequest:
    """Check how figures are to be estimated; ``--probes`` and ``--tolerance`` ask for it.

    Raises:
        UsageError: not understood, or both are given.
    """
    count, share = parse_count(probes, "--probes", 2), parse_share(tolerance, "--tolerance")
    if count is not None and share is not None:
        raise UsageError("--probes and --tolerance are both given", "expected one of them")
    return EstimateRequest(wanted or bool(count or share), count, share, parse_count(seed, "--seed", 0) or 0)


@dataclass(frozen=True)
class OutputRequest:
    """Where the result goes and in which form."""

    path: str | None
    format: Format
    force: bool
    no_color: bool
    sparse: bool = False


def output_request(
    path: str | None, format: str | None, force: bool, no_color: bool, kind: Kind, sparse: bool = False
) -> OutputRequest:
    """Check that the output can be written, before any work.

    Raises:
        UsageError: an unknown format, a file that exists, a folder that does not, a format that has no sparse form.
    """
    chosen = choose_format(format, path, results().isatty(), kind)
    if sparse and chosen not in SPARSE:
        raise UsageError(
            f"--sparse: {chosen} does not hold a sparse J",
            f"expected --format {' or '.join(SPARSE)}",
            "or leave --sparse out",
        )
    check_output(path, force)
    return OutputRequest(path, chosen, force, no_color, sparse)


@dataclass(frozen=True)
class Gate:
    """``--fail-above NORM=VALUE``."""

    norm: str
    limit: float


def parse_gates(texts: Sequence[str]) -> tuple[Gate, ...]:
    """Read ``NORM=VALUE``.

    Raises:
        UsageError: another norm, or not a number.
    """
    gates = []
    for text in texts:
        norm, equals, value = text.partition("=")
        try:
            limit = float(value) if equals else math.nan
        except ValueError:
            limit = math.nan
        if norm not in NORMS or math.isnan(limit):
            raise UsageError(
                f"--fail-above {text!r} is not understood",
                f"expected NORM=VALUE, NORM one of {', '.join(NORMS)}",
            )
        gates.append(Gate(norm, limit))
    return tuple(gates)


@dataclass(frozen=True)
class SavedRequest:
    """A saved Jacobian and which of its samples."""

    path: str
    samples: Selection | None


def saved_request(path: str, samples: str | None) -> SavedRequest:
    """Check ``--jacobian``.

    Raises:
        UsageError: not understood.
        RefusedError: no such file.
    """
    spec = parse_input(path, "--jacobian")
    if not isinstance(spec, StdinInput):
        check_input(spec, SAVED_J)
    return SavedRequest(path, parse_samples(samples) if samples is not None else None)


def refuse_with_jacobian(others: Mapping[str, object]) -> None:
    """A saved Jacobian stands in place of MODEL and INPUT.

    Raises:
        UsageError: both are given.
    """
    for name, value in others.items():
        if value:
            raise UsageError(
                f"--jacobian and {name} are both given", "expected a saved Jacobian, or a model and its input"
            )


def needed_model(model: str | None) -> str:
    """MODEL, where no saved Jacobian is given.

    Raises:
        UsageError: not given.
    """
    if model is None:
        raise UsageError("no MODEL is given", "expected MODEL -i INPUT --layer LAYER, or --jacobian FILE")
    return model


def needed_layers(names: list[str]) -> list[str]:
    """The layers of ``deviation``.

    Raises:
        UsageError: not given.
    """
    if not names:
        raise UsageError(
            "no layer is given",
            "expected --layer LAYER",
            "'jaccli layers MODEL' lists them; 'input' is one too",
        )
    return names


def one_of(file: str | None, jacobian: str | None) -> str:
    """``show FILE`` or ``show --jacobian FILE``.

    Raises:
        UsageError: both or neither.
    """
    if (file is None) == (jacobian is None):
        raise UsageError(
            "expected one saved Jacobian" + (", got two" if file else ""),
            "as 'jaccli show J.npy', or '-' for a pipe",
        )
    return file if file is not None else str(jacobian)


@dataclass(frozen=True)
class BenchRequest:
    """Which methods, and how long."""

    methods: tuple[MethodName, ...]
    rounds: int | None
    max_time: float
    compile: bool = False


def bench_request(methods: str | None, rounds: str | None, max_time: str, compile: bool = False) -> BenchRequest:
    """Check ``--methods``, ``--rounds`` and ``--max-time``.

    Raises:
        UsageError: an unknown method, or values that are not understood.
    """
    names = [name.strip() for name in methods.split(",")] if methods is not None else list(METHOD_NAMES)
    checked = tuple(dict.fromkeys(check_method(name) for name in names))
    if not {"auto", "structured"} & set(checked):
        check_compile(compile, checked[0])
    seconds = parse_seconds(max_time, "--max-time") or 10.0
    return BenchRequest(checked, parse_count(rounds, "--rounds"), seconds, compile)
