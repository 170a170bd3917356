"""What an operator does besides computing, read off its schema."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch

aten = torch.ops.aten
Kind = Literal["read", "write", "shape", "random", "view", "plain"]

# Of their tensor argument these take the shape, dtype and device only.
BLIND = frozenset(
    getattr(aten, name)
    for name in ["zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"]
) | {aten.new_empty_strided}

# These change what the tensor object means, and no element.
RELABELLED = frozenset(
    getattr(aten, name) for name in ["transpose_", "t_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_"]
)


@cache
def kind_of(op: Any) -> Kind:
    """Of an overload of an operator.

    Returns:
        ``read``: gives a number out of a tensor. ``write``: in place. ``shape``: the result's hangs on values.
        ``random``: draws. ``view``: the result shares memory with the first argument.
    """
    schema = op._schema
    if op is aten._local_scalar_dense.default:
        return "read"
    if any(a.alias_info is not None and a.alias_info.is_write for a in schema.arguments):
        return "write"
    if torch.Tag.dynamic_output_shape in op.tags:
        return "shape"
    if torch.Tag.nondeterministic_seeded in op.tags:
        return "random"
    first = schema.arguments[0] if schema.arguments else None
    return "view" if first is not None and first.alias_info is not None else "plain"
