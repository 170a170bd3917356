"""The Python interface: ``jaccli.jacobian``, ``jaccli.plan``, ``jaccli.operator``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.early import refuse_too_large
from jaccli.errors import JaccliError, UnsupportedError, UsageError, note, warn
from jaccli.execution import report, report_path, run
from jaccli.graph.meter import meter
from jaccli.graph.products import Products
from jaccli.layers.entries import close
from jaccli.layers.record import Inputs
from jaccli.layers.resolve import resolve
from jaccli.layers.samples import find_samples
from jaccli.mixing import mixing
from jaccli.models.adapt import as_network
from jaccli.models.network import Network
from jaccli.models.noise import same_noise
from jaccli.names import check_compile, check_count, check_method
from jaccli.operators import JacobianOperator
from jaccli.operators.linear_map import LinearMap
from jaccli.operators.operator import OneOf, Setting
from jaccli.operators.verify import is_odd
from jaccli.planned import Plan
from jaccli.planning import captured, decide
from jaccli.prepare import Pair, Prepared, computing, exact_attention, prepare, readable
from jaccli.sizes import memory_limit
from jaccli.stream import Choice, collect, part, stream
from jaccli.tuning import measured_once, tuned


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
    network, pair, inputs = setup(model, x, source, target, args, kwargs)
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
    network, pair, inputs = setup(model, x, source, target, args, kwargs)
    measured_once(x.device)
    with meter.as_measured():
        with computing(network), exact_attention(choice.exact_attention):
            held, graph, most = inputs.batch, choice.needs_graph, choice.max_memory
            refuse_too_large(network, inputs, [pair], choice.method, most, graph=graph, keep=held)
            (prepared,) = prepare(network, inputs, [pair], graph=graph)
            decision = decide(prepared, choice.method, max_memory=most, chunk=chunk, keep=held)
        decision, replay = tuned(network, pair, choice, decision, inputs, prepared, compile)
    sample = tuple(s for d, s in enumerate(x.shape) if d != inputs.dim)
    if compile and replay is None:
        note(f"{prepared.name}: nothing to compile: {decision.method or 'no method'} is taken")
    return Plan(
        network,
        pair,
        choice,
        decision,
        sample,
        x.dtype,
        x.device,
        prepared.linear.shape,
        inputs.dim,
        replay,
        inputs.args[1:],
        inputs.kwargs,
    )


def _choice(method: str, max_memory: int | str | None, chunk: int | None) -> Choice:
    if chunk is not None:
        check_count("chunk", chunk, ", or None")
    return Choice(check_method(method), memory_limit(max_memory), chunk)


def setup(
    model: Any, x: Tensor, source: str, target: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[Network, Pair, Inputs]:
    """The network, the addresses and the inputs of a call."""
    network = as_network(model)
    pair = (resolve(network, source), resolve(network, target))
    network.tell_doubts()
    inputs = Inputs.of(x, args, kwargs)
    with computing(network), readable(inputs):
        inputs = find_samples(network, inputs, pair)
    return network, pair, Inputs.of(x, args, kwargs, inputs.dim)


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
    network, pair, inputs = setup(model, x, source, target, args, kwargs)
    return linearised(network, pair, inputs.copied())


def linearised(
    network: Network,
    pair: Pair,
    inputs: Inputs,
    quiet: bool = False,
    hold: int = defaults.WORKING_SET,
    set_aside: frozenset[str] = frozenset(),
) -> JacobianOperator:
    """The operator of a pair at these inputs.

    Args:
        network: the model.
        pair: source and target.
        inputs: the samples and further arguments.
        quiet: what is doubtful about it was told before.
        hold: bytes up to which a J that must be taken row by row is kept.
        set_aside: routes that failed on the same samples before.
    """
    with computing(network), exact_attention(True):
        (prepared,) = prepare(network, inputs, [pair])
        u, row = prepared.probe.cotangent, prepared.probe.row
        linear_back = quiet or u is None or row is None or is_odd(prepared.linear, u, row)
    if not quiet:
        report_path(prepared, prepared.name)
        if not linear_back:
            warn("the backward pass is not linear (a clipped or rectified gradient): do not rely on products")
        if prepared.samples_mix:
            warn(mixing(prepared, "each product is of the whole batch's Jacobian, not of each sample's own block"))

    def alone(b: int) -> LinearMap:
        if not prepared.samples_mix:
            with suppress(JaccliError):
                failed = frozenset(made.routes["set aside"])
                single = linearised(network, pair, part(inputs, b, 1), True, hold, failed)
                if _same_alone(single, prepared, b):
                    return single
        return OneOf(made, b)

    setting = Setting(
        _as_it_is(network),
        alone,
        _by_graph(prepared),
        cache(lambda: _by_any_method(prepared)),
        prepared.connected,
        prepared.samples_mix,
        prepared.probe.backward_gap is None,
        hold,
        set_aside,
        quiet,
    )
    made = JacobianOperator(prepared.linear, setting)
    return made


def _same_alone(single: JacobianOperator, prepared: Prepared, b: int) -> bool:
    """Whether sample b has the value and a product alone that it has among all. Cost: two backward passes."""
    linear = prepared.linear
    if not close(single.value, linear.value[b : b + 1], linear.rounding):
        return False
    if linear.live is None or prepared.probe.backward_gap is not None:
        return True
    u = torch.zeros(linear.batch, linear.f.n_out).to(linear.value)
    u[b] = torch.randn(linear.f.n_out, generator=torch.Generator().manual_seed(5)).to(u)
    with computing(linear.f.network), exact_attention(True):
        row = linear.vjp(u)[b : b + 1]
    return close(single.rmatvec(u[b : b + 1]), row, linear.rounding)


def _by_any_method(prepared: Prepared) -> Tensor:
    """J as ``jacobian`` has it, where there are no products.

    Raises:
        UnsupportedError: samples mix, and products are of more than each sample's own block.
    """
    if prepared.samples_mix:
        raise UnsupportedError(
            f"{prepared.name}: no products: samples mix, and neither backward nor forward passes work",
            "expected a model that can be differentiated",
            "jaccli.jacobian has each sample's own block",
        )
    outcome = run(prepared, decide(prepared, "auto", keep=prepared.linear.batch))
    report(prepared, outcome, prepared.name)
    return outcome.matrix


def _by_graph(prepared: Prepared) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None:
    """JV and JᵀU by the derivatives of the network's operators, captured when first asked for."""
    if prepared.samples_mix or not prepared.connected:
        return None

    @cache
    def products() -> Products:
        return Products(captured(prepared))

    return lambda v: products().push(v), lambda u: products().pull(u)


def _as_it_is(network: Network) -> Callable[[], AbstractContextManager[None]]:
    """Sessions in which the network is what it is now: the same noise, the same parameters."""
    noise, stamp = network.noise(), _versions(network)

    @contextmanager
    def session() -> Iterator[None]:
        if _versions(network) != stamp:
            raise UsageError(
                "the model's parameters or buffers have changed since this operator was made",
                "expected the model as it was",
                "make a new operator",
            )
        with same_noise(noise), computing(network), exact_attention(True):
            yield

    return session


def _versions(network: Network) -> list[tuple[int, int]]:
    return [(id(t), 0 if t.is_inference() else t._version) for t in network.tensors()]
