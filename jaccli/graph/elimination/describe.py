"""A bracketing told to people: what is known at once, which rows and columns travel, what is multiplied."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaccli.graph.trace.ir import Value

if TYPE_CHECKING:
    from jaccli.graph.elimination.bracketing import Bracketing, Chain

_MUCH = 0.5  # a smaller share of the full size is worth a word
_LISTED = 4  # names in a line before the rest is counted


def describe(chain: Chain, bracketing: Bracketing) -> list[str]:
    """The steps in the order in which they are taken, equal ones in one line."""
    batch = chain.cuts[0].shape[0]
    lines = [f"cuts    {_cuts(chain, batch)}"]
    known: dict[str, list[Bracketing]] = {}
    for leaf in _leaves(bracketing):
        stretch = chain.stretches[leaf.first]
        side = "" if _at_once(leaf) else ", by rows" if leaf.way == "pull" else ", by columns"
        met = ", rows and columns meeting within" if leaf.meet is not None else ""
        known.setdefault(f"{stretch.contents()}{side}{met}", []).append(leaf)
    for what, leaves in known.items():
        names = [_name(leaf) for leaf in leaves]
        listed = ", ".join(names[:_LISTED]) + f" and {len(names) - _LISTED} more" * (len(names) > _LISTED)
        lines.append(
            f"step    {listed}: {'each ' * (len(names) > 1)}from {what}, {_time(sum(x.seconds for x in leaves))}"
        )
    lines += [f"step    {line}" for line in _moves(chain, bracketing, batch)]
    return lines


def describe_passes(chain: Chain, bracketing: Bracketing) -> str:
    """``32 rows and 32 columns, 1 product``: how many vectors pass through the network."""
    batch = chain.cuts[0].shape[0]
    rows = columns = products = alone = 0
    for part in _walk(bracketing):
        if part.way == "product":
            products += 1
            alone += sum(not p.parts and not _at_once(p) for p in part.parts)
            continue
        starts = part is bracketing if not part.parts else part.parts[0].way != part.way or not part.parts[0].parts
        rows += _size(chain.cuts[part.last], batch) if starts and part.way == "pull" else 0
        columns += _size(chain.cuts[part.first], batch) if starts and part.way == "push" else 0
    told = [f"{alone} stretches by themselves"] if alone else []
    told += [f"{count} {name}" for count, name in ((rows, "rows"), (columns, "columns")) if count]
    told += [f"{products} product" + "s" * (products > 1)] if products else []
    return ", ".join(told)


def _walk(bracketing: Bracketing) -> Iterator[Bracketing]:
    for part in bracketing.parts:
        yield from _walk(part)
    yield bracketing


def _leaves(bracketing: Bracketing) -> Iterator[Bracketing]:
    return (part for part in _walk(bracketing) if not part.parts)


def _at_once(leaf: Bracketing) -> bool:
    """One matrix and diagonals around it: nothing of size is computed."""
    return not leaf.peak and leaf.meet is None


def _moves(chain: Chain, bracketing: Bracketing, batch: int) -> Iterator[str]:
    """Sweeps and products; a sweep through several stretches and a tree of products are one line each."""
    if not bracketing.parts:
        return
    seed_axes = f"{_size(chain.cuts[bracketing.last], batch)} x {_size(chain.cuts[bracketing.first], batch)}"
    if bracketing.way == "product":
        factors = _factors(bracketing)
        for factor in factors:
            yield from _moves(chain, factor, batch)
        own = bracketing.seconds - sum(f.seconds for f in factors)
        yield f"{_name(bracketing)} = {_bracketed(bracketing)[1:-1]}, {seed_axes}, {_time(own)}"
        return
    inner, through = bracketing, []
    while inner.parts and inner.way == bracketing.way:
        place = inner.first if bracketing.way == "pull" else inner.last - 1
        through.append(chain.stretches[place].contents() + (", meeting" if inner.meet is not None else ""))
        inner = inner.parts[0]
    yield from _moves(chain, inner, batch)
    own = bracketing.seconds - inner.seconds
    what = "rows of {} pulled back" if bracketing.way == "pull" else "columns of {} pushed forward"
    how = f"{what.format(_name(inner))} through {_folded(through[::-1])}"
    yield f"{_name(bracketing)} = {how}, {seed_axes}{_stored(chain, bracketing, batch)}, {_time(own)}"


def _stored(chain: Chain, bracketing: Bracketing, batch: int) -> str:
    """What windows and blocks leave of the largest result on the way."""
    end = chain.cuts[bracketing.last if bracketing.way == "pull" else bracketing.first]
    widest = max(_size(cut, batch) for cut in chain.cuts[bracketing.first : bracketing.last + 1])
    share = bracketing.peak / (batch * widest * _size(end, batch))
    full = "rows" if bracketing.way == "pull" else "columns"
    return f" ({share:.1%} of the full {full} stored)" if 0 < share < _MUCH else ""


def _factors(bracketing: Bracketing) -> list[Bracketing]:
    """The factors of a tree of products, the earliest first."""
    if bracketing.way != "product":
        return [bracketing]
    later, earlier = bracketing.parts
    return [*_factors(earlier), *_factors(later)]


def _bracketed(bracketing: Bracketing) -> str:
    if bracketing.way != "product":
        return _name(bracketing)
    later, earlier = bracketing.parts
    return f"({_bracketed(later)} {_bracketed(earlier)})"


def _folded(contents: list[str]) -> str:
    """``2 x (1 matrix), 1 convolution``."""
    runs: list[tuple[str, int]] = []
    for text in contents:
        if runs and runs[-1][0] == text:
            runs[-1] = (text, runs[-1][1] + 1)
        else:
            runs.append((text, 1))
    return "; ".join(text if count == 1 else f"{count} x ({text})" for text, count in runs)


def _name(bracketing: Bracketing) -> str:
    return f"J[{bracketing.first}..{bracketing.last}]"


def _cuts(chain: Chain, batch: int) -> str:
    """``0: 784, 1: 256, 2: 32``: the activations that everything passes, by number and shape of one sample."""
    return ", ".join(f"{number}: {_shape(value, batch)}" for number, value in enumerate(chain.cuts))


def _shape(value: Value, batch: int) -> str:
    shape = value.shape
    if shape and shape[0] != batch and shape[0] % batch == 0:
        return "x".join(map(str, (shape[0] // batch, *shape[1:])))
    return "x".join(map(str, shape[1:])) if shape and shape[0] == batch and len(shape) > 1 else str(_size(value, batch))


def _size(value: Value, batch: int) -> int:
    return math.prod(value.shape) // max(batch, 1)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms"
