"""CSV and TSV: one sample a row."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from jaccli.errors import RefusedError, warn
from jaccli.safety.memory import require_unpacked

_BYTES_OF_A_FIELD = 66  # as text in a list, and as a number
_LONG_LINE = 1 << 14  # of a shorter one the fields take no MiB, and asking the system for every line takes longer


def read_table(handle: BinaryIO, name: str) -> Tensor:
    """Numbers of a csv or tsv as float64 ``(rows, columns)``.

    The first line shows the delimiter (tab, semicolon, comma or spaces); empty lines and lines
    that begin with ``#`` are passed over, and so is a first line without any number. A table has no
    types: ``1,2`` is read as floating-point numbers too.

    Raises:
        RefusedError: a ragged or non-numeric row, with its line number; no rows.
    """
    rows: list[np.ndarray[tuple[int], np.dtype[np.float64]]] = []
    for line, fields in _body(handle, name):
        try:
            row = np.array([_number(field) for field in fields])
        except ValueError:
            column, bad = next((i, f) for i, f in enumerate(fields, 1) if not _is_number(f))
            raise RefusedError(
                f"{name}, line {line}, column {column}: {bad[:40]!r} is not a number",
                "expected numbers alone, below one line of names at most",
                "write nan where a value is missing" if not bad else "",
            ) from None
        if rows and len(row) != len(rows[0]):
            raise RefusedError(
                f"{name}, line {line}: {len(row)} columns",
                f"expected {len(rows[0])} as in the rows before",
                "write nan where a value is missing",
            )
        rows.append(row)
    if not rows:
        raise RefusedError(
            f"{name} has no rows of numbers",
            "expected one sample a line, numbers with commas, semicolons, tabs or spaces between",
            "check that it is the right file, and write it again",
        )
    table = np.stack(rows)
    if table.shape[1] > 2 and len(table) > 1 and np.array_equal(table[0], np.arange(table.shape[1])):
        warn(f"{name}: the first row is 0, 1, 2, ... and is read as a sample; if it is a header, remove it")
    return torch.from_numpy(table)


def _body(handle: BinaryIO, name: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row, less a header."""
    delimiter: str | None = None
    first = True
    for line, text in _lines(handle, name):
        if len(text) > _LONG_LINE:
            require_unpacked(_BYTES_OF_A_FIELD * sum(map(text.count, "\t;, ")), len(text), name)
        if first:
            delimiter = next((mark for mark in "\t;," if mark in text), None)
        fields = [field.strip().strip('"') for field in text.split(delimiter)]
        header, first = first and not any(map(_is_number, fields)), False
        if header and not fields[0] and len(fields) > 1:
            raise RefusedError(
                f"{name}, line {line}: the first column has no name, as an index that pandas wrote",
                "expected only the values of one sample in a row",
                "write it with index=False",
            )
        if not header:
            yield line, fields


def _lines(handle: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    is_utf16 = handle.read(2) in (b"\xff\xfe", b"\xfe\xff")  # a byte order mark, as Excel writes
    handle.seek(0)
    lines = io.TextIOWrapper(handle, encoding="utf-16" if is_utf16 else "utf-8-sig")
    try:
        for number, line in enumerate(lines, 1):
            text = line.strip("\r\n ")
            if text.strip() and not text.lstrip().startswith("#"):
                yield number, text
    except UnicodeError:
        raise RefusedError(
            f"{name} is not text throughout", "expected csv or tsv in UTF-8", "save it as UTF-8"
        ) from None
    finally:
        lines.detach()  # else it would close the caller's handle


def _number(field: str) -> float:
    if "_" in field:  # float() takes "1_000", which no table means
        raise ValueError(field)
    return float(field)


def _is_number(field: str) -> bool:
    try:
        _number(field)
    except ValueError:
        return False
    return True
