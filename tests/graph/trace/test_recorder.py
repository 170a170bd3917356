"""The invariants of recording writes in place and views, one by one; see ``jaccli.graph.trace.aliasing``."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jaccli.graph.trace.capture import needed, recording
from jaccli.graph.trace.ir import CaptureGap, Node, Value, swap
from jaccli.graph.trace.recorder import Recorder

Run = Callable[[Tensor], list[Tensor]]


def through_a_view(x: Tensor) -> list[Tensor]:
    y = x * 2
    y[:, 0] = x[:, 1] ** 2
    return [y]


def through_views_of_views(x: Tensor) -> list[Tensor]:
    y = x + 1
    a, b = y[0], y[1]
    c = a.view(2, 2).t()
    c.mul_(3)
    d = c[1]
    d.add_(x[1, :2])
    return [y, a, b, c, d]


def stale_sibling(x: Tensor) -> list[Tensor]:
    y = x.exp()
    first, rest = y.split([1, 3], 1)
    before = rest.sin()
    y.mul_(x)
    first.neg_()
    return [before, rest, first, y]


def every_view(x: Tensor) -> list[Tensor]:
    y = x * 1.5
    for view in (
        y.select(1, 2),
        y[:, 1::2],
        y.unbind(0)[1],
        y.split(2, 1)[1],
        y.split([1, 3], 1)[1],
        y.view(-1),
        y.unsqueeze(0),
        y[:, :1].squeeze(1),
        y.t(),
        y.transpose(0, 1),
        y.permute(1, 0),
        y[:, :3].diagonal(),
        y.detach(),
        y.expand(3, 4),
    ):
        view.add_(0.5).mul_(2)
    return [y]


def relabelled_root(x: Tensor) -> list[Tensor]:
    y = x * 2
    row = y[0]
    y.transpose_(0, 1)
    y[0] = 5.0
    row.mul_(x[0])
    return [y, row]


def relabelled_view(x: Tensor) -> list[Tensor]:
    y = x * 2
    part = y[:, :2]
    corner = part[0]
    part.t_()
    part.add_(1)
    corner.mul_(3)
    part.unsqueeze_(0)
    return [y, part, corner]


def constants_written_to(x: Tensor) -> list[Tensor]:
    y = torch.zeros(3, 4, dtype=x.dtype)
    row = y[1]
    y.copy_(x)
    row.zero_()
    y.clamp_(min=0.1)
    return [y, row]


RUNS: list[Run] = [
    through_a_view,
    through_views_of_views,
    stale_sibling,
    every_view,
    relabelled_root,
    relabelled_view,
    constants_written_to,
]


def recorder_of(x: Tensor) -> Recorder:
    """One whose only input is ``x``."""
    recorder = Recorder()
    recorder.declare(x)
    return recorder


def points() -> tuple[Tensor, Tensor]:
    x, other = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x, other


def recorded(run: Run, x: Tensor) -> tuple[Recorder, Value, list[Tensor], list[Value]]:
    recorder = Recorder()
    source = recorder.declare(x)
    with recording(recorder):
        results = run(x)
        values = [recorder.value_of(t) for t in results]
    return recorder, source, results, values


def replayed(nodes: list[Node], source: Value, x: Tensor, values: list[Value]) -> list[Tensor]:
    """The values at another point, by running the nodes in order."""
    now: dict[Value, Tensor] = {source: x}
    for node in needed(nodes, values):
        result: Any = node.op(*swap(node.args, lambda v: now.get(v, v.tensor)), **swap(node.kwargs, lambda v: now[v]))
        for value in node.outputs:
            now[value] = result[value.out] if isinstance(result, list | tuple) else result
    return [now[value] for value in values]


def test_a_tensor_object_has_one_entry_for_good() -> None:
    """I1: temporary tensors die in the run, and none of the later ones is mistaken for one of them."""
    x, other = points()

    def many(x: Tensor) -> list[Tensor]:
        total = x * 0
        for i in range(50):
            total = total + (x * i).view(-1).view(3, 4)
            gc.collect(0)
        return [total]

    recorder, source, results, values = recorded(many, x)
    for node in recorder.nodes:
        for value in node.outputs:
            if value.tensor in recorder.table:
                assert recorder.table.entry(value.tensor).tensor is value.tensor
    assert torch.equal(values[0].tensor, results[0])
    assert torch.allclose(replayed(recorder.nodes, source, other, values)[0], many(other)[0])


@pytest.mark.parametrize("run", RUNS)
def test_the_content_of_a_value_never_changes(run: Run) -> None:
    """I2: what nodes compute again, in order, is what their values hold after the run."""
    x, _ = points()
    recorder, source, _, _ = recorded(run, x)
    every = [value for node in recorder.nodes for value in node.outputs]
    for value, again in zip(every, replayed(recorder.nodes, source, x, every), strict=True):
        assert torch.equal(value.tensor, again)


@pytest.mark.parametrize("run", RUNS)
def test_after_the_run_every_tensor_stands_for_its_content(run: Run) -> None:
    """I3, at the point; and what is recorded gives the same as the function at another one."""
    x, other = points()
    recorder, source, results, values = recorded(run, x)
    for tensor, value in zip(results, values, strict=True):
        assert value.shape == tuple(tensor.shape)
        assert torch.equal(value.tensor, tensor)
    for again, truth in zip(replayed(recorder.nodes, source, other, values), run(other.clone()), strict=True):
        assert torch.allclose(again, truth, rtol=1e-14)


def test_a_view_is_renewed_when_it_is_read() -> None:
    """I4: a write to the base costs a node for each view that is read afterwards, once, and none for others."""
    x, _ = points()
    recorder = recorder_of(x)
    with recording(recorder):
        y = x * 2
        read, unread = y[0], y[1]
        y.mul_(3)
    count = len(recorder.nodes)
    assert [recorder.table.entry(t).writes for t in (y, read, unread)] == [1, 0, 0]
    value = recorder.value_of(read)
    assert torch.equal(value.tensor, read)
    assert recorder.value_of(read) is value
    assert len(recorder.nodes) == count + 1
    assert [recorder.table.entry(t).writes for t in (y, read, unread)] == [1, 1, 0]


def test_a_write_through_a_view_renews_its_chain_alone() -> None:
    """I4: base and view have seen the write; reading them records nothing."""
    x, _ = points()
    recorder = recorder_of(x)
    with recording(recorder):
        y = x * 2
        row = y[0]
        pair = row.view(2, 2)
        pair.add_(1)
    count = len(recorder.nodes)
    assert all(torch.equal(recorder.value_of(t).tensor, t) for t in (y, row, pair))
    assert [recorder.table.entry(t).writes for t in (y, row, pair)] == [1, 1, 1]
    assert len(recorder.nodes) == count


@pytest.mark.parametrize("run", RUNS)
def test_single_assignment(run: Run) -> None:
    """I5."""
    x, _ = points()
    recorder, source, _, _ = recorded(run, x)
    known = {source}
    for node in recorder.nodes:
        assert not any(a.alias_info is not None and a.alias_info.is_write for a in node.op._schema.arguments)
        assert all(value in known or value.origin == "constant" for value in node.inputs())
        assert known.isdisjoint(node.outputs)
        known.update(node.outputs)


def test_memory_shared_behind_the_recordings_back_is_a_gap() -> None:
    """I6: an alias that was made before the recording, of memory that is written to, or that varies."""
    x, _ = points()
    buffer = torch.ones(3, 4, dtype=x.dtype)
    alias = buffer[0]
    recorder = recorder_of(x)
    of_input = x[0]
    with recording(recorder):
        buffer.mul_(2)
        with pytest.raises(CaptureGap, match="shared with another one"):
            alias + 1
        with pytest.raises(CaptureGap, match="shared with another one"):
            of_input + 1


def test_a_write_to_memory_of_several_constants_is_a_gap() -> None:
    """I6: both were read before the write, and one of them would keep the old content."""
    x, _ = points()
    buffer = torch.ones(3, 4, dtype=x.dtype)
    alias = buffer[0]
    recorder = recorder_of(x)
    with recording(recorder):
        assert torch.equal(buffer + alias, torch.full((3, 4), 2.0, dtype=x.dtype))
        with pytest.raises(CaptureGap, match="shared behind"):
            buffer.mul_(x)


def test_constants_may_share_memory_that_nothing_writes_to() -> None:
    x, _ = points()
    weight = torch.ones(3, 4, dtype=x.dtype)
    row = weight[0]
    recorder = recorder_of(x)
    with recording(recorder):
        y = x * weight + row
        assert [v.origin for v in recorder.nodes[-1].inputs()] == ["node", "constant"]
        assert torch.equal(recorder.value_of(y).tensor, y)


def test_a_write_without_a_pure_form_is_a_gap() -> None:
    x, _ = points()
    recorder = recorder_of(x)
    with recording(recorder):
        y = x * 2
        with pytest.raises(CaptureGap, match="writes in place"):
            y.resize_(2, 2)
        with pytest.raises(CaptureGap, match="a write in place through as_strided"):
            y.as_strided((2,), (1,)).add_(1)


def test_a_derivative_on_memory_of_a_varying_value_is_a_gap() -> None:
    x, _ = points()
    recorder = recorder_of(x)
    part = x[0]
    recorder.derive()
    with recording(recorder), pytest.raises(CaptureGap, match="another's memory"):
        part + 1
