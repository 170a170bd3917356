"""Blocks of samples by compiled programs, where a command asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.errors import note
from jaccli.networks.network import Network
from jaccli.planning.decide import Decision
from jaccli.planning.linearize import Linearization, Pair
from jaccli.run.blocks import Choice, Progress
from jaccli.run.program_cache import ProgramCache
from jaccli.run.program_runner import ProgramRunner


@dataclass
class Compiling:
    """Records and compiles one program for each pair and shape of block; to be called while ``stream`` runs.

    A last block of another shape than those before it is not worth a compilation.
    """

    network: Network
    choice: Choice
    watch: Progress
    programs: dict[tuple[Pair, int], tuple[ProgramCache, ProgramRunner] | None] = field(default_factory=dict)

    def __call__(
        self, linearization: Linearization, decision: Decision, inputs: Inputs, last: bool
    ) -> Callable[[], Tensor | None] | None:
        """What gives J of the block, or None: then it is taken without a program."""
        key = (linearization.pair, inputs.batch)
        started = any(pair == linearization.pair for pair, _ in self.programs)
        if key not in self.programs:
            if last and started:
                return None
            self.programs[key] = self._made(linearization, decision, inputs)
        made = self.programs[key]
        if made is None:
            return None
        replay, recorded = made
        return lambda: replay.replayed(recorded, inputs)

    def _made(
        self, linearization: Linearization, decision: Decision, inputs: Inputs
    ) -> tuple[ProgramCache, ProgramRunner] | None:
        self.watch.compile_s = self.watch.compile_s or 0.0
        if decision.method != "structured" or decision.bracketing is None:
            note(f"{linearization.name}: nothing to compile: {decision.method or 'no method'} is taken")
            return None
        replay = ProgramCache(self.network, linearization.pair, self.choice, decision, compile=True, timed=False)
        recorded = replay.record(inputs)
        self.watch.compile_s += replay.compile_s
        self.watch.plan_s -= replay.compile_s
        if recorded is None:
            note(f"{linearization.name}: nothing to compile: the engine's run cannot be recorded")
            return None
        return replay, recorded
