"""Steps rewritten so that fewer and quicker ones do the same."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from jaccli.graph.trace.ir import swap
from jaccli.graph.trace.tracer import AliasSet, Instruction, Variable, contiguous, made_by, name_of, taken

aten = torch.ops.aten

# Products by name, and where the operand stands that a weight multiplies.
PRODUCTS = {"mm": 0, "addmm": 1}
NARROW = 16


def fixed(variable: object) -> bool:
    """Whether an operand is a constant: neither made by a step nor an input."""
    return isinstance(variable, Variable) and variable.tensor is not None and not variable.memory.varies


def new_variable(shape: Sequence[int], dtype: torch.dtype) -> Variable:
    """For a new contiguous result."""
    return Variable(AliasSet(True), None, tuple(shape), contiguous(shape), dtype)


def column_major_constants(steps: Sequence[Instruction]) -> list[Instruction]:
    """Constant weights of few columns with the columns in memory one after the other.

    Matrix products with fewer columns than a vector unit is wide take up to four times as long otherwise.
    """
    turned: dict[Variable, Variable] = {}
    result = []
    for step in steps:
        place = PRODUCTS.get(name_of(step), -1) + 1
        weight = step.args[place] if place else None
        if isinstance(weight, Variable) and fixed(weight) and _is_narrow(weight):
            if weight not in turned:
                assert weight.tensor is not None
                tensor = weight.tensor.t().contiguous().t()
                turned[weight] = Variable(AliasSet(False), tensor, weight.shape, tensor.stride(), weight.dtype)
            step = replace(step, args=(*step.args[:place], turned[weight], *step.args[place + 1 :]))
        result.append(step)
    return result


def _is_narrow(weight: Variable) -> bool:
    return weight.shape[1] < NARROW and weight.stride == contiguous(weight.shape)


_VIEWS = frozenset(["view", "_unsafe_view", "permute", "select", "slice", "unsqueeze", "expand", "t", "transpose"])


def merge_equal_views(steps: Sequence[Instruction], kept: Sequence[Variable]) -> list[Instruction]:
    """Without views that are there already."""
    same: dict[Variable, Variable] = {}
    found: dict[Hashable, Variable] = {}
    result: list[Instruction] = []
    for step in steps:
        args, kwargs = (swap(tree, lambda s: same.get(s, s), Variable) for tree in (step.args, step.kwargs))
        step = replace(step, args=args, kwargs=kwargs)
        out = step.outputs[0] if len(step.outputs) == 1 else None
        if name_of(step) in _VIEWS and out is not None and not step.written and out not in kept:
            source, *rest = step.args
            key = (id(source), name_of(step), repr(rest), repr(step.kwargs))
            if key in found:
                same[out] = found[key]
                continue
            found[key] = out
        result.append(step)
    return result


def merge_products(steps: Sequence[Instruction], results: set[AliasSet], largest: int) -> list[Instruction]:
    """Products of one operand with several weights as one product with the weights side by side."""
    made = made_by(steps)
    lists: dict[tuple[Variable, int], list[Instruction]] = {}
    writes: dict[AliasSet, int] = {}
    for step in steps:
        for variable in step.written:
            writes[variable.memory] = writes.get(variable.memory, 0) + 1
        x, weight = step.args[:2] if len(step.args) > 1 else (None, None)
        if name_of(step) != "mm" or not isinstance(x, Variable) or x not in made or not fixed(weight):
            continue
        out = step.outputs[0]
        if out is not None and out.memory not in results and math.prod(out.shape) <= largest:
            lists.setdefault((x, writes.get(x.memory, 0)), []).append(step)
    replaced: dict[int, list[Instruction]] = {}
    for (x, _), found in lists.items():
        if len(found) > 1:
            replaced[id(found[0])] = _one_product(x, found)
            replaced.update({id(step): [] for step in found[1:]})
    return [s for step in steps for s in replaced.get(id(step), [step])]


def _one_product(x: Variable, products: Sequence[Instruction]) -> list[Instruction]:
    weight = torch.cat([step.args[1].tensor for step in products], 1)
    beside = Variable(AliasSet(False), weight, tuple(weight.shape), weight.stride(), weight.dtype)
    whole = new_variable((x.shape[0], weight.shape[1]), x.dtype)
    widths = [step.args[1].shape[1] for step in products]
    return [
        Instruction(aten.mm.default, (x, beside), {}, [whole], False),
        Instruction(
            aten.split_with_sizes.default, (whole, widths, 1), {}, [step.outputs[0] for step in products], True
        ),
    ]


def reassociate_sums(steps: Sequence[Instruction], fewest: int, largest: int) -> list[Instruction]:
    """``u + (b + x W)`` as ``(u + b) + x W``: in a recurrence u and b are there before x."""
    users: dict[Variable, int] = {}
    for step in steps:
        for variable in taken(step):
            users[variable] = users.get(variable, 0) + 1
    makers = {out: step for step in steps for out in step.outputs if out is not None}
    depths, chosen = _depths(steps), dict[int, tuple[Instruction, Variable]]()
    for number, step in enumerate(steps):
        found = _sum_of_product(step, makers, users, depths, largest)
        if found is not None:
            chosen[number] = found
    if len(chosen) < fewest:
        return list(steps)
    gone = {id(product) for product, _ in chosen.values()}
    result: list[Instruction] = []
    for number, step in enumerate(steps):
        if number in chosen:
            product, other = chosen[number]
            bias, x, weight = product.args
            begun = new_variable(other.shape, other.dtype)
            result.append(Instruction(aten.add.Tensor, (other, bias), {}, [begun], False))
            result.append(Instruction(aten.addmm.default, (begun, x, weight), product.kwargs, step.outputs, False))
        elif id(step) not in gone:
            result.append(step)
    return result


def _sum_of_product(
    step: Instruction,
    makers: dict[Variable, Instruction],
    users: dict[Variable, int],
    depths: dict[Variable, int],
    largest: int,
) -> tuple[Instruction, Variable] | None:
    """The product whose sum with another operand a step is, and that operand."""
    if name_of(step) != "add" or step.written or step.kwargs or len(step.args) != 2:
        return None
    out = step.outputs[0]
    for product, other in (step.args, step.args[::-1]):
        if not isinstance(product, Variable) or not isinstance(other, Variable) or out is None:
            continue
        maker = makers.get(product)
        fits = other.shape == product.shape == out.shape and other.dtype == product.dtype == out.dtype
        alone = users[product] == 1 and not product.memory.written and math.prod(out.shape) <= largest
        if maker is None or name_of(maker) != "addmm" or maker.kwargs or not fits or not alone:
            continue
        if maker.args[0] not in makers and depths.get(other, 0) < depths[product]:
            return maker, other
    return None


def _depths(steps: Sequence[Instruction]) -> dict[Variable, int]:
    """How many steps, one needing the other, lead to each operand."""
    found: dict[Variable, int] = {}
    for step in steps:
        depth = 1 + max((found.get(s, 0) for s in taken(step)), default=0)
        found.update({out: depth for out in step.outputs if out is not None})
    return found
