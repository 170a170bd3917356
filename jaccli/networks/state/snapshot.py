"""The state of an ``nn.Module`` before a pass, put back after it: tensors, submodules, hooks and attributes.

Invariants, while a ``ModuleState`` is installed:

* no tensor or array that the model was handed over with can be written to: copies stand in for buffers and for what
  attributes hold, and parameters are watched (``parameter_writes``) or copied;
* a copy that a pass has written to is replaced by another copy and never overwritten, since a recorded graph may need
  its values;
* one original has one copy, so that what is shared stays shared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from jaccli.networks.state.attributes import Containers, is_array
from jaccli.networks.state.parameter_writes import ParameterWritten, storage_of

if TYPE_CHECKING:
    from jaxtyping import Shaped

# Attributes of every module that hold no state of the model.
_MACHINERY = frozenset(vars(nn.Module())) - {"training", "_is_full_backward_hook"} | {
    "_parameters",
    "_buffers",
    "_modules",
}
# Those of them that a pass may add to or replace, as a layer does that builds itself when it is first called.
_REGISTRATIONS = (
    "_modules",
    *(f"_{way}{when}_hooks" for way in ("forward", "backward") for when in ("", "_pre")),
    *(f"_forward{when}_hooks_with_kwargs" for when in ("", "_pre")),
    "_forward_hooks_always_called",
)
_Kind = Literal["_buffers", "_parameters"]
# Copies of at most this number of elements are compared by content too.
_SMALL = 4096


class ModuleState:
    """The state of a module tree, and copies of it for passes.

    Cost: one copy of the buffers and of tensors and arrays in attributes; for each pass a look at each of them. A
    parameter in ``copied`` is copied for each pass, in such a way that gradients reach it unless ``frozen``.

    Args:
        module: the tree.
        copied: storages of parameters that passes write to; the caller may add some later.
        frozen: no gradients of parameters are wanted.
        guarded: passes may write to parameters and change registrations; else those are not looked at.
    """

    def __init__(self, module: nn.Module, copied: Collection[int] = (), frozen: bool = True, guarded: bool = False):
        self._copied, self._frozen, self._guarded = copied, frozen, guarded
        self._modules = list(module.modules())
        tables = [vars(m).get(name) for m in self._modules for name in _REGISTRATIONS] if guarded else []
        self._registrations = [(table, dict(table)) for table in tables if isinstance(table, dict)]
        self._attributes = [_attributes(m) for m in self._modules]
        self._buffers = [_tensors(m, "_buffers") for m in self._modules]
        self._parameters = [_tensors(m, "_parameters") if guarded else {} for m in self._modules]
        self._containers = Containers(self._attributes)
        self._copies: dict[int, _TensorCopy | _ArrayCopy] = {}
        every = {id(p): p for parameters in self._parameters for p in parameters.values() if p is not None}
        # A pass may give a parameter other memory (``p.data = …``); the detached tensor keeps that of before alive.
        self._memory = [(p, storage_of(p), p.detach()) for p in every.values()]
        self._pass_parameters: dict[int, Tensor] = {}

    def install(self) -> None:
        """Begin a pass: the module holds its original state, in copies."""
        self._pass_parameters.clear()
        self._put(self._copy)

    def remove(self) -> None:
        """Put the originals back."""
        self._put(lambda value: value)
        for parameter, storage, memory in self._memory:
            if storage_of(parameter) != storage:
                parameter.data = memory
        self._pass_parameters.clear()

    @property
    def watched_storages(self) -> list[int]:
        """The storages of parameters that passes use without a copy."""
        return [storage for _, storage, _ in self._memory if storage and storage not in self._copied]

    def check_parameters(self) -> None:
        """To be called after a pass.

        Raises:
            ParameterWritten: it gave a parameter other memory.
        """
        for parameter, storage, memory in self._memory:
            if storage_of(parameter) != storage:
                parameter.data = memory
                raise ParameterWritten(storage)

    def _put(self, change: Callable[[Any], Any]) -> None:
        """Give the modules the state of the snapshot, with ``change`` of each value."""
        for table, entries in self._registrations:
            if table != entries:
                table.clear()
                table.update(entries)
        states = zip(self._modules, self._attributes, self._buffers, self._parameters, strict=True)
        for module, attributes, buffers, parameters in states:
            _set_attributes(module, {name: change(value) for name, value in attributes.items()})
            _set_tensors(module, "_buffers", {name: change(value) for name, value in buffers.items()})
            if self._guarded:
                _set_tensors(module, "_parameters", {name: change(value) for name, value in parameters.items()})
        self._containers.put(change)

    def _copy(self, value: Any) -> Any:
        """What a pass gets in place of a value."""
        if isinstance(value, nn.Parameter):
            return self._pass_parameter(value) if self._copied and storage_of(value) in self._copied else value
        if not isinstance(value, Tensor) and not is_array(value):
            return value
        copy = self._copies.get(id(value))
        # See the invariants: a copy that was written to may be saved in a graph, so that another takes its place.
        if copy is None or copy.was_written():
            copy = self._copies[id(value)] = _TensorCopy(value) if isinstance(value, Tensor) else _ArrayCopy(value)
        return copy.copy

    def _pass_parameter(self, parameter: nn.Parameter) -> Shaped[Tensor, "..."]:
        if id(parameter) not in self._pass_parameters:
            copy = parameter.detach().clone() if self._frozen else parameter.clone()
            self._pass_parameters[id(parameter)] = copy
        return self._pass_parameters[id(parameter)]


class _ArrayCopy:
    """The copy of a NumPy array, which has no version counter."""

    def __init__(self, original: Any) -> None:
        self.original, self.copy = original, original.copy()

    def was_written(self) -> bool:
        return bool(self.copy.tobytes() != self.original.tobytes())


class _TensorCopy:
    """The copy of a tensor."""

    def __init__(self, original: Shaped[Tensor, "..."]) -> None:
        self.original = original
        self.copy = original.detach().clone()
        self.version = _version(self.copy)
        self.is_small = original.numel() <= _SMALL

    def was_written(self) -> bool:
        """By its version counter; of a small one by content too, which shows writes through ``.data``."""
        version = _version(self.copy)
        if version is None or version != self.version:
            return True
        return self.is_small and not _equal(self.copy, self.original)


def _version(tensor: Shaped[Tensor, "..."]) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _equal(a: Shaped[Tensor, "..."], b: Shaped[Tensor, "..."]) -> bool:
    if a.layout is not torch.strided or b.layout is not torch.strided:  # sparse tensors are not compared by torch
        return True
    # NaN equals NaN here: a buffer that holds some has not been written to.
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _tensors(module: nn.Module, kind: _Kind) -> dict[str, Any]:
    """Name → tensor, of the module itself."""
    if isinstance(module, torch.jit.ScriptModule):
        named = module.named_buffers if kind == "_buffers" else module.named_parameters
        return dict(named(recurse=False))
    return dict(vars(module)[kind])


def _set_tensors(module: nn.Module, kind: _Kind, tensors: dict[str, Any]) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        # The tensors of a script are on the C++ side, and are set one by one.
        for name, tensor in tensors.items():
            if kind == "_buffers" or module._c.getattr(name) is not tensor:
                module._c.setattr(name, tensor)
        return
    now = vars(module)[kind]
    if now.keys() != tensors.keys() or any(now[name] is not tensor for name, tensor in tensors.items()):
        # Cleared first, so that the order of the names is that of before, too.
        now.clear()
        now.update(tensors)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Name → value of the plain attributes."""
    if isinstance(module, torch.jit.ScriptModule):
        return {}
    return {name: value for name, value in vars(module).items() if name not in _MACHINERY}


def _set_attributes(module: nn.Module, attributes: dict[str, Any]) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        return
    now = vars(module)
    for name in [n for n in now if n not in attributes and n not in _MACHINERY]:
        del now[name]
    for name, value in attributes.items():
        if now.get(name) is not value or name not in now:
            now[name] = value


def attribute_values(module: nn.Module) -> Iterator[Any]:
    """The values of the plain attributes of all modules, of the containers in them, and of tuples in either."""
    attributes = [_attributes(m) for m in module.modules()]
    for values in [*(list(a.values()) for a in attributes), *Containers(attributes).values()]:
        for value in values:
            yield from value if isinstance(value, tuple) else (value,)


def map_attributes(module: nn.Module, change: Callable[[Any], Any]) -> None:
    """Put ``change`` of each value in its place, in the plain attributes of all modules and the containers in them."""
    modules = list(module.modules())
    attributes = [_attributes(m) for m in modules]
    containers = Containers(attributes)
    for owner, values in zip(modules, attributes, strict=True):
        _set_attributes(owner, {name: change(value) for name, value in values.items()})
    containers.put(change)


@contextmanager
def without_parameter_gradients(tensors: Iterator[Tensor], frozen: bool = True) -> Iterator[None]:
    """Inside, the leaves among the tensors, of any shapes, require no gradients, if ``frozen``.

    Afterwards ``requires_grad`` and ``grad`` are as before, even if a pass has changed them.
    """
    leaves = [(t, t.requires_grad, t.grad) for t in tensors if t.is_leaf and not t.is_inference()]
    for tensor, requires, _ in leaves:
        if requires and frozen:
            tensor.requires_grad_(False)
    try:
        yield
    finally:
        for tensor, requires, grad in leaves:
            if tensor.requires_grad != requires:
                tensor.requires_grad_(requires)
            if tensor.grad is not grad:
                tensor.grad = grad
