"""A matrix on a terminal: as numbers where they fit, else as a heat map in characters.

The heat map is centred on 0. Each cell shows the entry of largest magnitude in its part of the matrix,
with its sign, so that no lone large entry is averaged away.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from rich.color import Color
from rich.style import Style as Paint
from rich.text import Text
from torch import Tensor

from jaccli.sinks.terminal import PLAIN, Style, to_text
from jaccli.text.escape import inert

Matrix = np.ndarray[Any, np.dtype[np.float64]]

_POSITIVE, _NEGATIVE, _MARK = ".+*#", ",-=%", "?"
_DIGITS = (5, 4, 3)  # two are no longer the matrix itself
_BLUE, _MIDDLE, _RED = (33, 102, 172), (228, 228, 228), (178, 24, 43)
_MAGENTA = (255, 0, 255)


def render_matrix(matrix: Tensor, *, source: str = "", target: str = "", style: Style = PLAIN) -> str:
    """Draw one sample's J.

    Args:
        matrix: ``(n_out, n_in)``, any floating-point dtype, on the CPU.
        source, target: names of the two axes.
        style: width and height that may be used, and colours.
    """
    values: Matrix = matrix.detach().double().numpy()  # NumPy has no bfloat16
    if values.size == 0:
        return f"(empty: {values.shape[0]} x {values.shape[1]})\n"
    numbers = _as_numbers(values, style)
    return numbers if numbers is not None else _heat_map(values, source, target, style)


def _as_numbers(values: Matrix, style: Style) -> str | None:
    """Aligned columns, with fewer digits where that makes them fit, or None."""
    rows, columns = values.shape
    if rows > max(style.height - 4, 4) or columns * 2 > style.width:
        return None
    for digits in _DIGITS:
        cells = [[f"{value:.{digits}g}" for value in row] for row in values]
        widths = [max(len(row[i]) for row in cells) for i in range(columns)]
        if sum(widths) + 2 * columns <= style.width:
            lines = ("".join(f"  {text:>{w}}" for text, w in zip(row, widths, strict=True)) for row in cells)
            return "\n".join(lines) + "\n"
    return None


@dataclass(frozen=True)
class _Grid:
    """Cells of a heat map: signed values relative to the scale, and which hold something not finite."""

    cells: Matrix
    broken: np.ndarray[Any, np.dtype[np.bool_]]
    scale: float


def _heat_map(values: Matrix, source: str, target: str, style: Style) -> str:
    rows, columns = values.shape
    margin = len(str(rows - 1)) + 1
    half_blocks = style.color and style.unicode
    height = min(rows, max(style.height - 6, 4) * (2 if half_blocks else 1), 128)
    width = min(columns, style.width - margin - 1, 160)
    grid = _downsample(values, height, width)
    body = _blocks(grid) if half_blocks else _shades(grid, style.color)
    per_line = 2 if half_blocks else 1
    lines = [_caption(f"{source or 'source'} →", columns, margin, width, style)]
    for index, drawn in enumerate(body):
        first = index * per_line * rows // height
        label = str(first) if index == 0 else (str(rows - 1) if index == len(body) - 1 else "")
        lines.append(Text.assemble(f"{label:>{margin - 1}} ", drawn))
    lines += _legend(values, grid, f"{target or 'target'} ↓", height, width, style, half_blocks)
    return to_text(Text("\n").join(lines), style)


def _downsample(values: Matrix, height: int, width: int) -> _Grid:
    finite = np.isfinite(values)
    clean = np.where(finite, values, 0.0)
    row_starts = np.arange(height) * values.shape[0] // height
    column_starts = np.arange(width) * values.shape[1] // width

    def pooled(function: np.ufunc, array: Any) -> Any:
        return function.reduceat(function.reduceat(array, row_starts, axis=0), column_starts, axis=1)

    high, low = pooled(np.maximum, clean), pooled(np.minimum, clean)
    cells = np.where(high >= -low, high, low)
    scale = float(np.abs(cells).max())
    return _Grid(cells / scale if scale else cells, pooled(np.logical_or, ~finite), scale)


def _blocks(grid: _Grid) -> list[Text]:
    """Two rows of cells a line: the upper as the colour of a half block, the lower as its background."""
    lines = []
    for top in range(0, len(grid.cells), 2):
        cells = []
        for column in range(grid.cells.shape[1]):
            lower = _color(grid, top + 1, column) if top + 1 < len(grid.cells) else None
            cells.append(("▀", Paint(color=_color(grid, top, column), bgcolor=lower)))
        lines.append(_runs(cells))
    return lines


def _shades(grid: _Grid, color: bool) -> list[Text]:
    lines = []
    for row, cells in enumerate(grid.cells):
        marks = []
        for column, value in enumerate(cells):
            mark = _MARK if grid.broken[row, column] else _shade(float(value))
            marks.append((mark, Paint(color=_color(grid, row, column)) if color else Paint()))
        lines.append(_runs(marks))
    return lines


def _runs(marks: list[tuple[str, Paint]]) -> Text:
    """Marks of one look in one piece: a tenth of the escape codes."""
    line = Text(no_wrap=True)
    for paint, run in groupby(marks, key=lambda mark: mark[1]):
        line.append("".join(mark for mark, _ in run), paint)
    return line


def _shade(value: float) -> str:
    level = round(abs(value) * len(_POSITIVE))
    ramp = _POSITIVE if value > 0 else _NEGATIVE
    return ramp[level - 1] if level else " "


def _color(grid: _Grid, row: int, column: int) -> Color:
    if grid.broken[row, column]:
        return Color.from_rgb(*_MAGENTA)
    return _diverging(float(grid.cells[row, column]))


def _diverging(value: float) -> Color:
    end = _RED if value > 0 else _BLUE
    share = abs(value)
    return Color.from_rgb(*(round(m + (e - m) * share) for m, e in zip(_MIDDLE, end, strict=True)))


def _caption(name: str, columns: int, margin: int, width: int, style: Style) -> Text:
    name = style.shown(inert(name))
    last = str(columns - 1)
    space = width - len(last) - 2
    middle = name if len(name) <= space - 1 else ""
    line = f"{'0 ' + middle:<{max(width - len(last), 2)}}{last}"
    return Text(" " * margin + line, no_wrap=True)


def _packed(pieces: list[Text], width: int) -> list[Text]:
    """Pieces side by side, three spaces apart, on as few lines as the width allows."""
    lines = pieces[:1]
    for piece in pieces[1:]:
        if lines[-1].cell_len + 3 + piece.cell_len <= width:
            lines[-1] = Text.assemble(lines[-1], "   ", piece)
        else:
            lines.append(piece)
    return lines


def _legend(
    values: Matrix, grid: _Grid, name: str, height: int, width: int, style: Style, half_blocks: bool
) -> list[Text]:
    finite = values[np.isfinite(values)]
    span = f"min {finite.min():.4g}  max {finite.max():.4g}" if finite.size else "no finite entry"
    if half_blocks:
        ramp = Text.assemble(*((" ", Paint(bgcolor=_diverging(step / 5))) for step in range(-5, 6)))
    else:
        ramp = Text("".join(_shade(step / 4) for step in range(-4, 5)))
    name = style.shown(inert(name) if style.unicode else inert(name).replace("↓", "(down)"))
    scale = Text.assemble(f"{-grid.scale:.3g} ", ramp, f" {grid.scale:.3g}")
    lines = _packed([Text(name), scale, Text(span)], style.width)
    rows, columns = values.shape
    if (height, width) != (rows, columns):
        per = f"{-(-rows // height)} x {-(-columns // width)}"
        lines.append(Text(f"each cell: the largest of up to {per} entries by magnitude"))
    if grid.broken.any():
        count = values.size - finite.size
        mark = Text("▀", Paint(color=Color.from_rgb(*_MAGENTA))) if half_blocks else Text(_MARK)
        lines.append(Text.assemble(mark, f" {count} entries are not finite"))
    return lines
