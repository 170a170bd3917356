"""The first backward pass: whether there is a path, whether samples mix, and whether backward passes work."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from jaccli.autograd.seeds import gaussian
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.planning.linearize.sample_independence import gradient_at_silent_samples
from jaccli.runtime.torch_errors import reason, reraise_out_of_memory


@dataclass(frozen=True)
class AdjointProbe:
    """One backward pass with a random cotangent, zero outside of ``samples``.

    It shows whether there is a path and whether samples mix; later J is compared with its row.

    Args:
        cotangent: u, ``(batch, n_out)``; None where no backward pass was made, or none leads to the source.
        row: Jᵀu, ``(batch, n_in)``; None likewise.
        backward_gap: why there is no backward pass; None where there is one.
        samples: those whose cotangent is not zero: every other one; where samples mix, the first.
    """

    cotangent: Tensor | None = None
    row: Tensor | None = None
    backward_gap: str | None = None
    samples: slice = field(default_factory=lambda: slice(0, None, 2))

    def first_sample(self, linear: LinearizedFunction) -> AdjointProbe:
        """A probe whose row holds the first sample's own block, for samples that mix. Cost: one backward pass."""
        assert self.cotangent is not None
        u = self.cotangent.clone()
        u[1:] = 0  # with more than one sample, the row would hold a sum of blocks of the batch's Jacobian
        return AdjointProbe(u, linear.vjp(u), samples=slice(0, 1))


def probed(linear: LinearizedFunction) -> tuple[AdjointProbe, bool]:
    """The probe of f, and whether samples mix.

    Cost: one backward pass, and one of zeros where samples seem to mix; of two samples one more, and one more again
    where samples mix.
    """
    assert linear.recorded_pass is not None
    if not linear.recorded_pass.target.requires_grad:
        return AdjointProbe(), False
    u = gaussian((linear.batch, linear.f.n_out), 0, linear.value)
    # A gradient at a sample whose cotangent is zero comes from another sample: the samples mix.
    u[1::2] = 0
    try:
        row = linear.vjp_or_none(u)
    except Exception as error:
        reraise_out_of_memory(error)
        return AdjointProbe(backward_gap=reason(error)), False
    if row is None:
        return AdjointProbe(), False
    probe = AdjointProbe(u, row)
    # Of two samples the second may depend on the first, which only its own row shows.
    mix = gradient_at_silent_samples(linear, u, row)
    if not mix and linear.batch == 2:
        mix = gradient_at_silent_samples(linear, u.flip(0), linear.vjp(u.flip(0)))
    return (probe.first_sample(linear) if mix else probe), mix
