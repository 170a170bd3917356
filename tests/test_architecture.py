"""Imports point one way only, and the start-up path stays free of torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaccli

ROOT = Path(jaccli.__file__).parent
# A folder may import what stands above its own line, and nothing else of jaccli.
FLOORS = [
    "errors defaults",
    "text runtime autograd calibration",
    "names safety networks.state",
    "networks pickles linear_maps models.screening models.identify",
    "models.interpretation",
    "activations statistics samples models.weights models.torchscript models.exported",
    "models linearization graph.layout sinks",
    "graph.trace graph.maps",
    "graph.rules",
    "graph.sparsity",
    "graph.elimination",
    "graph.program",
    "graph",
    "planning.linearize",
    "methods",
    "planning",
    "run backward_graph",
    "penalty api",
    "training",
    "cli",
    "__main__",
]
# Names that ``jaccli.NAME`` has, or is going to have, for a function: a module of the name would take its place.
PUBLIC = "plan operator jacobian check deviation spectrum lyapunov layers bench compare report plot regularize show"
MODULES = sorted(p for p in ROOT.rglob("*.py") if "__pycache__" not in p.parts)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(module: str) -> str:
    """The folder of a module of jaccli; of one at the top, the module; of ``jaccli`` itself, nothing."""
    is_folder = (ROOT / Path(*module.split("."))).is_dir()
    return module if is_folder else module.rpartition(".")[0] or module


FLOOR_OF = {folder: floor for floor, line in enumerate(FLOORS) for folder in line.split()}


def imported(path: Path) -> Iterator[str]:
    """Absolute imports of a file that run, when it is imported or later: all but those for the type checker."""
    tree = ast.parse(path.read_text())
    checks = [f for f in ast.walk(tree) if isinstance(f, ast.If) and "TYPE_CHECKING" in ast.dump(f.test)]
    typing = {id(n) for f in checks for n in ast.walk(f)}
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                is_module = inside.startswith("jaccli.") and (ROOT.parent / inside.replace(".", "/")).with_suffix(".py")
                yield inside if is_module and is_module.exists() else str(node.module)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    here = name_of(path)
    for module in imported(path):
        here_in, there_in = folder_of(here), folder_of(module.removeprefix("jaccli."))
        if module.startswith("jaccli.") and here and here_in != there_in:
            assert FLOOR_OF[there_in] < FLOOR_OF[here_in], f"{here} imports {module}"


def test_no_cycle_of_modules() -> None:
    below = {f"jaccli.{name_of(path)}": set(imported(path)) for path in MODULES}
    while free := [name for name, uses in below.items() if not uses & (below.keys() - {name})]:
        for name in free:
            del below[name]
    assert not below


@pytest.mark.parametrize("face", [p for p in MODULES if p.name == "__init__.py" and p.parent != ROOT], ids=name_of)
def test_the_face_of_a_folder_names_its_modules(face: Path) -> None:
    text = ast.get_docstring(ast.parse(face.read_text())) or ""
    modules = {p.stem for p in face.parent.glob("*.py")} | {p.parent.name for p in face.parent.glob("*/__init__.py")}
    missing = {m for m in modules - {"__init__"} if not re.search(rf"\b{m}\b", text)}
    assert not missing, f"{face.parent.name}/__init__.py does not say what is in {sorted(missing)}"


def test_no_module_has_the_name_of_a_public_function() -> None:
    functions = {name for name in jaccli.__all__ if callable(getattr(jaccli, name))} | set(PUBLIC.split())
    assert not functions & {part for path in MODULES for part in path.relative_to(ROOT).with_suffix("").parts}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_the_command_line_knows_the_command_line(path: Path) -> None:
    here = name_of(path)
    names = {module.split(".")[0] for module in imported(path)}
    if not here.startswith(("cli", "__main__")):
        assert "typer" not in names
        assert "argparse" not in names
        if not here.startswith("sinks"):
            assert "rich" not in names
        assert "argv" not in {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}


def test_methods_know_no_model_and_sinks_no_operator() -> None:
    for path in MODULES:
        here = name_of(path)
        for module in imported(path):
            if here.startswith("methods"):
                assert not module.startswith("jaccli.models"), here
            if here.startswith("sinks"):
                assert not module.startswith(("jaccli.linear_maps", "jaccli.methods", "jaccli.models")), here


@pytest.mark.parametrize(
    "module",
    [
        "jaccli",
        "jaccli.cli.app",
        "jaccli.cli.request",
        "jaccli.cli.train_request",
        "jaccli.models.weights.quick_look",
        "jaccli.errors",
        "jaccli.names",
        "jaccli.text.sizes",
        "jaccli.defaults",
        "jaccli.activations.address",
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
