"""Putting an ``nn.Module`` back as it was: buffers, plain attributes, random generators."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_MACHINERY = frozenset(vars(nn.Module())) - {"training"} | {"_parameters", "_buffers", "_modules"}


class ModuleState:
    """Lets a module tree run without touching what it keeps.

    While installed, copies stand in for buffers and for tensors in plain attributes, so that the
    originals are never written. A copy that a pass has written to is replaced, not overwritten: a
    recorded graph may still need it. Cost: one copy of these tensors, and a look at each a pass.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = list(module.modules())
        self._attributes = [_attributes(m) for m in self._modules]
        self._buffers = [_buffers(m) for m in self._modules]
        self._containers = [(c, _items(c)) for c in _containers(self._attributes)]
        self._copies: dict[int, _Copy] = {}

    def install(self) -> None:
        """Start a pass: the state the model was handed over with, in copies."""
        for module, attributes, buffers in zip(self._modules, self._attributes, self._buffers, strict=True):
            _restore_attributes(module, {name: self._stand_in(value) for name, value in attributes.items()})
            _restore_buffers(module, {name: self._stand_in(value) for name, value in buffers.items()})
        for container, items in self._containers:
            if isinstance(items, dict):
                _refill(container, {key: self._stand_in(value) for key, value in items.items()})
            else:
                _refill(container, [self._stand_in(value) for value in items])

    def remove(self) -> None:
        """Put the originals back."""
        for module, attributes, buffers in zip(self._modules, self._attributes, self._buffers, strict=True):
            _restore_attributes(module, attributes)
            _restore_buffers(module, buffers)
        for container, items in self._containers:
            _refill(container, items)

    def _stand_in(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, nn.Parameter):
            return value
        copy = self._copies.get(id(value))
        if copy is None or copy.written():
            copy = self._copies[id(value)] = _Copy(value)
        return copy.tensor


class _Copy:
    def __init__(self, original: Tensor) -> None:
        self.original = original
        self.tensor = original.detach().clone()
        self.version = _version(self.tensor)
        self.small = original.numel() <= _SMALL

    def written(self) -> bool:
        """By its version counter; small ones also by content, which sees writes through ``.data``."""
        version = _version(self.tensor)
        if version is None or version != self.version:
            return True
        return self.small and not _same(self.tensor, self.original)


_SMALL = 4096


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _buffers(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, torch.jit.ScriptModule):
        return dict(module.named_buffers(recurse=False))
    return dict(module._buffers)


def _restore_buffers(module: nn.Module, buffers: dict[str, Any]) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        # What a script holds is on the other side of a binding: its slots are set one by one.
        for name, tensor in buffers.items():
            module._c.setattr(name, tensor)
        return
    now = module._buffers
    if now.keys() != buffers.keys() or any(now[name] is not tensor for name, tensor in buffers.items()):
        now.clear()
        now.update(buffers)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _attributes(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    return {name: value for name, value in vars(module).items() if name not in _MACHINERY}


def _restore_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        return
    now = vars(module)
    for name in [n for n in now if n not in attributes and n not in _MACHINERY]:
        del now[name]
    for name, value in attributes.items():
        if now.get(name) is not value or name not in now:
            now[name] = value


def attribute_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Tensors in the plain attributes of all modules, those in containers too."""
    held = [_attributes(m) for m in module.modules()]
    for values in [*(list(h.values()) for h in held), *(_values(c) for c in _containers(held))]:
        for value in values:
            items = value if isinstance(value, tuple) else (value,)
            yield from (item for item in items if isinstance(item, Tensor))


def map_attributes(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Replace what the plain attributes of all modules hold, and mutable containers in them, by ``change`` of it."""
    modules = list(module.modules())
    held = [_attributes(m) for m in modules]
    for owner, attributes in zip(modules, held, strict=True):
        _restore_attributes(owner, {name: change(value) for name, value in attributes.items()})
    for container in _containers(held):
        items = _items(container)
        if isinstance(items, dict):
            _refill(container, {key: change(value) for key, value in items.items()})
        else:
            _refill(container, [change(value) for value in items])


def _values(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


def _containers(attributes: list[dict[str, Any]]) -> list[Any]:
    """Mutable containers in plain attributes, nested ones too."""
    found: dict[int, Any] = {}
    stack: list[Any] = [value for held in attributes for value in held.values()]
    while stack:
        value = stack.pop()
        if isinstance(value, tuple):
            stack.extend(value)
        elif isinstance(value, list | dict | deque | set) and id(value) not in found:
            found[id(value)] = value
            stack.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values())


def _items(container: Any) -> Any:
    return dict(container) if isinstance(container, dict) else list(container)


def _refill(container: Any, items: Any) -> None:
    if isinstance(container, dict):
        same = len(container) == len(items) and all(container.get(k, _ABSENT) is v for k, v in items.items())
        if not same:
            container.clear()
            container.update(items)
        return
    if len(container) == len(items) and all(a is b for a, b in zip(container, items, strict=True)):
        return
    container.clear()
    container.update(items) if isinstance(container, set) else container.extend(items)


_ABSENT = object()


@dataclass(frozen=True)
class Noise:
    """Where the random generators stand: the CPU's, and that of an accelerator in use."""

    cpu: Tensor
    other: Tensor | None
    device: torch.device | None

    @classmethod
    def now(cls, device: torch.device | None) -> Noise:
        """The present state."""
        away = device if device is not None and device.type != "cpu" else None
        return cls(torch.get_rng_state(), torch.get_device_module(away).get_rng_state() if away else None, away)

    def restore(self) -> None:
        """Put the generators there."""
        torch.set_rng_state(self.cpu)
        if self.device is not None:
            torch.get_device_module(self.device).set_rng_state(self.other)


@contextmanager
def same_noise(device: torch.device | None, start: Noise | None = None) -> Iterator[None]:
    """Put the random generators back afterwards, so that every pass draws the same numbers.

    With ``start`` they begin there.
    """
    before = Noise.now(device)
    if start is not None:
        start.restore()
    try:
        yield
    finally:
        before.restore()


@contextmanager
def without_parameter_gradients(tensors: Iterator[Tensor]) -> Iterator[None]:
    """Switch ``requires_grad`` of leaves off, and back on afterwards."""
    asking = [t for t in tensors if t.is_leaf and t.requires_grad and not t.is_inference()]
    for tensor in asking:
        tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor in asking:
            tensor.requires_grad_(True)
