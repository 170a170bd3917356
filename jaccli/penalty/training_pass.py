"""One forward pass of a training step, verified_program, with rows of J of it."""

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
    network: Network,
    pair: Pair,
    inputs: Inputs,
    *,
    differentiable: bool,
    mixes: bool,
    fused: bool,
    single: bool = False,
) -> Iterator[Rows]:
    """Record a forward pass; what comes out gives rows of J and products with it.

    Args:
        network: the model.
        pair: source and target.
        inputs: of the pass.
        differentiable: rows are to be differentiated: the pass is recorded from the parameters on.
        mixes: a sample's target depends on other samples.
        fused: there are recurrent kernels without a second derivative.
        single: rows are taken one by one.

    Raises:
        ResourceError: out of memory.
    """
    source, target = pair
    with ExitStack() as stack:
        stack.enter_context(out_of_memory_reported())
        stack.enter_context(exact_attention(True))
        stack.enter_context(computing(network, frozen=not differentiable))
        if fused:  # cuDNN's and oneDNN's recurrent kernels have no second derivative, the operators in them have
            stack.enter_context(unfused())
        with readable(inputs):
            recording = record_backward(network, inputs, [source], [target], live=True)
        start, end = recording.sources[source], recording.targets[target]
        yield Rows(end.activation, start.raw, start.location.view.columns, mixes, differentiable, single)


@contextmanager
def out_of_memory_reported() -> Iterator[None]:
    """A context in which out of memory is an error that a user can act on.

    Raises:
        ResourceError: out of memory.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError("out of memory in identity_deviation", "", FEWER) from None
