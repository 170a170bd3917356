"""J from the structure of a network: its operators, recorded, derived one by one, and multiplied in the cheapest order.

    f at a point ─→ trace ─→ Graph ─→ rules ─→ Maps ─→ elimination ─→ EliminationPlan ─→ J (batch, n_out, n_in)
                                                 └─ sparsity ─↗            └─→ program ─→ Program: samples → J

    layout        blocks of vectors that share axes with an activation, and what operations on them cost
    maps          linear primitives between activations: matrices, convolutions, slices, …; each with its transpose
    trace         one forward pass recorded as a graph of operators
    rules         the derivative of each operator as primitives
    sparsity      the sparsity pattern of J, and its colouring
    elimination   the order of multiplication, chosen by predicted cost; J and products with J
    program       the accumulation recorded, optimised and compiled to a Python function of tensors

In: a ``LayerFunction`` within its network's session. Out: J, products with J, or a program that gives J at other
points. What cannot be recorded or derived raises ``CaptureGap``; other methods take over. The names below are all that
is used outside; each is imported when it is first used, as modules in here import each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaccli.graph.elimination.accumulate import EliminationPlan, jacobian, plan_elimination, with_bracketing
    from jaccli.graph.elimination.bracketing import Bracketing
    from jaccli.graph.elimination.products import Products
    from jaccli.graph.layout.cost import meter
    from jaccli.graph.program.codegen import Program
    from jaccli.graph.program.differentiable import Accumulation, accumulation
    from jaccli.graph.program.result_pool import Pool
    from jaccli.graph.program.torch_compile import CompileGap, compiled
    from jaccli.graph.trace.capture import Graph, capture
    from jaccli.graph.trace.ir import CaptureGap, tensors_in

__all__ = [
    "Accumulation",
    "Bracketing",
    "CaptureGap",
    "CompileGap",
    "EliminationPlan",
    "Graph",
    "Pool",
    "Products",
    "Program",
    "accumulation",
    "capture",
    "compiled",
    "jacobian",
    "meter",
    "plan_elimination",
    "tensors_in",
    "with_bracketing",
]

_HOMES = {
    "trace.capture": "Graph capture",
    "trace.ir": "CaptureGap tensors_in",
    "layout.cost": "meter",
    "elimination.accumulate": "EliminationPlan jacobian plan_elimination with_bracketing",
    "elimination.bracketing": "Bracketing",
    "elimination.products": "Products",
    "program.codegen": "Program",
    "program.differentiable": "Accumulation accumulation",
    "program.result_pool": "Pool",
    "program.torch_compile": "CompileGap compiled",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'jaccli.graph' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"jaccli.graph.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
