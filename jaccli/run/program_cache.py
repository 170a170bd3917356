"""A structured plan at work: a program for each signature of inputs, made once and run from then on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.errors import ResourceError, UsageError, note, warn
from jaccli.graph import Bracketing
from jaccli.networks.state.fingerprint import Fingerprint
from jaccli.planning.decide import Decision
from jaccli.planning.linearize import linearize
from jaccli.run.agreement import compared
from jaccli.run.caveats import report_unchecked
from jaccli.run.program_builder import ProgramBuilder
from jaccli.run.program_runner import ProgramRunner, contiguous
from jaccli.run.signature import Signature, signature
from jaccli.runtime.torch_errors import is_out_of_memory, reason

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass
class ProgramCache:
    """J of further samples by programs; where no program is right, by the decision's method.

    Invariants: a program runs only while the network is what it was when the program was recorded, only on inputs of
    its signature, and only where the model takes the branches that were recorded; at calls 1, 2, 4, 8, … its J is
    compared with a backward pass.

    Attributes:
        builder: makes the programs; it knows the network and the pair.
        decision: computes J where there is no program.
        programs: by the signature of the inputs; None where the program was given up.
        fingerprint: of the network when the programs were recorded.
        groups: of samples, run one after another, for as many samples as the plan was made with.
    """

    builder: ProgramBuilder
    decision: Decision
    programs: dict[Signature, ProgramRunner | None] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None
    groups: int = 1

    def __call__(self, inputs: Inputs) -> Tensor:
        """J of the samples, ``(batch, n_out, n_in)``.

        Raises:
            UsageError: the model takes another branch than it took when the plan was made.
            ResourceError: out of memory.
        """
        fingerprint = self.builder.network.fingerprint()
        if fingerprint != self.fingerprint:
            self.programs.clear()
            self.fingerprint = fingerprint
        inputs = contiguous(inputs)
        key = signature(inputs)
        if key not in self.programs:
            matrix = self.builder.without_program(inputs, self.decision)
            # The oldest goes: dicts keep the order of insertion. Each program holds memory for its results.
            if len(self.programs) >= defaults.PROGRAMS_KEPT:
                self.programs.pop(next(iter(self.programs)))
            self.programs[key] = self._build(inputs, truth=matrix)
            return matrix
        runner = self.programs[key]
        result = self._run(runner, inputs) if runner is not None else None
        if result is None:
            # Given up while the network stays as it is: wrong at one point, it may be wrong at any.
            self.programs[key] = None
            return self.builder.without_program(inputs, self.decision)
        _warn_of_nonfinite(result)
        return result

    def _run(self, runner: ProgramRunner, inputs: Inputs) -> Shaped[Tensor, "batch n_out n_in"] | None:
        """J by a program; None where the program fails, or gives a wrong J, and is to be given up."""
        try:
            matrix, values = runner.run(inputs)
        except Exception as error:
            if is_out_of_memory(error):
                raise ResourceError(
                    f"out of memory in a plan of {inputs.batch} samples", "", "plan for fewer samples at a time"
                ) from None
            note(f"the recorded program fails, and is not used any more: {reason(error)}")
            return None
        # Guards are what the model read out of its activations (``item``, a branch) when the program was recorded.
        for value, recorded in zip(values, runner.guards, strict=True):
            if value.item() != recorded:
                raise UsageError(
                    f"this plan does not fit: taken branch {value.item()!r}",
                    f"expected {recorded!r}: the model reads it out of its activations and goes another way",
                    "make a plan for these samples",
                )
        return matrix if self._is_right(runner, inputs, matrix) else None

    def _is_right(self, runner: ProgramRunner, inputs: Inputs, matrix: Shaped[Tensor, "batch n_out n_in"]) -> bool:
        """Whether J agrees with a backward pass, asked at calls 1, 2, 4, 8, …: rules are wrong at some points only.

        Cost: there, a forward and two backward passes.
        """
        runner.calls += 1
        if runner.calls & (runner.calls - 1):  # not a power of two
            return True
        builder = self.builder
        with builder.options.session(builder.network):
            (linearization,) = linearize(builder.network, inputs, [builder.pair])
            error, unsettled = compared(linearization, matrix)
        if error is None:
            report_unchecked(linearization, unsettled)
            return True
        truth = "a backward pass" if linearization.probe.backward_gap is None else "differences"
        note(f"the recorded program gave a J that is {error:.2g} off {truth}, and is not used any more")
        return False

    def record(self, inputs: Inputs, bracketings: Sequence[Bracketing]) -> float | None:
        """Make a program at the samples of the plan; seconds of a call of it, or None where none is right."""
        self.fingerprint = self.builder.network.fingerprint()
        runner = self._build(inputs, bracketings=bracketings)
        self.programs[signature(inputs)] = runner
        if runner is None:
            return None
        self.groups = runner.groups
        return runner.seconds

    def _build(self, inputs: Inputs, **known: Any) -> ProgramRunner | None:
        """A program for inputs like these, see ``ProgramBuilder.build``; its bracketing becomes the decision's."""
        built = self.builder.build(inputs, self.decision, **known)
        if built is None:
            return None
        runner, bracketing = built
        self.decision = replace(self.decision, bracketing=bracketing)
        return runner

    @property
    def compile_s(self) -> float:
        """Seconds that compiling took."""
        return self.builder.compile_s

    @property
    def kept_bytes(self) -> int:
        """Memory for intermediate results that is kept between calls."""
        return sum(r.kept_bytes for r in self.programs.values() if r is not None)

    def forget(self) -> None:
        """Let go of the memory that is kept between calls; the next call takes it anew."""
        self.builder.pool.clear()
        for runner in self.programs.values():
            if runner is not None:
                runner.buffers.clear()


def _warn_of_nonfinite(matrix: Tensor) -> None:
    """Look for NaN and infinities in J ``(batch, n_out, n_in)``: at all of its elements, or evenly spread."""
    flat = matrix.view(-1)
    seen = flat[:: max(1, -(-flat.numel() // defaults.NAN_CHECK_ELEMENTS))]
    if not bool(torch.isfinite(seen.sum())) and not bool(torch.isfinite(seen).all()):
        warn("J has non-finite values")
