"""The Jacobian of a captured graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jaccli.graph.bundle import identity_bundle, matrix
from jaccli.graph.capture import Graph
from jaccli.graph.chain import Bracket, Chain
from jaccli.graph.cuts import active_nodes, stretches
from jaccli.graph.recorder import CaptureGap
from jaccli.graph.sweep import derivatives


# A sweep is tried by the clock when it is predicted to take at most so many times the best bracketing.
NEAR = 2.0


@dataclass
class Engine:
    """A graph with its chain and the bracketing chosen for it."""

    graph: Graph
    chain: Chain
    bracket: Bracket | None

    @property
    def seconds(self) -> float:
        """Predicted, forward pass not included."""
        return self.bracket.seconds if self.bracket is not None else 0.0

    def brackets(self) -> list[Bracket]:
        """The best bracketing and, where they may come near it, all rows back and all columns forward."""
        if self.bracket is None:
            return []
        return [self.bracket, *self.chain.sweeps(within=NEAR * self.bracket.seconds, other_than=self.bracket)]

    def describe(self) -> list[str]:
        """The bracketing, for people."""
        if self.bracket is None:
            return ["nothing to multiply"]
        return self.chain.describe(self.bracket)


def engine(graph: Graph, bracket: Bracket | None = None) -> Engine:
    """Plan for a graph, or take a bracketing that was found for another capture of it.

    Raises:
        CaptureGap: an operator is out of reach.
    """
    nodes = active_nodes(graph.nodes, graph.source, graph.target)
    maps_of = derivatives(nodes)
    cuts, parts = stretches(nodes, graph.source, graph.target, maps_of)
    chain = Chain(cuts, parts, maps_of)
    if not parts:
        return Engine(graph, chain, None)
    fits = bracket is not None and bracket.last == len(parts)
    return Engine(graph, chain, bracket if fits else chain.best())


def jacobian(plan: Engine) -> Tensor:
    """J at the point of the capture, ``(batch, n_out, n_in)``.

    Raises:
        CaptureGap: samples mix.
    """
    source, target = plan.graph.source.tensor, plan.graph.target.tensor
    batch = source.shape[0]
    with torch.no_grad():
        if plan.bracket is None:
            rows = identity_bundle(plan.graph.source.shape, source) if plan.graph.source is plan.graph.target else None
        else:
            rows = plan.chain.run(plan.bracket, source)
        if rows is None:
            return target.new_zeros(batch, target[0].numel(), source[0].numel())
        try:
            found = matrix(rows)
        except ValueError as error:
            raise CaptureGap(str(error)) from None
        # The result is the caller's own: in order, and of no larger tensor.
        mine = rows.fresh and found.is_contiguous() and found.untyped_storage().nbytes() == found.nbytes
        return found if mine else found.clone(memory_format=torch.contiguous_format)
