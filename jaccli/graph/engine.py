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


@dataclass
class Engine:
    """A graph with its chain and the bracketing chosen for it."""

    graph: Graph
    chain: Chain
    bracket: Bracket | None


def engine(graph: Graph) -> Engine:
    """Plan for a graph.

    Raises:
        CaptureGap: an operator is out of reach.
    """
    nodes = active_nodes(graph.nodes, graph.source, graph.target)
    maps_of = derivatives(nodes)
    cuts, parts = stretches(nodes, graph.source, graph.target, maps_of)
    chain = Chain(cuts, parts, maps_of)
    return Engine(graph, chain, chain.best() if parts else None)


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
            return matrix(rows)
        except ValueError as error:
            raise CaptureGap(str(error)) from None
