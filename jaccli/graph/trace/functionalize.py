"""Writes in place as values: the operator without the write, and the base of a view after a write through the view."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from jaccli.graph.trace.ir import CaptureGap, Value

# Runs an operator on values and records it: operator, arguments, keyword arguments → its results.
Emit = Callable[..., list[Value]]
aten = torch.ops.aten


@dataclass(frozen=True)
class View:
    """How a view was taken of its base: ``op(base, *args, **kwargs)``, its result number ``out``."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: int


def functional(op: Any) -> Any:
    """``add_.Tensor`` → ``add.Tensor``; None where there is none, or where more than ``self`` is written."""
    schema = op._schema
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    namespace, name = schema.name.split("::")
    if len(written) != 1 or (written[0] is not schema.arguments[0] and written[0].name != "self"):
        return None
    # These change which memory the object looks at. What it holds then is no function of what it held before.
    if name in ("as_strided_", "resize_", "set_", "resize_as_") or not name.endswith("_") or name.startswith("_"):
        return None
    if torch.Tag.nondeterministic_seeded in op.tags:
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, op._overloadname, None) if packet is not None else None


def written_into(emit: Emit, base: Value, new: Value, view: View) -> Value:
    """The base after one of its views became ``new``: the inverse of the view, as an operator on values.

    Args:
        emit: records the operator.
        base: before the write.
        new: the view after the write.
        view: how it was taken of the base.

    Raises:
        CaptureGap: this kind of view has no inverse here.
    """
    name = view.op._schema.name.split("::")[1]
    # An expand to the shape that the base has is the identity. Through any other one, several elements of the view are
    # one element of the base.
    if name == "expand" and new.shape == base.shape:
        return new
    inverse = INVERSES.get(name)
    if inverse is None:
        raise CaptureGap(f"a write in place through {name}")
    return inverse(emit, base, new, view)


def _one(emit: Emit, op: Any, *args: Any, **kwargs: Any) -> Value:
    return emit(op, args, kwargs)[0]


def _from_unbind(emit: Emit, base: Value, new: Value, view: View) -> Value:
    return _one(emit, aten.select_scatter.default, base, new, view.args[0] if view.args else 0, view.out)


def _from_split(emit: Emit, base: Value, new: Value, view: View) -> Value:
    dim = view.args[1] if len(view.args) > 1 else view.kwargs.get("dim", 0)
    # ``split(x, n)``: all parts but the last one have n elements, and only those before this part are summed.
    sizes = view.args[0] if isinstance(view.args[0], list | tuple) else [view.args[0]] * view.out
    start = sum(sizes[: view.out])
    return _one(emit, aten.slice_scatter.default, base, new, dim, start, start + new.shape[dim])


def _from_permute(emit: Emit, base: Value, new: Value, view: View) -> Value:
    order = [d % len(base.shape) for d in view.args[0]]
    return _one(emit, aten.permute.default, new, [order.index(d) for d in range(len(order))])


def _scattered(op: Any) -> Callable[[Emit, Value, Value, View], Value]:
    return lambda emit, base, new, view: _one(emit, op, base, new, *view.args, **view.kwargs)


INVERSES: dict[str, Callable[[Emit, Value, Value, View], Value]] = {
    "select": _scattered(aten.select_scatter.default),
    "slice": _scattered(aten.slice_scatter.default),
    "diagonal": _scattered(aten.diagonal_scatter.default),
    "unbind": _from_unbind,
    "split": _from_split,
    "split_with_sizes": _from_split,
    "permute": _from_permute,
    "t": lambda emit, base, new, view: _one(emit, aten.t.default, new),
    "transpose": lambda emit, base, new, view: _one(emit, aten.transpose.int, new, *view.args),
    **dict.fromkeys(("detach", "alias"), lambda emit, base, new, view: new),
    **dict.fromkeys(
        ("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten"),
        lambda emit, base, new, view: _one(emit, aten.reshape.default, new, list(base.shape)),
    ),
}
