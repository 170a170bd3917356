"""Steps that are one: the same operator on independent operands runs once.

A recurrent network multiplies every time step by the same weight, and so do its rows. Products with one
weight are stacked into one product, and equal elementwise operators into one, wherever none of them needs
another's result. Small steps cost their call and not their work, so there are fewer calls for the same work.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence

import torch

from jaccli.graph.program.peephole import (
    PRODUCTS,
    fixed,
    merge_equal_views,
    merge_products,
    new_variable,
    reassociate_sums,
)
from jaccli.graph.trace.tracer import (
    AliasSet,
    Instruction,
    Variable,
    contiguous,
    is_view,
    made_by,
    name_of,
    slots_in,
    taken,
)

aten = torch.ops.aten

# Larger operands than this are worth a call of their own, in elements.
LARGEST = 2**15
# Where results are larger on average, calls cost little, and another order would keep more of them at a time.
AVERAGE = 2**14
FEWEST = 3
# Elementwise operators are quick to call, and stacking two operands is three calls.
FEWEST_ELEMENTWISE = 8
# Longer programs are left alone: looking for what is independent would take seconds.
LONGEST = 4000
_ELEMENTWISE = frozenset([
    "tanh", "sigmoid", "relu", "exp", "sin", "cos", "neg", "sqrt", "rsqrt", "reciprocal", "addcmul", "mul", "add",
    "sub", "div", "ge", "gt", "le", "lt",
])  # fmt: skip


def batched(steps: Sequence[Instruction], kept: Sequence[Variable]) -> list[Instruction]:
    """The same program with equal small steps run as one.

    Args:
        steps: in order.
        kept: results; what makes their memory is left alone.
    """
    made = [math.prod(out.shape) for step in steps if not is_view(step) for out in step.outputs if out is not None]
    if not FEWEST < len(steps) <= LONGEST or sum(made) > AVERAGE * len(made):
        return list(steps)
    results = {variable.memory for variable in kept}
    steps = merge_products(reassociate_sums(merge_equal_views(steps, kept), FEWEST, LARGEST), results, LARGEST)
    graph = _Graph(steps, results)
    for key in graph.candidates():
        for members in graph.independent(key):
            graph.merge(members)
    return graph.ordered()


def _same(variable: Variable) -> Hashable:
    """Equal for equal operands: the same memory seen alike, or the same number."""
    tensor = variable.tensor
    if tensor is None or not fixed(variable):
        return id(variable)
    if not variable.shape and not variable.memory.written and tensor.device.type == "cpu":
        return (tensor.item(), tensor.dtype)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, variable.memory.written)


def _key(step: Instruction, made: set[Variable]) -> tuple[Hashable, list[Variable]] | None:
    """What steps that can be one have in common, and the operands in which they differ; None for other steps."""
    name = name_of(step)
    if step.written or step.many or len(step.outputs) != 1 or step.outputs[0] is None:
        return None
    out = step.outputs[0]
    place = PRODUCTS.get(name)
    if place is None and name not in _ELEMENTWISE:
        return None
    varied: list[Variable] = []
    shared: list[Hashable] = [str(step.op), out.dtype]
    for position, argument in enumerate((*step.args, *step.kwargs.items())):
        own = (
            position == place
            if place is not None
            else (isinstance(argument, Variable) and argument in made and argument.shape == out.shape)
        )
        if own:
            assert isinstance(argument, Variable)
            varied.append(argument)
            shared.append((position, argument.shape[1:] if place is not None else argument.shape, argument.dtype))
        elif isinstance(argument, Variable):
            shared.append(_same(argument))
        elif any(True for _ in slots_in(argument)):
            return None
        else:
            shared.append(repr(argument))
    small = varied and all(s in made and math.prod(s.shape) <= LARGEST for s in (*varied, out))
    if not small or out.stride != contiguous(out.shape):
        return None
    return tuple(shared), varied


class _Graph:
    """Steps by what they need of each other."""

    def __init__(self, steps: Sequence[Instruction], results: set[AliasSet]) -> None:
        self.groups: list[list[Instruction]] = [[step] for step in steps]
        self.needs = _needs(steps)
        self.keys: dict[int, tuple[Hashable, list[Variable]]] = {}
        made = made_by(steps)
        seen_whole = {s.memory for step in steps if "as_strided" in name_of(step) for s in slots_in(step.args)}
        for number, step in enumerate(steps):
            found = _key(step, made)
            out = step.outputs[0] if step.outputs else None
            if found is not None and out is not None and out.memory not in results | seen_whole:
                self.keys[number] = found

    def candidates(self) -> list[Hashable]:
        """Keys that several steps share."""
        count: dict[Hashable, int] = {}
        for key, _ in self.keys.values():
            count[key] = count.get(key, 0) + 1
        return [key for key, n in count.items() if n >= FEWEST]

    def independent(self, key: Hashable) -> list[list[int]]:
        """Steps of a key in lists within which none needs another."""
        members = [n for n, (k, _) in self.keys.items() if k == key]
        above = self._above()
        levels: dict[int, int] = {}
        for n in sorted(members, key=lambda n: above[n].bit_count()):
            levels[n] = max((levels[m] + 1 for m in levels if above[n] >> m & 1), default=0)
        lists: dict[int, list[int]] = {}
        for n in members:
            lists.setdefault(levels[n], []).append(n)
        fewest = FEWEST if name_of(self.groups[members[0]][0]) in PRODUCTS else FEWEST_ELEMENTWISE
        return [found for found in lists.values() if len(found) >= fewest]

    def _above(self) -> list[int]:
        """All that each step needs, directly or not, as bits."""
        above = [0] * len(self.groups)
        for n in self._order():
            for m in self.needs[n]:
                above[n] |= above[m] | 1 << m
        return above

    def merge(self, members: Sequence[int]) -> None:
        """These steps as one."""
        above = self._above()  # earlier merges may have tied them together
        if any(above[n] >> m & 1 for n in members for m in members):
            return
        first, *rest = members
        varied = [self.keys[n][1] for n in members]
        self.groups[first] = _as_one([self.groups[n][0] for n in members], varied)
        gone = set(rest)
        for n in rest:
            self.needs[first] |= self.needs[n]
            self.groups[n], self.needs[n] = [], set()
            del self.keys[n]
        del self.keys[first]
        for n, needs in enumerate(self.needs):
            if needs & gone:
                self.needs[n] = (needs - gone) | {first}

    def _order(self) -> list[int]:
        """What is needed first, else as it was."""
        missing = [len(needs) for needs in self.needs]
        users: list[list[int]] = [[] for _ in self.groups]
        for n, needs in enumerate(self.needs):
            for m in needs:
                users[m].append(n)
        ready = [n for n, count in enumerate(missing) if not count]
        order = []
        while ready:
            n = heapq.heappop(ready)
            order.append(n)
            for user in users[n]:
                missing[user] -= 1
                if not missing[user]:
                    heapq.heappush(ready, user)
        return order

    def ordered(self) -> list[Instruction]:
        """The program."""
        return [step for n in self._order() for step in self.groups[n]]


def _needs(steps: Sequence[Instruction]) -> list[set[int]]:
    """The earlier steps that each needs done: those that make or write what it takes, or take what it writes."""
    maker: dict[Variable, int] = {}
    writer: dict[AliasSet, int] = {}
    readers: dict[AliasSet, list[int]] = {}
    found: list[set[int]] = []
    for number, step in enumerate(steps):
        needs: set[int] = set()
        given = taken(step)
        for variable in given:
            if variable in maker:
                needs.add(maker[variable])
            if variable.memory in writer:
                needs.add(writer[variable.memory])
        for variable in step.written:
            needs.update(readers.pop(variable.memory, ()))
            writer[variable.memory] = number
        for variable in given:
            readers.setdefault(variable.memory, []).append(number)
        for out in step.outputs:
            if out is not None:
                maker.setdefault(out, number)
                writer.setdefault(out.memory, number)
        found.append(needs - {number})
    return found


def _as_one(steps: Sequence[Instruction], varied: Sequence[Sequence[Variable]]) -> list[Instruction]:
    """Operands stacked, the operator once, and the results as views."""
    first, product = steps[0], name_of(steps[0]) in PRODUCTS
    stacked: dict[Variable, Variable] = {}
    made: list[Instruction] = []
    for own, *others in zip(*varied, strict=True):
        if own not in stacked:
            stacked[own], step = _stacked([own, *others], product)
            made.append(step)
    args = tuple(stacked.get(a, a) if isinstance(a, Variable) else a for a in first.args)
    outs = [step.outputs[0] for step in steps]
    assert all(out is not None for out in outs)
    rows = [out.shape[0] for out in outs if out is not None]
    like = outs[0]
    assert like is not None
    shape = (sum(rows), *like.shape[1:]) if product else (len(steps), *like.shape)
    whole = new_variable(shape, like.dtype)
    made.append(Instruction(first.op, args, first.kwargs, [whole], False))
    if product:
        made.append(Instruction(aten.split_with_sizes.default, (whole, rows), {}, list(outs), True))
    else:
        made.append(Instruction(aten.unbind.int, (whole,), {}, list(outs), True))
    return made


def _stacked(variables: Sequence[Variable], product: bool) -> tuple[Variable, Instruction]:
    first = variables[0]
    if product:
        whole = new_variable((sum(s.shape[0] for s in variables), *first.shape[1:]), first.dtype)
        return whole, Instruction(aten.cat.default, (list(variables),), {}, [whole], False)
    whole = new_variable((len(variables), *first.shape), first.dtype)
    return whole, Instruction(aten.stack.default, (list(variables),), {}, [whole], False)
