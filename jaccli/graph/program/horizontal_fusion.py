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

from jaccli.graph.program.peephole import PRODUCTS, fixed, made_slot, seen_once, side_by_side, sums_first
from jaccli.graph.trace.tracer import Memory, Slot, Step, contiguous, is_view, made_by, name_of, slots_in, taken

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


def batched(steps: Sequence[Step], kept: Sequence[Slot]) -> list[Step]:
    """The same program with equal small steps run as one.

    Args:
        steps: in order.
        kept: results; what makes their memory is left alone.
    """
    made = [math.prod(out.shape) for step in steps if not is_view(step) for out in step.outputs if out is not None]
    if not FEWEST < len(steps) <= LONGEST or sum(made) > AVERAGE * len(made):
        return list(steps)
    results = {slot.memory for slot in kept}
    steps = side_by_side(sums_first(seen_once(steps, kept), FEWEST, LARGEST), results, LARGEST)
    graph = _Graph(steps, results)
    for key in graph.candidates():
        for members in graph.independent(key):
            graph.merge(members)
    return graph.ordered()


def _same(slot: Slot) -> Hashable:
    """Equal for equal operands: the same memory seen alike, or the same number."""
    tensor = slot.tensor
    if tensor is None or not fixed(slot):
        return id(slot)
    if not slot.shape and not slot.memory.written and tensor.device.type == "cpu":
        return (tensor.item(), tensor.dtype)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, slot.memory.written)


def _key(step: Step, made: set[Slot]) -> tuple[Hashable, list[Slot]] | None:
    """What steps that can be one have in common, and the operands in which they differ; None for other steps."""
    name = name_of(step)
    if step.written or step.many or len(step.outputs) != 1 or step.outputs[0] is None:
        return None
    out = step.outputs[0]
    place = PRODUCTS.get(name)
    if place is None and name not in _ELEMENTWISE:
        return None
    varied: list[Slot] = []
    shared: list[Hashable] = [str(step.op), out.dtype]
    for position, argument in enumerate((*step.args, *step.kwargs.items())):
        own = (
            position == place
            if place is not None
            else (isinstance(argument, Slot) and argument in made and argument.shape == out.shape)
        )
        if own:
            assert isinstance(argument, Slot)
            varied.append(argument)
            shared.append((position, argument.shape[1:] if place is not None else argument.shape, argument.dtype))
        elif isinstance(argument, Slot):
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

    def __init__(self, steps: Sequence[Step], results: set[Memory]) -> None:
        self.groups: list[list[Step]] = [[step] for step in steps]
        self.needs = _needs(steps)
        self.keys: dict[int, tuple[Hashable, list[Slot]]] = {}
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

    def ordered(self) -> list[Step]:
        """The program."""
        return [step for n in self._order() for step in self.groups[n]]


def _needs(steps: Sequence[Step]) -> list[set[int]]:
    """The earlier steps that each needs done: those that make or write what it takes, or take what it writes."""
    maker: dict[Slot, int] = {}
    writer: dict[Memory, int] = {}
    readers: dict[Memory, list[int]] = {}
    found: list[set[int]] = []
    for number, step in enumerate(steps):
        needs: set[int] = set()
        given = taken(step)
        for slot in given:
            if slot in maker:
                needs.add(maker[slot])
            if slot.memory in writer:
                needs.add(writer[slot.memory])
        for slot in step.written:
            needs.update(readers.pop(slot.memory, ()))
            writer[slot.memory] = number
        for slot in given:
            readers.setdefault(slot.memory, []).append(number)
        for out in step.outputs:
            if out is not None:
                maker.setdefault(out, number)
                writer.setdefault(out.memory, number)
        found.append(needs - {number})
    return found


def _as_one(steps: Sequence[Step], varied: Sequence[Sequence[Slot]]) -> list[Step]:
    """Operands stacked, the operator once, and the results as views."""
    first, product = steps[0], name_of(steps[0]) in PRODUCTS
    stacked: dict[Slot, Slot] = {}
    made: list[Step] = []
    for own, *others in zip(*varied, strict=True):
        if own not in stacked:
            stacked[own], step = _stacked([own, *others], product)
            made.append(step)
    args = tuple(stacked.get(a, a) if isinstance(a, Slot) else a for a in first.args)
    outs = [step.outputs[0] for step in steps]
    assert all(out is not None for out in outs)
    rows = [out.shape[0] for out in outs if out is not None]
    like = outs[0]
    assert like is not None
    shape = (sum(rows), *like.shape[1:]) if product else (len(steps), *like.shape)
    whole = made_slot(shape, like.dtype)
    made.append(Step(first.op, args, first.kwargs, [whole], False))
    if product:
        made.append(Step(aten.split_with_sizes.default, (whole, rows), {}, list(outs), True))
    else:
        made.append(Step(aten.unbind.int, (whole,), {}, list(outs), True))
    return made


def _stacked(slots: Sequence[Slot], product: bool) -> tuple[Slot, Step]:
    first = slots[0]
    if product:
        whole = made_slot((sum(s.shape[0] for s in slots), *first.shape[1:]), first.dtype)
        return whole, Step(aten.cat.default, (list(slots),), {}, [whole], False)
    whole = made_slot((len(slots), *first.shape), first.dtype)
    return whole, Step(aten.stack.default, (list(slots),), {}, [whole], False)
