"""Rows or columns of J that may share a pass: no column (row) holds entries of two of one colour.

A. R. Curtis, M. J. D. Powell and J. K. Reid, *On the estimation of sparse Jacobian matrices*, 1974;
A. H. Gebremedhin, F. Manne and A. Pothen, *What color is your Jacobian?*, 2005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaccli.graph.sparsity.index_sets import IntArray, distinct
from jaccli.graph.sparsity.pattern import Pattern

# The greedy colouring reads every entry once or twice, some 0.15 µs each; above, only periodic colours are tried.
_MOST_ENTRIES = 500_000

By = Literal["row", "column"]


@dataclass(frozen=True)
class Coloring:
    """Groups that share a pass.

    Args:
        groups: the colour of each row (or column), ``0 … count - 1``; -1 where it is empty.
        count: how many colours.
        by: what is coloured: rows take vector-Jacobian products, columns Jacobian-vector products.
    """

    groups: IntArray
    count: int
    by: By


def coloring(pattern: Pattern, by: By, shape: tuple[int, ...]) -> Coloring:
    """Few colours of the rows, or of the columns.

    Args:
        pattern: of one sample's J.
        by: rows or columns.
        shape: of one sample's target for rows, of its source for columns; stencils repeat along its axes.

    Cost: some 20 ns an entry where colours repeat along the axes with the fewest possible of them, as for
    convolutions; 0.3 µs an entry else, for a greedy colouring in the natural and in the largest-first order.
    """
    matrix, least = pattern if by == "row" else pattern.T, fewest(pattern, by)
    best = _renumbered(periodic(matrix, shape), by)
    if best.count > least and matrix.nnz <= _MOST_ENTRIES:
        natural = np.arange(matrix.shape[0])
        for order in (natural, largest_first(matrix)):
            best = min(best, _renumbered(greedy(matrix, order), by), key=lambda c: c.count)
            if best.count == least:
                break
    return best


def fewest(pattern: Pattern, by: By) -> int:
    """The most entries of one column (row): no colouring of rows (columns) has fewer colours."""
    counts = np.bincount(pattern.indices, minlength=1) if by == "row" else np.diff(pattern.indptr)
    return int(counts.max()) if counts.size else 0


def _renumbered(groups: IntArray, by: By) -> Coloring:
    """Colours numbered without gaps."""
    first, back = distinct(groups[groups >= 0])
    numbered = np.full(len(groups), -1)
    numbered[groups >= 0] = back
    return Coloring(numbered, len(first), by)


def periodic(matrix: Pattern, shape: tuple[int, ...]) -> IntArray:
    """Colours that repeat along each axis of the rows' activation, -1 for empty rows.

    The period of an axis is the widest stretch over which rows share a column, so that two rows of one colour
    share none: along each axis they would be less than a period apart, and a multiple of it.
    """
    other = matrix.T
    filled = np.flatnonzero(np.diff(other.indptr))
    colours = np.zeros(matrix.shape[0], np.int64)
    for coordinates in np.unravel_index(np.arange(math.prod(shape)), shape) if shape else ():
        places = coordinates[other.indices]
        # reduceat over the columns that have entries: of an empty one it would give an entry of the next.
        starts = other.indptr[filled]
        wide = np.maximum.reduceat(places, starts) - np.minimum.reduceat(places, starts) if len(starts) else np.zeros(1)
        period = int(wide.max()) + 1
        colours = colours * period + coordinates % period
    colours[np.diff(matrix.indptr) == 0] = -1
    return colours


def largest_first(matrix: Pattern) -> IntArray:
    """Rows that share columns with most others first (D. J. A. Welsh and M. B. Powell 1967); counted once a column."""
    others = np.bincount(matrix.indices, minlength=matrix.shape[1]) - 1
    shared = np.bincount(matrix.rows, weights=others[matrix.indices], minlength=matrix.shape[0])
    return np.argsort(-shared, kind="stable")


def greedy(matrix: Pattern, order: IntArray) -> IntArray:
    """Each row in turn takes the first colour that none of its columns has; -1 for empty rows.

    The colours of a column's rows are the bits of one number, so that rows are never compared in pairs.
    """
    colours_in = [0] * matrix.shape[1]
    colours = np.full(matrix.shape[0], -1)
    columns, bounds = matrix.indices.tolist(), matrix.indptr.tolist()
    for row in order.tolist():
        entries = columns[bounds[row] : bounds[row + 1]]
        if entries:
            used = 0
            for column in entries:
                used |= colours_in[column]
            free = ~used & (used + 1)  # its lowest bit that is 0
            for column in entries:
                colours_in[column] |= free
            colours[row] = free.bit_length() - 1
    return colours
