"""Bad input: at most three lines on standard error, nothing on standard output, the contract's exit code."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from .conftest import Result, Run
from .nets import hostile

X2, X3, X4 = ("-i", "x2.npy"), ("-i", "x3.npy"), ("-i", "x4.npy")
LINEAR, MLP, TRICKY, ARGS = (("compute", name) for name in ("linear.pt", "mlp.pt", "tricky.pt", "args.pt"))
DEVIATION = ("deviation", "linear.pt", *X2, "--layer", "input")
CKPT = ("compute", "mlp.ckpt", *X3)

# argv, exit code, words of the message
MODEL_ERRORS = [
    (("compute", "linaer.pt", *X2), 3, "no such file|linaer.pt|near that name|linear.pt"),
    (("compute", "folder", *X2), 3, "'folder' is a folder"),
    (("compute", "empty", *X2), 3, "'empty' is an empty file"),
    (("compute", "page.pt", *X2), 3, "HTML page|download"),
    (("compute", "pickled.pt", *X3), 3, "pickled module|Mlp|state_dict|--trust"),
    (("compute", "cut_linear.pt", *X2), 3, "cut short or damaged|again"),
    (("compute", "cut_mlp.safetensors", *X3, "--arch", "nets.py:Mlp"), 3, "cut short or damaged"),
    (("compute", "cut_mlp.ckpt", *X3, "--arch", "nets.py:Mlp"), 3, "cut short or damaged"),
    (("compute", "cut_mlp.pt2", *X3), 3, "cut short or damaged"),
    (("compute", "x3.npy", *X3), 3, "x3.npy|expected"),
    (("compute", "mlp.safetensors", *X3), 2, "without a network|--arch|--activation"),
    (CKPT, 2, "without a network|--arch|--activation"),
    (("layers", "old.ckpt"), 2, "without a network|--arch"),
    ((*CKPT, "--arch", "nets.py:Linear"), 3, "lacks|fc.weight|nearest"),
    ((*CKPT, "--arch", "nets.py:Mlp", "--arch-arg", "width=5"), 3, "embed.weight|(4, 3)|(5, 3)"),
    ((*CKPT, "--arch", "nets.py:Mlp", "--arch-arg", "widht=5"), 2, "widht|width"),
    ((*CKPT, "--arch", "nets.py:Mlp", "--arch-arg", "width"), 2, "--arch-arg|name=value"),
    ((*CKPT, "--arch", "nets.py:Mlpp"), 2, "no 'Mlpp'|'Mlp'"),
    ((*CKPT, "--arch", "net.py:Mlp"), 2, "--arch|no such file|'net.py'"),
    ((*CKPT, "--arch", "nowhere.at_all:Mlp"), 2, "no module 'nowhere'"),
    ((*CKPT, "--arch", "nets"), 2, "--arch|package.module:callable"),
    (("compute", "mlp.safetensors", *X3, "--activation", "rleu"), 2, "rleu|relu"),
]
INPUT_ERRORS = [
    (LINEAR, 2, "no samples|-i INPUT"),
    ((*LINEAR, "-i", "nofile.npy"), 3, "no such input file|'nofile.npy'"),
    ((*LINEAR, "-i", "empty"), 3, "'empty' is empty"),
    ((*LINEAR, "-i", "folder"), 3, "'folder' holds no images"),
    ((*LINEAR, "-i", "page.npy"), 3, "HTML|expected arrays"),
    ((*LINEAR, "-i", "cut_x3.npy"), 3, "truncated"),
    ((*LINEAR, "-i", "cut_two.npz[a]"), 3, "cut short"),
    ((*LINEAR, "-i", "two.npz"), 2, "2 arrays|'a', 'b'|FILE[KEY]"),
    ((*LINEAR, "-i", "two.npz[c]"), 2, "no 'c'|'a', 'b'"),
    ((*LINEAR, "-i", "linear.pt"), 3, "TorchScript model|expected arrays"),
    ((*LINEAR, "-i", "random:3x"), 2, "'3x' is not a shape"),
    ((*LINEAR, "-i", "random:3,k=2"), 2, "'k=2'"),
    ((*MLP, *X2), 3, "refuses this input|(3, 2)|--arg"),
    ((*MLP, "-i", "whole.npy"), 4, "'input'|int64|no derivative|floating-point"),
    (("compute", "words.pt", "-i", "words.npy"), 4, "int64|no derivative|embedding"),
    (("compute", "words.pt", *X4, "--from", "table"), 3, "refuses this input|float32"),
    ((*LINEAR, *X2, "--samples", "3"), 2, "--samples 3|0 to 2"),
    ((*LINEAR, *X2, "--samples", "5:9"), 2, "picks no sample|0 to 2"),
    ((*LINEAR, *X2, "--samples", "a"), 2, "--samples 'a'|0:8"),
    ((*LINEAR, *X2, "--arg", "rate"), 2, "--arg 'rate'|NAME=VALUE"),
    ((*LINEAR, *X2, "--arg", "0=1"), 2, "--arg 0|positions from 1"),
    ((*LINEAR, *X2, "--arg", "2=1"), 2, "position 1 open"),
    ((*LINEAR, *X2, "--arg", "rate=1"), 2, "no argument 'rate'"),
    ((*ARGS, *X2, "--arg", "rat=1"), 2, "no argument 'rat'|rate: float"),
    ((*ARGS, *X2, "--arg", "rate=1", "--arg", "rate=2"), 2, "--arg rate is given twice"),
    ((*ARGS, *X2, "--arg", "mask=@nofile.npy"), 3, "no such input file"),
    ((*ARGS, *X2, "--arg", "rate=fast"), 2, "'rate'|str"),
]
LAYER_ERRORS = [
    ((*MLP, *X3, "--from", "emebd"), 2, "'emebd'|nearest: embed|jaccli layers"),
    ((*MLP, *X3, "--to", "hed"), 2, "'hed'|head"),
    ((*MLP, *X3, "--layer", "nothing.*"), 2, "'nothing.*' matches none"),
    ((*MLP, *X3, "--to", "blocks.*"), 2, "'blocks.*' is a glob|--layer"),
    ((*TRICKY, *X4, "--from", "twice"), 2, "called 2 times|twice#1, twice#2"),
    ((*TRICKY, *X4, "--from", "twice#3"), 4, "twice#3|2 times"),
    ((*TRICKY, *X4, "--from", "split"), 2, "2 floating-point tensors|0 (3, 2), 1 (3, 2)|split:out.0"),
    ((*TRICKY, *X4, "--from", "named"), 2, "a (3, 4), b (3, 4)|named:out.a"),
    ((*TRICKY, *X4, "--from", "split:out.2"), 2, "no element '2'|'0', '1'"),
    ((*TRICKY, *X4, "--from", "unused"), 4, "'unused'|not called"),
    ((*TRICKY, *X4, "--from", "count"), 4, "'count'|int64|no derivative"),
    ((*TRICKY, *X4, "--from", "flip"), 2, "first dimension|flip@1"),
    ((*TRICKY, *X4, "--to", "twice#0"), 2, "counted from 1"),
    ((*TRICKY, *X4, "--to", "twice#1[9]"), 2, "does not fit|(4,)"),
    ((*TRICKY, *X4, "--to", "twice[a]"), 2, "integers"),
    ((*TRICKY, *X4, "--to", "twice["), 2, "expected PATH"),
    (("deviation", "mlp.pt", *X3, "--layer", "embed"), 2, "embed -> output|2 x 4|square|same size"),
    (("deviation", "mlp.pt", *X3), 2, "no layer|--layer LAYER"),
    (("bench", "mlp.pt", *X3, "--layer", "blocks.*"), 2, "one layer pair|got 2"),
]
OPTION_ERRORS = [
    ((*LINEAR, *X2, "-o", "taken.npy"), 2, "'taken.npy' exists|--force"),
    ((*LINEAR, *X2, "-o", "nofolder/J.npy"), 2, "no such folder 'nofolder'"),
    ((*LINEAR, *X2, "-o", "folder", "--format", "npy"), 2, "'folder' is a folder"),
    ((*LINEAR, *X2, "-o", "J"), 2, "no extension|.npy|--format"),
    ((*LINEAR, *X2, "-o", "J.xyz"), 2, "'.xyz'|.npy|--format"),
    ((*LINEAR, *X2, "--format", "zarr"), 2, "zarr|folder|-o NAME.zarr"),
    ((*LINEAR, *X2, "--format", "nppy"), 2, "'nppy'|expected one of table"),
    ((*LINEAR, *X2, "--format", "markdown"), 2, "markdown does not hold"),
    ((*DEVIATION, "--format", "npy"), 2, "npy does not hold"),
    ((*MLP, *X3, "--layer", "blocks.*"), 2, "one layer pair|2|npz"),
    ((*LINEAR, *X2, "--device", "cuda:93"), 2, "cuda:93|--device cpu"),
    ((*LINEAR, *X2, "--device", "gpu"), 2, "'gpu'|cuda"),
    ((*LINEAR, *X2, "--dtype", "float8"), 2, "'float8'|bfloat16"),
    ((*LINEAR, *X2, "--method", "revers"), 2, "'revers'|did you mean 'reverse'"),
    ((*LINEAR, *X2, "--max-memory", "lots"), 2, "--max-memory 'lots'|4GiB"),
    ((*LINEAR, *X2, "--max-memory", "10B"), 5, "10 B|--max-memory"),
    ((*LINEAR, *X2, "--timeout", "soon"), 2, "--timeout 'soon'|60s"),
    ((*LINEAR, *X2, "--timeout", "1ms"), 5, "--timeout|more time"),
    ((*LINEAR, *X2, "--chunk", "0"), 2, "--chunk '0'"),
    ((*LINEAR, *X2, "--chunk", "²"), 2, "--chunk"),
    ((*LINEAR, *X2, "--threads", "many"), 2, "--threads 'many'|from 1"),
    ((*LINEAR, *X2, "--threads", "0"), 2, "--threads '0'|from 1"),
    ((*LINEAR, *X2, "--seed", "-1"), 2, "--seed '-1'|from 0"),
    ((*DEVIATION, "--fail-above", "relative"), 2, "--fail-above 'relative'|NORM=VALUE"),
    ((*DEVIATION, "--fail-above", "relative=high"), 2, "--fail-above 'relative=high'|NORM=VALUE"),
    ((*DEVIATION, "--fail-above", "relativ=1"), 2, "NORM one of frobenius"),
    ((*DEVIATION, "--fail-above", "relative=nan"), 2, "--fail-above"),
    (("deviation", *X3), 2, "MODEL|--jacobian FILE"),
    (("deviation", "linear.pt", "--jacobian", "taken.npy"), 2, "--jacobian and MODEL"),
    (("deviation", "--jacobian", "taken.npy", "--to", "fc"), 2, "--jacobian and --to"),
    (("deviation", "--jacobian", "taken.npy", "--arg", "a=1"), 2, "--jacobian and --arg"),
    ((*LINEAR, *X2, "--from", ""), 2, "expected PATH"),
    (("regularize", *LINEAR[1:], *X2, "--layer", "fc", "--jitter", "some"), 2, "--jitter 'some'|from 0"),
    (
        ("regularize", *LINEAR[1:], *X2, "--layer", "fc", "--jitter", "1", "--targets", "x3.npy"),
        2,
        "--jitter|--targets",
    ),
    (("deviation", "--jacobian", "nofile.npy"), 3, "no such input file"),
    (("deviation", "--jacobian", "x3.npy"), 2, "5 x 3|square"),
    (("deviation", "--jacobian", "taken.npy"), 3, "'taken.npy'"),
    (("show",), 2, "one saved Jacobian"),
    (("show", "a.npy", "--jacobian", "b.npy"), 2, "got two"),
    (("show", "mlp.pt"), 3, "TorchScript model"),
    (("bench", "linear.pt", *X2, "--methods", "loop,revers"), 2, "'revers'|did you mean 'reverse'"),
    (("bench", "linear.pt", *X2, "--rounds", "0"), 2, "--rounds '0'"),
    (("bench", "linear.pt", *X2, "--max-time", "x"), 2, "--max-time 'x'"),
    (("doctor", "--format", "npy"), 2, "npy does not hold"),
    ((*LINEAR, "--fromm", "input"), 2, "--fromm|--from|compute --help"),
    (("compte", "linear.pt"), 2, "compte|compute"),
    (("compute",), 2, "MODEL"),
]


def is_an_error(result: Result, code: int, words: str) -> None:
    assert result.code == code, result.err
    assert result.out == b""
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("error: ")
    assert "Traceback" not in result.err
    assert "weights_only" not in result.err
    assert max(map(len, lines)) < 260
    assert [word for word in words.split("|") if word not in result.err] == []


@pytest.mark.parametrize(("argv", "code", "words"), MODEL_ERRORS)
def test_bad_models(cli: Run, argv: tuple[str, ...], code: int, words: str) -> None:
    is_an_error(cli(*argv), code, words)


@pytest.mark.parametrize(("argv", "code", "words"), INPUT_ERRORS)
def test_bad_inputs(cli: Run, argv: tuple[str, ...], code: int, words: str) -> None:
    is_an_error(cli(*argv), code, words)


@pytest.mark.parametrize(("argv", "code", "words"), LAYER_ERRORS)
def test_bad_layers(cli: Run, argv: tuple[str, ...], code: int, words: str) -> None:
    is_an_error(cli(*argv), code, words)


@pytest.mark.parametrize(("argv", "code", "words"), OPTION_ERRORS)
def test_bad_options(cli: Run, argv: tuple[str, ...], code: int, words: str) -> None:
    is_an_error(cli(*argv), code, words)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_an_absent_device_is_named(cli: Run) -> None:
    is_an_error(cli(*LINEAR, *X2, "--device", "mps"), 2, "--device mps|--device cpu")


def test_the_file_in_the_way_is_left_as_it_is(cli: Run, files: Path) -> None:
    cli(*LINEAR, *X2, "-o", "taken.npy")
    assert (files / "taken.npy").read_bytes() == b"precious"
    assert [name for name in os.listdir(files) if name.endswith(".partial")] == []


def test_a_failed_run_leaves_no_file(cli: Run, tmp_path: Path) -> None:
    result = cli(*TRICKY, *X4, "--from", "unused", "-o", tmp_path / "J.npy")
    assert result.code == 4
    assert os.listdir(tmp_path) == []


def test_names_from_files_cannot_act(cli: Run, files: Path, tmp_path: Path) -> None:
    name = "[bold]\x1b[31m\nx.pt"
    shutil.copy(files / "page.pt", tmp_path / name)
    result = cli("compute", tmp_path / name, *X2)
    is_an_error(result, 3, "HTML|[bold]")
    assert "\x1b" not in result.err
    torch.jit.trace(hostile(), torch.zeros(1, 2)).save(str(tmp_path / "h.pt"))
    for form in ("table", "markdown", "csv", "json", "jsonl"):
        shown = cli("layers", tmp_path / "h.pt", "--format", form).ok().text
        assert "\x1b" not in shown
        assert "red" in shown
    shown = cli("layers", tmp_path / "h.pt", "--format", "table").text
    assert "[red]\\x1b[31mfc[/red]" in shown
    assert "\x1b" not in cli("compute", tmp_path / "h.pt", *X2, "--from", "fc").err


def test_a_bug_is_two_lines_and_code_70(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr("jaccli.cli.work.load", broken)
    result = cli(*LINEAR, *X2)
    is_an_error(result, 70, "a bug in jaccli|ZeroDivisionError: deep inside|JACCLI_TRACEBACK=1")
    monkeypatch.setenv("JACCLI_TRACEBACK", "1")
    result = cli(*LINEAR, *X2)
    assert result.code == 70
    assert "Traceback" in result.err
    assert "in broken" in result.err


def test_out_of_memory_is_code_5(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("jaccli.cli.work.load", full)
    is_an_error(cli(*LINEAR, *X2), 5, "out of memory|--max-memory")


def test_messages_on_the_way_to_an_error_are_not_shown(cli: Run) -> None:
    """The checkpoint's note about its wrapper key, and a warning about NaN, would make five lines."""
    result = cli("compute", "mlp.ckpt", "-i", "nan.npy", "--arch", "nets.py:Mlp", "--from", "nothing")
    is_an_error(result, 2, "'nothing'")
    result = cli("compute", "mlp.ckpt", "-i", "nan.npy", "--arch", "nets.py:Mlp", "--from", "head", "--format", "csv")
    assert result.code == 0
    assert "note: " in result.err
    assert "state_dict" in result.err
    assert "warning: 'nan.npy' has 1 non-finite" in result.err


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_leaves_warnings(cli: Run, flag: str) -> None:
    result = cli("compute", "mlp.ckpt", "-i", "nan.npy", "--arch", "nets.py:Mlp", "--format", "csv", flag)
    assert result.code == 0
    assert "note" not in result.err
    assert "warning: 'nan.npy' has 1 non-finite" in result.err
    assert "J has 6 non-finite values (first at sample 1)" in result.err
