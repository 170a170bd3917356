"""Step 2a: one tensor of a nested value (tuple, list, mapping, named tuple, dataclass): find it, replace it.

``torch.utils._pytree`` does not serve here: it goes into registered types only, so that the output classes of a model's
own, which are mappings and dataclasses, would be leaves.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from jaccli.activations.address import Address
from jaccli.errors import UnsupportedError, UsageError
from jaccli.networks.tensor_kinds import obstacle
from jaccli.text.wording import worded

# The elements that lead to a tensor: keys, positions and names of fields, as text.
Path = tuple[str, ...]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in a nested value, of any shape, with its path; ``path`` is that of ``value`` itself."""
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, child in _children(value):
        yield from leaves(child, (*path, key))


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), child) for key, child in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [(str(position), child) for position, child in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def locate_tensor(value: Any, elements: Path, address: Address) -> Path:
    """The full path of the tensor that ``elements`` mean: itself, or the only floating-point one below.

    Raises:
        UsageError: no such element, or several tensors to choose from; the answer lists them.
        UnsupportedError: no floating-point tensor there.
    """
    name, inside = str(address), value
    path: Path = ()
    if isinstance(value, Tensor) and elements == ("0",):
        elements = ()  # a trace returns the only used element of a tuple without the tuple
    while elements:
        children = _named_children(inside)
        count = _longest(elements, children)
        if not count:
            have = ", ".join(repr(c) for c in children) or f"a {type(inside).__name__}"
            raise UsageError(
                f"layer {name!r}: no element {'.'.join((*path, elements[0]))!r} in its value",
                f"it has {have}" if children else f"its value is {have}, without elements",
            )
        key = ".".join(elements[:count])
        path, inside, elements = (*path, key), children[key], elements[count:]
    tensors = list(leaves(inside))
    floating = [(path, tensor) for path, tensor in tensors if obstacle(tensor) is None]
    if len(floating) == 1:
        return (*path, *floating[0][0])
    if floating:
        first = int(address.port == "in" and not address.is_model_input)  # names leave out "0" (args) or "1" (kwargs)
        shown = [((*path, *p)[first:], tensor) for p, tensor in floating]
        choices = ", ".join(f"{'.'.join(p)} {tuple(t.shape)}" for p, t in shown[:8])
        raise UsageError(
            f"layer {name!r}: its value holds {len(floating)} floating-point tensors",
            f"expected one of the elements {choices}",
            f"name one, as {address.with_elements(shown[0][0])!r}",
        )
    raise _no_derivative(tensors, inside, name)


def _no_derivative(tensors: list[tuple[Path, Tensor]], inside: Any, name: str) -> UnsupportedError:
    """The error for a value without a floating-point tensor; ``tensors``, of any shapes, are those that it has."""
    reasons = [reason for _, tensor in tensors if (reason := obstacle(tensor)) is not None]
    if reasons:
        holds, expected, remedy = reasons[0]
        return UnsupportedError(f"layer {name!r} holds {holds}", expected, remedy)
    return UnsupportedError(
        f"layer {name!r}: its value is {type(inside).__name__}, with no tensor in it",
        "expected a layer whose value holds tensors",
        worded("{layer_names}"),
    )


def _longest(elements: Path, children: Mapping[str, Any]) -> int:
    """How many of the elements, joined by dots, are the name of a child: keys of dicts may have dots in them."""
    return next((n for n in range(len(elements), 0, -1) if ".".join(elements[:n]) in children), 0)


def _named_children(value: Any) -> dict[str, Any]:
    children = dict(_children(value))
    # ``_children`` gives a named tuple's positions, as of every sequence.
    for name in getattr(value, "_fields", ()):  # a field of a named tuple has a name and a position
        children[name] = getattr(value, name)
    return children


def get(value: Any, path: Path) -> Any:
    """The value at a path."""
    for element in path:
        value = _named_children(value)[element]
    return value


def put(value: Any, path: Path, new: Tensor) -> Any:
    """The value with the tensor ``new``, of any shape, at a path; containers along it are copied."""
    if not path:
        return new
    element, rest = path[0], path[1:]
    child = put(_named_children(value)[element], rest, new)
    if isinstance(value, tuple):
        if element in getattr(value, "_fields", ()):
            return value._replace(**{element: child})  # type: ignore[attr-defined]
        items = [child if str(i) == element else v for i, v in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    # A shallow copy: the model's own container must stay as it is, and its type must be kept.
    return _put_mutable(copy.copy(value), element, child)


def _put_mutable(twin: Any, element: str, child: Any) -> Any:
    if isinstance(twin, Mapping):
        key = next(k for k in twin if str(k) == element)
        twin[key] = child  # type: ignore[index]
    elif isinstance(twin, Sequence):
        twin[int(element)] = child  # type: ignore[index]
    else:
        object.__setattr__(twin, element, child)  # a dataclass may be frozen
    return twin
