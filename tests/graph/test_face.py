"""``jaccli.graph`` has the names that it lists, and needs torch for none of them before they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jaccli import graph


def test_every_name_resolves() -> None:
    assert sorted(graph.__all__) == sorted(graph._HOME_OF)
    assert set(graph.__all__) <= set(dir(graph))
    for name in graph.__all__:
        assert getattr(graph, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        graph.nothing  # noqa: B018


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, jaccli.graph; print([m for m in sys.modules if m == 'torch' or m.startswith('jaccli.graph.')])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
