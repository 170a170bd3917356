"""Which figures of J are reported, and what they must not exceed. One dataclass for each group of options."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaccli.cli import parse
from jaccli.cli.option import option, request
from jaccli.cli.run_request import seed_option
from jaccli.errors import UsageError
from jaccli.names import NORMS


@dataclass(frozen=True)
class Gate:
    """``--fail-above NORM=VALUE``."""

    norm: str
    limit: float


def _gate(text: str, flag: str) -> Gate:
    norm, _, value = text.partition("=")
    try:
        limit = float(value)
    except ValueError:
        limit = math.nan
    if norm not in NORMS or math.isnan(limit):
        raise UsageError(
            f"{flag} {text!r} is not understood",
            f"expected NORM=VALUE, NORM one of {', '.join(NORMS)}",
            "as --fail-above relative=0.1",
        )
    return Gate(norm, limit)


@request
class GateRequest:
    """What figures of ``deviation`` must not exceed."""

    gates: tuple[Gate, ...] = option(
        "--fail-above",
        metavar="NORM=VALUE",
        help="Exit with 1 if any sample is above, as relative=0.1; may be repeated.",
        parse=_gate,
        many=True,
    )


@request
class FiguresRequest:
    """How figures are obtained (from J or estimated, how well and from which seed), and how a table lists them.

    Raises:
        UsageError: both a number of probes and a tolerance are given.
    """

    estimate: bool = option(
        "--estimate", default=False, help="From products with random vectors, with standard errors; J is not built."
    )
    probes: int | None = option(
        "--probes", metavar="N", help="Random vectors of an estimate; implies it.", parse=parse.whole_number(2)
    )
    tolerance: float | None = option(
        "--tolerance",
        metavar="SHARE",
        help="Estimate until 95 % intervals reach no further, as 1%; implies --estimate.",
        parse=parse.share,
    )
    per_sample: bool = option(
        "--per-sample", default=False, help="In a table of several layers a line a sample, not a line a layer."
    )
    seed: int = seed_option(0)

    def __post_init__(self) -> None:
        if self.probes is not None and self.tolerance is not None:
            raise UsageError("--probes and --tolerance are both given", "expected one of them", "leave one out")

    @property
    def wanted(self) -> bool:
        """Whether any of the options asks for estimates."""
        return bool(self.estimate or self.probes or self.tolerance)


@request
class SpectrumRequest:
    """What to report beside singular values.

    Args:
        eigenvalues: eigenvalues, spectral radius and non-normality of a square J.
        lyapunov: the exponents of the chain of pairs between the layers named.
        top: how many singular values to list or, of an estimate, to look for.
    """

    eigenvalues: bool = option(
        "--eigenvalues", default=False, help="Also eigenvalues, spectral radius, non-normality; J must be square."
    )
    lyapunov: bool = option(
        "--lyapunov", default=False, help="Lyapunov exponents along the layers named, one after the other, to --to."
    )
    top: int | None = option(
        "--top", metavar="N", help="List the N largest singular values only.", parse=parse.whole_number(1)
    )

    def check(self, figures: FiguresRequest, of_saved_j: bool = False) -> None:
        """Whether what is asked for can be had together.

        Raises:
            UsageError: it cannot.
        """
        if of_saved_j and self.lyapunov:
            raise UsageError(
                "--lyapunov and --jacobian are both given",
                "expected a model, whose layers make the chain",
                "leave one out",
            )
        for flag, is_given in (("--eigenvalues", self.eigenvalues), ("--lyapunov", self.lyapunov)):
            if is_given and figures.wanted:
                raise UsageError(
                    f"{flag} and an estimate are both asked for",
                    f"expected one of them: {flag} needs J",
                    "leave one out",
                )
        if self.eigenvalues and self.lyapunov:
            raise UsageError("--eigenvalues and --lyapunov are both given", "expected one of them", "leave one out")
