"""Calls of modules inside a graph, reported to a tap."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jaccli.errors import InternalError
from jaccli.networks.network import Tap
from jaccli.text.escape import quote


class CallReports:
    """Reports the module calls of one run.

    Args:
        tap: what sees the calls; None if nobody does.
    """

    def __init__(self, tap: Tap | None) -> None:
        self.tap = tap
        self._paths = tap.paths if tap is not None else frozenset[str]()
        self._calls: Counter[str] = Counter()

    @property
    def sees_every_module(self) -> bool:
        """Whether the tap sees every module, not some that it named."""
        return self._paths is None

    def wants(self, path: str) -> bool:
        """Whether the tap sees calls of the module at ``path``."""
        return self._paths is None or path in self._paths

    def enter(self, path: str, args: tuple[Any, ...]) -> tuple[int, tuple[Any, ...]]:
        """Report the beginning of a call.

        Returns:
            The number of the call, counted from 1 for each path, and the arguments to go on with.
        """
        assert self.tap is not None
        self._calls[path] += 1
        changed, _ = self.tap.enter(path, self._calls[path], args, {})
        if len(changed) != len(args):
            raise InternalError(
                f"a tap changed the number of inputs of {quote(path)}", f"expected {len(args)}", "please report it"
            )
        return self._calls[path], changed

    def leave(self, path: str, call: int, output: Any) -> Any:
        """Report the end of a call; gives the output to go on with."""
        assert self.tap is not None
        return self.tap.leave(path, call, output)
