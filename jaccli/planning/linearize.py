"""From a network, samples and a layer pair to f linearised at the point, and what was found there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.function import LayerFunction
from jaccli.activations.misread import misread
from jaccli.activations.record import Held, Inputs, Record, record
from jaccli.activations.sample_view import MisplacedError, NowhereError
from jaccli.errors import JaccliError, RefusedError, ResourceError, UnsupportedError, note
from jaccli.graph import EliminationPlan
from jaccli.linearization.differences import Differences
from jaccli.linearization.linearization import LinearizedFunction, RecordedPass, graph_nodes
from jaccli.linearization.rounding import Rounding, rounding
from jaccli.methods.base import is_out_of_memory, perturbed, reason
from jaccli.networks.network import Network
from jaccli.networks.quantized import no_derivative
from jaccli.planning.repeatability import unsteady
from jaccli.planning.sample_independence import leak, moves_others, value_at
from jaccli.runtime.kernels import LIBRARY_NODES, full_precision
from jaccli.text.wording import worded

Pair = tuple[Address, Address]
_SAMPLES_FIRST = "expected the samples in the first dimension of the input, {}"


@dataclass
class AdjointProbe:
    """One backward pass with a random cotangent on some ``samples`` (every other): ``row`` = Jᵀu.

    It tells whether there is a path, whether samples mix, and later, with ``rest`` on the other samples, whether J
    can be believed. Without a backward pass ``differences`` tell that, of all but ``unsettled`` samples.
    """

    cotangent: Tensor | None = None
    row: Tensor | None = None
    backward_gap: str | None = None
    samples: slice = field(default_factory=lambda: slice(0, None, 2))
    rounding: Rounding | None = None
    rest: tuple[Tensor, Tensor] | None = None
    differences: Differences | None = None
    unsettled: int = 0


@dataclass
class Linearization:
    """f at a point with everything that choosing and running a method needs.

    Args:
        linear: f there.
        connected: False when no path leads from source to target: J is zero.
        samples_mix: a sample's target hangs on other samples.
        probe: see ``AdjointProbe``.
        why_zero: where there is no path, what the values say about it.
        engine: f captured as a graph, where that was done.
        trivial: source and target are the same activation, and J is I.
    """

    linear: LinearizedFunction
    connected: bool = True
    samples_mix: bool = False
    probe: AdjointProbe = field(default_factory=AdjointProbe)
    why_zero: str = ""
    engine: EliminationPlan | None = None
    trivial: bool = False

    @property
    def pair(self) -> Pair:
        """Source and target."""
        return self.linear.f.source.address, self.linear.f.target.address

    @property
    def name(self) -> str:
        """``fc1 -> output``."""
        return f"{self.pair[0]!s} -> {self.pair[1]!s}"

    def rounding(self) -> Rounding | None:
        """What rounding does to the probe's row, and where samples do not mix to one of the other samples; found once.

        Cost: see ``linearization.rounding``. None where the model does not run so.
        """
        u = self.probe.cotangent
        if self.probe.rounding is None and u is not None:
            self.probe.rounding = rounding(self.linear, u if self.samples_mix else u + self._rest(u))
        return self.probe.rounding

    def evidence(self) -> list[tuple[slice, Tensor, Tensor]]:
        """Samples, cotangents and rows of plain backward passes that between them cover all samples, or those that mix
        the first. Cost: the first time, one more such pass.
        """
        probe, u = self.probe, self.probe.cotangent
        if u is None or probe.row is None:
            return []
        found = [(probe.samples, u, probe.row)]
        if self.samples_mix or self.linear.batch == 1:
            return found
        if probe.rest is None:
            rest = self._rest(u)
            probe.rest = rest, self.linear.vjp(rest)
        return [*found, (slice(1, None, 2), *probe.rest)]

    def differences(self) -> Differences:
        """What J is held against where there is no backward pass: of the first sample, where samples mix."""
        if self.probe.differences is None:
            moved = slice(0, 1) if self.samples_mix else slice(None)
            self.probe.differences = Differences(self.linear, moved)
        return self.probe.differences

    def _rest(self, u: Tensor) -> Tensor:
        """A random cotangent on the samples that u leaves out."""
        drawn = torch.randn(u.shape, generator=torch.Generator().manual_seed(2)).to(u)
        drawn[self.probe.samples] = 0
        return drawn


@contextmanager
def exact_attention(wanted: bool) -> Iterator[None]:
    """Attention by plain matrix products: the fused kernels have no forward mode and no batching rule."""
    if not wanted:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def computing(network: Network, *, frozen: bool = True) -> Iterator[None]:
    """The session in which Jacobians are taken: the network frozen, the caller's gradient mode set aside."""
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(True))
        stack.enter_context(full_precision())
        stack.enter_context(network.session(frozen=frozen))
        yield
    network.draws.tell()


def linearize(
    network: Network, inputs: Inputs, pairs: Sequence[Pair], *, graph: bool = True, probe: bool = True
) -> list[Linearization]:
    """Run the network once and linearise f of every pair. To be called within ``computing``.

    Args:
        network: the model.
        inputs: the samples and further arguments.
        pairs: source and target addresses.
        graph: record the gradient graph; without it nothing needs gradients.
        probe: look for a path, for mixing samples and for a failing backward pass; one product.

    Returns:
        One for each pair, without those that a glob gave and that do not fit; a note names them.

    Raises:
        RefusedError: the model refuses the input.
        ResourceError: out of memory.
    """
    inputs = own(inputs)
    try:
        with readable(inputs):
            taken, gap = _recorded(network, inputs, pairs, graph)
    except (MisplacedError, NowhereError, RefusedError) as error:
        advice = misread(network, inputs, pairs[0])
        if advice is None:
            raise
        raise type(error)(error.given, _SAMPLES_FIRST.format(_description(inputs.args[0])), advice) from error
    if network.opaque and not network.draws.asked:
        network.draws.ask()
        network.draws.unsteady = unsteady(network, taken)
    network.draws.tell()
    if taken.left_out:
        reasons = _left_out(taken.left_out)
        told = "; ".join(reasons[:4]) + "; …" * (len(reasons) > 4)
        note(f"{len(taken.left_out)} layers of the glob left out: {told}")
    kept = [(s, t) for s, t in pairs if s in taken.sources and t in taken.targets]
    if not kept:
        raise UnsupportedError(
            "none of the layers that the glob matches can be a source",
            "; ".join(reasons[:2]),
            misread(network, inputs, pairs[0]) or "",
        )
    with readable(inputs):
        if gap is None or len(kept) == 1:
            return [_prepared(network, taken, pair, graph, probe, gap) for pair in kept]
        # What refuses gradients may stand before one pair's source: each has a pass of its own.
        alone = ((*_recorded(network, inputs, [pair], graph), pair) for pair in kept)
        return [_prepared(network, taken, pair, graph, probe, gap) for taken, gap, pair in alone]


def preview(network: Network, inputs: Inputs, pairs: Sequence[Pair], *, graph: bool = True) -> list[Linearization]:
    """f of each pair as one forward pass shows it: nothing is probed, and nothing is told.

    None of a pair that is not there, and no pair at all where the model refuses these inputs: ``linearize`` says why.
    """
    try:
        taken, gap = _recorded(network, own(inputs), pairs, graph)
    except Exception:
        return []
    kept = [(s, t) for s, t in pairs if s in taken.sources and t in taken.targets]
    return [_prepared(network, taken, pair, graph, False, gap) for pair in kept]


def _left_out(found: Mapping[Address, str]) -> list[str]:
    """Why layers are left out, each reason once, with the names of its layers."""
    reasons: dict[str, list[str]] = {}
    for address, why in found.items():
        reasons.setdefault(why.replace(repr(str(address)), "{}"), []).append(repr(str(address)))
    return [why.replace("{}", ", ".join(names[:4]) + ", …" * (len(names) > 4)) for why, names in reasons.items()]


def _recorded(network: Network, inputs: Inputs, pairs: Sequence[Pair], graph: bool) -> tuple[Record, str | None]:
    """The activations; without a gradient graph, and why, where the model runs without gradients alone."""
    sources, targets = [s for s, _ in pairs], [t for _, t in pairs]
    try:
        return record_backward(network, inputs, sources, targets, live=graph), None
    except JaccliError:
        raise
    except Exception as error:
        if not graph or is_out_of_memory(error):
            raise
        try:
            return record(network, inputs, sources, targets, live=False), reason(error)
        except JaccliError:
            raise
        except Exception as second:
            if is_out_of_memory(second) or reason(second) == reason(error):
                raise
            raise RuntimeError(f"{reason(second)} (with gradients: {reason(error)})") from error


def record_backward(
    network: Network, inputs: Inputs, sources: Sequence[Address], targets: Sequence[Address], *, live: bool
) -> Record:
    """``record``; once more, if the graph has kernels that refuse to go back, which are set aside for good."""
    taken = record(network, inputs, sources, targets, live=live)
    if set_aside(network, [held.activation for held in taken.targets.values()]):
        taken = record(network, inputs, sources, targets, live=live)
    return taken


def set_aside(network: Network, values: Iterable[Tensor]) -> bool:
    """Whether values came by recurrent layers in one kernel of an accelerator's library, which has no backward pass
    in evaluation mode; then the network goes without such kernels from now on."""
    graphs = [graph_nodes(value) for value in values if value.device.type != "cpu"] if network.fused else []
    found = any(node.name().startswith(LIBRARY_NODES) for nodes in graphs for node in nodes)
    network.fused = network.fused and not found
    return found


def own(inputs: Inputs) -> Inputs:
    """Inputs cut loose from any graph of the caller, and usable for gradients."""

    def loose(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.clone() if value.is_inference() else value.detach()

    return Inputs(tuple(map(loose, inputs.args)), {k: loose(v) for k, v in inputs.kwargs.items()}, inputs.dim)


@contextmanager
def readable(inputs: Inputs) -> Iterator[None]:
    """The errors of the model's own code, from a forward pass, as errors that a user can act on.

    Raises:
        RefusedError: the model refuses the input.
        ResourceError: out of memory.
    """
    try:
        yield
    except JaccliError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"out of memory in the forward pass of {inputs.batch} samples",
                "expected activations that fit",
                worded("take fewer samples at a time ({samples:0:8})"),
            ) from None
        raise RefusedError(
            f"the model refuses this input, {_description(inputs.args[0])}: {type(error).__name__}: {reason(error)}",
            "expected samples as the model was trained on, the first dimension counting them",
            worded("check the shape of {x}, {dtype}, and further arguments ({arguments})"),
        ) from error


def _description(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _prepared(network: Network, taken: Record, pair: Pair, graph: bool, probe: bool, gap: str | None) -> Linearization:
    source, target = taken.sources[pair[0]], taken.targets[pair[1]]
    graph = graph and gap is None
    f = LayerFunction(network, taken.inputs, source.place, target.place)
    value = target.activation
    live = RecordedPass(source.raw, value) if graph else None
    linear = LinearizedFunction(f, source.activation.detach(), value.detach(), live)
    linear.passes["forward"] += 1
    linearization = Linearization(linear, probe=AdjointProbe(backward_gap=gap), trivial=pair in taken.same)
    if not probe:
        return linearization
    if graph:
        _probe(linearization)
    if (not graph or linearization.probe.backward_gap) and not network.draws.unsteady:
        linearization.samples_mix = moves_others(linear)
    if not graph and gap is None:
        moved = value_at(linear, perturbed(linear.point))
        linearization.connected = moved is None or not torch.equal(moved, linear.value)
    if not linearization.connected:
        linearization.why_zero = _why_zero(linear, source, target)
        if network.packed and linearization.why_zero != _BEFORE:
            raise no_derivative(network.packed)
    return linearization


def _probe(linearization: Linearization) -> None:
    linear = linearization.linear
    assert linear.live is not None
    if not linear.live.target.requires_grad:
        linearization.connected = False
        return
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(linear.batch, linear.f.n_out, generator=generator).to(linear.value)
    u[1::2] = 0
    try:
        row = linear.vjp_or_none(u)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        linearization.probe.backward_gap = reason(error)
        return
    if row is None:
        linearization.connected = False
        return
    linearization.probe = AdjointProbe(u, row)
    linearization.samples_mix = leak(linear, u, row)
    if linear.batch == 2 and not linearization.samples_mix:
        # Of two samples the second may hang on the first, which only its own row shows.
        linearization.samples_mix = leak(linear, u.flip(0), linear.vjp(u.flip(0)))
    if linearization.samples_mix:
        probe_first_sample(linearization)


def probe_first_sample(linearization: Linearization) -> None:
    """A probe whose row holds one sample's own block, for samples that mix."""
    assert linearization.probe.cotangent is not None
    u = linearization.probe.cotangent.clone()
    u[1:] = 0
    linearization.probe = AdjointProbe(u, linearization.linear.vjp(u), samples=slice(0, 1))


def _why_zero(linear: LinearizedFunction, source: Held, target: Held) -> str:
    """No path: is it so, or does the graph hide one (detach, no_grad, integers between)?"""
    if target.order < source.order and not source.place.address.is_model_input:
        return _BEFORE
    moved = value_at(linear, perturbed(linear.point))
    if moved is None or torch.equal(moved, linear.value):
        return "no path leads from the source to the target"
    return _HIDDEN


_BEFORE = "the target is computed before the source"
_HIDDEN = "the target moves with the source, but no gradient flows (detach, no_grad, rounding or an integer between)"


def is_hidden_path(linearization: Linearization) -> bool:
    """Whether J is zero by autograd although values depend on each other."""
    return linearization.why_zero == _HIDDEN
