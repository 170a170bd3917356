"""From requests to J: load, move, resolve, stream. The torch side of every command."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.api import explain
from jaccli.cli.messages import STARTED, release_messages
from jaccli.cli.progress import progress
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest, RunRequest
from jaccli.errors import ResourceError, UsageError, warn
from jaccli.layers.record import Inputs
from jaccli.layers.resolve import expand, resolve
from jaccli.models.adapt import as_network
from jaccli.models.load import load_model
from jaccli.models.network import Network
from jaccli.names import check_method
from jaccli.planning import Decision
from jaccli.prepare import Pair, Prepared
from jaccli.samples.load import load_argument, load_samples
from jaccli.stream import Choice, Piece, Watch, stream

IMPORTED = time.perf_counter()


@dataclass
class Timing:
    """Seconds of each part of a command."""

    import_s: float = field(default_factory=lambda: IMPORTED - STARTED)
    load_s: float = 0.0
    watch: Watch = field(default_factory=Watch)

    def document(self) -> dict[str, float]:
        """The contract's ``timing``."""
        return {
            "import_s": self.import_s,
            "load_s": self.load_s,
            "plan_s": self.watch.plan_s,
            "compute_s": self.watch.compute_s,
            "total_s": time.perf_counter() - STARTED,
        }


@dataclass
class Loaded:
    """A network and its inputs, on the device and in the dtype asked for."""

    network: Network
    inputs: Inputs
    numbers: list[int]
    timing: Timing


def load_network(request: ModelRequest) -> Network:
    """MODEL as a network, moved and converted.

    Raises:
        UsageError: the device is not there.
        RefusedError: the model is.
    """
    device = find_device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    model = load_model(
        request.path,
        request.arch,
        arch_args=request.arch_args,
        activation=request.activation,
        trust=request.trust,
        seed=request.seed,
    )
    network = as_network(model)
    dtype = getattr(torch, request.dtype) if request.dtype else None
    if device.type != "cpu" or dtype is not None:
        network = network.cast(device, dtype)
    for doubt in network.doubtful():
        warn(doubt)
    return network


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        UsageError: it is not there.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    backend = torch.get_device_module(device.type)
    count = backend.device_count() if backend.is_available() else 0
    if (device.index or 0) >= count:
        have = f"{count} {device.type} device" + "s" * (count != 1)
        raise UsageError(f"--device {name} is not there: this machine has {have}", "", "use --device cpu or auto")
    return torch.device(device.type, device.index or 0)


def load(model: ModelRequest, given: InputRequest) -> Loaded:
    """Load MODEL and INPUT together.

    Raises:
        UsageError: flags that do not fit what was loaded.
        RefusedError: unreadable or refused.
    """
    timing = Timing()
    start = time.perf_counter()
    samples = load_samples(given.spec)
    network = load_network(model)
    numbers = given.samples.indices(samples.shape[0]) if given.samples else list(range(samples.shape[0]))
    if given.samples:
        samples = samples[numbers]
    first = next((t for t in network.tensors() if t.is_floating_point()), None)
    dtype = getattr(torch, model.dtype) if model.dtype else first.dtype if first is not None else torch.float32
    device = find_device(model.device)

    def ready(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype if value.is_floating_point() else None)

    arguments = [(name, _argument(value, given, ready)) for name, value in given.arguments]
    inputs = _bind(ready(samples), arguments)
    timing.load_s = time.perf_counter() - start
    return Loaded(network, inputs, numbers, timing)


def _argument(value: Any, given: InputRequest, ready: Any) -> Any:
    loaded = load_argument(value)
    if isinstance(loaded, Tensor) and given.samples is not None:
        loaded = loaded[given.samples.indices(loaded.shape[0])]
    return ready(loaded)


def _bind(samples: Tensor, arguments: Sequence[tuple[str | int, Any]]) -> Inputs:
    positions = {name: value for name, value in arguments if isinstance(name, int)}
    named = {name: value for name, value in arguments if isinstance(name, str)}
    for position in range(1, len(positions) + 1):
        if position not in positions:
            raise UsageError(
                f"--arg {max(positions)}=… leaves position {position} open",
                f"expected --arg {position}=VALUE too",
            )
    return Inputs((samples, *(positions[p] for p in sorted(positions))), named)


def pairs_of(network: Network, request: PairRequest) -> list[Pair]:
    """The pairs meant, globs expanded.

    Raises:
        UsageError: a name that the model does not have.
    """
    target = resolve(network, request.target)
    return [(source, target) for source in expand(network, request.sources)]


def choice_of(request: RunRequest) -> Choice:
    """The request as ``stream`` takes it."""
    return Choice(check_method(request.method), request.max_memory, request.chunk)


def pieces(
    loaded: Loaded,
    pairs: Sequence[Pair],
    request: RunRequest,
    *,
    on_plan: Callable[[Sequence[Decision], Sequence[Prepared]], None] = lambda decisions, ready: None,
    accept: Callable[[Prepared], bool] = lambda prepared: True,
) -> Iterator[Piece]:
    """J of every pair in blocks, with progress on a terminal and the plan if it is asked for."""
    with progress(request.quiet, request.no_color) as bar:

        def planned(decisions: Sequence[Decision], ready: Sequence[Prepared]) -> None:
            release_messages()
            bar.expect(loaded.inputs.batch, decisions, ready)
            if request.explain:
                _explain(decisions, ready, loaded.inputs.batch)
            on_plan(decisions, ready)

        run = stream(
            loaded.network,
            loaded.inputs,
            pairs,
            choice_of(request),
            accept=accept,
            on_plan=planned,
            tick=bar.tick,
            watch=loaded.timing.watch,
        )
        with contextlib.closing(run):
            for piece in run:
                with bar.aside():
                    yield piece
                bar.finished(piece)


def _explain(decisions: Sequence[Decision], ready: Sequence[Prepared], batch: int) -> None:
    import sys

    from jaccli.sinks.text import inert

    for decision, prepared in zip(decisions, ready, strict=True):
        f = prepared.linear.f
        text = explain(prepared.name, (batch, f.n_out, f.n_in), decision)
        print("\n".join(inert(line) for line in text.splitlines()), file=sys.stderr)


class _TimeIsUp(BaseException):
    """Not an ``Exception``: whoever tries a method and takes another when it fails must not catch it."""


@contextlib.contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """``--timeout``: leave the block when the time, counted from the start of the process, is over.

    Python sees the alarm between two torch operators: one that is running ends first. Passes are cut
    into chunks of some ten MiB, so that is a matter of milliseconds, save for a model's own huge operator.

    Raises:
        ResourceError: it is over.
    """
    import signal

    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return

    def over(*_: object) -> None:
        raise _TimeIsUp

    previous = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds - (time.perf_counter() - STARTED), 1e-3))
    try:
        yield
    except _TimeIsUp:
        raise ResourceError(
            f"not done within {seconds:g} s (--timeout)", "", "allow more time, or take fewer --samples"
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
