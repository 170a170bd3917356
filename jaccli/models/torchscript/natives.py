"""Operators on numbers, text, lists and dicts, in plain Python.

They are done natively for two reasons: a list that an operator changes must be the same list
afterwards, and a call through the dispatcher costs ten times a Python one.
"""

from __future__ import annotations

import cmath
import math
import operator
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from jaccli.errors import RefusedError
from jaccli.models.screening.enumerations import DTYPES, check_enumeration
from jaccli.models.torchscript.item_limits import count_items, count_nested
from jaccli.text.escape import quote

if TYPE_CHECKING:
    from jaxtyping import Shaped


def _multiplying(multiply: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Numbers as in TorchScript, which has 64 bits; text and lists not beyond all memory."""

    def product(a: Any, b: Any) -> Any:
        if isinstance(a, (str, list, tuple)) or isinstance(b, (str, list, tuple)):
            items, times = (b, a) if isinstance(a, int) else (a, b)
            count_items(len(items) * times)
        return _whole(multiply(a, b))

    return product


def _adding(add: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def total(a: Any, b: Any) -> Any:
        if isinstance(a, (str, list)):
            count_items(len(a) + len(b))
        return _whole(add(a, b))

    return total


def _padded(how: Callable[..., str]) -> Callable[..., str]:
    def pad(text: str, width: int, *fill: str) -> str:
        count_items(width)
        return how(text, width, *fill)

    return pad


def _expand_tabs(text: str, width: int = 8) -> str:
    count_items(text.count("\t") * width)
    return text.expandtabs(width)


def _replace(text: str, old: str, new: str, most: int = -1) -> str:
    count_items(text.count(old) * len(new))
    return text.replace(old, new, most)


def _join_texts(between: str, texts: list[str]) -> str:
    count_items(len(between) * len(texts) + sum(map(len, texts)))
    return between.join(texts)


def _whole(number: Any) -> Any:
    """A number in the 64 bits of TorchScript's integers, which wrap around; other values as they are."""
    if type(number) is not int or -(1 << 63) <= number < 1 << 63:
        return number
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _walking(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that walks through all that its arguments hold: it prints or compares them."""

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, list | tuple | dict) for value in args):
            count_nested(*args)
        return function(*args, **kwargs)

    return guarded


def _root(number: Any) -> Any:
    if isinstance(number, complex):
        return cmath.sqrt(number)
    return math.sqrt(number) if number >= 0 else math.nan


def _percent(template: str, *values: Any) -> str:
    # TorchScript knows no widths, and "%999999999d" fills the memory.
    if re.search(r"%[^a-zA-Z%]", template):
        _raise("Incomplete format specifier")
    return str(template % (values[0] if len(values) == 1 else values))


def _append(items: list[Any], item: Any) -> list[Any]:
    items.append(item)
    return items


def _extend(items: list[Any], more: Any) -> None:
    count_items(len(more))
    items.extend(more)


def _copied(function: Callable[..., Any]) -> Callable[..., Any]:
    def copied(items: Any) -> Any:
        count_items(len(items))
        return function(items)

    return copied


def _set_item(items: Any, key: Any, value: Any) -> Any:
    items[key] = value
    return items


def _slice(items: Any, start: int | None, end: int | None, step: int) -> Any:
    part = items[start:end:step]
    count_items(len(part))
    return part


def _format(template: str, *values: Any) -> str:
    # Not str.format: a template out of a file could reach into objects with "{0.attribute}".
    parts = template.split("{}")
    texts = [str(v) for v in values] + [""] * len(parts)
    count_items(len(template) + sum(map(len, texts)))
    return "".join(part + text for part, text in zip(parts[:-1], texts, strict=False)) + parts[-1]


def _raise(message: str, *_: Any) -> None:
    raise RefusedError(
        f"the model itself refused the input: {quote(message, 120)}",
        "an input that the model accepts",
    )


def _unwrap(value: Any) -> Any:
    if value is None:
        _raise("Unwrapping null optional")
    return value


def _kind(dtype: int | None) -> torch.dtype | None:
    check_enumeration("aten::tensor", "dtype", dtype, DTYPES)
    return None if dtype is None else DTYPES[dtype]


def _tensor(data: Any, dtype: int | None, device: Any, requires_grad: bool) -> Shaped[torch.Tensor, "..."]:
    return torch.tensor(data, dtype=_kind(dtype), device=device, requires_grad=requires_grad)


def _as_tensor(data: Any, dtype: int | None, device: Any) -> Shaped[torch.Tensor, "..."]:
    return torch.as_tensor(data, dtype=_kind(dtype), device=device)


def _first(value: Any, *_: Any) -> Any:
    return value


def _nothing(*_: Any) -> None:
    return None


def _range_list(length: int) -> list[int]:
    count_items(length)
    return list(range(length))


# Where no argument is a tensor.
SCALARS: dict[str, Callable[..., Any]] = {
    "aten::add": _adding(operator.add),
    "aten::add_": _adding(operator.iadd),
    "aten::sub": lambda a, b: _whole(a - b),
    "aten::mul": _multiplying(operator.mul),
    "aten::div": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::neg": lambda a: _whole(-a),
    "aten::eq": _walking(operator.eq),
    "aten::ne": _walking(operator.ne),
    "aten::lt": _walking(operator.lt),
    "aten::le": _walking(operator.le),
    "aten::gt": _walking(operator.gt),
    "aten::ge": _walking(operator.ge),
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__xor__": operator.xor,
    "aten::Int": int,
    "aten::Float": float,
    "aten::Bool": bool,
    "aten::floor": math.floor,
    "aten::ceil": math.ceil,
    "aten::sqrt": _root,
    "aten::abs": abs,
    "prim::abs": abs,
    "aten::any": any,
    "aten::all": all,
    "aten::device": torch.device,
}

# On any list or dict, whatever it holds.
CONTAINERS: dict[str, Callable[..., Any]] = {
    "aten::append": _append,
    "aten::extend": _extend,
    "aten::insert": lambda items, i, item: items.insert(i, item),
    "aten::pop": lambda items, *key: items.pop(*key),
    "aten::clear": lambda items: items.clear(),
    "aten::reverse": lambda items: items.reverse(),
    "aten::copy": _copied(lambda items: items.copy()),
    "aten::_set_item": _set_item,
    "aten::Delete": operator.delitem,
    "aten::__getitem__": operator.getitem,
    "aten::list": _copied(list),
    "aten::dict": dict,
    "aten::keys": lambda items: list(items.keys()),
    "aten::values": lambda items: list(items.values()),
    "aten::items": lambda items: list(items.items()),
    "aten::popitem": lambda items: items.popitem(),
    "aten::get": lambda items, key, default=None: items.get(key, default),
    "aten::setdefault": lambda items, key, value: items.setdefault(key, value),
    "aten::update": lambda items, more: items.update(more),
    "aten::slice": _slice,
    "aten::select": operator.getitem,
    "aten::add": _adding(operator.add),
    "aten::add_": _adding(operator.iadd),
    "aten::mul": _multiplying(operator.mul),
    "aten::mul_": _multiplying(operator.imul),
}

# Containers of plain values only: with tensors inside these compare values.
PLAIN_CONTAINERS: dict[str, Callable[..., Any]] = {
    "aten::sort": _walking(lambda items, reverse=False: items.sort(reverse=reverse)),
    "aten::sorted": _walking(sorted),
    "aten::remove": _walking(lambda items, item: items.remove(item)),
    "aten::index": _walking(lambda items, item: items.index(item)),
    "aten::count": _walking(lambda items, item: items.count(item)),
    "aten::sum": sum,
}

# Whatever the arguments are.
ALWAYS: dict[str, Callable[..., Any]] = {
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::__contains__": _walking(lambda items, item: item in items),
    "aten::len": len,
    "aten::size.": lambda x: list(x.shape),
    "aten::size.int": torch.Tensor.size,
    "aten::dim": torch.Tensor.dim,
    "aten::__range_length": lambda low, high, step: len(range(low, high, step)),
    "aten::__derive_index": lambda i, start, step: start + i * step,
    "aten::format": _walking(_format),
    "aten::str": _walking(str),
    "aten::center": _padded(str.center),
    "aten::ljust": _padded(str.ljust),
    "aten::rjust": _padded(str.rjust),
    "aten::zfill": _padded(str.zfill),
    "aten::expandtabs": _expand_tabs,
    "aten::replace": _replace,
    "aten::join": _join_texts,
    "aten::percentFormat": _walking(_percent),
    "aten::tensor": _tensor,
    "aten::as_tensor": _as_tensor,
    "aten::_unwrap_optional": _unwrap,
    "aten::wait": _first,
    "aten::warn": _nothing,
    "aten::_print": _nothing,
    "aten::is_grad_enabled": torch.is_grad_enabled,
    "aten::set_grad_enabled": torch._C._set_grad_enabled,
    "prim::Print": _nothing,
    "prim::RaiseException": _raise,
    "prim::unchecked_cast": _first,
    "prim::unchecked_unwrap_optional": _first,
    "prim::tolist": lambda x, *_: x.tolist(),
    "prim::rangelist": _range_list,
    "prim::StringIndex": operator.getitem,
    "prim::TupleIndex": operator.getitem,
    "prim::min": min,
    "prim::max": max,
    "prim::Uninitialized": _nothing,
}
