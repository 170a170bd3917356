"""The truth: a float64 copy, cut by hooks of its own, one ``autograd.grad`` per sample and output."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class At:
    """An activation, said without jaccli: module path, port, call, keys into its value, sample dimension, index.

    ``path`` may be ``input`` or ``output``. The value of an ``in`` port is ``(args, kwargs)``.
    """

    path: str
    port: str = "out"
    call: int = 1
    keys: tuple[Any, ...] = ()
    dim: int | None = 0
    index: Any = None


INPUT, OUTPUT = At("input"), At("output")


def pick(value: Any, keys: Sequence[Any]) -> Tensor:
    for key in keys:
        value = getattr(value, key) if isinstance(key, str) and hasattr(value, "_fields") else value[key]
    assert isinstance(value, Tensor)
    return value


def replaced(value: Any, keys: Sequence[Any], new: Tensor) -> Any:
    if not keys:
        return new
    key, rest = keys[0], keys[1:]
    if hasattr(value, "_fields"):
        name = key if isinstance(key, str) else value._fields[key]
        return value._replace(**{name: replaced(getattr(value, name), rest, new)})
    twin = dict(value) if isinstance(value, dict) else list(value)
    twin[key] = replaced(value[key], rest, new)
    return tuple(twin) if isinstance(value, tuple) else twin


class _Cut:
    """Puts a fresh leaf in at the source and holds on to the target."""

    def __init__(self, source: At, target: At) -> None:
        self.source, self.target = source, target
        self.leaf: Tensor | None = None
        self.end: Tensor | None = None

    def at(self, path: str, port: str, call: int, value: Any) -> Any:
        if (path, port, call) == (self.source.path, self.source.port, self.source.call):
            self.leaf = pick(value, self.source.keys).detach().clone().requires_grad_()
            value = replaced(value, self.source.keys, self.leaf * 1)
        if (path, port, call) == (self.target.path, self.target.port, self.target.call):
            self.end = pick(value, self.target.keys) * 1
        return value


def jacobian(
    model: nn.Module, x: Tensor, source: At, target: At, args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}
) -> Tensor:
    """``(batch, n_out, n_in)`` in the dtype of ``x``. ``model`` is used up: hand over a copy."""
    cut = _Cut(source, target)
    calls: Counter[str] = Counter()

    def before(path: str) -> Any:
        def hook(_: Any, given: Any, named: Any) -> Any:
            calls[path] += 1
            return cut.at(path, "in", calls[path], (given, named))

        return hook

    for path, module in model.named_modules():
        if path in (source.path, target.path):
            module.register_forward_pre_hook(before(path), with_kwargs=True)
            module.register_forward_hook(lambda m, i, out, path=path: cut.at(path, "out", calls[path], out))
    with torch.enable_grad():
        output = model(cut.at("input", "out", 1, x.detach().clone()), *args, **kwargs)
        cut.at("output", "out", 1, output)
    assert cut.leaf is not None
    assert cut.end is not None
    return _rows(cut.leaf, cut.end, source, target)


def _rows(leaf: Tensor, end: Tensor, source: At, target: At) -> Tensor:
    ends = end.unsqueeze(0) if target.dim is None else end.movedim(target.dim, 0)
    batch = ends.shape[0]
    samples = ends.reshape(batch, -1)
    n_in = leaf.numel() // batch
    full = torch.zeros(batch, samples.shape[1], n_in, dtype=end.dtype)
    for b in range(batch):
        for o in range(samples.shape[1]) if end.requires_grad else ():
            (grad,) = torch.autograd.grad(samples[b, o], leaf, retain_graph=True, allow_unused=True)
            if grad is not None:
                own = grad if source.dim is None else grad.movedim(source.dim, 0)[b]
                full[b, o] = own.reshape(-1)
    return full[:, positions(ends.shape[1:], target.index)][:, :, positions(_sample(leaf, source), source.index)]


def _sample(tensor: Tensor, at: At) -> tuple[int, ...]:
    return tuple(tensor.shape if at.dim is None else tensor.movedim(at.dim, 0).shape[1:])


def positions(shape: Sequence[int], index: Any) -> Tensor:
    """Of an index's elements in a flat sample, by NumPy."""
    numbers = np.arange(math.prod(shape)).reshape(tuple(shape))
    return torch.as_tensor(np.ascontiguousarray(numbers if index is None else numbers[index]).reshape(-1))


def error(matrix: Tensor, truth: Tensor) -> float:
    """Largest relative Frobenius error of a sample, absolute where the truth is zero."""
    assert matrix.shape == truth.shape, (matrix.shape, truth.shape)
    size = truth.double().flatten(1).norm(dim=1)
    gap = (matrix.double() - truth.double()).flatten(1).norm(dim=1)
    return float((gap / torch.where(size > 0, size, torch.ones_like(size))).max())
