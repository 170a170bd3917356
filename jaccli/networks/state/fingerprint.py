"""The state of a model that a recorded program depends on, in a form that is quickly compared with the present one."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from ctypes import string_at
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
# Bytes of a tensor that are compared.
_SAMPLED_BYTES = 64
# How deep containers are followed within containers.
_DEEPEST = 8


class Fingerprint:
    """Tensors by identity, version and some of their bytes; other objects by value or identity.

    Two fingerprints are equal if a program that was recorded at the first is valid at the second. Limit: a write
    through ``.data`` counts no version up; it is seen only if it changes a byte that is compared, on the CPU.

    Cost: about a microsecond a tensor.

    Args:
        moving: identities of tensors whose content the program does not depend on.

    Attributes:
        key: what is compared.
        references: everything that ``key`` has by identity, kept alive so that no identity is used twice.
    """

    __slots__ = ("key", "moving", "references")

    def __init__(self, moving: Collection[int] = ()) -> None:
        self.moving = moving
        self.key: list[Any] = []
        self.references: list[Any] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.key == other.key

    __hash__ = None  # type: ignore[assignment]

    def name(self, value: Any) -> None:
        """Add an object by identity."""
        self.key.append(id(value))
        self.references.append(value)

    def tensor(self, tensor: Tensor) -> None:
        """Add a tensor of any shape, by identity, version and some of its bytes."""
        self.references.append(tensor)
        if id(tensor) in self.moving:
            # Its numbers may move, not what the recorded operators depend on.
            self.key += (id(tensor), tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
            return
        self.key += (id(tensor), 0 if tensor.is_inference() else tensor._version)
        if tensor.layout is not torch.strided or not tensor.is_contiguous():
            return
        try:
            address = tensor.data_ptr()
        except RuntimeError:  # a tensor subclass without memory of its own
            return
        self.key.append(address)
        if address and tensor.is_cpu:
            size = tensor.numel() * tensor.element_size()
            middle = size // 2
            self.key.append(string_at(address + middle, min(size - middle, _SAMPLED_BYTES)))

    def value(self, value: Any, depth: int = 0) -> list[torch.nn.Module]:
        """Add an attribute: plain values, and the items of containers, by value; the rest by identity.

        Returns:
            The modules in it, which are not added: the caller adds their attributes.
        """
        if isinstance(value, Tensor):
            self.tensor(value)
            return []
        kind = type(value)
        if kind in PLAIN:
            self.key.append(value)
            return []
        if isinstance(value, torch.nn.Module):
            return [value]
        items = _items(value) if depth < _DEEPEST else None
        if items is None:
            self.name(value)
            return []
        self.key += (kind.__name__, len(items))
        return [module for item in items for module in self.value(item, depth + 1)]


def _items(value: Any) -> list[Any] | None:
    """The items of a container, keys included; None if it is none."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return [*vars(value).keys(), *vars(value).values()] if hasattr(value, "__dict__") else None
    return None
