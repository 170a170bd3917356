"""Maps made of maps: transposed, scaled, summed, composed; the identity; matrices that are there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jaccli.errors import UsageError
from jaccli.operators.linear_map import LinearMap


class Derived(LinearMap):
    """With the dtype and device of another."""

    base: LinearMap

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.base.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device


@dataclass(frozen=True, repr=False)
class Transposed(Derived):
    """Jᵀ: the same products, the other way round."""

    base: LinearMap

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, n_out, n_in = self.base.shape
        return batch, n_in, n_out

    @property
    def T(self) -> LinearMap:  # noqa: N802
        return self.base

    def forth(self, v: Tensor) -> Tensor:
        return self.base.back(v)

    def back(self, u: Tensor) -> Tensor:
        return self.base.forth(u)

    def sample(self, b: int) -> LinearMap:
        return Transposed(self.base.sample(b))

    def __repr__(self) -> str:
        return f"{self.base!r}.T"


@dataclass(frozen=True, repr=False)
class Scaled(Derived):
    """cJ."""

    base: LinearMap
    factor: float

    def forth(self, v: Tensor) -> Tensor:
        return self.factor * self.base.forth(v)

    def back(self, u: Tensor) -> Tensor:
        return self.factor * self.base.back(u)

    def sample(self, b: int) -> LinearMap:
        return Scaled(self.base.sample(b), self.factor)

    def __repr__(self) -> str:
        return f"{self.factor:g} * {self.base!r}"


@dataclass(frozen=True, repr=False)
class Sum(Derived):
    """A + cB."""

    base: LinearMap
    other: LinearMap
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.base.shape != self.other.shape:
            raise UsageError(f"maps of shape {self.base.shape} and {self.other.shape}", "expected equal shapes")

    def forth(self, v: Tensor) -> Tensor:
        return torch.add(self.base.forth(v), self.other.forth(v).to(self.device, self.dtype), alpha=self.factor)

    def back(self, u: Tensor) -> Tensor:
        return torch.add(self.base.back(u), self.other.back(u).to(self.device, self.dtype), alpha=self.factor)

    def sample(self, b: int) -> LinearMap:
        return Sum(self.base.sample(b), self.other.sample(b), self.factor)

    def __repr__(self) -> str:
        sign = "+" if self.factor > 0 else "-"
        return f"({self.base!r} {sign} {self.other!r})"


@dataclass(frozen=True, repr=False)
class Composed(Derived):
    """BA: first A, then B, as of layer pairs that meet."""

    base: LinearMap
    first: LinearMap

    def __post_init__(self) -> None:
        (batch, _, inner), (other, meets, _) = self.base.shape, self.first.shape
        if (batch, inner) != (other, meets):
            raise UsageError(
                f"a map of shape {self.base.shape} after one of shape {self.first.shape}",
                "expected the same samples, and as many columns as the other has rows",
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        return *self.base.shape[:2], self.first.shape[2]

    def forth(self, v: Tensor) -> Tensor:
        return self.base.forth(self.first.forth(v).to(self.device, self.dtype))

    def back(self, u: Tensor) -> Tensor:
        return self.first.back(self.base.back(u).to(self.first.device, self.first.dtype))

    def sample(self, b: int) -> LinearMap:
        return Composed(self.base.sample(b), self.first.sample(b))

    def __repr__(self) -> str:
        return f"({self.base!r} @ {self.first!r})"


class Identity(LinearMap):
    """I."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._shape, self._dtype, self._device = shape, dtype, device

    @property
    def shape(self) -> tuple[int, int, int]:
        return self._shape

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def T(self) -> LinearMap:  # noqa: N802
        return self

    def forth(self, v: Tensor) -> Tensor:
        return v

    def back(self, u: Tensor) -> Tensor:
        return u

    def sample(self, b: int) -> LinearMap:
        del b
        return Identity((1, *self._shape[1:]), self._dtype, self._device)

    def __repr__(self) -> str:
        return "I"


class Matrices(LinearMap):
    """Matrices that are there, ``(batch, n_out, n_in)``."""

    def __init__(self, matrices: Tensor) -> None:
        if matrices.dim() != 3:
            raise UsageError(f"a tensor of shape {tuple(matrices.shape)}", "expected (batch, n_out, n_in)")
        self._matrices = matrices

    @property
    def shape(self) -> tuple[int, int, int]:
        batch, n_out, n_in = self._matrices.shape
        return batch, n_out, n_in

    @property
    def dtype(self) -> torch.dtype:
        return self._matrices.dtype

    @property
    def device(self) -> torch.device:
        return self._matrices.device

    def forth(self, v: Tensor) -> Tensor:
        return self._matrices @ v

    def back(self, u: Tensor) -> Tensor:
        return self._matrices.mT @ u

    def sample(self, b: int) -> LinearMap:
        return Matrices(self._matrices[b : b + 1])

    def __repr__(self) -> str:
        return f"Matrices(shape={self.shape}, {self.dtype})"


def as_map(other: LinearMap | Tensor, like: LinearMap) -> LinearMap:
    """An operand of ``like`` as a map; one matrix stands for every sample.

    Raises:
        UsageError: neither a map nor a matrix.
    """
    if isinstance(other, LinearMap):
        return other
    if isinstance(other, Tensor) and other.dim() in (2, 3):
        return Matrices(other.to(like.device, like.dtype).expand(like.shape[0], *other.shape[-2:]))
    got = f"a tensor of shape {tuple(other.shape)}" if isinstance(other, Tensor) else repr(other)
    raise UsageError(f"{got} added to a linear map", "expected a map or a matrix", "A - A.I is J - I")


def check_square(a: LinearMap) -> tuple[int, int, int]:
    """The shape of a square map.

    Raises:
        UsageError: not square.
    """
    if a.shape[1] != a.shape[2]:
        raise UsageError(f"J is {a.shape[1]} x {a.shape[2]}", "expected as many rows as columns")
    return a.shape
