"""Trained parameters as a file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jaccli.errors import UnsupportedError, note
from jaccli.models.quote import quote
from jaccli.sinks.atomic import open_output
from jaccli.sinks.matrix_binary import write_safetensors


def write_weights(model: nn.Module, path: str, force: bool, provenance: Mapping[str, str]) -> int:
    """A model's state dict as safetensors, with the provenance as metadata; as TorchScript where ``path`` ends in .pt.

    The file appears whole or not at all. Tensors that are tied are written under each of their names.

    Returns:
        How many tensors there are.

    Raises:
        UsageError: the file exists, and ``force`` is not given.
        ResourceError: the disk is full.
    """
    state = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    left = sorted(set(model.state_dict()) - set(state))
    if path.lower().endswith(".pt"):
        content = _archive(model, provenance)
    else:
        if left:
            note(f"not written, as they are no tensors: {', '.join(left)}")
        buffer, names = io.BytesIO(), sorted(state, key=lambda name: (-state[name].itemsize, name))  # aligned
        write_safetensors(buffer, {name: state[name] for name in names}, provenance)
        content = buffer.getvalue()
    with open_output(path, force) as handle:
        handle.write(content)
    return len(state)


def check_writable(model: nn.Module, path: str | None) -> None:
    """Before training: whether the format has the dtypes of a state dict.

    Raises:
        UnsupportedError: safetensors has no complex numbers but complex64.
    """
    if path is None or path.lower().endswith(".pt"):
        return
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.dtype in (torch.complex128, torch.complex32):
            raise UnsupportedError(
                f"--output {path!r}: {quote(name, 60)} is {str(value.dtype).removeprefix('torch.')}",
                "expected complex64, the complex numbers that safetensors has",
                "save the model in float32 and complex64",
            )


def _archive(model: nn.Module, provenance: Mapping[str, str]) -> bytes:
    buffer, extra = io.BytesIO(), {"jaccli.json": json.dumps(dict(provenance))}
    save_script: Any = torch.jit.save
    save_script(model, buffer, _extra_files=extra)
    return buffer.getvalue()
