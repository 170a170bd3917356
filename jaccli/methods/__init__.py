"""The methods that compute J, by name.

    Linearization, chunk ─→ MethodTask ─→ METHODS[name].fill ─→ J (batch, n_out, n_in)

A method owns everything that is said of it: how it fills J, its cost in passes, bytes and predicted seconds, why it
cannot be used, and its fallbacks (``Method`` in ``base``). ``auto`` is a method too, which selects another one; its
docstring is the decision table. A new method is a file here and one entry below, and its name in ``jaccli.names``.
"""

from __future__ import annotations

from jaccli.methods.auto import Auto
from jaccli.methods.backward import Functional, Loop, Replicate, Reverse
from jaccli.methods.base import Method, MethodGap, MethodTask
from jaccli.methods.finite_difference import FiniteDifference
from jaccli.methods.forward import Forward
from jaccli.methods.structured import Structured
from jaccli.names import MethodName

METHODS: dict[MethodName, Method] = {
    method.name: method
    for method in (Structured(), Reverse(), Forward(), Loop(), Replicate(), Functional(), FiniteDifference())
}
METHODS["auto"] = Auto(METHODS)

__all__ = ["METHODS", "Method", "MethodGap", "MethodName", "MethodTask"]
