"""Files of named arrays (npz, safetensors, pt), opened without running anything that is in them."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from jaccli.errors import JaccliError, RefusedError, UsageError
from jaccli.pickles.saved_object import read_pickled
from jaccli.pickles.stand_ins import ArraySpec, PackedSpec, SparseSpec, TensorSpec
from jaccli.pickles.storages import TensorMaker
from jaccli.safety.archives import open_archive
from jaccli.safety.documents import parse_json, plain_values
from jaccli.safety.headers import check_header
from jaccli.safety.reading import reading
from jaccli.samples.arrays import Rows, as_tensor, read_npy
from jaccli.samples.expected import WHOLE
from jaccli.samples.source import Kind, Source
from jaccli.text.escape import listed

PROVENANCE = "provenance"
_LONGEST_METADATA = 1 << 24
_DENSE = "save their numbers as dense tensors, or as npy"
_OTHER_TENSORS = {
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor on the meta device, which has no values",
    "torch._utils._rebuild_nested_tensor": "a nested tensor, whose samples have shapes of their own",
}
_TENSORS = (TensorSpec, SparseSpec, ArraySpec, PackedSpec)


class Container(ABC):
    """The named arrays of a file, valid while ``source`` is open.

    ``keys`` are in the file's order; ``metadata`` is text that was saved with the arrays.
    """

    @abstractmethod
    def __init__(self, source: Source) -> None: ...

    keys: list[str]
    metadata: dict[str, str]

    @abstractmethod
    def read(self, key: str, rows: Rows | None = None) -> Tensor:
        """One array of any shape, dense, on the CPU, in memory of its own; with ``rows`` those rows only.

        Raises:
            RefusedError: damaged, or not a dense array of numbers.
            ResourceError: larger than the memory available.
        """


def pick_key(container: Container, key: str | None, source: Source) -> str:
    """The named array, or the only one.

    Raises:
        UsageError: no such key, or several and none named; lists them.
        RefusedError: no arrays at all.
    """
    if not container.keys:
        raise RefusedError(
            f"{source.name} holds no arrays", "expected one at least", "choose another file, or write it again"
        )
    if key is None and len(container.keys) == 1:
        return container.keys[0]
    if key in container.keys:
        return str(key)
    problem = f"{source.name} holds {len(container.keys)} arrays" if key is None else f"{source.name} has no {key!r}"
    raise UsageError(problem, f"expected one of {list_keys(container.keys)}", "name it as FILE[KEY]")


def list_keys(keys: list[str], most: int = 12) -> str:
    """Keys for a message: escaped, each cut at 60 characters, at most ``most`` of them."""
    shown = ", ".join(repr(key if len(key) <= 60 else key[:57] + "...") for key in keys[:most])
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")


class _Npz(Container):
    def __init__(self, source: Source) -> None:
        self._source = source
        self._archive = open_archive(source.handle, source.name)
        infos = self._archive.infolist()
        # As ``np.load`` names them. Other members of the archive are not arrays, and are passed over.
        self._members = {i.filename.removesuffix(".npy"): i for i in infos if i.filename.endswith(".npy")}
        self.metadata = self._read_metadata()
        self.keys = [key for key in self._members if not (key == PROVENANCE and self.metadata)]

    def read(self, key: str, rows: Rows | None = None) -> Tensor:
        name = f"{self._source.name}[{key!r}]"
        return as_tensor(self._array(key, name, rows=rows), name)

    def _array(self, key: str, name: str, text: bool = False, rows: Rows | None = None) -> Any:
        info = self._members[key]
        with reading(name, *WHOLE), self._archive.open(info) as member:
            return read_npy(member, info.file_size, name, stored=info.compress_size, text=text, rows=rows)

    def _read_metadata(self) -> dict[str, str]:
        info = self._members.get(PROVENANCE)
        if info is None or info.file_size > _LONGEST_METADATA:
            return {}
        with contextlib.suppress(JaccliError, ValueError):
            return plain_values(parse_json(str(self._array(PROVENANCE, PROVENANCE, text=True)).encode(), PROVENANCE))
        return {}


class _Safetensors(Container):
    def __init__(self, source: Source) -> None:
        self._source = source
        check_header(source.handle, source.size, source.name)
        with reading(f"the safetensors file {source.name}", *WHOLE):
            opener: Any = safetensors.safe_open  # untyped
            self._file = opener(source.path, framework="pt", device="cpu")
            # offset_keys() has the order of saving, where the installed version has it.
            self.keys = list(getattr(self._file, "offset_keys", self._file.keys)())
            self.metadata = dict(self._file.metadata() or {})

    def read(self, key: str, rows: Rows | None = None) -> Tensor:
        with reading(f"{self._source.name}[{key!r}]", *WHOLE):
            tensor: Tensor = self._file.get_tensor(key)
        # A copy: safetensors maps the file, and a mapping dies with a bus error when the file is replaced meanwhile.
        return _rows_of(tensor, rows)


class _TorchFile(Container):
    def __init__(self, source: Source) -> None:
        self._source = source
        content, stand_ins = read_pickled(Path(source.path), source.name)
        packed = [value for _, value in _named(content) if isinstance(value, PackedSpec)]
        if packed:
            problem = f"{source.name} holds quantized values ({packed[0].name})"
            raise RefusedError(problem, "expected dense tensors of numbers", "save x.dequantize()")
        unsupported = [kind for name, kind in _OTHER_TENSORS.items() if name in stand_ins]
        if unsupported:
            raise RefusedError(f"{source.name} holds {unsupported[0]}", "expected dense tensors of numbers", _DENSE)
        if stand_ins:
            raise RefusedError(
                f"{source.name} holds Python objects, which could run code: {listed(sorted(stand_ins))}",
                "expected a tensor, or a dict or list of tensors, saved with torch.save",
                "save the tensor itself, or use npy or safetensors",
            )
        self.metadata = plain_values(content.get(PROVENANCE)) if isinstance(content, dict) else {}
        self._specs = {key: value for key, value in _named(content) if isinstance(value, _TENSORS)}
        self._maker = TensorMaker(source.name)
        self.keys = list(self._specs)

    def read(self, key: str, rows: Rows | None = None) -> Tensor:
        name = f"{self._source.name}[{key!r}]"
        spec = self._specs[key]
        if isinstance(spec, SparseSpec):
            layout = spec.layout.removeprefix("torch.sparse_")
            raise RefusedError(f"{name} is a sparse ({layout}) tensor", "expected a dense tensor", "save x.to_dense()")
        with reading(name, *WHOLE):
            tensor = self._maker.make(key, spec)
        return _rows_of(tensor, rows)


CONTAINERS: Mapping[Kind, type[Container]] = {"npz": _Npz, "safetensors": _Safetensors, "pt": _TorchFile}


def _named(content: Any) -> list[tuple[str, Any]]:
    """What a pickle holds, by name: the one tensor, or entries of a dict or list."""
    if isinstance(content, _TENSORS):
        return [("tensor", content)]
    if isinstance(content, dict):
        return [(str(key), value) for key, value in content.items()]
    return [(str(index), value) for index, value in enumerate(content)] if isinstance(content, list | tuple) else []


def _rows_of(tensor: Tensor, rows: Rows | None) -> Tensor:
    """A copy of a tensor of any shape, of the rows wanted only."""
    if rows is None or tensor.dim() == 0:
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor.index_select(0, torch.tensor(list(rows(len(tensor)))))
