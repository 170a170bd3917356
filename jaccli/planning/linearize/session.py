"""The contexts in which a network is run: its modes, torch's modes, and errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.errors import JaccliError, RefusedError, ResourceError
from jaccli.networks.network import Network
from jaccli.runtime.kernels import full_precision
from jaccli.runtime.torch_errors import is_out_of_memory, reason
from jaccli.text.quantities import dtype_name
from jaccli.text.wording import worded


@contextmanager
def exact_attention(enabled: bool) -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no forward mode and no batching rule."""
    if not enabled:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def computing(network: Network, *, frozen: bool = True) -> Iterator[None]:
    """The session in which Jacobians are computed: the network frozen, the caller's gradient mode set aside."""
    with ExitStack() as stack:
        # Tensors that are made in inference mode can never be saved for a backward pass.
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(True))
        stack.enter_context(full_precision())
        stack.enter_context(network.session(frozen=frozen))
        yield
    network.draws.warn()


@contextmanager
def readable(inputs: Inputs) -> Iterator[None]:
    """The errors of the model's own code, from a forward pass, as errors that a user can act on.

    Raises:
        RefusedError: the model refuses the input.
        ResourceError: out of memory.
    """
    try:
        yield
    except JaccliError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"out of memory in the forward pass of {inputs.batch} samples",
                "expected activations that fit",
                worded("take fewer samples at a time ({samples:0:8})"),
            ) from None
        raise RefusedError(
            f"the model refuses this input, {description(inputs.args[0])}: {type(error).__name__}: {reason(error)}",
            "expected samples as the model was trained on, the first dimension counting them",
            worded("check the shape of {x}, {dtype}, and further arguments ({arguments})"),
        ) from error


def description(x: Tensor) -> str:
    """``(8, 3) float32``: the shape of a tensor, and its dtype."""
    return f"{tuple(x.shape)} {dtype_name(x.dtype)}"


def own(inputs: Inputs) -> Inputs:
    """The inputs detached from any graph of the caller, and usable for gradients."""

    def detached(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.clone() if value.is_inference() else value.detach()

    return Inputs(tuple(map(detached, inputs.args)), {k: detached(v) for k, v in inputs.kwargs.items()}, inputs.dim)
