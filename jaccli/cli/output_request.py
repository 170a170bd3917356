"""Where results go and in which form. One dataclass for each group of options."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

from jaccli.cli.option import option, request
from jaccli.cli.run_request import Screen
from jaccli.errors import UsageError
from jaccli.sinks.choose import MATRIX, NUMBERS, SPARSE, Format, Kind, check_output, choose_format
from jaccli.sinks.standard import results


@request
class ReportRequest(Screen):
    """The form of figures on standard output.

    Raises:
        UsageError: a format that is unknown or does not fit, an output that cannot be written.
    """

    kind: ClassVar[Kind] = "numbers"
    format_name: str | None = option(
        "--format",
        metavar="NAME",
        help="table (on a terminal), jsonl (in a pipe), json, csv or markdown.",
        complete=NUMBERS,
    )
    force: bool = option("--force", default=False, help="Replace an existing output.")

    def __post_init__(self) -> None:
        _ = self.format
        check_output(self.path, self.force)

    @property
    def path(self) -> str | None:
        """Where the result goes; None for standard output."""
        return None

    @cached_property
    def format(self) -> Format:
        """By ``--format``, the extension of the output, or whether standard output is a terminal."""
        return choose_format(self.format_name, self.path, results().isatty(), self.kind)


@request
class OutputRequest(ReportRequest):
    """Where the result goes and in which form."""

    output: str | None = option(
        "-o",
        "--output",
        metavar="FILE|-",
        help="Where to write; the extension names the format. Standard output by default.",
    )

    @property
    def path(self) -> str | None:
        """Where the result goes; None for standard output."""
        return self.output


@request
class MatrixRequest(OutputRequest):
    """Where J goes and in which form."""

    kind: ClassVar[Kind] = "matrix"
    format_name: str | None = option(
        "--format",
        metavar="NAME",
        help="table (on a terminal), npy (in a pipe), npz, pt, safetensors, zarr, json, jsonl or csv.",
        complete=MATRIX,
    )
    sparse: bool = option(
        "--sparse", default=False, help="Save only what is not zero, and where: as npz or safetensors."
    )

    def __post_init__(self) -> None:
        if self.sparse and self.format not in SPARSE:
            raise UsageError(
                f"--sparse: {self.format} does not hold a sparse J",
                f"expected --format {' or '.join(SPARSE)}",
                "or leave --sparse out",
            )
        super().__post_init__()
