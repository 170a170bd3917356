"""Saved Jacobians, read back from every format that is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from jaccli.errors import RefusedError, UsageError, warn
from jaccli.names import UNKNOWN
from jaccli.safety.documents import plain_values
from jaccli.safety.reading import reading
from jaccli.samples.arrays import as_tensor, read_npy
from jaccli.samples.containers import CONTAINERS, Container, list_keys, pick_key
from jaccli.samples.expected import SAVE_AGAIN, SAVED_J
from jaccli.samples.source import Source, open_source, sniff
from jaccli.samples.spec import FileInput, FolderInput, StdinInput, check_input, parse_input
from jaccli.sinks.choose import is_zarr
from jaccli.sinks.matrix_binary import JACOBIAN
from jaccli.sinks.read_text import read_csv, read_json
from jaccli.sinks.sparse import SparseSamples, read_sparse, sparse_keys
from jaccli.sinks.zarr_screen import screen_store
from jaccli.text.quantities import dtype_name


@dataclass(frozen=True)
class SavedJacobian:
    """J ``(batch, n_out, n_in)`` of a pair; a layer's name is ``?`` where the file does not tell it.

    Of a sparse file ``array`` is sparse too: ``array[i]`` is a dense tensor, ``array[[i, k]]`` samples still sparse.
    """

    source: str
    target: str
    array: Tensor | SparseSamples
    provenance: Mapping[str, str] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        """The numbers that the samples had in their input; 0, 1, … where the file does not tell."""
        batch = self.array.shape[0]
        texts = self.provenance.get("samples", "").split(",")
        is_complete = len(texts) == batch and all(re.fullmatch("[0-9]{1,18}", number) for number in texts)
        return [int(number) for number in texts] if is_complete else list(range(batch))


def read_jacobian(path: str, stdin: BinaryIO | None = None) -> list[SavedJacobian]:
    """What ``compute`` saved, or any array of two (one sample) or three dimensions.

    The content shows the format. ``FILE[KEY]`` takes one array of several; ``-`` is standard input.

    Args:
        path: npy, npz, safetensors, pt, jsonl, json, csv, or a zarr store.
        stdin: what ``-`` reads; the process's standard input unless given.

    Raises:
        RefusedError: unreadable, damaged, or not a Jacobian.
        UsageError: an unknown key, or several arrays of which none is named as a Jacobian.
    """
    spec = parse_input(path, "--jacobian")
    check_input(spec, SAVED_J)
    match spec:
        case FolderInput():
            with reading(repr(spec.path), "expected a saved Jacobian"):
                jacobians = _read_zarr(spec.path)
        case FileInput() | StdinInput():
            with (
                open_source(spec.path if isinstance(spec, FileInput) else "-", stdin) as source,
                reading(source.name, "expected a saved Jacobian"),
            ):
                jacobians = list(_read(source, spec.key))
        case _:
            raise UsageError(
                f"--jacobian {path!r} is no saved Jacobian", "expected a file, or - for a pipe", "give its name"
            )
    if not jacobians:
        raise RefusedError(f"{path!r} holds no Jacobian", SAVED_J, SAVE_AGAIN)
    return [_checked(saved, repr(path)) for saved in jacobians]


def _read(source: Source, key: str | None) -> Iterable[SavedJacobian]:
    kind = sniff(source)
    if kind in CONTAINERS:
        return _from_container(CONTAINERS[kind](source), key, source)
    match kind:
        case "npy":
            array = as_tensor(read_npy(source.handle, source.size, source.name), source.name)
            return [SavedJacobian(UNKNOWN, UNKNOWN, array)]
        case "json":
            return [SavedJacobian(*parts) for parts in read_json(source.handle, source.name)]
        case "text":
            return [SavedJacobian(*parts) for parts in read_csv(source.handle, source.name)]
        case _:
            raise RefusedError(f"{source.name} is an image", SAVED_J, SAVE_AGAIN)


def _from_container(container: Container, key: str | None, source: Source) -> list[SavedJacobian]:
    sparse = sparse_keys(container.keys)
    if sparse and (key is None or key in sparse):
        return [
            _named(name, read_sparse(container.read, name, source.name), container.metadata)
            for name in (sparse if key is None else [key])
        ]
    keys = [name for name in container.keys if name == JACOBIAN or "->" in name]
    if key is not None or (not keys and len(container.keys) == 1):
        keys = [pick_key(container, key, source)]
    if not keys:
        if not container.keys:
            raise RefusedError(f"{source.name} holds no arrays", SAVED_J, SAVE_AGAIN)
        raise UsageError(
            f"{source.name} holds {len(container.keys)} arrays, none named {JACOBIAN!r} or 'source->target'",
            f"expected FILE[KEY] with one of {list_keys(container.keys)}",
            "name one of them",
        )
    return [_named(name, container.read(name), container.metadata) for name in keys]


def _named(key: str, array: Tensor | SparseSamples, metadata: Mapping[str, str]) -> SavedJacobian:
    """``array``, of any shape, with the layers that its key or the metadata name."""
    source, arrow, target = key.partition("->")
    if not arrow:
        source, target = metadata.get("source", UNKNOWN), metadata.get("target", UNKNOWN)
    return SavedJacobian(source, target, array, metadata)


def _read_zarr(path: str) -> list[SavedJacobian]:
    if not is_zarr(path):
        raise RefusedError(f"{path!r} is a folder and no zarr store", SAVED_J, SAVE_AGAIN)
    try:
        import zarr
    except ImportError:
        raise UsageError(f"{path!r}: zarr is not installed", remedy="pip install 'jaccli[zarr]'") from None
    screen_store(path)
    with reading(f"the zarr store {path!r}", "expected a saved Jacobian"):
        store: Any = zarr.open(path, mode="r")
        arrays: list[Any] = [store] if isinstance(store, zarr.Array) else [array for _, array in store.arrays()]
        arrays.sort(key=lambda array: int(str(array.attrs.get("index", 0))))
        metadata = plain_values(store.attrs.get("provenance"))
        return [
            SavedJacobian(
                str(array.attrs.get("source", UNKNOWN)),
                str(array.attrs.get("target", UNKNOWN)),
                as_tensor(np.asarray(array[...]), repr(path)),
                metadata,
            )
            for array in arrays
        ]


def _checked(saved: SavedJacobian, name: str) -> SavedJacobian:
    array = saved.array
    if isinstance(array, SparseSamples):
        _warn_of_non_finite(array.data, name)
        return saved
    if array.dim() not in (2, 3) or array.numel() == 0 or array.dtype == torch.bool or array.is_complex():
        raise RefusedError(
            f"{name} is no Jacobian: shape {tuple(array.shape)} of {dtype_name(array.dtype)}",
            "expected real numbers (batch, n_out, n_in), or (n_out, n_in) for one sample",
            SAVE_AGAIN,
        )
    if not array.is_floating_point():
        array = array.double()
    elif array.element_size() == 1:  # float8 has no arithmetic
        array = array.float()
    array = array if array.dim() == 3 else array[None]
    _warn_of_non_finite(array, name)
    return SavedJacobian(saved.source, saved.target, array, saved.provenance)


def _warn_of_non_finite(array: Tensor, name: str) -> None:
    """Of a tensor of any shape."""
    broken = int((~array.isfinite()).sum())
    if broken:
        warn(f"{name} has {broken} non-finite entries")
