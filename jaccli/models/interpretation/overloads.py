"""Operators of this PyTorch by name."""

from __future__ import annotations

import torch
from torch._ops import OpOverload, OpOverloadPacket


def find_packet(namespace: str, name: str) -> OpOverloadPacket | None:
    """``("aten", "add")`` → all overloads of ``aten::add``; None where there is no such operator."""
    packet = getattr(getattr(torch.ops, namespace), name, None)
    return packet if isinstance(packet, OpOverloadPacket) else None


def find_overload(namespace: str, name: str, overload: str = "") -> OpOverload | None:
    """``("aten", "add", "Tensor")`` → ``torch.ops.aten.add.Tensor``; None where there is no such operator."""
    operator = getattr(find_packet(namespace, name), overload or "default", None)
    return operator if isinstance(operator, OpOverload) else None
