"""One forward pass of a training step, recorded, with rows of J of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from jaccli.activations.record import Inputs
from jaccli.backward_graph.differentiable_rows import Rows
from jaccli.errors import ResourceError
from jaccli.networks.network import Network
from jaccli.planning.linearize import Pair, computing, exact_attention, readable, record_backward
from jaccli.runtime.kernels import unfused
from jaccli.runtime.torch_errors import is_out_of_memory
from jaccli.text.wording import worded

FEWER = worded("give fewer samples at a time, or take {estimator:hutchinson}")


@contextmanager
def training_pass(
    network: Network, pair: Pair, inputs: Inputs, *, wanted: bool, mixes: bool, fused: bool, single: bool = False
) -> Iterator[Rows]:
    """Rows of J of a forward pass.

    Args:
        network: the model.
        pair: source and target.
        inputs: of the pass.
        wanted: gradients of the rows are: the pass is recorded from the parameters on.
        mixes: a sample's target depends on other samples.
        fused: there are recurrent kernels without a second derivative.
        single: rows are taken one by one.

    Raises:
        ResourceError: out of memory.
    """
    source, target = pair
    with ExitStack() as stack:
        stack.enter_context(memory_told())
        stack.enter_context(exact_attention(True))
        stack.enter_context(computing(network, frozen=not wanted))
        if fused:
            stack.enter_context(unfused())
        with readable(inputs):
            taken = record_backward(network, inputs, [source], [target], live=True)
        held = taken.sources[source]
        yield Rows(taken.targets[target].activation, held.raw, held.location.view.columns, mixes, wanted, single)


@contextmanager
def memory_told() -> Iterator[None]:
    """Out of memory as an error that a user can act on.

    Raises:
        ResourceError: out of memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError("out of memory in identity_deviation", "", FEWER) from None
