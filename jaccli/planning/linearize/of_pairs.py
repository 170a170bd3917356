"""``linearize``: f of every layer pair, from one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from jaccli.activations.function import LayerFunction
from jaccli.activations.misread import misread
from jaccli.activations.record import ForwardRecord, Inputs, RecordedActivation
from jaccli.activations.sample_view import MisplacedError, NowhereError
from jaccli.errors import RefusedError, UnsupportedError, note
from jaccli.linearization.linearized_function import LinearizedFunction, RecordedPass
from jaccli.networks.network import Network
from jaccli.networks.quantized import no_derivative
from jaccli.planning.linearize.linearization import HIDDEN_PATH, Linearization, Pair
from jaccli.planning.linearize.nearby import perturbed, value_at
from jaccli.planning.linearize.probe import AdjointProbe, probed
from jaccli.planning.linearize.recording import recorded
from jaccli.planning.linearize.repeatability import unsteady
from jaccli.planning.linearize.sample_independence import moves_others
from jaccli.planning.linearize.session import description, detached_inputs, readable

_SAMPLES_FIRST = "expected the samples in the first dimension of the input, {}"
_COMPUTED_BEFORE = "the target is computed before the source"
_NO_PATH = "no path leads from the source to the target"


def linearize(
    network: Network, inputs: Inputs, pairs: Sequence[Pair], *, graph: bool = True, probe: bool = True
) -> list[Linearization]:
    """Run the network once and linearise f of every pair. To be called within ``computing``.

    Args:
        network: the model.
        inputs: the samples and further arguments.
        pairs: source and target addresses.
        graph: record the gradient graph; without it nothing needs gradients.
        probe: look for a path, for samples that mix and for a failing backward pass; see ``probed`` for its cost.

    Returns:
        One for each pair, without those that a glob gave and that do not fit; a note names them.

    Raises:
        RefusedError: the model refuses the input.
        UnsupportedError: of a glob's layers none can be a source.
        ResourceError: out of memory.
    """
    inputs = detached_inputs(inputs)
    try:
        with readable(inputs):
            recording, gap = recorded(network, inputs, pairs, graph)
    except (MisplacedError, NowhereError, RefusedError) as error:
        advice = misread(network, inputs, pairs[0])
        if advice is None:
            raise
        # The samples may lie in another dimension than the first: the likely reason, so that it goes into the error.
        raise type(error)(error.given, _SAMPLES_FIRST.format(description(inputs.args[0])), advice) from error
    _look_for_draws(network, recording)
    reasons = _left_out(recording)
    fitting = _fitting(recording, pairs)
    if not fitting:
        raise UnsupportedError(
            "none of the layers that the glob matches can be a source",
            "; ".join(reasons[:2]),
            misread(network, inputs, pairs[0]) or "",
        )
    with readable(inputs):
        if gap is None or len(fitting) == 1:
            return [_linearized(network, recording, pair, graph, probe, gap) for pair in fitting]
        # One pair's graph may contain what refuses gradients while another pair's does not: each has a pass of its own.
        alone = ((*recorded(network, inputs, [pair], graph), pair) for pair in fitting)
        return [_linearized(network, recording, pair, graph, probe, gap) for recording, gap, pair in alone]


def preview(network: Network, inputs: Inputs, pairs: Sequence[Pair], *, graph: bool = True) -> list[Linearization]:
    """f of each pair as one forward pass shows it, without a probe, notes or errors.

    A pair that is not there is left out, and every pair where the model refuses these inputs: ``linearize`` says why.
    """
    try:
        recording, gap = recorded(network, detached_inputs(inputs), pairs, graph)
    except Exception:
        return []
    return [_linearized(network, recording, pair, graph, False, gap) for pair in _fitting(recording, pairs)]


def _fitting(recording: ForwardRecord, pairs: Iterable[Pair]) -> list[Pair]:
    return [(source, target) for source, target in pairs if source in recording.sources and target in recording.targets]


def _look_for_draws(network: Network, recording: ForwardRecord) -> None:
    """Once for code of one's own: whether two passes at one point agree. Cost: see ``unsteady``."""
    if network.runs_own_code and not network.draws.compared:
        network.draws.begin_comparison()
        network.draws.nondeterminism = unsteady(network, recording)
    network.draws.warn()


def _left_out(recording: ForwardRecord) -> list[str]:
    """Why layers of a glob are left out, which a note says: each reason once, with the names of its layers."""
    names_of: dict[str, list[str]] = {}
    for address, why in recording.left_out.items():
        names_of.setdefault(why.replace(repr(str(address)), "{}"), []).append(repr(str(address)))
    reasons = [why.replace("{}", ", ".join(names[:4]) + ", …" * (len(names) > 4)) for why, names in names_of.items()]
    if reasons:
        shown = "; ".join(reasons[:4]) + "; …" * (len(reasons) > 4)
        note(f"{len(recording.left_out)} layers of the glob left out: {shown}")
    return reasons


def _linearized(
    network: Network, recording: ForwardRecord, pair: Pair, graph: bool, probe: bool, gap: str | None
) -> Linearization:
    """f of one pair; ``gap`` is why the recording has no gradient graph."""
    source, target = recording.sources[pair[0]], recording.targets[pair[1]]
    f = LayerFunction(network, recording.inputs, source.location, target.location)
    value = target.activation
    live = RecordedPass(source.raw, value) if graph and gap is None else None
    linear = LinearizedFunction(f, source.activation.detach(), value.detach(), live)
    linear.passes["forward"] += 1
    linearization = Linearization(linear, AdjointProbe(backward_gap=gap), trivial=pair in recording.same)
    return _with_probe(linearization, source, target) if probe else linearization


def _with_probe(linearization: Linearization, source: RecordedActivation, target: RecordedActivation) -> Linearization:
    """The same, with what a backward pass shows, or values where there is none: whether there is a path, whether
    samples mix.

    Cost: see ``probed``; without a backward pass see ``moves_others``, and up to two evaluations more.
    """
    linear, network = linearization.linear, linearization.linear.f.network
    probe, mix = probed(linear) if linear.recorded_pass is not None else (linearization.probe, False)
    if (linear.recorded_pass is None or probe.backward_gap) and not network.draws.nondeterminism:
        mix = moves_others(linear)
    why_zero = "" if _has_path(linear, probe) else _why_zero(linear, source, target)
    # Packed (quantized) weights have no derivative: zero would be wrong, unless the order of the layers explains it.
    if network.packed and why_zero not in ("", _COMPUTED_BEFORE):
        raise no_derivative(network.packed)
    return replace(linearization, probe=probe, samples_mix=mix, why_zero=why_zero)


def _has_path(linear: LinearizedFunction, probe: AdjointProbe) -> bool:
    """Whether the target depends on the source: by the backward pass; without a graph by values, one evaluation."""
    if probe.backward_gap is not None or probe.row is not None:
        return True
    if linear.recorded_pass is not None:
        return False
    moved = value_at(linear, perturbed(linear.point))
    return moved is None or not torch.equal(moved, linear.value)


def _why_zero(linear: LinearizedFunction, source: RecordedActivation, target: RecordedActivation) -> str:
    """Whether there is no path, or the gradient graph hides one (detach, no_grad, integers between).

    Cost: one evaluation, unless the order of the layers shows it.
    """
    if target.order < source.order and not source.location.address.is_model_input:
        return _COMPUTED_BEFORE
    moved = value_at(linear, perturbed(linear.point))
    return _NO_PATH if moved is None or torch.equal(moved, linear.value) else HIDDEN_PATH
