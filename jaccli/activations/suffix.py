"""The part of an activation's name behind the path: ``[#CALL][:PORT[.ELEMENT…]][@DIM][[INDEX]]``. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from jaccli.activations.index import IndexItem, opening, parse_index
from jaccli.errors import UsageError

Port = Literal["in", "out"]
CallNumber = int | Literal["*"]

EVERY: Literal["*"] = "*"
GRAMMAR = "expected PATH[#CALL][:in|:out[.ELEMENT…]][@DIM][[INDEX]], as fc1, fc1#2, lstm:out.1.0@1, fc1[:, 0]"
# More digits than any number in a name has.
_DIGITS = 18
_PORT = re.compile(r"^(?P<path>.*?):(?P<port>in|out)(?P<elements>(?:\.[^.]+)*)$", re.DOTALL)
_CALL = re.compile(r"^(?P<path>.*)#(?P<call>\d+|\*)$", re.DOTALL)
_DIM = re.compile(r"^(?P<path>.*)@(?P<dim>\d+)$", re.DOTALL)


@dataclass(frozen=True)
class AddressSuffix:
    """The fields of an ``Address`` that its suffix gives."""

    call: CallNumber | None = None
    port: Port | None = None
    elements: tuple[str, ...] = ()
    dim: int | None = None
    index: tuple[IndexItem, ...] | None = None


def split_suffix(name: str) -> tuple[str, AddressSuffix]:
    """A name → the path before its longest suffix, and the suffix.

    Raises:
        UsageError: the text in brackets is no index.
    """
    rest, dim, index = _tail(name)
    port: Port | None = None
    elements: tuple[str, ...] = ()
    if match := _PORT.match(rest):
        rest, port = match["path"], "in" if match["port"] == "in" else "out"
        elements = tuple(match["elements"].split(".")[1:])
    call: CallNumber | None = None
    if match := _CALL.match(rest):
        rest, call = match["path"], EVERY if match["call"] == EVERY else _number(name, match["call"])
    return rest, AddressSuffix(call, port, elements, dim, index)


def parse_suffix(text: str) -> AddressSuffix | None:
    """The suffix that a text is as a whole; None if it is none."""
    try:
        rest, suffix = split_suffix(text)
    except UsageError:
        return None
    return None if rest else suffix


def _tail(name: str) -> tuple[str, int | None, tuple[IndexItem, ...] | None]:
    """Take ``[INDEX]`` and ``@DIM`` off the end, in either order, each at most once."""
    rest, dim, index = name, None, None
    while True:
        if index is None and rest.endswith("]"):
            start = opening(rest)
            if start < 0:
                raise UsageError(f"layer {name!r}: a ']' without its '['", GRAMMAR)
            index = parse_index(name, rest[start + 1 : -1])
            rest = rest[:start]
        elif dim is None and (match := _DIM.match(rest)):
            rest, dim = match["path"], _number(name, match["dim"], 0)
        else:
            return rest, dim, index


def _number(name: str, digits: str, least: int = 1) -> int:
    if len(digits) > _DIGITS:  # ``int`` refuses thousands
        raise UsageError(f"layer {name!r}: a number of {len(digits)} digits", GRAMMAR)
    if int(digits) < least:
        raise UsageError(f"layer {name!r}: calls are counted from {least}", GRAMMAR)
    return int(digits)
