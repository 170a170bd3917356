"""The Python interface: ``jaccli.jacobian``, ``jaccli.plan``, ``jaccli.operator``.

Each binds the model and the samples (``planning.bind``) and hands over to ``run``; no decision is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from jaccli.errors import note
from jaccli.names import check_compile, check_count, check_method
from jaccli.planning.bind import bind
from jaccli.planning.early_refusal import refuse_too_large
from jaccli.run.autotune import calibrate_once, tuned_decision
from jaccli.run.blocks import RunOptions, whole_jacobian
from jaccli.run.jacobian_operator import JacobianOperator
from jaccli.run.linear_operator import build_operator
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
        x: the samples, ``(batch, …)``, of any dtype and device that the model takes.
        source: layer name; ``input`` is the model's own.
        target: layer name; ``output`` is the model's own.
        method: ``structured``, ``reverse``, ``forward``, ``loop``, ``replicate``, ``functional`` or
            ``finite-difference``; ``auto`` takes the one that is predicted to be the fastest.
        max_memory: for J and the passes, in bytes or as ``"4GiB"``; a share of the free memory by default.
        chunk: rows or columns that go through the network at once.
        args: further arguments of the model, after ``x``.
        kwargs: further arguments by name.

    Returns:
        ``(batch, n_out, n_in)`` in the dtype and on the device of the target, activations flattened
        in C order; without a gradient graph.

    Cost: one forward pass (two for a model with code of its own), two products that probe and check, and the method's
    passes: n_out backward or n_in forward ones, fewer where the structure of the network allows it.

    Source: the method's formula is in its docstring, in ``jaccli.methods``; J is compared with backward passes.

    Raises:
        UsageError: an unknown layer or method, an ambiguous layer.
        RefusedError: the model refuses ``x``.
        UnsupportedError: a layer that is not reached, or that has no derivative.
        ResourceError: J does not fit ``max_memory``.

    Example:
        >>> import jaccli, torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Softmax(dim=1))
        >>> jaccli.jacobian(model, torch.zeros(1, 2), "0", "output")
        tensor([[[ 0.2500, -0.2500],
                 [-0.2500,  0.2500]]])
    """
    options = _run_options(method, max_memory, chunk)
    network, pair, inputs = bind(model, x, source, target, args, kwargs)
    return whole_jacobian(network, inputs, pair, options)


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

    ``plan(x)`` then gives J ``(batch, n_out, n_in)`` of samples ``(batch, …)`` of the same shape, any number of them.
    With ``compile`` what the engine does goes through ``torch.compile`` (some seconds, which ``str(plan)``
    reports apart); where that fails, it runs uncompiled, and a note says so. What the plan does depends on shapes,
    dtype and device, not on the values of ``x``; the memory that it keeps between calls is overwritten by each. The
    plan holds ``args`` and ``kwargs``, and a call without others uses them, with the values that they have then.

    Cost: that of ``jaccli.jacobian``, and several calls more, by which programs are compared and checked; the first
    plan of a machine also calibrates it, for half a second.

    Example:
        >>> import jaccli, torch
        >>> j = jaccli.plan(torch.nn.Softmax(dim=1), torch.zeros(1, 2), method="reverse")
        >>> print(str(j).splitlines()[0])
        plan input -> output: J is 2 x 2 for one sample (16 B)
        >>> j(torch.zeros(3, 2)).shape
        torch.Size([3, 2, 2])
    """
    options = _run_options(method, max_memory, chunk)
    check_compile(compile, method)
    network, pair, inputs = bind(model, x, source, target, args, kwargs)
    calibrate_once(x.device)
    with options.session(network):
        limit, graph = options.max_memory, options.needs_graph
        refuse_too_large(network, inputs, [pair], options.method, limit, graph=graph, keep=inputs.batch)
    linearization, decision, cache = tuned_decision(network, pair, inputs, options, compile)
    sample = tuple(s for d, s in enumerate(x.shape) if d != inputs.dim)
    if compile and cache is None:
        note(f"{linearization.name}: nothing to compile: {decision.method or 'no method'} is taken")
    return Plan(
        network,
        pair,
        options,
        decision,
        sample,
        x.dtype,
        x.device,
        linearization.linear.shape,
        inputs.dim,
        cache,
        inputs.args[1:],
        inputs.kwargs,
    )


def _run_options(method: str, max_memory: int | str | None, chunk: int | None) -> RunOptions:
    if chunk is not None:
        check_count("chunk", chunk, ", or None")
    return RunOptions(check_method(method), memory_limit(max_memory), chunk)


def operator(
    model: Any,
    x: Tensor,
    source: str = "input",
    target: str = "output",
    *,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> JacobianOperator:
    """J ``(batch, n_out, n_in)`` as a linear map that is never built; arguments and errors as for ``jacobian``.

    Vectors are flat, ``(batch, n_in)`` for Jv and ``(batch, n_out)`` for Jᵀu, and of the target's dtype.

    Cost: one recorded forward pass, and a backward pass that shows whether samples mix; the operator holds the
    activations, and copies of ``x`` and of the tensors in ``args`` and ``kwargs``. The first product of each kind adds
    a few backward passes, which verify it.

    Source: see ``JacobianOperator``.

    Example:
        >>> import jaccli, torch
        >>> j = jaccli.operator(torch.nn.Softmax(dim=1), torch.zeros(1, 2))
        >>> j.rmatvec(torch.tensor([[1.0, 0.0]]))
        tensor([[ 0.2500, -0.2500]])
    """
    network, pair, inputs = bind(model, x, source, target, args, kwargs)
    return build_operator(network, pair, inputs.copied())
