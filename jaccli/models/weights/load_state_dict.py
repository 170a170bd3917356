"""Step 5, state dict → module: missing names are refused, additional ones are skipped with a note."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from jaccli.errors import RefusedError, UsageError, note, warn
from jaccli.models.weights.state_dict import match_names
from jaccli.networks.cast import cast_in_place
from jaccli.networks.dtypes import floating_dtype, is_whole
from jaccli.networks.tensor_kinds import not_dense
from jaccli.text.escape import listed, nearest, quote, shortened
from jaccli.text.quantities import dtype_name
from jaccli.text.wording import worded

_COMPUTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RIGHT_ARCH = worded("give the {arch}, and {arch_args}, that the file was saved from")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The module's state dict, of tensors of any shape, without extra state that is no tensor."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def load_into(module: nn.Module, state: Mapping[str, Tensor], path: Path | str = "the state dict") -> nn.Module:
    """``module`` with the values of ``state`` copied in, converted to the file's floating dtype.

    The dtype follows the file where all of its floating tensors, and the parts of its complex ones, agree on float16,
    bfloat16, float32 or float64. Notes report what was done about prefixes, additional names and the dtype.

    Raises:
        RefusedError: names are missing, shapes differ, integers stand where numbers are needed, or complex numbers
            where real ones are.
    """
    target = tensors_of(module)
    matched, notes = match_names(state, target, path, lambda value, name: has_shape(value, target[name]))
    _check_shapes(matched, target, path)
    notes += _take_dtype(module, matched, target, path)  # before the copy, which would round to the module's dtype
    matched = {name: _same_rank(value, target.get(name)) for name, value in matched.items()}
    try:
        with torch.no_grad():
            result = module.load_state_dict(matched, strict=False)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise RefusedError(
            f"{quote(path)} does not load into {type(module).__name__}: {shortened(error)}",
            "expected the state dict of this architecture",
            _RIGHT_ARCH,
        ) from None
    counters = [name for name in target.keys() - matched.keys() if _is_counter(name)]
    _check_missing(matched, target, path)
    if counters:
        notes.append(f"num_batches_tracked is missing for {len(counters)} layers, as in old files: harmless")
    extra = [name for name in result.unexpected_keys if not name.endswith("_extra_state")]
    if extra:
        notes.append(f"loaded past {len(extra)} names that the model does not have: {listed(extra)}")
    for text in notes:
        note(f"{Path(path).name}: {text}")
    return module


def fits_into(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether ``load_into`` would accept ``state``, whose tensors may have any shape and be on ``meta``."""
    target = tensors_of(module)
    distinct = {_identity(value) for name, value in target.items() if not _is_counter(name)}
    if len(state) < len(distinct):  # of the cheap tests the one that most candidates fail
        return False
    try:
        matched, _ = match_names(state, target, "", lambda value, name: has_shape(value, target[name]))
    except UsageError:  # it fits under several prefixes
        return True
    if _missing(matched, target):
        return False
    return all(
        has_shape(value, target[name]) and _has_kind(value, target[name])
        for name, value in matched.items()
        if name in target
    )


def _has_kind(value: Tensor, target: Tensor) -> bool:
    if is_whole(target):
        return True
    return not is_whole(value) and (target.is_complex() or not value.is_complex())


def _check_shapes(state: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path | str) -> None:
    wrong = [
        (name, tuple(value.shape), tuple(target[name].shape))
        for name, value in state.items()
        if name in target and not has_shape(value, target[name])
    ]
    if wrong:
        name, shape, expected = wrong[0]
        more = f"; {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
        raise RefusedError(
            f"{quote(path)} does not fit the model: {quote(name, 60)} has shape {shape}",
            f"expected {expected}{more}",
            _RIGHT_ARCH,
        )


def has_shape(value: Tensor, target: Tensor) -> bool:
    """Whether an entry has the shape of the model's tensor, or both are a single number."""
    if is_lazy(target) or value.shape == target.shape:
        return True
    # Before PyTorch 0.4 a single number had one dimension.
    return value.numel() == target.numel() == 1 and value.dim() + target.dim() == 1


def _same_rank(value: Tensor, target: Tensor | None) -> Tensor:
    if target is None or is_lazy(target) or value.shape == target.shape or value.numel() != 1:
        return value
    return value.reshape(target.shape)


def _take_dtype(
    module: nn.Module, state: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path | str
) -> list[str]:
    """Convert the module to the one floating dtype of the file, if there is one."""
    dtypes = set()
    for name, value in state.items():
        if name in target and target[name].layout == torch.strided and (kind := not_dense(value)) is not None:
            raise RefusedError(
                f"{quote(path)} holds {kind[0]} under {quote(name, 60)}", kind[1], "save the weights once more, dense"
            )
        if name in target and not is_whole(target[name]):
            _check_kind(name, value, target[name].dtype, path)
            dtypes.add(floating_dtype([value]))
    own = {floating_dtype([value]) for value in target.values() if not is_whole(value)}
    if len(dtypes) > 1:
        return [f"tensors of {listed(sorted(map(_short, dtypes)))} were converted to the model's own dtype"]
    if not dtypes or dtypes == own or len(own) != 1:
        return []
    (dtype,) = dtypes
    if dtype not in _COMPUTABLE:
        return [f"tensors of {_short(dtype)} were converted to {_short(own.pop())}"]
    cast_in_place(module, None, dtype)
    return [f"the weights are {_short(dtype)}, and so the model computes in {_short(dtype)}"]


def _check_kind(name: str, value: Tensor, dtype: torch.dtype, path: Path | str) -> None:
    if is_whole(value):
        raise RefusedError(
            f"{quote(path)} holds {_short(value.dtype)} under {quote(name, 60)}: a quantised model?",
            f"expected {_short(dtype)}: int8 kernels have no derivative",
            "give the float checkpoint that it was made from, or dequantize the weights",
        )
    if value.is_complex() and not dtype.is_complex:
        raise RefusedError(
            f"{quote(path)} holds {_short(value.dtype)} under {quote(name, 60)}",
            f"expected real numbers: {_short(dtype)}",
            _RIGHT_ARCH,
        )
    if dtype.is_complex and not value.is_complex():
        warn(f"{quote(path)} holds real numbers under {quote(name, 60)}, which are complex: imaginary parts are zero")


def _short(dtype: torch.dtype | None) -> str:
    return dtype_name(dtype)


def _missing(state: Collection[str], target: Mapping[str, Tensor]) -> list[str]:
    """Names that the model needs and ``state`` lacks: no counters, and no second names of a tied tensor."""
    loaded = {_identity(target[name]) for name in state if name in target}
    lacking = [name for name in target if name not in state and not _is_counter(name)]
    return [name for name in lacking if is_lazy(target[name]) or _identity(target[name]) not in loaded]


def _check_missing(state: Mapping[str, Tensor], target: Mapping[str, Tensor], path: Path | str) -> None:
    missing = _missing(state, target)
    if missing:
        near = nearest(missing[0], state)
        raise RefusedError(
            f"{quote(path)} lacks {len(missing)} of the model's {len(target)} tensors: {listed(missing)}",
            f"nearest in the file: {listed(near)}" if near else f"the file has {listed(state)}",
            _RIGHT_ARCH,
        )


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] == "num_batches_tracked"


def _identity(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """What tied weights, which are one tensor under two names, have in common. An empty tensor is tied to none."""
    pointer = tensor.data_ptr() if tensor.numel() else id(tensor)
    return pointer, tuple(tensor.shape), tuple(tensor.stride())
