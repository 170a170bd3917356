"""Records as a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from jaccli.sinks.terminal import Style, to_text
from jaccli.sinks.text import inert, json_value

_LIST_SHOWN = 4


def render_table(
    records: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
    *,
    title: str = "",
    style: Style | None = None,
) -> str:
    """A table; where the terminal is too narrow for it, one block of ``field  value`` lines a record.

    Names and values are shown as they are, never as markup or escape codes.
    """
    style = style or Style()
    names = list(columns) if columns is not None else list(dict.fromkeys(name for r in records for name in r))
    rows = [[style.shown(cell(record.get(name))) for name in names] for record in records]
    table = _across(names, rows, records, style)
    head = [Text(style.shown(inert(title)), style="bold")] if title else []
    width = Console(width=10_000, color_system=None).measure(table).maximum
    if not style.fixed:
        style = replace(style, width=max(width, style.width))
    fits = width <= style.width or not rows
    return to_text(Group(*head, table if fits else _down(names, rows, style)), style)


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


def _across(names: list[str], rows: list[list[str]], records: Sequence[Mapping[str, Any]], style: Style) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if style.unicode else box.ASCII2, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
    )
    for name in names:
        numeric = any(isinstance(json_value(record.get(name)), int | float) for record in records)
        table.add_column(Text(style.shown(inert(name))), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _down(names: list[str], rows: list[list[str]], style: Style) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, width=style.width)
    table.add_column(style="bold", overflow="fold", max_width=style.width // 2)
    table.add_column(overflow="fold", ratio=1)
    for index, row in enumerate(rows):
        if index:
            table.add_row()
        for name, value in zip(names, row, strict=True):
            table.add_row(Text(style.shown(inert(name))), Text(value))
    return table
