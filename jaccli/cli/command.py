"""What all commands have in common."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup

from jaccli.sinks.charset import shown
from jaccli.sinks.standard import are_streams_prepared, release_stdout, reserve_stdout_for_results, results_charset


class Command(TyperCommand):
    """A command; in its body standard output is kept for results, since a model's code may print."""

    def invoke(self, ctx: Any) -> Any:
        """Run the body. Without ``boundary``, as in a test by Typer's runner, streams are restored at its end."""
        reserve_stdout_for_results()
        try:
            return super().invoke(ctx)
        finally:
            if not are_streams_prepared():
                release_stdout()

    def get_help(self, ctx: Any) -> str:
        """The help, in characters that standard output has."""
        return shown(super().get_help(ctx), results_charset())


class Group(TyperGroup):
    """All commands together."""

    def get_help(self, ctx: Any) -> str:
        """The help, in characters that standard output has."""
        return shown(super().get_help(ctx), results_charset())
