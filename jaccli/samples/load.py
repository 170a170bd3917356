"""INPUT → a tensor of samples."""

from __future__ import annotations

import math
from typing import Any, BinaryIO

import torch
from torch import Tensor

from jaccli.errors import RefusedError, warn
from jaccli.safety.memory import require_memory
from jaccli.safety.reading import reading
from jaccli.samples.arrays import Rows, as_tensor, read_npy
from jaccli.samples.containers import CONTAINERS, pick_key
from jaccli.samples.expected import ARRAYS
from jaccli.samples.images import read_folder, read_image
from jaccli.samples.source import Source, open_source, sniff
from jaccli.samples.spec import ArgValue, FileInput, FolderInput, InputSpec, RandomInput, StdinInput, check_input
from jaccli.samples.table import read_table


def load_samples(
    spec: InputSpec, *, stdin: BinaryIO | None = None, complex_too: bool = False, rows: Rows | None = None
) -> Tensor:
    """The samples of an INPUT, ``(samples, …)``, on the CPU.

    The dtype is the file's (csv: float64; images and random numbers: float32): integers stay integers,
    and a model's own dtype is a later step's to know. Nothing in a file is ever executed.

    Args:
        spec: from ``parse_input``.
        stdin: what ``-`` reads; the process's standard input unless given.
        complex_too: complex numbers are as good as real ones: nothing is differentiated with respect to them.
        rows: which samples are wanted, of how many there are; all unless given. Of a file of arrays no others are
            read, however large it is.

    Raises:
        RefusedError: unreadable, damaged, no numbers, or no samples.
        UsageError: several arrays and none named; standard input is a terminal.
        ResourceError: larger than the memory or the temporary disk.
    """
    check_input(spec)
    match spec:
        case RandomInput():
            return _picked(_random(spec), rows)
        case FolderInput():
            with reading(repr(spec.path)):
                samples = read_folder(spec.path)
            return _picked(_checked(samples, repr(spec.path), complex_too), rows)
        case FileInput() | StdinInput():
            path = spec.path if isinstance(spec, FileInput) else "-"
            with open_source(path, stdin) as source, reading(source.name):
                return _checked(_read(source, spec.key, rows), source.name, complex_too)


def load_argument(value: ArgValue) -> Any:
    """A further argument's value: ``@FILE`` is loaded as samples, anything else is itself."""
    if isinstance(value, FileInput | FolderInput | RandomInput | StdinInput):
        return load_samples(value, complex_too=True)
    return value


def _picked(samples: Tensor, rows: Rows | None) -> Tensor:
    """The rows wanted of ``(samples, …)``."""
    return samples if rows is None else samples[list(rows(len(samples)))]


def _read(source: Source, key: str | None, rows: Rows | None = None) -> Tensor:
    """The array of a file, of any shape, by the kind of its content."""
    kind = sniff(source)
    if kind in CONTAINERS:
        container = CONTAINERS[kind](source)
        return container.read(pick_key(container, key, source), rows)
    if key is not None:
        raise RefusedError(
            f"{source.name} is {kind} and holds no arrays with names such as {key!r}",
            "expected FILE without [KEY]",
            "leave the key out",
        )
    match kind:
        case "npy":
            return as_tensor(read_npy(source.handle, source.size, source.name, rows=rows), source.name)
        case "image":
            return _picked(read_image(source.path), rows)
        case "text":
            require_memory(source.size, source.name)
            return _picked(read_table(source.handle, source.name), rows)
        case _:
            raise RefusedError(f"{source.name} is JSON", ARRAYS, "save it as an array: numpy.save('x.npy', …)")


def _random(spec: RandomInput) -> Tensor:
    """``(n, *shape)`` of the spec."""
    shape = (spec.n, *spec.shape)
    require_memory(12 * math.prod(shape), f"input {spec}")
    generator = torch.Generator().manual_seed(spec.seed)
    draw = torch.randn if spec.dist == "normal" else torch.rand
    # Drawn in float64 and rounded: torch's float32 path differs in the last bit with the processor.
    values = draw(shape, generator=generator, dtype=torch.float64).float()
    return values.clamp_(max=1 - 2**-24) if spec.dist == "uniform" else values


def _checked(samples: Tensor, name: str, complex_too: bool) -> Tensor:
    """The same tensor, if it is ``(samples, …)``."""
    if samples.is_complex() and not complex_too:
        raise RefusedError(
            f"{name} holds complex numbers",
            "expected real numbers",
            "save real and imaginary parts as two arrays, or as one more dimension",
        )
    if samples.dim() == 0:
        raise RefusedError(
            f"{name} is a single number",
            "expected an array whose first dimension is the samples",
            "add the dimension: array.reshape(1, 1)",
        )
    if samples.numel() == 0:
        raise RefusedError(
            f"{name} holds no samples: shape {tuple(samples.shape)}",
            "expected at least one: an array whose first dimension is the samples, no size of it 0",
            "choose another file, or write it again",
        )
    if samples.is_floating_point() or samples.is_complex():
        _warn_non_finite(samples, name)
    return samples


def _warn_non_finite(samples: Tensor, name: str) -> None:
    """Of a tensor of any shape."""
    # float8 has no isfinite.
    finite = (samples.float() if samples.element_size() == 1 else samples).isfinite()
    if not finite.all():
        count = int((~finite).sum())
        first = int((~finite).reshape(len(samples), -1).any(1).nonzero()[0])
        values = "value" if count == 1 else "values"
        warn(f"{name} has {count} non-finite {values} (first at sample {first})")
