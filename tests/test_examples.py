"""The examples of docstrings run, and each public function and class has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import jaccli

ROOT = Path(jaccli.__file__).parent


def needs_example(name: str) -> bool:
    public = getattr(jaccli, name)
    return not isinstance(public, str) and not (isinstance(public, type) and issubclass(public, Exception))


EXAMPLES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(module), optionflags=options)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("name", sorted(filter(needs_example, jaccli.__all__)))
def test_public_functions_have_an_example(name: str) -> None:
    public = getattr(jaccli, name)
    assert ">>> " in (inspect.getdoc(public) or ""), f"jaccli.{name} has no example"
