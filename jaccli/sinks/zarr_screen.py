"""A zarr store looked at before it is opened: its metadata may name codecs that unpickle, and any size."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Final

from jaccli.errors import RefusedError
from jaccli.safety.documents import parse_json
from jaccli.safety.memory import require_unpacked
from jaccli.samples.expected import SAVE_AGAIN, WHOLE

# Codecs that only unpack numbers, by their names in zarr 3 and in zarr 2. Others, such as "pickle", run code.
_CODECS_3: Final = ("bytes", "zstd", "blosc", "gzip", "crc32c", "transpose", "sharding_indexed", "endian")
_CODECS: Final = (*_CODECS_3, "zlib", "lz4", "bz2", "lzma")
_METADATA: Final = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_MAX_METADATA: Final = 1 << 24
# zarr writes no file for a chunk of zeros, so a store may have more chunks than files: up to 20,000, plus 100 for each
# file.
_CHUNKS_FREELY: Final = 20_000
_CHUNKS_OF_A_FILE: Final = 100
_WIDEST: Final = 8  # bytes of an element


def screen_store(path: str) -> None:
    """Refuse a store that could do more than hold numbers, or that holds more than there is memory for.

    Raises:
        RefusedError: a codec that is not known to be safe, or anything but plain files and folders.
        ResourceError: an array larger than the memory available.
    """
    name, real = repr(path), os.path.realpath(path)
    stored, count, described = 0, 0, list[str]()
    for folder, folders, files in os.walk(path):
        count += len(files)
        stored += sum(os.lstat(os.path.join(folder, file)).st_size for file in files)
        for entry in (*folders, *files):
            full = os.path.join(folder, entry)
            expected_kind = os.path.isdir(full) if entry in folders else os.path.isfile(full)
            leads_out = os.path.islink(full) and not os.path.realpath(full).startswith(real + os.sep)
            if leads_out or not expected_kind:
                raise RefusedError(
                    f"{name} holds {entry[:60]!r}, which leads out of it or is no file",
                    "expected a zarr store",
                    SAVE_AGAIN,
                )
        described += [os.path.join(folder, entry) for entry in files if entry in _METADATA]
    for file in described:
        _screen(_metadata(file, name), name, _Folder(stored, count))


def _metadata(file: str, name: str) -> Any:
    if os.path.getsize(file) > _MAX_METADATA:
        raise RefusedError(f"{name} is a damaged zarr store", *WHOLE)
    try:
        with open(file, "rb") as text:
            return parse_json(text.read(), name)
    except (OSError, ValueError):
        raise RefusedError(f"{name} is a damaged zarr store", *WHOLE) from None


@dataclass(frozen=True)
class _Folder:
    """What a store has on disk: bytes, and files."""

    stored: int
    files: int


def _screen(fields: Any, name: str, folder: _Folder, depth: int = 0) -> None:
    """One description of an array or a group; consolidated ones hold others."""
    if isinstance(fields, list):
        for item in fields:
            _screen(item, name, folder, depth + 1)
    if not isinstance(fields, dict) or depth > 32:
        return
    codecs = [c for key in ("codecs", "index_codecs", "filters", "compressor") for c in _listed(fields.get(key))]
    for codec in codecs:
        kind = codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec
        if kind not in _CODECS:
            raise RefusedError(
                f"{name} needs the codec {str(kind)[:40]!r}",
                "expected one that only unpacks numbers, as zstd or blosc",
                "save it again with jaccli, or as npy",
            )
    grid = fields.get("chunk_grid")
    inner = grid.get("configuration") if isinstance(grid, dict) else None
    shapes = [fields.get("shape"), fields.get("chunks"), (inner or {}).get("chunk_shape"), fields.get("chunk_shape")]
    for shape in shapes:
        if isinstance(shape, list) and all(type(size) is int for size in shape):
            require_unpacked(_WIDEST * math.prod(shape), folder.stored, name)
    _check_chunks(fields.get("shape"), fields.get("chunks") or (inner or {}).get("chunk_shape"), name, folder)
    for key, value in fields.items():
        if key not in ("attributes", "provenance"):
            _screen(value, name, folder, depth + 1)


def _check_chunks(shape: Any, chunk: Any, name: str, folder: _Folder) -> None:
    """Refuse a store with far more chunks than files: zarr looks for the file of every chunk, which takes time."""
    if not isinstance(chunk, list) or not isinstance(shape, list) or len(shape) != len(chunk):
        return
    if any(type(size) is not int or size < 0 for size in (*shape, *chunk)):
        raise RefusedError(f"{name} is a damaged zarr store: shape {str(shape)[:60]}, chunks {str(chunk)[:60]}", *WHOLE)
    chunks = math.prod(-(-n // max(size, 1)) for n, size in zip(shape, chunk, strict=True))
    if chunks > _CHUNKS_FREELY + _CHUNKS_OF_A_FILE * folder.files:
        raise RefusedError(
            f"{name} announces {chunks} chunks and has {folder.files} files",
            "expected chunks that are there",
            "the store is damaged or forged: get it again",
        )


def _listed(codecs: Any) -> list[Any]:
    if codecs is None:
        return []
    return codecs if isinstance(codecs, list) else [codecs]
