"""What came out: one record a network, tables in Markdown, a JSON document."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from costs import MEMORY_SHARE, Floor, Machine
from measure import Contender
from networks import CASES, Case

from jaccli.run.benchmark import ratio_interval
from jaccli.sinks.numbers import markdown_table
from jaccli.sinks.table import TableView

BEST_GOAL, EAGER_GOAL, FIRST_GOAL, MEMORY_GOAL = 0.5, 0.4, 1.0, 1.0


@dataclass
class Result:
    """All that was measured on one network.

    Args:
        name: of the network.
        shape: ``(batch, n_out, n_in)``.
        contenders: jaccli first.
        floor: the least time.
        first_s: seconds of first calls, medians by name.
        peak_bytes: most memory of a planned call, J and what the plan keeps for intermediate results included.
        held_bytes: what the plan keeps between calls.
        activation_bytes: what a forward pass puts out.
        plan: what jaccli says it does.
    """

    name: str
    shape: tuple[int, ...]
    contenders: list[Contender]
    floor: Floor
    first_s: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    held_bytes: int | None = None
    activation_bytes: int = 0
    plan: str = ""

    @property
    def case(self) -> Case:
        return CASES[self.name]

    @property
    def ours(self) -> Contender:
        return self.contenders[0]

    def best(self, *kinds: str) -> Contender | None:
        """The fastest right peer of these families."""
        peers = (c for c in self.contenders if c.kind in kinds and c.status in ("races", "slow"))
        return min(peers, key=lambda c: c.median_s, default=None)

    def ratio(self, peer: Contender | None, of: Contender | None = None) -> tuple[float, float, float] | None:
        """Planned call, or another contender, over peer, with its interval."""
        ours = of or self.ours
        if peer is None or not ours.times_s:
            return None
        if not peer.times_s:
            return (ours.median_s / peer.median_s,) * 3
        return ratio_interval(ours.times_s, peer.times_s)

    @property
    def best_ratio(self) -> tuple[float, float, float] | None:
        return self.ratio(self.best("eager", "compiled", "jax"))

    @property
    def compiled(self) -> Contender | None:
        """The plan through ``torch.compile``, where it raced."""
        found = self.best("jaccli compiled")
        return found if found is not None and found.times_s else None

    @property
    def compiled_ratio(self) -> tuple[float, float, float] | None:
        """It over the best peer."""
        return self.ratio(self.best("eager", "compiled", "jax"), of=self.compiled) if self.compiled else None

    @property
    def eager_ratio(self) -> tuple[float, float, float] | None:
        return self.ratio(self.best("eager"))

    @property
    def first_ratio(self) -> float | None:
        """First call over the quickest first call of the eager peers."""
        peers = [seconds for name, seconds in self.first_s.items() if name != "jaccli"]
        return self.first_s["jaccli"] / min(peers) if peers and "jaccli" in self.first_s else None

    @property
    def memory_ratio(self) -> float | None:
        """Peak of a planned call over 1.25 results and the activations."""
        allowed = MEMORY_SHARE * self.floor.result_bytes + self.activation_bytes
        return self.peak_bytes / allowed if self.peak_bytes is not None else None

    @property
    def floor_ratio(self) -> float | None:
        return self.ours.median_s / self.floor.seconds if self.ours.times_s else None


def missed(result: Result) -> list[str]:
    """Which of the targets of this network are not met."""
    best = result.best_ratio
    checks = (
        ("best", best[0] if best else None, result.case.goal),
        ("first", result.first_ratio, FIRST_GOAL),
        ("memory", result.memory_ratio, MEMORY_GOAL),
    )
    return [name for name, value, goal in checks if value is not None and value > goal]


def row(result: Result) -> dict[str, str]:
    """One line of the table."""
    best, eager = result.best("eager", "compiled", "jax"), result.best("eager")
    verdict = missed(result)
    met = "met" if result.best_ratio else ""
    return {
        "network": result.case.name,
        "J": " × ".join(map(str, result.shape)),
        "jaccli ms": _ms(result.ours.median_s) if result.ours.times_s else result.ours.status,
        "best eager": _peer(eager),
        "ratio eager": _interval(result.eager_ratio),
        "best peer": _peer(best),
        "ratio best": _interval(result.best_ratio),
        "target": f"{result.case.goal:g}",
        "compiled ms": _ms(result.compiled.median_s) if result.compiled else "",
        "ratio compiled": _interval(result.compiled_ratio),
        "first ms": _ms(result.first_s["jaccli"]) if "jaccli" in result.first_s else "",
        "ratio first": _number(result.first_ratio),
        "held MiB": f"{result.held_bytes / 2**20:.3g}" if result.held_bytes is not None else "",
        "memory": _number(result.memory_ratio),
        "floor ms": _ms(result.floor.seconds),
        "to floor": _number(result.floor_ratio),
        "targets": f"missed: {', '.join(verdict)}" if verdict else met,
    }


def table(results: Sequence[Result]) -> str:
    """The main table in Markdown, and the geometric means below it."""
    return markdown_table(TableView([row(result) for result in results])) + "\n" + summary(results)


def summary(results: Sequence[Result]) -> str:
    """Geometric means against the targets."""
    lines = []
    for what, values, goal in (
        ("best peer of all", [r.best_ratio[0] for r in results if r.best_ratio], BEST_GOAL),
        ("best eager peer", [r.eager_ratio[0] for r in results if r.eager_ratio], EAGER_GOAL),
        ("first call", [r.first_ratio for r in results if r.first_ratio], None),
        ("memory", [r.memory_ratio for r in results if r.memory_ratio], None),
        ("floor", [r.floor_ratio for r in results if r.floor_ratio], None),
    ):
        if values:
            mean = geometric_mean(values)
            verdict = "" if goal is None else f" (target {goal:g}: {'met' if mean <= goal else 'missed'})"
            lines.append(f"- geometric mean, {what}: {mean:.3g}{verdict}, largest {max(values):.3g}")
    return "\n".join(lines)


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def details(result: Result) -> str:
    """Every contender of one network, fastest first."""
    order = sorted(result.contenders, key=lambda c: c.median_s)
    return markdown_table(TableView([_detail(result, contender) for contender in order]))


def _detail(result: Result, contender: Contender) -> dict[str, str]:
    first = result.first_s.get(contender.name)
    return {
        "contender": contender.name,
        "status": contender.status,
        "ms": _ms(contender.median_s),
        "setting": contender.label,
        "jaccli to it": _interval(result.ratio(contender)) if contender.times_s else "",
        "first ms": _ms(first) if first is not None else "",
        "set-up s": f"{contender.prepare_s:.2g}" if contender.prepare_s else "",
        "error": f"{contender.error:.0e}" if contender.error is not None else "",
        "note": contender.why,
    }


def document(results: Sequence[tuple[Result, Machine]], about: dict[str, Any]) -> dict[str, Any]:
    """Everything, for JSON."""
    return {
        "schema_version": 1,
        "about": about,
        "networks": [_record(result) | {"machine": vars(machine)} for result, machine in results],
    }


def _record(result: Result) -> dict[str, Any]:
    best, eager = result.best("eager", "compiled", "jax"), result.best("eager")
    return {
        "network": result.case.name,
        "source": result.case.source,
        "target": result.case.target,
        "shape": list(result.shape),
        "planned_s": result.ours.median_s if result.ours.times_s else None,
        "best_peer": best.name if best else None,
        "best_ratio": result.best_ratio,
        "best_eager": eager.name if eager else None,
        "compiled_s": result.compiled.median_s if result.compiled else None,
        "compiled_ratio": result.compiled_ratio,
        "eager_ratio": result.eager_ratio,
        "goal": result.case.goal,
        "missed": missed(result),
        "first_s": result.first_s,
        "first_ratio": result.first_ratio,
        "peak_bytes": result.peak_bytes,
        "held_bytes": result.held_bytes,
        "activation_bytes": result.activation_bytes,
        "memory_ratio": result.memory_ratio,
        "floor": vars(result.floor),
        "floor_ratio": result.floor_ratio,
        "plan": result.plan,
        "contenders": [_contender(contender) for contender in result.contenders],
    }


def _contender(contender: Contender) -> dict[str, Any]:
    return {
        "name": contender.name,
        "kind": contender.kind,
        "status": contender.status,
        "why": contender.why,
        "setting": contender.label,
        "median_s": contender.median_s if math.isfinite(contender.median_s) else None,
        "warm_s": contender.warm_s if math.isfinite(contender.warm_s) else None,
        "prepare_s": contender.prepare_s,
        "error": contender.error,
        "times_s": contender.times_s,
    }


def _peer(contender: Contender | None) -> str:
    return f"{contender.name} {_ms(contender.median_s)}" if contender else ""


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if math.isfinite(seconds) else ""


def _number(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else ""


def _interval(ratio: tuple[float, float, float] | None) -> str:
    if ratio is None:
        return ""
    value, low, high = ratio
    return f"{value:.2f} ({low:.2f}–{high:.2f})"
