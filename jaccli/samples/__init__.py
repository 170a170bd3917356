"""INPUT → samples: what a user writes after ``-i`` and ``--arg``, as values and then as tensors.

``spec`` reads the text and needs no torch; ``load_samples`` reads the data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaccli.samples.spec import (
    ArgValue,
    FileInput,
    FolderInput,
    InputSpec,
    RandomInput,
    Selection,
    StdinInput,
    check_input,
    parse_input,
    parse_model_arg,
    parse_samples,
)

if TYPE_CHECKING:
    from jaccli.samples.load import load_argument, load_samples

__all__ = [
    "ArgValue",
    "FileInput",
    "FolderInput",
    "InputSpec",
    "RandomInput",
    "Selection",
    "StdinInput",
    "check_input",
    "load_argument",
    "load_samples",
    "parse_input",
    "parse_model_arg",
    "parse_samples",
]


def __getattr__(name: str) -> Any:
    # Importing torch costs a second: usage errors are answered from ``spec`` alone.
    if name in ("load_argument", "load_samples"):
        from jaccli.samples import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
