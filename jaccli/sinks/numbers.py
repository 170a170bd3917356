"""Records (plain dicts) in the text formats."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO

from jaccli.sinks.choose import Format
from jaccli.sinks.table import TableView, cell, render_table
from jaccli.sinks.terminal import PLAIN, Style
from jaccli.sinks.values import dumps, json_value
from jaccli.text.escape import inert

Record = Mapping[str, Any]


def write_numbers(
    chosen: Format,
    out: BinaryIO,
    *,
    document: Record,
    records: Sequence[Record],
    view: TableView | None = None,
    style: Style = PLAIN,
) -> None:
    """Write one result in one format.

    Args:
        chosen: one of ``choose.NUMBERS``.
        out: from ``open_output``.
        document: what ``json`` writes.
        records: what jsonl and csv write, one a line.
        view: what the table and markdown show; the records unless given.
        style: of the table, and the charset of markdown; 80 columns without colour, in UTF-8, unless given.

    Raises:
        BrokenPipeError, OSError: from ``out``.
    """
    view = view or TableView(records)
    match chosen:
        case "json":
            out.write((dumps(document, indent=2) + "\n").encode())
        case "jsonl":
            write_jsonl(records, out)
        case "csv":
            write_csv(records, out)
        case "markdown":
            out.write(style.encode(markdown_table(view)))
        case _:
            out.write(style.encode(render_table(view, style)))
    out.flush()


def write_jsonl(records: Iterable[Record], out: BinaryIO) -> None:
    """One record a line, each flushed: a reader downstream sees it at once."""
    for record in records:
        out.write((dumps(record) + "\n").encode())
        out.flush()


def write_csv(records: Iterable[Record], out: BinaryIO) -> None:
    """A header and one record a row. Nested dicts become ``outer.inner``, lists JSON, None nothing."""
    rows = [flatten(record) for record in records]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(map(inert, columns))
    table.writerows([_csv_cell(row.get(name)) for name in columns] for row in rows)
    out.write(text.getvalue().encode())


def markdown_table(view: TableView) -> str:
    """A GitHub table, numbers to the right; the title is for terminals."""
    rows = [flatten(record) for record in view.records]
    names = view.names if view.columns is not None else list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(_markdown_cell(view.heads.get(name, name)) for name in names) + " |"]
    marks = ["--:" if any(_is_number(row.get(name)) for row in rows) else ":--" for name in names]
    lines.append("| " + " | ".join(marks) + " |")
    lines += ["| " + " | ".join(_markdown_cell(cell(row.get(name))) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def flatten(record: Record, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as ``outer.inner``; values as JSON has them."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json_value(value)
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _csv_cell(value: Any) -> str:
    if value is None:
        return ""
    return inert(value) if isinstance(value, str) else dumps(value)


def _markdown_cell(text: str) -> str:
    # Backslash first: it must not escape the escapes.
    shown = inert(text).replace("\\", "\\\\")
    for mark in "|<>[]*`_":
        shown = shown.replace(mark, "\\" + mark)
    return shown
