"""Arguments of a model's forward, by position or by name, in the order and of the types of its signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jaccli.errors import UsageError
from jaccli.models.torchscript.script_objects import map_tensors
from jaccli.models.torchscript.script_types import matches
from jaccli.text.escape import quote
from jaccli.text.wording import worded

_CHECKED: Final = {"TensorType", "IntType", "FloatType", "BoolType", "StringType"}


def bind(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments in order, defaults filled in; containers are copied.

    Raises:
        UsageError: too many, missing or unknown arguments, or one of the wrong type.
    """
    formal = list(schema.arguments)[1:]
    expected = _described(formal)
    if len(args) > len(formal):
        raise UsageError(f"{len(args)} arguments for a model that takes {len(formal)}", expected)
    by_name = dict(zip((argument.name for argument in formal), args, strict=False))
    for name, value in kwargs.items():
        if name in by_name:
            raise UsageError(f"argument {quote(name, 120)} is given twice", expected)
        by_name[name] = value
    unknown = sorted(set(by_name) - {argument.name for argument in formal})
    if unknown:
        raise UsageError(f"the model has no argument {quote(unknown[0], 120)}", expected)
    return [_coerce(_value(argument, by_name, expected), argument, expected) for argument in formal]


def _described(formal: list[Any]) -> str:
    """A forward's signature on one line, as ``forward(x: Tensor, sr: int = 16000)``."""
    parts = []
    for argument in formal:
        default = f" = {argument.default_value!r}" if argument.has_default_value() else ""
        parts.append(f"{argument.name}: {argument.type}{default}")
    return quote(f"forward({', '.join(parts)})", 300)[1:-1]


def _value(argument: Any, by_name: Mapping[str, Any], expected: str) -> Any:
    if argument.name in by_name:
        return by_name[argument.name]
    if argument.has_default_value():
        return argument.default_value
    name = quote(argument.name, 120)
    remedy = worded("pass it with {arguments:{name}}", name=name[1:-1])
    raise UsageError(f"the model's argument {name} is missing", expected, remedy)


def _coerce(value: Any, argument: Any, expected: str) -> Any:
    kind = argument.type.kind()
    if kind == "FloatType" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind == "ListType" and isinstance(value, tuple):
        return list(value)
    if kind in _CHECKED and not matches(value, argument.type):
        name = quote(argument.name, 120)
        raise UsageError(f"the model's argument {name} is given as {type(value).__name__}", expected)
    return map_tensors(value, lambda tensor: tensor)
