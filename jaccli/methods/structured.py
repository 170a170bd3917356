"""J from the structure of the network: its operator graph, cut, ordered and multiplied out."""

from __future__ import annotations

from jaccli.graph import CaptureGap, capture, jacobian, plan_elimination
from jaccli.methods.base import Method, MethodGap, MethodSelection, MethodTask, SelectionInput
from jaccli.planning.linearize.linearization import Linearization


class Structured(Method):
    """The product of the operators' Jacobians, in the order that is predicted to take the least.

    It uses bottlenecks, diagonals, constant weights, blocks, windows and residual sums of the network.

    Cost: one forward pass to capture f as a graph, and the products that the elimination order names.
    Source: vertex elimination on the computational graph (Griewank and Walther 2008, chapter 9); see ``jaccli.graph``.
    """

    name = "structured"
    needs_plain_attention = True
    recordable = True
    drawback = "a capture and a search, more than so few passes take"
    fallbacks = ("reverse", "loop", "forward")

    def fill(self, task: MethodTask) -> None:
        try:
            structure = task.structure or plan_elimination(capture(task.linear.f), task.bracketing)
            task.out = jacobian(structure)
        except CaptureGap as gap:
            raise MethodGap(str(gap)) from None
        task.linear.passes["forward"] += 1
        task.tick(task.linear.f.n_out)

    def why_not(self, linearization: Linearization) -> str | None:
        return "samples mix in this model" if linearization.samples_mix else None

    def select(self, inputs: SelectionInput) -> MethodSelection:
        """Itself, with the reason in ``others`` where there is no elimination order. Cost: a capture and a search."""
        gap = inputs.linearization.search_structure()
        return MethodSelection(self.name, "asked for", {} if gap is None else {self.name: gap})

    def predict(self, inputs: SelectionInput) -> float | None:
        structure = inputs.linearization.structure
        return structure.seconds if structure is not None else None
