"""What docstrings say of arguments is said of arguments that there are."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaccli

ROOT = Path(jaccli.__file__).parent
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def documented(path: Path) -> Iterator[tuple[Documented, set[str]]]:
    """Functions and classes of a file whose docstring has ``Args:``, and the names there."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Documented):
            section = re.search(r"^Args:\n((?: .*\n?|\n)+)", ast.get_docstring(node) or "", re.MULTILINE)
            if section:
                heads = re.findall(r"^    (\S[^:\n]*):", section[1], re.MULTILINE)
                yield node, {name.strip(" *`") for head in heads for name in head.split(",")}


def names_of(node: Documented) -> set[str]:
    """Parameters of a function; of a class its fields and the parameters of ``__init__``."""
    if not isinstance(node, ast.ClassDef):
        a = node.args
        every = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
        return {argument.arg for argument in every if argument is not None}
    fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    makers = (n for n in node.body if isinstance(n, ast.FunctionDef) and n.name in ("__init__", "__new__"))
    return fields.union(*map(names_of, makers))


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_arguments_that_are_documented_exist(path: Path) -> None:
    for node, named in documented(path):
        unknown = named - names_of(node)
        assert not unknown, f"{path.name}:{node.lineno} {node.name}: {sorted(unknown)}"


def test_the_walk_finds_arguments() -> None:
    assert sum(1 for path in ROOT.rglob("*.py") for _ in documented(path)) > 100
