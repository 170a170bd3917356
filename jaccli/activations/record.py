"""One forward pass that remembers the activations asked for, with or without their gradient graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from jaccli.activations.address import Address
from jaccli.activations.boundary import MODEL_INPUT, MODEL_OUTPUT, Key, Place, key_of, module_paths, place
from jaccli.activations.nested import put
from jaccli.activations.substituted import Imprint, Placed
from jaccli.autograd.walk import mend_batch_norm
from jaccli.errors import JaccliError, RefusedError, UnsupportedError, UsageError
from jaccli.networks.dtypes import converted
from jaccli.networks.network import Network
from jaccli.networks.state.checkpointing import inside_a_checkpoint, inside_a_function
from jaccli.networks.tensor_kinds import not_dense
from jaccli.text.wording import worded


@dataclass(frozen=True)
class Inputs:
    """What the model is called with. ``args[0]`` holds the samples, in its dimension ``dim``."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dim: int = 0

    @classmethod
    def of(cls, x: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dim: int = 0) -> Inputs:
        """The samples and further arguments of a call.

        Raises:
            UsageError: they are not what can be passed on.
        """
        if not isinstance(x, Tensor):
            expected = "expected a torch.Tensor whose first dimension is the samples"
            raise UsageError(f"x is a {type(x).__name__}", expected, "torch.as_tensor(x) makes one")
        if (x.is_nested or x.is_meta) and (kind := not_dense(x)) is not None:  # others a first layer may take
            raise RefusedError(
                f"x is {kind[0]}", "expected a dense tensor", "give x.to_padded_tensor(0.0), or with values"
            )
        if x.dim() <= dim or x.shape[dim] == 0:
            raise UsageError(f"x has shape {tuple(x.shape)}", f"expected at least one sample in dimension {dim}")
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

    def each(self, change: Any) -> Inputs:
        """With ``change(tensor, dim)`` applied to every tensor that has one row a sample."""
        batch = self.batch

        def apply(value: Any, dim: int = 0) -> Any:
            if isinstance(value, Tensor) and value.dim() > dim and value.shape[dim] == batch:
                return change(value, dim)
            return value

        args = (apply(self.args[0], self.dim), *(apply(a) for a in self.args[1:]))
        return Inputs(args, {k: apply(v) for k, v in self.kwargs.items()}, self.dim)

    def copied(self) -> Inputs:
        """With tensors of its own, which later writes to the caller's do not change."""
        args, kwargs = tree_map_only(Tensor, lambda t: t.detach().clone(), (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.dim)

    def converted(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Inputs:
        """With all tensors, those in containers too, as ``Network.cast`` converts the model's."""
        args, kwargs = tree_map_only(Tensor, lambda t: converted(t, device, dtype), (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs, self.dim)


@dataclass
class Held:
    """An activation as the run had it: ``raw`` is the tensor it lies in, ``order`` its turn."""

    place: Place
    raw: Tensor
    order: int

    @property
    def activation(self) -> Tensor:
        """``(batch, *shape)``, connected to the graph if there is one."""
        return self.place.slot.get(self.raw)


@dataclass
class Record:
    """What one forward pass gave: activations by address, why a glob's layers were left out, and the pairs of which
    source and target are the ``same`` activation."""

    inputs: Inputs
    sources: dict[Address, Held]
    targets: dict[Address, Held]
    left_out: dict[Address, str]
    same: set[tuple[Address, Address]]


class ActivationRecorder:
    """The tap of ``record``: cuts sources loose from what came before only where nothing needs it."""

    gives_copies = True

    def __init__(self, sources: Sequence[Address], targets: Sequence[Address], batch: int, live: bool) -> None:
        self.batch, self.live = batch, live
        self.wanted: dict[Key, tuple[list[Address], list[Address]]] = {}
        for position, addresses in enumerate((sources, targets)):
            for address in addresses:
                self.wanted.setdefault(key_of(address), ([], []))[position].append(address)
        self.paths: frozenset[str] | None = module_paths(self.wanted)
        self.sources: dict[Address, Held] = {}
        self.targets: dict[Address, Held] = {}
        self.calls: Counter[str] = Counter()
        self.left_out: dict[Address, str] = {}
        self.recomputed = False
        self.placed: dict[Address, Placed] = {}
        self.same: set[tuple[Address, Address]] = set()

    def enter(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.calls[path] = max(self.calls[path], call)
        return self.at((path, "in", call), (args, kwargs))

    def leave(self, path: str, call: int, output: Any) -> Any:
        return self.at((path, "out", call), output)

    def at(self, key: Key, value: Any) -> Any:
        sources, targets = self.wanted.get(key, ((), ()))
        if self.live and (sources or targets):
            self._check_graph((*sources, *targets)[0])
            self.recomputed = self.recomputed or (bool(sources) and inside_a_checkpoint())
        for address in sources:
            where = self._place(address, value, source=True)
            if where is None:
                continue
            before = Imprint.of(where.tensor(value))
            raw, value = self._variable(where, value)
            self._place_source(where, before, Imprint.of(where.tensor(value)))
            self.sources[address] = Held(where, raw, len(self.sources) + len(self.targets))
        for address in targets:
            where = self._place(address, value, source=False)
            if where is None:
                continue
            self.same |= {(s, address) for s, p in self.placed.items() if p.is_in(where.tensor(value), where.slot)}
            # A copy: an in-place operator may follow, as the ReLU after a convolution.
            raw = where.tensor(value).clone()
            self.targets[address] = Held(where, raw, len(self.sources) + len(self.targets))
        return value

    def _check_graph(self, address: Address) -> None:
        """What a function of its own runs in its forward pass has no graph, and zeros would be no derivative."""
        if not torch.is_grad_enabled() and inside_a_function():
            raise RuntimeError(f"layer {str(address)!r} is called inside an autograd.Function, which leaves no graph")

    def _place_source(self, where: Place, before: Imprint | None, after: Imprint | None) -> None:
        for placed in self.placed.values():
            placed.follow(before, after)
        if after is not None:
            self.placed[where.address] = Placed(where.slot, [after])

    def _place(self, address: Address, value: Any, *, source: bool) -> Place | None:
        """None for what a glob gave and does not fit."""
        try:
            return place(address, value, self.batch, source=source)
        except JaccliError as error:
            if not address.globbed:
                raise
            self.left_out[address] = error.given
            return None

    def _variable(self, where: Place, value: Any) -> tuple[Tensor, Any]:
        shared = [h for h in self.sources.values() if (h.place.key, h.place.path) == (where.key, where.path)]
        if shared:
            return shared[0].raw, value
        raw = where.tensor(value)
        if not self.live or not raw.requires_grad:
            raw = raw.detach().clone().requires_grad_(self.live)
        return raw, put(value, where.path, raw.clone())


def record(
    network: Network, inputs: Inputs, sources: Sequence[Address], targets: Sequence[Address], *, live: bool
) -> Record:
    """Run the network once, to its end, and hold the activations.

    With ``live`` the sources require gradients and the targets are connected to them, so that any
    number of Jacobian products of any pair costs no further forward pass.

    Raises:
        UsageError: a layer called several times without ``#``, an ambiguous value.
        UnsupportedError: a layer that this input does not reach.
    """
    tap = ActivationRecorder(sources, targets, inputs.batch, live)
    with torch.set_grad_enabled(live):
        args = (tap.at(MODEL_INPUT, inputs.args[0]), *inputs.args[1:])
        output = network.run(args, inputs.kwargs, tap if tap.paths else None)
        tap.at(MODEL_OUTPUT, output)
    if tap.recomputed and not network.uncut:  # what is run again would be run without what was put in
        network.uncut = True
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
        mend_batch_norm(*(held.raw for held in tap.targets.values()))
    return Record(inputs, tap.sources, tap.targets, tap.left_out, tap.same)


def values(
    network: Network, inputs: Inputs, sources: Sequence[Address], targets: Sequence[Address]
) -> dict[Address, Tensor]:
    """The targets' activations ``(batch, …)`` from one pass without gradients; errors as of ``record``."""
    found = record(network, inputs, sources, targets, live=False).targets
    return {address: held.activation.detach() for address, held in found.items()}


def _check_called(address: Address, made: Counter[str]) -> None:
    if address.is_model_input or address.is_model_output:
        return
    calls = made[address.path]
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
        raise UnsupportedError(f"layer {str(address)!r}: {address.path!r} is called {calls} times for this input")
