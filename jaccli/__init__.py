"""Jacobians between layers of trained PyTorch networks.

    >>> import jaccli, torch
    >>> jaccli.jacobian(torch.nn.Tanh(), torch.zeros(1, 2))
    tensor([[[1., 0.],
             [0., 1.]]])

The names below are all that is public. They are imported when first used, so that the command line answers ``--help``
without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaccli.errors import (
    GateError,
    InternalError,
    JaccliError,
    JaccliNote,
    JaccliWarning,
    RefusedError,
    ResourceError,
    UnsupportedError,
    UsageError,
    WorkerError,
)

if TYPE_CHECKING:
    from jaccli.api import jacobian, operator, plan
    from jaccli.backward_graph.jacobian_of_tensors import graph_jacobian
    from jaccli.models.load import load_model
    from jaccli.penalty.identity import identity_deviation
    from jaccli.run.jacobian_operator import JacobianOperator
    from jaccli.run.planned import Plan
    from jaccli.statistics.product_estimates import estimate

__version__ = "0.1.0"

__all__ = [
    "GateError",
    "InternalError",
    "JaccliError",
    "JaccliNote",
    "JaccliWarning",
    "JacobianOperator",
    "Plan",
    "RefusedError",
    "ResourceError",
    "UnsupportedError",
    "UsageError",
    "WorkerError",
    "__version__",
    "estimate",
    "graph_jacobian",
    "identity_deviation",
    "jacobian",
    "load_model",
    "operator",
    "plan",
]

_HOMES = {
    "Plan": "jaccli.run.planned",
    "jacobian": "jaccli.api",
    "operator": "jaccli.api",
    "plan": "jaccli.api",
    "graph_jacobian": "jaccli.backward_graph.jacobian_of_tensors",
    "identity_deviation": "jaccli.penalty.identity",
    "load_model": "jaccli.models.load",
    "JacobianOperator": "jaccli.run.jacobian_operator",
    "estimate": "jaccli.statistics.product_estimates",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaccli' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
