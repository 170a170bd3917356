"""f of a layer pair at the samples, with what choosing a method, running it and checking J need to know."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor

from jaccli.activations.address import Address
from jaccli.autograd.seeds import gaussian
from jaccli.graph import CaptureGap, EliminationPlan, Graph, capture, plan_elimination
from jaccli.linearization.differences import Differences
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.linearization.rounding import Rounding, rounding
from jaccli.names import pair_name
from jaccli.planning.linearize.probe import AdjointProbe
from jaccli.planning.linearize.session import readable
from jaccli.runtime.dispatch import LeftTorch, Within

Pair = tuple[Address, Address]
HIDDEN_PATH = (
    "the target moves with the source, but no gradient flows (detach, no_grad, rounding or an integer between)"
)


@dataclass(frozen=True)
class Linearization:
    """f at a point. Frozen: a correction (``with_mixing_samples``, ``dataclasses.replace``) is a new object.

    What costs passes is computed when it is first asked for, and once: ``rounding``, ``adjoint_checks``,
    ``differences``, and ``structure`` by ``search_structure``. A copy by ``replace`` starts without them.

    Args:
        linear: f there, with its products.
        probe: see ``AdjointProbe``.
        samples_mix: a sample's target depends on other samples.
        why_zero: where no path leads from source to target, and J is zero, what the values say about it; else empty.
        trivial: source and target are the same activation, and J is the identity.
    """

    linear: LinearizedFunction
    probe: AdjointProbe = field(default_factory=AdjointProbe)
    samples_mix: bool = False
    why_zero: str = ""
    trivial: bool = False
    _computed: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def connected(self) -> bool:
        """Whether a path leads from source to target; else J is zero."""
        return not self.why_zero

    @property
    def path_is_hidden(self) -> bool:
        """Whether J is zero by autograd although the target's values depend on the source's."""
        return self.why_zero == HIDDEN_PATH

    @property
    def pair(self) -> Pair:
        """Source and target."""
        return self.linear.f.source.address, self.linear.f.target.address

    @property
    def name(self) -> str:
        """``fc1 -> output``."""
        return pair_name(*self.pair)

    def with_mixing_samples(self) -> Linearization:
        """The same, where samples turned out to mix: its probe holds the first sample's row. Cost: a backward pass."""
        return replace(self, samples_mix=True, probe=self.probe.first_sample(self.linear))

    def captured(self) -> Graph:
        """f as a graph of operators. Cost: a forward pass.

        Raises:
            CaptureGap, LeftTorch: f cannot be captured, or its derivative cannot.
        """
        with Within(dual=False) if self.linear.recorded_pass is None else nullcontext():
            return capture(self.linear.f)

    def search_structure(self) -> str | None:
        """Look for the fastest elimination order, ``structure``; why there is none, or None where there is.

        Done once. Cost: a forward pass and the search.
        """
        if self.structure is not None:
            return None
        if self.samples_mix:
            return "samples mix"
        with readable(self.linear.f.inputs):
            try:
                self._computed["structure"] = plan_elimination(self.captured())
            except (CaptureGap, LeftTorch) as gap:
                return str(gap)
        return None

    @property
    def structure(self) -> EliminationPlan | None:
        """f as a graph with an elimination order, where ``search_structure`` found one."""
        return self._computed.get("structure")

    @cached_property
    def rounding(self) -> Rounding | None:
        """What rounding does to the probe's row, and to that of the other samples where samples do not mix.

        Cost: see ``linearization.rounding``, once. None where the model does not run so, or there is no row.
        """
        u = self.probe.cotangent
        if u is None:
            return None
        return rounding(self.linear, u if self.samples_mix else u + self._other_cotangent(u))

    @property
    def known_rounding(self) -> Rounding | None:
        """``rounding``, where a check asked for it before."""
        return vars(self).get("rounding")

    @cached_property
    def adjoint_checks(self) -> list[tuple[slice, Tensor, Tensor]]:
        """Samples, cotangents ``(batch, n_out)`` and rows ``(batch, n_in)`` of plain backward passes, for checks of J.

        Together they cover all samples, or, where samples mix, the first.

        Cost: one backward pass, once; none where the probe covers all samples. Empty where there is no row.
        """
        u, row = self.probe.cotangent, self.probe.row
        if u is None or row is None:
            return []
        checks = [(self.probe.samples, u, row)]
        if not self.samples_mix and self.linear.batch > 1:
            others = self._other_cotangent(u)
            checks.append((slice(1, None, 2), others, self.linear.vjp(others)))
        return checks

    @property
    def known_rows(self) -> list[Tensor]:
        """Rows of J, ``(samples, n_in)``, at the samples that backward passes were made for so far."""
        probe = self.probe
        checks = [] if probe.row is None else [(probe.samples, probe.cotangent, probe.row)]
        return [row[samples] for samples, _, row in vars(self).get("adjoint_checks", checks)]

    @cached_property
    def differences(self) -> Differences:
        """What J is compared with where there is no backward pass: at the first sample, where samples mix."""
        return Differences(self.linear, slice(0, 1) if self.samples_mix else slice(None))

    def _other_cotangent(self, u: Tensor) -> Tensor:
        """A random cotangent ``(batch, n_out)`` at the samples that u leaves out, zero at the others."""
        drawn = gaussian(u.shape, 2, u)
        drawn[self.probe.samples] = 0
        return drawn
