"""An exported program as an ``nn.Module``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jaccli.errors import RefusedError
from jaccli.models.exported.binding import bind
from jaccli.models.exported.code import ExportedCode
from jaccli.models.exported.interpreter import ProgramRun, analyse
from jaccli.models.interpretation.nested import OncePerTensor
from jaccli.networks.dtypes import converted, is_whole, renamed
from jaccli.networks.network import Tap
from jaccli.text.escape import quote

if TYPE_CHECKING:
    from jaxtyping import Shaped

_MAX_DEPTH = 100  # modules within modules; torch walks them by recursion


class ExportedModel(nn.Module):
    """An exported program as a module, called like the model that was exported and in the mode it had then.

    Parameters and buffers are registered under their own names. ``train()`` and ``eval()`` have no
    effect, because an export has fixed the mode. A call writes back buffers that the model updates;
    ``ExportedNetwork.run`` does not.

    Args:
        program: what to run.
        tensors: parameters, buffers and constants by qualified name; used as they are, not copied.
    """

    def __init__(self, program: ExportedCode, tensors: Mapping[str, Tensor]) -> None:
        """``tensors``: name → parameter, buffer or constant, of any shape."""
        super().__init__()
        self.training = False  # the mode was fixed when the program was exported
        self.program = program
        self._dtypes: dict[torch.dtype, torch.dtype] = {}
        self._inputs: dict[str, str] = {}
        for value_name, (kind, name) in program.state.items():
            self._inputs[value_name] = name
            _register(self, name, tensors[name], kind)
        if program.graph.analysis is None:
            analyse(program.graph, frozenset(program.state))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program. Buffers that it updates are written back."""
        results, buffers = self.execute(args, kwargs, None)
        with torch.no_grad():
            for name, value in buffers.items():
                tensor = _get(self, name)
                if value is not tensor:
                    tensor.copy_(value.detach())
        return results

    def execute(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run the program without writing anything: the result, and buffer name → new value, of its shape."""
        program = self.program
        analysis = program.graph.analysis
        values = bind(program, args, kwargs)
        for value_name, name in self._inputs.items():
            values[value_name] = _get(self, name)
        for name in analysis.rewrites.written:
            if isinstance(values[name], Tensor):
                values[name] = values[name].clone()
        scope = ProgramRun(self._device(values), self._dtypes, tap).run(program.graph, values)
        results = program.out_tree.unflatten(scope.value(item) for item in program.results)
        buffers = {name: scope.value(item) for name, item in program.mutations.items()}
        for value_name, (kind, name) in program.state.items():
            if kind == "buffer":
                buffers.setdefault(name, values[value_name])
        return results, buffers

    def _device(self, values: Mapping[str, Any]) -> torch.device:
        state = (_get(self, name) for name in self._inputs.values())
        tensors = (*state, *(value for value in values.values() if isinstance(value, Tensor)))
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def converted(self, device: torch.device | None, dtype: torch.dtype | None) -> ExportedModel:
        """An independent copy, floating-point and complex tensors converted; see ``dtypes.counterpart``."""

        def copy(tensor: Tensor) -> Tensor:
            copied = converted(tensor.detach(), device, dtype, copy=True)
            return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied

        once = OncePerTensor(copy)
        tensors = {name: _get(self, name) for name in self._inputs.values()}
        model = ExportedModel(self.program, {name: once(tensor) for name, tensor in tensors.items()})
        model._dtypes = renamed(self._dtypes, tensors.values(), dtype)
        return model


def _register(root: nn.Module, name: str, tensor: Shaped[Tensor, "..."], kind: str) -> None:
    """Put a tensor where its dotted name says, making empty modules on the way."""
    *path, leaf = name.split(".")
    owner = root
    try:
        if len(path) > _MAX_DEPTH:
            raise KeyError("nested too deep")
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        # ``nn.Parameter`` refuses whole numbers: they cannot require gradients.
        if kind == "parameter" and not isinstance(tensor, nn.Parameter) and not is_whole(tensor):
            tensor = nn.Parameter(tensor)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor, persistent=kind == "buffer")
    except (KeyError, AttributeError, TypeError) as error:
        raise RefusedError(
            f"the archive has a tensor with the name {quote(name)}",
            "expected the names of a module's tensors",
        ) from error


def _get(root: nn.Module, name: str) -> Shaped[Tensor, "..."]:
    """The parameter or buffer with a dotted name. Not ``getattr``: a name may be that of a method."""
    *path, leaf = name.split(".")
    owner = root
    for part in path:
        child = owner._modules[part]
        assert child is not None
        owner = child
    parameter = owner._parameters.get(leaf)
    tensor = owner._buffers[leaf] if parameter is None else parameter
    assert tensor is not None
    return tensor
