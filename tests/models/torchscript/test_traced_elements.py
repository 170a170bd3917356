"""Elements of a recurrent module's value mean the same tensor in a trace as in the module."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jaccli
from jaccli.errors import UnsupportedError, UsageError
from tests.models.torchscript.test_networks import reloaded

USES = {
    "out": lambda out, h, c: out.sum(0) if c is None else out.sum(0).exp(),
    "h": lambda out, h, c: h.prod(0),
    "h and c": lambda out, h, c: h.exp().sum(0) if c is None else (c.exp() * h).sum(0),
    "all": lambda out, h, c: (h.sum(0) if c is None else (c - h * h).sum(0)) * out.mean(0),
}


class Sequences(nn.Module):
    """``pre``, the recurrent module, and ``head`` on a part of what it returns; samples first outside."""

    def __init__(self, kind: type[nn.RNNBase], use: str, layers: int, first: bool, given: bool) -> None:
        super().__init__()
        self.pre = nn.Linear(3, 3)
        self.rnn = kind(3, 4, num_layers=layers, batch_first=first)  # type: ignore[call-arg]
        self.head = nn.Linear(4, 2)
        self.use, self.layers, self.first, self.given = use, layers, first, given

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.pre(x))
        y = x if self.first else x.transpose(0, 1)
        state: Any = torch.stack([x.sum(1).sin().repeat(1, 2)[:, :4]] * self.layers)
        if isinstance(self.rnn, nn.LSTM):
            out, (h, c) = self.rnn(y, (state, state.cos())) if self.given else self.rnn(y)
        else:
            out, h = self.rnn(y, state) if self.given else self.rnn(y)
            c = None
        return self.head(USES[self.use](out.transpose(0, 1) if self.first else out, h, c))


class ScriptedLSTM(nn.Module):
    """What TorchScript compiles."""

    def __init__(self, eager: Sequences) -> None:
        super().__init__()
        self.pre, self.rnn, self.head = eager.pre, eager.rnn, eager.head

    def forward(self, x: Tensor) -> Tensor:
        _, (h, c) = self.rnn(torch.tanh(self.pre(x)).transpose(0, 1))
        return self.head((c.exp() * h).sum(0))


def traced(eager: nn.Module, *args: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(eager, args)


def agree(a: Any, b: Any, x: Tensor, source: str, target: str) -> Tensor:
    """J of both models, equal."""
    ours, theirs = (jaccli.jacobian(model, x, source, target) for model in (a, b))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    return theirs


def names(kind: type[nn.Module], first: bool) -> list[str]:
    states = ["rnn:out.1.0@1", "rnn:out.1.1@1"] if kind is nn.LSTM else ["rnn:out.1@1"]
    return ["rnn:out.0" if first else "rnn:out.0@1", *states]


CASES = [
    *((nn.LSTM, use, 1, False, False) for use in USES),
    *((nn.LSTM, use, 2, True, False) for use in ("h", "h and c")),
    *((nn.LSTM, use, 1, False, True) for use in ("h", "all")),
    *((nn.GRU, use, 1, False, False) for use in ("out", "h", "all")),
    (nn.GRU, "h", 2, True, True),
    (nn.RNN, "h", 1, True, False),
]


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize(("kind", "use", "layers", "first", "given"), CASES)
def test_elements_of_a_trace_are_the_modules(
    kind: Any, use: str, layers: int, first: bool, given: bool, batch: int
) -> None:
    torch.manual_seed(0)
    eager = Sequences(kind, use, layers, first, given)
    trace, x = reloaded(traced(eager, torch.randn(2, 5, 3))), torch.randn(batch, 5, 3)
    flows = 0
    for name in names(kind, first):
        assert agree(eager, trace, x, "input", name).abs().sum() > 0
        flows += bool(try_both(eager, trace, x, name))
    assert flows >= 1  # at least what is used reaches the output


def try_both(eager: Any, trace: Any, x: Tensor, source: str) -> bool:
    """J by an element, where the output depends on it; the same answer where it does not."""
    try:
        expected = jaccli.jacobian(eager, x, source, "output")
    except (UsageError, UnsupportedError) as error:
        with pytest.raises(type(error)):
            jaccli.jacobian(trace, x, source, "output")
        return False
    found = jaccli.jacobian(trace, x, source, "output")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    return bool(expected.abs().sum() > 0)


@pytest.mark.parametrize("batch", [2, 3])
@pytest.mark.parametrize("name", ["rnn:out.0@1", "rnn:out.1.0@1", "rnn:out.1.1@1"])
def test_scripted_agrees_with_eager_and_trace(name: str, batch: int) -> None:
    torch.manual_seed(0)
    eager = ScriptedLSTM(Sequences(nn.LSTM, "h and c", 1, False, False))
    scripted, trace = reloaded(torch.jit.script(eager)), traced(eager, torch.randn(2, 5, 3))
    x = torch.randn(batch, 5, 3)
    for other in (scripted, trace):
        agree(eager, other, x, "pre", name)
        assert try_both(eager, other, x, name) is ("out.1" in name)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_arguments_are_the_modules(kind: Any) -> None:
    torch.manual_seed(0)
    eager = Sequences(kind, "h", 1, False, True)
    trace, x = traced(eager, torch.randn(2, 5, 3)), torch.randn(3, 5, 3)
    states = ["rnn:in.1.0@1", "rnn:in.1.1@1"] if kind is nn.LSTM else ["rnn:in.1@1"]
    for name in ["rnn:in.0@1", *states]:
        agree(eager, trace, x, "input", name)
        assert agree(eager, trace, x, name, "output").abs().sum() > 0


class Cells(nn.Module):
    def __init__(self, kind: Any, use: int) -> None:
        super().__init__()
        self.pre, self.cell, self.use = nn.Linear(4, 4), kind(4, 4), use

    def forward(self, x: Tensor) -> Tensor:
        h, c = torch.sin(self.pre(x)), torch.cos(self.pre(x))
        if isinstance(self.cell, nn.LSTMCell):
            return self.cell(x, (h, c))[self.use] * 2
        return self.cell(x, h) * 2


@pytest.mark.parametrize(("kind", "use"), [(nn.LSTMCell, 0), (nn.LSTMCell, 1), (nn.GRUCell, 0), (nn.RNNCell, 0)])
def test_cells(kind: Any, use: int) -> None:
    torch.manual_seed(0)
    eager = Cells(kind, use)
    trace, x = reloaded(traced(eager, torch.randn(2, 4))), torch.randn(3, 4)
    states = ["cell:in.1.0", "cell:in.1.1"] if kind is nn.LSTMCell else ["cell:in.1"]
    for name in ["cell:in.0", *states, f"cell:out.{use}"]:
        agree(eager, trace, x, name, "output")
        agree(eager, trace, x, "input", name)
    if kind is nn.LSTMCell and use == 0:  # h is made of c, which is there although unused
        agree(eager, trace, x, "input", "cell:out.1")
    if use == 1:  # h was left out by the trace
        with pytest.raises(UnsupportedError, match="no tensor"):
            jaccli.jacobian(trace, x, "input", "cell:out.0")


class Attends(nn.Module):
    def __init__(self, use: int) -> None:
        super().__init__()
        self.att, self.use = nn.MultiheadAttention(4, 2, batch_first=True), use

    def forward(self, x: Tensor) -> Tensor:
        pair = self.att(x, x.sin(), x.cos())
        return pair[1] @ pair[0] if self.use == 2 else pair[self.use].exp()


@pytest.mark.parametrize("use", [0, 1, 2])
def test_attention_weights_are_element_one(use: int) -> None:
    torch.manual_seed(0)
    eager = Attends(use)
    trace, x = traced(eager, torch.randn(2, 3, 4)), torch.randn(3, 3, 4)
    for element in (0, 1):
        if use in (element, 2):
            agree(eager, trace, x, "input", f"att:out.{element}")
            agree(eager, trace, x, f"att:out.{element}", "output")
        else:
            with pytest.raises(UnsupportedError, match="no tensor"):
                jaccli.jacobian(trace, x, "input", f"att:out.{element}")


class Mixes(nn.Module):
    """Attention whose query, or also key and value, are one tensor."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.att, self.alone = nn.MultiheadAttention(4, 2, batch_first=True), alone

    def forward(self, x: Tensor) -> Tensor:
        other = x if self.alone else x.sin()
        return self.att(x, other, other, need_weights=False)[0] * 2


@pytest.mark.parametrize("alone", [True, False])
def test_arguments_that_are_one_tensor_are_still_several(alone: bool) -> None:
    torch.manual_seed(0)
    eager, x = Mixes(alone), torch.randn(2, 3, 4)
    trace = traced(eager, x)
    for i in range(3):
        agree(eager, trace, x, "input", f"att:in.{i}")
        if i == 0 and not alone:
            agree(eager, trace, x, "att:in.0", "output")
        else:
            with pytest.raises(UnsupportedError, match="one tensor for several"):
                jaccli.jacobian(trace, x, f"att:in.{i}", "output")


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 5]), True, enforce_sorted=False)
        return self.rnn(packed)[1][0][0] * 2


def test_states_after_packed_sequences_are_in_the_samples_order() -> None:
    torch.manual_seed(0)
    eager, x = Packed(), torch.randn(2, 5, 3)
    trace = traced(eager, x)
    agree(eager, trace, x, "rnn:out.1.0@1", "output")


def test_the_only_tensor_is_also_the_first_element() -> None:
    eager, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(2, 3)
    for model in (eager, traced(eager, x)):
        torch.testing.assert_close(jaccli.jacobian(model, x, "input", "0:out.0"), jaccli.jacobian(model, x))
        with pytest.raises(UsageError, match="no element '1'"):
            jaccli.jacobian(model, x, "input", "0:out.1")
