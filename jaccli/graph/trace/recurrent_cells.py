"""Cells of recurrent layers that accelerators run as one kernel, by the operators that they are made of.

Other operators have rules; these kernels, whose results are the same, have none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Cell = tuple[Tensor, ...]


def _lstm(given: Tensor, hidden: Tensor, c: Tensor, *biases: Tensor | None) -> Cell:
    """S. Hochreiter and J. Schmidhuber's cell as torch has it: the new h and c, ``(batch, n)``, and the gates.

    Args:
        given, hidden: ``(batch, 4 n)``: what the input and the state before say to the gates i, f, g and o.
        c: ``(batch, n)``.
        biases: of both, ``(4 n,)``.
    """
    for one in (hidden, *biases):
        given = given if one is None else given + one
    i, f, g, o = given.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    new = f * c + i * g
    return o * new.tanh(), new, torch.cat([i, f, g, o], 1)


def _gru(
    given: Tensor, hidden: Tensor, h: Tensor, given_bias: Tensor | None = None, hidden_bias: Tensor | None = None
) -> Cell:
    """K. Cho's cell as torch has it: the new h ``(batch, n)``, and what the kernel keeps for its backward pass.

    Args:
        given, hidden: ``(batch, 3 n)``: what the input and the state before say to the gates r, z and n.
        h: ``(batch, n)``.
        given_bias, hidden_bias: ``(3 n,)``.
    """
    given = given if given_bias is None else given + given_bias
    hidden = hidden if hidden_bias is None else hidden + hidden_bias
    (given_r, given_z, given_n), (hidden_r, hidden_z, hidden_n) = given.chunk(3, 1), hidden.chunk(3, 1)
    r, z = (given_r + hidden_r).sigmoid(), (given_z + hidden_z).sigmoid()
    n = (given_n + r * hidden_n).tanh()
    return n + z * (h - n), torch.cat([r, z, n, h, hidden_n], 1)


CELLS: dict[Any, Callable[..., Cell]] = {
    aten._thnn_fused_lstm_cell.default: _lstm,
    aten._thnn_fused_gru_cell.default: _gru,
}
