"""The decision how J is computed: the method, how many rows at once, how many samples at once, and why.

The method is selected by ``Method.select``; the table of ``auto`` is in ``jaccli.methods.auto``. The chunk of rows and
the block of samples follow from the memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaccli import defaults
from jaccli.errors import ResourceError
from jaccli.graph import Bracketing, EliminationPlan
from jaccli.linearization.activation_memory import ActivationMemory, footprint
from jaccli.methods import METHODS, MethodName
from jaccli.methods.base import SelectionInput
from jaccli.planning.linearize import Linearization, readable
from jaccli.planning.memory import available
from jaccli.text.quantities import human
from jaccli.text.wording import term, worded


@dataclass(frozen=True)
class Decision:
    """How J is going to be computed.

    Args:
        method: None where no path leads from source to target, and J is zero.
        chunk: rows, columns or copies that go through the network at once, for ``batch`` samples.
        batch: the number of samples it was decided with.
        block: how many samples fit the memory at a time.
        why: the reason for the method.
        sample_bytes: size of one sample's J.
        peak_bytes: predicted peak memory of ``batch`` samples beyond the network's own.
        others: reasons against other methods; of ``method`` itself, why it cannot be used and is going to be replaced.
        predicted_s: seconds of ``batch`` samples, predicted from counts, or measured by a plan that timed programs;
            None where the decision needed no prediction.
        bracketing: of the structured method: its elimination order.
        steps: the same for people; ``passes`` in short.
        asked: the user named the method.
    """

    method: MethodName | None
    chunk: int
    batch: int
    block: int
    why: str
    sample_bytes: int
    peak_bytes: int
    others: dict[str, str] = field(default_factory=dict)
    predicted_s: float | None = None
    bracketing: Bracketing | None = None
    steps: tuple[str, ...] = ()
    passes: str = ""
    asked: bool = False

    def chunk_for(self, batch: int) -> int:
        """The chunk that takes the same memory with another number of samples."""
        return max(1, self.chunk * self.batch // batch)


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that a call may use.

    Args:
        limit: for J and the passes.
        results: the part of it for J, where all of it stays in memory; 0 where each block is written and freed.
        stated: the user set the limit.
    """

    limit: int
    results: int
    stated: bool

    @property
    def free(self) -> int:
        """For passes, and for the J of one block where that does not stay."""
        return self.limit - self.results

    def j_bytes(self, linearization: Linearization) -> int:
        """Bytes of J of all samples that must fit into ``free``."""
        return 0 if self.results else linearization.linear.batch * _sample_bytes(linearization)


class TooLarge(ResourceError):
    """J, or one sample's J and its passes, do not fit the memory."""


def decide(
    linearization: Linearization,
    method: MethodName,
    *,
    max_memory: int | None = None,
    chunk: int | None = None,
    keep: int = 0,
) -> Decision:
    """Decide for one layer pair. Cost: see ``Method.select``.

    Args:
        linearization: f at some samples.
        method: the user's choice, or ``auto``.
        max_memory: bytes that J and the passes may take; by default a share of what is free.
        chunk: the user's choice of chunk.
        keep: of how many samples J stays in memory; 0 where each block is written and freed.

    Raises:
        TooLarge: the results do not fit, or not even one row of one sample does.
    """
    with readable(linearization.linear.f.inputs):
        sizes = footprint(linearization.linear)
    budget = _budget(linearization, max_memory, keep)
    if not linearization.connected:
        return _sized(linearization, None, "no path from source to target: J is structurally zero", budget, 1, sizes)

    def sized(name: MethodName, why: str = "") -> Decision:
        return _sized(linearization, name, why, budget, chunk, sizes)

    selection = METHODS[method].select(SelectionInput(linearization, sizes, lambda name: sized(name).chunk, METHODS))
    name, others = selection.method, selection.others
    decision = replace(
        sized(name, selection.why), others=others, predicted_s=selection.predicted_s, asked=method != "auto"
    )
    structure = linearization.structure
    if name != "structured" or name in others or structure is None:
        return decision
    # ``sized`` estimated the memory from rows; the elimination order says what it really takes.
    structured = with_structure(linearization, structure, decision, budget)
    if structured.asked or structured.peak_bytes <= budget.limit:
        return structured
    others = {other: reason for other, reason in others.items() if other != "reverse"}
    others["structured"] = f"{human(structured.peak_bytes)} for one sample"
    return replace(sized("reverse", "the structured engine does not fit the memory"), others=others)


def check_memory(
    linearization: Linearization, method: MethodName, *, max_memory: int | None = None, keep: int = 0
) -> None:
    """Refuse what ``decide`` would refuse for its size, before a method is selected.

    Raises:
        TooLarge: the results do not fit, or not even one row of one sample does.
    """
    with readable(linearization.linear.f.inputs):
        sizes = footprint(linearization.linear)
    budget = _budget(linearization, max_memory, keep)
    _sized(linearization, None if method == "auto" else method, "", budget, 1, sizes)


def with_structure(
    linearization: Linearization, structure: EliminationPlan, decision: Decision, budget: MemoryBudget | None = None
) -> Decision:
    """The decision with the structure's elimination order and the memory that it takes.

    Without a budget the block of samples stays as it is.
    """
    batch, block, results = decision.batch, decision.block, 0
    need = structure.work_bytes + batch * decision.sample_bytes
    if budget is not None:
        need, results = structure.work_bytes + budget.j_bytes(linearization), budget.results
        block = max(1, int(budget.free * batch / max(need, 1)))
    return replace(
        decision,
        bracketing=structure.bracketing,
        steps=tuple(structure.describe()),
        passes=structure.passes(),
        predicted_s=structure.seconds,
        block=max(block, batch) if linearization.samples_mix else block,
        peak_bytes=int(need * min(block, batch) / batch) + results,
    )


def predicted_seconds(linearization: Linearization, decision: Decision) -> float | None:
    """What the decision's method is going to take; None where it cannot be used, or its passes fail.

    Cost: a few of its passes, where the decision holds no prediction; see ``Method.measure``.
    """
    if decision.predicted_s is not None or decision.method is None or decision.method in decision.others:
        return decision.predicted_s
    return METHODS[decision.method].measure(linearization.linear, min(defaults.TRIAL_ROWS, decision.chunk))


def _budget(linearization: Linearization, max_memory: int | None, keep: int) -> MemoryBudget:
    limit = max_memory if max_memory is not None else available(linearization.linear.value.device)
    return MemoryBudget(limit, keep * _sample_bytes(linearization), max_memory is not None)


def _sample_bytes(linearization: Linearization) -> int:
    f = linearization.linear.f
    return f.n_out * f.n_in * linearization.linear.value.element_size()


def _sized(
    linearization: Linearization,
    method: MethodName | None,
    why: str,
    budget: MemoryBudget,
    chunk: int | None,
    sizes: ActivationMemory,
) -> Decision:
    """The decision for a method, with the largest chunk and block of samples that fit the budget.

    Raises:
        TooLarge: one row of one sample does not fit.
    """
    linear, chosen = linearization.linear, METHODS[method or "loop"]
    batch, row = linear.batch, chosen.row_bytes(linear, sizes)
    # Activations and J grow with the samples, rows with the chunk as well: one row of one sample is the least.
    fixed = sizes.total + budget.j_bytes(linearization)
    least = (fixed + row) / batch
    if budget.free < least:
        raise _too_large(linearization, budget, int(least) + budget.results)
    # A larger working set than the caches hold saves no more calls' overhead, and is slower.
    fits = min(int(defaults.MEMORY_FILL * (budget.free - fixed)), max(defaults.WORKING_SET, row)) // row
    chunk = chunk or max(1, min(int(fits), chosen.passes(linear.f.n_out, linear.f.n_in).count))
    # More samples at a time are worth more than more rows: a block needs room for a few rows only, and ``chunk_for``
    # gives a larger block a smaller chunk.
    block = max(1, int(budget.free * batch / (fixed + min(chunk, defaults.TRIAL_ROWS) * row)))
    block = max(block, batch) if linearization.samples_mix else block
    peak = int(min(block, batch) / batch * (fixed + chunk * row)) + budget.results
    return Decision(method, chunk, batch, block, why, _sample_bytes(linearization), peak)


def _too_large(linearization: Linearization, budget: MemoryBudget, need: int) -> TooLarge:
    f = linearization.linear.f
    what = "all samples' J" if budget.results > budget.limit else "one sample's J and its passes"
    return TooLarge(
        f"{what}, {f.n_out} x {f.n_in} each, need {human(need)}",
        worded(
            "expected at most {size} ({of})",
            size=human(budget.limit),
            of=term("max_memory") if budget.stated else "free memory",
        ),
        worded("take fewer samples, part of a layer, as {target:output[0:100]}, or allow more with {max_memory}"),
    )
