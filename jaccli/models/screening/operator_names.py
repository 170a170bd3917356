"""Operators of PyTorch that a file may name if nobody vouches for it; both readers ask here. Imports no torch.

What is not on the lists of ``operator_lists`` is refused, whatever it does: of the others some touch files, some take
sizes, indices and dtypes on trust and end the process, and a later PyTorch has more of them.
"""

from __future__ import annotations

from typing import Any, Final

from jaccli.errors import RefusedError
from jaccli.models.screening.operator_lists import FUNCTIONS, INTERNALS, LIBRARIES, PRIMS, SCRIPT
from jaccli.text.wording import worded

_TENSORS: Final = FUNCTIONS | LIBRARIES | INTERNALS
_OUT: Final = frozenset({("aten::div", "out")})  # of functional.normalize; no other function of torch.nn writes to out=


def permitted(schema: Any, *, script: bool = False) -> bool:
    """Whether the operator with this schema may run for a file of a stranger.

    Args:
        schema: a ``FunctionSchema`` of torch, or what has its ``name`` and ``arguments``.
        script: allow what only TorchScript has, on numbers, texts, lists and dicts.
    """
    namespace, _, name = str(schema.name).partition("::")
    if namespace == "prims":
        return name in PRIMS
    if namespace != "aten" or writes_out(schema):
        return False
    base = name.removesuffix("_") if not name.endswith("__") else name
    return base in _TENSORS or (script and name in SCRIPT)


def writes_out(schema: Any) -> bool:
    """Whether it is an overload for ``out=`` that no network needs: of many the kernels look at nothing."""
    out = any(argument.is_out for argument in schema.arguments)
    return out and (schema.name, schema.overload_name) not in _OUT


def not_permitted(where: str, operator: str) -> RefusedError:
    """The answer to an operator that is not on the lists.

    Args:
        where: the file, or what is read of it, quoted.
        operator: its name, fit to be shown.
    """
    return RefusedError(
        f"{where} uses the operator {operator}, which is not safe, or no part of a network",
        "operators that networks are made of, such as those of torch.nn and torch.nn.functional",
        worded("if you trust where it comes from, pass {trust:True}; else export the network without it"),
    )
