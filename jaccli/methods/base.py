"""What a method is: how it computes J, what that costs, where it cannot be used, and which methods may replace it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.seeds import one_hot, spans
from jaccli.errors import JaccliError
from jaccli.graph import Bracketing, EliminationPlan
from jaccli.linearization.activation_memory import ActivationMemory
from jaccli.linearization.linearized_function import LinearizedFunction
from jaccli.methods.operator_costs import Work, counted
from jaccli.names import MethodName
from jaccli.planning.linearize.linearization import Linearization
from jaccli.planning.linearize.session import readable
from jaccli.runtime.timed import timed
from jaccli.runtime.torch_errors import reason, reraise_out_of_memory

if TYPE_CHECKING:
    from jaxtyping import Shaped

Result = TypeVar("Result")
Tick = Callable[[int], None]
# Backward passes, forward passes with tangents, and evaluations of f.
PassKind = Literal["backward", "forward", "plain forward"]


class MethodGap(Exception):
    """A method cannot be used for this model; the message says why. Another method may be."""


@dataclass
class MethodTask:
    """One J to fill.

    Args:
        linear: f at the point, with its products.
        out: overwritten.
        chunk: how many rows, columns or copies go through the network at once.
        samples_mix: whether a sample's target depends on other samples: then J[b] is the diagonal
            block, and each sample needs passes of its own.
        tick: called with the number of rows or columns that were finished since the last call.
        notes: the method adds what a reader should know of how J was computed.
        error_estimate: set by a method that is not exact: relative Frobenius error.
        structure: f as a graph with its elimination order, where that was found before.
        bracketing: the elimination order alone, where that is known.
    """

    linear: LinearizedFunction
    out: Shaped[Tensor, "batch n_out n_in"]
    chunk: int
    samples_mix: bool = False
    tick: Tick = lambda done: None
    notes: list[str] = field(default_factory=list)
    error_estimate: float | None = None
    structure: EliminationPlan | None = None
    bracketing: Bracketing | None = None

    def groups(self) -> list[slice]:
        """Which samples may share a pass: all of them, or each its own."""
        batch = self.linear.batch
        return [slice(b, b + 1) for b in range(batch)] if self.samples_mix else [slice(0, batch)]

    def chunks(self, size: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Passes for ``size`` rows or columns: which samples, which rows, and one-hot vectors ``(k, batch, size)``."""
        for group in self.groups():
            for start, stop in spans(size, self.chunk):
                yield group, slice(start, stop), self.seeds(start, stop, size, group)
                self.tick(stop - start)

    def seeds(self, start: int, stop: int, size: int, group: slice) -> Shaped[Tensor, "k batch n"]:
        """One-hot vectors ``start:stop`` for the samples of a group, zero for others."""
        return one_hot(start, stop, self.linear.batch, size, self.out, group)


@dataclass(frozen=True)
class Passes:
    """The cost of J by a method: passes through the network, all samples in each.

    Args:
        count: of one J of each sample, where samples do not mix.
        kind: of pass.
    """

    count: int
    kind: PassKind


@dataclass(frozen=True)
class SelectionInput:
    """What a method is selected by.

    Args:
        linearization: f at the samples.
        sizes: memory of its activations.
        chunk_of: the chunk of a method that fits the memory; see ``MethodTask.chunk``.
        methods: all methods by name, for the one that selects another.
    """

    linearization: Linearization
    sizes: ActivationMemory
    chunk_of: Callable[[MethodName], int]
    methods: Mapping[MethodName, Method] = field(repr=False)

    @property
    def linear(self) -> LinearizedFunction:
        """f with its products."""
        return self.linearization.linear

    @cached_property
    def work(self) -> Work:
        """The operators of f, from which times are predicted. Computed once; see ``counted`` for its cost."""
        with readable(self.linear.f.inputs):
            return counted(self.linear)


@dataclass(frozen=True)
class MethodSelection:
    """The method that is going to compute J.

    Args:
        method: its name.
        why: the reason, for people.
        others: reasons against other methods; against ``method`` itself where another one is going to replace it.
        predicted_s: predicted seconds; None where the selection needed no prediction.
    """

    method: MethodName
    why: str
    others: dict[str, str] = field(default_factory=dict)
    predicted_s: float | None = None


class Method(ABC):
    """A way to compute J. A new method is a subclass in a file of its own, and its entry in ``jaccli.names``.

    Attributes:
        name: as on the command line, and in ``METHOD_CLASSES``.
        by: whether it computes J row by row or column by column, ``chunk`` of them at once.
        differentiates: whether it needs gradients, or can be checked by them: the forward pass is then recorded.
        needs_graph: whether it goes back through the gradient graph of the recorded forward pass.
        needs_plain_attention: whether attention must be made of operators that vmap and forward mode know.
        recordable: whether ``jaccli.plan`` may take a recorded program of the engine in its place.
        batched: whether its first pass in a process imports sympy, for ``defaults.SYMPY_IMPORT`` seconds.
        kind: of the passes that it makes, and ``passes_each``: how many of them for a row or column.
        drawback: why it is not used where another method is, for people; with the fields n_out and n_in.
        fallbacks: the methods to try, in this order, where it cannot be used.
    """

    name: ClassVar[MethodName]
    by: ClassVar[Literal["row", "column"]] = "row"
    differentiates: ClassVar[bool] = True
    needs_graph: ClassVar[bool] = False
    needs_plain_attention: ClassVar[bool] = False
    recordable: ClassVar[bool] = False
    batched: ClassVar[bool] = False
    kind: ClassVar[PassKind] = "backward"
    passes_each: ClassVar[int] = 1
    drawback: ClassVar[str]
    fallbacks: ClassVar[tuple[MethodName, ...]] = ()

    @property
    def goes_backward(self) -> bool:
        """Whether it is made of backward passes, which the engine's ``recordable`` run is not."""
        return self.kind == "backward" and not self.recordable

    @abstractmethod
    def fill(self, task: MethodTask) -> None:
        """Fill ``task.out``, ``(batch, n_out, n_in)``.

        Raises:
            MethodGap: the model has an operator that the method cannot differentiate.
        """

    def passes(self, n_out: int, n_in: int) -> Passes:
        """What J costs: as many passes as rows or columns, or a multiple of them."""
        return Passes(self.passes_each * (n_out if self.by == "row" else n_in), self.kind)

    def why_not(self, linearization: Linearization) -> str | None:
        """Why it cannot be used here, as far as that is known without a pass of its own; else None."""
        return linearization.probe.backward_gap if self.needs_graph else None

    def select(self, inputs: SelectionInput) -> MethodSelection:  # noqa: ARG002 - a method that is named is used
        """The method that is used where a user names this one: itself, but for ``auto``."""
        return MethodSelection(self.name, "asked for")

    def predict(self, inputs: SelectionInput) -> float | None:  # noqa: ARG002 - by default nothing is predicted
        """Seconds of J from counts of operators, without the clock; None where ``auto`` is not to consider it."""
        return None

    def measure(self, linear: LinearizedFunction, chunk: int) -> float | None:
        """Seconds of J by the clock, from a few passes; None where those fail.

        Cost: two passes of the method's kind; two chunks of them where it is ``batched``.
        """
        count, single = self.passes(linear.f.n_out, linear.f.n_in).count, torch.ones_like(linear.value)
        if self.batched:
            chunk, products = min(chunk, count), linear.vjps if self.by == "row" else linear.jvps
            seeds = one_hot(0, chunk, linear.batch, count, linear.value)
            return _measured(lambda: products(seeds), count / chunk)
        if self.kind == "plain forward":
            with torch.no_grad():
                return _measured(lambda: linear.evaluate(linear.point), count)
        return _measured(lambda: linear.vjp(single.reshape(linear.batch, -1)), count)

    def row_bytes(self, linear: LinearizedFunction, sizes: ActivationMemory) -> int:
        """Bytes that one more row, column or copy in a chunk costs, of all samples."""
        seeds = 2 * linear.batch * (linear.f.n_in + linear.f.n_out) * linear.value.element_size()
        return seeds + defaults.ROW_TENSORS * sizes.widest


def attempt(call: Callable[..., Result], *args: Any) -> Result:
    """The result of a pass.

    Raises:
        MethodGap: torch, or the network's own code, cannot make this pass. An error of jaccli, and one that means that
            memory ran out, is raised as it is: another method would not help.
    """
    try:
        return call(*args)
    except JaccliError:
        raise
    except Exception as error:
        reraise_out_of_memory(error)
        raise MethodGap(reason(error)) from error


def _measured(run: Callable[[], object], times: float) -> float | None:
    """Seconds of ``times`` runs, from the faster of two: the first may import; None where they fail."""
    try:
        return times * min(timed(run)[0] for _ in range(2))
    except Exception as error:
        reraise_out_of_memory(error)
        return None
