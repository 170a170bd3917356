"""The Python interface: ``jaccli.jacobian``, ``jaccli.plan``, ``jaccli.operator``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from jaccli.errors import ResourceError, UsageError, warn
from jaccli.execution import Outcome, report, run, split
from jaccli.layers.address import Address
from jaccli.layers.record import Inputs
from jaccli.layers.resolve import resolve
from jaccli.methods import METHODS, MethodName
from jaccli.models.adapt import as_network
from jaccli.models.network import Network
from jaccli.operators import JacobianOperator
from jaccli.planning import Decision, check_method, decide, human
from jaccli.prepare import Prepared, computing, exact_attention, prepare


def jacobian(
    model: Any,
    x: Tensor,
    source: str = "input",
    target: str = "output",
    *,
    method: str = "auto",
    max_memory: int | None = None,
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
        max_memory: bytes for J and the passes; a share of the free memory by default.
        chunk: rows or columns that go through the network at once.
        args: further arguments of the model, after ``x``.
        kwargs: further arguments by name.

    Returns:
        ``(batch, n_out, n_in)`` in the dtype and on the device of the target, activations flattened
        in C order; without a gradient graph.

    Cost: one forward pass and two products to prepare and to check, and the method's passes: n_out
    backward or n_in forward ones.

    Raises:
        UsageError: an unknown layer or method, an ambiguous layer.
        RefusedError: the model refuses ``x``.
        UnsupportedError: a layer that is not reached, or that has no derivative.
        ResourceError: J does not fit ``max_memory``.
    """
    return _plan(model, x, source, target, method, max_memory, chunk, args, kwargs, keep=True).first()


def plan(
    model: Any,
    x: Tensor,
    source: str = "input",
    target: str = "output",
    *,
    method: str = "auto",
    max_memory: int | None = None,
    chunk: int | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Plan:
    """Decide how the Jacobian of such samples is obtained; arguments and errors as for ``jacobian``.

    The plan holds nothing that depends on the values of ``x``, only on shapes, dtype and device.
    """
    return _plan(model, x, source, target, method, max_memory, chunk, args, kwargs, keep=False)


@dataclass
class Plan:
    """A decision for one model, pair and shape of sample: ``plan(x)`` gives J, ``str(plan)`` explains."""

    network: Network
    pair: tuple[Address, Address]
    decision: Decision
    sample: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requested: tuple[MethodName, int | None, int | None]
    sizes: tuple[int, int, int]
    _first: tuple[Inputs, Prepared] | None = None

    def __call__(self, x: Tensor, *, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Tensor:
        """J at other samples ``(batch, …)``; any number of them.

        Raises:
            UsageError: the samples differ from the plan's in shape, dtype or device.
        """
        self._check(x)
        return self._run(Inputs((x, *args), dict(kwargs or {}), self.pair[0].dim or 0 if self._at_input else 0), None)

    @property
    def _at_input(self) -> bool:
        return self.pair[0].is_model_input

    def first(self) -> Tensor:
        """J at the samples the plan was made from, whose forward pass is there already."""
        assert self._first is not None
        return self._run(*self._first)

    def _check(self, x: Tensor) -> None:
        for name, got, want in (
            ("sample shape", tuple(x.shape[1:]), self.sample),
            ("dtype", x.dtype, self.dtype),
            ("device", x.device, self.device),
        ):
            if got != want:
                raise UsageError(f"this plan does not fit: {name} {got}", f"expected {want}", "make a plan for it")

    def _run(self, inputs: Inputs, prepared: Prepared | None) -> Tensor:
        method, max_memory, chunk = self.requested
        decision = self.decision
        needed = inputs.batch * decision.result_bytes // max(self.sizes[0], 1)
        if max_memory is not None and needed > max_memory:
            raise ResourceError(f"J needs {human(needed)}", f"expected at most {human(max_memory)} (max_memory)")
        parts: list[Tensor] = []
        with computing(self.network), exact_attention(decision.method in ("reverse", "forward")):
            for _, part in split(inputs, decision.block):
                if prepared is None or decision.block < inputs.batch:
                    (prepared,) = prepare(self.network, part, [self.pair], graph=needs_graph(method))
                outcome = _run_or_plain(prepared, decision)
                report(prepared, outcome, f"{self.pair[0]!s} -> {self.pair[1]!s}")
                parts.append(outcome.matrix)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __str__(self) -> str:
        batch, n_out, n_in = self.sizes
        return explain(f"{self.pair[0]!s} -> {self.pair[1]!s}", (batch, n_out, n_in), self.decision)


def _run_or_plain(prepared: Prepared, decision: Decision) -> Outcome:
    """Run, but for a point where the structural zero of the plan does not hold."""
    if decision.method is None and prepared.connected:
        decision = decide(prepared, "auto")
    return run(prepared, decision)


def needs_graph(method: MethodName) -> bool:
    """Whether the forward pass is recorded for this choice of method."""
    return method != "finite-difference"


def explain(name: str, shape: tuple[int, int, int], decision: Decision) -> str:
    """A plan that a person can read."""
    batch, n_out, n_in = shape
    method = decision.method or "none"
    passes = "no passes"
    if decision.method is not None:
        unit = "backward" if METHODS[decision.method].by == "row" else "forward"
        count = n_out if METHODS[decision.method].by == "row" else n_in
        if decision.method == "finite-difference":
            count, unit = 2 * n_in, "plain forward"
        passes = f"{count} {unit} passes, {min(decision.chunk, count)} at a time"
    lines = [
        f"plan {name}: J is {n_out} x {n_in} for each of {batch} samples ({human(decision.result_bytes)})",
        f"  method   {method}: {decision.why}",
        f"  passes   {passes}",
        f"  memory   {human(decision.peak_bytes)} predicted, {decision.block} samples at a time",
    ]
    if decision.predicted_s is not None:
        lines.append(f"  time     {decision.predicted_s * 1e3:.3g} ms predicted")
    lines += [f"  not {other}: {why}" for other, why in decision.others.items()]
    return "\n".join(lines)


def _plan(
    model: Any,
    x: Tensor,
    source: str,
    target: str,
    method: str,
    max_memory: int | None,
    chunk: int | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    *,
    keep: bool,
) -> Plan:
    chosen = check_method(method)
    if not isinstance(x, Tensor):
        raise UsageError(f"x is a {type(x).__name__}", "expected a torch.Tensor whose first dimension is the samples")
    network = as_network(model)
    pair = (resolve(network, source), resolve(network, target))
    for doubt in network.doubtful():
        warn(doubt)
    inputs = Inputs((x, *args), dict(kwargs or {}), (pair[0].dim or 0) if pair[0].is_model_input else 0)
    with computing(network), exact_attention(chosen in ("auto", "reverse", "forward")):
        (prepared,) = prepare(network, inputs, [pair], graph=needs_graph(chosen))
        decision = decide(prepared, chosen, max_memory=max_memory, chunk=chunk)
    first = (inputs, prepared) if keep else None
    requested = (chosen, max_memory, chunk)
    sample = tuple(x.shape[1:])
    return Plan(network, pair, decision, sample, x.dtype, x.device, requested, prepared.linear.shape, first)


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

    Cost: one recorded forward pass and one backward pass; the operator holds its activations.
    """
    network = as_network(model)
    pair = (resolve(network, source), resolve(network, target))
    for doubt in network.doubtful():
        warn(doubt)
    inputs = Inputs((x, *args), dict(kwargs or {}))
    with computing(network), exact_attention(True):
        (prepared,) = prepare(network, inputs, [pair])
    if prepared.samples_mix:
        warn("samples mix: products sum over what the samples do to each other")
    return JacobianOperator(prepared.linear, lambda: computing(network))
