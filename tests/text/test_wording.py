"""Messages name parameters as their reader writes them: in Python as arguments, in the shell as flags."""

from __future__ import annotations

import ast
import copy
import inspect
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
import torch
import typer
from torch import Tensor, nn

import jaccli
from jaccli.cli.app import app
from jaccli.cli.boundary import run
from jaccli.cli.flags import _SHELL, error_in_flags, flag, in_flags
from jaccli.penalty.identity import deviation_from
from jaccli.text.wording import _PYTHON, Term, in_python, term, worded
from jaccli.training.loop import Recipe

ROOT = Path(jaccli.__file__).parent
# Who types commands reads what these say, and nobody else: see ``test_only_the_shell_reads_them``.
OF_THE_SHELL = ("cli", "sinks", "samples")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
PARAMETER = re.compile(r"\b([a-z_]+)=")


def library() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        if path.relative_to(ROOT).parts[0] not in OF_THE_SHELL and path.name != "wording.py":
            yield path, ast.parse(path.read_text())


def docstrings(tree: ast.AST) -> set[int]:
    return {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)}


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    skipped = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node


def templates(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """What ``worded`` is called with, and which of its placeholders are values."""
    assigned: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        for name in ast.walk(node.targets[0]) if isinstance(node, ast.Assign) else ():
            if isinstance(name, ast.Name):
                assigned.setdefault(name.id, []).append(node.value)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "worded":
            given = node.args[0]
            sources = [given, *(v for n in ast.walk(given) if isinstance(n, ast.Name) for v in assigned.get(n.id, []))]
            values = {keyword.arg or "" for keyword in node.keywords}
            yield from ((t.value, values) for s in sources for t in texts(s) if "{" in t.value)


def terms() -> dict[str, str]:
    """Every term of the library's messages, with where it is."""
    found = {}
    for path, tree in library():
        for template, values in templates(tree):
            names = {name for _, name, _, _ in Formatter().parse(template) if name}
            found |= dict.fromkeys(names - values, path.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "term":
                found |= {a.value: path.name for a in node.args[:1] if isinstance(a, ast.Constant)}
    return found


def parameters() -> set[str]:
    """Of what can be called in Python."""
    calls = [getattr(jaccli, name) for name in jaccli.__all__ if name[0].islower() and name != "__version__"]
    calls = [call for call in calls if callable(call)] + [deviation_from, Recipe]
    return {name for call in calls for name in inspect.signature(call).parameters}


def flags() -> set[str]:
    """Of all commands."""
    group = typer.main.get_command(app)
    commands = group.commands.values()  # type: ignore[attr-defined]
    return {
        option for command in commands for p in command.params for option in p.opts if p.param_type_name == "option"
    }


def test_the_library_writes_no_flags() -> None:
    for path, tree in library():
        for text in texts(tree):
            assert not FLAG.search(text.value), f"{path.name}:{text.lineno}"
            assert "'jaccli " not in text.value, f"{path.name}:{text.lineno}"


def test_the_library_marks_parameters() -> None:
    """One that is written out would stand in the shell as it is, apart from what Python alone can do wrong."""
    known = set(terms()) - {"args", "kwargs"}
    for path, tree in library():
        inside = {t for t, _ in templates(tree)}
        for text in texts(tree):
            named = set(PARAMETER.findall(text.value)) & known
            assert not named or text.value in inside, f"{path.name}:{text.lineno}: {text.value}"


def test_only_the_shell_reads_them() -> None:
    """Messages of readers of INPUT and of writers of results reach nobody in Python."""
    for path, tree in library():
        for node in ast.walk(tree):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module is not None and module.startswith(("jaccli.sinks", "jaccli.samples")):
                assert module == "jaccli.sinks.standard", f"{path.name} imports {module}"
    for path in (ROOT / "sinks" / "standard.py",):
        assert not any(FLAG.search(text.value) for text in texts(ast.parse(path.read_text())))


def test_terms_are_there_in_both_languages() -> None:
    found = terms()
    assert len(found) > 15
    for name, where in found.items():
        for value in ("", "1"):
            written, typed = in_python(Term(name, value)), flag(Term(name, value))
            assert name in _PYTHON or name in parameters(), f"{name} of {where} is no parameter"
            assert set(PARAMETER.findall(written)) <= parameters(), written
            assert set(FLAG.findall(typed)) <= flags(), f"{name} of {where}: {typed}"
    assert set(_PYTHON) <= set(found)
    assert set(_SHELL) <= set(found)


@pytest.mark.parametrize(
    ("text", "python", "shell"),
    [
        (worded("allow more with {max_memory}"), "allow more with max_memory=", "allow more with --max-memory"),
        (worded("{method:loop}"), 'method="loop"', "--method loop"),
        (worded("{source:input@1}"), 'source="input@1"', "--from input@1"),
        (worded("{target:output[0:100]}"), 'target="output[0:100]"', "--to 'output[0:100]'"),
        (worded("{dtype:float64}"), "model.to(torch.float64) and x.to(torch.float64)", "--dtype float64"),
        (worded("{trust:True}, {compile:True}"), "trust=True, compile=True", "--trust, --compile"),
        (worded("{samples:0:8}"), "x[0:8]", "--samples 0:8"),
        (worded("{arguments:{n}}", n="mask"), 'kwargs={"mask": …}', "--arg mask=VALUE"),
        (worded("{arch}, {arch_args}"), "arch=, arch_args=", "--arch, --arch-arg NAME=VALUE"),
        (worded("{max_memory:{t}} is bad", t=repr("x")), "max_memory='x' is bad", "--max-memory 'x' is bad"),
        (worded("{a}: {a!r}, {b:.2g}", a="{chunk}", b=0.123), "{chunk}: '{chunk}', 0.12", "{chunk}: '{chunk}', 0.12"),
        (worded("{name}: {rest}", name="m", rest=worded("{chunk}")), "m: chunk=", "m: --chunk"),
        (worded("{which}: no", which=term("validate_targets")), "validate_targets=: no", "--validate-targets: no"),
        ("max_memory= of {chunk}", "max_memory= of {chunk}", "max_memory= of {chunk}"),
    ],
)
def test_words(text: str, python: str, shell: str) -> None:
    assert (text, in_flags(text)) == (python, shell)
    for again in (copy.deepcopy(text), pickle.loads(pickle.dumps(text))):
        assert (again, in_flags(again)) == (python, shell)


def test_errors_speak_python() -> None:
    error = jaccli.UsageError(worded("{chunk:0}"), "", worded("leave {chunk} out"))
    assert str(error) == "chunk=0\nleave chunk= out"
    assert error.remedy == "leave chunk= out"
    assert error_in_flags(error) == "--chunk 0\nleave --chunk out"
    assert error_in_flags(pickle.loads(pickle.dumps(error))) == error_in_flags(error)


class Needs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.fc(x) * mask


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.no = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y - y.mean(0)


class Array(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() ** 2)


MODEL, X = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.ones(5, 3)
SHARED: dict[str, Callable[[Any], Any]] = {
    "unknown layer": lambda f: f(MODEL, X, source="fc9"),
    "unknown target": lambda f: f(MODEL, X, target="max_memory="),
    "glob": lambda f: f(MODEL, X, source="*"),
    "index": lambda f: f(MODEL, X, source="0[9]"),
    "no name": lambda f: f(MODEL, X, source=0),
    "module": lambda f: f(MODEL, X, target=MODEL[0]),
    "not called": lambda f: f(Unused(), X, source="no"),
    "dtype": lambda f: f(MODEL, X.double()),
    "shape": lambda f: f(MODEL, torch.ones(5, 7)),
    "no samples": lambda f: f(MODEL, torch.ones(0, 3)),
    "no tensor": lambda f: f(MODEL, X.numpy()),
    "integers": lambda f: f(nn.Embedding(5, 2), X.long()),
    "file": lambda f: f("model.pt", X),
    "argument missing": lambda f: f(Needs(), X),
    "argument missing in a script": lambda f: f(torch.jit.script(Needs()), X),
    "args": lambda f: f(Needs(), X, args=torch.ones(2)),
    "kwargs": lambda f: f(Needs(), X, kwargs=[1]),
    "samples in no dimension": lambda f: f(nn.Flatten(0), X),
}
OWN: dict[str, Callable[[], Any]] = {
    "memory": lambda: jaccli.jacobian(MODEL, X, max_memory=10),
    "memory of a plan": lambda: jaccli.plan(MODEL, X, max_memory="10B"),
    "chunk": lambda: jaccli.plan(MODEL, X, chunk=0),
    "chunk in words": lambda: jaccli.jacobian(MODEL, X, chunk="auto"),  # type: ignore[arg-type]
    "chunk of a graph": lambda: jaccli.graph_jacobian(X, X, chunk=0),
    "method": lambda: jaccli.jacobian(MODEL, X, method="revers"),
    "no method": lambda: jaccli.jacobian(MODEL, X, method=None),  # type: ignore[arg-type]
    "method that cannot": lambda: jaccli.jacobian(Array(), X, method="reverse"),
    "compile": lambda: jaccli.plan(MODEL, X, method="loop", compile=True),
    "another shape": lambda: jaccli.plan(MODEL, X)(torch.ones(5, 4)),
    "estimator": lambda: jaccli.identity_deviation(MODEL, X, estimator="none"),  # type: ignore[arg-type]
    "probes": lambda: jaccli.identity_deviation(MODEL, X, estimator="hutchinson", probes=0),
    "probes in words": lambda: jaccli.identity_deviation(MODEL, X, probes="2"),  # type: ignore[arg-type]
    "not square": lambda: jaccli.identity_deviation(MODEL, X, source="0"),
    "probes of an estimate": lambda: jaccli.estimate(jaccli.operator(MODEL, X), probes=0),
    "tolerance": lambda: jaccli.estimate(jaccli.operator(MODEL, X), tolerance=-1.0),
    "estimate of a model": lambda: jaccli.estimate(MODEL),  # type: ignore[arg-type]
    "vector": lambda: jaccli.operator(MODEL, X).matvec(torch.ones(4)),
    "no file": lambda: jaccli.load_model("nothing.pt"),
    "spec": lambda: jaccli.load_model("torch.nn:Linear"),
    "spec and arch": lambda: jaccli.load_model("torch.nn:Linear", arch=nn.Linear),
}
CASES = OWN | {
    f"{name}, {f.__name__}": (lambda f=f, call=call: call(f))
    for name, call in SHARED.items()
    for f in (jaccli.jacobian, jaccli.plan, jaccli.operator, jaccli.identity_deviation)
}


@pytest.mark.parametrize("case", CASES)
def test_mistakes_in_python(case: str) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(jaccli.JaccliError) as caught:
            CASES[case]()
    text = "\n".join([str(caught.value), *(str(w.message) for w in said)])
    assert not FLAG.search(text)
    assert not re.search(r"'jaccli |(?<!\w)-[io]\b", text)
    assert len(str(caught.value).splitlines()) <= 3
    assert case == "spec" or set(PARAMETER.findall(text)) <= parameters()  # a spec shows the signature of its own


SHELL = {
    "memory": (["--max-memory", "10B"], "--max-memory"),
    "memory in words": (["--max-memory", "lots"], "--max-memory 'lots' is not a size"),
    "compile": (["--compile", "--method", "loop"], "leave --compile out"),
    "layer": (["--layer", "0", "--to", "max_memory="], "'jaccli layers MODEL' lists them all"),
    "target": (["--to", "[*"], "not understood"),
    "glob": (["--to", "*"], "globs and several layers go into --layer"),
    "shape": (["--dtype", "float64", "--samples", "0:2"], "(--arg NAME=VALUE)"),
    "arch": (["--arch-arg", "width=3"], "give them with --arch-arg NAME=VALUE"),
}


@pytest.mark.parametrize("case", SHELL)
def test_mistakes_in_the_shell(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words, wanted = SHELL[case]
    torch.jit.script(MODEL).save(str(tmp_path / "model.pt"))  # type: ignore[no-untyped-call]
    model = "torch.nn:Linear" if case == "arch" else str(tmp_path / "model.pt")
    assert run(["compute", model, "-i", f"random:{4 if case == 'shape' else 3},n=5", *words]) in (2, 3, 5)
    said = capsys.readouterr().err
    assert wanted in said
    assert not set(PARAMETER.findall(said)) & (parameters() - {"width"}) or case == "layer"
    assert "torch.float" not in said


NAMES = ["max_memory=", "dtype=torch_float64", "{max_memory}", "{source:x}", "trust=True"]


@pytest.mark.parametrize("name", NAMES)
def test_names_stay_as_they_are(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers and files may be called like parameters."""
    with pytest.raises(jaccli.UsageError) as caught:
        jaccli.jacobian(MODEL, X, source=name + "x")
    assert f"'{name}x'" in str(caught.value)
    assert f"'{name}x'" in error_in_flags(caught.value)
    assert run(["compute", str(tmp_path / f"{name}.pt"), "-i", "random:3"]) == 3
    assert f"{name}.pt" in capsys.readouterr().err
    torch.save(MODEL.state_dict(), tmp_path / f"{name}.pt")
    path = str(tmp_path / f"{name}.pt")
    run(["compute", path, "--arch", "torch.nn:Linear", "--arch-arg", "in_features=3", "-i", "random:3"])
    assert "'out_features'" in capsys.readouterr().err
