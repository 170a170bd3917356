"""The last step of a command: its records in the format asked for, and what files say of where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaccli.cli.output_request import ReportRequest
from jaccli.cli.request import ModelRequest

if TYPE_CHECKING:
    from jaccli.sinks.table import TableView
    from jaccli.sinks.terminal import Style

Record = dict[str, Any]


def document(command: str, body: Mapping[str, Any]) -> Record:
    """What ``--format json`` writes for a command."""
    return {"schema_version": 1, "command": command, **body}


def write_result(
    out: ReportRequest,
    content: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    view: TableView | None = None,
    below: Callable[[Style], str] = lambda style: "",
) -> None:
    """Write the result of a command, whole or not at all.

    Args:
        out: where to and in which format.
        content: the ``document``, for json.
        records: for jsonl and csv, one a line.
        view: for table and markdown; the records if not given.
        below: text below the table or the markdown.
    """
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.terminal import style_for

    style = style_for(out.path, out.no_color)
    with open_output(out.path, out.force) as handle:
        write_numbers(out.format, handle, document=content, records=records, view=view, style=style)
        if out.format in ("table", "markdown"):
            handle.write(style.encode(below(style)))


def provenance(model: ModelRequest, about: Mapping[str, str]) -> dict[str, str]:
    """How a file came about: MODEL, what the command says of its work, versions, and the command line."""
    import platform

    import torch

    from jaccli import __version__
    from jaccli.cli.messages import command_line
    from jaccli.models.load import model_hash

    return {
        "model": model.path,
        "model_sha256": model_hash(model.path),
        **about,
        "jaccli": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": command_line(),
    }
