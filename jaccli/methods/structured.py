"""J from the structure of the network: its operator graph, cut, bracketed and multiplied."""

from __future__ import annotations

from typing import Literal

from jaccli.graph import CaptureGap, capture, jacobian, plan_elimination
from jaccli.methods.base import Method, MethodGap, MethodTask
from jaccli.names import MethodName


class Structured(Method):
    """Bottlenecks, diagonals, constant weights, blocks, windows and residual sums of the network, used.

    Cost: one forward pass to capture f as a graph, and what the plan says; see ``jaccli.graph``.
    """

    name: MethodName = "structured"
    by: Literal["row", "column"] = "row"
    needs_graph = False

    def fill(self, task: MethodTask) -> None:
        if task.samples_mix:
            raise MethodGap("samples mix in this model")
        try:
            task.engine = task.engine or plan_elimination(capture(task.linear.f), task.bracketing)
            task.out = jacobian(task.engine)
        except CaptureGap as gap:
            raise MethodGap(str(gap)) from None
        task.linear.passes["forward"] += 1
        task.tick(task.linear.f.n_out)
