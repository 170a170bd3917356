"""The graphs of a loaded archive: which operators they use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaccli.models.operator_names import forbidden
from jaccli.models.script import control, fused, natives
from jaccli.models.script.aliases import walk
from jaccli.models.script.pickles import refuse
from jaccli.models.script.values import printable

_NAMESPACES = {"aten", "quantized", "_quantized"}
_FILES = {"aten::from_file", "aten::save"}

# Without bounds checks, or reaching into PyTorch's own state.
_UNSAFE = {
    "aten::_unsafe_index", "aten::_unsafe_index_put", "aten::_unsafe_masked_index",
    "aten::_unsafe_masked_index_put_accumulate", "aten::_sparse_coo_tensor_unsafe",
    "aten::_sparse_compressed_tensor_unsafe", "aten::_sparse_csr_tensor_unsafe",
    "aten::_sparse_csc_tensor_unsafe", "aten::_sparse_bsr_tensor_unsafe", "aten::_sparse_bsc_tensor_unsafe",
    "aten::_nested_view_from_buffer", "aten::_nested_view_from_jagged", "aten::set_data",
    "aten::_cufft_set_plan_cache_max_size", "aten::_cufft_clear_plan_cache",
}  # fmt: skip

# Computes, and is run through PyTorch's own operator table.
_PRIM = {
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
            what = _verdict(node)
            if what:
                raise refuse(path, f"{what} ({printable(node.kind(), 60)})")


def _everything(graph: Any) -> Iterator[Any]:
    for node in walk(graph):
        yield node
        if node.hasAttribute("Subgraph"):
            yield from _everything(node.g("Subgraph"))


def _verdict(node: Any) -> str:
    kind: str = node.kind()
    if kind in _FILES:
        return "reads or writes other files"
    if kind in _UNSAFE or kind.startswith("aten::_test"):
        return "uses an operator that is not safe"
    known = kind in control.EMITTERS or kind in natives.ALWAYS or kind in natives.SCALARS
    ours = known or kind in natives.CONTAINERS or kind in fused.REPLACED
    namespace, _, name = kind.partition("::")
    if namespace == "aten" and not ours and forbidden(name):
        return "uses an operator that is not safe"
    if kind.startswith("prim::"):
        return (
            "" if known or kind in fused.REPLACED or kind in _PRIM else "uses an operator that is not known to be safe"
        )
    if kind.partition("::")[0] not in _NAMESPACES:
        return "uses an operator that is not PyTorch's own"
    if any(str(value.type()).startswith("__torch__.torch.classes") for value in node.outputs()):
        return "holds native objects"
    return ""
