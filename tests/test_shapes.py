"""Every public function of tensors says their shapes, in its signature (which the tests check) or its docstring."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

import jaccli
from tests import shapes

if TYPE_CHECKING:
    from jaxtyping import Shaped

ROOT = Path(jaccli.__file__).parent
TENSOR = re.compile(r"\bTensor\b")
IN_SIGNATURE = re.compile(rf"\b({'|'.join(shapes.KINDS)})\[(torch\.)?Tensor, ")
# ``(batch, n_out)``, ``x.shape``, "of any shape", "of x's shape", "the shape of x", "a scalar".
IN_DOCSTRING = re.compile(
    r"``\([^()`]*[,…*][^`]*\)``|``[\w.]+\.shape``|\bscalar"
    r"|\b(any|same|whatever|its|their|'s) shapes?\b|shapes? of\b|s' shapes?\b"
)


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Where, and the function; without overloads, and overrides that leave the docstring to what they override."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]:
            for node in scope.body:
                if isinstance(node, ast.FunctionDef) and not is_overload(node):
                    inherits = scope is not tree and not node.name.startswith("_")
                    if ast.get_docstring(node) or not inherits:
                        yield f"{path.relative_to(ROOT.parent)}:{node.lineno} {node.name}", node


def is_overload(function: ast.FunctionDef) -> bool:
    return any(isinstance(name, ast.Name) and name.id == "overload" for name in function.decorator_list)


def annotations(function: ast.FunctionDef) -> list[str]:
    """Those that mention a tensor."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    given = [a.annotation for a in arguments if a.annotation] + ([function.returns] if function.returns else [])
    return [text for text in map(ast.unparse, given) if TENSOR.search(text)]


def says_no_shape(function: ast.FunctionDef) -> bool:
    """Whether neither all of its signature nor its docstring states shapes."""
    stated = annotations(function)
    return bool(stated) and not (
        all(IN_SIGNATURE.search(text) for text in stated) or IN_DOCSTRING.search(ast.get_docstring(function) or "")
    )


def test_shapes_are_stated() -> None:
    silent = [where for where, function in functions() if says_no_shape(function)]
    assert not silent, f"{len(silent)} functions of tensors say no shapes:\n" + "\n".join(silent)


def scaled(x: Shaped[Tensor, "n m"], by: Shaped[Tensor, "n"]) -> Shaped[Tensor, "n m"]:
    return x * by[: x.shape[0], None]


def test_a_wrong_shape_is_seen() -> None:
    function = shapes.checked(scaled, {"Tensor": Tensor})
    assert function(torch.ones(2, 3), torch.ones(2)).shape == (2, 3)
    with pytest.raises(shapes.ShapeError, match="by"):
        function(torch.ones(2, 3), torch.ones(3))


def test_signatures_of_jaccli_are_checked() -> None:
    from jaccli.autograd.products import vjps

    assert inspect.unwrap(vjps) is not vjps
