"""The corpus of bad files: each is refused, by every reader that it concerns, with a short answer that names it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from jaccli.errors import JaccliError
from jaccli.models.load import load_model
from jaccli.safety.memory import limited_memory
from jaccli.samples.load import load_samples
from jaccli.samples.spec import parse_input
from jaccli.sinks.read import read_jacobian
from tests.corpus import arrays, pickles, programs, saved
from tests.corpus.files import ARCH, Bad

FILES = [*pickles.FILES, *arrays.FILES, *saved.FILES, *programs.FILES]
QUICK = [bad for bad in FILES if not bad.slow]


def read(bad: Bad, path: Path) -> None:
    if bad.role == "model":
        archive = bad.name.startswith(("script", "export"))
        load_model(path, arch=None if archive else ARCH)
    elif bad.role == "input":
        load_samples(parse_input(str(path)))
    else:
        read_jacobian(str(path))


def test_there_are_enough() -> None:
    assert len(FILES) >= 150
    assert len({bad.name for bad in FILES}) == len(FILES)


@pytest.mark.parametrize("bad", QUICK, ids=lambda bad: bad.name)
@pytest.mark.parametrize("limit", [None, 50_000_000], ids=["", "bounded"])
def test_bad_files_are_refused(bad: Bad, limit: int | None, tmp_path: Path) -> None:
    path = tmp_path / "bad"
    bad.write(path)
    code, message = 0, ""
    with warnings.catch_warnings(), limited_memory(limit):
        warnings.simplefilter("ignore")
        try:
            read(bad, path)
        except JaccliError as error:
            code, message = error.exit_code, str(error)
    assert code in bad.codes, message
    if code:
        assert "bad" in message
        assert 1 <= len(message.splitlines()) <= 3
        message.encode()
