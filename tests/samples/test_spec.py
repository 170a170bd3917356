"""What is written after -i, --samples and --arg, as text."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from jaccli.errors import JaccliNote, RefusedError, UsageError
from jaccli.samples.spec import (
    FileInput,
    FolderInput,
    RandomInput,
    StdinInput,
    check_input,
    parse_input,
    parse_model_arg,
    parse_samples,
)


def test_parsing_needs_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, jaccli.samples.spec, jaccli.sinks.choose;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x.npy", FileInput("x.npy")),
        ("x.npz[key]", FileInput("x.npz", "key")),
        ("x.npz[a.b[0]]", FileInput("x.npz", "a.b[0]")),
        ("-", StdinInput()),
        ("-[x]", StdinInput("x")),
        ("random:5", RandomInput((5,))),
        ("random:3x32x32,n=2,dist=uniform,seed=7", RandomInput((3, 32, 32), 2, "uniform", 7)),
        ("random:1,seed=3", RandomInput((1,), seed=3)),
    ],
)
def test_input(text: str, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.npz").touch()
    spec = parse_input(text)
    assert spec == expected
    assert not isinstance(spec, RandomInput) or parse_input(str(spec)) == expected


def test_brackets_in_names(tmp_path: Path) -> None:
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "x.npz").touch()
    odd = tmp_path / "odd[0]"
    odd.touch()
    assert parse_input(str(odd)) == FileInput(str(odd))
    assert parse_input(f"{tmp_path}/a[1]") == FolderInput(f"{tmp_path}/a[1]")
    assert parse_input(f"{tmp_path}/a[1]/x.npz[k]") == FileInput(f"{tmp_path}/a[1]/x.npz", "k")


@pytest.mark.parametrize(
    "text",
    ["", "[x]", "x.npz[]", "random:", "random:0", "random:3x", "random:3,3", "random:3,n=0", "random:٣"],
)
def test_bad_input(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--given ") as caught:
        parse_input(text, "--given")
    assert str(caught.value).count("\n") <= 2


@pytest.mark.parametrize(
    "options", ["n=1,n=2", "dist=cauchy", "seed=-1", "seed=99999999999999999999", "m=2", "n=\n", "n"]
)
def test_bad_random(options: str) -> None:
    with pytest.raises(UsageError, match=r"^--given ") as caught:
        parse_input(f"random:3,{options}", "--given")
    assert str(caught.value).count("\n") <= 2


def test_missing_file_has_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "inputs.npy").touch()
    with pytest.raises(RefusedError, match=r"did you mean '.*inputs.npy'"):
        check_input(parse_input(f"{tmp_path}/input.npy"))
    check_input(parse_input(f"{tmp_path}/inputs.npy"))
    with pytest.raises(RefusedError, match="is a folder"):
        check_input(FileInput(str(tmp_path), "key"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:8", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("3,5", [3, 5]),
        ("-1", [9]),
        ("0:2,8", [0, 1, 8]),
        ("::4", [0, 4, 8]),
        ("-2:", [8, 9]),
        ("2::-1", [2, 1, 0]),
        ("5, 3", [5, 3]),
    ],
)
def test_samples(text: str, expected: list[int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert parse_samples(text).indices(10) == expected


@pytest.mark.filterwarnings("ignore::jaccli.errors.JaccliNote")
@pytest.mark.parametrize("text", ["10", "-11", "3,10", "10:12", "5:5"])
def test_samples_out_of_range_say_how_many_there_are(text: str) -> None:
    with pytest.raises(UsageError, match="10 samples, 0 to 9"):
        parse_samples(text).indices(10)


def test_a_slice_past_the_end_is_cut_with_a_note() -> None:
    with pytest.warns(JaccliNote, match="4 samples"):
        assert parse_samples("0:8").indices(4) == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["", "a", "1.5", "1:2:3:4", "::0", "1,", "--1", "1 2"])
def test_bad_samples(text: str) -> None:
    with pytest.raises(UsageError, match="--samples"):
        parse_samples(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1=16000", (1, 16000)),
        ("lr=-1.5e-3", ("lr", -1.5e-3)),
        ("flag=True", ("flag", True)),
        ("flag=false", ("flag", False)),
        ("h=none", ("h", None)),
        ("mode=nearest", ("mode", "nearest")),
        ("mode=a=b", ("mode", "a=b")),
        ('s="1"', ("s", "1")),
        ("s=", ("s", "")),
        ("size=[1,2]", ("size", [1, 2])),
        ("size=[1.5, null, 'a']", ("size", "bad")),
        ("size=['a', [True]]", ("size", ["a", [True]])),
        ("mask=@m.npy", ("mask", FileInput("m.npy"))),
        ("mask=@random:4,n=2", ("mask", RandomInput((4,), 2))),
    ],
)
def test_model_arg(text: str, expected: tuple[object, object]) -> None:
    if expected[1] == "bad":
        with pytest.raises(UsageError, match="is not a list"):
            parse_model_arg(text)
        return
    name, value = parse_model_arg(text)
    assert (name, value) == expected
    assert type(value) is type(expected[1])


@pytest.mark.parametrize("text", ["", "x", "=1", "a b=1", "-1=3", "x=[1", "x=[__import__('os')]", "x=@-", "x=@"])
def test_bad_model_arg(text: str) -> None:
    with pytest.raises(UsageError, match="--arg"):
        parse_model_arg(text)
