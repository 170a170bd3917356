"""A network whose parameters ask for gradients, between two of its activations, at work in a training step."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.backward_graph.differentiable_rows import Rows
from jaccli.errors import ResourceError, UnsupportedError, UsageError, note, warn
from jaccli.graph import Accumulation, CaptureGap, tensors_in
from jaccli.linearization.linearization import graph_nodes
from jaccli.models.adapt import as_network
from jaccli.networks.network import Network
from jaccli.networks.state.fingerprint import Fingerprint
from jaccli.penalty.slope import Moved
from jaccli.penalty.training_pass import FEWER, memory_told, training_pass
from jaccli.penalty.verify import Request, Trial, recorded
from jaccli.planning.bind import bind
from jaccli.planning.decide import human
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.planning.memory import available
from jaccli.planning.mixing_message import mixing
from jaccli.run.execute import report_path
from jaccli.run.signature import Signature, signature
from jaccli.runtime.kernels import FUSED_NODES, full_precision
from jaccli.text.wording import worded


@dataclass
class Analysis:
    """What a first call found.

    Args:
        live: tensors of the network that ask for gradients.
        connected: a path leads from source to target.
        mixes: a sample's target hangs on other samples.
        fused: there are recurrent kernels without a second derivative.
        accumulation: J, or its products, as a differentiable program, where there is one.
        shape: of J; likewise ``dtype`` and ``device``.
        single: rows are taken one by one: together, or by second derivatives, they are wrong.
        told: that the gradient is not the slope was said.
        calls: how often it was used, without gradients and with.
    """

    live: list[Tensor]
    connected: bool
    mixes: bool
    fused: bool
    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    accumulation: Accumulation | None = None
    single: bool = False
    told: bool = False
    calls: Counter[bool] = field(default_factory=Counter)
    _elsewhere: Analysis | None = None

    def elsewhere(self) -> Analysis:
        """The same where the model takes another branch than the program was recorded for."""
        if self._elsewhere is None:
            self._elsewhere = replace(self, accumulation=None, calls=Counter())
        return self._elsewhere


@dataclass
class CallSite:
    """A layer pair of a network, with what was seen there, by the shapes of inputs and the state of the network.

    It holds on to no module, so that it does not keep alive the model that it is kept for.
    """

    pair: Pair
    dim: int
    known: list[tuple[Signature, Fingerprint, Analysis]] = field(default_factory=list)

    def look(self, network: Network, inputs: Inputs, wish: Request) -> Analysis:
        """What holds for these inputs. Cost: of a first call a forward and two backward passes, and planning.

        Raises:
            UsageError: J is not square.
        """
        key = (wish, torch.is_autocast_enabled(_device(inputs).type), signature(inputs))
        live = [t for t in network.tensors() if t.requires_grad]
        stamp = network.stamp({id(t) for t in live})
        for shapes, then, seen in self.known:
            if shapes == key and then == stamp:
                return seen
        seen = self._first(network, inputs, live, wish)
        stamp.held = [held for held in stamp.held if isinstance(held, Tensor)]
        self.known = [*self.known[1 - defaults.REPLAY_KEPT :], (key, stamp, seen)]
        return seen

    def _first(self, network: Network, inputs: Inputs, live: list[Tensor], wish: Request) -> Analysis:
        network.report_warnings()
        with computing(network), exact_attention(True):
            (linearization,) = linearize(network, inputs, [self.pair])
            if wish.square:
                _check_square(linearization)
            report_path(linearization, linearization.name)
            if linearization.samples_mix:
                text = mixing(linearization)
                warn(worded("{name}: {text}", name=linearization.name, text=text))
            if linearization.linear.live is None:
                raise UnsupportedError(
                    f"the model refuses a pass with gradients: {linearization.probe.backward_gap}",
                    "expected a model that can be differentiated",
                )
            nodes = graph_nodes(linearization.linear.live.target)
            fused = not network.fused or any(node.name().startswith(FUSED_NODES) for node in nodes)
            linear = linearization.linear
            seen = Analysis(
                live,
                linearization.connected,
                linearization.samples_mix,
                fused,
                linear.shape,
                linear.value.dtype,
                linear.value.device,
            )
            if seen.mixes or not seen.connected:
                return seen
            if not wish.probes:
                _check_room(linearization)
            with suppress(CaptureGap):
                seen.accumulation = recorded(linearization, inputs, live, wish)
        return seen

    def verify(self, network: Network, inputs: Inputs, seen: Analysis, wish: Request, wanted: bool) -> None:
        """At calls 1, 2, 4, 8, …: is what is computed right, and its gradient if it is ``wanted``?

        Rules are wrong at some points only, and training moves. Cost: there, a step more, or some.

        Raises:
            UnsupportedError: there is no gradient.
        """
        seen.calls[wanted] += 1
        if seen.calls[wanted] & (seen.calls[wanted] - 1) or not seen.connected:
            return
        asked = asking(seen, inputs) if wanted else []
        with torch.enable_grad(), live_pass(network, self.pair, seen, inputs, bool(asked)) as rows:
            trial = self._trial(network, inputs, seen, wish, asked, rows)
            if not seen.single and trial.single_rows():
                note("products by second derivatives, or of several rows at once, are wrong: rows are taken one by one")
                seen.single, trial = True, replace(trial, rows=replace(rows, single=True))
            if seen.accumulation is not None and not trial.program_is_right():
                note("products by the engine's operators disagree with backward passes, which are taken instead")
                seen.accumulation, trial = None, replace(trial, made=None)
            if asked:
                _take(seen, *trial.choose())

    def _trial(
        self, network: Network, inputs: Inputs, seen: Analysis, wish: Request, asked: list[Tensor], rows: Rows
    ) -> Trial:
        v = None
        if wish.probes:
            size = rows.target[0].numel()
            shape = (rows.target.shape[0], min(size, rows.n_in) if wish.there_and_back else size, wish.probes)
            v = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(rows.target.detach())
        made = accumulated(seen, inputs, *([] if v is None else [v]))
        moved = Moved(network, self.pair, inputs, asked, seen.mixes, wish.there_and_back)
        return Trial(rows, made, v, wish, asked, moved)


def _take(seen: Analysis, through: Literal["program", "passes"], off: float) -> None:
    """Gradients go through this from now on; how far they are off the slope is told once."""
    if through == "passes" and seen.accumulation is not None:
        note("gradients through the engine's operators disagree with slopes; passes are taken")
        seen.accumulation = None
    if off and not seen.told:
        seen.told = True
        warn(
            f"the gradient of the deviation is {off:.2g} off its slope: some of what J depends on carries no gradient "
            "(detach, or a backward pass or a hook without a derivative of its own)"
        )


def asking(seen: Analysis, inputs: Inputs) -> list[Tensor]:
    """What gradients may be wanted by: tensors of the network, and of the inputs."""
    return [*seen.live, *(t for t in tensors_in((inputs.args, dict(inputs.kwargs))) if t.requires_grad)]


def site_of(
    model: Any, x: Tensor, names: tuple[str, str], args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[Network, CallSite]:
    """The site of a model and two layer names, kept as long as the model lives.

    Raises:
        UsageError: not a model, an unknown layer, no samples.
    """
    try:
        kept = _SITES.setdefault(model, {})
    except TypeError:  # not a model either
        kept = {}
    site, network = kept.get(names), as_network(model)
    if site is None or not isinstance(x, Tensor):
        with torch.no_grad():
            _, pair, inputs = bind(network, x, *names, args, kwargs)
        site = kept[names] = CallSite(pair, inputs.dim)
    return network, site


_SITES: weakref.WeakKeyDictionary[Any, dict[tuple[str, str], CallSite]] = weakref.WeakKeyDictionary()


@contextmanager
def live_pass(network: Network, pair: Pair, seen: Analysis, inputs: Inputs, wanted: bool) -> Iterator[Rows]:
    """A forward pass, recorded from the parameters on where gradients are ``wanted``; rows of J of it."""
    with training_pass(
        network, pair, inputs, wanted=wanted, mixes=seen.mixes, fused=seen.fused, single=seen.single
    ) as rows:
        yield rows


def accumulated(seen: Analysis, inputs: Inputs, *vectors: Tensor) -> tuple[Tensor, ...] | None:
    """J, its factors or products by the differentiable program; None without one, or where another branch is taken."""
    if seen.accumulation is None:
        return None
    given = [*tensors_in((inputs.args, dict(inputs.kwargs))), *seen.live, *vectors]
    # Casts are part of the program.
    with torch.autocast(_device(inputs).type, enabled=False), full_precision(), memory_told():
        return seen.accumulation(given)


def _device(inputs: Inputs) -> torch.device:
    first = inputs.args[0]
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


def _check_square(linearization: Linearization) -> None:
    f = linearization.linear.f
    if f.n_out != f.n_in:
        raise UsageError(
            f"J of {linearization.name} is {f.n_out} x {f.n_in}, and only a square J can be held against the identity",
            "expected a source and a target of the same size",
        )


def _check_room(linearization: Linearization) -> None:
    """J, J − I and what their backward pass makes of them."""
    batch, n_out, n_in = linearization.linear.shape
    value = linearization.linear.value
    need, room = 3 * batch * n_out * n_in * value.element_size(), available(value.device)
    if need > room:
        what = f"J of {batch} samples, {n_out} x {n_in} each, needs {human(need)}"
        raise ResourceError(what, f"free are {human(room)}", FEWER)
