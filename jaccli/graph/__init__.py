"""The engine: f as a graph of operators at a point, and its Jacobian from the structure of that graph.

    LayerFunction f, point
      │ trace         record one forward pass                      Graph: nodes in single-assignment form
      │ rules         the derivative of each operator              Map: a chain of linear primitives (maps)
      │ sparsity      which entries of J can be nonzero            Pattern, Coloring
      │ elimination   cuts, segments, the order of products        EliminationPlan ─→ J (batch, n_out, n_in), Products
      ▼ program       the same run as straight-line operators      Program: J at further samples

Why: the structure of J, which passes cannot see, makes most of them needless.

``layout`` holds the blocks that ``maps`` act on: matrices stored by the axes that both activations share. In: a
function between two layers, and a point. Out: J, products with J, or programs for either; or a ``CaptureGap`` that
says what of the network cannot be recorded, and another method takes over. The folders inside import downwards, in the
order layout, maps, trace, rules, sparsity, elimination, program.

The names below are what the rest of jaccli uses. They are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaccli.graph.elimination.accumulate import EliminationPlan, jacobian, plan_elimination, with_bracketing
    from jaccli.graph.elimination.bracketing import Bracketing
    from jaccli.graph.elimination.products import Products
    from jaccli.graph.layout.cost import measured_rates
    from jaccli.graph.program.codegen import Program
    from jaccli.graph.program.differentiable import Accumulation, accumulation
    from jaccli.graph.program.pipeline import programs_of
    from jaccli.graph.program.result_pool import Pool
    from jaccli.graph.program.torch_compile import CompileGap, compiled
    from jaccli.graph.trace.capture import Graph, capture
    from jaccli.graph.trace.ir import CaptureGap, tensors_in

_HOMES = {
    "elimination.accumulate": ("EliminationPlan", "jacobian", "plan_elimination", "with_bracketing"),
    "elimination.bracketing": ("Bracketing",),
    "elimination.products": ("Products",),
    "layout.cost": ("measured_rates",),
    "program.codegen": ("Program",),
    "program.differentiable": ("Accumulation", "accumulation"),
    "program.pipeline": ("programs_of",),
    "program.result_pool": ("Pool",),
    "program.torch_compile": ("CompileGap", "compiled"),
    "trace.capture": ("Graph", "capture"),
    "trace.ir": ("CaptureGap", "tensors_in"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

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
    "measured_rates",
    "plan_elimination",
    "programs_of",
    "tensors_in",
    "with_bracketing",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
