"""A TorchScript model as a ``Network``: its graph is run operator by operator, outside its executor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from jaccli.errors import UnsupportedError
from jaccli.models.torchscript import binding
from jaccli.models.torchscript.program import FunctionTable, ScriptProgram
from jaccli.models.torchscript.run import ScriptRun
from jaccli.models.torchscript.script_objects import ScriptInstance, adopt, map_tensors
from jaccli.models.torchscript.state import ModuleNode, live_tree, snapshot
from jaccli.networks.dtypes import converted, renamed
from jaccli.networks.network import Network, Tap
from jaccli.networks.quantized import no_derivative, packed_modules
from jaccli.networks.state.fingerprint import Fingerprint
from jaccli.text.escape import quote

_DRAWS_WHEN_TRAINING = ("Dropout", "RReLU")
_NORMALISES_WHEN_TRAINING = ("BatchNorm", "InstanceNorm", "SyncBatchNorm")


class ScriptNetwork(Network):
    """A scripted, traced or frozen module with its layers in sight.

    TorchScript's own executor gives wrong derivatives in forward mode and allows no hooks; here every
    operator is an ordinary PyTorch call, so that ``vmap``, forward mode and double backward work.
    Overhead: some microseconds an operator. A module that was loaded by ``torch.jit.load`` itself is
    copied once through memory to get at its functions.

    Args:
        module: from ``torch.jit.script``, ``trace``, ``freeze`` or ``load``. It is never changed.

    Raises:
        UnsupportedError: the module has no ``forward``.
    """

    kind = "torchscript"

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        functions = FunctionTable(module)
        root = live_tree(module, functions.module_in_unit)
        self.packed = packed_modules(module.named_modules())
        self._setup(ScriptProgram(functions, root))

    def _setup(self, program: ScriptProgram) -> None:
        self._program, self._root = program, program.root
        forward = program.functions.function(f"{self._root.cls}.forward")
        if forward is None:
            raise UnsupportedError("the TorchScript model has no forward method", "a model that can be called")
        self._schema = forward.schema
        inputs = list(forward.graph.inputs())[1:]
        name = f"{self._root.cls}.forward"
        self._read_by: dict[str, list[str]] = {}
        for cls, attribute in sorted(program.writes.fields):
            self._read_by.setdefault(cls, []).append(attribute)
        self._written = [program.writes.value_is_written(name, value) for value in inputs]

    def layers(self) -> Mapping[str, str]:
        """Module path → type name such as ``Linear``, for every module but the root."""
        return {node.path: node.type_name for node in self._root.walk() if node.path}

    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None) -> Any:
        """One forward pass; see ``Network.run``.

        Arguments may be given by name; an argument the code writes to is copied first.

        Raises:
            UsageError: the arguments do not fit the signature.
            RefusedError: the model's own checks refuse the input.
            UnsupportedError: an operator that cannot be run here.
        """
        if self.packed:  # their objects are opaque to everything but the kernels that take them
            raise no_derivative(self.packed)
        bound = binding.bind(self._schema, args, kwargs)
        for i, dirty in enumerate(self._written):
            if dirty:
                bound[i] = map_tensors(bound[i], torch.Tensor.clone)
        forward = self._program.method(self._root.cls, "forward")
        run, grad_enabled = ScriptRun(self._program, tap), torch.is_grad_enabled()
        try:
            return forward(run, [run.module(self._root), *bound])
        finally:
            self.draws.add(run.finish())
            if torch.is_grad_enabled() != grad_enabled:  # left inside a no_grad block of the model's
                torch._C._set_grad_enabled(grad_enabled)

    def cast(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> ScriptNetwork:
        """An independent copy; casts to real dtypes that the code spells out stay as they are.

        Costs the memory of the model's tensors once more.
        """

        def convert(tensor: Tensor) -> Tensor:
            copy = converted(tensor.detach(), device, dtype, copy=True)
            return copy.requires_grad_(tensor.requires_grad and tensor.is_leaf)

        program = self._program
        root = snapshot(self._root, program.writes.fields, convert)
        other = ScriptNetwork.__new__(ScriptNetwork)
        chained = convert if program.convert is None else _composed(program.convert, convert)
        dtypes = renamed(program.dtypes, self.tensors(), dtype)
        other.packed = self.packed
        other._setup(ScriptProgram(program.functions, root, chained, device or program.device, dtypes))
        return other

    def tensors(self) -> Iterator[Tensor]:
        """Parameters and buffers of any shape, each once."""
        seen: set[int] = set()
        for node in self._root.walk():
            for tensor in node.tensors.values():
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield tensor

    def fingerprint(self, moving: Collection[int] = ()) -> Fingerprint:
        """Parameters, buffers, and every attribute that the code can read."""
        stamp = Fingerprint(moving)
        for node in self._root.walk():
            for name in self._read_by.get(node.cls, ()):
                if name not in node.children:
                    _add(stamp, node.get(name))
        return stamp

    def draws_random_numbers(self) -> bool:
        return any(map(_draws, self._root.walk()))

    def warnings(self) -> list[str]:
        """Layers whose training mode makes samples mix or results vary."""
        warnings = []
        for node in self._root.walk():
            kind = node.type_name
            if not node.get("training"):
                continue
            name = quote(node.path or kind, 60)[1:-1]
            if kind.startswith(_NORMALISES_WHEN_TRAINING):
                warnings.append(f"{name} ({quote(kind, 40)[1:-1]}) is in training mode: samples of a batch mix")
            elif _draws(node):
                warnings.append(f"{name} ({quote(kind, 40)[1:-1]}) is in training mode: results are random")
        return warnings


def _draws(node: ModuleNode) -> bool:
    named = any(part in node.type_name for part in _DRAWS_WHEN_TRAINING)
    return named and bool(node.get("training") and node.get("p", True))


def _add(stamp: Fingerprint, value: Any) -> None:
    """Objects of a script's own classes come in a new wrapper at each reading: what they hold counts."""
    if not isinstance(value, (Tensor, list, tuple, dict)):
        value = adopt(value)
    if isinstance(value, ScriptInstance):
        stamp.value(value.cls)
        for attribute in value.attrs.values():
            _add(stamp, attribute)
    else:
        stamp.value(value)


def _composed(first: Any, second: Any) -> Any:
    return lambda tensor: second(first(tensor))
