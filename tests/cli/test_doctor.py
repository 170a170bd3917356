"""``doctor`` and the calibration that it shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jaccli.calibration import TYPICAL, Calibration, cache
from jaccli.calibration.timing import Busy

from .conftest import Run, process

MADE = replace(TYPICAL, overhead_s=4.2e-6, made="2026-01-02T03:04:05+00:00")

# The processor, and an accelerator where there is one.
DEVICES = 1 + torch.accelerator.is_available()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JACCLI_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "measure", lambda device: MADE)
    monkeypatch.setattr(cache, "_unsaved", {})
    return tmp_path / "cache"


def test_not_calibrated(cli: Run, folder: Path) -> None:
    found = cli("doctor", "--format", "json").ok().json
    assert found["calibration"]["cpu"] is None
    assert found["facts"]["calibration cpu"].startswith("not calibrated; `jaccli doctor --calibrate`")
    assert "not calibrated" in cli("doctor", "--format", "table").ok().text
    assert not folder.exists()


def test_calibrate_once_and_see_it_later(cli: Run, folder: Path) -> None:
    first = cli("doctor", "--calibrate", "--format", "json").ok()
    assert first.err == ""
    assert len([*folder.iterdir()]) == DEVICES
    later = cli("doctor", "--format", "json").ok().json
    # What is free of the machine's memory is another figure a moment later.
    assert later["facts"].pop("memory for J").endswith("B")
    assert {**later, "facts": {**later["facts"], "memory for J": first.json["facts"]["memory for J"]}} == first.json
    assert later["calibration"]["cpu"]["overhead_s"] == 4.2e-6
    assert later["calibration"]["cpu"]["matmul"]["float32"][0] == list(MADE.matmul["float32"][0])
    facts = later["facts"]
    assert facts["calibration cpu"] == MADE.made
    assert facts["cpu overhead of a call"] == "4.2 us"
    assert facts["cpu product float64"] == "2.1, 22, 59, 84 GFLOP/s at 1e+03, 1e+05, 1e+07, 5e+08 FLOP"
    assert facts["cpu memory"] == "150, 140, 33 GB/s at 1e+06, 8e+06, 7e+07 B"
    assert facts["cpu conv2d channels_last"] == "GFLOP/s by channels: 1->1 4.1, 1->16 58, 16->1 13, 16->16 160"
    assert facts["cpu functions"] == "G/s: tanh 0.63, exp 1.8, sigmoid 3.4, gelu 1.2"


@pytest.mark.parametrize("form", ["table", "jsonl", "csv", "markdown"])
def test_in_every_format(cli: Run, form: str) -> None:
    text = cli("doctor", "--calibrate", "--format", form).ok().text
    assert "2026" in text
    assert "4.2 us" in text
    assert len([line for line in text.splitlines() if "cpu" in line and "product" in line]) == 6


def test_a_busy_machine(cli: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(device: torch.device) -> Calibration:
        raise Busy

    monkeypatch.setattr(cache, "measure", busy)
    result = cli("doctor", "--calibrate", "--format", "json").ok()
    assert "busy" in result.err
    assert "typical figures" in result.json["facts"]["calibration cpu"]
    assert not folder.exists()
    assert cli("doctor", "--calibrate", "-q").ok().err == ""


def test_every_device_is_calibrated(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaccli.cli import cmd_doctor as doctor

    seen: list[Any] = []
    monkeypatch.setattr(cache, "measure", lambda device: seen.append(device) or MADE)
    monkeypatch.setattr(doctor, "_devices", lambda: {"cpu": "", "cuda:1": "A GPU"})
    facts = cli("doctor", "--calibrate", "--format", "json").ok().json["facts"]
    assert seen == [torch.device("cpu"), torch.device("cuda:1")]
    assert facts["devices"] == "cpu, cuda:1 (A GPU)"
    assert facts["calibration cuda:1"] == MADE.made
    assert "cuda:1 strided" not in facts
    assert facts["cuda:1 permuted copy"] == "10 GB/s"


def test_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    env = {"JACCLI_CACHE_DIR": str(folder)}
    found = process("doctor", "--calibrate", "--format", "json", cwd=tmp_path, env=env).ok()
    kept = [*folder.iterdir()] if folder.exists() else []
    # A machine that is busy with other work is not measured.
    assert len(kept) == DEVICES or "busy" in found.err
    again = process("doctor", "--format", "json", cwd=tmp_path, env=env).ok()
    assert again.json["calibration"]["cpu"] == (found.json["calibration"]["cpu"] if kept else None)
