"""``jaccli.operator``: the operator of a pair at a point, with every implementation of its products at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.entry_dimension import close
from jaccli.activations.record import Inputs
from jaccli.errors import JaccliError, UnsupportedError, UsageError, warn
from jaccli.graph import Products
from jaccli.linear_maps.linear_map import LinearMap
from jaccli.linearization.verify import is_odd
from jaccli.networks.network import Network
from jaccli.networks.state.random_generators import same_noise
from jaccli.planning.decide import captured, decide
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.planning.mixing_message import mixing
from jaccli.run.blocks import part
from jaccli.run.execute import report, report_path, run
from jaccli.run.jacobian_operator import JacobianOperator, OneOf, Setting


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
        (linearization,) = linearize(network, inputs, [pair])
        u, row = linearization.probe.cotangent, linearization.probe.row
        linear_back = quiet or u is None or row is None or is_odd(linearization.linear, u, row)
    if not quiet:
        report_path(linearization, linearization.name)
        if not linear_back:
            warn("the backward pass is not linear (a clipped or rectified gradient): do not rely on products")
        if linearization.samples_mix:
            warn(mixing(linearization, "each product is of the whole batch's Jacobian, not of each sample's own block"))

    def alone(b: int) -> LinearMap:
        if not linearization.samples_mix:
            with suppress(JaccliError):
                failed = frozenset(made.routes["set aside"])
                single = linearised(network, pair, part(inputs, b, 1), True, hold, failed)
                if _same_alone(single, linearization, b):
                    return single
        return OneOf(made, b)

    setting = Setting(
        _as_it_is(network),
        alone,
        _by_graph(linearization),
        cache(lambda: _by_any_method(linearization)),
        linearization.connected,
        linearization.samples_mix,
        linearization.probe.backward_gap is None,
        hold,
        set_aside,
        quiet,
    )
    made = JacobianOperator(linearization.linear, setting)
    return made


def _same_alone(single: JacobianOperator, linearization: Linearization, b: int) -> bool:
    """Whether sample b has the value and a product alone that it has among all. Cost: two backward passes."""
    linear = linearization.linear
    if not close(single.value, linear.value[b : b + 1], linear.rounding):
        return False
    if linear.live is None or linearization.probe.backward_gap is not None:
        return True
    u = torch.zeros(linear.batch, linear.f.n_out).to(linear.value)
    u[b] = torch.randn(linear.f.n_out, generator=torch.Generator().manual_seed(5)).to(u)
    with computing(linear.f.network), exact_attention(True):
        row = linear.vjp(u)[b : b + 1]
    return close(single.rmatvec(u[b : b + 1]), row, linear.rounding)


def _by_any_method(linearization: Linearization) -> Tensor:
    """J as ``jacobian`` has it, where there are no products.

    Raises:
        UnsupportedError: samples mix, and products are of more than each sample's own block.
    """
    if linearization.samples_mix:
        raise UnsupportedError(
            f"{linearization.name}: no products: samples mix, and neither backward nor forward passes work",
            "expected a model that can be differentiated",
            "jaccli.jacobian has each sample's own block",
        )
    outcome = run(linearization, decide(linearization, "auto", keep=linearization.linear.batch))
    report(linearization, outcome, linearization.name)
    return outcome.matrix


def _by_graph(linearization: Linearization) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None:
    """JV and JᵀU by the derivatives of the network's operators, captured when first asked for."""
    if linearization.samples_mix or not linearization.connected:
        return None

    @cache
    def products() -> Products:
        return Products(captured(linearization))

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
