"""Arguments of a model's forward, by position or by name, as its signature wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch

from jaccli.errors import UsageError
from jaccli.models.torchscript.script_values import map_tensors, printable
from jaccli.text.wording import worded


class Required:
    """Stands for the default of an argument that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = Required()


def describe(schema: Any) -> str:
    """A forward's signature on one line, as ``forward(x: Tensor, sr: int = 16000)``."""
    parts = []
    for argument in list(schema.arguments)[1:]:
        default = f" = {argument.default_value!r}" if argument.has_default_value() else ""
        parts.append(f"{argument.name}: {argument.type}{default}")
    return printable(f"forward({', '.join(parts)})", 300)


def signature(schema: Any) -> list[tuple[str, Any]]:
    """``(name, default)`` of every argument but ``self``; ``REQUIRED`` where there is no default."""
    return [(a.name, a.default_value if a.has_default_value() else REQUIRED) for a in list(schema.arguments)[1:]]


def bind(schema: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments in order, defaults filled in; containers are copied.

    Raises:
        UsageError: too many, missing or unknown arguments, or one of the wrong kind.
    """
    formal = list(schema.arguments)[1:]
    expected = describe(schema)
    if len(args) > len(formal):
        raise UsageError(f"{len(args)} arguments for a model that takes {len(formal)}", expected)
    given = dict(zip((a.name for a in formal), args, strict=False))
    for name, value in kwargs.items():
        if name in given:
            raise UsageError(f"argument {printable(name)!r} is given twice", expected)
        given[name] = value
    unknown = sorted(set(given) - {a.name for a in formal})
    if unknown:
        raise UsageError(f"the model has no argument {printable(unknown[0])!r}", expected)
    bound = []
    for argument in formal:
        if argument.name not in given and not argument.has_default_value():
            missing = printable(argument.name)
            raise UsageError(
                f"the model's argument {missing!r} is missing",
                expected,
                worded("pass it with {arguments:{name}}", name=missing),
            )
        value = given.get(argument.name, argument.default_value) if given else argument.default_value
        bound.append(_coerce(value, argument, expected))
    return bound


def _coerce(value: Any, argument: Any, expected: str) -> Any:
    kind = argument.type.kind()
    if kind == "FloatType" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind == "ListType" and isinstance(value, tuple):
        return list(value)
    numbers = {"IntType": int, "FloatType": float, "BoolType": bool, "StringType": str}
    wanted: Any = torch.Tensor if kind == "TensorType" else numbers.get(kind)
    wrong_bool = isinstance(value, bool) and wanted is int
    if wanted is not None and (wrong_bool or not isinstance(value, wanted)):
        name = printable(argument.name)
        raise UsageError(f"the model's argument {name!r} is given as {type(value).__name__}", expected)
    return map_tensors(value, lambda t: t)
