"""Figures of every pair and sample: from J, from products with it, or from a saved J."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jaccli.cli.figures_request import FiguresRequest
from jaccli.cli.flags import in_flags
from jaccli.cli.messages import expect_pairs
from jaccli.cli.request import SavedRequest
from jaccli.cli.results import Record
from jaccli.cli.run_request import RunRequest
from jaccli.errors import UsageError, note
from jaccli.linear_maps.square import check_square
from jaccli.names import UNKNOWN, pair_name

if TYPE_CHECKING:
    from torch import Tensor

    from jaccli.cli.work import Loaded
    from jaccli.linear_maps.linear_map import LinearMap
    from jaccli.planning.linearize import Linearization, Pair
    from jaccli.run.blocks import Piece
    from jaccli.run.estimates_of_pairs import Estimates
    from jaccli.statistics.probing import Effort


@dataclass(frozen=True)
class Figures:
    """What a command computes.

    Args:
        exact: of one sample's J.
        estimated: of a block of samples, one record each.
        square: only a square J will do.
        summed: the fields that are summed up over samples.
        probes: vectors that an estimate holds at once, if the user names no number.
    """

    exact: Callable[[Tensor], Record]
    estimated: Callable[[LinearMap, Effort], list[Record]]
    square: bool
    summed: tuple[str, ...]
    probes: int


def of_model(
    loaded: Loaded, pairs: Sequence[Pair], how: RunRequest, effort: FiguresRequest, figures: Figures
) -> list[Record]:
    """One record a pair, exact where J fits.

    Raises:
        UsageError: no pair has a square J, where one is needed.
    """
    from jaccli.planning.decide import TooLarge

    if effort.wanted:
        records = _estimated(loaded, pairs, how, effort, figures)
    else:
        try:
            records = _exact(loaded, pairs, how, figures)
        except TooLarge as error:
            limit = in_flags(error.expected).removeprefix("expected at most ")
            note(f"{error.given}, more than {limit}: figures are estimated from products (--estimate)")
            records = _estimated(loaded, pairs, how, effort, figures)
    if not records:
        raise UsageError(
            "none of the layers that the glob matches has a square J",
            "expected source and target of one size",
            "choose another glob, or name source and target with --layer and --to",
        )
    _note_trivial(records)
    return _summed(records, figures)


def _note_trivial(records: Sequence[Record]) -> None:
    """One note for the pairs of which source and target are the same activation."""
    names = [record_name(r) for r in records if r.get("trivial")]
    if names:
        note(f"{', '.join(names)}: source and target are the same activation, J is I: left out of means and gates")


def _exact(loaded: Loaded, pairs: Sequence[Pair], how: RunRequest, figures: Figures) -> list[Record]:
    from jaccli.cli import work

    records: dict[Pair, Record] = {}
    for piece in work.pieces(loaded, pairs, how, accept=_fitting(figures)):
        outcome = piece.outcome
        if piece.pair not in records:
            record = _empty_of(piece, outcome.method)
            if outcome.error_estimate is not None:
                record["error_estimate"] = outcome.error_estimate
            records[piece.pair] = record
        for number, matrix in zip(loaded.numbers[piece.start :], outcome.matrix, strict=False):
            records[piece.pair]["samples"].append({"sample": number, **figures.exact(matrix)})
    return list(records.values())


def _estimated(
    loaded: Loaded, pairs: Sequence[Pair], how: RunRequest, effort: FiguresRequest, figures: Figures
) -> list[Record]:
    from jaccli.cli.progress import status
    from jaccli.run.estimates_of_pairs import stream_estimates
    from jaccli.statistics.probing import effort_of

    records: dict[Pair, Record] = {}
    # An estimate to a tolerance adds probes in groups of ``vectors``, the number of them that fits the memory.
    effort_of_block = effort_of(effort.probes, effort.tolerance, effort.seed)
    blocks = stream_estimates(
        loaded.network,
        loaded.inputs,
        pairs,
        lambda a, vectors: figures.estimated(a, replace(effort_of_block, most=vectors)),
        probes=effort.probes or figures.probes,
        fixed=effort.probes is not None,
        max_memory=how.max_memory,
        accept=_fitting(figures),
        watch=loaded.timing.watch,
        on_plan=lambda linearization, size, vectors: _explain(linearization, size, vectors, loaded, how),
    )
    with status(how.quiet, how.no_color) as tell:
        tell("estimating")
        for block in blocks:
            record = records.setdefault(block.pair, _empty_of(block, "estimate", effort.seed))
            for number, figures_of_sample in zip(loaded.numbers[block.start :], block.records, strict=False):
                record["samples"].append({"sample": number, **figures_of_sample})
            name = pair_name(*block.pair)
            tell(f"estimating {name}: {len(record['samples'])} of {loaded.inputs.batch} samples")
    return list(records.values())


def _explain(linearization: Linearization, size: int, vectors: int, loaded: Loaded, how: RunRequest) -> None:
    """``--explain``: what an estimate is going to do, on standard error."""
    if not how.explain:
        return
    from jaccli.text.escape import inert

    f, batch = linearization.linear.f, loaded.inputs.batch
    each = f"each of {batch} samples" if batch != 1 else "one sample"
    print(
        f"{inert(linearization.name)}: J is {f.n_out} x {f.n_in} for {each}, and is not built\n"
        f"  method  estimate: products with random vectors, {vectors} at a time\n"
        f"  samples {min(size, batch)} at a time",
        file=sys.stderr,
    )


def of_saved(saved: SavedRequest, figures: Figures) -> list[Record]:
    """One record a pair of a saved Jacobian."""
    from jaccli.sinks.read import read_jacobian

    records = []
    read = read_jacobian(saved.path)
    expect_pairs([pair_name(jacobian.source, jacobian.target) for jacobian in read])
    for jacobian in read:
        batch, n_out, n_in = jacobian.array.shape
        if figures.square:
            name = f"{pair_name(jacobian.source, jacobian.target)} in {saved_name(saved.path)}"
            check_square(
                n_out,
                n_in,
                f"J of {name if jacobian.source != UNKNOWN else saved_name(saved.path)}",
                "choose a square one, as FILE[KEY]" if len(read) > 1 else "save J of such a pair",
            )
        picked = saved.samples.indices(batch) if saved.samples else list(range(batch))
        method = jacobian.provenance.get("method", "saved")
        record = _empty(jacobian.source, jacobian.target, (n_in,), (n_out,), method)
        samples = zip((jacobian.numbers[p] for p in picked), jacobian.array[picked], strict=True)
        record["samples"] = [{"sample": number, **figures.exact(matrix)} for number, matrix in samples]
        records.append(record)
    return _summed(records, figures)


def _empty_of(block: Piece | Estimates, method: str, seed: int | None = None) -> Record:
    source, target = map(str, block.pair)
    record = _empty(source, target, block.source_shape, block.target_shape, method, seed)
    return record | ({"trivial": True} if block.trivial else {})


def _empty(
    source: str,
    target: str,
    source_shape: Sequence[int],
    target_shape: Sequence[int],
    method: str,
    seed: int | None = None,
) -> Record:
    """The record of a pair before its samples; an estimate has a seed."""
    return {
        "source": {"layer": source, "shape": [*source_shape]},
        "target": {"layer": target, "shape": [*target_shape]},
        "method": method,
        **({"seed": seed} if seed is not None else {}),
        "samples": [],
        "summary": {},
    }


def _fitting(figures: Figures) -> Callable[[Linearization], bool]:
    return is_square if figures.square else lambda linearization: True


def is_square(linearization: Linearization) -> bool:
    """A pair that was named must have a square J; one that a glob gave is left out with a note.

    Raises:
        UsageError: a J that is not square.
    """
    f = linearization.linear.f
    if f.n_out != f.n_in and linearization.pair[0].globbed:
        note(f"left out: J of {linearization.name} is {f.n_out} x {f.n_in}, not square")
        return False
    check_square(f.n_out, f.n_in, f"J of {linearization.name}", "'jaccli layers MODEL -i INPUT' shows sizes")
    return True


def _summed(records: list[Record], figures: Figures) -> list[Record]:
    from jaccli.statistics.consistency import check_records
    from jaccli.statistics.identity_distance import summary

    for record in records:
        samples = record["samples"]
        shape = math.prod(record["target"]["shape"]), math.prod(record["source"]["shape"])
        check_records(samples, shape, record_name(record))
        names = [name for name in figures.summed if samples and all(name in sample for sample in samples)]
        record["summary"] = summary(samples, names)
    return records


def rows_of(records: Sequence[Record]) -> list[Record]:
    """One row a sample, with the layers' names, the method, and the seed of an estimate."""
    return [
        {"source": r["source"]["layer"], "target": r["target"]["layer"], **sample}
        | {name: r[name] for name in ("method", "seed", "trivial") if name in r}
        for r in records
        for sample in r["samples"]
    ]


def saved_name(path: str) -> str:
    """What to call the file of a saved J."""
    return "standard input" if path.startswith("-") else path


def record_name(record: Record, saved: str = "") -> str:
    """``fc1 -> output``, or the file, where it does not tell the layers of its J."""
    source, target = (record[end]["layer"] for end in ("source", "target"))
    return saved if saved and (source, target) == (UNKNOWN, UNKNOWN) else pair_name(source, target)


def readable(row: Record) -> Record:
    """Four digits, and what is known of them: enough to look at."""
    shown: Record = {}
    for name, value in row.items():
        error = row.get(f"{name}_stderr")
        if isinstance(value, float) and isinstance(error, float):
            shown[name] = with_error(value, error)
        else:
            shown[name] = float(f"{value:.4g}") if isinstance(value, float) else value
    return shown


def with_error(value: float, error: float) -> str:
    """``3.984 ± 0.012``: as many digits as the error leaves.

    >>> with_error(3.98412, 0.0123), with_error(12345.6, 210.0), with_error(2.0, 0.0)
    ('3.984 ± 0.012', '12350 ± 210', '2 ± 0')
    """
    if not (math.isfinite(value) and math.isfinite(error)) or error == 0:
        return f"{value:.4g} ± {error:.2g}"
    digits = 1 - math.floor(math.log10(error))
    if digits > 6 and abs(value) >= 1e-3:
        return f"{value:.6g} ± {error:.1e}"
    if digits <= 0 and abs(value) >= 1e9:
        return f"{value:.3e} ± {error:.1e}"
    if digits <= 0:
        return f"{round(value, digits):.0f} ± {round(error, digits):.0f}"
    return f"{value:.{digits}f} ± {error:.{digits}f}" if digits <= 8 else f"{value:.3e} ± {error:.1e}"
