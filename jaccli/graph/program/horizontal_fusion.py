"""Horizontal fusion: the same operator on independent operands runs once.

A recurrent network multiplies every time step by the same weight, and so do the rows of its Jacobian. Products with
one weight are stacked into one product, equal elementwise operators into one, wherever none of them needs another's
result; products of one operand with several weights become one product with the weights side by side. The work stays
the same, in fewer calls.

Invariant: instructions are merged only if none needs another, directly or not. What an instruction needs is what makes
or writes its operands, and what reads the memory that it writes (``_needs``).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Sequence

import torch

from jaccli.graph.program import call_overhead
from jaccli.graph.program.instructions import PRODUCTS, Instructions, fixed, new_constant, new_variable
from jaccli.graph.trace.ir import items_in
from jaccli.graph.trace.tracer import AliasSet, Instruction, Variable, contiguous, made_by, name_of, operands

aten = torch.ops.aten

# Elementwise operators are quick to call, and stacking two operands is three calls.
FEWEST_ELEMENTWISE = 8
_ELEMENTWISE = frozenset([
    "tanh", "sigmoid", "relu", "exp", "sin", "cos", "neg", "sqrt", "rsqrt", "reciprocal", "addcmul", "mul", "add",
    "sub", "div", "ge", "gt", "le", "lt",
])  # fmt: skip


def merge_products(program: Instructions) -> Instructions:
    """Multiply one operand ``(m, k)`` by all its constant weights ``(k, n_i)`` at once: ``(m, Σ n_i)``, then split."""
    computed, results = made_by(program.body), program.result_memory
    groups: dict[tuple[Variable, int], list[Instruction]] = {}
    writes: dict[AliasSet, int] = {}
    for instruction in program.body:
        for variable in instruction.written:
            writes[variable.memory] = writes.get(variable.memory, 0) + 1
        # Products of one operand are merged only if it holds the same values: between two writes into its memory.
        x, weight = instruction.args[:2] if len(instruction.args) > 1 else (None, None)
        if name_of(instruction) != "mm" or not isinstance(x, Variable) or x not in computed or not fixed(weight):
            continue
        out = instruction.outputs[0]
        if out is not None and out.memory not in results and math.prod(out.shape) <= call_overhead.LARGEST:
            groups.setdefault((x, writes.get(x.memory, 0)), []).append(instruction)
    replaced: dict[Instruction, list[Instruction]] = {}
    for (x, _), products in groups.items():
        if len(products) > 1:
            replaced |= {product: [] for product in products} | {products[0]: _side_by_side(x, products)}
    return program.with_body(new for old in program.body for new in replaced.get(old, [old]))


def _side_by_side(x: Variable, products: Sequence[Instruction]) -> list[Instruction]:
    weight = new_constant(torch.cat([product.args[1].tensor for product in products], 1))
    whole = new_variable((x.shape[0], weight.shape[1]), x.dtype)
    widths, outs = [p.args[1].shape[1] for p in products], [p.outputs[0] for p in products]
    return [
        Instruction(aten.mm.default, (x, weight), {}, [whole], False),
        Instruction(aten.split_with_sizes.default, (whole, widths, 1), {}, outs, True),
    ]


def stack_equal_operators(program: Instructions) -> Instructions:
    """Run equal small operators on independent operands as one operator on the stacked operands."""
    graph = _DependenceGraph(program)
    for key in graph.candidates():
        for members in graph.independent(key):
            graph.merge(members)
    return program.with_body(graph.ordered())


def _identity(variable: Variable) -> Hashable:
    """Equal for equal operands: the same memory in the same layout, or the same number."""
    tensor = variable.tensor
    if tensor is None or not fixed(variable):
        return id(variable)
    if not variable.shape and not variable.memory.written and tensor.device.type == "cpu":
        return (tensor.item(), tensor.dtype)
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, variable.memory.written)


# What instructions have in common that can run as one, and the operands in which they differ.
_Key = tuple[Hashable, list[Variable]]


def _key(instruction: Instruction, computed: set[Variable]) -> _Key | None:
    """The key of an instruction; None where it cannot be stacked."""
    name = name_of(instruction)
    out = instruction.outputs[0] if len(instruction.outputs) == 1 else None
    product = PRODUCTS.get(name)
    if out is None or instruction.written or instruction.many or (product is None and name not in _ELEMENTWISE):
        return None
    different: list[Variable] = []
    shared: list[Hashable] = [str(instruction.op), out.dtype]
    for position, argument in enumerate((*instruction.args, *instruction.kwargs.items())):
        if not isinstance(argument, Variable):
            if items_in(argument, Variable):
                return None
            shared.append(repr(argument))
        elif position == product or (product is None and argument in computed and argument.shape == out.shape):
            different.append(argument)
            shared.append((position, argument.shape if product is None else argument.shape[1:], argument.dtype))
        else:
            shared.append(_identity(argument))
    small = all(v in computed and math.prod(v.shape) <= call_overhead.LARGEST for v in (*different, out))
    return (tuple(shared), different) if different and small and out.stride == contiguous(out.shape) else None


class _DependenceGraph:
    """Instructions by what they need of each other; merged ones stand at the place of the first.

    ``groups[n]``: the instructions that stand at position n; ``needs[n]``: the positions that must run before.
    """

    def __init__(self, program: Instructions) -> None:
        self.groups: list[list[Instruction]] = [[instruction] for instruction in program.body]
        self.needs = _needs(program.body)
        self.keys: dict[int, _Key] = {}
        computed = made_by(program.body)
        # ``as_strided`` counts from the start of a storage, which stacking would move.
        fixed_storage = {
            v.memory for i in program.body if "as_strided" in name_of(i) for v in items_in(i.args, Variable)
        }
        left_alone = program.result_memory | fixed_storage
        for position, instruction in enumerate(program.body):
            key = _key(instruction, computed)
            out = instruction.outputs[0] if instruction.outputs else None
            if key is not None and out is not None and out.memory not in left_alone:
                self.keys[position] = key

    def candidates(self) -> list[Hashable]:
        """Keys that several instructions share."""
        count: dict[Hashable, int] = {}
        for key, _ in self.keys.values():
            count[key] = count.get(key, 0) + 1
        return [key for key, n in count.items() if n >= call_overhead.FEWEST]

    def independent(self, key: Hashable) -> list[list[int]]:
        """The instructions of a key in lists within which none needs another."""
        members = [n for n, (other, _) in self.keys.items() if other == key]
        above = self._above()
        # An instruction's level is one more than the highest level of the members that it needs, directly or not, so
        # that two of one level never need each other. Whoever needs another needs more than it: sorted by the number
        # of instructions that each needs, a member comes after all those it needs.
        levels: dict[int, int] = {}
        for n in sorted(members, key=lambda n: above[n].bit_count()):
            levels[n] = max((levels[m] + 1 for m in levels if above[n] >> m & 1), default=0)
        lists: dict[int, list[int]] = {}
        for n in members:
            lists.setdefault(levels[n], []).append(n)
        is_product = name_of(self.groups[members[0]][0]) in PRODUCTS
        fewest = call_overhead.FEWEST if is_product else FEWEST_ELEMENTWISE
        return [level for level in lists.values() if len(level) >= fewest]

    def _above(self) -> list[int]:
        """All that each instruction needs, directly or not, as the bits of a number."""
        above = [0] * len(self.groups)
        for n in self._order():
            for m in self.needs[n]:
                above[n] |= above[m] | 1 << m
        return above

    def merge(self, members: Sequence[int]) -> None:
        """Run these as one, unless earlier merges have made one of them need another."""
        above = self._above()
        if any(above[n] >> m & 1 for n in members for m in members):
            return
        first, *rest = members
        self.groups[first] = _stack([self.groups[n][0] for n in members], [self.keys[n][1] for n in members])
        # The merged instruction needs all that its members needed, and whoever needed a member now needs it.
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
        """A topological order that keeps to the order of the body where it can."""
        # Kahn's algorithm with a heap in place of a queue: the lowest position that is ready comes first.
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
        """The body after all merges."""
        return [instruction for n in self._order() for instruction in self.groups[n]]


def _needs(body: Sequence[Instruction]) -> list[set[int]]:
    """For each instruction, those before it that make or write its operands, or read what it writes."""
    maker: dict[Variable, int] = {}
    writer: dict[AliasSet, int] = {}
    readers: dict[AliasSet, list[int]] = {}
    needs_of: list[set[int]] = []
    for position, instruction in enumerate(body):
        read = operands(instruction)
        needs = {maker[v] for v in read if v in maker} | {writer[v.memory] for v in read if v.memory in writer}
        for variable in instruction.written:
            needs.update(readers.pop(variable.memory, ()))
            writer[variable.memory] = position
        for variable in read:
            readers.setdefault(variable.memory, []).append(position)
        for out in instruction.outputs:
            if out is not None:
                maker.setdefault(out, position)
                writer.setdefault(out.memory, position)
        needs_of.append(needs - {position})
    return needs_of


def _stack(instructions: Sequence[Instruction], different: Sequence[Sequence[Variable]]) -> list[Instruction]:
    """Stack the operands in which instructions differ, run the operator once, and take the results apart as views.

    Products ``(m_i, k) @ (k, n)`` are stacked by rows, ``(Σ m_i, n)``; others ``(*shape)`` as ``(count, *shape)``.
    """
    first, product = instructions[0], name_of(instructions[0]) in PRODUCTS
    stacked: dict[Variable, Variable] = {}
    body: list[Instruction] = []

    def stacked_like(variables: Sequence[Variable]) -> Variable:
        shape = variables[0].shape
        rows = (sum(v.shape[0] for v in variables), *shape[1:]) if product else (len(variables), *shape)
        return new_variable(rows, variables[0].dtype)

    for variables in zip(*different, strict=True):
        if variables[0] not in stacked:
            stacked[variables[0]] = whole = stacked_like(variables)
            op = aten.cat.default if product else aten.stack.default
            body.append(Instruction(op, (list(variables),), {}, [whole], False))
    args = tuple(stacked.get(a, a) if isinstance(a, Variable) else a for a in first.args)
    outs = [out for instruction in instructions for out in instruction.outputs if out is not None]
    whole = stacked_like(outs)
    body.append(Instruction(first.op, args, first.kwargs, [whole], False))
    if product:
        rows = [out.shape[0] for out in outs]
        body.append(Instruction(aten.split_with_sizes.default, (whole, rows), {}, list(outs), True))
    else:
        body.append(Instruction(aten.unbind.int, (whole,), {}, list(outs), True))
    return body
