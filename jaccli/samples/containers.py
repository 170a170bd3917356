"""Files of named arrays (npz, safetensors, pt), opened without running anything that is in them."""

from __future__ import annotations

import contextlib
import json
import pickle
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from typing import Any

import safetensors
import torch
from torch import Tensor

from jaccli.errors import RefusedError, ResourceError, UsageError
from jaccli.models.pickle_shape import check_torch_file
from jaccli.samples.arrays import as_tensor, read_npy
from jaccli.samples.memory import require_memory
from jaccli.samples.source import Kind, Source

PROVENANCE = "provenance"


class Container(ABC):
    """Named arrays; ``keys`` in the file's order; ``metadata`` is text that was saved with them."""

    keys: list[str]
    metadata: dict[str, str]

    @abstractmethod
    def read(self, key: str) -> Tensor:
        """One array, dense, on the CPU, in memory of its own.

        Raises:
            RefusedError: damaged, or not a dense array of numbers.
            ResourceError: larger than the memory available.
        """


def open_container(source: Source, kind: Kind) -> Container:
    """The arrays of an npz, safetensors or pt file. Stays valid while ``source`` is open."""
    match kind:
        case "npz":
            return _Npz(source)
        case "safetensors":
            return _Safetensors(source)
        case "pt":
            return _TorchFile(source)
    raise ValueError(f"{kind} holds no named arrays")


def pick_key(container: Container, key: str | None, source: Source) -> str:
    """The named array, or the only one.

    Raises:
        UsageError: no such key, or several and none named; lists them.
        RefusedError: no arrays at all.
    """
    if not container.keys:
        raise RefusedError(f"{source.name} holds no arrays")
    if key is None and len(container.keys) == 1:
        return container.keys[0]
    if key in container.keys:
        return str(key)
    given = f"{source.name} holds {len(container.keys)} arrays" if key is None else f"{source.name} has no {key!r}"
    raise UsageError(given, f"expected one of {list_keys(container.keys)}", "name it as FILE[KEY]")


def list_keys(keys: list[str], most: int = 12) -> str:
    """Keys for a message: escaped, each cut at 60 characters, at most ``most`` of them."""
    shown = ", ".join(repr(key if len(key) <= 60 else key[:57] + "...") for key in keys[:most])
    return shown + (f" and {len(keys) - most} more" if len(keys) > most else "")


class _Npz(Container):
    def __init__(self, source: Source) -> None:
        self._source = source
        self._archive = zipfile.ZipFile(source.handle)
        members = {info.filename: info for info in self._archive.infolist() if info.filename.endswith(".npy")}
        require_memory(max((info.file_size for info in members.values()), default=0), source.name)
        self._members = {name.removesuffix(".npy"): info for name, info in members.items()}
        self.metadata = self._read_metadata()
        self.keys = [key for key in self._members if not (key == PROVENANCE and self.metadata)]

    def read(self, key: str) -> Tensor:
        name = f"{self._source.name}[{key!r}]"
        return as_tensor(self._array(key, name), name)

    def _array(self, key: str, name: str, text: bool = False) -> Any:
        info = self._members[key]
        try:
            with self._archive.open(info) as member:
                return read_npy(member, info.file_size, name, text=text)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError):
            raise RefusedError(f"{name} is damaged, truncated or encrypted") from None

    def _read_metadata(self) -> dict[str, str]:
        info = self._members.get(PROVENANCE)
        if info is None or info.file_size > 1 << 24:
            return {}
        with contextlib.suppress(RefusedError, ValueError):
            found = json.loads(str(self._array(PROVENANCE, PROVENANCE, text=True)))
            return _as_text(found)
        return {}


class _Safetensors(Container):
    def __init__(self, source: Source) -> None:
        self._source = source
        require_memory(source.size, source.name)
        try:
            opener: Any = safetensors.safe_open  # untyped
            self._file = opener(source.path, framework="pt", device="cpu")
            # offset_keys() has the order of saving, where the installed version has it.
            self.keys = list(getattr(self._file, "offset_keys", self._file.keys)())
            self.metadata = dict(self._file.metadata() or {})
        except Exception:
            raise RefusedError(f"{source.name} is a damaged or truncated safetensors file") from None

    def read(self, key: str) -> Tensor:
        try:
            tensor: Tensor = self._file.get_tensor(key)
        except Exception:
            raise RefusedError(f"{self._source.name}[{key!r}] is damaged or of an unknown type") from None
        # The file stays mapped otherwise: gone, or a bus error, when it is replaced under us.
        return tensor.clone()


class _TorchFile(Container):
    def __init__(self, source: Source) -> None:
        self._source = source
        found = _load_weights_only(source)
        self.metadata = {}
        named: list[tuple[str, Any]] = []
        if isinstance(found, Tensor):
            named = [("tensor", found)]
        elif isinstance(found, dict):
            named = [(str(key), value) for key, value in found.items()]
            self.metadata = _as_text(found.get(PROVENANCE))
        elif isinstance(found, list | tuple):
            named = [(str(index), value) for index, value in enumerate(found)]
        self._tensors = {key: value for key, value in named if isinstance(value, Tensor)}
        self.keys = list(self._tensors)

    def read(self, key: str) -> Tensor:
        tensor = self._tensors[key].detach()
        name = f"{self._source.name}[{key!r}]"
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            raise RefusedError(f"{name} is sparse, nested, quantized or without data", "expected a dense tensor")
        # A stride of 0 lets a small file claim any number of elements.
        if tensor.numel() * tensor.element_size() > max(tensor.untyped_storage().nbytes(), 1 << 28):
            raise RefusedError(f"{name} claims {tensor.numel()} elements that the file does not hold")
        return tensor.clone(memory_format=torch.contiguous_format)


def _load_weights_only(source: Source) -> Any:
    """``torch.load`` without pickle, on archives whose declared sizes were checked first."""
    _check_torch_archive(source)
    source.handle.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            check_torch_file(source.handle)
            return torch.load(source.handle, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Torch's own message advises to switch the protection off.
        raise RefusedError(
            f"{source.name} holds Python objects, which could run code",
            "expected a tensor, or a dict or list of tensors, saved with torch.save",
            "save the tensor itself, or use npy or safetensors",
        ) from None
    except MemoryError:
        raise ResourceError(f"{source.name} does not fit into memory") from None
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):
            raise ResourceError(f"{source.name} does not fit into memory") from None
        raise RefusedError(f"{source.name} is a damaged or truncated torch.save file") from None


def _check_torch_archive(source: Source) -> None:
    if not zipfile.is_zipfile(source.handle):
        require_memory(source.size, source.name)
        return
    with zipfile.ZipFile(source.handle) as archive:
        members = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in members):
        raise RefusedError(f"{source.name} is compressed, which torch.save never does", remedy="save it again")
    declared = sum(info.file_size for info in members)
    if declared > source.size:
        raise RefusedError(f"{source.name} claims {declared} bytes and has {source.size}")
    require_memory(declared, source.name)


def _as_text(found: Any) -> dict[str, str]:
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
