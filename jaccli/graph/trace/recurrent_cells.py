"""Cells of recurrent layers that accelerators run as one kernel, in terms of operators that have rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
Cell = tuple[Tensor, ...]


def _lstm(x: Tensor, hidden: Tensor, c: Tensor, *biases: Tensor | None) -> Cell:
    """LSTM cell (S. Hochreiter and J. Schmidhuber 1997): c' = σ(f) c + σ(i) tanh(g), h' = σ(o) tanh(c').

    Args:
        x: ``(batch, 4 n)``: the input's part of i, f, g and o.
        hidden: likewise, of the state before.
        c: ``(batch, n)``.
        biases: of both parts, ``(4 n,)``.

    Returns:
        h' and c', ``(batch, n)``, and the gates, ``(batch, 4 n)``.
    """
    for term in (hidden, *biases):
        x = x if term is None else x + term
    i, f, g, o = x.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    new = f * c + i * g
    return o * new.tanh(), new, torch.cat([i, f, g, o], 1)


def _gru(x: Tensor, hidden: Tensor, h: Tensor, x_bias: Tensor | None = None, hidden_bias: Tensor | None = None) -> Cell:
    """GRU cell (K. Cho et al. 2014, as torch has it): h' = n + z (h - n), n = tanh(nₓ + r nₕ), r and z sigmoids.

    Args:
        x: ``(batch, 3 n)``: the input's part of r, z and n.
        hidden: likewise, of the state before.
        h: ``(batch, n)``.
        x_bias: ``(3 n,)``.
        hidden_bias: ``(3 n,)``.

    Returns:
        h', ``(batch, n)``, and what the kernel keeps for its backward pass, ``(batch, 5 n)``.
    """
    x = x if x_bias is None else x + x_bias
    hidden = hidden if hidden_bias is None else hidden + hidden_bias
    (x_r, x_z, x_n), (hidden_r, hidden_z, hidden_n) = x.chunk(3, 1), hidden.chunk(3, 1)
    r, z = (x_r + hidden_r).sigmoid(), (x_z + hidden_z).sigmoid()
    n = (x_n + r * hidden_n).tanh()
    return n + z * (h - n), torch.cat([r, z, n, h, hidden_n], 1)


CELLS: dict[Any, Callable[..., Cell]] = {
    aten._thnn_fused_lstm_cell.default: _lstm,
    aten._thnn_fused_gru_cell.default: _gru,
}
