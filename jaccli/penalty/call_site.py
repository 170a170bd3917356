"""Per-layer-pair state of ``identity_deviation``: what the first call found out, reused in later training steps."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.activations.record import Inputs
from jaccli.autograd.seeds import gaussian
from jaccli.autograd.walk import graph_nodes
from jaccli.backward_graph.differentiable_rows import Rows
from jaccli.errors import ResourceError, UnsupportedError, note, warn
from jaccli.graph import Accumulation, CaptureGap, tensors_in
from jaccli.linear_maps.square import check_square
from jaccli.models.adapt import as_network
from jaccli.networks.network import Network
from jaccli.networks.state.fingerprint import Fingerprint
from jaccli.penalty.slope import MovedProduct
from jaccli.penalty.training_pass import FEWER, out_of_memory_reported, training_pass
from jaccli.penalty.verify import ProductRequest, Verification, verified_program
from jaccli.planning.bind import bind
from jaccli.planning.linearize import Linearization, Pair, computing, exact_attention, linearize
from jaccli.planning.memory import available
from jaccli.planning.mixing_message import mixing
from jaccli.run.caveats import report_path
from jaccli.run.signature import Signature, signature
from jaccli.runtime.kernels import FUSED_NODES, full_precision
from jaccli.text.quantities import human
from jaccli.text.wording import worded


@dataclass
class Analysis:
    """What the first call with inputs of some shapes found out about a layer pair.

    Args:
        trainable: tensors, of any shapes, of the network that require gradients.
        connected: a path leads from source to target.
        mixes: a sample's target depends on other samples.
        fused: there are recurrent kernels without a second derivative.
        shape: of J, ``(batch, n_out, n_in)``.
        dtype: of J.
        device: of J.
        accumulation: J, or its products, as a differentiable program, where there is one.
        single: rows are taken one by one, since together, or by second derivatives, they are wrong.
        warned: a warning has said that the gradient is not the slope.
        calls: how often it was used, with gradients (True) and without.
    """

    trainable: list[Tensor]
    connected: bool
    mixes: bool
    fused: bool
    shape: tuple[int, int, int]
    dtype: torch.dtype
    device: torch.device
    accumulation: Accumulation | None = None
    single: bool = False
    warned: bool = False
    calls: Counter[bool] = field(default_factory=Counter)
    _without_program: Analysis | None = None

    def without_program(self) -> Analysis:
        """The analysis for values at which the model takes another branch than the program was recorded for."""
        if self._without_program is None:
            self._without_program = replace(self, accumulation=None, calls=Counter())
        return self._without_program

    def variables(self, inputs: Inputs) -> list[Tensor]:
        """Tensors of the network and of the inputs, of any shapes, that the result has gradients by."""
        return [*self.trainable, *(t for t in _tensors(inputs) if t.requires_grad)]

    def rows(self, network: Network, pair: Pair, inputs: Inputs, differentiable: bool) -> AbstractContextManager[Rows]:
        """Rows of J of a new forward pass, as ``training_pass``."""
        return training_pass(
            network,
            pair,
            inputs,
            differentiable=differentiable,
            mixes=self.mixes,
            fused=self.fused,
            single=self.single,
        )

    def accumulated(self, inputs: Inputs, *vectors: Tensor) -> tuple[Tensor, ...] | None:
        """J ``(batch, n_out, n_in)``, its two factors, or products ``(batch, n, k)`` with vectors, by the program.

        None without a program, or where the model takes another branch than it was recorded for.
        """
        if self.accumulation is None:
            return None
        # The program holds the casts of autocast as operators; autocast would cast a second time.
        with torch.autocast(_device(inputs).type, enabled=False), full_precision(), out_of_memory_reported():
            return self.accumulation([*_tensors(inputs), *self.trainable, *vectors])


@dataclass
class CallSite:
    """A layer pair of a network, with an ``Analysis`` for each shape of the inputs and state of the network.

    It refers to no module, so that it does not keep alive the model that it is kept for.

    Args:
        pair: source and target.
        dim: the dimension of the inputs that counts samples.
        analyses: the latest analyses, each with what it holds for.
    """

    pair: Pair
    dim: int
    analyses: list[tuple[Signature, Fingerprint, Analysis]] = field(default_factory=list)

    def analysis_of(self, network: Network, inputs: Inputs, request: ProductRequest) -> Analysis:
        """The analysis for these inputs. Cost: of a first call a forward and two backward passes, and planning.

        Raises:
            UsageError: J is not square.
        """
        key = (request, torch.is_autocast_enabled(_device(inputs).type), signature(inputs))
        trainable = [t for t in network.tensors() if t.requires_grad]
        # The contents of trainable tensors are arguments of the program: a training step does not make it stale.
        fingerprint = network.fingerprint({id(t) for t in trainable})
        for shapes, then, analysis in self.analyses:
            if shapes == key and then == fingerprint:
                return analysis
        with computing(network), exact_attention(True):
            analysis = self._first(network, inputs, trainable, request)
        # Modules are dropped, see the class. A new module at an old address would have other tensors.
        fingerprint.references = [held for held in fingerprint.references if isinstance(held, Tensor)]
        self.analyses = [*self.analyses[1 - defaults.PROGRAMS_KEPT :], (key, fingerprint, analysis)]
        return analysis

    def _first(self, network: Network, inputs: Inputs, trainable: list[Tensor], request: ProductRequest) -> Analysis:
        """The analysis by a first call; ``trainable`` are tensors of any shapes."""
        network.report_warnings()
        (linearization,) = linearize(network, inputs, [self.pair])
        linear, value = linearization.linear, linearization.linear.value
        if request.square:
            check_square(linear.f.n_out, linear.f.n_in, f"J of {linearization.name}")
        report_path(linearization)
        if linearization.samples_mix:
            warn(worded("{name}: {text}", name=linearization.name, text=mixing(linearization)))
        if linear.recorded_pass is None:
            raise UnsupportedError(
                f"the model refuses a pass with gradients: {linearization.probe.backward_gap}",
                "expected a model that can be differentiated",
            )
        nodes = graph_nodes(linear.recorded_pass.target)
        fused = not network.fused or any(node.name().startswith(FUSED_NODES) for node in nodes)
        connected, mixes = linearization.connected, linearization.samples_mix
        analysis = Analysis(trainable, connected, mixes, fused, linear.shape, value.dtype, value.device)
        if mixes or not connected:
            return analysis
        if not request.probes:
            _check_memory(linearization)
        with suppress(CaptureGap):
            analysis.accumulation = verified_program(linearization, inputs, trainable, request)
        return analysis

    def verify(
        self, network: Network, inputs: Inputs, analysis: Analysis, request: ProductRequest, differentiable: bool
    ) -> None:
        """At calls 1, 2, 4, 8, …: verify what is computed, and its gradient if it is ``differentiable``.

        A derivative rule may be wrong at some points only, and training moves the point; a doubling interval keeps the
        number of verifications logarithmic. Cost: in these calls one more step or a few.

        Raises:
            UnsupportedError: there is no gradient.
        """
        analysis.calls[differentiable] += 1
        # c & (c - 1) is 0 for powers of two alone.
        if analysis.calls[differentiable] & (analysis.calls[differentiable] - 1) or not analysis.connected:
            return
        variables = analysis.variables(inputs) if differentiable else []
        with torch.enable_grad(), analysis.rows(network, self.pair, inputs, bool(variables)) as rows:
            # In this order: passes are the reference for the program, so that they are put right first.
            vectors = _vectors(rows, request)
            factors = analysis.accumulated(inputs, *([] if vectors is None else [vectors]))
            moved = MovedProduct(network, self.pair, inputs, variables, analysis.mixes, request.gram)
            verification = Verification(rows, factors, vectors, request, variables, moved)
            if not analysis.single and verification.single_rows():
                note("products by second derivatives, or of several rows at once, are wrong: rows are taken one by one")
                analysis.single, verification = True, replace(verification, rows=replace(rows, single=True))
            if analysis.accumulation is not None and not verification.program_is_right():
                note("products by the engine's operators disagree with backward passes, which are taken instead")
                analysis.accumulation, verification = None, replace(verification, factors=None)
            if variables:
                _use_gradients_of(analysis, *verification.choose_gradient())


def _vectors(rows: Rows, request: ProductRequest) -> Tensor | None:
    """Random vectors ``(batch, n, probes)`` to verify products with; None where J itself is computed.

    A seed of their own leaves torch's generator, and so the model's random numbers, as they are.
    """
    if not request.probes:
        return None
    size = rows.target[0].numel()
    shape = (rows.target.shape[0], min(size, rows.n_in) if request.gram else size, request.probes)
    return gaussian(shape, 0, like=rows.target.detach())


def _use_gradients_of(analysis: Analysis, through: Literal["program", "passes"], error: float) -> None:
    """Take gradients through this from now on; say once their relative error against the slope."""
    if through == "passes" and analysis.accumulation is not None:
        note("gradients through the engine's operators disagree with slopes; passes are taken")
        analysis.accumulation = None
    if error and not analysis.warned:
        analysis.warned = True
        warn(
            f"the gradient of the deviation is {error:.2g} off its slope: some of what J depends on carries no "
            "gradient (detach, or a backward pass or a hook without a derivative of its own)"
        )


def site_of(
    model: Any, x: Tensor, names: tuple[str, str], args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> tuple[Network, CallSite]:
    """The site of a model and two layer names, kept as long as the model lives.

    Args:
        model: any that ``as_network`` takes.
        x: the samples, ``(batch, …)``.
        names: of source and target.
        args: further arguments of the model.
        kwargs: further arguments by name.

    Raises:
        UsageError: not a model, an unknown layer, no samples.
    """
    try:
        sites = _SITES.setdefault(model, {})
    except TypeError:  # no weak reference to it, or no hash: not a model either
        sites = {}
    site, network = sites.get(names), as_network(model)
    if site is None or not isinstance(x, Tensor):
        with torch.no_grad():
            _, pair, inputs = bind(network, x, *names, args, kwargs)
        site = sites[names] = CallSite(pair, inputs.dim)
    return network, site


_SITES: weakref.WeakKeyDictionary[Any, dict[tuple[str, str], CallSite]] = weakref.WeakKeyDictionary()


def _tensors(inputs: Inputs) -> list[Tensor]:
    """All of them, of any shapes."""
    return [*tensors_in((inputs.args, dict(inputs.kwargs)))]


def _device(inputs: Inputs) -> torch.device:
    first = inputs.args[0]
    return first.device if isinstance(first, Tensor) else torch.device("cpu")


def _check_memory(linearization: Linearization) -> None:
    """Refuse where J, J − I and their gradient do not fit the memory.

    Raises:
        ResourceError: they do not.
    """
    batch, n_out, n_in = linearization.linear.shape
    value = linearization.linear.value
    need, room = 3 * batch * n_out * n_in * value.element_size(), available(value.device)
    if need > room:
        what = f"J of {batch} samples, {n_out} x {n_in} each, needs {human(need)}"
        raise ResourceError(what, f"free are {human(room)}", FEWER)
