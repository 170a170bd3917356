"""The methods that compute J, by name.

    LinearizedFunction, chunk ─→ MethodTask ─→ METHODS[name].fill ─→ J (batch, n_out, n_in)

    base                          what a method is: ``Method``, ``MethodTask``, ``MethodSelection``
    backward, forward             rows by backward passes, columns by forward ones
    structured                    the operator graph, multiplied out
    finite_difference ─→ steps    columns from values alone; the step of each
    auto ─→ operator_costs        selects one of the others; seconds of passes, predicted from counts of operators

In: f at the samples, and how many rows or columns go at once. Out: J, filled in, with what a reader should know of it.
Why: a method owns everything that is said of it: how it fills J, its cost in passes, bytes and predicted seconds, why
it cannot be used, and its fallbacks. ``auto`` is a method too; its docstring is the decision table. A new method is a
file here, its name in ``jaccli.names.MethodName`` (for type checkers) and one line in ``METHOD_CLASSES`` there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module

from jaccli.methods.base import Method, MethodGap, MethodTask
from jaccli.names import METHOD_CLASSES, MethodName


class _Methods(Mapping[MethodName, Method]):
    """One object of each class in ``METHOD_CLASSES``, made when it is first asked for."""

    def __getitem__(self, name: MethodName) -> Method:
        return _made(METHOD_CLASSES[name])

    def __iter__(self) -> Iterator[MethodName]:
        return iter(METHOD_CLASSES)

    def __len__(self) -> int:
        return len(METHOD_CLASSES)


@cache
def _made(place: str) -> Method:
    """An object of the class at ``MODULE:CLASS``."""
    module, _, name = place.partition(":")
    method: Method = getattr(import_module(module), name)()
    return method


METHODS = _Methods()

__all__ = ["METHODS", "Method", "MethodGap", "MethodName", "MethodTask"]
