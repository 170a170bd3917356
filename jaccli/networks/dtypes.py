"""A model cast to a floating-point dtype: complex numbers stay complex, and integers keep their dtype."""

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
    """A tensor of any shape on ``device`` and in the ``counterpart`` of its dtype; the tensor itself if both are so.

    Differentiable as ``Tensor.to``, unlike which it never drops an imaginary part.

    Args:
        tensor: of any dtype.
        device: as it is if None.
        dtype: a floating-point one; as it is if None.
        copy: a new tensor in any case.
    """
    return tensor.to(device=device, dtype=counterpart(tensor.dtype, dtype), copy=copy)


def floating_dtype(tensors: Iterable[Tensor]) -> torch.dtype | None:
    """The dtype that a model with these tensors, of any shapes, computes in; None if all hold integers.

    It is that of the first floating-point one; if there is none, that of the parts of the first complex one.
    """
    kinds = [t.dtype for t in tensors]
    real = next((kind for kind in kinds if kind.is_floating_point), None)
    return real or next((kind.to_real() for kind in kinds if kind.is_complex), None)


def renamed(
    before: Mapping[torch.dtype, torch.dtype], tensors: Iterable[Tensor], dtype: torch.dtype | None
) -> dict[torch.dtype, torch.dtype]:
    """Dtypes that the code of a model names → the dtypes that they become if the model is cast.

    Args:
        before: the result for the model that is cast, which may have been cast already.
        tensors: of that model, of any shapes.
        dtype: the new one; nothing changes if None.
    """
    if dtype is None:
        return dict(before)
    real = {t.dtype if t.is_floating_point() else t.dtype.to_real() for t in tensors if not is_whole(t)}
    kinds = (real or {torch.float32}) | {kind for kind in before if kind.is_floating_point}
    complexes = {_COMPLEX[kind] for kind in kinds if kind in _REAL}
    return {kind: counterpart(kind, dtype) for kind in kinds | complexes}


def follows(operator: str, named: torch.dtype, into: torch.dtype, *, constant: bool = False) -> bool:
    """Whether a dtype that code names for an operator (``to``) becomes another one when the model is cast.

    A real one is kept if it may be meant as it stands: a norm that is taken in float32. It is cast for tensors that an
    operator creates: in a trace or an export, that was the dtype of an activation (the first state of a recurrent
    layer). ``arange`` is not cast to a less precise dtype, which would round its numbers. A complex dtype is always
    cast, since it only says that the numbers are complex, and so is that of ``view``, which only reads bytes anew.

    Args:
        operator: its name, without namespace and overload.
        named: the dtype in the code.
        into: the dtype that it becomes if it is cast.
        constant: whether the operator is applied to a constant and not to an activation.
    """
    if named.is_complex or operator == "view":
        return True
    if operator in _COUNTING:
        return torch.finfo(into).eps <= torch.finfo(named).eps
    return operator in _FACTORIES or (constant and operator in ("to", "_to_copy"))


def is_whole(tensor: Tensor) -> bool:
    """Whether a tensor of any shape holds integers or booleans."""
    return not (tensor.is_floating_point() or tensor.is_complex())
