"""Build ``jaccli.operator``: the operator of a pair at a point, with all that its products may need.

network, pair, inputs ─► Linearization ─► Setting (sessions, graph products, J itself) ─► JacobianOperator
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.autograd.seeds import gaussian
from jaccli.errors import JaccliError, UnsupportedError, UsageError, warn
from jaccli.graph import Products
from jaccli.linear_maps.agreement import values_agree
from jaccli.linear_maps.linear_map import LinearMap, OneOf
from jaccli.linearization.verify import is_odd
from jaccli.networks.network import Network
from jaccli.networks.state.random_generators import generators_starting_at
from jaccli.planning.decide import decide
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.planning.mixing_message import mixing
from jaccli.run.caveats import report_outcome, report_path
from jaccli.run.execute import run
from jaccli.run.jacobian_operator import JacobianOperator, Product, Session, Setting
from jaccli.run.sample_ranges import take_samples


def build_operator(
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
        quiet: the user was warned before of what is doubtful about it.
        hold: bytes up to which a J that must be taken row by row is kept.
        set_aside: implementations that failed on the same samples before.
    """
    with computing(network), exact_attention(True):
        (linearization,) = linearize(network, inputs, [pair])
        is_linear = quiet or _is_linear(linearization)
    if not quiet:
        _report(linearization, is_linear)

    def alone(b: int) -> LinearMap:
        """The operator of sample b: of that sample alone, where its values are the same as among all."""
        if not linearization.samples_mix:
            with suppress(JaccliError):
                failed = frozenset(operator.routes["set aside"])
                single = build_operator(network, pair, take_samples(inputs, b, 1), True, hold, failed)
                if _same_alone(single, linearization, b):
                    return single
        return OneOf(operator, b)

    setting = Setting(
        _session_as_now(network),
        alone,
        _products_by_graph(linearization),
        last_resort=cache(lambda: _by_any_method(linearization)),
        connected=linearization.connected,
        mixes=linearization.samples_mix,
        backward=linearization.probe.backward_gap is None,
        hold=hold,
        set_aside=set_aside,
        quiet=quiet,
    )
    operator = JacobianOperator(linearization.linear, setting)
    return operator


def _is_linear(linearization: Linearization) -> bool:
    """Whether the backward pass is linear, as far as another multiple of the probe shows. Cost: a backward pass."""
    u, row = linearization.probe.cotangent, linearization.probe.row
    return u is None or row is None or is_odd(linearization.linear, u, row)


def _report(linearization: Linearization, is_linear: bool) -> None:
    """Warn of what is doubtful about products."""
    report_path(linearization)
    if not is_linear:
        warn("the backward pass is not linear (a clipped or rectified gradient): do not rely on products")
    if linearization.samples_mix:
        warn(mixing(linearization, "each product is of the whole batch's Jacobian, not of each sample's own block"))


def _same_alone(single: JacobianOperator, linearization: Linearization, b: int) -> bool:
    """Whether sample b has the value and a product alone that it has among all. Cost: two backward passes."""
    linear = linearization.linear
    if not values_agree(single.value, linear.value[b : b + 1], linear.rounding):
        return False
    if linear.recorded_pass is None or linearization.probe.backward_gap is not None:
        return True
    u = torch.zeros(linear.batch, linear.f.n_out).to(linear.value)
    u[b] = gaussian((linear.f.n_out,), 5, u)
    with computing(linear.f.network), exact_attention(True):
        row = linear.vjp(u)[b : b + 1]
    return values_agree(single.rmatvec(u[b : b + 1]), row, linear.rounding)


def _by_any_method(linearization: Linearization) -> Tensor:
    """J ``(batch, n_out, n_in)`` as ``jacobian`` has it, where there are no products.

    Raises:
        UnsupportedError: samples mix, and products are of more than each sample's own block.
    """
    if linearization.samples_mix:
        raise UnsupportedError(
            f"{linearization.name}: no products: samples mix, and neither backward nor forward passes work",
            "expected a model that can be differentiated",
            "jaccli.jacobian has each sample's own block",
        )
    outcome, linearization = run(linearization, decide(linearization, "auto", keep=linearization.linear.batch))
    report_outcome(linearization, outcome)
    return outcome.matrix


def _products_by_graph(linearization: Linearization) -> tuple[Product, Product] | None:
    """JV and JᵀU by the derivatives of the network's operators, captured when first asked for."""
    if linearization.samples_mix or not linearization.connected:
        return None

    @cache
    def products() -> Products:
        return Products(linearization.captured())

    return lambda v: products().push(v), lambda u: products().pull(u)


def _session_as_now(network: Network) -> Session:
    """Sessions in which the network is what it is now: the same noise, the same parameters."""
    noise, versions = network.generator_states(), _versions(network)

    @contextmanager
    def session() -> Iterator[None]:
        if _versions(network) != versions:
            raise UsageError(
                "the model's parameters or buffers have changed since this operator was made",
                "expected the model as it was",
                "make a new operator",
            )
        with generators_starting_at(noise), computing(network), exact_attention(True):
            yield

    return session


def _versions(network: Network) -> list[tuple[int, int]]:
    """Equal as long as no parameter or buffer was replaced or written into."""
    # ``id`` changes when a parameter is replaced, ``_version`` when it is written into; inference tensors have none.
    return [(id(t), 0 if t.is_inference() else t._version) for t in network.tensors()]
