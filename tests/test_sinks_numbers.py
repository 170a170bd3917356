"""Records in the text formats, and what strangers' names can do in them: nothing."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaccli.sinks.choose import Format
from jaccli.sinks.numbers import markdown_table, write_jsonl, write_numbers
from jaccli.sinks.table import render_table
from jaccli.sinks.terminal import Style, style_of
from jaccli.sinks.text import dumps, inert, json_value

HOSTILE = "[bold red]x[/nope]\x1b[2J\x9b31m\r\n\u202e|`</script>"
RECORDS: list[dict[str, Any]] = [
    {"layer": HOSTILE, "relative": 0.123456789, "ok": True, "values": [1.0, math.nan], "at": {"n": 1}},
    {"layer": "fc2", "relative": math.inf, "missing": None},
]


def write(chosen: Format, records: list[dict[str, Any]] = RECORDS, style: Style | None = None) -> str:
    out = io.BytesIO()
    write_numbers(chosen, out, document={"pairs": records}, records=records, style=style)
    return out.getvalue().decode()


def no_constants(token: str) -> None:
    raise AssertionError(f"{token} is not JSON")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_json_is_always_valid_and_keeps_values(value: Any) -> None:
    text = dumps(value)
    assert text.isascii()
    found = json.loads(text, parse_constant=no_constants)
    assert found == json_value(value)


def test_json_values() -> None:
    value = {
        "np": np.float32(0.5),
        "int": np.int64(3),
        "bool": np.bool_(True),
        "tensor": torch.tensor([1.0, math.inf]),
        "scalar": torch.tensor(2),
        "bf16": torch.tensor(1.5, dtype=torch.bfloat16),
        "dtype": torch.float32,
        "tuple": (1, -math.inf),
        1: math.nan,
    }
    assert json_value(value) == {
        "np": 0.5,
        "int": 3,
        "bool": True,
        "tensor": [1.0, "inf"],
        "scalar": 2,
        "bf16": 1.5,
        "dtype": "torch.float32",
        "tuple": [1, "-inf"],
        "1": "nan",
    }


def test_json_and_jsonl() -> None:
    assert json.loads(write("json"), parse_constant=no_constants) == {"pairs": json_value(RECORDS)}
    lines = write("jsonl").splitlines()
    assert [json.loads(line, parse_constant=no_constants) for line in lines] == json_value(RECORDS)


def test_jsonl_is_flushed_line_by_line() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as reader, os.fdopen(write_end, "wb") as writer:

        def records() -> Iterator[dict[str, int]]:
            yield {"a": 1}
            assert reader.readline() == b'{"a": 1}\n'  # would block, were it still in a buffer
            yield {"a": 2}

        write_jsonl(records(), writer)


def test_broken_pipe_comes_through() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(BrokenPipeError), os.fdopen(write_end, "wb", buffering=0) as writer:
        write_jsonl(RECORDS, writer)


def test_csv() -> None:
    first, second = csv.DictReader(io.StringIO(write("csv")))
    assert float(first["relative"]) == 0.123456789
    assert json.loads(first["values"]) == [1.0, "nan"]
    assert (first["ok"], first["at.n"], first["missing"]) == ("true", "1", "")
    assert (second["layer"], second["relative"], second["values"]) == ("fc2", "inf", "")


@pytest.mark.parametrize("chosen", ["table", "csv", "markdown", "json", "jsonl"])
@pytest.mark.parametrize("color", [False, True])
def test_hostile_names_stay_text(chosen: Format, color: bool) -> None:
    text = write(chosen, style=Style(width=200, color=False))
    assert all(char.isprintable() or char == "\n" for char in text)
    if chosen in ("table", "csv"):
        assert "[bold red]x[/nope]" in text  # as text, and not as markup
    colored = write("table", style=Style(width=200, color=True))
    assert "\x1b[2J" not in colored
    assert "\x9b" not in colored


@given(st.text())
def test_inert_text_has_no_active_character(text: str) -> None:
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 or char in "\u202e\u200b\u2028" for char in inert(text))
    assert inert("fc1.weight → é") == "fc1.weight → é"


def test_table_shows_values() -> None:
    text = write("table", style=Style(width=200))
    assert "0.123457" in text
    assert "inf" in text
    assert "yes" in text
    long = render_table([{"v": [0.5] * 100}])
    assert "(100)" in long
    assert len(long) < 400
    only = render_table(RECORDS, ["relative"], title="[i]t[/i]")
    assert "[i]t[/i]" in only
    assert "layer" not in only


def test_narrow_terminals_get_lines_instead_of_columns() -> None:
    records = [{f"field{i}": i * 1.5 for i in range(10)}] * 2
    wide = render_table(records, style=Style(width=200))
    assert len(wide.splitlines()) <= 6
    narrow = render_table(records, style=Style(width=30))
    assert max(map(len, narrow.splitlines())) <= 30
    for i in range(10):
        assert any(line.split() == [f"field{i}", f"{i * 1.5:g}"] for line in narrow.splitlines())
    free = render_table(records, style=Style(width=30, fixed=False))  # a pipe has no width
    assert len(free.splitlines()) == len(wide.splitlines())


def test_ascii_terminals() -> None:
    assert render_table([{"é": "→"}], style=Style(charset="ascii")).isascii()


def test_style(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.BytesIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR", "LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("COLUMNS", "50")
    assert style_of(Terminal()) == Style(50, style_of(Terminal()).height, True, "utf-8", True)
    assert not style_of(Terminal(), no_color=True).color
    assert not style_of(io.BytesIO()).color
    monkeypatch.setenv("LANG", "C")
    assert not style_of(Terminal()).unicode
    assert not style_of(io.BytesIO()).unicode
    assert style_of(io.BytesIO(), charset="utf-8").unicode
    monkeypatch.setenv("NO_COLOR", "1")
    assert not style_of(Terminal()).color
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert style_of(io.BytesIO()).color
    assert not style_of(io.BytesIO(), no_color=True).color
    monkeypatch.delenv("COLUMNS")
    assert not style_of(io.BytesIO()).fixed


def test_colored_table_has_escape_codes_and_a_plain_one_has_none() -> None:
    assert "\x1b[" in render_table(RECORDS, title="t", style=Style(color=True))
    assert "\x1b" not in render_table(RECORDS, title="t", style=Style(color=False))


def test_markdown() -> None:
    lines = markdown_table([{"a|b": 1.5, "c": "x|y"}, {"c": "z"}]).splitlines()
    assert lines == [r"| a\|b | c |", "| --: | :-- |", r"| 1.5 | x\|y |", "| - | z |"]
