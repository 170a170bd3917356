"""One table of models and layer pairs, for every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from tests import nets, oracle
from tests.oracle import INPUT, OUTPUT, At

FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Scenario:
    """A model, samples and a pair.

    ``takes``: where a method is known not to run, the one that must stand in (``error`` for none).
    ``slack``: tolerances that differ from those of the dtype. ``warns``: part of a warning that must come.
    """

    name: str
    build: Callable[[], nn.Module]
    make_x: Callable[[], Tensor]
    source: str = "input"
    target: str = "output"
    at: tuple[At, At] = (INPUT, OUTPUT)
    args: Callable[[], tuple[Any, ...]] = tuple
    kwargs: Callable[[], dict[str, Any]] = dict
    takes: Mapping[str, str] = field(default_factory=dict)
    slack: Mapping[str, float] = field(default_factory=dict)
    warns: str = ""
    train: bool = False
    dtypes: tuple[torch.dtype, ...] = FLOATS

    def model(self, dtype: torch.dtype) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return self.build().to(dtype).train(self.train)

    def x(self, dtype: torch.dtype) -> Tensor:
        return cast(seeded(self.make_x), dtype)

    def extras(self, dtype: torch.dtype) -> dict[str, Any]:
        args = tuple(cast(a, dtype) for a in seeded(self.args))
        return {"args": args, "kwargs": {k: cast(v, dtype) for k, v in seeded(self.kwargs).items()}}

    def truth(self, dtype: torch.dtype = torch.float64) -> Tensor:
        return _truth(self.name, torch.bfloat16 if dtype == torch.bfloat16 else torch.float64)


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return make()


def cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@cache
def _truth(name: str, dtype: torch.dtype) -> Tensor:
    s = BY_NAME[name]
    double = torch.float64
    extras = {k: _doubled(v) for k, v in s.extras(dtype).items()}
    torch.manual_seed(0)
    return oracle.jacobian(
        s.model(dtype).to(double),
        s.x(dtype).to(double) if s.x(dtype).is_floating_point() else s.x(dtype),
        *s.at,
        **extras,
    )


def _doubled(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: cast(v, torch.float64) for k, v in value.items()}
    return tuple(cast(v, torch.float64) for v in value)


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


def chain(*sizes: int, between: Callable[[], nn.Module] = nn.Tanh) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b), between()]
        return nn.Sequential(*layers[:-1])

    return build


def of(*layers: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def settled_norm(kind: Callable[..., nn.Module], channels: int) -> nn.Module:
    """A normalisation with statistics that are not 0 and 1."""
    norm = kind(channels)
    for name, buffer in norm.named_buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5) if "var" in name else buffer.normal_()
    nn.init.normal_(norm.weight)
    return norm


def per_channel_prelu(channels: int) -> nn.Module:
    layer = nn.PReLU(channels)
    nn.init.uniform_(layer.weight, 0.1, 0.9)
    return layer


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        settled_norm(nn.BatchNorm2d, 4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)


KINK = {"finite-difference": 0.02}
# Copies of the batch do not fit, or are not what the model does with one batch.
ALONE = {"replicate": "reverse", "structured": "reverse"}
# Without gradients a missing path shows only in the values.
ZERO = dict.fromkeys(("auto", "structured", "reverse", "forward", "loop", "replicate", "functional"), "zero")
# No operators of real numbers to see: an autograd function of the model's own, complex numbers.
NO_GRAPH = {"structured": "reverse"}
NO_FORWARD = {"forward": "reverse"} | NO_GRAPH

TABLE = [
    Scenario("linear map", lambda: nn.Linear(3, 2, bias=False), normal(2, 3)),
    Scenario("linear chain", chain(4, 6, 3, between=nn.Identity), normal(3, 4)),
    Scenario("wide", chain(9, 7, 2), normal(3, 9)),
    Scenario("tall", chain(2, 7, 9), normal(3, 2)),
    Scenario("batch 1", chain(4, 5, 3), normal(1, 4)),
    Scenario("batch 5", chain(4, 5, 3), normal(5, 4)),
    Scenario("source of size 1", chain(1, 4, 3), normal(3, 1)),
    Scenario("target of size 1", chain(4, 4, 1), normal(3, 4)),
    Scenario("one to one", chain(1, 4, 1), normal(1, 1)),
    Scenario("bfloat16", chain(4, 5, 3), normal(3, 4), dtypes=(torch.bfloat16,), slack={"finite-difference": 0.3}),
    Scenario("between hidden layers", chain(4, 5, 6, 3), normal(3, 4), "0", "3", (At("0"), At("3"))),
    Scenario("conv", conv_net, normal(3, 2, 4, 4), slack=KINK),
    Scenario("conv before in-place", conv_net, normal(3, 2, 4, 4), "1", "output", (At("1"), OUTPUT), slack=KINK),
    Scenario("target before in-place", conv_net, normal(2, 2, 4, 4), "input", "1", (INPUT, At("1"))),
    Scenario("residual", Residual := nets.Residual, normal(3, 5)),
    Scenario("residual, tokens", Residual, normal(2, 3, 5)),
    Scenario("layer norm", of(lambda: nn.Linear(4, 6), lambda: nn.LayerNorm(6)), normal(3, 4)),
    Scenario(
        "instance norm", of(lambda: nn.Conv1d(2, 3, 3), lambda: nn.InstanceNorm1d(3, affine=True)), normal(3, 2, 7)
    ),
    Scenario("group norm", of(lambda: nn.Conv1d(2, 4, 3), lambda: nn.GroupNorm(2, 4)), normal(2, 2, 6)),
    Scenario("encoder layer", encoder, normal(2, 3, 4), slack=KINK),
    Scenario("encoder inside", encoder, normal(2, 3, 4), "linear1", "norm2", (At("linear1"), At("norm2")), slack=KINK),
    Scenario("multi-head attention", nets.MultiHead, normal(2, 3, 4)),
    Scenario("attention", nets.Attention, normal(2, 3, 4)),
    Scenario("LSTM", nets.Recurrent, normal(3, 4, 3)),
    Scenario("GRU", lambda: nets.Recurrent("GRU"), normal(3, 4, 3)),
    Scenario("RNN", lambda: nets.Recurrent("RNN"), normal(2, 4, 3)),
    Scenario(
        "LSTM, time first",
        lambda: nets.Recurrent("LSTM", False),
        normal(4, 3, 3),
        "input@1",
        "output",
        (At("input", dim=1), OUTPUT),
    ),
    Scenario(
        "LSTM state",
        nets.Recurrent,
        normal(3, 4, 3),
        "input",
        "rnn:out.1.0@1",
        (INPUT, At("rnn", keys=(1, 0), dim=1)),
    ),
    Scenario(
        "GRU, time first inside",
        nets.TimeFirstInside,
        normal(3, 4, 3),
        "rnn:in@1",
        "output",
        (At("rnn", "in", keys=(0, 0), dim=1), OUTPUT),
    ),
    Scenario(
        "GRU state as source",
        nets.TimeFirstInside,
        normal(3, 4, 3),
        "rnn:out.1@1",
        "output",
        (At("rnn", keys=(1,), dim=1), OUTPUT),
    ),
    Scenario("embedding", nets.Embedded, lambda: torch.randint(11, (3, 4)), "emb", "output", (At("emb"), OUTPUT)),
    Scenario("second call to head", nets.Shared, normal(3, 4), "fc#2", "output", (At("fc", call=2), OUTPUT)),
    Scenario("call to call", nets.Shared, normal(3, 4), "fc#1", "fc#2", (At("fc"), At("fc", call=2))),
    Scenario("input of second call", nets.Shared, normal(3, 4), "input", "fc#2:in", (INPUT, At("fc", "in", 2, (0, 0)))),
    Scenario(
        "tuple element",
        lambda: nets.Outputs("tuple"),
        normal(3, 4),
        "body:out.1.0",
        "output",
        (At("body", keys=(1, 0)), OUTPUT),
    ),
    Scenario(
        "tuple element as target",
        lambda: nets.Outputs("tuple"),
        normal(3, 4),
        "input",
        "body:out.0",
        (INPUT, At("body", keys=(0,))),
    ),
    Scenario(
        "dict key",
        lambda: nets.Outputs("dict"),
        normal(3, 4),
        "body:out.mean",
        "output:out.logits",
        (At("body", keys=("mean",)), At("output", keys=("logits",))),
    ),
    Scenario(
        "named tuple",
        lambda: nets.Outputs("named"),
        normal(3, 4),
        "body:out.spread",
        "output",
        (At("body", keys=("spread",)), OUTPUT),
    ),
    Scenario(
        "named tuple by position",
        lambda: nets.Outputs("named"),
        normal(3, 4),
        "body:out.0",
        "output",
        (At("body", keys=(0,)), OUTPUT),
    ),
    Scenario(
        "first argument", nets.Branches, normal(3, 4), "mix:in.0", "output", (At("mix", "in", keys=(0, 0)), OUTPUT)
    ),
    Scenario(
        "second argument", nets.Branches, normal(3, 4), "mix:in.1", "output", (At("mix", "in", keys=(0, 1)), OUTPUT)
    ),
    Scenario(
        "argument by name",
        nets.Branches,
        normal(3, 4),
        "mix:in.gain",
        "output",
        (At("mix", "in", keys=(1, "gain")), OUTPUT),
    ),
    Scenario(
        "argument as target", nets.Branches, normal(3, 4), "input", "mix:in.1", (INPUT, At("mix", "in", keys=(0, 1)))
    ),
    Scenario(
        "index -1", chain(4, 5, 3), normal(3, 4), "0[-1]", "output[-1]", (At("0", index=-1), At("output", index=-1))
    ),
    Scenario(
        "index column",
        nets.Attention,
        normal(2, 3, 4),
        "input[:, 0]",
        "output[:, 0]",
        (At("input", index=(slice(None), 0)), At("output", index=(slice(None), 0))),
    ),
    Scenario(
        "index list",
        chain(4, 5, 3),
        normal(3, 4),
        "0[[0, 2]]",
        "output[[2, 0]]",
        (At("0", index=[0, 2]), At("output", index=[2, 0])),
    ),
    Scenario(
        "index slice",
        chain(4, 5, 3),
        normal(3, 4),
        "0[1:4]",
        "output[::2]",
        (At("0", index=slice(1, 4)), At("output", index=slice(None, None, 2))),
    ),
    Scenario(
        "index with dimension",
        nets.TimeFirstInside,
        normal(3, 4, 3),
        "rnn:out.0@1[-1]",
        "output[1]",
        (At("rnn", keys=(0,), dim=1, index=-1), At("output", index=1)),
    ),
    Scenario(
        "target named twice",
        chain(4, 5, 3),
        normal(3, 4),
        "input",
        "output[[1, 1]]",
        (INPUT, At("output", index=[1, 1])),
    ),
    Scenario(
        "PReLU trap",
        of(lambda: nn.Linear(4, 4), lambda: per_channel_prelu(4), lambda: nn.Linear(4, 4)),
        normal(4, 4),
        slack=KINK,
    ),
    Scenario("PReLU alone", lambda: per_channel_prelu(4), normal(4, 4), slack=KINK),
    Scenario("activations", of(nn.Softplus, lambda: nn.Linear(5, 5), nn.GELU, lambda: nn.Softmax(-1)), normal(3, 5)),
    Scenario(
        "more activations", of(nn.SiLU, lambda: nn.Linear(5, 4), nn.Mish, lambda: nn.LogSoftmax(-1)), normal(3, 5)
    ),
    Scenario(
        "BatchNorm in training mode",
        of(lambda: nn.Linear(4, 3), lambda: nn.BatchNorm1d(3), nn.Tanh),
        normal(5, 4),
        takes=ALONE,
        warns="samples mix",
        train=True,
    ),
    Scenario(
        "dropout in training mode",
        of(lambda: nn.Linear(6, 6), lambda: nn.Dropout(0.5), nn.Tanh),
        normal(3, 6),
        takes=ALONE,
        warns="Dropout",
        train=True,
        dtypes=(torch.float64,),
    ),
    Scenario("data-dependent branch", nets.Choosing, normal(3, 4)),
    Scenario("in-place after source", nets.InPlace, normal(3, 4), "fc", "output", (At("fc"), OUTPUT)),
    Scenario("in-place on input", of(lambda: nn.ELU(inplace=True), lambda: nn.Linear(4, 3)), normal(3, 4)),
    Scenario("state in attributes", nets.Remembering, normal(3, 4)),
    Scenario(
        "extra arguments",
        nets.Arguments,
        normal(3, 4),
        args=lambda: (torch.randn(3, 1), 2),
        kwargs=lambda: {"shift": torch.randn(3, 3)},
    ),
    Scenario("extra argument for all", nets.Arguments, normal(3, 4), args=lambda: (torch.randn(1, 3),)),
    Scenario("complex inside", of(lambda: nn.Linear(4, 6), nets.Fourier), normal(3, 4), takes=NO_GRAPH),
    Scenario("custom function", of(nets.Cubed, lambda: nn.Linear(3, 4)), normal(2, 3), takes=NO_FORWARD),
    Scenario("bound to its batch", nets.Fixed, normal(4, 6), takes={"replicate": "reverse"}),
    Scenario("source is target", chain(4, 5, 3), normal(3, 4), "0", "0", (At("0"), At("0"))),
    Scenario("input is target", chain(4, 5, 3), normal(3, 4), "input", "input", (INPUT, INPUT)),
    Scenario("source after target", chain(4, 5, 6, 3), normal(3, 4), "3", "0", (At("2"), At("0")), takes=ZERO),
    Scenario("no path", nets.Apart, normal(3, 4), "left", "output", (At("left"), OUTPUT), takes=ZERO),
    Scenario(
        "detach",
        nets.Detached,
        normal(3, 3),
        takes=ZERO,
        warns="no gradient flows",
        slack={"finite-difference": float("inf")},
    ),
    Scenario("identity", nn.Identity, normal(3, 4)),
    Scenario("container as layer", of(chain(4, 5, 3), chain(3, 2)), normal(3, 4), "0", "output", (At("0"), OUTPUT)),
    Scenario(
        "container input",
        of(chain(4, 5, 3), chain(3, 2)),
        normal(3, 4),
        "0.2:in",
        "1",
        (At("0.2", "in", keys=(0, 0)), At("1")),
    ),
    Scenario(
        "images to images",
        of(lambda: nn.Conv2d(1, 2, 3, padding=1), nn.Tanh, lambda: nn.ConvTranspose2d(2, 1, 3, padding=1)),
        normal(2, 1, 4, 4),
    ),
]
BY_NAME = {s.name: s for s in TABLE}


def build(name: str) -> nn.Module:
    """The model of a scenario, for a command line: weights are drawn with its seed."""
    return BY_NAME[name].build()


CASES = [(s, dtype) for s in TABLE for dtype in s.dtypes]


def case_name(value: Any) -> str | None:
    if isinstance(value, Scenario):
        return value.name.replace(" ", "-")
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None
