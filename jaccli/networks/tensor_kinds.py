"""The tensors that have no Jacobian, and why: J takes dense tensors of floating-point numbers, sample by sample."""

from __future__ import annotations

import torch
from torch import Tensor

from jaccli.text.quantities import dtype_name

# For an error message: what the tensor is, what was expected, and what to do.
Reason = tuple[str, str, str]

_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BEFORE = "choose a layer before or after it"


def not_dense(tensor: Tensor) -> Reason | None:
    """Why a tensor of any shape is not dense, or has no values; None if it is dense and has values."""
    if tensor.is_nested:
        return "a nested tensor, whose samples have shapes of their own", "expected a dense tensor", _BEFORE
    if tensor.is_meta:
        return "a tensor on the meta device, which has no values", "expected a tensor with values", _BEFORE
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.").removesuffix("._mkldnn").strip("_")
        name = "an mkldnn" if "mkldnn" in layout else f"a sparse ({layout.removeprefix('sparse_')})"
        return (
            f"{name} tensor",
            "expected a dense one, whose numbers all have a place",
            f"{_BEFORE}, or one of to_dense()",
        )
    if tensor.is_quantized:
        kind = dtype_name(tensor.dtype)
        expected = "expected floating-point ones: kernels of whole numbers have no derivative"
        return f"quantized values ({kind})", expected, f"{_BEFORE}, or the model before it was quantized"
    return None


def obstacle(tensor: Tensor) -> Reason | None:
    """Why a tensor of any shape cannot be source or target of J; None if it can."""
    if (reason := not_dense(tensor)) is not None:
        return reason
    kind = dtype_name(tensor.dtype)
    if tensor.dtype in _COMPUTED:
        return None
    if tensor.is_floating_point():
        return (
            f"{kind} values, a format that numbers are stored in and not computed with",
            "expected float16, bfloat16, float32 or float64",
            f"{_BEFORE}, where it is converted",
        )
    if tensor.is_complex():
        return f"{kind} values", "expected real ones", f"{_BEFORE}, as their real or imaginary part"
    return (
        f"{kind} values, and {kind} has no derivative",
        "expected a floating-point activation: J is a limit of ever smaller steps",
        "choose a layer after it, as the output of an embedding, or give samples as floats",
    )


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape; of a nested one the number of tensors in it, as ``(n,)``."""
    return (int(tensor.size(0)),) if tensor.is_nested else tuple(tensor.shape)
