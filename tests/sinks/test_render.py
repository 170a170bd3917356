"""A matrix on a terminal."""

from __future__ import annotations

import re

import pytest
import torch

from jaccli.sinks.render import render_matrix
from jaccli.sinks.terminal import Style

PLAIN = Style(60, 24, color=False)
COLOR = Style(60, 24, color=True)


def body(text: str) -> list[str]:
    """The map itself, without caption, margin and legend."""
    lines = text.splitlines()[1:]
    return [line[4:] for line in lines[: next(i for i, x in enumerate(lines) if "min" in x)]]


def test_small_matrices_are_their_own_numbers() -> None:
    assert render_matrix(torch.tensor([[1.0, 2], [3, 4]])) == "  1  2\n  3  4\n"
    text = render_matrix(torch.tensor([[0.1, -20000.25], [float("nan"), 1e-9]]))
    assert text == "  0.1  -20000\n  nan   1e-09\n"
    assert render_matrix(torch.tensor([[1.5]], dtype=torch.bfloat16)) == "  1.5\n"


def test_digits_are_given_up_before_numbers_are() -> None:
    matrix = torch.full((2, 4), 1.23456)
    assert render_matrix(matrix, style=Style(32, 24)) == "  1.2346" * 4 + "\n" + "  1.2346" * 4 + "\n"
    assert render_matrix(matrix, style=Style(31, 24)) == "  1.235" * 4 + "\n" + "  1.235" * 4 + "\n"
    assert render_matrix(matrix, style=Style(24, 24)) == "  1.23" * 4 + "\n" + "  1.23" * 4 + "\n"
    assert "min" in render_matrix(matrix, style=Style(23, 24))


def test_a_large_identity_is_a_diagonal() -> None:
    lines = body(render_matrix(torch.eye(500), source="fc1", target="output", style=PLAIN))
    assert len(lines) == 18
    for row, line in enumerate(lines):
        marked = [i for i, mark in enumerate(line) if mark == "#"]
        assert marked
        assert line.strip("# ") == ""
        assert abs((marked[0] + marked[-1]) / 2 / 55 - (row + 0.5) / 18) < 0.03


def test_labels_and_legend() -> None:
    matrix = torch.zeros(300, 200)
    matrix[0, 0], matrix[299, 199] = -4, 2
    text = render_matrix(matrix, source="fc[1]\x1b[2J", target="out", style=PLAIN)
    lines = text.splitlines()
    assert lines[0].strip().startswith(r"0 fc[1]\x1b[2J →")
    assert lines[0].endswith("199")
    assert lines[1].startswith("  0 %")
    assert any(line.startswith("299 ") and line.endswith("+") for line in lines)
    assert "-4 %=-, .+*# 4   min -4  max 2" in text
    assert "up to 17 x 4 entries" in text
    assert max(map(len, lines)) <= 60


@pytest.mark.parametrize("value", [7.0, -7.0])
def test_one_large_entry_is_never_averaged_away(value: float) -> None:
    matrix = torch.full((1000, 1000), 0.01)
    matrix[567, 123] = value
    text = "\n".join(body(render_matrix(matrix, style=PLAIN)))
    assert text.count("#" if value > 0 else "%") == 1


def test_entries_that_are_not_finite_are_marked() -> None:
    matrix = torch.eye(100)
    matrix[50, 50] = float("nan")
    matrix[0, 99] = float("-inf")
    text = render_matrix(matrix, style=PLAIN)
    assert "".join(body(text)).count("?") == 2
    assert "2 entries are not finite" in text
    assert "max 1" in text
    assert "no finite entry" in render_matrix(matrix * float("nan"), style=PLAIN)


def test_colors_and_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    matrix = torch.eye(100) - torch.eye(100).flip(0)
    text = render_matrix(matrix, style=COLOR)
    assert "▀" in text
    assert "38;2;178;24;43" in text  # red for the largest
    assert "38;2;33;102;172" in text  # blue for the smallest
    visible = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert max(map(len, visible.splitlines())) <= 60
    assert len(visible.splitlines()) <= 24
    assert "\x1b" not in render_matrix(matrix, style=PLAIN)
    assert render_matrix(matrix, style=Style(60, 24, color=False, charset="ascii")).isascii()


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (3, 100), (100, 3), (2, 1), (41, 41)])
@pytest.mark.parametrize("style", [PLAIN, COLOR, Style(20, 10)])
def test_every_shape_fits(shape: tuple[int, int], style: Style) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", render_matrix(torch.randn(shape), source="in", style=style))
    assert max(map(len, text.splitlines())) <= style.width
    assert len(text.splitlines()) <= style.height + (4 if style.width == 20 else 0)  # a wrapped legend


def test_zeros_have_a_map() -> None:
    lines = body(render_matrix(torch.zeros(100, 100), style=PLAIN))
    assert "".join(lines).strip() == ""
