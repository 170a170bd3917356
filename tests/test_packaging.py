"""The wheel: built from the checkout, whole, free of everything else, and running outside of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import jaccli

ROOT = Path(__file__).parent.parent


# Where a wheel is tested away from its sources there is nothing to build.
with_sources = pytest.mark.skipif(not (ROOT / "jaccli").exists(), reason="no sources here")


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder is left in the checkout."""
    tmp = tmp_path_factory.mktemp("wheel")
    source = tmp / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("jaccli", "tests", "sample_models"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp / "dist", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = (tmp / "dist").glob("*.whl")
    return built


@with_sources
def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    info = f"jaccli-{jaccli.__version__}.dist-info/"
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "jaccli").rglob("*.py")}
    assert {name for name in names if not name.startswith(info)} == modules | {"jaccli/py.typed"}
    assert info + "licenses/LICENSE" in names


@with_sources
def test_every_folder_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "jaccli").rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


@with_sources
def test_it_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"jaccli-{jaccli.__version__}.dist-info/"
    metadata = archive.read(info + "METADATA").decode()
    assert "License-Expression: MIT" in metadata
    assert (ROOT / "README.md").read_text() in metadata
    assert "jaccli = jaccli.__main__:main" in archive.read(info + "entry_points.txt").decode()


@with_sources
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--version"], f"jaccli {jaccli.__version__}\n"),
        (["compute", "model.pt", "-i", "x.npy", "--format", "csv"], "sample,source,target,row,v0,v1,method\n"),
    ],
    ids=["version", "compute"],
)
def test_it_runs_outside_the_checkout(wheel: Path, tmp_path: Path, argv: list[str], expected: str) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    shutil.copy(ROOT / "sample_models" / "linear.pt", tmp_path / "model.pt")
    shutil.copy(ROOT / "sample_models" / "linear_x.npy", tmp_path / "x.npy")
    # Before the editable installation on the path; the file that answers is checked too.
    settings = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    for command in (["-m", "jaccli", *argv], ["-c", "import jaccli; print(jaccli.__file__)"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        wanted = expected if "jaccli" in command else str(tmp_path / "site")
        assert done.stdout.startswith(wanted)


def test_the_version_is_one() -> None:
    version = pyproject()["project"]["version"]
    assert version == jaccli.__version__
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_pinned_versions_are_within_the_ranges() -> None:
    project = pyproject()
    extras = [
        text for name, group in project["project"]["optional-dependencies"].items() if name != "all" for text in group
    ]
    stated = [*project["project"]["dependencies"], *extras, *project["dependency-groups"]["dev"]]
    stated += project["build-system"]["requires"]
    assert len(stated) > 10
    pinned = pins()
    for requirement in map(Requirement, stated):
        assert requirement.specifier, f"{requirement.name} has no range"
        assert pinned[requirement.name] in requirement.specifier, requirement.name
    assert pinned["torch"] == "2.13.0"


@with_sources  # what the table is written from cannot ask for the table
def test_the_range_of_torch_is_what_passed() -> None:
    """docs/versions.md: no failures, the oldest torch of the range, the newest below its end, each Python named."""
    table = re.findall(
        r"^\| (3\.\d+)\S* \| (\d+\.\d+)\S* \| (\w+) \| (\S+) \| (.*) \| \S+ \|$",
        (ROOT / "docs" / "versions.md").read_text(),
        re.MULTILINE,
    )
    if not table:
        pytest.skip("`make matrix` has not been run")
    assert {failed for *_, failed in table} == {"0"}
    (torch,) = (r for r in map(Requirement, pyproject()["project"]["dependencies"]) if r.name == "torch")
    bounds = {s.operator: s.version for s in torch.specifier}
    tried = sorted({tuple(map(int, version.split("."))) for _, version, *_ in table})
    assert bounds == {">=": "{}.{}".format(*tried[0]), "<": f"{tried[-1][0]}.{tried[-1][1] + 1}"}
    named = re.findall(r"Python :: (3\.\d+)", " ".join(pyproject()["project"]["classifiers"]))
    assert {python for python, *_ in table} == set(named)
