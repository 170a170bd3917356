"""J kept sparse: the entries that are nonzero in any sample, and where they are.

    data     (batch, nnz)   the entries of each sample
    indices  (2, nnz)       int64, rows above columns, in row order
    shape    (3,)           int64: batch, n_out, n_in

Of several pairs in one file, the pair's key stands before these: ``fc1->output.data``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.safety.memory import require_memory, require_unpacked
from jaccli.samples.expected import SAVE_AGAIN, WHOLE
from jaccli.sinks.matrix import MatrixSink, PairMeta, Target
from jaccli.sinks.matrix_binary import Writer

if TYPE_CHECKING:
    from jaxtyping import Shaped

_PARTS = ("data", "indices", "shape")
# Elements beyond this overflow the numbers by which they are counted.
_MOST_ELEMENTS = 2**62


class SparseSink(MatrixSink):
    """Holds the entries of each block at the positions where any of its samples is nonzero; written at the end.

    Args:
        target: where to.
        writer: of npz or safetensors.

    ``entries`` is, once closed, the number of entries that are stored of each sample, by pair.
    """

    def __init__(self, target: Target, writer: Writer) -> None:
        super().__init__(target)
        self._writer = writer
        self.entries: dict[str, int] = {}

    def _check_disk(self) -> None:
        """What will be written is known at the end."""

    def _open(self) -> None:
        super()._open()
        self._parts: dict[str, list[tuple[Tensor, Tensor]]] = {key: [] for key in self.pairs}

    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None:
        del start
        flat = block.reshape(len(block), -1)
        positions = (flat != 0).any(0).nonzero().reshape(-1)  # NaN is not zero
        self._parts[pair.key].append((positions, flat.index_select(1, positions)))

    def _close(self, provenance: dict[str, str]) -> None:
        named: dict[str, Tensor] = {}
        for key, pair in self.pairs.items():
            prefix = "" if self._only() else f"{key}."
            data, positions = _merged(pair, self._parts.pop(key))
            self.entries[key] = len(positions)
            named[f"{prefix}indices"] = torch.stack([positions // pair.shape[2], positions % pair.shape[2]])
            named[f"{prefix}shape"] = torch.tensor(pair.shape)
            named[f"{prefix}data"] = data
        self._writer(self._out, named, {**provenance, "layout": "sparse"})


def _merged(pair: PairMeta, parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The entries of all blocks at the union of their positions: ``(batch, nnz)``, and the positions ``(nnz,)``."""
    positions = torch.cat([of_block for of_block, _ in parts]).unique()
    require_memory(pair.shape[0] * len(positions) * pair.torch_dtype.itemsize, f"the sparse J of {pair.key!r}")
    data = torch.zeros(pair.shape[0], len(positions), dtype=pair.torch_dtype)
    start = 0
    for of_block, entries in parts:
        data[start : start + len(entries)].index_copy_(1, torch.searchsorted(positions, of_block), entries)
        start += len(entries)
    return data, positions


@dataclass(frozen=True)
class SparseSamples:
    """J of several samples, read like a tensor ``(batch, n_out, n_in)``; only the sample asked for is made dense.

    Args:
        data: ``(batch, nnz)``.
        positions: ``(nnz,)``, of the entries in a sample's J flattened in C order.
        matrix: its shape, ``(n_out, n_in)``.
    """

    data: Tensor
    positions: Tensor
    matrix: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(batch, n_out, n_in)``."""
        return (len(self.data), *self.matrix)

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""
        return self.data.dtype

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, which: int | Sequence[int]) -> Tensor | SparseSamples:
        """One sample's J ``(n_out, n_in)``, dense; or some of the samples, still sparse."""
        if not isinstance(which, int):
            return SparseSamples(self.data[list(which)], self.positions, self.matrix)
        out = torch.zeros(math.prod(self.matrix), dtype=self.data.dtype)
        return out.index_copy_(0, self.positions, self.data[which]).reshape(self.matrix)

    def __iter__(self) -> Iterator[Tensor]:
        """J of each sample, ``(n_out, n_in)``, dense."""
        for number in range(len(self)):
            one = self[number]
            assert isinstance(one, Tensor)
            yield one


def sparse_keys(keys: Sequence[str]) -> list[str]:
    """The keys of the pairs that are stored sparse; ``""`` for a pair whose parts have no key before them."""
    starts = [key.removesuffix("data") for key in keys if key == "data" or key.endswith(".data")]
    return [start.removesuffix(".") for start in starts if all(start + part in keys for part in _PARTS)]


def read_sparse(read: Callable[[str], Tensor], key: str, name: str) -> SparseSamples:
    """A sparse J of a file.

    Args:
        read: an array by its name: ``data`` ``(batch, nnz)``, ``indices`` ``(2, nnz)``, ``shape`` ``(3,)``.
        key: of ``sparse_keys``.
        name: of the file, for messages.

    Raises:
        RefusedError: the parts do not make a matrix.
        ResourceError: one sample's J does not fit into memory.
    """
    data, indices, shape = (read(f"{key}.{part}" if key else part) for part in _PARTS)
    whole = tuple(shape.tolist()) if shape.dtype == torch.int64 and shape.shape == (3,) else ()
    if len(whole) != 3 or min(whole) < 1 or math.prod(whole) > _MOST_ELEMENTS:
        raise RefusedError(f"{name} is no sparse Jacobian", "expected a shape of (batch, n_out, n_in)", SAVE_AGAIN)
    batch, n_out, n_in = whole
    if indices.dtype != torch.int64 or indices.dim() != 2 or data.shape != (batch, indices.shape[1]):
        raise RefusedError(
            f"{name} is no sparse Jacobian: data {tuple(data.shape)}, indices {tuple(indices.shape)}",
            f"expected ({batch}, nnz) and (2, nnz)",
            SAVE_AGAIN,
        )
    if data.dtype == torch.bool or data.is_complex() or len(indices) != 2:
        raise RefusedError(f"{name} is no sparse Jacobian", "expected real numbers, and rows above columns", SAVE_AGAIN)
    rows, columns = indices
    inside = ((rows >= 0) & (rows < n_out) & (columns >= 0) & (columns < n_in)).all()
    if not bool(inside):
        raise RefusedError(f"{name} is damaged: entries outside of {n_out} x {n_in}", *WHOLE)
    positions = rows * n_in + columns
    if len(positions.unique()) != len(positions):
        raise RefusedError(f"{name} is damaged: an entry is given twice", *WHOLE)
    data = data if data.is_floating_point() else data.double()
    # Figures are made of one sample's J in float64 and a copy.
    require_unpacked(2 * n_out * n_in * 8, 8 * data.numel(), f"one sample's J of {name}", most=_MOST_ELEMENTS)
    return SparseSamples(data, positions, (n_out, n_in))
