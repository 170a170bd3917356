"""The modules of a model as a tree to read attributes from: live, or a converted snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from jaccli.models.interpretation.nested import OncePerTensor
from jaccli.models.torchscript.script_objects import adopt, map_tensors

Convert = Callable[[Tensor], Tensor]
_UNSET = object()


@dataclass(eq=False)
class ModuleNode:
    """One module: its dotted path, TorchScript class, children, and a way to read its attributes."""

    path: str
    cls: str
    read: Callable[[str], Any]
    children: dict[str, ModuleNode] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)  # parameters and buffers, by name

    @property
    def type_name(self) -> str:
        """The name of the Python class that it was made from."""
        return self.cls.rpartition(".")[2]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute; ``default`` if there is none, or the class declares it and it was never set."""
        try:
            return self.read(name)
        except (RuntimeError, AttributeError, KeyError):
            return default

    def walk(self) -> Iterator[ModuleNode]:
        """This module and all below it, in ``named_modules()`` order."""
        yield self
        for child in self.children.values():
            yield from child.walk()


def live_tree(module: Any, in_unit: Any, path: str = "") -> ModuleNode:
    """The tree of a module; attributes are those the module has when they are read.

    Args:
        module: the model, a ``ScriptModule``, or one of its submodules.
        in_unit: the same module in the compilation unit whose graphs are run.
        path: its dotted path.
    """
    node = ModuleNode(path, in_unit._type().qualified_name(), module._c.getattr)
    node.tensors.update(module.named_parameters(recurse=False))
    node.tensors.update(module.named_buffers(recurse=False))
    for name, child in module._modules.items():
        if child is not None:
            below = f"{path}.{name}" if path else name
            node.children[name] = live_tree(child, in_unit.getattr(name), below)
    return node


def snapshot(root: ModuleNode, fields: set[tuple[str, str]], convert: Convert) -> ModuleNode:
    """An independent copy of a tree, with ``convert`` of every tensor.

    Args:
        root: the tree to copy.
        fields: ``(class, attribute)`` of everything that the code can read.
        convert: makes a new tensor of one; called once for each tensor, so that tied weights stay tied.
    """
    once = OncePerTensor(convert)

    def copy(node: ModuleNode) -> ModuleNode:
        # No code may read ``training`` or a parameter, and yet ``ScriptNetwork`` does.
        names = {name for cls, name in fields if cls == node.cls} | set(node.tensors) | {"training"}
        attributes = {name: node.get(name, _UNSET) for name in names - set(node.children)}
        values = {name: map_tensors(adopt(value), once) for name, value in attributes.items() if value is not _UNSET}
        children = {name: copy(child) for name, child in node.children.items()}
        tensors = {name: once(tensor) for name, tensor in node.tensors.items()}
        return ModuleNode(node.path, node.cls, values.__getitem__, children, tensors)

    return copy(root)
