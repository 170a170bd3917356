"""Whether a module tree has code that is not torch's own, and which generators that code can draw from.

Layers of torch alone draw only from torch's generators, change no settings, and write to no parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn

from jaccli.networks.state.random_generators import is_generator

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def has_own_code(module: nn.Module) -> bool:
    """Whether a forward pass may run other code than that of torch's layers, or write to a parameter.

    Cost: about a microsecond a module. ``max_norm`` counts: with it torch writes to an embedding's weight.
    """
    if nn.modules.module._has_any_global_hook():
        return True
    return any(_is_custom(m) for m in module.modules())


def _is_custom(module: nn.Module) -> bool:
    attributes = vars(module)
    if not _is_torch(type(module)) or any(attributes.get(name) for name in _HOOKS):
        return True
    if attributes.get("max_norm") is not None:
        return True
    return any(callable(v) and not isinstance(v, nn.Module | type) and not _is_torch(v) for v in attributes.values())


def _is_torch(thing: Any) -> bool:
    name = getattr(thing, "__module__", None) or ""
    return name.startswith(("torch.nn.", "torch.ao.nn.")) or isinstance(thing, torch.dtype | torch.device)


def own_generators(module: nn.Module, values: Iterable[Any]) -> list[Any]:
    """The generators that a module tree can draw from: in attributes, in its classes, in globals and closures.

    Args:
        module: the tree.
        values: those of its attributes and of the containers in them.
    """
    kinds = dict.fromkeys(type(m) for m in module.modules() if not _is_torch(type(m)))
    return list({id(v): v for v in chain(values, _reachable(kinds)) if is_generator(v)}.values())


def _reachable(kinds: Iterable[type]) -> Iterator[Any]:
    """The attributes of classes, and the globals and closures of their ``forward``."""
    # Globals of a module are looked at once, for all the classes that are defined in it.
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
