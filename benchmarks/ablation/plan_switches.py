"""What can be left out of plans and single calls: races, checks, memory for J, and rules that choose a method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ablation.switch import nothing, switches, yes
from jaccli.activations.record import Inputs
from jaccli.graph import Bracketing, EliminationPlan
from jaccli.run.program_runner import ProgramRunner


def _best_predicted(plan: EliminationPlan) -> list[Bracketing]:
    return [plan.bracketing] if plan.bracketing is not None else []


def _timed_with_all_threads(runner: ProgramRunner, inputs: Inputs) -> ProgramRunner:
    return replace(runner, seconds=runner.measure(inputs))


def _as_timed_before(runners: Sequence[ProgramRunner], _inputs: Inputs) -> list[ProgramRunner]:
    return list(runners)


def _new(_pool: Any, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _one_group(_batch: int) -> list[int]:
    return [1]


def _never(*_: Any) -> float:
    return math.inf


def _agrees(*_: Any) -> tuple[None, int]:
    return None, 0


_BUILDER = "run.program_builder."

RACE_SWITCHES = switches(
    "race",
    ("nothing", "nothing: the noise of planning again", "–", {}),
    (
        "brackets",
        "the race of the best bracketing against sweeps and the runner-up, by the clock",
        "run/program_builder",
        {"graph.elimination.accumulate.EliminationPlan.bracketings": _best_predicted},
    ),
    (
        "groups",
        "a recorded program run on groups of samples",
        "run/program_runner",
        {_BUILDER + "groupings": _one_group},
    ),
    (
        "recording",
        "recorded programs as such",
        "run/program_cache",
        {"run.program_cache.ProgramCache.record": nothing},
    ),
    (
        "plain",
        "the race of the program against the method of a single call",
        "run/autotune",
        {"run.autotune._seconds_of_method": _never},
    ),
    (
        "threads",
        "the race of one thread against all",
        "run/program_runner",
        {"run.program_runner.ProgramRunner.with_best_threads": _timed_with_all_threads},
    ),
    (
        "turns",
        "programs near the fastest timed again in turns",
        "run/program_builder",
        {_BUILDER + "_near_the_fastest": _as_timed_before},
    ),
    (
        "second-point",
        "a program verified at a second point",
        "run/program_builder",
        {_BUILDER + "ProgramBuilder._is_right_elsewhere": yes},
    ),
    (
        "call-check",
        "J of calls 1, 2, 4, … compared with a backward pass",
        "run/program_cache",
        {"run.program_cache.ProgramCache._is_right": yes},
    ),
)

CALL_SWITCHES = switches(
    "call",
    (
        "pool",
        "the memory of a J that was let go, used again",
        "program/result_pool",
        {"graph.program.result_pool.Pool.take": _new},
    ),
)

SINGLE_SWITCHES = switches(
    "single",
    ("soon", "the loop at once where it is soon done", "methods/auto", {"defaults.SOON": 0.0}),
    (
        "search-guard",
        "no search where it would outlast the loop",
        "methods/auto",
        {"defaults.ENGINE_OPERATOR_S": 0.0},
    ),
    ("check", "J compared with an independent product", "run/execute", {"run.execute.compared": _agrees}),
)
