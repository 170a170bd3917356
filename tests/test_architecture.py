"""Imports point one way only, and the start-up path stays free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaccli

ROOT = Path(jaccli.__file__).parent
# Each layer may import what stands in the same line or above it.
LAYERS = [
    ["wording"],
    ["errors", "names", "defaults", "chatter", "sizes"],
    ["safety"],
    ["calibration"],
    ["kernels", "dispatch"],
    ["models.stamp", "models.entropy", "models.noise"],
    ["models.network"],
    ["models"],
    ["samples"],
    [
        "layers.address",
        "layers.gradient_graph",
        "layers.tree",
        "layers.slot",
        "layers.boundary",
        "layers.record",
        "layers.resolve",
        "layers.function",
        "layers.entries",
        "layers.misread",
        "layers",
    ],
    ["operators"],
    ["graph"],
    ["methods"],
    ["independence", "steadiness"],
    ["prepare", "memory", "prediction", "planning"],
    ["explain", "mixing"],
    ["execution"],
    ["influence", "early"],
    ["stream"],
    ["sinks", "statistics"],
    ["recorded"],
    ["signature"],
    ["replay"],
    ["tuning", "compiling", "planned"],
    ["bind"],
    ["reference", "linear_operator", "api"],
    ["passes"],
    ["existing"],
    ["estimation"],
    ["rows"],
    ["training_pass"],
    ["slope"],
    ["trusted"],
    ["live"],
    ["identity"],
    ["training", "regularize"],
    ["bench"],
    ["cli", "__main__", ""],
]
MODULES = sorted(p for p in ROOT.rglob("*.py") if "__pycache__" not in p.parts)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(module: str) -> int:
    exact = [i for i, names in enumerate(LAYERS) if module in names]
    while not exact and "." in module:
        module = module.rpartition(".")[0]
        exact = [i for i, names in enumerate(LAYERS) if module in names]
    assert exact, f"jaccli.{module} has no place in the order"
    return exact[0]


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Absolute imports of a file, and whether they run when it is imported."""
    tree = ast.parse(path.read_text())
    late = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    late |= {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.dump(f.test)
        for n in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                is_module = (
                    node.module.startswith("jaccli")
                    and (ROOT / Path(*inside.split(".")[1:])).with_suffix(".py").exists()
                )
                yield (inside if is_module else str(node.module)), id(node) not in late


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here = name_of(path)
    for module, _ in imported(path):
        if module.startswith("jaccli.") and here != "":
            there = module.removeprefix("jaccli.")
            assert rank(there) <= rank(here), f"{here} imports {there}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_knows_the_command_line(path: Path) -> None:
    here = name_of(path)
    names = {module.split(".")[0] for module, _ in imported(path)}
    if not here.startswith(("cli", "__main__")):
        assert "typer" not in names
        assert "argparse" not in names
        if not here.startswith("sinks"):
            assert "rich" not in names
        assert "argv" not in {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}


def test_methods_know_no_model_and_sinks_no_operator() -> None:
    for path in MODULES:
        here = name_of(path)
        for module, _ in imported(path):
            if here.startswith("methods"):
                assert not module.startswith("jaccli.models"), here
            if here.startswith("sinks"):
                assert not module.startswith(("jaccli.operators", "jaccli.methods", "jaccli.models")), here


@pytest.mark.parametrize(
    "module",
    [
        "jaccli",
        "jaccli.cli.app",
        "jaccli.cli.request",
        "jaccli.errors",
        "jaccli.names",
        "jaccli.sizes",
        "jaccli.defaults",
        "jaccli.layers.address",
        "jaccli.__main__",
    ],
)
def test_no_torch_at_start(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    for name in jaccli.__all__:
        assert getattr(jaccli, name) is not None
    assert set(jaccli.__all__) <= set(dir(jaccli))
    with pytest.raises(AttributeError, match="nothing"):
        jaccli.nothing  # noqa: B018
