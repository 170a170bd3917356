"""How J is computed, and what is printed on the way. One dataclass for each group of options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from jaccli.cli import parse
from jaccli.cli.option import option, request
from jaccli.errors import UsageError
from jaccli.names import METHOD_NAMES, MethodName, check_compile, check_method
from jaccli.text.sizes import parse_bytes

T = TypeVar("T")


def seed_option(absent: int | None = None) -> Any:
    """``--seed``, a field of several requests; ``absent`` is its value where none is typed."""
    help = "For fresh weights of a MODEL that is code, what a model draws, and random vectors; 0 if not given."
    return option("--seed", metavar="N", help=help, parse=parse.whole_number(0), absent=absent)


def compile_option() -> Any:
    """``--compile``, a field of several requests."""
    return option("--compile", default=False, help="Run what the structured engine does through torch.compile.")


def _methods(text: str, _: str) -> tuple[MethodName, ...]:
    """Names with commas between them, each once."""
    return tuple(dict.fromkeys(check_method(name.strip()) for name in text.split(",")))


@request
class Screen:
    """What is printed beside the result."""

    quiet: bool = option("-q", "--quiet", default=False, help="No notes, no progress; warnings stay.")
    no_color: bool = option("--no-color", default=False, help="No colours.")


@request
class TimedRequest(Screen):
    """How long a command may take, in seconds."""

    timeout: float | None = option(
        "--timeout", metavar="TIME", help="Give up after this, as 60s or 5m; exit code 5.", parse=parse.seconds
    )


@request
class BlocksRequest(TimedRequest):
    """How much of J is computed at once: ``chunk`` rows or columns, ``max_memory`` bytes; None: jaccli chooses."""

    chunk: int | None = option(
        "--chunk", default="auto", metavar="auto|N", help="Rows or columns that go through at once.", parse=parse.chunk
    )
    max_memory: int | None = option(
        "--max-memory",
        metavar="SIZE",
        help="What J and the passes may take, as 4GiB or 500MB; a share of what is free if not given.",
        parse=lambda text, _: parse_bytes(text),
    )
    compile: bool = compile_option()
    explain: bool = option(
        "--explain", default=False, help="Print the plan on standard error: method, passes, memory, and why."
    )


@request
class RunRequest(BlocksRequest):
    """How J is computed.

    Raises:
        UsageError: an unknown method, or one that cannot be compiled.
    """

    method: MethodName = option(
        "--method",
        default="auto",
        metavar="NAME",
        help=f"{', '.join(METHOD_NAMES[:-1])} or {METHOD_NAMES[-1]}.",
        parse=lambda text, _: check_method(text),
        complete=METHOD_NAMES,
    )

    def __post_init__(self) -> None:
        check_compile(self.compile, self.method)


@request
class BenchRequest:
    """Which methods are compared, and for how long.

    Raises:
        UsageError: ``--compile`` with methods of which none can be compiled.
    """

    methods: tuple[MethodName, ...] = option(
        "--methods", metavar="A,B", help="Which methods; all of them if not given.", parse=_methods, absent=METHOD_NAMES
    )
    rounds: int | None = option(
        "--rounds", metavar="N", help="Rounds; as many as fit --max-time if not given.", parse=parse.whole_number(1)
    )
    max_time: float = option(
        "--max-time", default="10s", metavar="TIME", help="Aim for all rounds together.", parse=parse.seconds
    )
    compile: bool = compile_option()

    def __post_init__(self) -> None:
        check_compile(self.compile, *self.methods)

    def only(self, pairs: Sequence[T]) -> T:
        """The one pair that there must be once globs are expanded.

        Raises:
            UsageError: there are several.
        """
        if len(pairs) != 1:
            raise UsageError(
                f"bench takes one layer pair, got {len(pairs)}",
                "expected one --layer and no glob",
                "choose one of them with --layer",
            )
        return pairs[0]


@request
class DoctorRequest:
    """Whether devices are measured."""

    calibrate: bool = option(
        "--calibrate", default=False, help="Measure how fast each device is (about a second), and keep that."
    )
