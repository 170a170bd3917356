"""Graphs of TorchScript → lists of instructions.

A compiled function is a template of a frame (its slots, filled with the constants) and a list of instructions.

Invariants: each value of the graph has one slot, and one instruction defines it (the graph is in SSA form); values
of nested blocks have theirs in the frame of the function. Slot 0 is the run, the next ones are the arguments. The slot
of a constant is filled in the template and never written. A slot is emptied only by the function's outermost block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jaccli.models.interpretation.last_use import expiring
from jaccli.models.screening.enumerations import DTYPE_NUMBERS, DTYPES
from jaccli.models.torchscript import control
from jaccli.models.torchscript.instructions import CallFrame, FrameInstruction, apply, drawing, release
from jaccli.models.torchscript.operators import draws, resolve, schema_of, takes_number, unknown
from jaccli.models.torchscript.script_types import carries_tensors
from jaccli.networks.dtypes import follows

if TYPE_CHECKING:
    from jaccli.models.torchscript.program import ScriptProgram
    from jaccli.models.torchscript.run import ScriptRun


class CompiledGraph:
    """A function that can be run: ``compiled(run, args)`` gives its return value."""

    __slots__ = ("name", "output", "steps", "template")

    def __init__(self, name: str, template: CallFrame, steps: list[FrameInstruction], output: int) -> None:
        self.name, self.template, self.steps, self.output = name, template, steps, output

    def __call__(self, run: ScriptRun, args: list[Any]) -> Any:
        """Run the function on its arguments, for a method the object first."""
        frame = self.template.copy()  # one for each call: a function may call itself
        frame[0] = run
        frame[1 : len(args) + 1] = args
        for step in self.steps:
            step(frame)
        return frame[self.output]


class GraphCompiler:
    """Compiles one graph; the emitters in ``control`` and ``emit_values`` use it to place values and nested blocks."""

    def __init__(self, program: ScriptProgram, name: str, graph: Any) -> None:
        self.program, self.name = program, name
        self.template: CallFrame = [None]
        self.constants: dict[int, Any] = {}
        self._numbers: dict[int, Any] = {}
        self._slots: dict[int, int] = {}
        inputs = [self.slot(value) for value in graph.inputs()]
        # The module or object whose method this is; the body of a fork has none.
        self.receiver = inputs[0] if inputs and "/" not in name else None

    def slot(self, value: Any) -> int:
        """The slot of a value of the graph."""
        key = value.unique()
        if key not in self._slots:
            self._slots[key] = len(self.template)
            self.template.append(None)
        return self._slots[key]

    def slots(self, values: Any) -> list[int]:
        """The slots of several values."""
        return [self.slot(value) for value in values]

    def constant(self, value: Any, content: Any) -> None:
        """Put a constant into its slot once and for all."""
        self.constants[value.unique()] = content
        self.template[self.slot(value)] = content

    def number(self, value: Any, content: Any) -> None:
        """Note what a constant tensor without dimensions holds, for the operators that take it for a number."""
        self._numbers[value.unique()] = content

    def written(self, value: Any) -> bool:
        """Whether the code may write to this value in place."""
        return self.program.writes.value_is_written(self.name, value)

    def subgraph(self, node: Any) -> CompiledGraph:
        """The function that a ``prim::fork`` node carries with it."""
        return compile_graph(self.program, f"{self.name}/{node.output().unique()}", node.g("Subgraph"))

    def block(self, block: Any, release_values: bool = False, keep: Iterable[Any] = ()) -> list[FrameInstruction]:
        """The steps of a block; with ``release_values`` all but ``keep`` are let go after their last use."""
        nodes = list(block.nodes())
        # Not in a nested block: it may run again, and reads values of the blocks around it.
        expired = _expiring(nodes, [*block.outputs(), *keep]) if release_values else {}
        steps: list[FrameInstruction] = []
        for index, node in enumerate(nodes):
            step = self._emit(node)
            if step is not None:
                steps.append(step)
            if index in expired:
                steps.append(release(self.slots(expired[index])))
        return steps

    def _emit(self, node: Any) -> FrameInstruction | None:
        emitter = control.EMITTERS.get(node.kind())
        if emitter is not None:
            return emitter(self, node)
        if next(iter(node.blocks()), None) is not None:
            raise unknown(node.kind())
        inputs = list(node.inputs())
        cast = self._cast(node, inputs) if self.program.dtypes else {}
        fn, count = resolve(node, {**self.constants, **cast} if cast else self.constants)
        slots = self.slots(inputs[:count])
        for place, value in enumerate(inputs[:count]):
            if value.unique() in cast:
                slots[place] = self._fixed(cast[value.unique()])
        # The number as the trace wrote it, which the cast of a converted copy has not rounded.
        if takes_number(node) and inputs[1].unique() in self._numbers:
            slots[1] = self._fixed(self._numbers[inputs[1].unique()])
        step = apply(fn, slots, self.slots(node.outputs()))
        random, switch = draws(node)
        return drawing(step, None if switch is None else self.slot(inputs[switch])) if random else step

    def _fixed(self, content: Any) -> int:
        self.template.append(content)
        return len(self.template) - 1

    def _cast(self, node: Any, inputs: list[Any]) -> dict[int, int]:
        """Constant dtypes among the inputs of a node that follow the model's own, as they are where it is cast."""
        schema, changed = schema_of(node), dict[int, int]()
        operator, dtypes = node.kind().partition("::")[2], self.program.dtypes
        constant = bool(inputs) and inputs[0].node().kind() == "prim::Constant"
        for argument, value in zip(schema.arguments if schema is not None else (), inputs, strict=False):
            number = self.constants.get(value.unique())
            kind = DTYPES.get(number) if argument.name == "dtype" and type(number) is int else None
            if kind is not None and kind in dtypes and follows(operator, kind, dtypes[kind], constant=constant):
                changed[value.unique()] = DTYPE_NUMBERS[dtypes[kind]]
        return changed


def compile_graph(program: ScriptProgram, name: str, graph: Any) -> CompiledGraph:
    """Compile one function's graph."""
    compiler = GraphCompiler(program, name, graph)
    steps = compiler.block(graph, release_values=True)
    outputs = compiler.slots(graph.outputs())
    if len(outputs) != 1:
        raise unknown(f"a function with {len(outputs)} outputs")
    return CompiledGraph(name, compiler.template, steps, outputs[0])


def _expiring(nodes: list[Any], lasting: Iterable[Any]) -> dict[int, list[Any]]:
    """Index of a node → the tensors made in its block that nobody reads after it; never the ``lasting`` ones."""
    defined = {
        value.unique(): value
        for node in nodes
        if node.kind() != "prim::Constant"
        for value in node.outputs()
        if carries_tensors(value)
    }
    uses = (defined.keys() & (_used(node) | {value.unique() for value in node.outputs()}) for node in nodes)
    expired = expiring(uses, {value.unique() for value in lasting})
    return {index: [defined[key] for key in keys] for index, keys in expired.items()}


def _used(node: Any) -> set[int]:
    used = {value.unique() for value in node.inputs()}
    for block in node.blocks():
        used |= {value.unique() for value in block.outputs()}
        for inner in block.nodes():
            used |= _used(inner)
    return used
