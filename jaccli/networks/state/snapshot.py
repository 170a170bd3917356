"""Putting an ``nn.Module`` back as it was: parameters, buffers, submodules, hooks, and what attributes hold."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from jaccli.networks.state.attributes import containers, is_array
from jaccli.networks.state.parameter_writes import ParameterWritten, storage_of

_MACHINERY = frozenset(vars(nn.Module())) - {"training", "_is_full_backward_hook"} | {
    "_parameters",
    "_buffers",
    "_modules",
}
# Of the machinery what a pass may add to or replace, as a layer that is built when it is first called.
_REGISTERED = (
    "_modules",
    *(f"_{way}{when}_hooks" for way in ("forward", "backward") for when in ("", "_pre")),
    *(f"_forward{when}_hooks_with_kwargs" for when in ("", "_pre")),
    "_forward_hooks_always_called",
)


class ModuleState:
    """Lets a module tree run without touching what it keeps.

    While installed, copies stand in for buffers and for tensors and arrays in plain attributes, so that the
    originals are never written. A copy that a pass has written to is replaced, not overwritten: a
    recorded graph may still need it. Cost: one copy of these tensors, and a look at each a pass.
    Parameters are not copied, save for those in ``shielded``, which passes rewrite: each pass gets one anew,
    through which gradients flow where parameters are not ``frozen``.

    Args:
        module: the tree.
        shielded: storages of parameters that passes are known to write to; more may be added.
        frozen: no gradients are wanted by parameters.
        writes: passes may write to parameters; else they are left alone.
    """

    def __init__(self, module: nn.Module, shielded: Collection[int] = (), frozen: bool = True, writes: bool = False):
        self._shielded, self._frozen, self._writes = shielded, frozen, writes
        self._modules = list(module.modules())
        held = [vars(m).get(name) for m in self._modules for name in _REGISTERED] if writes else []
        self._registered = [(now, dict(now)) for now in held if isinstance(now, dict)]
        self._attributes = [_attributes(m) for m in self._modules]
        self._buffers = [_buffers(m) for m in self._modules]
        self._parameters = [_parameters(m) if writes else {} for m in self._modules]
        self._containers = [(c, _items(c)) for c in containers(self._attributes)]
        self._copies: dict[int, _Copy | _ArrayCopy] = {}
        every = {id(p): p for held in self._parameters for p in held.values() if p is not None}
        # Of each the memory that it stands in: a pass may put other memory in its place (``p.data = …``).
        self._memory = [(p, storage_of(p), p.detach()) for p in every.values()]
        self._fresh: dict[int, Tensor] = {}

    def install(self) -> None:
        """Start a pass: the state the model was handed over with, in copies."""
        self._fresh.clear()
        self._put(self._stand_in)

    def remove(self) -> None:
        """Put the originals back."""
        self._put(lambda value: value)
        for parameter, storage, memory in self._memory:
            if storage_of(parameter) != storage:
                parameter.data = memory
        self._fresh.clear()

    @property
    def storages(self) -> list[int]:
        """Of the parameters that are not copied."""
        return [storage for _, storage, _ in self._memory if storage and storage not in self._shielded]

    def check(self) -> None:
        """After a pass.

        Raises:
            ParameterWritten: it put other memory in a parameter's place.
        """
        for parameter, storage, memory in self._memory:
            if storage_of(parameter) != storage:
                parameter.data = memory
                raise ParameterWritten(storage)

    def _put(self, change: Callable[[Any], Any]) -> None:
        """Everything that modules hold, each value changed."""
        for now, before in self._registered:
            if now != before:
                now.clear()
                now.update(before)
        together = zip(self._modules, self._attributes, self._buffers, self._parameters, strict=True)
        for module, attributes, buffers, parameters in together:
            _restore_attributes(module, {name: change(value) for name, value in attributes.items()})
            _restore_tensors(module, "_buffers", {name: change(value) for name, value in buffers.items()})
            if self._writes:
                _restore_tensors(module, "_parameters", {name: change(value) for name, value in parameters.items()})
        for container, items in self._containers:
            if isinstance(items, dict):
                _refill(container, {key: change(value) for key, value in items.items()})
            else:
                _refill(container, [change(value) for value in items])

    def _stand_in(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return self._copy(value) if is_array(value) else value
        if isinstance(value, nn.Parameter):
            return self._anew(value) if self._shielded and storage_of(value) in self._shielded else value
        return self._copy(value)

    def _copy(self, value: Any) -> Any:
        copy = self._copies.get(id(value))
        if copy is None or copy.written():
            copy = self._copies[id(value)] = _Copy(value) if isinstance(value, Tensor) else _ArrayCopy(value)
        return copy.stand_in

    def _anew(self, parameter: nn.Parameter) -> Tensor:
        if id(parameter) not in self._fresh:
            copy = parameter.detach().clone() if self._frozen else parameter.clone()
            self._fresh[id(parameter)] = copy
        return self._fresh[id(parameter)]


class _ArrayCopy:
    """Of a NumPy array: no counter tells of a write."""

    def __init__(self, original: Any) -> None:
        self.original, self.stand_in = original, original.copy()

    def written(self) -> bool:
        return bool(self.stand_in.tobytes() != self.original.tobytes())


class _Copy:
    def __init__(self, original: Tensor) -> None:
        self.original = original
        self.stand_in = original.detach().clone()
        self.version = _version(self.stand_in)
        self.small = original.numel() <= _SMALL

    def written(self) -> bool:
        """By its version counter; small ones also by content, which sees writes through ``.data``."""
        version = _version(self.stand_in)
        if version is None or version != self.version:
            return True
        return self.small and not _same(self.stand_in, self.original)


_SMALL = 4096


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _buffers(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, torch.jit.ScriptModule):
        return dict(module.named_buffers(recurse=False))
    return dict(module._buffers)


def _parameters(module: nn.Module) -> dict[str, Any]:
    if isinstance(module, torch.jit.ScriptModule):
        return dict(module.named_parameters(recurse=False))
    return dict(module._parameters)


def _restore_tensors(module: nn.Module, kind: str, tensors: dict[str, Any]) -> None:
    """``kind`` is ``_buffers`` or ``_parameters``."""
    if isinstance(module, torch.jit.ScriptModule):
        # What a script holds is on the other side of a binding: its slots are set one by one.
        for name, tensor in tensors.items():
            if kind == "_buffers" or module._c.getattr(name) is not tensor:
                module._c.setattr(name, tensor)
        return
    now = vars(module)[kind]
    if now.keys() != tensors.keys() or any(now[name] is not tensor for name, tensor in tensors.items()):
        now.clear()
        now.update(tensors)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.layout is not torch.strided or b.layout is not torch.strided:  # sparse tensors are not compared by torch
        return True
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


def attribute_values(module: nn.Module) -> Iterator[Any]:
    """What the plain attributes of all modules hold, and the containers in them."""
    held = [_attributes(m) for m in module.modules()]
    for values in [*(list(h.values()) for h in held), *(_values(c) for c in containers(held))]:
        for value in values:
            yield from value if isinstance(value, tuple) else (value,)


def attribute_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Tensors among them."""
    yield from (value for value in attribute_values(module) if isinstance(value, Tensor))


def map_attributes(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Replace what the plain attributes of all modules hold, and mutable containers in them, by ``change`` of it."""
    modules = list(module.modules())
    held = [_attributes(m) for m in modules]
    for owner, attributes in zip(modules, held, strict=True):
        _restore_attributes(owner, {name: change(value) for name, value in attributes.items()})
    for container in containers(held):
        items = _items(container)
        if isinstance(items, dict):
            _refill(container, {key: change(value) for key, value in items.items()})
        else:
            _refill(container, [change(value) for value in items])


def _values(container: Any) -> list[Any]:
    return list(container.values() if isinstance(container, dict) else container)


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


@contextmanager
def without_parameter_gradients(tensors: Iterator[Tensor], frozen: bool = True) -> Iterator[None]:
    """Switch ``requires_grad`` of leaves off, if ``frozen``.

    Afterwards it is what it was, and so is ``grad``, whatever a pass has made of them.
    """
    leaves = [(t, t.requires_grad, t.grad) for t in tensors if t.is_leaf and not t.is_inference()]
    for tensor, asks, _ in leaves:
        if asks and frozen:
            tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor, asks, grad in leaves:
            if tensor.requires_grad != asks:
                tensor.requires_grad_(asks)
            if tensor.grad is not grad:
                tensor.grad = grad
