"""A part of the engine that can be left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

Stage = Literal["race", "program", "engine", "call", "single"]


@dataclass(frozen=True)
class Switch:
    """A part, and what does its work in the plain way: J stays the same up to rounding.

    Nothing of jaccli is changed for it. A stand-in takes the place of a name in the module that *uses* it, and a name
    that is gone fails at once; ``tests/test_ablation.py`` looks at whether each of them still takes effect.

    Args:
        name: on the command line.
        part: what it is, in a line.
        module: where it lies, below ``jaccli/`` or ``jaccli/graph/``.
        stage: what it bears on. ``race``: how a plan chooses; ``program``: the instructions of a recorded program, with
            the choice of bracketing, groups and kernels held; ``engine``: how J is computed, in plans and in single
            calls; ``call``: the moment of a planned call; ``single``: ``jaccli.jacobian`` alone.
        patches: names, as for ``unittest.mock.patch``, with what stands in for them.
    """

    name: str
    part: str
    module: str
    stage: Stage
    patches: dict[str, Any]

    @contextmanager
    def off(self) -> Iterator[None]:
        """In here jaccli does without the part."""
        with ExitStack() as stack:
            for target, stand_in in self.patches.items():
                stack.enter_context(patch(target, stand_in))
            yield


def switches(stage: Stage, *parts: tuple[str, str, str, dict[str, Any]]) -> dict[str, Switch]:
    """By name; each part as name, part, module and patches, whose names are without the ``jaccli.`` in front."""
    return {
        name: Switch(name, part, module, stage, {f"jaccli.{target}": new for target, new in patches.items()})
        for name, part, module, patches in parts
    }


def nothing(*_: Any, **__: Any) -> None:
    """In place of what finds something."""


def yes(*_: Any, **__: Any) -> bool:
    """In place of a check."""
    return True


def empty(*_: Any, **__: Any) -> list[Any]:
    """In place of what lists something."""
    return []


def first(value: Any, *_: Any) -> Any:
    """In place of what changes its first argument."""
    return value
