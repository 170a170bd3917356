"""What needs a square J says so here. No torch: the command line asks too."""

from __future__ import annotations

from jaccli.errors import UsageError


def check_square(n_out: int, n_in: int, name: str = "J", remedy: str = "") -> None:
    """Refuse a J that is not square.

    Args:
        n_out: rows.
        n_in: columns.
        name: of J in the message.
        remedy: what the user can do.

    Raises:
        UsageError: it is not square.
    """
    if n_out != n_in:
        raise UsageError(
            f"{name} is {n_out} x {n_in}, and only a square J will do here",
            "expected a source and a target of the same size",
            remedy,
        )
