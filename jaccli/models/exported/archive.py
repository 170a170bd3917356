"""The zip file of an exported program: its graph as JSON, its tensors, nothing executed.

Two layouts exist: since torch 2.8 ``<root>/models/<name>.json`` with one raw file a tensor, before
that ``serialized_exported_program.json`` beside pickled state dicts, which are read ``weights_only``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.models.exported.payload import load_pickled, load_raw
from jaccli.safety.archives import open_archive, read_member
from jaccli.safety.documents import parse_json
from jaccli.safety.reading import reading
from jaccli.text.escape import quote

_AGAIN: Final = "save the model again with torch.export.save of a current torch"
_MAX_JSON: Final = 1 << 29
_INFLATE_FREELY: Final = 64 << 20
_MAX_RATIO: Final = 100


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
    damage = reading(name, "expected a .pt2 file written by torch.export.save", "copy or export the file again")
    with damage, path.open("rb") as file, open_archive(file, name) as archive:
        entries, names = _Entries(archive, name), archive.namelist()
        if "serialized_exported_program.json" in names:
            return _read_old(entries, names)
        models = sorted(entry for entry in names if entry.split("/")[1:2] == ["models"] and entry.endswith(".json"))
        if not models:
            raise _no_program(name, names)
        return _read_new(entries, names, next((entry for entry in models if entry.endswith("/model.json")), models[0]))


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


class _Entries:
    """Bytes of a zip file's members, bounded before they are unpacked."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._archive, self._name = archive, name

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


def _read_new(entries: _Entries, names: Collection[str], model: str) -> Archive:
    """The layout since torch 2.8: ``model`` is the entry with the program."""
    root, stem = model.split("/")[0], model.split("/")[-1].removesuffix(".json")
    if f"{root}/byteorder" in names and entries.read(f"{root}/byteorder", 16).strip() != b"little":
        raise RefusedError("the archive was written on a big-endian machine", "expected little-endian tensors")
    tensors: dict[str, Tensor] = {}
    for folder in ("weights", "constants"):
        config = f"{root}/data/{folder}/{stem}_{folder}_config.json"
        if config in names:
            tensors |= _tensors(entries, f"{root}/data/{folder}", entries.json(config)["config"])
    return Archive(entries.json(model), tensors)


def _tensors(entries: _Entries, folder: str, config: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors of one folder, of any shapes. Entries that share a file share its storage, as they did when saved."""
    storages: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, meta in config.items():
        file = meta["path_name"]
        # Names come from the file: one with a slash would reach entries that are no tensors.
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
        if not meta.get("use_pickle"):
            tensors[name] = load_raw(storages[file], meta["tensor_meta"], name)
            continue
        tensor = load_pickled(bytes(storages[file]), name)
        if not isinstance(tensor, Tensor):
            raise RefusedError(f"the pickle {quote(name)} in the archive is no dense tensor", "expected one", _AGAIN)
        tensors[name] = tensor
    return tensors


def _read_old(entries: _Entries, names: Collection[str]) -> Archive:
    """The layout before torch 2.8."""
    tensors: dict[str, Tensor] = {}
    for stem in ("serialized_state_dict", "serialized_constants"):
        for file in (f"{stem}.pt", f"{stem}.json"):
            data = entries.read(file) if file in names else b""
            if not data:
                continue
            loaded = load_pickled(data, stem)
            if not isinstance(loaded, dict):
                raise RefusedError("the archive's weights are not a dict of tensors", "expected one", _AGAIN)
            tensors |= loaded
    return Archive(entries.json("serialized_exported_program.json"), tensors)
