"""Trained parameters as a file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from jaccli.cli.request import ModelRequest
from jaccli.errors import UnsupportedError, note
from jaccli.models.identify.import_spec import is_spec
from jaccli.models.weights.rewrite import RewritableCheckpoint, rewritable_checkpoint
from jaccli.sinks.atomic import open_output
from jaccli.sinks.matrix_binary import write_safetensors
from jaccli.text.escape import listed, quote
from jaccli.text.quantities import dtype_name


class Writer:
    """Writes a model's parameters in the form of the file that they came from, which is read before training.

    ``.pt`` of a TorchScript model is TorchScript. ``.safetensors`` is a state dict with the provenance as metadata,
    under the names of the file. Every other ending is ``torch.save``: of the whole file, wrapper keys and other plain
    data kept. A model that was no state dict in a file is written as one under its own names.

    Args:
        request: of MODEL.
        model: what it was loaded as.
        path: of the output.

    Raises:
        UnsupportedError: safetensors does not have the dtype of a tensor.
    """

    def __init__(self, request: ModelRequest, model: nn.Module, path: str) -> None:
        self.model, self.path = model, path
        self._form = path.lower().rpartition(".")[2]
        self.is_script = self._form == "pt" and isinstance(model, torch.jit.ScriptModule)
        self._template: RewritableCheckpoint | None = None
        if not self.is_script and not is_spec(request.path):
            self._template = rewritable_checkpoint(request.path, model)
        if self._form == "safetensors":
            self._check_dtypes()

    def write(self, force: bool, provenance: Mapping[str, str]) -> int:
        """Write the file, whole or not at all. Tensors that are tied are written under each of their names.

        Returns:
            How many tensors there are.

        Raises:
            UsageError: the file exists, and ``force`` is not given.
            ResourceError: the disk is full.
        """
        state = self._state()
        if self.is_script:
            content = _archive(self.model, provenance)
        elif self._form == "safetensors":
            content = self._safetensors(state, provenance)
        else:
            content = self._saved(state)
        with open_output(self.path, force) as handle:
            handle.write(content)
        return len(state)

    def _state(self) -> dict[str, Tensor]:
        """What is written by name, of any shapes."""
        if self._template is not None:
            return self._template.state(self.model)
        return {name: value for name, value in self.model.state_dict().items() if isinstance(value, Tensor)}

    def _check_dtypes(self) -> None:
        for name, value in self._state().items():
            if value.dtype in (torch.complex128, torch.complex32):
                raise UnsupportedError(
                    f"--output {self.path!r}: {quote(name, 60)} is {dtype_name(value.dtype)}",
                    "expected complex64, the complex numbers that safetensors has",
                    "save the model in float32 and complex64, or write .pth",
                )

    def _safetensors(self, state: Mapping[str, Tensor], provenance: Mapping[str, str]) -> bytes:
        """A file of these tensors, of any shapes."""
        left = sorted(set(self.model.state_dict()) - set(state)) if self._template is None else []
        if left:
            note(f"not written, as they are no tensors: {', '.join(left)}")
        metadata = {**(self._template.metadata if self._template is not None else {}), **provenance}
        buffer, names = io.BytesIO(), sorted(state, key=lambda name: (-state[name].itemsize, name))  # aligned
        dense = {name: state[name].to_dense() if state[name].layout != torch.strided else state[name] for name in names}
        write_safetensors(buffer, dense, metadata)
        return buffer.getvalue()

    def _saved(self, state: Mapping[str, Tensor]) -> bytes:
        """What ``torch.save`` makes of the checkpoint, or of these tensors of any shapes."""
        whole = self._template.saved_object(self.model) if self._template is not None else dict(state)
        if self._template is not None and self._template.left_out:
            gone = list(dict.fromkeys(self._template.left_out))
            note(f"not written, being no numbers, text, lists and dicts by name: what is under {listed(gone, 6)}")
        if self._template is not None and self._template.untouched:
            note(f"as it was in the file, and not trained: what is under {listed(self._template.untouched, 6)}")
        buffer = io.BytesIO()
        torch.save(whole, buffer)
        return buffer.getvalue()


def _archive(model: nn.Module, provenance: Mapping[str, str]) -> bytes:
    buffer, extra = io.BytesIO(), {"jaccli.json": json.dumps(dict(provenance))}
    save_script: Any = torch.jit.save
    save_script(model, buffer, _extra_files=extra)
    return buffer.getvalue()
