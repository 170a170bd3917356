"""From a network, samples and layer pairs to f linearised at the samples: one ``Linearization`` for each pair.

    network, x, pairs ─→ session      the network frozen, gradients on, the caller's modes set aside
                      ─→ recording    one forward pass that records the activations and the gradient graph
                      ─→ probe        one backward pass: is there a path, do samples mix, does it work at all?
                      ─→ Linearization

It exists so that everything that a method needs is known before a method is chosen. A ``Linearization`` is frozen:
what is computed on demand (the structure of f, checks) is computed once and kept inside of it, and a correction is
a new object.
"""

from jaccli.planning.linearize.linearization import Linearization, Pair
from jaccli.planning.linearize.of_pairs import linearize, preview
from jaccli.planning.linearize.probe import AdjointProbe
from jaccli.planning.linearize.recording import record_backward, set_aside
from jaccli.planning.linearize.session import computing, exact_attention, own, readable

__all__ = [
    "AdjointProbe",
    "Linearization",
    "Pair",
    "computing",
    "exact_attention",
    "linearize",
    "own",
    "preview",
    "readable",
    "record_backward",
    "set_aside",
]
