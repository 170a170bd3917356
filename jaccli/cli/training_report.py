"""What a training run reached, as a document, as records and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping

from jaccli.cli.figures import readable
from jaccli.cli.job import Job
from jaccli.cli.results import Record
from jaccli.training.goal import Goal, TrainingFigures

Stand = Mapping[str, TrainingFigures]

_ENDS = {
    "identity": ("the identity", "J - I"),
    "scaled-identity": ("a multiple of the identity", "J - aI"),
    "orthogonal": ("orthogonality", "J J^T - I"),
    "zero": ("zero", "J"),
}


def body_of(job: Job, before: Stand, after: Stand, stopped: str, path: str | None) -> Record:
    """The document of ``--format json``, without what every command has and without the timing."""
    goal, run = job.training.goal, job.training
    ends = [_ends(goal, index) for index in range(len(goal.pairs))]
    stands = {"before": before, "after": after}
    pairs: Record = {"pair": ends[0]}
    if len(ends) > 1:
        pairs = {"pairs": [{**end, **_shares(stands, number)} for number, end in enumerate(ends)]}
    assert run.best is not None
    return pairs | {
        "towards": goal.towards,
        "estimator": goal.estimator,
        "weight": goal.weight,
        "steps": run.steps,
        "best_step": run.best.step,
        "stopped": stopped,
        "held_out": _held_out(job),
        **_shares(stands, None),
        "output": path,
    }


def records_of(document: Record) -> list[Record]:
    """One a pair: what every other format writes."""
    common = {k: v for k, v in document.items() if k not in ("schema_version", "command", "pair", "pairs", "timing")}
    common["held_out"] = document["held_out"] and document["held_out"]["from"]
    pairs = document.get("pairs") or [document["pair"]]
    return [
        {"source": p["source"]["layer"], "target": p["target"]["layer"]}
        | common
        | {name: p[name] for name in ("before", "after") if name in p}
        for p in pairs
    ]


def rows_of(job: Job, before: Stand, after: Stand) -> list[Record]:
    """The rows of the table: before and after, of each pair and kind of samples."""
    goal, same = job.training.goal, job.held_out is job.train
    rows = []
    for number, (source, target) in enumerate(goal.pairs):
        for kind in ("train",) if same else ("train", "held_out"):
            for when, stand in (("before", before), ("after", after)):
                one, count = stand[kind], stand[kind].samples
                row: Record = {"source": str(source), "target": str(target)}
                row |= {"samples": f"{count} {kind.replace('_', ' ')}", "when": when}
                row |= {k: v for k, v in _share(one, number).items() if k != "samples"}
                rows.append(readable(row))
    return rows


def columns_of(goal: Goal, fitted: bool) -> list[str]:
    """The target, and a source that is the same in all rows, are in the title."""
    sides = ["source"] if len(goal.pairs) > 1 else []
    return [*sides, "samples", "when", "relative", "frobenius", *(["task"] if fitted else []), "moved"]


def title_of(job: Job, stopped: str) -> str:
    """What was done."""
    goal, run = job.training.goal, job.training
    source, target = goal.pairs[0]
    name = f"{source if len(goal.pairs) == 1 else f'{len(goal.pairs)} layers'} -> {target}"
    assert run.best is not None
    end = "" if stopped == "steps" else f" ({stopped})"
    return f"J of {name} towards {_ENDS[goal.towards][0]}: {run.steps} steps{end}, best after {run.best.step}"


def legend_of(job: Job) -> str:
    """What the columns mean."""
    goal = job.training.goal
    root = "sqrt(n)" + (f", n = {goal.sizes[0]}" if len(set(goal.sizes)) == 1 else "")
    lines = [
        f"relative: |{_ENDS[goal.towards][1]}| / {root}; means over samples",
        "moved: how far the outputs are from the original's, in units of their spread",
    ]
    if job.train.samples.targets is not None:
        lines.insert(1, "task: " + ("cross entropy" if job.task.classes is not None else "mean squared error"))
    return "\n".join(lines) + "\n"


def _held_out(job: Job) -> Record | None:
    """Which samples were held out for validation, None where there were none."""
    if job.held_out is job.train:
        return None
    return {"from": job.held_out.origin, "numbers": job.held_out.numbers}


def _ends(goal: Goal, number: int) -> Record:
    (source, target), (inner, outer) = goal.pairs[number], goal.shapes[number]
    return {"source": {"layer": str(source), "shape": [*inner]}, "target": {"layer": str(target), "shape": [*outer]}}


def _shares(stands: Mapping[str, Stand], number: int | None) -> Record:
    shares: Record = {when: {"train": None, "held_out": None} for when in stands}
    for when, stand in stands.items():
        shares[when] |= {kind: _share(one, number) for kind, one in stand.items()}
    return shares


def _share(one: TrainingFigures, number: int | None) -> Record:
    """Figures of one pair, or the mean over pairs."""

    def of(values: tuple[float, ...]) -> float:
        return values[number] if number is not None else math.fsum(values) / len(values)

    record: Record = {"samples": one.samples, "task": one.task, "moved": one.moved}
    record |= {"frobenius": of(one.frobenius), "relative": of(one.relative)}
    record["relative_max"] = one.worst[number] if number is not None else max(one.worst)
    return record | ({"estimated": True} if one.estimated else {})
