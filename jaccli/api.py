"""The Python interface: ``jaccli.jacobian``, ``jaccli.plan``, ``jaccli.operator``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from jaccli.errors import note
from jaccli.graph import meter
from jaccli.names import check_compile, check_count, check_method
from jaccli.planning.bind import bind
from jaccli.planning.decide import decide
from jaccli.planning.early_refusal import refuse_too_large
from jaccli.planning.linearize import computing, exact_attention, linearize
from jaccli.run.autotune import measured_once, tuned
from jaccli.run.blocks import Choice, collect, stream
from jaccli.run.jacobian_operator import JacobianOperator
from jaccli.run.linear_operator import linearised
from jaccli.run.planned import Plan
from jaccli.text.sizes import memory_limit


def jacobian(
    model: Any,
    x: Tensor,
    source: str = "input",
    target: str = "output",
    *,
    method: str = "auto",
    max_memory: int | str | None = None,
    chunk: int | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """The Jacobian of every sample, ``J[b, o, i] = ∂target[b, o] / ∂source[b, i]``.

    Args:
        model: an ``nn.Module``, ``ScriptModule`` or exported module, used in the mode it is in.
        x: the samples, ``(batch, …)``.
        source: layer name; ``input`` is the model's own.
        target: layer name; ``output`` is the model's own.
        method: one of the contract's methods.
        max_memory: for J and the passes, in bytes or as ``"4GiB"``; a share of the free memory by default.
        chunk: rows or columns that go through the network at once.
        args: further arguments of the model, after ``x``.
        kwargs: further arguments by name.

    Returns:
        ``(batch, n_out, n_in)`` in the dtype and on the device of the target, activations flattened
        in C order; without a gradient graph.

    Cost: one forward pass (two of code of one's own) and two products to prepare and to check, and the method's
    passes: n_out backward or n_in forward ones.

    Raises:
        UsageError: an unknown layer or method, an ambiguous layer.
        RefusedError: the model refuses ``x``.
        UnsupportedError: a layer that is not reached, or that has no derivative.
        ResourceError: J does not fit ``max_memory``.
    """
    choice = _choice(method, max_memory, chunk)
    network, pair, inputs = bind(model, x, source, target, args, kwargs)
    return collect(stream(network, inputs, [pair], choice, keep=True), inputs.batch)


def plan(
    model: Any,
    x: Tensor,
    source: str = "input",
    target: str = "output",
    *,
    method: str = "auto",
    max_memory: int | str | None = None,
    chunk: int | None = None,
    compile: bool = False,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Plan:
    """Decide how the Jacobian of such samples is obtained; arguments and errors as for ``jacobian``.

    With ``compile`` what the engine does goes through ``torch.compile`` (some seconds, which ``str(plan)``
    reports apart); where that fails, it runs as it is, and a note says so. What the plan does hangs on shapes,
    dtype and device, not on the values of ``x``; memory that it keeps between calls is written anew at each. ``args``
    and ``kwargs`` are kept, and used again, with the values that they have then, where a call gives no others.
    """
    choice = _choice(method, max_memory, chunk)
    check_compile(compile, method)
    network, pair, inputs = bind(model, x, source, target, args, kwargs)
    measured_once(x.device)
    with meter.as_measured():
        with computing(network), exact_attention(choice.exact_attention):
            held, graph, most = inputs.batch, choice.needs_graph, choice.max_memory
            refuse_too_large(network, inputs, [pair], choice.method, most, graph=graph, keep=held)
            (linearization,) = linearize(network, inputs, [pair], graph=graph)
            decision = decide(linearization, choice.method, max_memory=most, chunk=chunk, keep=held)
        decision, replay = tuned(network, pair, choice, decision, inputs, linearization, compile)
    sample = tuple(s for d, s in enumerate(x.shape) if d != inputs.dim)
    if compile and replay is None:
        note(f"{linearization.name}: nothing to compile: {decision.method or 'no method'} is taken")
    return Plan(
        network,
        pair,
        choice,
        decision,
        sample,
        x.dtype,
        x.device,
        linearization.linear.shape,
        inputs.dim,
        replay,
        inputs.args[1:],
        inputs.kwargs,
    )


def _choice(method: str, max_memory: int | str | None, chunk: int | None) -> Choice:
    if chunk is not None:
        check_count("chunk", chunk, ", or None")
    return Choice(check_method(method), memory_limit(max_memory), chunk)


def operator(
    model: Any,
    x: Tensor,
    source: str = "input",
    target: str = "output",
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> JacobianOperator:
    """J as a linear map that is never built; arguments and errors as for ``jacobian``.

    Cost: one recorded forward pass, and a backward pass that asks whether samples mix; the operator holds the
    activations, and copies of ``x`` and of the tensors in ``args`` and ``kwargs``. The first product of each kind adds
    a few backward passes, which verify it.
    """
    network, pair, inputs = bind(model, x, source, target, args, kwargs)
    return linearised(network, pair, inputs.copied())
