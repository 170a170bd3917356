"""A zarr store looked at before it is opened: its metadata may name codecs that unpickle, and any size."""

from __future__ import annotations

import json
import math
import os
from typing import Any, Final

from jaccli.errors import RefusedError
from jaccli.samples.memory import require_memory

# Those that only unpack numbers. Others, such as "pickle", run code.
_CODECS: Final = frozenset(
    (
        "bytes",
        "zstd",
        "blosc",
        "gzip",
        "crc32c",
        "transpose",
        "sharding_indexed",
        "zlib",
        "lz4",
        "bz2",
        "lzma",
        "endian",
    )
)
_METADATA: Final = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_MAX_METADATA: Final = 1 << 24
_WIDEST: Final = 8  # bytes of an element


def screen_store(path: str) -> None:
    """Refuse a store that could do more than hold numbers, or that holds more than there is memory for.

    Raises:
        RefusedError: a codec that is not known to be safe, or anything but plain files and folders.
        ResourceError: an array larger than the memory available.
    """
    name, real = repr(path), os.path.realpath(path)
    for folder, folders, files in os.walk(path):
        for entry in (*folders, *files):
            full = os.path.join(folder, entry)
            plain = os.path.isdir(full) if entry in folders else os.path.isfile(full)
            if os.path.islink(full) and not os.path.realpath(full).startswith(real + os.sep):
                plain = False
            if not plain:
                raise RefusedError(
                    f"{name} holds {entry[:60]!r}, which leads out of it or is no file", "expected a zarr store"
                )
        for entry in set(files) & set(_METADATA):
            _screen(_metadata(os.path.join(folder, entry), name), name)


def _metadata(file: str, name: str) -> Any:
    if os.path.getsize(file) > _MAX_METADATA:
        raise RefusedError(f"{name} is a damaged zarr store")
    try:
        with open(file, encoding="utf-8") as text:
            return json.load(text)
    except (OSError, ValueError, RecursionError):
        raise RefusedError(f"{name} is a damaged zarr store") from None


def _screen(found: Any, name: str, depth: int = 0) -> None:
    """One description of an array or a group; consolidated ones hold others."""
    if isinstance(found, list):
        for item in found:
            _screen(item, name, depth + 1)
    if not isinstance(found, dict) or depth > 32:
        return
    codecs = [*_listed(found.get("codecs")), *_listed(found.get("index_codecs")), *_listed(found.get("filters"))]
    codecs += _listed(found.get("compressor"))
    for codec in codecs:
        kind = codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec
        if kind not in _CODECS:
            raise RefusedError(
                f"{name} needs the codec {str(kind)[:40]!r}",
                "expected one that only unpacks numbers, as zstd or blosc",
                "save it again with jaccli, or as npy",
            )
    grid = found.get("chunk_grid")
    inner = grid.get("configuration") if isinstance(grid, dict) else None
    for shape in (found.get("shape"), found.get("chunks"), (inner or {}).get("chunk_shape"), found.get("chunk_shape")):
        if isinstance(shape, list) and all(type(size) is int for size in shape):
            require_memory(_WIDEST * math.prod(shape), name)
    for key, value in found.items():
        if key not in ("attributes", "provenance"):
            _screen(value, name, depth + 1)


def _listed(codecs: Any) -> list[Any]:
    if codecs is None:
        return []
    return codecs if isinstance(codecs, list) else [codecs]
