"""Whether a file of ``torch.save`` holds weights without a network, found out without torch.

The command line asks before it imports torch, so that a call without ``--arch`` is answered at once. The tensors are
not read, and nothing in the pickle is executed.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from jaccli.models.weights.candidates import candidates_in
from jaccli.pickles.reader import PickleReader
from jaccli.pickles.stand_ins import StorageRef, StorageType
from jaccli.safety.budget import Budget
from jaccli.text.escape import quote

# A pickle without its tensors is small; a larger one is left to the loader.
_LARGEST = 2_000_000
_LEGACY_HEADERS = 3


def is_weights(path: Path) -> bool:
    """Whether a ``torch.save`` file surely holds weights and no module; nothing of it is executed.

    False also where this cannot be found out: the loader then says what is wrong.
    """
    try:
        candidates = candidates_in(_content(path))
        return bool(candidates) and all(candidate.module is None for candidate in candidates)
    except Exception:
        return False


def _content(path: Path) -> Any:
    """The object in the file, with stand-ins for tensors and everything else that is not plain data."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            (record,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if record.file_size > _LARGEST:
                return None
            return _load(io.BytesIO(archive.read(record)), path)
    with path.open("rb") as file:
        content = io.BytesIO(file.read(_LARGEST))
    for _ in range(_LEGACY_HEADERS):
        _load(content, path)
    return _load(content, path)


def _load(file: io.BytesIO, path: Path) -> Any:
    def storage(data: tuple[Any, ...]) -> StorageRef:
        kind, key, _, numel = data[:4]
        if not isinstance(kind, StorageType):
            raise ValueError("a storage has a type")
        return StorageRef(None, key, kind.dtype, numel, 0)

    def nested(_: Any) -> Any:
        raise ValueError("bytes of another file")

    return PickleReader(file, storage, nested, quote(path), Budget(_LARGEST)).load()
