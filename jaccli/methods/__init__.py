"""The methods by name. ``auto`` is resolved by ``jaccli.planning.decide`` to one of these."""

from __future__ import annotations

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

__all__ = ["METHODS", "Method", "MethodGap", "MethodName", "MethodTask"]
