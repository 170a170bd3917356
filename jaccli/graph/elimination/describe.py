"""Human-readable description of a bracketing: the first derivatives, the sweeps through segments, the products.

``describe`` gives the steps that ``str(plan)`` prints; ``describe_passes`` gives them in a few words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaccli.graph.trace.ir import Value

if TYPE_CHECKING:
    from jaccli.graph.elimination.bracketing import Bracketing, Chain

_MUCH = 0.5  # a smaller share of the full size is mentioned
_LISTED = 4  # names in a line before the rest is counted


def describe(chain: Chain, bracketing: Bracketing) -> list[str]:
    """The steps in the order in which they are computed, equal ones in one line."""
    batch = chain.cuts[0].shape[0]
    lines = [f"cuts    {_cuts(chain, batch)}"]
    leaves_of: dict[str, list[Bracketing]] = {}
    for leaf in _leaves(bracketing):
        segment = chain.segments[leaf.first]
        side = "" if _at_once(leaf) else ", by rows" if leaf.mode == "pull" else ", by columns"
        leaves_of.setdefault(f"{segment.contents()}{side}", []).append(leaf)
    for contents, leaves in leaves_of.items():
        names = [_name(leaf) for leaf in leaves]
        listed = ", ".join(names[:_LISTED]) + f" and {len(names) - _LISTED} more" * (len(names) > _LISTED)
        each, seconds = "each " * (len(names) > 1), sum(leaf.seconds for leaf in leaves)
        lines.append(f"step    {listed}: {each}from {contents}, {_time(seconds)}")
    lines += [f"step    {line}" for line in _moves(chain, bracketing, batch)]
    return lines


def describe_passes(chain: Chain, bracketing: Bracketing) -> str:
    """``32 rows and 32 columns, 1 product``: how many vectors pass through the network."""
    batch = chain.cuts[0].shape[0]
    rows = columns = products = alone = 0
    for part in _walk(bracketing):
        if part.mode == "product":
            products += 1
            alone += sum(not p.parts and not _at_once(p) for p in part.parts)
            continue
        # Vectors are counted once, where a sweep starts: further steps of the same mode carry on with them.
        starts = part is bracketing if not part.parts else part.parts[0].mode != part.mode or not part.parts[0].parts
        rows += _size(chain.cuts[part.last], batch) if starts and part.mode == "pull" else 0
        columns += _size(chain.cuts[part.first], batch) if starts and part.mode == "push" else 0
    texts = [f"{alone} stretches by themselves"] if alone else []
    texts += [f"{count} {name}" for count, name in ((rows, "rows"), (columns, "columns")) if count]
    texts += [f"{products} product" + "s" * (products > 1)] if products else []
    return ", ".join(texts)


def _walk(bracketing: Bracketing) -> Iterator[Bracketing]:
    for part in bracketing.parts:
        yield from _walk(part)
    yield bracketing


def _leaves(bracketing: Bracketing) -> Iterator[Bracketing]:
    return (part for part in _walk(bracketing) if not part.parts)


def _at_once(leaf: Bracketing) -> bool:
    """Whether it is one matrix with diagonals around it: no dense result is computed."""
    return not leaf.peak


def _moves(chain: Chain, bracketing: Bracketing, batch: int) -> Iterator[str]:
    """Sweeps and products; a sweep through several segments and a tree of products are one line each."""
    if not bracketing.parts:
        return
    size = f"{_size(chain.cuts[bracketing.last], batch)} x {_size(chain.cuts[bracketing.first], batch)}"
    if bracketing.mode == "product":
        factors = _factors(bracketing)
        for factor in factors:
            yield from _moves(chain, factor, batch)
        of_product = bracketing.seconds - sum(f.seconds for f in factors)
        yield f"{_name(bracketing)} = {_bracketed(bracketing)[1:-1]}, {size}, {_time(of_product)}"
        return
    inner, through = bracketing, []
    while inner.parts and inner.mode == bracketing.mode:
        place = inner.first if bracketing.mode == "pull" else inner.last - 1
        through.append(chain.segments[place].contents())
        inner = inner.parts[0]
    yield from _moves(chain, inner, batch)
    of_sweep = bracketing.seconds - inner.seconds
    what = "rows of {} pulled back" if bracketing.mode == "pull" else "columns of {} pushed forward"
    how = f"{what.format(_name(inner))} through {_grouped(through[::-1])}"
    yield f"{_name(bracketing)} = {how}, {size}{_stored(chain, bracketing, batch)}, {_time(of_sweep)}"


def _stored(chain: Chain, bracketing: Bracketing, batch: int) -> str:
    """The share of the largest intermediate result that is stored, where bands and blocks make it small."""
    end = chain.cuts[bracketing.last if bracketing.mode == "pull" else bracketing.first]
    widest = max(_size(cut, batch) for cut in chain.cuts[bracketing.first : bracketing.last + 1])
    share = bracketing.peak / (batch * widest * _size(end, batch))
    full = "rows" if bracketing.mode == "pull" else "columns"
    return f" ({share:.1%} of the full {full} stored)" if 0 < share < _MUCH else ""


def _factors(bracketing: Bracketing) -> list[Bracketing]:
    """The factors of a tree of products, earliest first."""
    if bracketing.mode != "product":
        return [bracketing]
    later, earlier = bracketing.parts
    return [*_factors(earlier), *_factors(later)]


def _bracketed(bracketing: Bracketing) -> str:
    if bracketing.mode != "product":
        return _name(bracketing)
    later, earlier = bracketing.parts
    return f"({_bracketed(later)} {_bracketed(earlier)})"


def _grouped(contents: list[str]) -> str:
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
    """``0: 784, 1: 256, 2: 32``: the cuts, by number and shape of one sample."""
    return ", ".join(f"{number}: {_shape(value, batch)}" for number, value in enumerate(chain.cuts))


def _shape(value: Value, batch: int) -> str:
    # A network may fold samples into another dimension (sequences of all samples as one batch).
    shape = value.shape
    if shape and shape[0] != batch and shape[0] % batch == 0:
        return "x".join(map(str, (shape[0] // batch, *shape[1:])))
    return "x".join(map(str, shape[1:])) if shape and shape[0] == batch and len(shape) > 1 else str(_size(value, batch))


def _size(value: Value, batch: int) -> int:
    return math.prod(value.shape) // max(batch, 1)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms"
