"""Jacobians between layers of trained PyTorch networks.

The names below are all that is public; they are imported when first used, so that the command line
answers ``--help`` without torch.
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
    from jaccli.existing import graph_jacobian
    from jaccli.identity import identity_deviation
    from jaccli.models.load import load_model
    from jaccli.operators.operator import JacobianOperator
    from jaccli.planned import Plan
    from jaccli.statistics.of_products import estimate

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
    "Plan": "jaccli.planned",
    "jacobian": "jaccli.api",
    "operator": "jaccli.api",
    "plan": "jaccli.api",
    "graph_jacobian": "jaccli.existing",
    "identity_deviation": "jaccli.identity",
    "load_model": "jaccli.models.load",
    "JacobianOperator": "jaccli.operators.operator",
    "estimate": "jaccli.statistics.of_products",
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
