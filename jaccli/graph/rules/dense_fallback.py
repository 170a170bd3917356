"""Operators whose derivative is a dense matrix for each sample, by autograd through the operator alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jaccli.graph.maps.base import LazyTensor
from jaccli.graph.maps.matrix import Matrix
from jaccli.graph.rules.registry import Map, active, arguments, local_rows, only_active, rule
from jaccli.graph.rules.steps import from_front, reshaped
from jaccli.graph.trace.ir import CaptureGap, Node, Value

# With more outputs than this for each sample, passes through the whole network are no worse.
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
    """y[b] = f(x[b]): ∂y[b]/∂x[b], where dimension 0 is the samples of arguments and result."""
    cores, core = _CORES[node.short_name]
    args = only_active(node, *cores)
    if node.short_name.endswith("linalg_solve_ex") and args["B"].shape == args["A"].shape[:-1]:
        cores, core = {"A": 2, "B": 1}, 1  # a vector for each matrix
    return _matrices(node, {args[key]: n for key, n in cores.items() if active(args[key])}, core)


@rule("linalg_cross renorm _trilinear")
def by_dimension(node: Node) -> list[Map]:
    """y[b] = f(x[b]), as above, of operators whose arguments say which dimensions they mix."""
    args, out = arguments(node), node.outputs[0]
    inputs = list(dict.fromkeys(v for v in node.inputs() if v.active))
    if node.short_name == "linalg_cross":
        samples_stay_apart = from_front(args["dim"], len(out.shape)) != 0
    elif node.short_name == "renorm":
        samples_stay_apart = from_front(args["dim"], len(out.shape)) == 0
    else:
        inserted = [d for i in (1, 2, 3) if args[f"i{i}"] in inputs for d in args[f"expand{i}"]]
        samples_stay_apart = 0 not in args["sumdim"] and 0 not in inserted
    return _matrices(node, {v: len(v.shape) - samples_stay_apart for v in inputs}, len(out.shape) - samples_stay_apart)


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
    same_batches = all(v.shape[:1] == out.shape[:1] and len(v.shape) - n == lead for v, n in cores.items())
    if lead <= 0 or not same_batches or math.prod(out.shape[1:]) > _MOST:
        raise CaptureGap(f"no rule for the operator {node.name} of this size")
    return [_map(node, value, out) for value in cores]


def _map(node: Node, value: Value, out: Value) -> Map:
    batch, n_in, n_out = value.shape[0], math.prod(value.shape[1:]), math.prod(out.shape[1:])

    def make() -> Tensor:
        rows = local_rows(node, value, lambda result, i: result.reshape(batch, n_out)[:, i], n_out)
        return torch.stack([row.reshape(batch, n_in) for row in rows], -1)

    flat_in, flat_out = (batch, n_in), (batch, n_out)
    matrix = Matrix(1, LazyTensor(make), (batch, n_in, n_out), (0,))
    return Map(value, out, (*reshaped(value.shape, flat_in), matrix, *reshaped(flat_out, out.shape)))
