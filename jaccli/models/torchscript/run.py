"""One forward pass: the state that it reads, the calls that it reports, the random numbers that it draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from jaccli.models.interpretation.module_calls import CallReports
from jaccli.models.interpretation.nested import OncePerTensor, arrange
from jaccli.models.torchscript import item_limits
from jaccli.models.torchscript.compiler import CompiledGraph
from jaccli.models.torchscript.script_objects import ScriptInstance, adopt, map_tensors, protect
from jaccli.models.torchscript.state import ModuleNode
from jaccli.networks.network import Tap
from jaccli.networks.state.random_generators import GeneratorStates

if TYPE_CHECKING:
    from jaccli.models.torchscript.program import ScriptProgram


class ScriptRun:
    """What lasts for one forward pass.

    Invariant: attributes are read from the model and written only here, so a run changes nothing of the model.
    """

    __slots__ = ("_clone", "_copies", "_forward", "_modules", "_noise", "program", "reports")

    def __init__(self, program: ScriptProgram, tap: Tap | None) -> None:
        item_limits.start()
        self.program, self.reports = program, CallReports(tap)
        self._copies = getattr(tap, "gives_copies", False)
        self._modules: dict[int, ScriptInstance] = {}
        self._forward: list[bool] = []
        self._clone = OncePerTensor(torch.Tensor.clone)
        self._noise: GeneratorStates | None = None

    def module(self, node: ModuleNode) -> ScriptInstance:
        """The module of a node, one and the same for the whole run."""
        module = self._modules.get(id(node))
        if module is None:
            module = self._modules[id(node)] = ScriptInstance(node.cls, {}, node)
        return module

    def fetch(self, owner: ScriptInstance, name: str) -> Any:
        """An attribute that this run has not read yet."""
        node: ModuleNode = owner.node
        if name in node.children:
            value: Any = self.module(node.children[name])
        else:
            value = adopt(node.read(name))
            if self.program.writes.field_is_written(owner.cls, name):
                value = map_tensors(value, self._clone)
        owner.attrs[name] = value
        return value

    def wants(self, owner: ScriptInstance) -> bool:
        """Whether the tap is to see calls of this module."""
        return owner.node is not None and bool(owner.node.path) and self.reports.wants(owner.node.path)

    def call_layer(
        self, owner: ScriptInstance, function: Callable[..., Any], args: list[Any], written: list[bool]
    ) -> Any:
        """Call a module's forward and report it to the tap.

        Args:
            owner: the module.
            function: its compiled forward.
            args: the arguments, the module itself not among them.
            written: for each argument, and last for the output, whether the code may write to it in
                place. What the tap has put in there is cloned, unless it ``gives_copies``: it may be a leaf, or be
                kept by the tap.
        """
        if self._copies:
            written = [False] * len(written)
        path = owner.node.path
        traced = self.program.traced(function.name) if isinstance(function, CompiledGraph) else None
        call, changed = self.reports.enter(path, tuple(args) if traced is None else traced.open(args))
        flat = changed if traced is None else traced.close(changed)
        values = [protect(new, old) if dirty else new for new, old, dirty in zip(flat, args, written, strict=False)]
        if traced is None:
            result = function(self, [owner, *values])
            output = self.reports.leave(path, call, result)
            return protect(output, result) if written[-1] else output
        parts = traced.function(self, [owner, *values])
        result = arrange(traced.outputs, parts)
        output = self.reports.leave(path, call, result)
        return traced.result(parts, protect(output, result) if written[-1] else output)

    def remember_random(self) -> None:
        """Before the first random number: keep the generators' states, to put them back at the end."""
        if self._noise is None:
            self._noise = GeneratorStates.now(python=False)

    def enter_forward_mode(self, enabled: bool) -> None:
        """Begin a ``no_grad`` or ``enable_grad`` block of the model: forward mode does not heed them by itself."""
        self._forward.append(torch._C._is_fwd_grad_enabled())
        torch._C._set_fwd_grad_enabled(enabled)

    def leave_forward_mode(self) -> None:
        """End such a block."""
        torch._C._set_fwd_grad_enabled(self._forward.pop())

    def finish(self) -> list[str]:
        """Put the random generators back, and leave the blocks that an exception jumped out of.

        Returns:
            The generators that were drawn from.
        """
        while self._forward:
            self.leave_forward_mode()
        return self._noise.restore() if self._noise is not None else []
