"""The passes of the pipeline keep the numbers, whatever else reads or writes the operands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jaccli.graph.program.codegen import generate
from jaccli.graph.program.instructions import Instructions
from jaccli.graph.program.pipeline import STAGES
from jaccli.graph.trace.tracer import Tracer


def added(x: Tensor) -> Tensor:
    y = x.sin()
    y += x.cos() * x[:1]
    return y.exp()


def new_sum(x: Tensor) -> Tensor:
    return (x.sin() + x.cos() * x[:1]).exp()


def other_way_round(x: Tensor) -> Tensor:
    return (x.cos() * x + x.sin()).exp()


def wider(x: Tensor) -> Tensor:
    return (x.sin()[:1] + x.cos() * x).exp()


def looked_at_twice(x: Tensor) -> Tensor:
    term = x.cos() * x
    return (x.sin() + term) / (2 + term.tanh())


def seen_through_a_view(x: Tensor) -> Tensor:
    term = x.cos() * x
    return (x.sin() + term) / (2 + term.t().tanh().t())


def factor_changed(x: Tensor) -> Tensor:
    factor = x.cos()
    term, y = factor * x, x.sin()
    factor.mul_(3)
    y += term
    return y + factor


def own_factor(x: Tensor) -> Tensor:
    y = x.sin()
    y += y.t() * x
    return y.exp()


def merge_products(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), x * x, x.cos()], 1).exp()


def above_each_other(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), x * x.cos()]).exp()


def part_looked_at(x: Tensor) -> Tensor:
    part = x.sin()
    return torch.cat([part, x.cos()], 1).exp().sum(1, keepdim=True) * part


def part_twice(x: Tensor) -> Tensor:
    part = x.sin()
    return torch.cat([part, part], 1).exp()


def part_changed(x: Tensor) -> Tensor:
    part = x.sin()
    whole = torch.cat([part, x.cos()], 1)
    part.mul_(2)
    return whole.exp().sum(1, keepdim=True) * part


def part_of_another_dtype(x: Tensor) -> Tensor:
    return torch.cat([x.float().sin(), x.cos()], 1).exp()


def part_is_a_view(x: Tensor) -> Tensor:
    return torch.cat([x.sin().t(), x.cos()], 1).exp()


def the_result_itself(x: Tensor) -> Tensor:
    return torch.cat([x.sin(), x.cos()], 1)


CASES: list[Callable[[Tensor], Tensor]] = [
    added,
    new_sum,
    other_way_round,
    wider,
    looked_at_twice,
    seen_through_a_view,
    factor_changed,
    own_factor,
    merge_products,
    above_each_other,
    part_looked_at,
    part_twice,
    part_changed,
    part_of_another_dtype,
    part_is_a_view,
    the_result_itself,
]


@pytest.mark.parametrize("static_memory", [True, False], ids=["memory plan", "new memory"])
@pytest.mark.parametrize("f", CASES, ids=[f.__name__ for f in CASES])
def test_every_pass_keeps_the_numbers(f: Callable[[Tensor], Tensor], static_memory: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 4, dtype=torch.float64)
    tracer = Tracer()
    variable = tracer.adopt(x, True)
    with torch.no_grad(), tracer:
        result = f(x)
    instructions = Instructions(tracer.instructions, [variable], [tracer.variable_of(result)])
    for stage in STAGES:
        for _, run in stage.passes:
            instructions = run(instructions)
    program = generate(instructions, static_memory)
    for seed in (1, 2):
        torch.manual_seed(seed)
        y = torch.randn(4, 4, dtype=torch.float64)
        out = torch.empty(result.numel(), dtype=torch.float64) if program.fills_output else None
        with torch.no_grad():
            (value,) = program.run([y], out, program.buffers(y.device))
            torch.testing.assert_close(value, f(y), rtol=1e-14, atol=1e-14)
