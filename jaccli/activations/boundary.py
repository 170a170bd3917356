"""Where in a run an activation is: a boundary of a module call, an element of its value, a slot."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.nested import Path, get, leaves, locate, put
from jaccli.activations.sample_view import SampleView, slot_for
from jaccli.errors import UnsupportedError, UsageError

Key = tuple[str, str, int]

# Of the root module, whose calls no tap is told of.
MODEL_INPUT: Key = ("", "in", 1)
MODEL_OUTPUT: Key = ("", "out", 1)


def module_paths(keys: Iterable[Key]) -> frozenset[str]:
    """The modules whose calls a tap has to see for these boundaries."""
    return frozenset(path for path, _, _ in keys if path)


@dataclass(frozen=True)
class Place:
    """An address resolved against a run: the boundary ``key``, the element ``path``, the ``slot``."""

    address: Address
    key: Key
    path: Path
    slot: SampleView

    def tensor(self, value: Any) -> Tensor:
        """The raw tensor that holds the activation, in a boundary's value."""
        found: Tensor = get(value, self.path)
        return found

    def get(self, value: Any) -> Tensor:
        """The activation ``(batch, *shape)``."""
        return self.slot.get(self.tensor(value))

    def put(self, value: Any, activation: Tensor) -> Any:
        """The boundary's value with another activation in it."""
        return put(value, self.path, self.slot.put(self.tensor(value), activation))


def key_of(address: Address) -> Key:
    """The boundary an address means; without ``#`` it is the first call."""
    if address.is_model_input:
        return MODEL_INPUT
    if address.is_model_output:
        return MODEL_OUTPUT
    if isinstance(address.call, str):
        raise UsageError(
            f"layer {str(address)!r} means all calls, and one is wanted here",
            f"expected the number of one, as {str(address.at_call(1))!r}",
        )
    return (address.path, address.port or "out", address.call or 1)


def place(address: Address, value: Any, batch: int, *, source: bool) -> Place:
    """Resolve an address against the value that its boundary had.

    Raises:
        UsageError: several tensors or none to choose, samples elsewhere, an index that does not fit.
        UnsupportedError: no floating-point tensor there.
    """
    read = as_key(address, value)
    path = locate(value, elements_in(read, value), read)
    return Place(address, key_of(address), path, slot_for(read, get(value, path), batch, distinct=source))


def as_key(address: Address, value: Any) -> Address:
    """An address of an element that is named ``x[0]`` or ``x@1``: no index, and no dimension."""
    _, port, rest = address.suffix.partition(f":{address.port}.")
    bare = address.index is None and address.dim is None
    if bare or not port or address.port == "in" or rest not in _keys(value):
        return address
    return replace(address, elements=tuple(rest.split(".")), index=None, dim=None)


def _keys(value: Any) -> Collection[str]:
    """Names of a dict's tensors."""
    return {".".join(path) for path, _ in leaves(value)} if isinstance(value, Mapping) else ()


def elements_in(address: Address, value: Any) -> Path:
    """``PATH:in.1`` and ``PATH:in.name``: the value of an ``in`` boundary is ``(args, kwargs)``."""
    if address.port != "in" or address.is_model_input:
        return address.elements
    args, kwargs = value
    if not address.elements:
        return ("0",) if not kwargs else ()
    first, rest = address.elements[0], address.elements[1:]
    if first.isdigit() and int(first) < len(args):
        return ("0", first, *rest)
    if first in kwargs:
        return ("1", first, *rest)
    have = [*map(str, range(len(args))), *kwargs]
    raise UnsupportedError(f"layer {str(address)!r}: the call has no argument {first!r}", f"it has {', '.join(have)}")
