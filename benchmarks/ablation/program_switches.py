"""What can be left out of recorded programs: passes over the instructions, the memory plan, and quick calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ablation.switch import first, nothing, switches
from jaccli.graph.program import codegen, memory_plan, pipeline
from jaccli.graph.program.instructions import Instructions
from jaccli.graph.program.memory_plan import MemoryPlan
from jaccli.graph.trace.tracer import Instruction, Variable, name_of


def _stages_without(name: str) -> tuple[pipeline.Stage, ...]:
    """The pipeline without a pass. It holds the functions themselves: to patch their names would change nothing.

    Raises:
        ValueError: there is no such pass.
    """
    stages = tuple(
        replace(stage, passes=tuple((other, run) for other, run in stage.passes if other != name))
        for stage in pipeline.STAGES
    )
    if stages == pipeline.STAGES:
        raise ValueError(f"no pass {name!r} in the pipeline")
    return stages


def _without_pass(name: str) -> dict[str, Any]:
    return {"graph.program.pipeline.STAGES": _stages_without(name)}


def _no_memory_plan(*_: Any, **__: Any) -> MemoryPlan:
    return MemoryPlan({}, 0, {})


_plan_memory, _lines = memory_plan.plan_memory, codegen._Code._lines


def _without_donation(program: Instructions, has_out: Callable[[Instruction], bool], donate: bool) -> MemoryPlan:
    del donate
    return _plan_memory(program, has_out, donate=False)


def _kept_to_the_end(
    code: codegen._Code, instruction: Instruction, position: int, last: dict[Variable, int], destination: str | None
) -> list[str]:
    return _lines(code, instruction, position, dict.fromkeys(last, sys.maxsize), destination)


def _overload(code: codegen._Code, instruction: Instruction) -> str:
    """The name of the operator's overload; its variant with ``out``, if it has one, is named ``_out``."""
    key = f"{name_of(instruction).replace('::', '_')}_{instruction.op._overloadname}"
    code.namespace[key] = instruction.op
    # A packet would look for the overload at each call, which takes five times as long.
    packet, own = instruction.op.overloadpacket, f"{instruction.op._overloadname}_out"
    for overload in (own, "out"):
        if overload in packet.overloads():
            code.namespace.setdefault(f"{key}_out", getattr(packet, overload))
    return key


def _lines_with_overloads(
    code: codegen._Code, instruction: Instruction, position: int, last: dict[Variable, int], destination: str | None
) -> list[str]:
    first_line, *rest = _lines(code, instruction, position, last, destination)
    key = _overload(code, instruction)
    if destination is not None and f"{key}_out" in code.namespace:
        first_line = first_line.replace(f"{key}(", f"{key}_out(")
    return [first_line, *rest]


_CODE = "graph.program.codegen."

PROGRAM_SWITCHES = switches(
    "program",
    ("copies", "copies and views that look the same, left out", "program/dead_code", _without_pass("copies")),
    ("columns", "narrow constant weights stored by columns", "program/peephole", _without_pass("column-major")),
    ("views", "each view made once", "program/peephole", _without_pass("views")),
    (
        "side-by-side",
        "several weights of one operand in one product",
        "program/horizontal_fusion",
        _without_pass("products"),
    ),
    (
        "stacking",
        "equal operators on independent operands run at once",
        "program/horizontal_fusion",
        _without_pass("stacking"),
    ),
    ("sums", "a product that is only added, as `addcmul`", "program/fusion", _without_pass("sums")),
    ("parts", "parts written to their places, no `cat`", "program/fusion", _without_pass("parts")),
    (
        "onednn",
        "a rival program with oneDNN kernels",
        "program/onednn",
        {"graph.program.pipeline.use_onednn": first},
    ),
    ("output", "the last operator writes into J", "program/codegen", {_CODE + "_maker_of_output": nothing}),
    ("memory-plan", "the static memory plan", "program/memory_plan", {_CODE + "plan_memory": _no_memory_plan}),
    (
        "donation",
        "J as memory for intermediate results until it is written",
        "program/memory_plan",
        {_CODE + "plan_memory": _without_donation},
    ),
    (
        "still-views",
        "views of memory that does not move, made once",
        "program/codegen",
        {_CODE + "_STRIDED": frozenset()},
    ),
    ("let-go", "results dropped after their last use", "program/codegen", {_CODE + "_Code._lines": _kept_to_the_end}),
    (
        "quick-calls",
        "torch's own functions called, not the operators' overloads",
        "program/codegen",
        {_CODE + "_Code.operator": _overload, _CODE + "_Code._lines": _lines_with_overloads},
    ),
)
