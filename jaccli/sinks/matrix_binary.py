"""Matrix sinks that write arrays: npy, npz, safetensors, pt and zarr."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy_format
from torch import Tensor

from jaccli.errors import ResourceError, UnsupportedError, UsageError
from jaccli.safety.memory import available_memory
from jaccli.samples.containers import PROVENANCE
from jaccli.sinks.atomic import atomic_folder
from jaccli.sinks.choose import is_stream
from jaccli.sinks.matrix import MatrixSink, PairMeta, Target, note_bfloat16, numpy_dtype, numpy_form, raw_bytes
from jaccli.text.quantities import dtype_name, human

if TYPE_CHECKING:
    from jaxtyping import Shaped

JACOBIAN = "jacobian"

_SAFETENSORS_DTYPE = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
_CHUNK_BYTES = 4 << 20  # of a zarr array: one file each


class NpySink(MatrixSink):
    """One pair as ``(batch, n_out, n_in)``: the header first, then each block as it comes."""

    def _open(self) -> None:
        pair = self._only()
        if pair is None:
            raise UsageError(
                f"npy holds one layer pair, and there are {len(self.pairs)}",
                "expected --format npz, safetensors, pt, zarr or jsonl",
                "choose another format, or one layer",
            )
        super()._open()
        note_bfloat16([pair.torch_dtype], "npy")

    def _begin(self) -> None:
        (pair,) = self.pairs.values()
        _write_npy_header(self._out, pair.shape, numpy_dtype(pair))

    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None:
        del pair, start
        self._out.write(raw_bytes(numpy_form(block)))
        self._out.flush()


Writer = Callable[[BinaryIO, Mapping[str, Tensor], Mapping[str, str]], None]
"""Writes named tensors of any shapes, and the provenance, to a handle."""


class CollectedSink(MatrixSink):
    """A format that is written at the end, by ``writer``: all of J is held until then."""

    def __init__(self, target: Target, writer: Writer) -> None:
        super().__init__(target)
        self._writer = writer

    def _open(self) -> None:
        needed, available = sum(pair.n_bytes for pair in self.pairs.values()), available_memory()
        if available is not None and needed > available:
            raise ResourceError(
                f"this format is written at the end and needs {human(needed)} of memory",
                f"available: {human(available)}",
                "use npy, jsonl or zarr, which are written block by block",
            )
        super()._open()
        self._whole: dict[str, Tensor] = {}

    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None:
        if len(block) == pair.shape[0]:  # no second copy of a J that came at once
            self._whole[pair.key] = block
            return
        if pair.key not in self._whole:
            self._whole[pair.key] = torch.empty(pair.shape, dtype=pair.torch_dtype)
        self._whole[pair.key][start : start + len(block)] = block

    def _close(self, provenance: dict[str, str]) -> None:
        only = self._only()
        named = {JACOBIAN if only else key: self._whole[key] for key in self.pairs}
        self._writer(self._out, named, provenance)


def write_npz(out: BinaryIO, named: Mapping[str, Tensor], provenance: Mapping[str, str]) -> None:
    """Tensors of any shapes as npz, with the provenance as JSON text under ``provenance``."""
    note_bfloat16((tensor.dtype for tensor in named.values()), "npz")
    with zipfile.ZipFile(out, "w") as archive:
        for key, tensor in named.items():
            _add_array(archive, key, numpy_form(tensor))
        _add_array(archive, PROVENANCE, np.array(json.dumps(provenance)))


def write_safetensors(out: BinaryIO, named: Mapping[str, Tensor], provenance: Mapping[str, str]) -> None:
    """Tensors of any shapes as safetensors, with the provenance as metadata.

    They stand in the order given. The library's own writer has an order of its own, which differs from process to
    process, and needs a file; this one writes tensor by tensor, so that a pipe will do.

    Raises:
        UnsupportedError: a dtype that safetensors lacks.
    """
    header: dict[str, Any] = {"__metadata__": provenance}
    offset = 0
    for key, tensor in named.items():
        end = offset + tensor.nbytes
        name = _SAFETENSORS_DTYPE.get(tensor.dtype)
        if name is None:
            raise UnsupportedError(
                f"safetensors does not hold {key!r}: {dtype_name(tensor.dtype)}",
                remedy="choose another format, or --dtype float32",
            )
        header[key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    out.write(len(text).to_bytes(8, "little") + text)
    for tensor in named.values():
        out.write(raw_bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))


def write_pt(out: BinaryIO, named: Mapping[str, Tensor], provenance: Mapping[str, str]) -> None:
    """``torch.save`` of a dict with tensors of any shapes and ``provenance``, loadable with ``weights_only=True``."""
    # A block may be a view of something larger, which torch.save would store whole.
    whole = {key: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for key, t in named.items()}
    guarded: Any = _Remembering(out)
    try:
        torch.save({**whole, PROVENANCE: dict(provenance)}, guarded)
    except Exception:
        # Torch reports a failed write as an error of its own.
        raise guarded.error or ResourceError("J could not be serialised", remedy="try --format npy") from None


class ZarrSink(MatrixSink):
    """A zarr group: one array a pair with its names as attributes, the provenance on the group."""

    def _open(self) -> None:
        try:
            import zarr
        except ImportError:
            raise UsageError("--format zarr: zarr is not installed", remedy="pip install 'jaccli[zarr]'") from None
        if is_stream(self.target.out):
            raise UsageError("zarr: a store is a folder", remedy="name it with -o NAME.zarr")
        folder = self._stack.enter_context(atomic_folder(str(self.target.out), self.target.force))
        self._group = zarr.open_group(folder, mode="w")
        self._arrays: dict[str, Any] = {}
        note_bfloat16((pair.torch_dtype for pair in self.pairs.values()), "zarr")
        for index, (key, pair) in enumerate(self.pairs.items()):
            per_chunk = max(1, min(pair.shape[0], _CHUNK_BYTES // max(pair.n_bytes // pair.shape[0], 1)))
            self._arrays[key] = self._group.create_array(
                JACOBIAN if self._only() else _path_part(key),
                shape=pair.shape,
                dtype=numpy_dtype(pair),
                chunks=(per_chunk, *pair.shape[1:]),
                attributes={"source": pair.source, "target": pair.target, "index": index},
            )

    def _write(self, pair: PairMeta, start: int, block: Shaped[Tensor, "block n_out n_in"]) -> None:
        self._arrays[pair.key][start : start + len(block)] = numpy_form(block)

    def _close(self, provenance: dict[str, str]) -> None:
        self._group.attrs.update({PROVENANCE: provenance})


class _Remembering(io.RawIOBase):
    """Keeps the first error of a handle that is written to from C++."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self._handle.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def _write_npy_header(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    npy_format.write_array_header_1_0(out, header)


def _add_array(archive: zipfile.ZipFile, key: str, array: np.ndarray[Any, Any]) -> None:
    # A fixed date: the same J gives the same file.
    with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
        _write_npy_header(member, array.shape, array.dtype)
        member.write(raw_bytes(array))


def _path_part(key: str) -> str:
    """A key as one part of a zarr path: a layer name may hold a slash."""
    return key.replace("%", "%25").replace("/", "%2F")
