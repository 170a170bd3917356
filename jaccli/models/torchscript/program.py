"""The code of a model: its functions, compiled once each, and what they may write to."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from jaccli.errors import UnsupportedError
from jaccli.models.interpretation.replaced_operators import SWITCHED_OFF
from jaccli.models.torchscript.compiler import CompiledGraph, compile_graph
from jaccli.models.torchscript.inplace_writes import WriteAnalysis
from jaccli.models.torchscript.state import ModuleNode
from jaccli.models.torchscript.traced import Traced, restore
from jaccli.text.escape import quote

# Where the functions of a loaded module are; torch.jit.load itself forgets it.
_units: WeakKeyDictionary[torch.jit.ScriptModule, Any] = WeakKeyDictionary()


def remember_unit(module: torch.jit.ScriptModule, unit: Any) -> None:
    """Note the compilation unit that a module was loaded into."""
    _units[module] = unit


class FunctionTable:
    """The functions of one model by qualified name."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._unit, self.module_in_unit = _unit_of(module)
        self._methods: dict[str, Any] = {}
        self._classes = sorted({c._type().qualified_name() for c in _modules(self.module_in_unit)})
        if self._unit is None:
            self._methods = _own_methods(self.module_in_unit)

    def function(self, name: str) -> Any:
        """A function or method with ``.graph`` and ``.schema``, None if there is no such."""
        if self._unit is None:
            return self._methods.get(name)
        return self._unit.find_function(name)

    def graph(self, name: str) -> Any:
        """The graph of a function or method, None if there is no such."""
        function = self.function(name)
        return None if function is None else function.graph

    def implementations(self, method: str) -> list[str]:
        """All methods of that name among the model's modules."""
        names = [f"{cls}.{method}" for cls in self._classes]
        return [name for name in names if self.graph(name) is not None]


class ScriptProgram:
    """The functions of a model, compiled on first use.

    Args:
        functions: the functions, as graphs.
        root: the modules, to read attributes from.
        convert: for a converted copy, how constant tensors change.
        device: for a converted copy, where its constants are.
        dtypes: for a converted copy, the dtypes that changed: old → new.
    """

    def __init__(
        self, functions: FunctionTable, root: ModuleNode, convert: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None, dtypes: Mapping[torch.dtype, torch.dtype] | None = None,
    ) -> None:  # fmt: skip
        """See the class; ``convert`` takes a tensor of any shape."""
        self.functions, self.root = functions, root
        self.convert, self.device, self.dtypes = convert, device, dtypes or {}
        self.writes = WriteAnalysis(functions, f"{root.cls}.forward")
        self._compiled: dict[str, CompiledGraph] = {}
        self._methods: dict[tuple[str, str], CompiledGraph] = {}
        self._traced: dict[str, Traced | None] = {}

    def method(self, cls: str, name: str) -> CompiledGraph:
        """A method, by the class of the object it is called on."""
        method = self._methods.get((cls, name))
        if method is None:
            method = self._methods[cls, name] = self.function(f"{cls}.{name}")
        return method

    def traced(self, name: str) -> Traced | None:
        """A method whose trace lost the structure of the module's value, with that structure."""
        if name not in self._traced:
            graph = self.functions.graph(name)
            self._traced[name] = None if graph is None else restore(self, name, graph)
        return self._traced[name]

    def function(self, name: str) -> CompiledGraph:
        """A function by its qualified name.

        Raises:
            UnsupportedError: the model holds no code for it.
        """
        if name not in self._compiled:
            graph = self.functions.graph(name)
            if graph is None:
                raise UnsupportedError(
                    f"the model calls {quote(name, 120)}, of which it holds no code",
                    "expected a file that holds all of its functions",
                    "save the model again with torch.jit.save",
                )
            self._compiled[name] = compile_graph(self, name, graph)
            if name.removeprefix("__torch__.") in SWITCHED_OFF:
                self._compiled[name] = CompiledGraph(name, [None, False], [], 1)
        return self._compiled[name]


def _unit_of(module: torch.jit.ScriptModule) -> tuple[Any, Any]:
    """The compilation unit with a module's functions, and the module as that unit knows it."""
    if module in _units:
        return _units[module], module._c
    # Scripted or traced in this process: PyTorch has one unit for all of those. Another module may have the name there.
    ours = torch.jit._state._python_cu
    name = f"{module._c._type().qualified_name()}.forward"
    found = ours.find_function(name)
    if found is not None and next(found.graph.inputs()).type() == module._c._type():
        return ours, module._c
    # Loaded by the user: the functions that its methods call are out of reach, but a copy has them.
    buffer = io.BytesIO()
    load: Any = torch._C.import_ir_module_from_buffer  # its stub lacks the last argument
    try:
        torch.jit.save(module, buffer)
        unit = torch._C.CompilationUnit()
        copy = load(unit, buffer.getvalue(), None, {}, False)
    except RuntimeError:
        return None, module._c
    return unit, copy


def _modules(handle: Any) -> list[Any]:
    children = [child for _, child in torch._C.ModuleDict(handle).items()]
    return [handle, *(inner for child in children for inner in _modules(child))]


def _own_methods(module: Any) -> dict[str, Any]:
    methods = {}
    for handle in _modules(module):
        cls = handle._type().qualified_name()
        methods.update({f"{cls}.{name}": handle._get_method(name) for name in handle._method_names()})
    return methods
