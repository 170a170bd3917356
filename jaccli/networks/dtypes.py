"""What a floating-point dtype means for other tensors: complex numbers stay complex, integers what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_COMPLEX = dict(zip(_REAL, (torch.complex32, torch.complex64, torch.complex64, torch.complex128), strict=True))

_FACTORIES = {
    *("zeros", "ones", "full", "empty", "eye", "scalar_tensor", "tensor", "rand", "randn"),
    *("new_zeros", "new_ones", "new_full", "new_empty"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
}
_COUNTING = {"arange", "linspace"}


def counterpart(kind: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of numbers of ``kind`` in a model that computes in ``dtype``.

    Complex numbers become those whose parts have ``dtype``: float32 ↔ complex64, float64 ↔ complex128, float16 ↔
    complex32 (for which torch lacks many kernels). With bfloat16 they become complex64: torch has a complex bfloat16
    from 2.14 on only, and few kernels for it. Integers and booleans stay what they are.
    """
    if dtype is None:
        return kind
    if kind.is_complex:
        return _COMPLEX[dtype]
    return dtype if kind.is_floating_point else kind


def converted(
    tensor: Tensor, device: torch.device | None = None, dtype: torch.dtype | None = None, *, copy: bool = False
) -> Tensor:
    """A tensor of any shape on ``device`` and in the ``counterpart`` of its dtype; itself if it is so already.

    Differentiable as ``Tensor.to``, unlike which it never drops an imaginary part.

    Args:
        tensor: of any dtype.
        device: as it is if None.
        dtype: a floating-point one; as it is if None.
        copy: a new tensor in any case.
    """
    return tensor.to(device=device, dtype=counterpart(tensor.dtype, dtype), copy=copy)


def floating_dtype(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """The dtype that a model of these tensors computes in: of the first floating-point or complex one; None if none is.

    A complex one stands for the dtype of its parts, unless there are real ones.
    """
    kinds = [t.dtype for t in tensors]
    real = next((kind for kind in kinds if kind.is_floating_point), None)
    return real or next((kind.to_real() for kind in kinds if kind.is_complex), None)


def renamed(
    before: Mapping[torch.dtype, torch.dtype], tensors: Iterable[Tensor], dtype: torch.dtype | None
) -> dict[torch.dtype, torch.dtype]:
    """Dtypes that the code of a model spells out → what they become where the model is cast.

    Args:
        before: the same of the model that is cast, which may have been cast already.
        tensors: of that model.
        dtype: what it is cast to; nothing changes if None.
    """
    if dtype is None:
        return dict(before)
    own = {t.dtype if t.is_floating_point() else t.dtype.to_real() for t in tensors if not is_whole(t)}
    own = (own or {torch.float32}) | {kind for kind in before if kind.is_floating_point}
    complexes = {_COMPLEX[kind] for kind in own if kind in _REAL}
    return {kind: counterpart(kind, dtype) for kind in own | complexes}


def follows(operator: str, named: torch.dtype, into: torch.dtype, *, constant: bool = False) -> bool:
    """Whether a dtype that code spells out for an operator of that name (``to``) is cast with the model.

    A real one may be meant as it stands: a norm that is taken in float32. Of a tensor that is made of nothing it was
    the dtype of an activation, in a trace or an export: the first state of a recurrent layer. Numbers that are
    counted are not rounded for it. A complex one tells real from complex, and its precision is that of its
    surroundings; ``view`` reads the same bytes as other numbers.

    Args:
        operator: its name, without namespace and overload.
        named: the dtype that is spelled out.
        into: what that becomes in the model that is cast.
        constant: whether the operator is given a constant and no activation.
    """
    if named.is_complex or operator == "view":
        return True
    if operator in _COUNTING:
        return torch.finfo(into).eps <= torch.finfo(named).eps
    return operator in _FACTORIES or (constant and operator in ("to", "_to_copy"))


def is_whole(tensor: Tensor) -> bool:
    """Whether it holds integers or booleans."""
    return not (tensor.is_floating_point() or tensor.is_complex())
