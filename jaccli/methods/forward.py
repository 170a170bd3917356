"""Columns of J by forward-mode passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from jaccli.errors import JaccliError
from jaccli.methods.base import Method, MethodGap, MethodTask, is_out_of_memory, reason, spans
from jaccli.names import MethodName
from jaccli.runtime.kernels import unfused


class Forward(Method):
    """Columns in chunks of Jacobian-vector products, vectorised by vmap.

    Cost: n_in forward passes with tangents in n_in / chunk calls. Where vmap has a gap the columns
    go one by one; where a recurrent layer in one kernel has no forward-mode formula, by its operators.
    """

    name: MethodName = "forward"
    by: Literal["row", "column"] = "column"
    needs_graph = False

    def fill(self, task: MethodTask) -> None:
        gaps: list[str] = []
        for label, columns, context in self._ways(task):
            try:
                with context:
                    self._run(task, columns)
            except JaccliError:
                raise
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                gaps.append(f"{label}: {reason(error)}")
                continue
            task.notes.extend(f"forward mode, {gap}; went on {label}" for gap in gaps[-1:])
            return
        raise MethodGap(f"forward mode has no formula for this model: {gaps[0].split(': ', 1)[1]}")

    def _ways(self, task: MethodTask) -> list[tuple[str, Callable[[Tensor], Tensor], AbstractContextManager[None]]]:
        linear = task.linear

        def one_by_one(seeds: Tensor) -> Tensor:
            return torch.stack([linear.jvp(seed) for seed in seeds])

        ways: list[tuple[str, Callable[[Tensor], Tensor], AbstractContextManager[None]]] = [
            ("vectorised", linear.jvps, nullcontext()),
            ("column by column", one_by_one, nullcontext()),
        ]
        if task.out.device.type != "cpu" or torch.backends.mkldnn.is_available():
            ways.append(("column by column without fused recurrent layers", one_by_one, unfused()))
        return ways

    def _run(self, task: MethodTask, columns: Callable[[Tensor], Tensor]) -> None:
        linear = task.linear
        for group in task.groups():
            for start, stop in spans(linear.f.n_in, task.chunk):
                tangents = columns(task.seeds(start, stop, linear.f.n_in, group))
                task.out[group, :, start:stop] = tangents[:, group].permute(1, 2, 0)
                task.tick(stop - start)
