"""Operators that run graphs: branches, loops, gradient and autocast blocks.

Each takes a ``run(graph, operands) -> outputs`` first and then the node's own arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from jaccli.errors import ResourceError

RunGraph = Callable[[Any, Sequence[Any]], tuple[Any, ...]]

_MAX_STEPS: Final = 1_000_000


def cond(run: RunGraph, predicate: Any, true: Any, false: Any, operands: Sequence[Any] = ()) -> Any:
    """One of two graphs, chosen by a value."""
    return run(true if bool(predicate) else false, operands)


def while_loop(
    run: RunGraph, test: Any, body: Any, carried: Sequence[Any], additional: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """``body`` on the carried values for as long as ``test`` of them holds."""
    values = tuple(carried)
    for _ in range(_MAX_STEPS):
        if not bool(run(test, (*values, *additional))[0]):
            return values
        values = run(body, (*values, *additional))
    raise ResourceError(
        f"a loop of the exported model did not end after {_MAX_STEPS} steps",
        "expected a loop that ends",
        "re-export the model with fewer steps, or try another input",
    )


def map_impl(run: RunGraph, body: Any, mapped: Sequence[Any], operands: Sequence[Any] = ()) -> tuple[Any, ...]:
    """``body`` on each slice of the first dimension, results stacked."""
    return scan(run, body, (), mapped, operands)


def scan(
    run: RunGraph, body: Any, init: Sequence[Any], mapped: Sequence[Any], operands: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """``body`` on a carried state and each slice of the first dimension; the last state, outputs stacked."""
    state, rows = tuple(init), []
    for row in zip(*(value.unbind(0) for value in mapped), strict=True):
        results = run(body, (*state, *row, *operands))
        state = results[: len(init)]
        rows.append(results[len(init) :])
    return (*state, *(torch.stack(column) for column in zip(*rows, strict=True)))


def set_grad_enabled(run: RunGraph, enabled: bool, graph: Any, *operands: Any) -> tuple[Any, ...]:
    """The graph with gradients on or off, as the model itself wrote."""
    with torch.set_grad_enabled(enabled):
        return run(graph, operands)


def autocast(
    run: RunGraph, device: Any, dtype: Any, enabled: bool, cache: Any, graph: Any, *operands: Any
) -> tuple[Any, ...]:
    """The graph with automatic mixed precision."""
    kind = device.type if isinstance(device, torch.device) else str(device)
    with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=bool(cache)):
        return run(graph, operands)


def inline(run: RunGraph, graph: Any, *operands: Any, **_: Any) -> tuple[Any, ...]:
    """The graph as it is: a checkpointed or marked block."""
    packed = len(operands) == 1 and isinstance(operands[0], (tuple, list))
    return run(graph, operands[0] if packed else operands)


def invoke(run: RunGraph, graph: Any, _identifier: Any, *operands: Any) -> tuple[Any, ...]:
    """A graph that is called by name."""
    return run(graph, operands)


CONTROL: Final[dict[str, Callable[..., Any]]] = {
    "cond": cond,
    "while_loop": while_loop,
    "map_impl": map_impl,
    "scan": scan,
    "wrap_with_set_grad_enabled": set_grad_enabled,
    "wrap_with_autocast": autocast,
    "wrap": inline,
    "tag_activation_checkpoint": inline,
    "strict_mode": inline,
    "invoke_subgraph": invoke,
}
INLINE: Final = frozenset({set_grad_enabled, autocast, inline, invoke})
"""Those that run one graph exactly once, on operands that it may write to."""
