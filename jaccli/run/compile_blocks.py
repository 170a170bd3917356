"""Blocks of samples by compiled programs, where a command asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.errors import note
from jaccli.networks.network import Network
from jaccli.planning.decide import Decision
from jaccli.planning.linearize import Linearization, Pair
from jaccli.run.blocks import RunOptions, Stopwatch
from jaccli.run.program_builder import ProgramBuilder
from jaccli.run.program_runner import ProgramRunner


@dataclass
class CompiledBlocks:
    """Compiles one program for each pair and number of samples: what ``stream`` takes as ``override``.

    A last block of another size than those before it is not worth a compilation.
    """

    network: Network
    options: RunOptions
    watch: Stopwatch
    programs: dict[tuple[Pair, int], ProgramRunner | None] = field(default_factory=dict)

    def __call__(
        self, linearization: Linearization, decision: Decision, inputs: Inputs, last: bool
    ) -> Callable[[], Tensor | None] | None:
        """What gives J ``(batch, n_out, n_in)`` of a block; None where it is to be computed without a program."""
        key = (linearization.pair, inputs.batch)
        if key not in self.programs:
            if last and any(pair == linearization.pair for pair, _ in self.programs):
                return None
            self.programs[key] = self._compile(linearization, decision, inputs)
        runner = self.programs[key]
        return None if runner is None else partial(runner.jacobian, inputs)

    def _compile(self, linearization: Linearization, decision: Decision, inputs: Inputs) -> ProgramRunner | None:
        self.watch.compile_s = self.watch.compile_s or 0.0
        if decision.method != "structured" or decision.bracketing is None:
            note(f"{linearization.name}: nothing to compile: {decision.method or 'no method'} is taken")
            return None
        builder = ProgramBuilder(self.network, linearization.pair, self.options, compile=True, timed=False)
        built = builder.build(inputs, decision)
        self.watch.compile_s += builder.compile_s
        self.watch.plan_s -= builder.compile_s
        if built is None:
            note(f"{linearization.name}: nothing to compile: the engine's run cannot be recorded")
            return None
        return built[0]
