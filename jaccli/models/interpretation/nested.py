"""Values nested in lists, tuples and dicts, and the layouts that say what stands where in them."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jaccli.errors import InternalError

if TYPE_CHECKING:
    from jaxtyping import Shaped

Nesting = Any
"""A nested tuple of keys: positions in a flat list of values, or names of values.

None stands for a value that a trace or export dropped, because nothing uses it.
"""


def map_leaves(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same structure of lists, tuples (named ones too) and dicts, rebuilt, with ``function`` of what is inside."""
    if isinstance(value, tuple):
        items = [map_leaves(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_leaves(item, function) for item in value]
    if isinstance(value, Mapping):
        return {key: map_leaves(item, function) for key, item in value.items()}
    return function(value)


def named_tuple(qualified_name: str, fields: Sequence[str]) -> Callable[..., Any]:
    """The class of named tuples with these fields; a name in a file that is no identifier is replaced."""
    name = qualified_name.rpartition(".")[2]
    return namedtuple(name if name.isidentifier() and not iskeyword(name) else "Result", fields, rename=True)


class OncePerTensor:
    """A function of tensors that is called once for each tensor: one under two names (a tied weight) stays one.

    It holds the tensors that it was called with: the ``id`` of one that is gone may be that of another.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        """``function`` of a tensor of any shape."""
        self._function = function
        self._results: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        if id(tensor) not in self._results:
            self._results[id(tensor)] = (tensor, self._function(tensor))
        return self._results[id(tensor)][1]


def leaves(value: Any) -> Iterator[Any]:
    """What is inside of lists, tuples and dicts, in order."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    else:
        yield value


def arrange(layout: Nesting, values: Any) -> Any:
    """The nested tuple that a layout describes, filled with ``values[key]``."""
    return map_leaves(layout, lambda key: None if key is None else values[key])


def pairs(layout: Nesting, value: Any) -> Iterator[tuple[Any, Any]]:
    """Each key of a layout with what stands there in ``value``: the inverse of ``arrange``.

    Raises:
        InternalError: ``value`` has another structure.
    """
    if isinstance(layout, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(layout):
            raise InternalError(
                "a tap changed how many values a module takes or returns",
                "expected as many as the module has",
                "please report it",
            )
        for inner, item in zip(layout, value, strict=True):
            yield from pairs(inner, item)
    elif layout is not None:
        yield layout, value
