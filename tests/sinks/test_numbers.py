"""Records in the text formats, and what strangers' names can do in them: nothing."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jaccli.sinks.choose import Format
from jaccli.sinks.numbers import markdown_table, write_jsonl, write_numbers
from jaccli.sinks.table import TableView, render_table
from jaccli.sinks.terminal import PLAIN, Style, style_of
from jaccli.sinks.values import dumps, json_value
from jaccli.text.escape import inert

HOSTILE = "[bold red]x[/nope]\x1b[2J\x9b31m\r\n\u202e|`</script>"
RECORDS: list[dict[str, Any]] = [
    {"layer": HOSTILE, "relative": 0.123456789, "ok": True, "values": [1.0, math.nan], "at": {"n": 1}},
    {"layer": "fc2", "relative": math.inf, "missing": None},
]


def write(chosen: Format, records: list[dict[str, Any]] = RECORDS, style: Style = PLAIN) -> str:
    out = io.BytesIO()
    write_numbers(chosen, out, document={"pairs": records}, records=records, style=style)
    return out.getvalue().decode()


class Terminal(io.BytesIO):
    """A terminal that does not know its size."""

    def isatty(self) -> bool:
        return True


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
    long = render_table(TableView([{"v": [0.5] * 100}]))
    assert "(100)" in long
    assert len(long) < 400
    only = render_table(TableView(RECORDS, ["relative"], "[i]t[/i]"))
    assert "[i]t[/i]" in only
    assert "layer" not in only


WIDE = [{"sample": n, **{f"field{i}": i * 1.5 + n for i in range(10)}} for n in range(2)]


def tables(text: str) -> list[list[str]]:
    """A text of several tables: of each the head, the rule and the rows."""
    lines = text.splitlines()
    starts = [i - 1 for i, line in enumerate(lines) if set(line) in ({"─"}, {"-"})] + [len(lines)]
    return [lines[a:b] for a, b in pairwise(starts)]


def test_narrow_terminals_get_several_tables() -> None:
    """Each begins with the column that names the rows; nothing is lost, and no line is empty."""
    wide = render_table(TableView(WIDE), Style(width=200))
    assert len(tables(wide)) == 1
    found = tables(render_table(TableView(WIDE), Style(width=30)))
    shown = {}
    for head, _, *rows in found:
        assert max(map(len, (head, *rows))) <= 30
        assert [row.split()[0] for row in rows] == ["0", "1"]
        shown |= {name: [row.split()[i] for row in rows] for i, name in enumerate(head.split())}
    assert shown == {name: [f"{row[name]:g}" for row in WIDE] for name in WIDE[0]}
    free = render_table(TableView(WIDE), Style(width=30, fixed=False))  # a pipe has no width
    assert free == wide


@pytest.mark.parametrize("width", [20, 60, 80, 200])
@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
def test_a_rule_is_as_wide_as_its_table(width: int, charset: str) -> None:
    records = [{"layer": "blocks.0.attention", "n": 1.25, "elements": "out.0 (12), out.1 (12)"}, {"layer": "→", "n": 2}]
    for view in (
        TableView(records),
        TableView(WIDE),
        TableView(records, ["n", "layer"], "a title that is longer than the table " * 3),
    ):
        text = render_table(view, Style(width=width, charset=charset))
        assert text.count("\n\n") == 0
        assert max(map(len, text.splitlines())) <= width
        for lines in tables(text)[:-1] or tables(text):
            assert len(lines[1]) == max(len(line) for line in (lines[0], *lines[2:])), text


def test_columns_that_may_go_go_first() -> None:
    text = render_table(TableView(WIDE, spare=("field3", "field0")), Style(width=75))
    (lines,) = tables(text)
    assert lines[0].split() == ["sample", *(f"field{i}" for i in range(10) if i not in (0, 3))]
    assert "field3" in render_table(TableView(WIDE, spare=("field3",)), Style(width=200))


def test_long_names_are_broken_and_digits_never() -> None:
    name = "encoder.layers.11.self_attention.output_projection.parametrizations"
    text = render_table(TableView([{"layer": name, "value": -1.23456e-07, "other": 1.23456e07}]), Style(width=40))
    assert max(map(len, text.splitlines())) <= 40
    assert "-1.23456e-07" in text
    assert "1.23456e+07" in text
    column = [line[:20].split(" ")[0] for line in tables(text)[0][2:]]
    assert "".join(column) == name


def test_ascii_terminals() -> None:
    assert render_table(TableView([{"é": "→"}]), Style(charset="ascii")).isascii()


def test_style(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("told", ["0", "-5", "rubbish", "", "1e3", "²"])
def test_a_terminal_without_a_size_is_80_by_24(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", told)
    monkeypatch.setenv("LINES", told)
    style = style_of(Terminal())
    assert (style.width, style.height, style.fixed) == (80, 24, True)
    assert not style_of(io.BytesIO()).fixed
    monkeypatch.setenv("LINES", "50")
    assert (style_of(Terminal()).width, style_of(Terminal()).height) == (80, 50)


def test_colored_table_has_escape_codes_and_a_plain_one_has_none() -> None:
    assert "\x1b[" in render_table(TableView(RECORDS, title="t"), Style(color=True))
    assert "\x1b" not in render_table(TableView(RECORDS, title="t"), Style(color=False))


def test_markdown() -> None:
    lines = markdown_table(TableView([{"a|b": 1.5, "c": "x|y"}, {"c": "z"}])).splitlines()
    assert lines == [r"| a\|b | c |", "| --: | :-- |", r"| 1.5 | x\|y |", "| - | z |"]
