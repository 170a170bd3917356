"""Arguments of operators in an archive, a union of some thirty kinds, as Python values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from jaccli.errors import UnsupportedError
from jaccli.models.exported.code import MODEL_DEVICE, ExportedGraph, Ref
from jaccli.models.exported.operators import resolve
from jaccli.models.exported.payload import STRIDED, dtype_of
from jaccli.models.screening.enumerations import check_enumeration, enumerations

ParseGraph = Callable[[Mapping[str, Any]], ExportedGraph]

_MEMORY_FORMATS: Final = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_KEYWORD: Final = 2


def value_of(raw: Mapping[str, Any], parse_graph: ParseGraph) -> Any:
    """One argument: a constant, a ``Ref``, a ``ExportedGraph``, or a container of them.

    Raises:
        UnsupportedError: a custom object.
        KeyError, TypeError, ValueError: damage.
    """
    kind, value = member(raw)
    if kind == "as_graph":
        return parse_graph(value["graph"])
    if kind == "as_string_to_argument":
        return {str(key): value_of(item, parse_graph) for key, item in value.items()}
    if kind == "as_custom_obj":
        raise UnsupportedError(
            "the exported model uses a custom object, which only running code could build",
            "expected tensors and numbers",
            "re-export the model without it",
        )
    return _READERS[kind](value)


def member(raw: Mapping[str, Any]) -> tuple[str, Any]:
    """The one member of a union that is set."""
    if not raw:
        raise ValueError("an empty union")
    return next(((key, value) for key, value in raw.items() if value is not None), ("as_none", None))


def _ref(raw: Mapping[str, Any]) -> Ref:
    return Ref(str(raw["name"]))


def _symbolic(raw: Mapping[str, Any]) -> Any:
    """A number, or the name of one that the graph computes."""
    if raw.get("as_name") is not None:
        return Ref(str(raw["as_name"]))
    return next(raw[key] for key in ("as_int", "as_float", "as_bool") if raw.get(key) is not None)


def _optional(raw: Mapping[str, Any]) -> Ref | None:
    return None if raw.get("as_tensor") is None else _ref(raw["as_tensor"])


def _device(raw: Mapping[str, Any]) -> Any:
    return torch.device("meta") if raw["type"] == "meta" else MODEL_DEVICE


def _layout(raw: int) -> torch.layout:
    if int(raw) != STRIDED:
        raise UnsupportedError("the exported model uses sparse tensors", "expected dense ones")
    return torch.strided


def _list(read: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda raw: [read(item) for item in raw]


def _exactly(kind: type) -> Callable[[Any], Any]:
    def read(raw: Any) -> Any:
        if type(raw) is not kind:
            raise TypeError(f"expected {kind.__name__}")
        return raw

    return read


# Kinds of which there are lists, too.
_LISTED: Final[dict[str, Callable[[Any], Any]]] = {
    "as_tensor": _ref,
    "as_optional_tensor": _optional,
    "as_int": _exactly(int),
    "as_float": float,  # infinity and NaN are written as strings
    "as_bool": _exactly(bool),
    "as_string": _exactly(str),
    **dict.fromkeys(("as_sym_int", "as_sym_float", "as_sym_bool"), _symbolic),
}
_READERS: Final[dict[str, Callable[[Any], Any]]] = {
    **_LISTED,
    **{f"{kind}s": _list(read) for kind, read in _LISTED.items()},
    "as_none": lambda _: None,
    "as_nested_tensors": _list(_list(_ref)),
    "as_int_lists": _list(_list(_exactly(int))),
    "as_float_lists": _list(_list(float)),
    "as_complex": lambda raw: complex(float(raw["real"]), float(raw["imag"])),
    "as_scalar_type": dtype_of,
    "as_memory_format": lambda raw: _MEMORY_FORMATS[int(raw)],
    "as_layout": _layout,
    "as_device": _device,
    "as_operator": lambda raw: resolve(str(raw)),
}


def node_arguments(
    op: Callable[..., Any], raw: list[Mapping[str, Any]], parse_graph: ParseGraph
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of one operator, in the order of its schema."""
    if not isinstance(op, torch._ops.OpOverload):
        return _loose_arguments(raw, parse_graph)
    by_name = {str(item["name"]): item for item in raw}
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    numbered = enumerations(op._schema)
    for position, expected in enumerate(op._schema.arguments):
        item = by_name.pop(expected.name, None)
        if item is None:
            if not expected.has_default_value():
                raise KeyError(expected.name)
            continue
        value = value_of(item["arg"], parse_graph)
        if expected.name in numbered:
            if isinstance(value, Ref):
                raise TypeError("a dtype that the graph computes")
            check_enumeration(op._schema.name, expected.name, value, numbered[expected.name])
        # Positional only while nothing was left out before it.
        in_line = not kwargs and len(args) == position
        if expected.kwarg_only or not in_line:
            kwargs[expected.name] = value
        else:
            args.append(value)
    if by_name:
        raise KeyError("an argument that the operator does not take")
    return tuple(args), kwargs


def _loose_arguments(raw: list[Mapping[str, Any]], parse_graph: ParseGraph) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of arithmetic and control flow, which have no schema."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for item in raw:
        value = value_of(item["arg"], parse_graph)
        if item.get("kind") == _KEYWORD and item["name"]:
            kwargs[str(item["name"])] = value
        else:
            args.append(value)
    return tuple(args), kwargs
