"""Steps that are one operator together: a product that is only added, a result that only becomes part of another.

``y += a b`` is one pass over y, ``b - a`` needs no ``-a`` first, and what is put side by side with other results
is written there at once. Of small operators the calls cost most, of large ones the passes over memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from jaccli.graph.trace.tracer import AliasSet, Instruction, Variable, contiguous, name_of, roots, taken

aten = torch.ops.aten

# Elementwise operators write into rows with gaps as well as without.
_ELEMENTWISE = frozenset([
    "mul", "add", "sub", "div", "addcmul", "addcdiv", "tanh", "sigmoid", "exp", "neg", "sin", "cos", "sqrt", "rsqrt",
])  # fmt: skip


class _Uses:
    """Who makes, reads and writes what, by the positions of steps; memory of views is that of what they look at."""

    def __init__(self, steps: Sequence[Instruction], kept: Sequence[Variable]) -> None:
        self.makers: dict[Variable, int] = {}
        self.touched: dict[AliasSet, list[int]] = {}
        self.writers: dict[AliasSet, list[int]] = {}
        self._roots = roots(steps)
        for number, step in enumerate(steps):
            given = taken(step)
            for memory in {self.root(variable) for variable in given}:
                self.touched.setdefault(memory, []).append(number)
            for memory in {self.root(variable) for variable in step.written}:
                self.writers.setdefault(memory, []).append(number)
            for out in (out for out in step.outputs if out is not None and out not in given):
                self.makers.setdefault(out, number)
        self.kept = {self.root(variable) for variable in kept}

    def root(self, variable: Variable) -> AliasSet:
        """What a tensor lies in."""
        return self._roots.get(variable.memory, variable.memory)

    def alone(self, variable: Variable, reader: int) -> bool:
        """Whether one step looks at a result, and nothing writes into it."""
        memory = self.root(variable)
        return memory not in self.kept and memory not in self.writers and self.touched.get(memory) == [reader]

    def still(self, variables: Sequence[Variable], first: int, last: int) -> bool:
        """Whether nothing is written into operands between one step and another."""
        return not any(first < n < last for variable in variables for n in self.writers.get(self.root(variable), ()))


def fused(steps: Sequence[Instruction], kept: Sequence[Variable]) -> list[Instruction]:
    """The same program in fewer operators.

    Args:
        steps: in order.
        kept: results; what makes their memory is left alone.
    """
    return _placed(_summed(steps, kept), kept)


def _summed(steps: Sequence[Instruction], kept: Sequence[Variable]) -> list[Instruction]:
    """Products that are only added, as part of the sum; multiples of what is added to, likewise."""
    uses, result = _Uses(steps, kept), list[Instruction | None](steps)
    for number, step in enumerate(steps):
        if name_of(step) not in ("add", "add_") or step.kwargs or len(step.args) != 2:
            continue
        found = _with_product(step, number, result, uses) or _with_multiple(step, number, result, uses)
        if found is not None:
            gone, result[number] = found
            result[gone] = None
    return [step for step in result if step is not None]


def _operands(step: Instruction | None) -> tuple[Variable, Variable] | None:
    """The factors of a product of two tensors of one dtype."""
    if step is None or name_of(step) != "mul" or step.kwargs or step.written or step.outputs[0] is None:
        return None
    a, b = step.args
    if not isinstance(a, Variable) or not isinstance(b, Variable) or not a.dtype == b.dtype == step.outputs[0].dtype:
        return None
    return a, b


def _with_product(
    step: Instruction, number: int, steps: Sequence[Instruction | None], uses: _Uses
) -> tuple[int, Instruction] | None:
    """``y + a b`` as one step, and the step that made ``a b``."""
    y, term = step.args
    pairs = [(y, term)] if name_of(step) == "add_" else [(y, term), (term, y)]
    for other, product in pairs:
        if not isinstance(product, Variable) or not isinstance(other, Variable) or product not in uses.makers:
            continue
        maker = uses.makers[product]
        factors = _operands(steps[maker])
        out = step.outputs[0]
        fits = out is not None and other.shape == product.shape == out.shape and other.dtype == product.dtype
        if factors is None or not fits or not uses.alone(product, number) or not uses.still(factors, maker, number):
            continue
        if step.written and uses.root(other) in map(uses.root, factors):
            continue
        op = aten.addcmul_.default if step.written else aten.addcmul.default
        return maker, replace(step, op=op, args=(other, *factors))
    return None


def _with_multiple(
    step: Instruction, number: int, steps: Sequence[Instruction | None], uses: _Uses
) -> tuple[int, Instruction] | None:
    """``t = k a; t += b`` as ``t = b + k a``, and the step that made ``k a``."""
    t, b = step.args
    if name_of(step) != "add_" or not isinstance(t, Variable) or not isinstance(b, Variable) or t not in uses.makers:
        return None
    maker = uses.makers[t]
    made = steps[maker]
    if made is None or name_of(made) != "mul" or made.kwargs or made.written:
        return None
    a, k = made.args
    if not isinstance(a, Variable) or not isinstance(k, int | float) or not a.dtype == b.dtype == t.dtype:
        return None
    between = [n for n in uses.touched[uses.root(t)] if maker < n < number]
    if a.shape != t.shape or b.shape != t.shape or between or not uses.still([a], maker, number):
        return None
    return maker, Instruction(aten.add.Tensor, (b, a), {"alpha": k}, [t], False)


def _placed(steps: Sequence[Instruction], kept: Sequence[Variable]) -> list[Instruction]:
    """Results that are put side by side made in their places."""
    uses = _Uses(steps, kept)
    places: dict[int, Variable] = {}
    begun: dict[int, list[Instruction]] = {}
    gone: set[int] = set()
    for number, step in enumerate(steps):
        whole = step.outputs[0] if name_of(step) == "cat" and not step.kwargs else None
        if whole is None or uses.root(whole) in uses.kept or not _placeable(step.args[0], whole, number, steps, uses):
            continue
        makers = [uses.makers[part] for part in step.args[0]]
        made, found = _cut(whole, step, steps[min(makers)])
        begun.setdefault(min(makers), []).extend(made)
        places.update(zip(makers, found, strict=True))
        gone.add(number)
    result: list[Instruction] = []
    for number, step in enumerate(steps):
        result.extend(begun.get(number, ()))
        if number in places:
            kwargs = {**step.kwargs, "out": places[number]}
            result.append(Instruction(step.op.overloadpacket.out, step.args, kwargs, [], False, [places[number]]))
        elif number not in gone:
            result.append(step)
    return result


def _placeable(
    parts: Sequence[Variable], whole: Variable, reader: int, steps: Sequence[Instruction], uses: _Uses
) -> bool:
    """Whether all that is put side by side is made by elementwise operators, for this alone."""
    if whole.stride != contiguous(whole.shape) or len(set(parts)) < len(parts):
        return False
    for part in parts:
        if part not in uses.makers or part.dtype != whole.dtype or not uses.alone(part, reader):
            return False
        step = steps[uses.makers[part]]
        if name_of(step) not in _ELEMENTWISE or step.written or not any(s.dtype == whole.dtype for s in taken(step)):
            return False
    return True


def _cut(whole: Variable, step: Instruction, first: Instruction) -> tuple[list[Instruction], list[Variable]]:
    """Steps that make memory for what is put side by side, before its ``first`` part, and the place of each part."""
    parts, dim = step.args[0], step.args[1] % len(whole.shape) if len(step.args) > 1 else 0
    like = next(variable for variable in taken(first) if variable.dtype == whole.dtype)
    whole.memory.written = True
    made, places = [Instruction(aten.new_empty.default, (like, list(whole.shape)), {}, [whole], False)], []
    position = 0
    for part in parts:
        places.append(Variable(whole.memory, None, part.shape, whole.stride, part.dtype))
        end = position + part.shape[dim]
        made.append(Instruction(aten.slice.Tensor, (whole, dim, position, end), {}, [places[-1]], False))
        position = end
    return made, places
