"""The kind of a model file, by its content and never by its name. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from jaccli.errors import RefusedError, UsageError
from jaccli.models.identify.file_key import split_key
from jaccli.models.identify.import_spec import is_spec
from jaccli.models.identify.not_models import foreign_magic, foreign_text, is_onnx
from jaccli.safety.archives import open_archive
from jaccli.safety.headers import check_header, is_safetensors
from jaccli.safety.reading import COPY_AGAIN
from jaccli.text.escape import listed, nearest, quote
from jaccli.text.wording import worded

Kind = Literal["torchscript", "exported", "safetensors", "checkpoint"]

# Kinds of files that hold one model with its architecture, in words.
WHOLE_MODELS: dict[str, str] = {"torchscript": "a TorchScript archive", "exported": "a torch.export archive"}
EXPECTED = "expected a TorchScript, .pt2, safetensors or torch.save file"
_HEAD = 4096
_SUFFIXES = (".pt", ".pth", ".pt2", ".safetensors", ".bin", ".ckpt")  # of files to suggest
# The pickled magic number that opens every non-zip torch.save file.
_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def sniff(path: Path) -> Kind:
    """The kind of model file at ``path``. Reads a few kilobytes and, of a zip, its directory.

    Raises:
        RefusedError: there is no such file, it cannot be read, or it is no model; the message says what it is and what
            to give instead.
    """
    head, size = _read_head(path)
    if head.startswith(b"PK"):
        return _sniff_zip(path)
    if is_safetensors(head):
        with path.open("rb") as file:
            check_header(file, size, quote(path))
        return "safetensors"
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        _check_pickle_end(path, head)
        return "checkpoint"
    if head[257:262] == b"ustar":  # in the header of a tar archive's first member
        return _sniff_tar(path)
    foreign = foreign_magic(head) or (is_onnx(head, size) and _ONNX) or foreign_text(head)
    if foreign:
        what, remedy = foreign
        raise RefusedError(f"{quote(path)} is {what}", EXPECTED, remedy)
    raise RefusedError(
        f"{quote(path)} is not a model file: its content is of no known format",
        EXPECTED,
        "check that it was written by torch and was copied or downloaded whole",
    )


def kind_of(model: str) -> tuple[Path, Kind, str | None]:
    """A MODEL that is ``FILE`` or ``FILE[KEY]`` → the file, its kind, and the key.

    Raises:
        UsageError: there is a key, and the file is one model.
        RefusedError: as ``sniff``.
    """
    file, key = split_key(model)
    if key == "" or not file:
        raise UsageError(f"the model {quote(model)} has no {'key' if file else 'file'}", "expected FILE or FILE[KEY]")
    if key is not None and is_spec(file):
        raise UsageError(f"the model {quote(file)} is code, which has no key {quote(key)}", "expected it without [KEY]")
    kind = sniff(Path(file))
    if key is not None and kind in WHOLE_MODELS:
        raise UsageError(
            f"{quote(file)} is {WHOLE_MODELS[kind]}: one model, without keys",
            "expected [KEY] with a file of several state dicts",
            f"leave {quote(f'[{key}]')} out",
        )
    return Path(file), kind, key


_ONNX = (
    "an ONNX model, which PyTorch cannot run",
    worded("give the PyTorch network it was exported from: its state dict with {arch}, TorchScript or .pt2"),
)


def _read_head(path: Path) -> tuple[bytes, int]:
    """The first kilobytes and the size of a regular, non-empty file."""
    try:
        if path.is_dir():
            raise RefusedError(f"{quote(path)} is a folder, not a model file", EXPECTED, _inside(path))
        size = path.stat().st_size
        if not path.is_file():
            raise RefusedError(f"{quote(path)} is not a regular file", EXPECTED, "save the model to a file")
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        raise RefusedError(f"no such file: {quote(path)}", EXPECTED, _neighbours(path)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a usable path"
        raise RefusedError(f"{quote(path)} cannot be read: {reason}", EXPECTED) from None
    if size == 0:
        raise RefusedError(f"{quote(path)} is an empty file", EXPECTED, "save or download it again")
    return head, size


def _neighbours(path: Path) -> str:
    """Near misses in the same folder; a hint about SPECs when there are none."""
    try:
        near = nearest(path.name, os.listdir(path.parent), cutoff=0.6)
    except OSError:
        return f"there is no folder {quote(path.parent)} either"
    if near:
        return f"near that name: {listed(near)}"
    return "check the path; Python code is named as package.module:callable or file.py:callable"


def _inside(path: Path) -> str:
    """Which file of a model folder to give."""
    try:
        names = sorted(os.listdir(path))
    except OSError:
        return ""
    if "saved_model.pb" in names:
        return "this is a TensorFlow SavedModel; give the PyTorch network it came from"
    if ".metadata" in names:
        return "this is a distributed checkpoint: convert it with torch.distributed.checkpoint.format_utils"
    models = [name for name in names if name.endswith(_SUFFIXES)]
    return f"give one file of it: {listed(models)}" if models else "give a file"


def _sniff_zip(path: Path) -> Kind:
    with path.open("rb") as file, open_archive(file, quote(path)) as archive:
        names = archive.namelist()
    # torch puts everything below one folder, which has the name that the file had first.
    inner = {name.partition("/")[2] for name in names} | set(names)
    if "archive_format" in inner or any(name.startswith("models/") for name in inner):
        return "exported"
    if inner & {"serialized_exported_program.json", "serialized_exported_program.pt"}:
        return "exported"
    if ".data/extern_modules" in inner:
        raise RefusedError(
            f"{quote(path)} is a torch.package archive, which is Python code",
            EXPECTED,
            worded("save the state_dict of the model in it and give {arch}"),
        )
    if "constants.pkl" in inner:
        return "torchscript"
    if "data.pkl" in inner:
        return "checkpoint"
    what, remedy = _foreign_zip(names)
    raise RefusedError(f"{quote(path)} is {what}", EXPECTED, remedy)


def _foreign_zip(names: list[str]) -> tuple[str, str]:
    if names and all(name.endswith(".npy") for name in names):
        return "an npz file of arrays: an input, not a model", "give it with -i, and a model file first"
    if "MAR-INF/MANIFEST.json" in names:
        return "a TorchServe archive (.mar)", "unzip it and give the .pt file inside"
    if "model.weights.h5" in names:
        return "a Keras model", "jaccli runs PyTorch networks only; rebuild it in PyTorch"
    models = [name for name in names if name.endswith(_SUFFIXES)]
    if models:
        return "a zip archive with a model file inside", f"unzip it and give {listed(models)}"
    return "a zip archive that torch did not write", "give the model file itself"


def _sniff_tar(path: Path) -> Kind:
    import tarfile

    try:
        with tarfile.open(path, "r:") as archive:
            names = archive.getnames()
    except (tarfile.TarError, OSError, ValueError):
        names = []
    if {"pickle", "storages", "tensors"} <= set(names):
        return "checkpoint"
    raise RefusedError(
        f"{quote(path)} is a tar archive, not a model file",
        EXPECTED,
        f"unpack it and give a file of it: {listed(names)}" if names else COPY_AGAIN,
    )


def _check_pickle_end(path: Path, head: bytes) -> None:
    """Refuse a pickle without its stop opcode at the end. A non-zip file of torch.save ends in raw numbers instead."""
    if head[2:].startswith(_LEGACY_MAGIC):
        return
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b".":
            return
    raise RefusedError(
        f"{quote(path)} is a Python pickle that is cut short or damaged",
        EXPECTED,
        COPY_AGAIN,
    )
