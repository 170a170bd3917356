"""Operators whose derivative is taken as a matrix for each sample, by autograd through the operator alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from jaccli.graph.primitives import Late, Matrix
from jaccli.graph.recorder import CaptureGap, Node, Value, swap
from jaccli.graph.rules import Map, reshaped, rule

# Beyond so many outputs a sample, passes through the whole network are no worse.
_MOST = 4096


@rule(
    "grid_sampler_2d",
    "grid_sampler_3d",
    "_trilinear",
    "linalg_inv_ex",
    "inverse",
    "linalg_solve_ex",
    "linalg_det",
    "_linalg_det",
    "linalg_cholesky_ex",
    "cholesky",
    "linalg_matrix_exp",
    "cdist",
    "_cdist_forward",
    "_pdist_forward",
    "renorm",
    "linalg_cross",
    "triangular_solve",
    "linalg_solve_triangular",
    "_embedding_bag",
    "im2col",
    "col2im",
    "_euclidean_dist",
)
def by_sample(node: Node) -> list[Map]:
    """Its first dimension is the samples, in and out; all else is one matrix a sample."""
    out = node.outputs[0]
    inputs = list(dict.fromkeys(v for v in node.inputs() if v.active))
    batch = out.shape[0] if out.shape else 0
    count = math.prod(out.shape[1:])
    if count > _MOST or any(v.shape[:1] != (batch,) for v in inputs):
        raise CaptureGap(f"no rule for the operator {node.name} of this size")
    return [_map(node, value, out) for value in inputs]


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
    matrix = Matrix(1, Late(make), (batch, n_in, n_out), (0,))
    return Map(value, out, (*reshaped(value.shape, flat_in), matrix, *reshaped(flat_out, out.shape)))
