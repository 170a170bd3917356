"""The model in a ``torch.export`` archive: loaded without running code."""

from __future__ import annotations

from pathlib import Path

from jaccli.errors import RefusedError
from jaccli.models.exported.archive import read_archive
from jaccli.models.exported.model import ExportedModel
from jaccli.models.exported.parse import parse_program
from jaccli.text.escape import quote


def load_exported(path: Path, *, trust: bool = False) -> ExportedModel:
    """The model in a ``torch.export`` archive; no code in it is run, and no pickle.

    Args:
        path: a file written by ``torch.export.save`` (torch 2.3 or later).
        trust: allow operators outside of ``aten`` and ``prims`` that this process knows.

    Raises:
        RefusedError: the file is not such an archive, is damaged, or would need to run code.
        UnsupportedError: it uses an operator that jaccli does not run.
    """
    archive = read_archive(path)
    program = parse_program(archive.program, trust=trust)
    missing = sorted({name for _, name in program.state.values()} - set(archive.tensors))
    if missing:
        raise RefusedError(
            f"{quote(path)} lacks the tensor {quote(missing[0])}",
            "expected an archive with its weights",
            "export the model again with torch.export.save",
        )
    return ExportedModel(program, archive.tensors)
