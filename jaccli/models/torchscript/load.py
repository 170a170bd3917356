"""The module in a TorchScript archive: screened, then loaded by torch, then screened again.

Without trust an archive must not run code while it loads, and must not touch files or print when it
runs. ``screen_archive`` looks at source and pickles before torch sees them, ``screen_graphs`` at the
graphs that torch made of them: source can hide what it does, graphs cannot.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import torch

from jaccli.errors import RefusedError, ResourceError
from jaccli.models.torchscript.memory_limit import limited_memory
from jaccli.models.torchscript.program import remember_unit
from jaccli.models.torchscript.screen_archive import screen_archive
from jaccli.models.torchscript.screen_graphs import screen_graphs
from jaccli.text.escape import quote


def load_torchscript(path: Path, *, trust: bool) -> torch.jit.ScriptModule:
    """Load a TorchScript archive to the CPU, in eval mode.

    Args:
        path: the archive.
        trust: load it without looking, whatever it does.

    Returns:
        The module; ``ScriptNetwork`` runs it.

    Raises:
        RefusedError: no TorchScript, damaged, or, without trust, something that is not safe in it.
        ResourceError: not enough memory for its tensors.
    """
    if not trust:
        screen_archive(path)
    with contextlib.nullcontext() if trust else limited_memory(path.stat().st_size):
        module, unit = _load(path)
    if not trust:
        screen_graphs(unit, path)
    module.eval()
    remember_unit(module, unit)
    return module


def _load(path: Path) -> tuple[torch.jit.ScriptModule, object]:
    unit = torch._C.CompilationUnit()
    load: Any = torch._C.import_ir_module  # its stub lacks the last argument
    wrap: Any = torch.jit._recursive.wrap_cpp_module
    try:
        return wrap(load(unit, str(path), torch.device("cpu"), {}, False)), unit
    except Exception as error:  # whatever a damaged file makes torch raise
        raise _explain(str(error), path) from None


def _explain(message: str, path: Path) -> RefusedError | ResourceError:
    """An error of our own: torch's text is long, and holds source code out of the file."""
    name = quote(path, 200)
    if "DefaultCPUAllocator" in message or "bad_alloc" in message:
        return ResourceError(f"not enough memory to load {name}", "", "free some, or use a larger machine")
    unknown = re.search(r"Unknown builtin op: ([\w:]+)", message)
    if unknown:
        return RefusedError(
            f"{name} uses the operator {quote(unknown[1], 120)}, which this PyTorch does not have",
            "operators of PyTorch itself",
            "export the model without it",
        )
    return RefusedError(
        f"{name} cannot be loaded as TorchScript: it is damaged, or of another PyTorch version",
        "a file written by torch.jit.save",
        "save or download it again",
    )
