"""Options as fields of requests: names, order, shared flags, and values."""

from __future__ import annotations

import inspect

import pytest

from jaccli.cli import parse
from jaccli.cli.option import argument, option, request, takes_requests
from jaccli.errors import UsageError


@request
class Left:
    path: str = argument("MODEL", "A file.")
    quiet: bool = option("-q", "--quiet", default=False, help="Less.")
    seed: int | None = option("--seed", help="The seed.", parse=parse.whole_number(0))


@request
class Right:
    sources: tuple[str, ...] = option("--from", help="Layers.", many=True)
    chunk: int | None = option("--chunk", help="At once.", default="auto", parse=parse.chunk)
    seed: int = option("--seed", help="Not shown.", parse=parse.whole_number(0), absent=7)


def test_a_command_gets_requests_and_typer_parameters() -> None:
    calls: list[tuple[Left, Right]] = []

    @takes_requests(first=("--from",))
    def command(left: Left, right: Right) -> None:
        """What it does."""
        calls.append((left, right))

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["from_", "model", "chunk", "seed", "quiet"]
    assert parameters["seed"].default.help == "The seed."
    assert (command.__name__, command.__doc__) == ("command", "What it does.")
    command(from_=["a", "b"], model="m.pt", chunk="3", seed=None, quiet=True)
    ((left, right),) = calls
    assert (left.path, left.quiet, left.seed) == ("m.pt", True, None)
    assert (right.sources, right.chunk, right.seed) == (("a", "b"), 3, 7)
    with pytest.raises(UsageError, match="--seed 'x'"):
        command(from_=None, model="m.pt", chunk="auto", seed="x", quiet=False)


def test_defaults_are_those_of_the_command_line() -> None:
    right = Right()
    assert (right.sources, right.chunk, right.seed) == ((), None, 7)
