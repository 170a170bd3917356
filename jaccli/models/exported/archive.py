"""The zip file of an exported program: its graph as JSON, its tensors, nothing executed.

Two layouts exist: since torch 2.8 ``<root>/models/<name>.json`` with one raw file a tensor, before
that ``serialized_exported_program.json`` beside pickled state dicts, which are read ``weights_only``.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.models.exported.payload import load_pickled, load_raw
from jaccli.safety.archives import open_archive, read_member
from jaccli.safety.documents import parse_json
from jaccli.text.escape import quote

_AGAIN: Final = "save the model again with torch.export.save of a current torch"
_MAX_JSON: Final = 1 << 29
_INFLATE_FREELY: Final = 64 << 20
_MAX_RATIO: Final = 100
_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    MemoryError,
    RuntimeError,  # torch, on sizes it cannot take; and recursion
)


@dataclass(frozen=True)
class Archive:
    """What a ``.pt2`` file holds: the program as JSON and its tensors by qualified name."""

    program: dict[str, Any]
    tensors: dict[str, Tensor]


def read_archive(path: Path) -> Archive:
    """Read an archive.

    Raises:
        RefusedError: it is not one, it is damaged, or it holds something that would run code.
    """
    name = quote(path)
    try:
        with path.open("rb") as file, open_archive(file, name) as archive:
            entries = _Entries(archive, name)
            layout = _layout(entries.names())
            if layout is None:
                raise _no_program(name, entries.names())
            return _read_old(entries) if layout == "" else _read_new(entries, layout)
    except FileNotFoundError as error:
        raise RefusedError(f"no such file: {name}") from error
    except _DAMAGE as error:
        raise RefusedError(
            f"{name} is not a whole torch.export archive ({type(error).__name__})",
            "expected a .pt2 file written by torch.export.save",
            "copy or export the file again",
        ) from error


def _no_program(name: str, names: list[str]) -> RefusedError:
    if any("/aotinductor/" in entry for entry in names):
        return RefusedError(
            f"{name} is a compiled AOTInductor package, machine code without a graph",
            "expected an archive written by torch.export.save",
            "give the .pt2 that it was compiled from",
        )
    return RefusedError(
        f"{name} is a zip file without an exported program",
        "expected an archive written by torch.export.save",
    )


def _layout(names: list[str]) -> str | None:
    """The JSON of the program in the newer layout, "" for the older one, None for another file."""
    if "serialized_exported_program.json" in names:
        return ""
    models = sorted(name for name in names if _parts(name)[:1] == ["models"] and name.endswith(".json"))
    if not models:
        return None
    default = [name for name in models if name.endswith("/model.json")]
    return (default or models)[0]


def _parts(name: str) -> list[str]:
    """Path inside the archive without its root folder."""
    return name.split("/")[1:]


class _Entries:
    """Bytes of a zip file's members, bounded before they are unpacked."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name = archive, name

    def names(self) -> list[str]:
        return self._archive.namelist()

    def read(self, name: str, limit: int | None = None) -> bytes:
        entry = self._archive.getinfo(name)
        bomb = entry.file_size > _INFLATE_FREELY and entry.file_size > _MAX_RATIO * max(entry.compress_size, 1)
        if bomb or (limit is not None and entry.file_size > limit):
            raise RefusedError(
                f"an entry of {self._name} unpacks to {entry.file_size} bytes from {entry.compress_size}",
                "expected tensors stored as they are",
                "export the model again with torch.export.save",
            )
        return read_member(self._archive, entry, f"an entry of {self._name}")

    def json(self, name: str) -> Any:
        return parse_json(self.read(name, _MAX_JSON), self._name)


def _read_new(entries: _Entries, model: str) -> Archive:
    root, stem = model.split("/")[0], model.split("/")[-1].removesuffix(".json")
    names = set(entries.names())
    if f"{root}/byteorder" in names and entries.read(f"{root}/byteorder", 16).strip() != b"little":
        raise RefusedError("the archive was written on a big-endian machine", "expected little-endian tensors")
    tensors: dict[str, Tensor] = {}
    for folder, label in (("weights", "weights"), ("constants", "constants")):
        config = f"{root}/data/{folder}/{stem}_{label}_config.json"
        if config in names:
            tensors |= _tensors(entries, f"{root}/data/{folder}", entries.json(config)["config"])
    return Archive(entries.json(model), tensors)


def _tensors(entries: _Entries, folder: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of one folder. Entries that share a file share its storage, as they did when saved."""
    storages: dict[str, Any] = {}
    found: dict[str, Tensor] = {}
    for name, meta in config.items():
        file = meta["path_name"]
        if not isinstance(file, str) or "/" in file:
            raise ValueError("a tensor outside of its folder")
        if meta.get("tensor_meta") is None:
            raise RefusedError(
                f"the archive holds a pickled object, {quote(name)}, which only running code could read",
                "expected tensors",
                "re-export the model without custom objects",
            )
        if file not in storages:
            storages[file] = bytearray(entries.read(f"{folder}/{file}"))
        pickled = bool(meta.get("use_pickle"))
        if not pickled:
            found[name] = load_raw(storages[file], meta["tensor_meta"], name)
            continue
        tensor = load_pickled(bytes(storages[file]), name)
        if not isinstance(tensor, Tensor):
            raise RefusedError(f"the pickle {quote(name)} in the archive is no dense tensor", "expected one", _AGAIN)
        found[name] = tensor
    return found


def _read_old(entries: _Entries) -> Archive:
    names = set(entries.names())
    tensors: dict[str, Tensor] = {}
    for stem in ("serialized_state_dict", "serialized_constants"):
        for file in (f"{stem}.pt", f"{stem}.json"):
            data = entries.read(file) if file in names else b""
            if data:
                tensors |= _tensor_dict(load_pickled(data, stem))
    return Archive(entries.json("serialized_exported_program.json"), tensors)


def _tensor_dict(loaded: Any) -> dict[str, Tensor]:
    if not isinstance(loaded, dict):
        raise RefusedError("the archive's weights are not a dict of tensors", "expected names and tensors", _AGAIN)
    return loaded
