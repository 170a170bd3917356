"""From requests to J: load, move, resolve, stream. The torch side of every command."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jaccli.activations.calls import each_call
from jaccli.activations.record import Inputs
from jaccli.activations.resolve import expand, resolve
from jaccli.activations.sample_dimension import find_samples, same_values
from jaccli.cli.messages import STARTED, expect_pairs, release_messages
from jaccli.cli.progress import progress
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest
from jaccli.cli.run_request import RunRequest
from jaccli.errors import JaccliError, ResourceError, UnsupportedError, UsageError, warn
from jaccli.methods.base import Tick
from jaccli.models.adapt import as_network
from jaccli.models.load import load_model
from jaccli.names import pair_name
from jaccli.networks.dtypes import floating_dtype
from jaccli.networks.network import Network
from jaccli.networks.state.random_generators import seed_all
from jaccli.planning.decide import Decision
from jaccli.planning.explain import explain
from jaccli.planning.linearize import Linearization, Pair, computing, readable
from jaccli.run.blocks import Piece, RunOptions, Stopwatch, stream
from jaccli.run.compile_blocks import CompiledBlocks
from jaccli.run.sample_ranges import one_batch_only, pilot_size, take_samples
from jaccli.runtime.torch_errors import is_out_of_memory, reason
from jaccli.samples.load import load_argument, load_samples
from jaccli.text.escape import inert
from jaccli.text.quantities import dtype_name

OnPlan = Callable[[Sequence[Decision], Sequence[Linearization]], None]
# When torch was imported: with ``messages.STARTED`` the first part of the timing.
IMPORTED = time.perf_counter()


@dataclass
class Timing:
    """Seconds of each part of a command."""

    import_s: float = field(default_factory=lambda: IMPORTED - STARTED)
    load_s: float = 0.0
    watch: Stopwatch = field(default_factory=Stopwatch)

    def document(self) -> dict[str, float]:
        """The contract's ``timing``; ``compile_s`` with ``--compile``."""
        compile_s = {"compile_s": self.watch.compile_s} if self.watch.compile_s is not None else {}
        return {
            "import_s": self.import_s,
            "load_s": self.load_s,
            "plan_s": self.watch.plan_s,
            **compile_s,
            "compute_s": self.watch.compute_s,
            "total_s": time.perf_counter() - STARTED,
        }


@dataclass
class Loaded:
    """A network and its inputs, on the device and in the dtype of the request."""

    network: Network
    inputs: Inputs
    numbers: list[int]
    timing: Timing
    pairs: list[Pair]


def load_any(request: ModelRequest) -> Any:
    """MODEL as ``load_model`` gives it. All random generators begin at the seed: the same draws in every run.

    Raises:
        RefusedError: it is.
    """
    seed_all(request.seed or 0)
    return load_model(
        request.path,
        request.arch,
        arch_args=request.arch_args,
        activation=request.activation,
        trust=request.trust,
        seed=request.seed,
    )


def load_network(request: ModelRequest) -> Network:
    """MODEL as a network, moved and converted.

    Raises:
        UsageError: the device is not there.
        RefusedError: the model is.
    """
    device = find_device(request.device)
    if request.threads:
        torch.set_num_threads(request.threads)
    network = as_network(load_any(request))
    dtype = getattr(torch, request.dtype) if request.dtype else None
    if device.type != "cpu" or dtype is not None:
        network = _converted(network, device, dtype)
    network.report_warnings()
    return network


def _converted(network: Network, device: torch.device, dtype: torch.dtype | None) -> Network:
    try:
        return network.cast(device, dtype)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"the model does not fit the memory of {device}", remedy="use --device cpu, or a shorter --dtype"
            ) from None
        goal = f"{device} in {dtype_name(dtype)}" if dtype is not None else str(device)
        raise UnsupportedError(
            f"the model does not go to {goal}: {reason(error)}", "", "choose another --device or --dtype"
        ) from error


def find_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        UsageError: it is not there.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    backend = torch.get_device_module(device.type)
    count = backend.device_count() if backend.is_available() else 0
    if (device.index or 0) >= count:
        have = f"{count} {device.type} device" + "s" * (count != 1)
        raise UsageError(f"--device {name} is not there: this machine has {have}", "", "use --device cpu or auto")
    return torch.device(device.type, device.index or 0)


def load(model: ModelRequest, request: InputRequest, names: PairRequest | None = None) -> Loaded:
    """Load MODEL and INPUT together.

    Raises:
        UsageError: flags that do not fit what was loaded, or a name that the model does not have.
        RefusedError: unreadable or refused.
    """
    timing = Timing()
    start = time.perf_counter()
    samples, numbers, total = _read_samples(request, names)
    network = load_network(model)
    if numbers is not None:
        _check_whole(network, 0, len(numbers), total)
    pairs = _pairs(network, names) if names is not None else []
    expect_pairs([pair_name(*pair) for pair in pairs])
    dtype_of_samples = samples.dtype if samples.is_floating_point() else torch.get_default_dtype()
    dtype = getattr(torch, model.dtype) if model.dtype else floating_dtype(network.tensors()) or dtype_of_samples
    inputs = _bind(samples, [(name, load_argument(value)) for name, value in request.arguments])
    inputs = inputs.converted(find_device(model.device), dtype)
    with computing(network), readable(inputs):
        pairs = _each_call(network, inputs, pairs)
        inputs = find_samples(network, inputs, [address for pair in pairs for address in pair])
    if numbers is None:
        numbers = list(range(inputs.batch))
        if request.samples is not None:
            numbers = request.samples.indices(inputs.batch)
            _check_whole(network, inputs.dim, len(numbers), inputs.batch)
            with readable(inputs):
                inputs = pick(network, inputs, numbers)
    timing.load_s = time.perf_counter() - start
    return Loaded(network, inputs, numbers, timing, pairs)


def _read_samples(request: InputRequest, names: PairRequest | None) -> tuple[Tensor, list[int] | None, int]:
    """INPUT ``(batch, …)``. Where ``--samples`` was applied as it was read also which they are, and of how many."""
    selection = request.samples
    if selection is None or not _can_be_picked(request, names):
        return load_samples(request.spec), None, 0
    numbers, total = list[int](), 0

    def rows(count: int) -> list[int]:
        nonlocal total
        numbers[:], total = selection.indices(count), count
        return numbers

    return load_samples(request.spec, rows=rows), numbers, total


def _can_be_picked(request: InputRequest, names: PairRequest | None) -> bool:
    """Whether ``--samples`` can be taken as the file is read, which then may be of any size.

    Not where the samples may be in another dimension (``@DIM``), or where further arguments have rows, too.
    """
    every = (*names.sources, names.target) if names is not None else ()
    plain = (bool, int, float, str, type(None))
    return not any("@" in name for name in every) and all(isinstance(value, plain) for _, value in request.arguments)


def _check_whole(network: Network, dim: int, count: int, batch: int) -> None:
    """Refuse a part of the samples of a model that runs with one number of them."""
    only = network.only_batch(dim)
    if only not in (None, count):
        text = f"--samples picks {count} of {batch}: the model was exported for {only} samples at a time"
        raise one_batch_only(text, f"pick {only}")


def pick(network: Network, inputs: Inputs, numbers: Sequence[int]) -> Inputs:
    """Some of the samples. An argument with as many rows may hold one row a sample, or not: the values tell.

    Cost: where there is such an argument, two or three forward passes without gradients.
    """
    alone = inputs.select(numbers, together=False)
    if not inputs.may_have_rows:
        return alone
    together = inputs.select(numbers)
    if same_values(network, inputs, together, numbers):
        return together
    if same_values(network, inputs, alone, numbers):
        return alone
    warn("--samples: the picked samples alone do not give the values that they have among all; --arg may be why")
    return together


def _bind(samples: Tensor, arguments: Sequence[tuple[str | int, Any]]) -> Inputs:
    """Samples ``(batch, …)`` and the further arguments as those of the model."""
    positions = {name: value for name, value in arguments if isinstance(name, int)}
    named = {name: value for name, value in arguments if isinstance(name, str)}
    for position in range(1, len(positions) + 1):
        if position not in positions:
            raise UsageError(
                f"--arg {max(positions)}=… leaves position {position} open",
                f"expected --arg {position}=VALUE too",
                "or pass it by its name: --arg NAME=VALUE",
            )
    return Inputs((samples, *(positions[p] for p in sorted(positions))), named)


def _pairs(network: Network, request: PairRequest) -> list[Pair]:
    """The pairs meant, globs expanded."""
    target = resolve(network, request.target)
    return [(source, target) for source in expand(network, request.sources)]


def _each_call(network: Network, inputs: Inputs, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with ``#*`` as those of each call, counted in a pass of the samples that the first block has."""
    sources = [source for source, _ in pairs]
    first = inputs if any(a.dim is not None for a in sources) else take_samples(inputs, 0, pilot_size(inputs))
    try:
        calls = each_call(network, first, sources)
    except JaccliError:
        raise
    except Exception:  # a model that takes no other number of samples
        calls = each_call(network, inputs, sources)
    return [(source, target) for target in dict.fromkeys(t for _, t in pairs) for source in calls]


def pieces(
    loaded: Loaded,
    pairs: Sequence[Pair],
    request: RunRequest,
    *,
    on_plan: OnPlan = lambda decisions, linearizations: None,
    accept: Callable[[Linearization], bool] = lambda linearization: True,
) -> Iterator[Piece]:
    """J of every pair in blocks, with progress on a terminal and the plan if it is asked for.

    Args:
        loaded: network and samples.
        pairs: which.
        request: how J is computed.
        on_plan: called once, before the first block.
        accept: whether a pair is computed; of others nothing comes.
    """
    last: Pair | None = None
    with progress(request.quiet, request.no_color) as bar:

        def planned(decisions: Sequence[Decision], linearizations: Sequence[Linearization]) -> None:
            nonlocal last
            last = linearizations[-1].pair
            release_messages()
            bar.expect(loaded.inputs.batch, decisions, linearizations)
            if request.explain:
                _explain(decisions, linearizations, loaded.inputs.batch)
            on_plan(decisions, linearizations)

        # After an exception its traceback holds the suspended generator, and that the session of the network.
        with contextlib.closing(_blocks(loaded, pairs, request, accept, planned, bar.tick)) as blocks:
            for piece in blocks:
                if piece.pair == last:  # the pairs of a block come one after the other, and their messages are complete
                    release_messages()
                with bar.aside():
                    yield piece
                bar.finished(piece)


def _blocks(
    loaded: Loaded,
    pairs: Sequence[Pair],
    request: RunRequest,
    accept: Callable[[Linearization], bool],
    on_plan: OnPlan,
    tick: Tick,
) -> Generator[Piece]:
    options, watch = RunOptions(request.method, request.max_memory, request.chunk), loaded.timing.watch
    override = CompiledBlocks(loaded.network, options, watch) if request.compile else None
    return stream(
        loaded.network,
        loaded.inputs,
        pairs,
        options,
        accept=accept,
        on_plan=on_plan,
        tick=tick,
        watch=watch,
        override=override,
    )


def _explain(decisions: Sequence[Decision], linearizations: Sequence[Linearization], batch: int) -> None:
    for decision, linearization in zip(decisions, linearizations, strict=True):
        f = linearization.linear.f
        text = explain(linearization.name, (batch, f.n_out, f.n_in), decision)
        print("\n".join(inert(line) for line in text.splitlines()), file=sys.stderr)
