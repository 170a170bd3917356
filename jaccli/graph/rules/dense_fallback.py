"""Operators whose derivative is taken as a matrix for each sample, by autograd through the operator alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor
from jaccli.graph.maps.matrix import Matrix
from jaccli.graph.rules.registry import Map, active, bound, normal, only_active, reshaped, rule
from jaccli.graph.trace.ir import CaptureGap, Node, Value, swap

# Beyond so many outputs a sample, passes through the whole network are no worse.
_MOST = 4096


# How many trailing dimensions are one problem: of the arguments that may be active, and of the first result.
_CORES: dict[str, tuple[dict[str, int], int]] = {
    "grid_sampler_2d": ({"input": 3, "grid": 3}, 3),
    "grid_sampler_3d": ({"input": 4, "grid": 4}, 4),
    "linalg_inv_ex": ({"A": 2}, 2),
    "linalg_det": ({"A": 2}, 0),
    "_linalg_det": ({"A": 2}, 0),
    "linalg_cholesky_ex": ({"self": 2}, 2),
    "cholesky": ({"self": 2}, 2),
    "linalg_matrix_exp": ({"self": 2}, 2),
    "cdist": ({"x1": 2, "x2": 2}, 2),
    "_cdist_forward": ({"x1": 2, "x2": 2}, 2),
    "_euclidean_dist": ({"x1": 2, "x2": 2}, 2),
    "triangular_solve": ({"self": 2, "A": 2}, 2),
    "linalg_solve_triangular": ({"self": 2, "B": 2}, 2),
    "linalg_solve_ex": ({"A": 2, "B": 2}, 2),
    "_linalg_solve_ex": ({"A": 2, "B": 2}, 2),
    "col2im": ({"self": 2}, 3),
}


@rule(*_CORES)
def by_sample(node: Node) -> list[Map]:
    """Its first dimension is the samples, in and out; all else is one matrix a sample."""
    name = node.name.removeprefix("aten.")
    cores, core = _CORES[name]
    found = only_active(node, *cores)
    if name.endswith("linalg_solve_ex") and found["B"].shape == found["A"].shape[:-1]:
        cores, core = {"A": 2, "B": 1}, 1  # a vector for each matrix
    return _matrices(node, {found[key]: n for key, n in cores.items() if active(found[key])}, core)


@rule("linalg_cross", "renorm", "_trilinear")
def by_dimension(node: Node) -> list[Map]:
    """The same for operators that say themselves which dimensions they mix."""
    name, found, out = node.name.removeprefix("aten."), bound(node), node.outputs[0]
    inputs = list(dict.fromkeys(v for v in node.inputs() if v.active))
    if name == "linalg_cross":
        apart = normal(found["dim"], len(out.shape)) != 0
    elif name == "renorm":
        apart = normal(found["dim"], len(out.shape)) == 0
    else:
        inserted = [d for i in (1, 2, 3) if found[f"i{i}"] in inputs for d in found[f"expand{i}"]]
        apart = 0 not in found["sumdim"] and 0 not in inserted
    return _matrices(node, {v: len(v.shape) - apart for v in inputs}, len(out.shape) - apart)


def _matrices(node: Node, cores: dict[Value, int], core: int) -> list[Map]:
    """A matrix for each sample and active argument.

    Args:
        node: the operator.
        cores: active argument → trailing dimensions of one problem; those before them are batches.
        core: the same of the result.

    Raises:
        CaptureGap: there are no batches, not the same ones everywhere, or the problem is large.
    """
    out = node.outputs[0]
    lead = len(out.shape) - core
    apart = lead > 0 and all(v.shape[:1] == out.shape[:1] and len(v.shape) - n == lead for v, n in cores.items())
    if not apart or math.prod(out.shape[1:]) > _MOST:
        raise CaptureGap(f"no rule for the operator {node.name} of this size")
    return [_map(node, value, out) for value in cores]


def _map(node: Node, value: Value, out: Value) -> Map:
    batch, n_in, n_out = value.shape[0], math.prod(value.shape[1:]), math.prod(out.shape[1:])

    def make() -> Tensor:
        leaf = value.tensor.detach().requires_grad_()
        with torch.enable_grad():
            result = node.op(*swap(node.args, lambda v: leaf if v is value else v.tensor), **node.kwargs)
            flat = (result[0] if isinstance(result, tuple | list) else result).reshape(batch, n_out)
            rows = [
                torch.autograd.grad(flat[:, i].sum(), leaf, retain_graph=True)[0].reshape(batch, n_in)
                for i in range(n_out)
            ]
        return torch.stack(rows, -1)

    flat_in, flat_out = (batch, n_in), (batch, n_out)
    matrix = Matrix(1, LazyTensor(make), (batch, n_in, n_out), (0,))
    return Map(value, out, (*reshaped(value.shape, flat_in), matrix, *reshaped(flat_out, out.shape)))
