"""Step 3, location → recorded activation: one forward pass that keeps activations, with or without their graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from jaccli.activations.address import Address
from jaccli.activations.boundary import (
    ActivationLocation,
    Boundary,
    BoundaryTap,
    boundary_of,
    locate_activation,
    module_paths,
)
from jaccli.activations.nested import put
from jaccli.activations.substituted import SubstitutedSource, TensorMemory
from jaccli.autograd.walk import mend_batch_norm
from jaccli.errors import JaccliError, RefusedError, UnsupportedError, UsageError
from jaccli.networks.dtypes import converted
from jaccli.networks.network import Network
from jaccli.networks.state.checkpointing import inside_a_checkpoint, inside_a_function
from jaccli.networks.tensor_kinds import not_dense
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped


class NoGraph(RuntimeError):
    """A layer is called where autograd records nothing. The planner then records the pass without gradients."""


def check_sample_dimension(x: Tensor, dim: int) -> None:
    """Check that ``x``, of any shape, has samples in dimension ``dim``.

    Raises:
        UsageError: it has no such dimension, or no sample there.
    """
    if 0 < x.dim() <= dim:
        raise UsageError(
            f"x has shape {tuple(x.shape)}, and input@{dim} says that dimension {dim} counts the samples",
            f"expected a dimension from 0 to {x.dim() - 1}",
            "leave @ out where the first dimension counts them",
        )
    if x.dim() == 0 or x.shape[dim] == 0:
        raise UsageError(f"x has shape {tuple(x.shape)}", f"expected at least one sample in dimension {dim}")


@dataclass(frozen=True)
class Inputs:
    """What the model is called with.

    Attributes:
        args: positional arguments; ``args[0]`` is the tensor of the samples, with any further shape.
        kwargs: named arguments.
        dim: the dimension of ``args[0]`` that counts the samples.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 0

    @classmethod
    def of(cls, x: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dim: int = 0) -> Inputs:
        """The samples ``x`` and further arguments of a call.

        Raises:
            UsageError: ``x`` is no tensor with samples in ``dim``, or ``args`` no tuple, or ``kwargs`` no dict.
            RefusedError: ``x`` is nested or has no values.
        """
        if not isinstance(x, Tensor):
            expected = "expected a torch.Tensor whose first dimension is the samples"
            raise UsageError(f"x is a {type(x).__name__}", expected, "torch.as_tensor(x) makes one")
        if (x.is_nested or x.is_meta) and (kind := not_dense(x)) is not None:  # a first layer may take other kinds
            raise RefusedError(
                f"x is {kind[0]}", "expected a dense tensor", "give x.to_padded_tensor(0.0), or with values"
            )
        check_sample_dimension(x, dim)
        if isinstance(args, Tensor | str) or not isinstance(args, Sequence):
            raise UsageError(f"args is a {type(args).__name__}", "expected a tuple, as args=(mask,)")
        if not isinstance(kwargs or {}, Mapping):
            raise UsageError(f"kwargs is a {type(kwargs).__name__}", "expected a dict, as kwargs={'mask': mask}")
        return cls((x, *args), dict(kwargs or {}), dim)

    @property
    def batch(self) -> int:
        """Number of samples."""
        first = self.args[0]
        return int(first.shape[self.dim]) if isinstance(first, Tensor) and first.dim() > self.dim else 1

    def each(self, change: Callable[[Tensor, int], Tensor]) -> Inputs:
        """The inputs with ``change(tensor, dim)`` in place of each argument of shape ``(batch, …)``, an entry a sample.

        ``dim`` is the dimension of those entries: ``self.dim`` of the samples, 0 of further arguments.
        """
        batch = self.batch

        def apply(value: Any, dim: int = 0) -> Any:
            if isinstance(value, Tensor) and value.dim() > dim and value.shape[dim] == batch:
                return change(value, dim)
            return value

        args = (apply(self.args[0], self.dim), *(apply(a) for a in self.args[1:]))
        return Inputs(args, {k: apply(v) for k, v in self.kwargs.items()}, self.dim)

    def select(self, numbers: Sequence[int], together: bool = True) -> Inputs:
        """The inputs with the samples of these numbers, which may repeat.

        Args:
            numbers: of samples.
            together: further arguments with as many entries as there are samples have one a sample.
        """

        def picked(tensor: Tensor, dim: int) -> Tensor:
            return tensor.index_select(dim, torch.tensor(numbers, device=tensor.device))

        return self.each(picked) if together else replace(self, args=(picked(self.args[0], self.dim), *self.args[1:]))

    @property
    def may_have_rows(self) -> bool:
        """Whether further arguments have as many entries in dimension 0 as there are samples: maybe one a sample."""
        further = (*self.args[1:], *self.kwargs.values())
        return any(isinstance(value, Tensor) and value.dim() and value.shape[0] == self.batch for value in further)

    def copied(self) -> Inputs:
        """The inputs with copies of all tensors, so that later writes to the caller's change nothing."""
        args, kwargs = tree_map_only(Tensor, lambda t: t.detach().clone(), (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.dim)

    def converted(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Inputs:
        """The inputs with all tensors, those in containers too, converted as ``Network.cast`` converts the model's."""
        args, kwargs = tree_map_only(Tensor, lambda t: converted(t, device, dtype), (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.dim)


@dataclass
class RecordedActivation:
    """An activation of one run.

    Attributes:
        location: where the run has it.
        raw: the whole tensor that it lies in; of a source the variable, of a target connected to it in a live run.
        order: its position among all recorded activations, in the order of the run.
    """

    location: ActivationLocation
    raw: Tensor
    order: int

    @property
    def activation(self) -> Shaped[Tensor, "batch *shape"]:
        """The activation, connected to the graph if there is one."""
        return self.location.view.get(self.raw)


@dataclass
class ForwardRecord:
    """The result of one recorded forward pass.

    Attributes:
        inputs: what the model was called with.
        sources: the activations that were made variables.
        targets: copies of the activations at the targets.
        left_out: addresses that a glob gave and that do not fit, with the reason.
        same: pairs of a source and a target that are the same activation: J is the identity.
    """

    inputs: Inputs
    sources: dict[Address, RecordedActivation]
    targets: dict[Address, RecordedActivation]
    left_out: dict[Address, str]
    same: set[tuple[Address, Address]]


class ActivationRecorder(BoundaryTap):
    """The tap of ``record``.

    In a live run a source becomes a variable. It is detached from what came before only if that asks for no gradient:
    an earlier source must stay connected to all that follows it.
    """

    gives_copies = True

    def __init__(self, sources: Sequence[Address], targets: Sequence[Address], batch: int, live: bool) -> None:
        self.batch, self.live = batch, live
        self.addresses: dict[Boundary, tuple[list[Address], list[Address]]] = {}  # its sources and its targets
        for position, addresses in enumerate((sources, targets)):
            for address in addresses:
                self.addresses.setdefault(boundary_of(address), ([], []))[position].append(address)
        self.paths = module_paths(self.addresses)
        self.sources: dict[Address, RecordedActivation] = {}
        self.targets: dict[Address, RecordedActivation] = {}
        self.calls: Counter[str] = Counter()
        self.left_out: dict[Address, str] = {}
        self.in_checkpoint = False
        self.substituted: dict[Address, SubstitutedSource] = {}
        self.same: set[tuple[Address, Address]] = set()

    def enter(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls[path] = max(self.calls[path], call)
        return super().enter(path, call, args, kwargs)

    def at(self, boundary: Boundary, value: Any) -> Any:
        sources, targets = self.addresses.get(boundary, ((), ()))
        if self.live and (sources or targets):
            self._check_graph((*sources, *targets)[0])
            self.in_checkpoint = self.in_checkpoint or (bool(sources) and inside_a_checkpoint())
        for address in sources:
            if (location := self._locate(address, value, source=True)) is not None:
                value = self._substitute(location, value)
        for address in targets:
            if (location := self._locate(address, value, source=False)) is not None:
                self._keep(location, value)
        return value

    def _check_graph(self, address: Address) -> None:
        """Refuse what an ``autograd.Function`` runs in its forward pass: without a graph J would be zero."""
        if not torch.is_grad_enabled() and inside_a_function():
            raise NoGraph(f"layer {str(address)!r} is called inside an autograd.Function, which leaves no graph")

    def _locate(self, address: Address, value: Any, *, source: bool) -> ActivationLocation | None:
        """None if a glob gave the address and it does not fit."""
        try:
            return locate_activation(address, value, self.batch, source=source)
        except JaccliError as error:
            if not address.globbed:
                raise
            self.left_out[address] = error.given
            return None

    def _substitute(self, location: ActivationLocation, value: Any) -> Any:
        """Record a source; the boundary's value with the variable in it."""
        # A copy in other memory would hide that an earlier source lies in this tensor: that source is followed there.
        before = TensorMemory.of(location.tensor(value))
        raw, value = self._variable(location, value)
        after = TensorMemory.of(location.tensor(value))
        for source in self.substituted.values():
            source.follow(before, after)
        if after is not None:
            self.substituted[location.address] = SubstitutedSource(location.view, [after])
        self.sources[location.address] = RecordedActivation(location, raw, len(self.sources) + len(self.targets))
        return value

    def _variable(self, location: ActivationLocation, value: Any) -> tuple[Shaped[Tensor, "..."], Any]:
        """The variable for a tensor, one for all sources that lie in it; and the value with a copy of it."""
        for source in self.sources.values():
            if (source.location.boundary, source.location.path) == (location.boundary, location.path):
                return source.raw, value
        raw = location.tensor(value)
        # See the class: a tensor that asks for a gradient may depend on an earlier source, and stays in its graph.
        if not self.live or not raw.requires_grad:
            raw = raw.detach().clone().requires_grad_(self.live)
        # The model goes on with a copy: an in-place operator on a leaf that requires gradients is an error in torch.
        return raw, put(value, location.path, raw.clone())

    def _keep(self, location: ActivationLocation, value: Any) -> None:
        """Record a target."""
        tensor, target = location.tensor(value), location.address
        self.same |= {(s, target) for s, source in self.substituted.items() if source.is_in(tensor, location.view)}
        # A copy: an in-place operator may follow, as the ReLU after a convolution.
        self.targets[target] = RecordedActivation(location, tensor.clone(), len(self.sources) + len(self.targets))


def record(
    network: Network, inputs: Inputs, sources: Sequence[Address], targets: Sequence[Address], *, live: bool
) -> ForwardRecord:
    """Run the network once, to its end, and keep the activations.

    With ``live`` the sources require gradients and the targets are connected to them, so that any
    number of Jacobian products of any pair costs no further forward pass.

    Cost: one forward pass; two the first time that a source lies in a gradient checkpoint.

    Raises:
        UsageError: a layer called several times without ``#``, an ambiguous value.
        UnsupportedError: a layer that this input does not reach.
    """
    tap = ActivationRecorder(sources, targets, inputs.batch, live)
    with torch.set_grad_enabled(live):
        tap.run(network, inputs.args, inputs.kwargs)
    if tap.in_checkpoint and not network.bypasses_checkpoints:
        # The backward pass would run the checkpoint again, without the variable.
        network.bypasses_checkpoints = True
        return record(network, inputs, sources, targets, live=live)
    for address in (*sources, *targets):
        try:
            _check_called(address, tap.calls)
        except JaccliError as error:
            if not address.globbed:
                raise
            tap.left_out[address] = error.given
            tap.sources.pop(address, None)
    if live:
        mend_batch_norm(*(target.raw for target in tap.targets.values()))
    return ForwardRecord(inputs, tap.sources, tap.targets, tap.left_out, tap.same)


def values(
    network: Network, inputs: Inputs, sources: Sequence[Address], targets: Sequence[Address]
) -> dict[Address, Tensor]:
    """The targets' activations ``(batch, *shape)`` from one pass without gradients; errors as of ``record``."""
    recorded = record(network, inputs, sources, targets, live=False).targets
    return {address: target.activation.detach() for address, target in recorded.items()}


def _check_called(address: Address, counts: Counter[str]) -> None:
    if address.is_model_input or address.is_model_output:
        return
    calls = counts[address.path]
    if calls == 0:
        raise UnsupportedError(
            f"layer {str(address)!r} exists, and this input does not reach it: it is not called in the forward pass",
            "expected a layer that takes part",
            worded("{layer_calls}"),
        )
    if address.call is None and calls > 1:
        names = ", ".join(str(address.at_call(k)) for k in range(1, min(calls, 4) + 1))
        raise UsageError(
            f"layer {str(address)!r} is called {calls} times", f"expected one of {names}" + "…" * (calls > 4)
        )
    if isinstance(address.call, int) and address.call > calls:
        raise UnsupportedError(
            f"layer {str(address)!r}: {address.path!r} is called {calls} times for this input",
            f"expected a call from 1 to {calls}",
            f"name the last one as {str(address.at_call(calls))!r}",
        )
