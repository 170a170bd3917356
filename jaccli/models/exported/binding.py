"""A caller's arguments → the inputs of the graph, checked against what was exported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from jaccli.errors import RefusedError, UsageError
from jaccli.models.exported.code import ExportedCode, Extent, InputLeaf
from jaccli.text.escape import listed, quote
from jaccli.text.wording import worded

_SPECIALISED: Final = 2
"""Export gives every free dimension this lower bound, because it treats sizes 0 and 1 apart; not checked."""


def bind(program: ExportedCode, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Graph input → value.

    Raises:
        UsageError: a missing or unknown argument.
        RefusedError: a shape, or a constant, other than exported.
    """
    ordered, named = _arrange(program, args, kwargs)
    values: dict[str, Any] = {}
    sizes: dict[str, tuple[int, str]] = {}
    for leaf, value in zip(program.leaves, program.in_tree.flatten((ordered, named)), strict=True):
        if leaf.name is None:
            _check_constant(leaf, value)
            continue
        if leaf.shape is not None:
            _check_shape(leaf, value, sizes)
        values[leaf.name] = value
    return values


def _arguments(program: ExportedCode) -> list[tuple[str, list[InputLeaf]]]:
    """Each argument with its leaves."""
    positional, keyword = program.in_tree.children
    names = program.argument_names or ()
    labels = [names[i] if i < len(names) else f"arg{i}" for i in range(len(positional.children))]
    arguments, start = [], 0
    children = (*positional.children, *keyword.children)
    for label, child in zip((*labels, *map(str, keyword.keys)), children, strict=True):
        stop = start + child.size()
        leaves = list(program.leaves[start:stop])
        plain = label.startswith("arg") and len(leaves) == 1 and not names and leaves[0].name
        arguments.append((str(plain or label), leaves))
        start = stop
    return arguments


def _fixed(leaves: list[InputLeaf]) -> bool:
    return all(leaf.name is None for leaf in leaves)


def _arrange(
    program: ExportedCode, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by position and by name, as they were when the model was exported."""
    arguments = _arguments(program)
    names = [name for name, _ in arguments]
    unknown = [str(name) for name in kwargs if name not in names or name in names[: len(args)]]
    if len(args) > len(names) or unknown:
        what = f"no argument {unknown[0]!r} to give" if unknown else f"{len(args)} arguments given"
        raise UsageError(what, f"the exported model takes {listed(names, 6) or 'none'}")
    by_name = {**dict(zip(names, args, strict=False)), **kwargs}
    for name, leaves in arguments:
        if name not in by_name:
            if not _fixed(leaves) or len(leaves) != 1:
                raise UsageError(
                    f"the argument {quote(name)} is missing",
                    f"the exported model takes {listed(names, 6)}",
                    worded("give it as {arguments:{name}}", name=quote(name)[1:-1]),
                )
            by_name[name] = leaves[0].constant
    count = len(program.in_tree.children[0].children)
    keys = program.in_tree.children[1].keys
    ordered = tuple(by_name[name] for name in names[:count])
    return ordered, {key: by_name[str(key)] for key in keys}


def _check_constant(leaf: InputLeaf, value: Any) -> None:
    constant = leaf.constant
    same = value is constant if constant is None else not isinstance(value, Tensor) and value == constant
    if not same:
        shown = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else quote(value)
        raise RefusedError(
            f"an argument is {shown}",
            f"the model was exported with {quote(constant)} there, which fixed it",
            "leave the argument out, or export the model again with the other value",
        )


def _check_shape(leaf: InputLeaf, value: Any, sizes: dict[str, tuple[int, str]]) -> None:
    """Fixed sizes, bounds, and free sizes that must agree between inputs."""
    assert leaf.shape is not None
    if not isinstance(value, Tensor):
        raise UsageError(f"the argument {quote(leaf.name)} is {type(value).__name__!r}", "expected a tensor")
    shape, extents = list(value.shape), leaf.shape
    if len(shape) != len(extents):
        raise _misfit(leaf, shape, "give an input with as many dimensions")
    for dimension, (size, extent) in enumerate(zip(shape, extents, strict=True)):
        if extent.size is not None and size != extent.size:
            batch = dimension == 0 and extent.size > 0
            remedy = (
                f"export with dynamic_shapes, or give {extent.size} samples" if batch else "export with dynamic_shapes"
            )
            raise _misfit(leaf, shape, remedy)
        low = extent.low if extent.low > _SPECIALISED else 0
        if extent.size is None and (size < low or (extent.high is not None and size > extent.high)):
            raise _misfit(leaf, shape, "export with wider bounds in dynamic_shapes")
        # A symbol is one size in all inputs: the first that has it decides.
        if extent.symbol is not None:
            first, other = sizes.setdefault(extent.symbol, (size, str(leaf.name)))
            if first != size:
                raise _misfit(leaf, shape, f"{quote(other)} has {first} there; they must be equal")


def _misfit(leaf: InputLeaf, shape: list[int], remedy: str) -> RefusedError:
    expected = ", ".join(map(_shown, leaf.shape or ()))
    return RefusedError(
        f"the input {quote(leaf.name)} has shape {shape}",
        f"the model was exported for [{expected}]",
        remedy,
    )


def _shown(extent: Extent) -> str:
    if extent.size is not None:
        return str(extent.size)
    label = extent.symbol or "?"
    if extent.high is not None:
        return f"{extent.low}<={label}<={extent.high}"
    return label if extent.low <= _SPECIALISED else f"{label}>={extent.low}"
