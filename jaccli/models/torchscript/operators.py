"""From a graph node to the Python callable that does what the node says."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch._ops import OpOverload

from jaccli.errors import UnsupportedError
from jaccli.models.interpretation.overloads import find_overload
from jaccli.models.interpretation.replaced_operators import IN_SCRIPTS
from jaccli.models.interpretation.training_flags import draws_numbers, has_running_statistics, training_flag
from jaccli.models.screening.argument_checks import guarded
from jaccli.models.screening.enumerations import check_enumeration, enumerations
from jaccli.models.torchscript import natives
from jaccli.text.escape import quote

_SEEDING = {"aten::manual_seed", "aten::seed"}

_LISTS = {"ListType", "DictType"}
_GIVES_VALID = {"prim::dtype", "prim::layout"}

# A trace keeps the number in `x * 0.3` as a tensor of float64, and here PyTorch's executor makes a number of it again
# (a constant without dimensions as the second operand): numbers do not raise a dtype, tensors may.
_WITH_NUMBERS = {"aten::add.Tensor", "aten::sub.Tensor", "aten::mul.Tensor", "aten::div.Tensor"}


def schema_of(node: Any) -> Any:
    """The operator schema of a node, None where it has none."""
    return _parsed(node.schema())


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    return None if text == "(no schema)" else torch._C.parse_schema(text)


def resolve(node: Any, constants: dict[int, Any]) -> tuple[Callable[..., Any], int]:
    """The callable for a node and how many of the node's inputs it takes.

    Args:
        node: a node whose operator has a schema or a native form.
        constants: ``unique() → value`` of the inputs that are constants.

    Raises:
        UnsupportedError: no operator of that name is known here.
    """
    inputs = list(node.inputs())
    native = _native(node, inputs)
    if native is not None:
        return native, len(inputs)
    schema = schema_of(node)
    if schema is None:
        raise unknown(node.kind())
    op = _with_valid_numbers(_checked(node.kind(), schema), schema, inputs, constants)
    return _bind(op, schema, inputs, constants)


def takes_number(node: Any) -> bool:
    """Whether a constant without dimensions is a number as this operator's second input, as in PyTorch's executor."""
    return node.schema().partition("(")[0] in _WITH_NUMBERS


def _with_valid_numbers(
    op: Callable[..., Any], schema: Any, inputs: list[Any], constants: dict[int, Any]
) -> Callable[..., Any]:
    """The operator, with dtypes and the like checked: constants now, what the model computes at each call."""
    checks = enumerations(schema)
    open_: dict[str, Any] = {}
    for argument, value in zip(schema.arguments, inputs, strict=False):
        if argument.name not in checks:
            continue
        if value.unique() in constants:
            check_enumeration(schema.name, argument.name, constants[value.unique()], checks[argument.name])
        elif value.node().kind() not in _GIVES_VALID:
            open_[argument.name] = checks[argument.name]
    if not open_:
        return op
    names = [argument.name for argument in schema.arguments]

    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in open_:
                check_enumeration(schema.name, name, value, open_[name])
        return op(*args, **kwargs)

    return checked


def unknown(kind: str) -> UnsupportedError:
    """The error for an operator that cannot be run here."""
    return UnsupportedError(
        f"the model uses the operator {quote(kind, 120)}, which jaccli cannot run",
        "operators of PyTorch itself",
    )


def draws(node: Any) -> tuple[bool, int | None]:
    """Whether a node may draw random numbers, and the input that says if it does (its position)."""
    schema = schema_of(node)
    if schema is None or not node.kind().startswith("aten::"):
        return False, None
    switch = training_flag(schema)
    # Not all recurrent operators are tagged in all versions of PyTorch; all have a training mode.
    by_mode = switch is not None and not has_running_statistics(schema)
    return by_mode or node.kind() in _SEEDING or draws_numbers(_overload(node.kind(), schema)), switch


def _native(node: Any, inputs: list[Any]) -> Callable[..., Any] | None:
    kind = node.kind()
    # The special before the general: by name, by overload, by types of inputs where a name has several uses.
    if kind in IN_SCRIPTS:
        return IN_SCRIPTS[kind]
    if kind in natives.ALWAYS:
        return natives.ALWAYS[kind]
    named = node.schema().partition("(")[0]
    named += "" if "." in named else "."
    if named in natives.ALWAYS:
        return natives.ALWAYS[named]
    types = [value.type() for value in inputs]
    kinds = [t.kind() for t in types]
    if not kinds:  # the empty list(), dict()
        return natives.CONTAINERS.get(kind) if kind in {"aten::list", "aten::dict"} else None
    plain = not any("Tensor" in str(t) for t in types)
    if kinds[0] in _LISTS | {"StringType", "TupleType"} or _LISTS & set(kinds[:2]):
        if kinds[0] != "TensorType" and kind in natives.CONTAINERS:
            return natives.CONTAINERS[kind]
        if plain and kind in natives.PLAIN_CONTAINERS:
            return natives.PLAIN_CONTAINERS[kind]
    holds_objects = any(k in {"ClassType", "InterfaceType"} for k in kinds)
    return natives.SCALARS.get(kind) if plain and not holds_objects else None


def _overload(kind: str, schema: Any) -> OpOverload | None:
    namespace, _, name = kind.partition("::")
    return find_overload(namespace, name, schema.overload_name)


def _checked(kind: str, schema: Any) -> Callable[..., Any]:
    overload = _overload(kind, schema)
    if overload is None:
        raise unknown(kind)
    checked = guarded(overload)
    op: Callable[..., Any] = getattr(checked, "_op", checked)  # saves a Python frame a call
    return op


def _bind(
    op: Callable[..., Any], schema: Any, inputs: list[Any], constants: dict[int, Any]
) -> tuple[Callable[..., Any], int]:
    """Pass keyword-only arguments by name, leaving out trailing ones that are the default anyway."""
    arguments = list(schema.arguments)[: len(inputs)]
    if len(arguments) < len(inputs):
        return op, len(inputs)  # variadic
    # Fewer slots to read at each call; ``partial`` where the keywords are constants, which costs no dict a call.
    count = len(inputs)
    while count and _is_default(arguments[count - 1], inputs[count - 1], constants):
        count -= 1
    first = next((i for i in range(count) if arguments[i].kwarg_only), count)
    if first == count:
        return op, count
    names = [a.name for a in arguments[first:count]]
    if all(v.unique() in constants for v in inputs[first:count]):
        values = [constants[v.unique()] for v in inputs[first:count]]
        return partial(op, **dict(zip(names, values, strict=True))), first

    def by_name(*args: Any) -> Any:
        return op(*args[:first], **dict(zip(names, args[first:], strict=True)))

    return by_name, count


def _is_default(argument: Any, value: Any, constants: dict[int, Any]) -> bool:
    if value.unique() not in constants or not argument.has_default_value():
        return False
    content, default = constants[value.unique()], argument.default_value
    if content is None or default is None:
        return content is default
    simple = (bool, int, float, str)
    return type(content) is type(default) and isinstance(content, simple) and content == default
