"""What the field uses to obtain J: eager PyTorch and ``torch.compile``; JAX is in ``jax_peers``.

A peer comes in a few settings (chunk sizes, memory layouts, attention kernels). They are tried once in
the warm-up and the fastest one races. A call takes samples of the network's input and returns J as
``(batch, n_out, n_in)``; the forward pass to the source is in it, as it is in jaccli's planned call.
"""

# A module call is Any to a type checker.
# mypy: disable-error-code="no-any-return"
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from networks import Case
from torch import Tensor, nn
from torch.func import jacfwd, jacrev, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

Function = Callable[[Tensor], Tensor]
CHUNKS = (16, 64, 256)
COMPILED = {"compile(jacrev)": "vmap(jacrev)", "compile(jacfwd)": "vmap(jacfwd)"}
OURS_COMPILED = "jaccli --compile"
COMPILED_CHUNKS = 8  # a chunked transform is unrolled by the compiler: no more than this


@dataclass(frozen=True)
class Setting:
    """How a peer is run: attention kernel, memory layout, rows or columns at once, and the flag of ``functional``."""

    math: bool = False
    channels_last: bool = False
    vectorize: bool = False
    chunk: int | None = None

    def __str__(self) -> str:
        words = [name for name in ("math", "channels_last", "vectorize") if getattr(self, name)]
        return " ".join(words + ([f"chunk={self.chunk}"] if self.chunk else []))

    @classmethod
    def parse(cls, text: str) -> Setting:
        """The inverse of ``str``."""
        chunk = [int(word.removeprefix("chunk=")) for word in text.split() if word.startswith("chunk=")]
        flags = {word: True for word in text.split() if "=" not in word}
        return cls(chunk=chunk[0] if chunk else None, **flags)


@dataclass(frozen=True)
class Variant:
    """One way to run a peer.

    Args:
        label: the setting, empty for the plain one.
        run: samples of the network's input → J.
        slow_start: the first call compiles.
        prepare_s: seconds that the first call takes, where that is known already.
    """

    label: str
    run: Callable[[Any], Any]
    slow_start: bool = False
    prepare_s: float | None = None


class Problem:
    """A case made concrete for the peers. Nothing is run before it is asked for."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.plain = case.model()

    @cached_property
    def channels_last(self) -> nn.Module:
        """The module in the other layout."""
        return self.case.model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Numbers in one sample's target and source: ``(n_out, n_in)``."""
        with torch.no_grad():
            source = self.case.head(self.plain, self.case.samples(0)[:1])
            return self.case.tail(self.plain, source).numel(), source.numel()

    def settings(self) -> list[Setting]:
        """Kernels and layouts worth a try: what the network has decides."""
        kinds = {type(module).__name__ for module in self.plain.modules()}
        found = [Setting()]
        if any("Attention" in kind for kind in kinds):
            found.append(Setting(math=True))
        if kinds & {"Conv2d", "ConvTranspose2d"}:
            found.append(Setting(channels_last=True))
        return found

    def model(self, setting: Setting) -> nn.Module:
        return self.channels_last if setting.channels_last else self.plain

    def tail(self, setting: Setting) -> Function:
        """Source activation → target, flattened to ``(batch, n_out)``."""
        model, tail = self.model(setting), self.case.tail
        return lambda h: tail(model, h).flatten(1)

    def point(self, setting: Setting, x: Tensor) -> Tensor:
        """The source activation at x."""
        with torch.no_grad():
            h = self.case.head(self.model(setting), x)
        return h.contiguous(memory_format=torch.channels_last) if setting.channels_last and h.dim() == 4 else h


def loop(f: Function, h: Tensor, _setting: Setting) -> Tensor:
    """One backward pass an output, of the sum over samples."""
    h = h.detach().requires_grad_()
    y = f(h)
    total = y.sum(0)
    rows = [torch.autograd.grad(total[o], h, retain_graph=True)[0].flatten(1) for o in range(y.shape[1])]
    return torch.stack(rows, dim=1)


def replicate(f: Function, h: Tensor, setting: Setting) -> Tensor:
    """The input once for each output, the identity sent back."""
    batch, n_out = h.shape[0], f(h[:1]).shape[1]
    blocks = []
    for rows in torch.eye(n_out).split(setting.chunk or n_out):
        copies = h.repeat_interleave(len(rows), dim=0).requires_grad_()
        (grad,) = torch.autograd.grad(f(copies), copies, rows.repeat(batch, 1))
        blocks.append(grad.reshape(batch, len(rows), -1))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def is_grads_batched(f: Function, h: Tensor, setting: Setting) -> Tensor:
    """Batched cotangents through one graph."""
    h = h.detach().requires_grad_()
    y = f(h)
    n_out = y.shape[1]
    blocks = []
    for rows in torch.eye(n_out).split(setting.chunk or n_out):
        cotangents = rows[:, None].expand(-1, len(y), -1)
        (grad,) = torch.autograd.grad(y, h, cotangents, retain_graph=True, is_grads_batched=True)
        blocks.append(grad.flatten(2))
    return (blocks[0] if len(blocks) == 1 else torch.cat(blocks)).transpose(0, 1)


def functional(f: Function, h: Tensor, setting: Setting) -> Tensor:
    """``torch.autograd.functional.jacobian`` of the sum over samples, which keeps their Jacobians apart."""
    rows = torch.autograd.functional.jacobian(lambda t: f(t).sum(0), h, vectorize=setting.vectorize)
    return rows.flatten(2).transpose(0, 1)


def reverse(f: Function, h: Tensor, setting: Setting) -> Tensor:
    """``vmap(jacrev)``."""
    return vmap(jacrev(lambda t: f(t[None])[0], chunk_size=setting.chunk))(h).flatten(2)


def forward(f: Function, h: Tensor, setting: Setting) -> Tensor:
    """``vmap(jacfwd)``; jacfwd has no chunks, so where some are asked for it is put together from jvp."""
    if setting.chunk is None:
        return vmap(jacfwd(lambda t: f(t[None])[0]))(h).flatten(2)

    def push(direction: Tensor) -> Tensor:
        return jvp(f, (h,), (direction.view(1, *h.shape[1:]).expand_as(h),))[1]

    return vmap(push, chunk_size=setting.chunk)(torch.eye(h[0].numel())).permute(1, 2, 0)


# The likely fastest first: what it needs is the measure for giving up on the others.
_METHODS: dict[str, Callable[[Function, Tensor, Setting], Tensor]] = {
    "vmap(jacrev)": reverse,
    "vmap(jacfwd)": forward,
    "is_grads_batched": is_grads_batched,
    "functional": functional,
    "replicate": replicate,
    "loop": loop,
}
EAGER = tuple(_METHODS)


def eager(problem: Problem, name: str) -> Iterator[Variant]:
    """The variants of one eager peer, small chunks first: all at once may swap or thrash for minutes."""
    n_out, n_in = problem.sizes
    passes = n_in if name == "vmap(jacfwd)" else n_out
    for setting in problem.settings():
        if name == "functional":
            choices = [setting, replace(setting, vectorize=True)]
        elif name == "loop":
            choices = [setting]
        else:
            choices = [*(replace(setting, chunk=c) for c in CHUNKS if c < passes), setting]
        for choice in choices:
            yield Variant(str(choice), runner(problem, name, choice))


def runner(problem: Problem, name: str, setting: Setting) -> Callable[[Tensor], Tensor]:
    """One eager peer in one setting."""
    method, tail = _METHODS[name], problem.tail(setting)

    def run(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH) if setting.math else nullcontext():
            return method(tail, problem.point(setting, x), setting)

    return run


def compiled(problem: Problem, name: str, best: Setting) -> Iterator[Variant]:
    """``torch.compile`` of a functorch transform: all at once, and in eager's best chunks where those are few.

    Args:
        problem: the network.
        name: of ``COMPILED``.
        best: the setting that won for the eager transform.
    """
    n_out, n_in = problem.sizes
    passes = n_in if name == "compile(jacfwd)" else n_out
    choices = [replace(best, chunk=None)]
    if best.chunk and passes <= COMPILED_CHUNKS * best.chunk:
        choices.append(best)
    for choice in choices:
        torch._dynamo.reset()
        yield Variant(str(choice), compiled_runner(problem, name, choice), slow_start=True)


def compiled_runner(problem: Problem, name: str, setting: Setting) -> Callable[[Tensor], Tensor]:
    """One compiled peer in one setting; its first call compiles."""
    transform, tail = _METHODS[COMPILED[name]], problem.tail(setting)
    program = torch.compile(lambda h: transform(tail, h, setting), dynamic=False)

    def run(x: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH) if setting.math else nullcontext():
            return program(problem.point(setting, x))

    return run
