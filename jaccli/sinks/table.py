"""Records as a table for people.

A terminal that is too narrow gets a table without the columns that may go, then several tables one below the other,
each beginning with the columns that name its rows. Text is broken into lines; digits never are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from jaccli.sinks.terminal import PLAIN, Style, heading, to_text
from jaccli.sinks.values import json_value
from jaccli.sinks.wrap import wrapped
from jaccli.text.escape import inert

_LIST_SHOWN = 4
_GAP = 2
# Text in fewer characters than this goes into a table of its own; a name is not broken into shorter pieces.
_LEAST_TEXT = 16
_LEAST_NAME = 8


@dataclass(frozen=True)
class TableView:
    """What people are shown of a result.

    Args:
        records: one a row.
        columns: which fields, in this order; all of them unless given.
        title: above the table.
        keys: how many columns, from the left, name a row.
        spare: columns that a narrow terminal goes without, the first of them first.
        heads: what stands above a column, where that is not the field's name.
    """

    records: Sequence[Mapping[str, Any]]
    columns: Sequence[str] | None = None
    title: str = ""
    keys: int = 1
    spare: Sequence[str] = ()
    heads: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The fields that are shown."""
        return list(self.columns if self.columns is not None else dict.fromkeys(n for r in self.records for n in r))


def render_table(view: TableView, style: Style = PLAIN) -> str:
    """A table as wide as it needs or, on a terminal, as there is room for.

    Names and values are shown as they are, never as markup or escape codes.
    """
    table = _fitting(view, style)
    panels = _panels(table, view.keys, style.width) if style.fixed else [table]
    lines = [line for panel in panels if panel for line in _drawn(panel, style)]
    wide = replace(style, width=max([style.width, *(line.cell_len for line in lines)]))
    above = heading(view.title, style) if view.title else ""
    return above + (to_text(Text("\n", no_wrap=True).join(lines), wide) if lines else "")


def columns_shown(view: TableView, style: Style) -> list[str]:
    """The fields that a table has: all but those of ``spare`` for which there is no room."""
    return [column.name for column in _fitting(view, style)]


def cell(value: Any) -> str:
    """One value, short: six digits of a number, the first entries of a list."""
    value = json_value(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        shown = ", ".join(map(cell, value[:_LIST_SHOWN]))
        return f"{shown}, … ({len(value)})" if len(value) > _LIST_SHOWN else f"[{shown}]"
    if isinstance(value, dict):
        return ", ".join(f"{inert(name)}={cell(item)}" for name, item in value.items())
    return inert(str(value))


@dataclass(frozen=True)
class _Column:
    """``cells`` are the head and the rows, a list of lines each; numbers stand to the right."""

    name: str
    cells: tuple[tuple[str, ...], ...]
    numeric: bool

    @property
    def width(self) -> int:
        return max((cell_len(line) for lines in self.cells for line in lines), default=0)

    def within(self, width: int) -> _Column:
        """The same in ``width`` characters; of numbers the head alone is broken."""
        whole = self.cells[1:] if self.numeric else ()
        broken = (tuple(wrapped(" ".join(lines), width)) for lines in self.cells[: len(self.cells) - len(whole)])
        return replace(self, cells=(*broken, *whole))


def _fitting(view: TableView, style: Style) -> list[_Column]:
    table = [_column(name, view, style) for name in view.names]
    for name in view.spare if style.fixed else ():
        if _width(table) > style.width:
            table = [column for column in table if column.name != name]
    return table


def _column(name: str, view: TableView, style: Style) -> _Column:
    values = [record.get(name) for record in view.records]
    # A float that JSON has no number for is text there, and a number to the eye.
    numeric = any(isinstance(one, int | float) for value in values for one in (value, json_value(value)))
    head = style.shown(inert(view.heads.get(name, name)))
    return _Column(name, ((head,), *((style.shown(cell(value)),) for value in values)), numeric)


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.width + _GAP for column in columns) - _GAP


def _panels(columns: list[_Column], keys: int, width: int) -> list[list[_Column]]:
    """Columns in groups that fit, each with the first ``keys``; text at the end takes what room is left."""
    if _width(columns) <= width:
        return [columns]
    lead = _squeezed(columns[:keys], width // 2)
    panels: list[list[_Column]] = [[]]
    for column in columns[keys:]:
        used = _width([*lead, *panels[-1]]) + _GAP
        last_text = column is columns[-1] and not column.numeric and width - used >= _LEAST_TEXT
        if panels[-1] and used + column.width > width and not last_text:
            panels.append([])
        panels[-1].append(column)
    return [_squeezed([*lead, *panel], width) for panel in panels]


def _squeezed(columns: list[_Column], width: int) -> list[_Column]:
    """Narrower columns, the widest text first and heads of numbers last, until they fit or cannot be narrower."""
    for numeric in (False, True):
        while (over := _width(columns) - width) > 0:
            soft = [c for c in columns if c.numeric == numeric and c.within(max(c.width - 1, _LEAST_NAME)) != c]
            if not soft:
                break
            widest = max(soft, key=lambda c: c.width)
            others = max((c.width for c in soft if c is not widest), default=0)
            goal = max(widest.width - over, min(others, widest.width - 1), _LEAST_NAME)
            columns = [c.within(goal) if c is widest else c for c in columns]
    return columns


def _drawn(columns: Sequence[_Column], style: Style) -> list[Text]:
    """The head, a rule as wide as the table, and the rows."""
    rule = Text(("─" if style.unicode else "-") * _width(columns), no_wrap=True)
    head, *rows = zip(*(column.cells for column in columns), strict=True)
    depth = max(map(len, head))
    above = [("",) * (depth - len(lines)) + lines for lines in head]
    body = [line for row in rows for line in _lines(columns, row, "")]
    return [*_lines(columns, above, "bold"), rule, *body]


def _lines(columns: Sequence[_Column], cells: Sequence[tuple[str, ...]], look: str) -> list[Text]:
    drawn = []
    for number in range(max(map(len, cells))):
        parts = []
        for column, lines in zip(columns, cells, strict=True):
            text = lines[number] if number < len(lines) else ""
            space = " " * (column.width - cell_len(text))
            parts.append(space + text if column.numeric else text + space)
        drawn.append(Text((" " * _GAP).join(parts).rstrip(), style=look, no_wrap=True))
    return drawn
