"""Whether a module tree holds code that is not torch's own, which alone draws from Python's generators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from jaccli.networks.state.random_generators import is_generator

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def has_own_code(module: nn.Module) -> bool:
    """Whether a forward pass may do more than torch's layers do by themselves.

    Cost: about a microsecond a module. ``max_norm`` counts: with it torch rewrites an embedding's weight.
    """
    if nn.modules.module._has_any_global_hook():
        return True
    return any(_is_own(m) for m in module.modules())


def _is_own(module: nn.Module) -> bool:
    held = vars(module)
    if not _is_torch(type(module)) or any(held.get(name) for name in _HOOKS):
        return True
    if held.get("max_norm") is not None:
        return True
    return any(callable(v) and not isinstance(v, nn.Module | type) and not _is_torch(v) for v in held.values())


def _is_torch(thing: Any) -> bool:
    name = getattr(thing, "__module__", None) or ""
    return name.startswith(("torch.nn.", "torch.ao.nn.")) or isinstance(thing, torch.dtype | torch.device)


def held_generators(module: nn.Module, values: Iterable[Any]) -> list[Any]:
    """Generators that a module tree draws from: in attributes, of its classes, and beside its forward functions.

    Args:
        module: the tree.
        values: what its attributes and the containers in them hold.
    """
    found = {id(v): v for v in values if is_generator(v)}
    own = {type(m): m for m in module.modules() if not _is_torch(type(m))}
    for value in _around(own):
        if is_generator(value):
            found[id(value)] = value
    return list(found.values())


def _around(kinds: Mapping[type, nn.Module]) -> Iterator[Any]:
    """Class attributes, and the globals and closures of ``forward``."""
    seen: set[int] = set()
    for kind in kinds:
        for base in kind.__mro__:
            if not _is_torch(base) and base not in (nn.Module, object):
                yield from vars(base).values()
        forward = getattr(kind, "forward", None)
        names = getattr(forward, "__globals__", {})
        if id(names) not in seen:
            seen.add(id(names))
            yield from list(names.values())
        for cell in getattr(forward, "__closure__", None) or ():
            try:
                yield cell.cell_contents
            except ValueError:  # still empty
                continue
