"""``jaccli regularize``: J comes near, the function stays, and what is written is what the report says."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import jaccli
from jaccli.cli import endings, messages
from jaccli.cli.endings import between_steps, deadline
from jaccli.errors import ResourceError

from .conftest import BIN, ENV, Result, Run
from .test_terminal import ESCAPE, terminal

SAMPLES = Path(__file__).parents[2] / "sample_models"
X8 = str(SAMPLES / "near_identity_x.npy")
ARCH = f"{SAMPLES / 'nets.py'}:IdentityMLP"
MLP = ("mlp.pt", "-i", "x3.npy", "--layer", "embed", "--to", "blocks.1")
SHORT = ("--steps", "20")


def relative(cli: Run, *argv: object) -> float:
    """What ``jaccli deviation`` says, as a mean over samples."""
    found = cli("deviation", *argv, "--format", "json", "-q").ok().json
    return float(found["pairs"][0]["summary"]["relative"]["mean"])


def report(cli: Run, *argv: object) -> Any:
    return cli("regularize", *argv, "--format", "json").ok().json


def test_tenfold_by_default(cli: Run, tmp_path: Path) -> None:
    """The job that this command is for: TorchScript in, TorchScript out, nothing set."""
    out = tmp_path / "near.pt"
    given = ("-i", X8, "--layer", "fc1")
    original = (SAMPLES / "untrained.pt").read_bytes()
    result = cli("regularize", SAMPLES / "untrained.pt", *given, "-o", out, "--format", "json").ok()
    found = result.json
    for kind in ("train", "held_out"):
        assert found["before"][kind]["relative"] > 10 * found["after"][kind]["relative"], kind
    assert found["after"]["train"]["moved"] < 0.1
    assert found["held_out"] == {"from": "share", "numbers": [4]}
    assert (found["stopped"], found["steps"], found["estimator"]) == ("steps", 1000, "exact")
    assert found["pair"]["source"] == {"layer": "fc1", "shape": [16]}
    assert f"wrote {out}: 8 tensors" in result.err
    for when, model in (("before", SAMPLES / "untrained.pt"), ("after", out)):
        told = relative(cli, model, *given, "--samples", "4")
        assert found[when]["held_out"]["relative"] == pytest.approx(told, rel=1e-5)
        told = relative(cli, model, *given, "--samples", "0:4,5:8")
        assert found[when]["train"]["relative"] == pytest.approx(told, rel=1e-5)
    assert (SAMPLES / "untrained.pt").read_bytes() == original


def test_a_state_dict(cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "near.safetensors"
    given = ("--arch", ARCH, "-i", "random:8,n=60", "--layer", "fc1")
    source = SAMPLES / "untrained.safetensors"
    found = report(cli, source, *given, "-o", out, "--steps", 400, "--batch-size", 24)
    for kind in ("train", "held_out"):
        assert found["before"][kind]["relative"] > 10 * found["after"][kind]["relative"], kind
    told = relative(cli, out, *given, "--samples", "4::5")
    assert found["after"]["held_out"]["relative"] == pytest.approx(told, rel=1e-5)
    assert found["after"]["held_out"]["samples"] == 12
    before, after = load_file(source), load_file(out)
    assert list(before) == list(after)
    with safe_open(str(out), "pt") as file:
        kept = file.metadata()
    assert kept["pairs"] == "fc1->output"
    assert kept["towards"] == "identity"
    assert len(kept["model_sha256"]) == 64
    assert json.loads(kept["after"]) == found["after"]
    assert kept["command"].startswith("jaccli regularize")


def test_the_movement_of_the_outputs(cli: Run, tmp_path: Path) -> None:
    out, x = tmp_path / "near.safetensors", torch.from_numpy(np.load(X8))
    source = SAMPLES / "untrained.safetensors"
    found = report(cli, source, "--arch", ARCH, "-i", X8, "--layer", "fc1", "-o", out, "--steps", 60)
    rows = [0, 1, 2, 3, 5, 6, 7]
    with torch.no_grad():
        y0, y = (jaccli.load_model(path, arch=ARCH)(x) for path in (source, out))
    spread = (y0[rows] - y0[rows].mean(0)).square().mean()
    for kind, part in (("train", rows), ("held_out", [4])):
        moved = ((y - y0)[part].square().mean() / spread).sqrt()
        assert found["after"][kind]["moved"] == pytest.approx(float(moved), rel=1e-3)
        assert found["after"][kind]["task"] == pytest.approx(float(moved) ** 2, rel=1e-3)
        assert found["before"][kind]["moved"] == 0
    assert 0 < found["after"]["train"]["moved"] < 0.2


@pytest.mark.parametrize("model", ["nets.py:Mlp", "mlp.safetensors", "mlp.ckpt", "mlp.pt2", "mlp.pt"])
def test_every_kind_of_model_is_written_and_read_back(cli: Run, tmp_path: Path, model: str) -> None:
    out = tmp_path / "near.safetensors"
    arch = ("--arch", "nets.py:Mlp")
    given = ("-i", "x3.npy", "--layer", "embed", "--to", "blocks.1")
    result = cli("regularize", model, *given, *(arch if "mlp.s" in model or "ckpt" in model else ()), *SHORT, "-o", out)
    found = result.ok().lines[0]
    assert found["after"]["held_out"]["relative"] < found["before"]["held_out"]["relative"]
    told = relative(cli, out, *arch, *given, "--samples", "4")
    assert found["after"]["held_out"]["relative"] == pytest.approx(told, rel=1e-5)
    assert ("nets.py:Mlp" if ".pt" not in model else "--arch SPEC, or --activation NAME") in result.err


def test_a_chain_without_its_network(cli: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    chain = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5))
    save_file(chain.state_dict(), tmp_path / "chain.safetensors")
    given = ("--activation", "tanh", "-i", "x3.npy", "--layer", "0")
    found = report(cli, tmp_path / "chain.safetensors", *given, *SHORT, "-o", tmp_path / "near.safetensors")
    told = relative(cli, tmp_path / "near.safetensors", *given, "--samples", "4")
    assert found["after"]["held_out"]["relative"] == pytest.approx(told, rel=1e-5)


@pytest.mark.parametrize("towards", ["scaled-identity", "orthogonal", "zero"])
def test_other_ends(cli: Run, towards: str) -> None:
    found = report(cli, *MLP, *SHORT, "--towards", towards)
    assert found["towards"] == towards
    assert found["after"]["train"]["frobenius"] < found["before"]["train"]["frobenius"]
    shown = cli("regularize", *MLP, *SHORT, "--towards", towards, "--format", "table").ok().text
    assert {"scaled-identity": "|J - aI|", "orthogonal": "|J J^T - I|", "zero": "|J|"}[towards] in shown


def test_targets(cli: Run, tmp_path: Path) -> None:
    x, out = np.load("x3.npy"), tmp_path / "near.safetensors"
    model = jaccli.load_model("mlp.pt")
    for name, targets, loss in (
        ("numbers", np.stack([x[:, 0], x[:, 1] - x[:, 2]], 1), torch.nn.functional.mse_loss),
        ("classes", (x[:, 0] > 0).astype("i8"), torch.nn.functional.cross_entropy),
    ):
        np.save(tmp_path / name, targets)
        argv = (*MLP, "--targets", tmp_path / f"{name}.npy", "--steps", 60, "--lr", "1e-2", "--force", "-o", out)
        found = report(cli, *argv)
        with torch.no_grad():
            for when, now in (("before", model), ("after", jaccli.load_model(out, arch="nets.py:Mlp"))):
                told = loss(now(torch.from_numpy(x))[:4], torch.from_numpy(targets)[:4])
                assert found[when]["train"]["task"] == pytest.approx(float(told), rel=1e-4)
        assert found["after"]["train"]["task"] < 0.8 * found["before"]["train"]["task"]
        assert found["after"]["train"]["relative"] < found["before"]["train"]["relative"]
    shown = cli("regularize", *MLP, "--targets", tmp_path / "classes.npy", *SHORT, "--format", "table").text
    assert "cross entropy" in shown
    assert "task" in shown


def test_picked_samples_keep_their_targets(cli: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "y", np.arange(10.0).reshape(5, 2))
    found = report(cli, *MLP, "--targets", tmp_path / "y.npy", "--samples", "1,3", *SHORT)
    x, y = np.load("x3.npy")[[1, 3]], np.arange(10.0).reshape(5, 2)[[1, 3]]
    with torch.no_grad():
        given = jaccli.load_model("mlp.pt")(torch.from_numpy(x)).numpy()
    assert found["before"]["train"]["task"] == pytest.approx(((given - y) ** 2).mean(), rel=1e-5)


def test_held_out_samples_of_a_file(cli: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "other", np.random.default_rng(5).normal(size=(7, 3)).astype("f4"))
    found = report(cli, *MLP, "--validate", tmp_path / "other.npy", *SHORT)
    assert found["before"]["train"]["samples"] == 5
    assert found["held_out"]["from"] == "validate"
    told = relative(cli, "mlp.pt", "-i", tmp_path / "other.npy", *MLP[3:])
    assert found["before"]["held_out"]["relative"] == pytest.approx(told, rel=1e-5)


def test_too_few_to_hold_one_out(cli: Run) -> None:
    result = cli("regularize", *MLP, "--samples", "0:4", *SHORT, "--format", "table").ok()
    assert "too few to hold one out" in result.err
    assert "held out" not in result.text
    found = report(cli, *MLP, "--samples", "0:4", *SHORT)
    assert found["before"]["held_out"] is found["after"]["held_out"] is found["held_out"] is None


def test_a_seed_gives_the_same_weights(cli: Run, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> dict[str, torch.Tensor]:
        how = ("--estimator", "hutchinson", "--probes", 2, "--batch-size", 2, "--seed", seed)
        cli("regularize", *MLP, *SHORT, *how, "-o", tmp_path / f"{name}.safetensors").ok()
        return load_file(tmp_path / f"{name}.safetensors")

    a, b, c = weights("a", 1), weights("b", 1), weights("c", 2)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_some_parameters_only(cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "near.safetensors"
    cli("regularize", *MLP, *SHORT, "--train", "blocks.0", "--train", "blocks.*.*.bias", "-o", out).ok()
    before, after = load_file("mlp.safetensors"), load_file(out)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.0.bias"}


def test_several_layers(cli: Run) -> None:
    argv = ("mlp.pt", "-i", "x3.npy", "--layer", "{embed,blocks.0,head}", "--to", "blocks.1", *SHORT, "--lr", "1e-2")
    found = report(cli, *argv[:4], "{embed,blocks.0}", *argv[5:])
    assert [p["source"]["layer"] for p in found["pairs"]] == ["embed", "blocks.0"]
    for kind in ("train", "held_out"):
        for when in ("before", "after"):
            each = [p[when][kind]["relative"] for p in found["pairs"]]
            assert found[when][kind]["relative"] == pytest.approx(np.mean(each))
    assert found["after"]["train"]["relative"] < found["before"]["train"]["relative"]
    lines = cli("regularize", *argv[:4], "{embed,blocks.0}", *argv[5:]).ok().lines
    assert [line["source"] for line in lines] == ["embed", "blocks.0"]
    assert [line["after"]["train"] for line in lines] == [p["after"]["train"] for p in found["pairs"]]


def test_a_glob_leaves_out_what_does_not_fit(cli: Run) -> None:
    result = cli("regularize", "mlp.pt", "-i", "x3.npy", "--layer", "*", "--to", "blocks.1", *SHORT, "--format", "json")
    assert result.ok().json["pair"]["source"]["layer"] == "embed"
    assert "head -> blocks.1" in result.err
    assert "left out" in result.err


def test_arguments_of_one_row_a_sample(cli: Run, tmp_path: Path) -> None:
    code = Path("nets.py").read_text() + (
        "\nclass Gated(Mlp):\n    def forward(self, x, gate):\n        return super().forward(x) * gate\n"
    )
    (tmp_path / "gated.py").write_text(code)
    np.save(tmp_path / "gate", np.random.default_rng(0).uniform(1, 2, (5, 2)).astype("f4"))
    how = ("--layer", "embed", "--to", "blocks.1", "--arg", f"gate=@{tmp_path / 'gate.npy'}", *SHORT)
    found = report(cli, f"{tmp_path / 'gated.py'}:Gated", "-i", "x3.npy", *how, "--batch-size", 2)
    assert found["after"]["train"]["relative"] < found["before"]["train"]["relative"]
    refused = cli("regularize", f"{tmp_path / 'gated.py'}:Gated", "-i", "x3.npy", *how, "--validate", "x3.npy")
    assert refused.code == 2
    assert "one row for each sample" in refused.err


def test_half_precision_is_trained_in_single(cli: Run, tmp_path: Path) -> None:
    half = {name: value.bfloat16() for name, value in load_file("mlp.safetensors").items()}
    save_file(half, tmp_path / "half.safetensors")
    given = ("--arch", "nets.py:Mlp", *MLP[1:])
    out = tmp_path / "near.safetensors"
    found = report(cli, tmp_path / "half.safetensors", *given, "--steps", 60, "--lr", "2e-2", "-o", out)
    assert all(value.dtype == torch.bfloat16 for value in load_file(out).values())
    told = relative(cli, out, *given, "--dtype", "float32", "--samples", "4")
    assert found["after"]["held_out"]["relative"] == pytest.approx(told, rel=1e-5)
    assert told < 0.8 * found["before"]["held_out"]["relative"]


def test_early_stop(cli: Run) -> None:
    found = report(cli, *MLP, "--steps", 3000, "--lr", "2e-2", "--patience", 25)
    assert found["stopped"] == "patience"
    assert found["best_step"] + 25 <= found["steps"] < 3000


def test_a_loss_that_overflows_leaves_the_start(cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "near.safetensors"
    result = cli("regularize", *MLP, *SHORT, "--lr", "1e38", "-o", out, "--format", "json", "-q").ok()
    assert result.json["stopped"] == "not finite"
    assert result.json["best_step"] == 0
    assert "not finite" in result.err
    assert "the parameters are as they were" in result.err
    before = load_file("mlp.safetensors")
    assert all(torch.equal(before[name], value) for name, value in load_file(out).items())


def test_an_output_that_exists_is_not_touched(cli: Run, tmp_path: Path) -> None:
    out = tmp_path / "near.safetensors"
    out.write_bytes(b"precious")
    result = cli("regularize", *MLP, *SHORT, "-o", out)
    assert result.code == 2
    assert "--force" in result.err
    assert out.read_bytes() == b"precious"
    cli("regularize", *MLP, *SHORT, "-o", out, "--force").ok()
    assert load_file(out)
    assert os.listdir(tmp_path) == ["near.safetensors"]


def test_without_output_nothing_is_written(cli: Run) -> None:
    before = sorted(os.listdir())
    result = cli("regularize", *MLP, *SHORT).ok()
    assert "nothing was written" in result.err
    assert result.lines[0]["output"] is None
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("mlp.pt", "-i", "x3.npy"), 2, "no layer is given"),
        (("mlp.pt", "-i", "x3.npy", "--layer", "embed"), 2, "J of embed -> output is 2 x 4"),
        (
            ("mlp.pt", "-i", "x3.npy", "--layer", "blocks.1", "--to", "blocks.0", "--towards", "zero"),
            4,
            "J is zero, whatever",
        ),
        (("nets.py:Args", "-i", "x3.npy", "--layer", "input"), 4, "no floating-point parameters"),
        ((*MLP, "--towards", "ident"), 2, "--towards 'ident' is not known"),
        ((*MLP, "--estimator", "both"), 2, "--estimator 'both' is not known"),
        ((*MLP, "--estimator", "exact", "--probes", "3"), 2, "--probes"),
        ((*MLP, "--weight", "0"), 2, "--weight '0'"),
        ((*MLP, "--lr", "nan"), 2, "--lr 'nan'"),
        ((*MLP, "--steps", "0"), 2, "--steps '0'"),
        ((*MLP, "--train", "nothing"), 2, "--train 'nothing' matches none"),
        ((*MLP, "--targets", "x70.npy"), 2, "--targets has 2 rows"),
        ((*MLP, "--targets", "x3.npy"), 2, "a row has shape (3,)"),
        ((*MLP, "--targets", "nofile.npy"), 3, "no such input file"),
        ((*MLP, "--validate-targets", "x3.npy"), 2, "without --validate"),
        ((*MLP, "--validate", "x3.npy", "--targets", "x3.npy"), 2, "--validate-targets"),
        ((*MLP, "--validate", "-", "--targets", "-"), 2, "standard input"),
        ((*MLP, "-o", "near.npy"), 2, "expected -o NAME.safetensors"),
        ((*MLP, "-o", "-"), 2, "expected -o NAME.safetensors"),
        ((*MLP, "-o", "nofolder/near.safetensors"), 2, "no such folder"),
        (("nets.py:Mlp", *MLP[1:], "-o", "near.pt"), 2, ".pt is for a TorchScript MODEL"),
        (("mlp.pt2", *MLP[1:], "-o", "near.pt"), 2, ".pt is for a TorchScript MODEL"),
        (("mlp.pt", "-i", "nan.npy", *MLP[3:]), 3, "the loss is not finite before the first step"),
        (("mlp.pt", "-i", "x2.npy", *MLP[3:]), 3, "the model refuses this input"),
    ],
)
def test_refusals(cli: Run, argv: tuple[str, ...], code: int, message: str) -> None:
    result = cli("regularize", *argv)
    assert result.code == code
    assert message in result.err
    assert result.out == b""
    errors = result.err[result.err.index("error: ") :]
    assert len(errors.splitlines()) <= 3
    assert not [name for name in os.listdir() if name.startswith("near")]


def test_weights_that_are_not_finite(cli: Run, tmp_path: Path) -> None:
    state = load_file("mlp.safetensors")
    state["head.bias"][0] = float("nan")
    save_file(state, tmp_path / "bad.safetensors")
    result = cli("regularize", tmp_path / "bad.safetensors", "--arch", "nets.py:Mlp", *MLP[1:])
    assert result.code == 3
    assert "'head.bias' is not finite" in result.err


def test_a_function_that_cannot_stay_is_told(cli: Run) -> None:
    result = cli("regularize", "linear.pt", "-i", "random:2,n=20", "--layer", "input", *SHORT).ok()
    assert "J of the whole model is to change while its outputs stay" in result.err


def test_quiet_says_nothing(cli: Run, tmp_path: Path) -> None:
    result = cli("regularize", *MLP, "--samples", "0:4", *SHORT, "-q", "-o", tmp_path / "near.safetensors").ok()
    assert result.err == ""
    assert len(result.lines) == 1


def test_an_interrupt_keeps_the_best(cli: Run, tmp_path: Path) -> None:
    out, source = tmp_path / "near.safetensors", SAMPLES / "untrained.safetensors"
    given = ("--arch", ARCH, "-i", "random:8,n=40", "--layer", "fc1")
    argv = [BIN, "regularize", source, *given, "--steps", 1000000, "-o", out, "--format", "json"]
    running = subprocess.Popen(
        [str(word) for word in argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV,
        start_new_session=True,
        # A shell has its background jobs ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert running.stderr is not None
    assert b"step" in running.stderr.readline()  # some seconds after the start of the training
    running.send_signal(signal.SIGINT)
    text, err = running.communicate(timeout=30)
    result = Result(running.returncode, text, err.decode())
    assert result.code == 130, result.err
    assert "Traceback" not in result.err
    assert "kept is the best so far" in result.err
    found = result.json
    assert found["stopped"] == "interrupted"
    assert 0 < found["best_step"] <= found["steps"] < 1000000
    told = relative(cli, out, *given, "--samples", "4::5")
    assert found["after"]["held_out"]["relative"] == pytest.approx(told, rel=1e-5)
    assert told < found["before"]["held_out"]["relative"]


def test_a_timeout_keeps_the_best(cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "near.safetensors"
    for module in (messages, endings):  # a process of its own would count from its start
        monkeypatch.setattr(module, "STARTED", time.perf_counter())
    result = cli("regularize", *MLP, "--steps", "1000000", "-o", out, "--timeout", "2s", "--format", "json")
    assert result.code == 5
    assert "not done within 2 s" in result.err
    assert result.json["stopped"] == "timeout"
    assert result.json["steps"] > 0
    assert load_file(out)


def test_a_table_that_lives(files: Path) -> None:
    code, shown, _ = terminal(files, "regularize", *MLP, "--steps", "60")
    assert code == 0
    lives, final = shown.rsplit("\x1b[2K", 1)
    for word in ("step", "task loss", "deviation", "held out", "seconds", "Ctrl-C"):
        assert word in lives, word
    plain = ESCAPE.sub("", final).splitlines()
    assert "note: nothing was written: -o NAME.safetensors keeps the weights" in plain
    head = next(i for i, line in enumerate(plain) if line.startswith("J of embed -> blocks.1 towards the identity"))
    assert plain[head + 1].split() == ["samples", "when", "relative", "frobenius", "moved"]
    rows = [line.split() for line in plain[head + 3 : head + 7]]
    assert [row[-4] for row in rows] == ["before", "after"] * 2
    assert max(map(len, plain)) <= 80


def steps(numbers: Sequence[int], done: list[int]) -> None:
    """A step in which these signals come."""
    with deadline(1000), between_steps() as stop_if_asked:
        stop_if_asked()
        for number in numbers:
            signal.raise_signal(number)
            done.append(number)
        stop_if_asked()


@pytest.fixture
def _heard() -> Iterator[None]:
    """A shell has its background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heard")
def test_an_ending_waits_for_the_end_of_a_step() -> None:
    """But for a second Ctrl-C; handlers are put back."""
    before, done = signal.getsignal(signal.SIGINT), list[int]()
    with pytest.raises(KeyboardInterrupt):
        steps([signal.SIGINT], done)
    with pytest.raises(ResourceError, match="timeout"):
        steps([signal.SIGALRM], done)
    with pytest.raises(KeyboardInterrupt):
        steps([signal.SIGINT, signal.SIGINT], done)
    assert done == [signal.SIGINT, signal.SIGALRM, signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is before
