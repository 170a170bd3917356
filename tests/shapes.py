"""Shapes in signatures, checked while the tests run.

``jaccli`` imports jaxtyping for type checkers alone, so that the annotations are text and cost nothing in use. Here
each function of a module is wrapped as soon as the module is executed, before another can import it from there.
Names of axes hold for one call: ``"k *target"`` beside ``"*target"`` compares the two.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import random
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

import jaxtyping
from beartype.door import is_bearable

# A check takes some 0.1 ms: all of a function's first calls are checked, then one in so many.
ALL_OF, ONE_IN = 100, 64
KINDS = ("Shaped", "Inexact", "Float", "Complex", "Int", "Integer", "Num", "Bool")


class ShapeError(AssertionError):
    """A value has not the shape that the signature says."""


def checked(function: Any, names: dict[str, Any]) -> Any:
    """The function with its shapes checked, or itself where the signature states none.

    Args:
        function: whose annotations are text (PEP 563).
        names: the globals of its module, to read the annotations with.
    """
    stated = {k: text for k, text in function.__annotations__.items() if any(f"{kind}[" in str(text) for kind in KINDS)}
    if not stated:
        return function
    scope = {**names, **{kind: getattr(jaxtyping, kind) for kind in KINDS}}
    hints = {k: eval(text, scope) if isinstance(text, str) else text for k, text in stated.items()}
    signature = inspect.signature(function)
    several = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL), None)

    def check(name: str, value: Any) -> None:
        state = random.getstate()  # of a sequence one item is checked, drawn from the generator that tests compare
        fits = is_bearable(value, hints[name])
        random.setstate(state)
        if not fits:
            shape = f"{value.dtype} {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)[:200]
            raise ShapeError(f"{function.__module__}.{function.__qualname__}: {name} is {shape}, not {stated[name]}")

    @jaxtyping.jaxtyped(typechecker=None)
    def with_checks(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in hints:
                for one in value if name == several else (value,):
                    check(name, one)
        result = function(*args, **kwargs)
        if "return" in hints:
            check("return", result)
        return result

    calls = itertools.count()

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        return (with_checks if number < ALL_OF or number % ONE_IN == 0 else function)(*args, **kwargs)

    return inner


def _check_class(cls: type, names: dict[str, Any]) -> None:
    for name, member in list(vars(cls).items()):
        if isinstance(member, FunctionType):
            wrapped: Any = checked(member, names)
        elif isinstance(member, (staticmethod, classmethod)) and isinstance(member.__func__, FunctionType):
            wrapped = type(member)(checked(member.__func__, names))
        elif isinstance(member, property) and isinstance(member.fget, FunctionType):
            wrapped = property(checked(member.fget, names), member.fset, member.fdel)
        else:
            continue
        if getattr(wrapped, "fget", getattr(wrapped, "__func__", wrapped)) is not getattr(
            member, "fget", getattr(member, "__func__", member)
        ):
            setattr(cls, name, wrapped)


def check_module(module: ModuleType) -> None:
    """Wrap what the module defines: functions, methods, and the fields of dataclasses by their ``__init__``."""
    names = vars(module)
    for name, member in list(names.items()):
        if getattr(member, "__module__", None) != module.__name__:
            continue
        if isinstance(member, FunctionType):
            names[name] = checked(member, names)
        elif isinstance(member, type):
            _check_class(member, names)


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        check_module(module)


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "jaccli" and not name.startswith("jaccli."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From now on modules of ``jaccli`` check shapes; those that are imported already do not."""
    # pytest itself imports the class of a warning that pyproject.toml names.
    early = {name for name in sys.modules if name.startswith("jaccli.")} - {"jaccli.errors"}
    assert not early, f"shapes are checked in what is imported after this, not in {sorted(early)}"
    sys.meta_path.insert(0, _Finder())
