"""The machine's figures: how they are timed, what they predict, and where they are kept."""

from __future__ import annotations

import itertools
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import jaccli
from jaccli.calibration import TYPICAL, Calibration, cache, calibrate, load, measure, stored_or_typical, timing
from jaccli.calibration.figures import FRESH_FROM, at
from jaccli.calibration.timing import ALLOWANCE_S, INTERRUPTIONS, LEAST_ROUNDS, MORE_ROUNDS, ROUNDS, Busy, TimedOperator

CPU = torch.device("cpu")
MADE = replace(TYPICAL, overhead_s=3e-6, made="2026-01-02T03:04:05+00:00")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, and no other work on the machine."""
    place = tmp_path / "cache"
    monkeypatch.setenv("JACCLI_CACHE_DIR", str(place))
    monkeypatch.setattr(timing, "_preemptions", lambda: 0)
    cache._unsaved.clear()
    yield place
    cache._unsaved.clear()


# --- timing, on a clock that the operators turn ---


class Machine:
    """Operators that take as long as they are told, one duration a call, the last one for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.preempted, self.calls, self.waits = 0.0, 0, 0, 0
        monkeypatch.setattr(timing, "clock", lambda: self.now)
        monkeypatch.setattr(timing, "_preemptions", lambda: self.preempted)

    def probe(self, name: str, *seconds: float, interrupted: int = 0, **more: Any) -> TimedOperator:
        durations = itertools.chain(seconds, itertools.repeat(seconds[-1]))
        left = itertools.count(interrupted, -1)

        def call() -> None:
            self.calls += 1
            self.now += next(durations)
            self.preempted += next(left) > 0

        return TimedOperator(("field", name, 1.0), **{"work": 1.0, "call": call, **more})


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def least(*probes: TimedOperator, wait: Callable[[], None] | None = None) -> dict[str, float]:
    return {name: seconds for (_, name, _), seconds in timing.least_seconds(list(probes), wait).items()}


def test_least_of_a_few_tries(machine: Machine) -> None:
    found = least(machine.probe("a", 5e-3, 2e-5, 1e-5, 9e-3), machine.probe("b", 1e-6, repeats=4))
    assert found == pytest.approx({"a": 1e-5, "b": 1e-6})
    # What is slow in all tries but two is still measured right.
    assert machine.calls <= ROUNDS * (1 + 4)


def test_tries_are_spread_over_rounds(machine: Machine) -> None:
    order: list[str] = []
    probes = [TimedOperator(("field", name, 1.0), 1.0, partial(order.append, name)) for name in "abc"]
    least(*probes)
    assert "".join(order) == "abc" * ROUNDS


def test_a_slow_operator_has_an_allowance(machine: Machine) -> None:
    least(machine.probe("slow", ALLOWANCE_S * 0.6))
    assert machine.calls == 2


def test_a_slow_machine_has_a_budget(machine: Machine) -> None:
    least(*[machine.probe(str(n), ALLOWANCE_S / 4) for n in range(200)])
    assert machine.calls <= 200 * LEAST_ROUNDS + 1


def test_what_would_take_too_long_is_left_out(machine: Machine) -> None:
    def ladder(name: str, work: float, *seconds: float) -> TimedOperator:
        return machine.probe(name, *seconds, work=work, ladder=work > 1)

    found = least(ladder("1", 1, 1e-5), ladder("100", 100, 1e-3), ladder("10000", 1e4, 10.0))
    assert set(found) == {"1", "100"}
    # The first call alone may be slow: it is made again before anything is left out.
    found = least(ladder("1", 1, 5e-3, 1e-6), ladder("100", 100, 1e-4))
    assert found == pytest.approx({"1": 1e-6, "100": 1e-4})


def test_more_tries_where_others_got_in_between(machine: Machine) -> None:
    quiet = [machine.probe(str(n), 1e-5) for n in range(9)]
    found = least(*quiet, machine.probe("hit", *[1e-3] * ROUNDS, 1e-5, interrupted=ROUNDS))
    assert found["hit"] == pytest.approx(1e-5)
    assert machine.calls == 9 * ROUNDS + ROUNDS + 1


def test_a_busy_machine_says_nothing(machine: Machine) -> None:
    with pytest.raises(Busy):
        least(machine.probe("quiet", 1e-5), machine.probe("hit", 1e-3, interrupted=99))
    assert machine.calls == ROUNDS + ROUNDS + MORE_ROUNDS


def test_a_busy_machine_is_given_up_early(machine: Machine) -> None:
    with pytest.raises(Busy):
        least(*[machine.probe(str(n), 3e-2, interrupted=99, repeats=50) for n in range(100)])
    assert machine.calls == INTERRUPTIONS


def test_an_asynchronous_device_is_waited_for_once_a_try(machine: Machine) -> None:
    def wait() -> None:
        machine.waits += 1
        machine.now += 5e-5

    assert least(machine.probe("a", 1e-5, repeats=5), wait=wait) == pytest.approx({"a": 2e-5})
    assert (machine.calls, machine.waits) == (5 * ROUNDS, ROUNDS)


# --- predictions ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_square_products_take_what_was_measured(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    for size, rate in MADE.matmul[name]:
        side = round((size / 2) ** (1 / 3))
        assert MADE.gemm_seconds(side, side, side, dtype=dtype) == pytest.approx(size / rate)
    for size, rate in MADE.batched[name]:
        side = round((size / 2) ** (1 / 3))
        assert MADE.gemm_seconds(side, side, side, 48, dtype) == pytest.approx(48 * size / rate)


def test_thin_products_take_longer_than_square_ones() -> None:
    for batch, wide in ((1, 256), (32, 64)):
        kind = "batched " if batch > 1 else ""
        for place, name in enumerate("mnk"):
            shape = [wide] * 3
            shape[place] = 4
            square = MADE.batched if batch > 1 else MADE.matmul
            flops = 2.0 * batch * math.prod(shape)
            expected = flops / at(square["float32"], flops / batch) / at(MADE.narrow[kind + name], 4)
            assert MADE.gemm_seconds(*shape, batch) == pytest.approx(expected, rel=0.3)


def test_products_of_huge_thin_operands_are_bound_by_memory() -> None:
    fast = replace(MADE, narrow=dict.fromkeys(MADE.narrow, ((1.0, 1.0),)))
    assert fast.gemm_seconds(1, 8192, 8192) == fast.elementwise_seconds(4 * (8192 * 8192 + 2 * 8192))


def test_dtypes_that_were_not_measured_take_their_relatives() -> None:
    shape = (300, 200, 100)
    assert MADE.gemm_seconds(*shape, dtype=torch.float16) == MADE.gemm_seconds(*shape, dtype=torch.bfloat16)
    less = replace(MADE, matmul={"float32": MADE.matmul["float32"]}, batched={"float32": MADE.batched["float32"]})
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        assert less.gemm_seconds(*shape, 3, dtype) == pytest.approx(less.gemm_seconds(*shape, 3), rel=0.5)


def test_between_sizes_logarithms_count() -> None:
    table = ((10.0, 1.0), (1000.0, 100.0), (4000.0, 100.0))
    assert [at(table, x) for x in (1, 10, 100, 1000, 2000, 1e9)] == pytest.approx([1, 1, 10, 100, 100, 100])
    assert MADE.elementwise_seconds(2.0**20) == pytest.approx(2.0**20 / MADE.memory[0][1])
    assert MADE.elementwise_seconds(2.0**30) == pytest.approx(2.0**30 / MADE.memory[-1][1])


@given(st.lists(st.tuples(st.floats(1, 1e12), st.floats(1e3, 1e15)), min_size=1, max_size=5), st.floats(0, 1e15))
def test_a_rate_lies_between_those_measured(points: list[tuple[float, float]], size: float) -> None:
    table = tuple(sorted(dict(points).items()))
    rates = [rate for _, rate in table]
    assert min(rates) * (1 - 1e-9) <= at(table, size) <= max(rates) * (1 + 1e-9)


def test_fresh_memory_costs_only_where_blocks_are_not_used_again() -> None:
    assert MADE.fresh_seconds(FRESH_FROM - 1) == 0
    assert MADE.fresh_seconds(FRESH_FROM) == FRESH_FROM / MADE.fresh


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_take_what_was_measured(channels_last: bool, transposed: bool) -> None:
    kind = f"{'conv_transpose2d' if transposed else 'conv2d'} {'channels_last' if channels_last else 'contiguous'}"
    take = partial(MADE.conv_seconds, channels_last=channels_last, transposed=transposed)
    for into, out in itertools.product((1, 16), repeat=2):
        for flops, rate in MADE.conv[f"{kind} {into}->{out}"][1:]:
            assert take(flops, (into, out)) == pytest.approx(flops / rate)
    assert take(1e7, 8) == take(1e7, (8, 8))
    assert take(1e7, (512, 64)) == take(1e7, (16, 16))
    assert take(1e7, (1, 1)) > take(1e7, (4, 4)) > take(1e7, (16, 16)) > take(1e7, (16, 16), dtype=torch.bfloat16)
    assert take(1e7, (16, 16), dtype=torch.float64) > take(1e7, (16, 16))


def test_copies_that_move_the_last_dimension() -> None:
    assert MADE.strided_seconds(1e6) == 1e6 / MADE.strided


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_takes_no_time(dtype: torch.dtype) -> None:
    assert MADE.gemm_seconds(0, 3, 4, dtype=dtype) == MADE.gemm_seconds(3, 4, 5, 0, dtype) == 0
    assert MADE.conv_seconds(0, 3, True, False, dtype) == MADE.elementwise_seconds(0) == MADE.fresh_seconds(0) == 0
    assert MADE.gemm_seconds(1, 1, 1, dtype=dtype) > 0
    assert MADE.conv_seconds(1, 1, True, False, dtype) > 0


# --- the probes themselves ---


def probes() -> list[TimedOperator]:
    with torch.no_grad():
        return [*measure._small(CPU), *measure._products(CPU), *measure._convolutions(CPU), *measure._memory(CPU)]


def test_probes_do_the_work_they_name() -> None:
    for probe in probes():
        if probe.key[0] in ("matmul", "batched", "narrow", "conv"):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                probe.call()
            assert counter.get_total_flops() == probe.work, probe.key
        elif probe.key[0] in ("memory", "fresh", "written", "functions"):
            result = probe.call()
            assert isinstance(result, torch.Tensor)
            bytes_each = {"memory": 2 * result.itemsize, "functions": 1}.get(probe.key[0], result.itemsize)
            assert result.numel() * bytes_each == probe.work == probe.key[2]


def test_probes_have_the_layouts_they_name() -> None:
    for probe in probes():
        if probe.key[0] == "conv":
            assert isinstance(probe.call, partial)
            x, weight = probe.call.args
            layout = torch.channels_last if "channels_last" in probe.key[1] else torch.contiguous_format
            assert x.is_contiguous(memory_format=layout)
            assert weight.is_contiguous(memory_format=layout)


def test_figures_come_from_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 1e9 a second for everything, with an overhead of 2 µs a call."""
    mapping = 0.25

    def pretend(probes: list[TimedOperator], wait: object) -> dict[timing.Key, float]:
        assert wait is None
        found = {probe.key: 2e-6 + probe.work / 1e9 for probe in probes}
        found["overhead", "", 1] = 2e-6
        found["fresh", "", measure._BUFFER] += mapping
        return found

    monkeypatch.setattr(measure, "least_seconds", pretend)
    made = measure.measure(CPU)
    assert made.overhead_s == 2e-6
    assert made.fresh == pytest.approx(measure._BUFFER / mapping)
    for tables in (made.matmul, made.batched, made.conv, made.functions, {"": made.memory}):
        for row, table in tables.items():
            assert [rate for _, rate in table] == pytest.approx([1e9] * len(table)), row
    assert all(share == pytest.approx(1) for table in made.narrow.values() for _, share in table)
    assert set(made.conv) == set(MADE.conv)
    assert set(made.narrow) == set(MADE.narrow)
    assert made.gemm_seconds(100, 100, 100) == pytest.approx(2e6 / 1e9)
    assert made.conv_seconds(1e8, (3, 32), True, True) == pytest.approx(0.1)


def test_a_dtype_that_a_device_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_supports", lambda device, dtype: dtype is torch.float32)
    quick(monkeypatch)
    made = measure.measure(CPU)
    assert set(made.matmul) == set(made.batched) == {"float32"}
    assert made.gemm_seconds(9, 9, 9, dtype=torch.float64) > 0


def test_a_caching_allocator_maps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "least_seconds", lambda probes, wait: {p.key: 1e-3 for p in probes})
    assert measure.measure(CPU).fresh_seconds(2**30) == pytest.approx(2**30 / measure._BUFFER * 1e-6)


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operator twice: figures of no worth, from the real thing."""
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "MORE_ROUNDS", 0)


# --- on this machine ---


def test_calibrate_measures_keeps_and_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    state = torch.get_rng_state()
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    assert load(CPU) is None
    assert stored_or_typical(CPU) is TYPICAL
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = calibrate("cpu")
    assert load(CPU) == stored_or_typical("cpu") == made
    assert torch.equal(state, torch.get_rng_state())
    assert (threads, dtype) == (torch.get_num_threads(), torch.get_default_dtype())
    assert torch.is_grad_enabled()
    assert {"float32", "float64"} <= set(made.matmul)
    assert 1e-8 < made.overhead_s < 1e-2
    rates = [rate for tables in (made.matmul, made.conv, made.functions) for t in tables.values() for _, rate in t]
    assert all(1e5 < rate < 1e17 for rate in [*rates, made.fresh, made.strided, *(r for _, r in made.memory)])
    (file,) = folder.iterdir()
    assert file.name.startswith("calibration-")
    assert json.loads(file.read_text())["machine"]["threads"] == threads


def test_modes_of_the_caller_change_nothing_of_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[str, torch.dtype]] = set()

    def once(probes: list[TimedOperator], wait: object) -> dict[timing.Key, float]:
        for probe in probes:
            result = probe.call()
            if probe.key[0] in ("matmul", "conv"):
                seen.add((probe.key[1].split()[0], result.dtype))  # type: ignore[attr-defined]
            assert not result.requires_grad  # type: ignore[attr-defined]
        return {probe.key: 1e-3 for probe in probes}

    monkeypatch.setattr(measure, "least_seconds", once)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
            measure.measure(CPU)
            assert torch.is_autocast_enabled("cpu")
    finally:
        torch.set_default_dtype(torch.float32)
    expected = {(name, getattr(torch, name)) for name in MADE.matmul}
    assert seen == expected | {("conv2d", torch.float32), ("conv_transpose2d", torch.float32)}


# --- the cache ---


def keep(made: Calibration = MADE) -> Path:
    """Write figures as ``calibrate`` does."""
    machine = cache._machine(CPU)
    path = cache._path(machine)
    assert path is not None
    assert cache._write(path, machine, made)
    return path


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(device: torch.device) -> Calibration:
        raise AssertionError(f"{device} was measured")

    monkeypatch.setattr(cache, "measure", measured)


@pytest.mark.usefixtures("no_measuring")
def test_load_reads_and_never_measures() -> None:
    assert load() is None
    keep()
    assert load() == stored_or_typical() == MADE
    later = replace(MADE, overhead_s=4e-6)
    keep(later)
    assert load() == later


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b"\xff\xfe\x00", b'{"machine": 1}', b"[" * 100_000, b"9" * 10_000],
    ids=lambda content: repr(content[:12]),
)
def test_a_damaged_file_is_none(content: bytes) -> None:
    keep().write_bytes(content)
    assert load() is None
    assert stored_or_typical() is TYPICAL


def tables() -> list[tuple[str, Any]]:
    return [
        ("overhead_s", 0),
        ("overhead_s", -1.0),
        ("overhead_s", "1"),
        ("overhead_s", True),
        ("overhead_s", float("nan")),
        ("overhead_s", float("inf")),
        ("overhead_s", 10**400),
        ("overhead_s", None),
        ("memory", []),
        ("memory", [[2.0, 1e9], [1.0, 1e9]]),
        ("memory", [[1.0, 1e9, 3.0]]),
        ("memory", {"a": 1}),
        ("matmul", {"float64": [[1e3, 1e9]]}),
        ("conv", {"conv2d contiguous 1->1": [[1e3, 1e9]]}),
        ("narrow", 3),
        ("functions", {}),
        ("made", ""),
        ("made", "\x1b[31m"),
        ("made", 3),
    ]


@pytest.mark.parametrize(("field", "value"), tables(), ids=str)
def test_figures_that_are_none_are_refused(field: str, value: Any) -> None:
    path = keep()
    content = json.loads(path.read_text())
    content["figures"][field] = value
    path.write_text(json.dumps(content))
    assert load() is None
    del content["figures"][field]
    path.write_text(json.dumps(content))
    assert load() is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_any_change_of_a_file_gives_figures_or_none(data: st.DataObject) -> None:
    path = keep()
    content = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(content) - 1))
    content[start : start + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
    path.write_bytes(content)
    found = load()
    if found is not None:
        assert math.isfinite(found.gemm_seconds(3, 40, 500) + found.conv_seconds(1e6, 4, True, False))
        assert json.dumps(asdict(found), allow_nan=False)


def test_a_file_of_another_machine_is_none() -> None:
    path = keep()
    content = json.loads(path.read_text())
    for name in content["machine"]:
        path.write_text(json.dumps({**content, "machine": {**content["machine"], name: "another"}}))
        assert load() is None
    path.write_text(json.dumps(content))
    assert load() == MADE


def test_threads_torch_and_device_have_files_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {cache._path(cache._machine(CPU))}
    keep()
    with monkeypatch.context() as other:
        other.setattr(torch, "get_num_threads", lambda: 77)
        paths.add(cache._path(cache._machine(CPU)))
        assert load() is None
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "9.9")
        paths.add(cache._path(cache._machine(CPU)))
    with monkeypatch.context() as other:
        other.setattr(cache, "_cpu", lambda: "another")
        paths.add(cache._path(cache._machine(CPU)))
    paths.add(cache._path(cache._machine(torch.device("meta"))))
    assert len(paths) == 5


@pytest.mark.parametrize("obstacle", ["file", "missing home"])
def test_without_a_cache_figures_last_as_long_as_the_process(
    obstacle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("JACCLI_CACHE_DIR", str(tmp_path / "file" / "below"))
    else:
        monkeypatch.setattr(cache, "folder", lambda: None)
    monkeypatch.setattr(cache, "measure", lambda device: MADE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert calibrate() == load() == stored_or_typical() == MADE


def test_a_file_appears_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = keep()
    before = path.read_bytes()
    for error in (OSError(28, "full"), KeyboardInterrupt()):

        def fail(source: str, target: object, error: BaseException = error) -> None:
            assert json.loads(Path(source).read_text())
            raise error

        monkeypatch.setattr(os, "replace", fail)
        if isinstance(error, OSError):
            assert not cache._write(path, cache._machine(CPU), replace(MADE, overhead_s=1e-5))
        else:
            with pytest.raises(KeyboardInterrupt):
                cache._write(path, cache._machine(CPU), MADE)
        assert [*folder.iterdir()] == [path]
        assert path.read_bytes() == before


@pytest.mark.parametrize("error", [Busy(), RuntimeError("no such operator"), AssertionError("not compiled")])
def test_what_cannot_be_measured_is_as_before(error: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fail(device: torch.device) -> Calibration:
        tried.append(device)
        raise error

    monkeypatch.setattr(cache, "measure", fail)
    with pytest.warns(jaccli.JaccliNote, match="no calibration of cpu: .* typical ones"):
        assert calibrate() is TYPICAL
    assert not folder.exists()
    # The process asks no second time; another one does.
    assert load() is TYPICAL
    cache._unsaved.clear()
    assert load() is None
    keep()
    with pytest.warns(jaccli.JaccliNote, match="those of before"):
        assert calibrate() == MADE


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.setenv("JACCLI_CACHE_DIR", "")
    assert cache.folder() == tmp_path / "xdg" / "jaccli"
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for name, expected in {"linux": ".cache/jaccli", "darwin": "Library/Caches/jaccli"}.items():
        monkeypatch.setattr(cache.sys, "platform", name)
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        assert cache.folder() == tmp_path / expected
    monkeypatch.setattr(cache.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache.folder() == tmp_path / "local" / "jaccli" / "Cache"

    def homeless() -> Path:
        raise RuntimeError

    monkeypatch.setattr(Path, "home", homeless)
    assert cache.folder() is None
    assert load() is None


def test_figures_survive_the_file() -> None:
    keep()
    found = load()
    assert found is not None
    assert asdict(found) == asdict(MADE)
    assert found.gemm_seconds(7, 8, 9, 10) == MADE.gemm_seconds(7, 8, 9, 10)
