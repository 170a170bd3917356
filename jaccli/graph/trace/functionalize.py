"""Writes in place as values: the operator without the write, and what it makes of the tensor it is a view of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jaccli.graph.trace.ir import CaptureGap, Value

Emit = Callable[..., list[Value]]

aten = torch.ops.aten


def functional(op: Any) -> Any:
    """``add_.Tensor`` → ``add.Tensor``; None where there is none, or where more than ``self`` is written."""
    schema = op._schema
    written = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    name = schema.name.split("::")[1]
    if len(written) != 1 or (written[0] is not schema.arguments[0] and written[0].name != "self"):
        return None
    if name in ("as_strided_", "resize_", "set_", "resize_as_"):
        return None
    if torch.Tag.nondeterministic_seeded in op.tags or not name.endswith("_") or name.startswith("_"):
        return None
    namespace = getattr(torch.ops, schema.name.split("::")[0])
    packet = getattr(namespace, name[:-1], None)
    return getattr(packet, op._overloadname, None) if packet is not None else None


def written_into(emit: Emit, base: Value, new: Value, view: tuple[Any, tuple[Any, ...], Any, int]) -> Value:
    """The base after one of its views became ``new``.

    Raises:
        CaptureGap: a view that is not undone here.
    """
    op, args, kwargs, out = view
    name = op._schema.name.split("::")[1]
    if name == "select":
        return emit(aten.select_scatter.default, (base, new, *args))[0]
    if name == "unbind":
        dim = args[0] if args else 0
        return emit(aten.select_scatter.default, (base, new, dim, out))[0]
    if name == "slice":
        return emit(aten.slice_scatter.default, (base, new, *args), kwargs)[0]
    if name in ("split", "split_with_sizes"):
        dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        sizes = args[0] if isinstance(args[0], list | tuple) else [args[0]] * (out + 1)
        start = sum(sizes[:out])
        end = start + new.shape[dim]
        return emit(aten.slice_scatter.default, (base, new, dim, start, end))[0]
    if name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "flatten"):
        return emit(aten.reshape.default, (new, list(base.shape)))[0]
    if name in ("detach", "alias"):
        return new
    if name == "t":
        return emit(aten.t.default, (new,))[0]
    if name == "transpose":
        return emit(aten.transpose.int, (new, *args))[0]
    if name == "permute":
        order = [d % len(base.shape) for d in args[0]]
        return emit(aten.permute.default, (new, [order.index(d) for d in range(len(order))]))[0]
    if name == "diagonal":
        return emit(aten.diagonal_scatter.default, (base, new, *args), kwargs)[0]
    if name == "expand" and new.shape == base.shape:
        return new
    raise CaptureGap(f"a write in place through {name}")
