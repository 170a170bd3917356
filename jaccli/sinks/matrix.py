"""Jacobians written block by block: what every format has in common.

    with matrix_sink("npy", "j.npy", force=False) as sink:
        sink.open([PairMeta("input", "output", (8, 10, 784), "float32")])
        sink.write("input->output", 0, block)          # (k, 10, 784), as often as it takes
        sink.close({"command": "..."})                 # now the file appears

Leaving the block without ``close`` leaves nothing behind. What holds for every sink:

1. The calls come in the order ``open``, ``write``…, ``close``. A pair's blocks come in the order of its samples,
   without gaps; blocks of several pairs may take turns.
2. An output that cannot be written, or that cannot hold the pairs, is refused by ``open``, before anything is computed.
3. A pipe gets nothing before the first block, so that a computation that fails has written nothing into it.
4. A format gets each block on the CPU, contiguous and in the pair's dtype.
"""

from __future__ import annotations

import math
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

from jaccli.errors import InternalError, ResourceError, note
from jaccli.sinks.atomic import open_output
from jaccli.sinks.choose import is_stream
from jaccli.sinks.terminal import PLAIN, Style
from jaccli.text.quantities import human

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class PairMeta:
    """One layer pair: names, the shape ``(batch, n_out, n_in)`` and the dtype of its J, as ``float32``."""

    source: str
    target: str
    shape: tuple[int, int, int]
    dtype: str

    @property
    def key(self) -> str:
        """``fc1->output``."""
        return f"{self.source}->{self.target}"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def n_bytes(self) -> int:
        """Size of the whole J."""
        return math.prod(self.shape) * self.torch_dtype.itemsize


@dataclass(frozen=True)
class Target:
    """Where a sink writes; ``stdout`` stands for standard output in tests and in-process use."""

    out: str | None = None
    force: bool = False
    stdout: BinaryIO | None = None
    style: Style = PLAIN


class MatrixSink(ABC):
    """Takes J in blocks of samples. A file appears at ``close``; an exception leaves what was there."""

    binary = True
    _out: BinaryIO

    def __init__(self, target: Target) -> None:
        self.target = target
        self.pairs: dict[str, PairMeta] = {}
        self.samples: list[int] = []
        self._written: dict[str, int] = {}
        self._methods: dict[str, str] = {}
        self._stack = ExitStack()

    def open(self, pairs: Sequence[PairMeta], samples: Sequence[int] | None = None) -> None:
        """Start the output.

        Args:
            pairs: all pairs that will be written, each once; of one batch size.
            samples: the numbers by which text formats call the samples; 0, 1, ... unless given.

        Raises:
            UsageError: the format cannot hold these pairs, or the output cannot be written.
            ResourceError: the disk (or, for formats written at the end, the memory) is too small.
        """
        self.pairs = {pair.key: pair for pair in pairs}
        self._written = dict.fromkeys(self.pairs, 0)
        self.samples = list(samples if samples is not None else range(max(pair.shape[0] for pair in pairs)))
        self._check_disk()
        self._open()

    def write(self, key: str, start: int, block: Tensor, method: str = "") -> None:
        """Add the samples from ``start`` on; the blocks of a pair come in order.

        Args:
            key: the pair's key.
            start: position of the block's first sample in the batch.
            block: ``(k, n_out, n_in)``, on any device; converted to the pair's dtype.
            method: that it was obtained by, for formats that name it beside each sample or pair.

        Raises:
            BrokenPipeError: the reader of a pipe left.
            ResourceError: the disk is full (raised when the sink is left).
        """
        pair = self.pairs[key]
        tensor = block.detach().to("cpu", pair.torch_dtype).contiguous()
        fits = tensor.dim() == 3 and tuple(tensor.shape[1:]) == pair.shape[1:]
        if not fits or start != self._written[key] or start + len(tensor) > pair.shape[0]:
            raise InternalError(
                f"block {tuple(tensor.shape)} at sample {start} does not continue {pair.shape}",
                f"expected the samples from {self._written[key]} on",
                "please report it",
            )
        if not any(self._written.values()):
            self._begin()
        self._written[key] += len(tensor)
        self._methods[key] = method
        self._write(pair, start, tensor)

    def close(self, provenance: Mapping[str, str] | None = None) -> None:
        """Finish the output and put it in its place.

        Args:
            provenance: how J came about (model hash, method, versions, command), for formats that hold it.
        """
        missing = [key for key, pair in self.pairs.items() if self._written[key] != pair.shape[0]]
        if missing:
            raise InternalError(
                f"not all samples of {missing[0]!r} were written",
                "expected a block of each sample before the end",
                "please report it",
            )
        self._close(self._provenance(provenance or {}))
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After close() the stack is empty and this does nothing. Without, the output must see an
        # exception, or it would take its place half done.
        if error is None:
            self._stack.__exit__(_AbandonedError, _AbandonedError(), None)
        else:
            self._stack.__exit__(kind, error, trace)

    def _open(self) -> None:
        """Open the output. A format that cannot hold the pairs refuses them first."""
        self._out = self._stack.enter_context(open_output(self.target.out, self.target.force, self.target.stdout))

    def _begin(self) -> None:
        """Write what stands before the first block."""
        return

    @abstractmethod
    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None: ...

    def _close(self, provenance: dict[str, str]) -> None:
        """Write what stands after the last block: nothing, where the format has no place for the provenance."""
        del provenance

    def _only(self) -> PairMeta | None:
        """The pair, where there is one only."""
        return next(iter(self.pairs.values())) if len(self.pairs) == 1 else None

    def _provenance(self, provenance: Mapping[str, str]) -> dict[str, str]:
        """All as text, and the pair's names where the key (``jacobian``) does not tell them."""
        texts = {str(name): str(value) for name, value in provenance.items()}
        if self.samples != list(range(len(self.samples))):
            texts["samples"] = ",".join(map(str, self.samples))
        only = self._only()
        return {"source": only.source, "target": only.target} | texts if only else texts

    def _check_disk(self) -> None:
        if not self.binary or is_stream(self.target.out):
            return
        folder = os.path.dirname(os.path.realpath(str(self.target.out)))
        needed = sum(pair.n_bytes for pair in self.pairs.values())
        if os.path.isdir(folder) and needed > shutil.disk_usage(folder).free:
            raise ResourceError(
                f"--output {self.target.out!r} needs {human(needed)} of disk",
                f"free: {human(shutil.disk_usage(folder).free)}",
                "write to another disk, or take fewer samples",
            )


class _AbandonedError(Exception):
    """A sink was left before it was closed."""


def numpy_form(block: Tensor) -> np.ndarray[Any, Any]:
    """The block as an array of its shape, on the same memory; of bfloat16, which NumPy lacks, an exact float32 copy."""
    array: np.ndarray[Any, Any] = (block.float() if block.dtype == torch.bfloat16 else block).numpy()
    return array


def raw_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of an array in C order, without a copy where it is in that order already."""
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def numpy_dtype(pair: PairMeta) -> np.dtype[Any]:
    """The dtype of ``numpy_form``."""
    return np.dtype("float32" if pair.dtype == "bfloat16" else pair.dtype)


def note_bfloat16(dtypes: Iterable[torch.dtype], chosen: str) -> None:
    """Say, once, that a format holds another dtype than was computed."""
    if torch.bfloat16 in dtypes:
        note(f"{chosen} has no bfloat16: stored as float32")
