"""Rows of J, and products with it, by backward passes that can be differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.products import DoubleVjp, vjp, vjps
from jaccli.autograd.seeds import one_hot, spans
from jaccli.backward_graph.passes import missing_graph
from jaccli.errors import UnsupportedError
from jaccli.runtime.torch_errors import reason, reraise_out_of_memory
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass(frozen=True)
class Rows:
    """Products with J of one recorded pass, ``(batch, n_out)`` ↔ ``(batch, n_in)``.

    Args:
        target: ``(batch, *shape)``.
        source: the tensor in which the source activation lies.
        columns: of k gradients by ``source``, ``(k, *source.shape)``, those by the activation, ``(k, batch, n_in)``.
        mixes: a sample's target depends on other samples: rows are taken sample by sample.
        differentiable: results are to be differentiated again.
        single: rows are taken one by one.
    """

    target: Tensor
    source: Tensor
    columns: Callable[[Tensor], Tensor]
    mixes: bool
    differentiable: bool
    single: bool = False

    @property
    def n_in(self) -> int:
        """Elements of a sample's source."""
        # The activation may be a part of ``source``, as an index of it: only ``columns`` knows its size.
        return int(self._zeros(1).shape[2])

    def missing(self) -> str | None:
        """Where a backward pass leaves no graph of itself, without an error; None where it leaves one."""
        return missing_graph(self.target, (self.source,)) if self.target.requires_grad else None

    def images(self, v: Shaped[Tensor, "batch n k"], gram: bool) -> Shaped[Tensor, "batch _ k"]:
        """JᵀV; with ``gram`` JJᵀV, or JᵀJV of a J with fewer columns than rows.

        ``(batch, n, k)`` → ``(batch, n_in or n, k)``, vector by vector.
        """
        product = self._gram if gram else self.row
        return torch.stack([product(column.to(self.target.dtype)) for column in v.unbind(-1)], -1)

    def row(self, u: Shaped[Tensor, "batch n_out"]) -> Shaped[Tensor, "batch n_in"]:
        """Jᵀu: ``(batch, n_out)`` → ``(batch, n_in)``.

        Raises:
            UnsupportedError: an operator has no derivative, or no second one.
        """
        if not self.target.requires_grad:
            return self._zeros(1)[0]
        try:
            (row,) = vjp(
                self.target, (self.source,), u.reshape(self.target.shape), self.differentiable or u.requires_grad
            )
        except (RuntimeError, NotImplementedError) as error:
            reraise_out_of_memory(error)
            raise no_second(error) from error
        return self._zeros(1)[0] if row is None else self.columns(row[None])[0]

    def _gram(self, v: Shaped[Tensor, "batch n"]) -> Shaped[Tensor, "batch n"]:
        """JJᵀv, or JᵀJv of a J with fewer columns than rows: ``(batch, n)`` → ``(batch, n)``, n the smaller size.

        Where rows are taken one by one, J is made of them: its product needs no second derivative.
        """
        few_rows = self.target[0].numel() <= self.n_in
        if self.single:
            j = self.matrix()
            first, second = (j.mT, j) if few_rows else (j, j.mT)
            return (second @ (first @ v.unsqueeze(-1))).squeeze(-1)
        if few_rows:
            # u = v: the pass that gives Jᵀv is also the graph that J times it goes through.
            u = v.clone().requires_grad_()
            image = self.row(u)
            return self._by(image, u, image)
        return self.row(self.push(v))

    def push(self, v: Shaped[Tensor, "batch n_in"]) -> Shaped[Tensor, "batch n_out"]:
        """Jv: ``(batch, n_in)`` → ``(batch, n_out)``, see ``DoubleVjp``.

        Raises:
            UnsupportedError: there is no second derivative.
        """
        # Jᵀu is linear in u, so that any u does; ones, since kernels may treat zeros otherwise.
        u = torch.ones_like(self.target).reshape(self.target.shape[0], -1).requires_grad_()
        return self._by(self.row(u), u, v)

    def _by(
        self, image: Shaped[Tensor, "batch n_in"], u: Shaped[Tensor, "batch n_out"], w: Shaped[Tensor, "batch n_in"]
    ) -> Shaped[Tensor, "batch n_out"]:
        """J w from ``image`` = Jᵀu."""
        # Zeros without a graph: no path leads from the source. Other numbers without one are an error, below.
        if not image.requires_grad and not bool(image.any()):
            return torch.zeros_like(u)
        try:
            return DoubleVjp(image, u).jvp(w, create_graph=True)
        except (RuntimeError, NotImplementedError) as error:
            reraise_out_of_memory(error)
            raise no_second(error) from error

    def matrix(self) -> Shaped[Tensor, "batch n_out n_in"]:
        """J, ``(batch, n_out, n_in)``: n_out backward passes, as many at once as fit a cache."""
        # Seeds of one sample alone where samples mix: rows of the others would add to its own.
        parts = [slice(b, b + 1) for b in range(self.target.shape[0])] if self.mixes else [slice(None)]
        return torch.cat([self._block(part) for part in parts])

    def _block(self, samples: slice) -> Shaped[Tensor, "chosen n_out n_in"]:
        batch, n_out = self.target.shape[0], self.target[0].numel()
        row_bytes = defaults.ROW_TENSORS * batch * n_out * self.target.element_size()
        rows = [
            self._rows(one_hot(start, stop, batch, n_out, self.target, samples))[:, samples]
            for start, stop in spans(n_out, defaults.WORKING_SET // row_bytes)
        ]
        return torch.cat(rows).movedim(0, 1)

    def _zeros(self, count: int) -> Shaped[Tensor, "k batch n_in"]:
        return self.columns(torch.zeros_like(self.source).expand(count, *self.source.shape))

    def _rows(self, seeds: Shaped[Tensor, "k batch n_out"]) -> Shaped[Tensor, "k batch n_in"]:
        """Jᵀ times k cotangents, ``(k, batch, n_out)`` → ``(k, batch, n_in)``: together, else one by one."""
        cotangents = seeds.reshape(len(seeds), *self.target.shape)
        if len(seeds) > 1 and not self.single:
            try:
                (rows,) = vjps(self.target, (self.source,), cotangents, self.differentiable)
                return self._zeros(len(seeds)) if rows is None else self.columns(rows)
            except (RuntimeError, NotImplementedError) as error:
                reraise_out_of_memory(error)
        # One by one is also the way to a message: a batched pass fails for reasons of vmap too.
        return torch.stack([self.row(seed) for seed in seeds])


def no_second(error: BaseException) -> UnsupportedError:
    """The error where the graph cannot be differentiated once, or not again."""
    text = reason(error)
    # torch has no classes for these errors: parts of their messages tell them apart.
    if "use_reentrant" in str(error) or "heckpoint" in str(error):
        return UnsupportedError(
            "gradient checkpointing of this kind cannot be differentiated twice",
            "expected torch.utils.checkpoint.checkpoint(..., use_reentrant=False), and a source outside of it",
            text,
        )
    if "graph of itself" in text or "once_differentiable" in text:
        return UnsupportedError(
            f"no second derivative: {text}",
            "expected backward passes of torch's operators, without no_grad, once_differentiable or NumPy",
            "write that of the model's own function so, or take the value alone, under torch.no_grad()",
        )
    return UnsupportedError(
        f"no second derivative: {text}",
        "expected operators that can be differentiated twice",
        worded("{estimator:exact} needs only first derivatives where it sees the network's operators"),
    )


def wide(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """A tensor in float32 at least: sums of squares overflow and lose digits in shorter formats."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
