"""An exported program as a ``Network``.

Its layers are the modules that left operators in the graph; ``module_calls`` says what their inputs and outputs are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from jaccli.models.exported.from_fx import (
    is_exported_module,
    is_exported_program,
    program_from_export,
    program_from_module,
)
from jaccli.models.exported.model import ExportedModel
from jaccli.models.exported.training_mode import draws_by_mode, draws_random_numbers, training_mode_warnings
from jaccli.networks.network import Network, Tap
from jaccli.networks.state.random_generators import GeneratorStates


def is_exported(model: object) -> bool:
    """Whether ``ExportedNetwork`` takes it: an ``ExportedModel``, an ``ExportedProgram`` or its module."""
    return isinstance(model, ExportedModel) or is_exported_program(model) or is_exported_module(model)


class ExportedNetwork(Network):
    """An exported program with its layers in sight.

    Args:
        model: an ``ExportedModel``, a ``torch.export.ExportedProgram``, or what its ``module()``
            returns; of the latter two the tensors are shared, not copied.
    """

    kind = "exported"

    def __init__(self, model: Any) -> None:
        if isinstance(model, ExportedModel):
            self.model = model
        elif is_exported_program(model):
            self.model = ExportedModel(*program_from_export(model))
        else:
            self.model = ExportedModel(*program_from_module(model))
        self._random = draws_random_numbers(self.model.program.graph)

    def only_batch(self, dim: int = 0) -> int | None:
        shape = self.model.program.leaves[0].shape if self.model.program.leaves else None
        return shape[dim].size if shape is not None and -len(shape) <= dim < len(shape) else None

    def layers(self) -> Mapping[str, str]:
        """Module path → type name. A module that left no operator is listed and never called."""
        return dict(self.model.program.modules)

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None) -> Any:
        """One forward pass. Nothing is written to the model, its input or the random generators.

        Raises:
            UsageError: the arguments are not those of the model.
            RefusedError: a shape that the export does not allow.
        """
        generator_states = GeneratorStates.now(python=False) if self._random else GeneratorStates([])
        try:
            return self.model.execute(args, kwargs, tap)[0]
        finally:
            self.draws.add(generator_states.restore())

    def cast(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> ExportedNetwork:
        """An independent copy with floating-point parameters, buffers and constants converted.

        Tensors that the program makes out of nothing (``zeros``) follow; an explicit conversion of an
        activation (``x.float()``) stays as exported.
        """
        return ExportedNetwork(self.model.converted(device, dtype))

    def tensors(self) -> Iterator[Tensor]:
        """Parameters, buffers and constants, of any shape."""
        yield from self.model.parameters()
        yield from self.model.buffers()

    def warnings(self) -> list[str]:
        """Operators that were exported in training mode."""
        return training_mode_warnings(self.model.program.graph)

    def draws_random_numbers(self) -> bool:
        return draws_by_mode(self.model.program.graph)
