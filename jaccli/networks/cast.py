"""Another dtype or device for a module, with everything that it holds in attributes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from jaccli.networks.dtypes import converted
from jaccli.networks.state.snapshot import map_attributes


def cast_in_place(module: nn.Module, device: torch.device | None, dtype: torch.dtype | None) -> None:
    """``converted`` for parameters, buffers, and tensors in plain attributes; tied tensors stay tied.

    Not ``Module.to``, which makes real numbers of complex ones and leaves attributes alone.
    """
    convert = partial(converted, device=device, dtype=dtype)
    done: dict[int, tuple[Tensor, Tensor]] = {}  # keeps the original: its id must not be given to another tensor
    cast: set[int] = set()

    def cast_tree(module: nn.Module) -> None:
        module._apply(convert)
        cast.update(map(id, module.modules()))
        map_attributes(module, cast_value)

    def cast_value(value: Any) -> Any:
        if isinstance(value, nn.Parameter):  # in place: it may be registered as well
            value.data = convert(value.data)
        elif isinstance(value, Tensor):
            return done.setdefault(id(value), (value, convert(value)))[1]
        elif isinstance(value, nn.Module) and id(value) not in cast:
            cast_tree(value)
        elif isinstance(value, tuple):
            items = [cast_value(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value

    cast_tree(module)
