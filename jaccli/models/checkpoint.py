"""Weights out of safetensors and ``torch.save`` files, without running anything that is in them."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor, nn

from jaccli.chatter import chatter
from jaccli.errors import RefusedError
from jaccli.models.inert import ArrayShell, Inert, SparseSpec, StorageRef, StorageType, TensorSpec
from jaccli.models.pickle_reader import PickleReader
from jaccli.models.quote import listed, quote, shortened
from jaccli.models.state_dict import Unwrapped, is_tensor, unwrap
from jaccli.models.storages import TailSource, TensorMaker, ZipSource

_MAGIC = 0x1950A86A20F9469CFC6C
_SAVE_AGAIN = "save model.state_dict() again with torch.save, or as safetensors"


def read_state_dict(
    path: Path, kind: Literal["safetensors", "checkpoint"], *, trust: bool = False
) -> tuple[dict[str, Tensor] | nn.Module, list[str]]:
    """The weights in ``path`` and what was done to get at them.

    Tensors are on the CPU, in the file's dtypes, and may be mapped from the file: copy before writing.
    Only with ``trust`` is the pickle executed; a whole pickled module is then returned as it is.

    Raises:
        RefusedError: damaged, wants code, holds no weights, or several sets of them.
    """
    if kind == "safetensors":
        return _read_safetensors(path), []
    if trust:
        return _read_trusted(path)
    found, inert = _read_pickle(path)
    unwrapped = unwrap(found, path)
    if isinstance(unwrapped, Inert):
        raise _whole_module(path, type(unwrapped).path)
    if unwrapped is None:
        raise _no_weights(path, found, inert)
    maker = TensorMaker(quote(path))
    state = {name: maker.make(name, spec) for name, spec in unwrapped.entries.items()}
    notes = list(unwrapped.notes)
    if inert:
        notes.append(f"{path.name}: objects of these types were not loaded: {listed(sorted(inert), 6)}")
    return state, notes


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError):
        raise RefusedError(
            f"{quote(path)} is a safetensors file that is damaged",
            "expected a header that describes the data",
            "copy or download it again",
        ) from None


def _read_pickle(path: Path) -> tuple[Any, dict[str, type[Inert]]]:
    """The object in a file of ``torch.save``, with stand-ins, and the names of those."""
    try:
        with path.open("rb") as file:
            head = file.read(2)
            if head == b"PK":
                return _read_zip(ZipSource(path), path)
            if head[:1] != b"\x80":
                raise _tar_format(path)
            file.seek(0)
            return _read_stream(file, TailSource(path), path)
    except (RefusedError, KeyboardInterrupt):
        raise
    except MemoryError:
        reason = "it asks for more memory than there is"
    except Exception as error:
        # Whatever a forged pickle makes go wrong, it is the file's fault; torch is not involved.
        reason = f"its pickle cannot be read ({type(error).__name__})"
    raise RefusedError(f"{quote(path)} is damaged: {reason}", "", "copy or download it again")


def _read_zip(source: ZipSource, path: Path) -> tuple[Any, dict[str, type[Inert]]]:
    import io

    def load_storage(data: tuple[Any, ...]) -> StorageRef:
        kind, key, _, numel = data[:4]
        return _ref(source, kind, key, numel)

    reader = PickleReader(io.BytesIO(source.record("data.pkl")), load_storage, _nested(path), quote(path))
    return reader.load(), reader.inert


def _read_stream(file: IO[bytes], source: TailSource, path: Path) -> tuple[Any, dict[str, type[Inert]]]:
    """A non-zip ``torch.save`` file (three header pickles, the object, the storages) or a plain pickle."""

    def load_storage(data: tuple[Any, ...]) -> StorageRef:
        kind, key, _, numel, view = data
        source.dtypes.setdefault(key, _ref(source, kind, key, numel).dtype)
        first = view[1] if view else 0
        return _ref(source, kind, key, numel, first)

    def load_one() -> Any:
        reader = PickleReader(file, load_storage, _nested(path), quote(path))
        inert.update(reader.inert)
        found = reader.load()
        inert.update(reader.inert)
        return found

    inert: dict[str, type[Inert]] = {}
    found = load_one()
    if found != _MAGIC:
        return found, inert
    load_one()
    system = load_one()
    source.big_endian = isinstance(system, dict) and system.get("little_endian") is False
    found = load_one()
    source.index(file, load_one())
    return found, inert


def _nested(path: Path) -> Any:
    """Reads a storage that ``pickle.dump`` put into a plain pickle as bytes of ``torch.save``."""
    import io

    def load(data: Any) -> Any:
        if not isinstance(data, bytes):
            raise struct.error("bytes expected")
        return _read_stream(io.BytesIO(data), TailSource(None, data), path)[0]

    return load


def _ref(source: Any, kind: Any, key: Any, numel: Any, first: int = 0) -> StorageRef:
    if not isinstance(kind, StorageType) or not isinstance(key, str) or type(numel) is not int:
        raise ValueError("a storage has a type, a key and a size")
    return StorageRef(source, key, kind.dtype, numel, first)


def _read_trusted(path: Path) -> tuple[dict[str, Tensor] | nn.Module, list[str]]:
    """The same with the file's code executed, as the user asked."""
    try:
        # An open file, because torch goes by the name of a path.
        with path.open("rb") as file, contextlib.redirect_stdout(chatter()):
            found = torch.load(file, map_location="cpu", weights_only=False)
    except (Exception, SystemExit) as error:
        raise RefusedError(
            f"{quote(path)} cannot be loaded: {shortened(error)}",
            "its code needs the modules that it was saved with",
            "run where they can be imported, or " + _SAVE_AGAIN,
        ) from None
    unwrapped = unwrap(found, path)
    if isinstance(unwrapped, nn.Module):
        return unwrapped, [f"{path.name}: a whole pickled module was loaded, its code executed (--trust)"]
    if not isinstance(unwrapped, Unwrapped):
        raise _no_weights(path, found, {})
    maker = TensorMaker(quote(path))
    made = (TensorSpec, SparseSpec, ArrayShell)
    state = {
        name: maker.make(name, spec) if isinstance(spec, made) else torch.as_tensor(spec)
        for name, spec in unwrapped.entries.items()
    }
    return state, unwrapped.notes


def _whole_module(path: Path, name: str) -> RefusedError:
    return RefusedError(
        f"{quote(path)} is a whole pickled module: it needs the code of {quote(name)}",
        "expected a state dict, which needs no code to load",
        "save model.state_dict() or TorchScript; or --trust, if you trust the file to run code",
    )


def _no_weights(path: Path, found: object, inert: Mapping[str, object]) -> RefusedError:
    if is_tensor(found):
        return RefusedError(
            f"{quote(path)} holds one tensor without a name: an input, not a model",
            "expected a dict of names and tensors",
            "give it with -i, and a model file first",
        )
    if inert:
        return RefusedError(
            f"{quote(path)} holds no state dict; it needs the code of {listed(sorted(inert))}",
            "expected names and tensors, which need no code to load",
            "save model.state_dict(); or --trust, if you trust the file to run code",
        )
    return RefusedError(f"{quote(path)} holds no state dict", "expected a dict of names and tensors", _SAVE_AGAIN)


def _tar_format(path: Path) -> RefusedError:
    return RefusedError(
        f"{quote(path)} is in the tar format of PyTorch 0.1, which cannot be read without running code",
        "expected a file of torch.save from PyTorch 0.2 or later",
        "save it again from a newer PyTorch; or --trust, if you trust the file to run code",
    )
