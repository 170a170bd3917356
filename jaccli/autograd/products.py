"""Products with J by backward passes through a graph that exists: Jᵀu, several at once, and Jv by two passes.

Every pass keeps the graph (``retain_graph``). None in a result: no path leads from that source to the target.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Shaped


def batching_imported() -> bool:
    """Whether torch has imported sympy (0.4 s), as it does at the first pass that takes a cotangent or is batched."""
    return "torch.fx.experimental.symbolic_shapes" in sys.modules


def vjp(
    target: Shaped[Tensor, "*target"],
    sources: Sequence[Tensor],
    cotangent: Shaped[Tensor, "*target"],
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """Jᵀu by one backward pass: a cotangent of the target's shape → for each source a tensor of its shape.

    The first ``torch.autograd.grad`` of a process that takes a cotangent imports sympy (see ``batching_imported``). The
    gradient of the inner product ⟨target, u⟩ is the same and imports nothing, so it is taken until sympy is imported.
    Not where u is a result itself: the inner product would be differentiated by what u was computed from as well.
    """
    if batching_imported() or cotangent.grad_fn is not None:
        return torch.autograd.grad(target, sources, cotangent, True, create_graph, allow_unused=True)
    with torch.enable_grad():
        # A caller's vector of inference mode cannot be saved for a backward pass; a copy of it can.
        inner = (target * (cotangent.clone() if cotangent.is_inference() else cotangent)).sum()
    return torch.autograd.grad(inner, sources, None, True, create_graph, allow_unused=True)


def vjps(
    target: Shaped[Tensor, "*target"],
    sources: Sequence[Tensor],
    cotangents: Shaped[Tensor, "k *target"],
    create_graph: bool = False,
) -> tuple[Tensor | None, ...]:
    """k backward passes in one, by vmap: ``(k, *target.shape)`` → for each source ``(k, *source.shape)``."""
    with quiet_vmap():
        return torch.autograd.grad(
            target, sources, cotangents, True, create_graph, allow_unused=True, is_grads_batched=True
        )


class NoSecondDerivative(NotImplementedError):
    """A backward pass left no graph of itself, so that it cannot be differentiated."""

    def __init__(self) -> None:
        super().__init__("the backward pass leaves no graph of itself")


@dataclass(frozen=True)
class DoubleVjp:
    """Jv without forward mode: Jᵀu is linear in u, and its derivative by u along v is Jv (J. Townsend, 2017).

    Cost: the pass that gave ``pulled``, and one more through it for each v.

    Args:
        pulled: Jᵀu, of any shape, with a graph that leads to u (``create_graph``).
        u: the cotangent, which requires gradients.
    """

    pulled: Tensor
    u: Tensor

    def jvp(self, v: Tensor, create_graph: bool = False) -> Tensor:
        """Jv: a tangent of the shape of ``pulled`` → a tensor of the shape of u.

        Raises:
            NoSecondDerivative: the backward pass left no graph of itself.
        """
        return self._with_path(vjp(self.pulled, (self.u,), v, create_graph)[0])

    def jvps(self, v: Tensor) -> Tensor:
        """k of them in one batched pass: ``(k, *pulled.shape)`` → ``(k, *u.shape)``.

        Raises:
            NoSecondDerivative: the backward pass left no graph of itself.
        """
        return self._with_path(vjps(self.pulled, (self.u,), v)[0])

    @staticmethod
    def _with_path(image: Shaped[Tensor, "*shape"] | None) -> Shaped[Tensor, "*shape"]:
        if image is None:
            raise NoSecondDerivative
        return image


@contextmanager
def quiet_vmap() -> Iterator[None]:
    """Without torch's warning that an operator has no batching rule and is run one row at a time: slower, not wrong."""
    with warnings.catch_warnings():
        # By message and not by module: torch warns from C++, with the module of whoever called.
        warnings.filterwarnings("ignore", message=".*batching rule.*")
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=DeprecationWarning)
        yield
