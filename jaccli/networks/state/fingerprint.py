"""What a recorded program rests on, held against what is there now."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from ctypes import string_at
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size))
_PEEK = 64
_DEEPEST = 8


class Fingerprint:
    """Tensors by identity, version and a look at their content, other things by value or identity.

    What it names it holds on to, so that no identity is used twice. Writes through ``.data`` move no
    version; they are seen where they change one of the few bytes that are looked at, on the CPU only.
    Cost: about a microsecond a tensor.

    Args:
        moving: identities of tensors whose content may change.
    """

    __slots__ = ("held", "key", "moving")

    def __init__(self, moving: Collection[int] = ()) -> None:
        self.moving = moving
        self.key: list[Any] = []
        self.held: list[Any] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.key == other.key

    __hash__ = None  # type: ignore[assignment]

    def name(self, value: Any) -> None:
        """By identity."""
        self.key.append(id(value))
        self.held.append(value)

    def tensor(self, tensor: Tensor) -> None:
        """By identity, version and some of its bytes."""
        self.held.append(tensor)
        if id(tensor) in self.moving:
            self.key += (id(tensor), tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
            return
        self.key += (id(tensor), 0 if tensor.is_inference() else tensor._version)
        if tensor.layout is not torch.strided or not tensor.is_contiguous():
            return
        try:
            place = tensor.data_ptr()
        except RuntimeError:  # a tensor subclass without memory of its own
            return
        self.key.append(place)
        if place and tensor.is_cpu:
            size = tensor.numel() * tensor.element_size()
            middle = size // 2
            self.key.append(string_at(place + middle, min(size - middle, _PEEK)))

    def value(self, value: Any, depth: int = 0) -> list[torch.nn.Module]:
        """An attribute: plain values and what containers hold by value, the rest by identity.

        Returns:
            Modules that were found in containers; the caller goes on with them.
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
    """What a container holds; keys too."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, SimpleNamespace) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return [*vars(value).keys(), *vars(value).values()] if hasattr(value, "__dict__") else None
    return None
