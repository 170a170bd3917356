"""Screen the graphs of a loaded archive: every operator in them is on a list, or the archive is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from jaccli.models.interpretation.replaced_operators import IN_SCRIPTS
from jaccli.models.screening.operator_names import not_permitted, permitted, writes_out
from jaccli.models.torchscript import control, natives
from jaccli.models.torchscript.archive_pickles import refuse
from jaccli.models.torchscript.inplace_writes import walk
from jaccli.models.torchscript.operators import schema_of
from jaccli.text.escape import quote

# Nodes and operators that this package runs itself.
_OURS: Final = frozenset(
    {
        *control.EMITTERS,
        *natives.ALWAYS,
        *natives.SCALARS,
        *natives.CONTAINERS,
        *natives.PLAIN_CONTAINERS,
        *IN_SCRIPTS,
    }
)

# These only compute; PyTorch's own operators run for them.
_PRIM: Final = {
    "prim::NumToTensor", "prim::data", "prim::device", "prim::dtype", "prim::grad", "prim::index",
    "prim::is_cpu", "prim::is_cuda", "prim::is_ipu", "prim::is_meta", "prim::is_mkldnn", "prim::is_mps",
    "prim::is_mtia", "prim::is_nested", "prim::is_quantized", "prim::is_sparse", "prim::is_sparse_csr",
    "prim::is_vulkan", "prim::is_xla", "prim::is_xpu", "prim::is_maia", "prim::itemsize", "prim::layout",
    "prim::name", "prim::nbytes", "prim::requires_grad", "prim::type", "prim::EnumName", "prim::EnumValue",
}  # fmt: skip


def screen_graphs(unit: Any, path: Path) -> None:
    """Refuse a module whose functions use operators that do more than compute.

    Args:
        unit: the compilation unit that the archive was loaded into.
        path: the archive, for the message.

    Raises:
        RefusedError: names the operator.
    """
    for function in unit.get_functions():
        if function.name in {"__setstate__", "__getstate__"}:
            raise refuse(path, f"runs code of its own when it is loaded or saved ({function.name})")
        for node in _everything(function.graph):
            if not _is_permitted(node):
                raise not_permitted(quote(path, 200), quote(node.kind(), 60))
            if any(str(value.type()).startswith("__torch__.torch.classes") for value in node.outputs()):
                raise refuse(path, f"holds native objects ({quote(node.kind(), 60)[1:-1]})")


def _everything(graph: Any) -> Iterator[Any]:
    for node in walk(graph):
        yield node
        if node.hasAttribute("Subgraph"):
            yield from _everything(node.g("Subgraph"))


def _is_permitted(node: Any) -> bool:
    kind: str = node.kind()
    schema = schema_of(node)
    if schema is not None and writes_out(schema):
        return False
    if kind in _OURS or kind in _PRIM:
        return True
    return schema is not None and permitted(schema, script=True)
