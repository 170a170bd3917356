"""From a network, samples and layer pairs to f linearised at the samples: one ``Linearization`` for each pair.

    network, x, pairs ─→ session        the network frozen, gradients on, the caller's modes set aside
         of_pairs     ─→ recording      one forward pass that records the activations and the gradient graph
                      ─→ repeatability  the same once more, for code of one's own: does it draw numbers?
                      ─→ probe          one backward pass: is there a path, do samples mix, does it work at all?
                          └ sample_independence, by gradients or by values at points ``nearby``
                      ─→ linearization  a ``Linearization`` for each pair

In: a network, ``Inputs`` and pairs of addresses. Out: a ``Linearization`` for each pair, frozen: what is computed on
demand (the structure of f, checks) is computed once and kept inside of it, and a correction is a new object.
Why: everything that a method needs is known before a method is chosen.
"""

from jaccli.planning.linearize.linearization import Linearization, Pair
from jaccli.planning.linearize.of_pairs import linearize, preview
from jaccli.planning.linearize.probe import AdjointProbe
from jaccli.planning.linearize.recording import record_backward, set_aside
from jaccli.planning.linearize.session import computing, detached_inputs, exact_attention, readable

__all__ = [
    "AdjointProbe",
    "Linearization",
    "Pair",
    "computing",
    "detached_inputs",
    "exact_attention",
    "linearize",
    "preview",
    "readable",
    "record_backward",
    "set_aside",
]
