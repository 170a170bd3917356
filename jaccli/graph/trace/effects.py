"""What an operator does besides computing, read off its schema."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch

aten = torch.ops.aten
Effect = Literal["read", "write", "shape", "random", "view", "none"]

# Of their tensor argument these use the shape, dtype and device only, so that the result does not depend on it.
BLIND = frozenset(
    getattr(aten, name)
    for name in ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
) | {aten.new_empty_strided}
# These change shape and strides of the tensor object in place, and no element.
RELABELLING = frozenset((aten.transpose_, aten.t_, aten.squeeze_, aten.unsqueeze_, aten.swapaxes_, aten.swapdims_))


@cache
def effect_of(op: Any) -> Effect:
    """What an overload of an operator does besides computing.

    Returns:
        ``read``: turns a tensor into a Python number. ``write``: in place. ``shape``: the shape of the result depends
        on values. ``random``: draws. ``view``: the result shares memory with the first argument.
    """
    schema = op._schema
    if op is aten._local_scalar_dense.default:
        return "read"
    # Asked before the next two: an operator in place that draws, or whose result has a shape that depends on values,
    # is a write too.
    if any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments):
        return "write"
    if torch.Tag.dynamic_output_shape in op.tags:
        return "shape"
    if torch.Tag.nondeterministic_seeded in op.tags:
        return "random"
    # What is written is left out above. The operators that remain and have an alias annotation are views, and these
    # alias their first argument.
    first = schema.arguments[0] if schema.arguments else None
    return "view" if first is not None and first.alias_info is not None else "none"
