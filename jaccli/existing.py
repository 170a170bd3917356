"""The Jacobian of tensors that are computed already, from the gradient graph that led to them."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, count, islice
from typing import Any, overload

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.errors import JaccliError, ResourceError, UnsupportedError, UsageError, note, warn
from jaccli.memory import available
from jaccli.methods.base import is_out_of_memory, reason, spans

_FEW = 3  # fewer passes than this are sooner done one by one than together
_NARROW = 4  # columns are taken where there are so many times more rows: they go through a graph twice as long
_ROUNDING = 100  # a difference of up to so many times what plain passes differ by among themselves is rounding


@overload
def graph_jacobian(
    outputs: Tensor, inputs: Tensor, create_graph: bool = ..., *, samples: bool = ..., chunk: int | None = ...
) -> Tensor: ...
@overload
def graph_jacobian(
    outputs: Tensor, inputs: Sequence[Tensor], create_graph: bool = ..., *, samples: bool = ..., chunk: int | None = ...
) -> tuple[Tensor, ...]: ...
@overload
def graph_jacobian(
    outputs: Sequence[Tensor], inputs: Tensor, create_graph: bool = ..., *, samples: bool = ..., chunk: int | None = ...
) -> tuple[Tensor, ...]: ...
@overload
def graph_jacobian(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    create_graph: bool = ...,
    *,
    samples: bool = ...,
    chunk: int | None = ...,
) -> tuple[tuple[Tensor, ...], ...]: ...
def graph_jacobian(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    create_graph: bool = False,
    *,
    samples: bool = False,
    chunk: int | None = None,
) -> Any:
    """The Jacobian of tensors of an autograd graph that exists already, ``J[*o, *i] = ∂outputs[o] / ∂inputs[i]``.

    Args:
        outputs: what is differentiated, one tensor or several; a 0-dim one (a loss) gives a gradient.
        inputs: by what: tensors that the outputs were computed from, leaves or results in between.
        create_graph: make the result differentiable: for a loss on J, or a derivative of higher order.
        samples: the first dimension of every tensor holds the same ``batch`` independent samples. Where they mix,
            a warning says so, and J is each sample's own block, the others held.
        chunk: rows or columns that go through the graph at once; by default what a cache holds.

    Returns:
        For one output and one input a tensor ``(*output.shape, *input.shape)``, with ``samples``
        ``(batch, n_out, n_in)``, flattened in C order; in the input's dtype, on its device, without a graph
        unless ``create_graph``. A tuple over the inputs if they are a sequence, and a tuple of that over the
        outputs if they are. Zeros, and a note, where no path leads from an input to an output.

    Cost: for each output n_out backward passes, which serve all inputs, or n_in where that is a quarter of it or
    less; many at once, whose working set is held to 32 MiB. One pass more to check; with ``samples``, where
    n_out and n_in are a sample's, some log2(batch) more, which find out whether samples mix: then batch times as
    many. Memory: J and a chunk of rows, and with ``create_graph`` the graph of every row.

    The graph is kept: this function and ``backward`` can use it again. The ``grad`` of leaves, of outputs and of
    inputs stays as it is; into that of results in between torch adds where ``retain_grad()`` was called on them.

    Raises:
        UsageError: not tensors of real numbers, an input that does not require gradients, samples that do not
            match, a graph that was freed, or a tensor of it that was modified in place.
        UnsupportedError: complex or sparse tensors; an operator without a derivative.
        ResourceError: out of memory.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> y = x**2
        >>> jaccli.graph_jacobian(y, x)
        tensor([[2., 0.],
                [0., 4.]])
    """
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk={chunk!r}", "expected a whole number from 1, or None")
    targets, sources = _named(outputs, "outputs"), _named(inputs, "inputs")
    _check(targets, sources, samples)
    rows: list[Any] = []
    device = next(iter(targets.values())).device.type
    with torch.inference_mode(False), torch.set_grad_enabled(create_graph), torch.autocast(device, enabled=False):
        kept = {t: t.grad for t in (*targets.values(), *sources.values()) if t.retains_grad}
        try:
            for name, target in targets.items():
                graph = _Graph(target, tuple(sources.values()), samples, create_graph)
                found = _of_one(name, graph, list(sources), chunk)
                if not samples:
                    found = [j.reshape(target.shape + x.shape) for j, x in zip(found, graph.inputs, strict=True)]
                rows.append(found[0] if isinstance(inputs, Tensor) else tuple(found))
        finally:
            for tensor, grad in kept.items():
                tensor.grad = grad
    return rows[0] if isinstance(outputs, Tensor) else tuple(rows)


def _named(tensors: Tensor | Iterable[Tensor], name: str) -> dict[str, Tensor]:
    """The tensors by how a message calls them: ``inputs``, or ``inputs[0]``, ``inputs[1]``."""
    if not isinstance(tensors, Tensor | Iterable):
        raise UsageError(f"{name} is a {type(tensors).__name__}", "expected a torch.Tensor or a sequence of them")
    found = {name: tensors} if isinstance(tensors, Tensor) else {f"{name}[{i}]": t for i, t in enumerate(tensors)}
    if not found:
        raise UsageError(f"{name} is empty", "expected at least one tensor")
    return found


def _check(targets: dict[str, Tensor], sources: dict[str, Tensor], samples: bool) -> None:
    for name, tensor in (targets | sources).items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"{name} is a {type(tensor).__name__}", "expected a torch.Tensor")
        if tensor.is_complex():
            raise UnsupportedError(f"{name} is complex", "expected real numbers", "torch.view_as_real gives such")
        if not tensor.is_floating_point():
            raise UsageError(f"{name} holds {tensor.dtype}", "expected floating point numbers: others have no gradient")
        if tensor.layout != torch.strided or tensor.is_nested:
            raise UnsupportedError(f"{name} is sparse or nested", "expected a dense tensor")
        if samples and (tensor.dim() == 0 or len(tensor) != len(next(iter(targets.values())))):
            what = f"{len(tensor)} samples" if tensor.dim() else "no dimension for samples"
            raise UsageError(f"{name} has {what}", "expected as many in the first dimension of every tensor")
    for name, tensor in sources.items():
        if not tensor.requires_grad:
            raise UsageError(
                f"{name} does not require gradients, so that the graph does not know it",
                "expected a tensor that the outputs were computed from, with requires_grad",
                "call requires_grad_() on it before the outputs are computed",
            )


@dataclass(frozen=True)
class _Graph:
    """The way from the inputs to one output. Without ``samples`` all of it is one sample.

    ``reached`` is filled with the positions of the inputs that a pass arrived at.
    """

    output: Tensor
    inputs: tuple[Tensor, ...]
    samples: bool
    create_graph: bool
    reached: set[int] = field(default_factory=set)

    @property
    def batch(self) -> int:
        return self.output.shape[0] if self.samples else 1

    @property
    def n_out(self) -> int:
        return self.size(self.output)

    def size(self, tensor: Tensor) -> int:
        """Elements of a sample."""
        return math.prod(tensor.shape[int(self.samples) :])

    def vjps(self, u: Tensor) -> list[Tensor]:
        """Jᵀu for k cotangents at once, ``(k, batch, n_out)``: ``(k, batch, n_in)`` for each input."""
        found: list[Tensor | None]
        if len(u) == 1:
            found = [row if row is None else row.to_dense()[None] for row in self._one(u.reshape(self.output.shape))]
        else:
            found = [*self._grad(self.output, u.reshape(-1, *self.output.shape), is_grads_batched=True)]
        self.reached.update(i for i, row in enumerate(found) if row is not None)
        shapes = [(len(u), self.batch, self.size(source)) for source in self.inputs]
        return [
            source.new_zeros(()).expand(shape) if row is None else row.reshape(shape)
            for row, source, shape in zip(found, self.inputs, shapes, strict=True)
        ]

    def _one(self, u: Tensor) -> Sequence[Tensor | None]:
        """One pass. The first that is handed a cotangent imports sympy (0.4 s); an inner product's does not."""
        if _imported():
            return self._grad(self.output, u)
        with torch.enable_grad():
            inner = (self.output * u).sum()
        return self._grad(inner)

    def _grad(self, of: Tensor, u: Tensor | None = None, is_grads_batched: bool = False) -> Sequence[Tensor | None]:
        found: Sequence[Tensor | None] = torch.autograd.grad(
            of, self.inputs, u, True, self.create_graph, allow_unused=True, is_grads_batched=is_grads_batched
        )
        return found

    def widest(self) -> int:
        """Bytes of the widest result between inputs and output.

        Raises:
            UnsupportedError: a gradient that has no derivative, which torch would pass over in silence.
        """
        seen: set[Any] = {None, *(source.grad_fn for source in self.inputs)}
        ahead: list[Any] = [self.output.grad_fn]
        widest = self.output.numel()
        while ahead:
            node = ahead.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.name() == "torch::autograd::Error":
                raise UnsupportedError(
                    "the graph leads through the gradient of a function that is marked once_differentiable",
                    "expected functions whose gradient has a derivative too",
                )
            widest = max([widest, *(math.prod(map(int, meta.shape)) for meta in getattr(node, "_input_metadata", ()))])
            ahead += [before for before, _ in node.next_functions]
        return widest * self.output.element_size()


def _imported() -> bool:
    return "torch.fx.experimental.symbolic_shapes" in sys.modules


@dataclass(frozen=True)
class _Evidence:
    """Plain backward passes, ``rows[i][k]`` = Jᵀ ``u[k]``, each with a random cotangent on some of the samples."""

    graph: _Graph
    u: Tensor
    rows: list[Tensor]
    seconds: float

    @classmethod
    def of(cls, graph: _Graph, u: Tensor) -> _Evidence:
        """A pass for each of ``u``; ``seconds`` is what the last one took."""
        passes, start = [], 0.0
        for one in u:
            start = time.perf_counter()
            passes.append(graph.vjps(one[None]))
        seconds = time.perf_counter() - start
        return cls(graph, u, [torch.cat(rows).detach() for rows in zip(*passes, strict=True)], seconds)

    def samples_mix(self) -> bool:
        """Whether what is sent back from some samples arrives at others; where they are independent, zeros do."""
        for rows in filter(torch.numel, self.rows):
            sizes, sent = rows.abs().nan_to_num(0.0, 0.0, 0.0).amax(-1), self.u.any(-1).to(rows.device)
            rounding = torch.finfo(rows.dtype).eps * max(float(sizes.max()), torch.finfo(rows.dtype).tiny)
            if float((sizes * ~sent).max()) > rounding:
                return True
        return False

    def off(self, found: Sequence[Tensor]) -> float:
        """The relative difference of uᵀJ from the passes, where it is more than rounding; else 0."""
        error = self._relative(found, [torch.einsum("kbo,boi->kbi", self.u.to(j), j.detach()) for j in found])
        eps = max(torch.finfo(t.dtype).eps for t in (self.graph.output, *self.graph.inputs))
        return error if error > eps**defaults.BELIEF_POWER else 0.0

    def noise(self, found: Sequence[Tensor]) -> float:
        """As ``off``, what the passes differ by from a third of those with three times the cotangents."""
        return self._relative(found, [rows / 3 for rows in _Evidence.of(self.graph, 3 * self.u).rows])

    def _relative(self, found: Sequence[Tensor], others: Sequence[Tensor]) -> float:
        worst = 0.0
        for j, rows, other in zip(found, self.rows, others, strict=True):
            norm_u = torch.linalg.vector_norm(self.u.to(j), dim=-1).double()
            size = torch.linalg.vector_norm(j.detach(), dim=(1, 2)).double() * norm_u
            error = torch.linalg.vector_norm((rows - other).double(), dim=-1) / size.clamp(min=1e-200)
            error = error[(norm_u > 0) & error.isfinite()]
            worst = max(worst, float(error.max())) if error.numel() else worst
        return worst


def _cotangents(graph: _Graph, masks: Tensor) -> Tensor:
    u = torch.randn(*masks.shape, graph.n_out, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    return (u * masks[..., None]).to(graph.output.detach())


def _masks(batch: int, most: int) -> Tensor:
    """Sets of samples ``(k, batch)``: for any two samples one of the sets holds the first and not the second.

    As few as there can be (Sperner); where those are more than ``most``, every other sample and the rest.
    """
    if batch == 1:
        return torch.ones(1, 1, dtype=torch.bool, device="cpu")
    k = next(k for k in count(2) if math.comb(k, k // 2) >= batch)
    if k > max(most, 2):
        return torch.arange(batch, device="cpu") % 2 == torch.arange(2, device="cpu")[:, None]
    members = torch.tensor([*islice(combinations(range(k), k // 2), batch)], device="cpu")
    return torch.zeros(k, batch, dtype=torch.bool, device="cpu").scatter_(0, members.T, True)


def _of_one(name: str, graph: _Graph, sources: Sequence[str], chunk: int | None) -> list[Tensor]:
    """J of one output, ``(batch, n_out, n_in)`` for each input, and what is to be said of it."""
    found = [x.new_zeros(()).expand(graph.batch, graph.n_out, graph.size(x)) for x in graph.inputs]
    need = sum(j.numel() * j.element_size() for j in found)
    try:
        if need > defaults.WORKING_SET and need > available(graph.output.device):
            raise MemoryError
        if need and not graph.output.requires_grad:
            warn(f"{name} has no graph, J is zero: was it computed under no_grad, or detached?")
        elif need:
            found = _solved(name, graph, chunk)
            lost = [i for i in range(len(found)) if i not in graph.reached]
            made = any(graph.inputs[i].grad_fn is not None for i in lost)
            hint = " (is it a result made after the output, as x[0] of x would be?)" if made else ""
            if lost:
                note(f"{name}: J is zero, no path leads there from {', '.join(sources[i] for i in lost)}{hint}")
        return [j.contiguous() for j in found]
    except (JaccliError, Warning):
        raise
    except Exception as error:
        raise _explained(name, error, need) from error


def _explained(name: str, error: Exception, need: int) -> JaccliError:
    text = str(error)
    if is_out_of_memory(error):
        return ResourceError(
            f"out of memory: the Jacobian of {name} takes {need / 2**20:.3g} MiB",
            "expected it and its passes to fit",
            "take part of the output, such as y[:100], or set a smaller chunk",
        )
    if "backward through the graph a second time" in text:
        return UsageError(
            f"the graph that led to {name} has been freed",
            "expected one that is kept",
            "call backward(retain_graph=True), or grad(..., retain_graph=True), or compute the outputs again",
        )
    if "modified by an inplace operation" in text:
        return UsageError(
            f"a tensor that the derivative of {name} needs was modified in place after it was computed",
            "expected the graph's tensors as they were",
            "compute the outputs again, or change a clone()",
        )
    if "donated buffers" in text:
        return UnsupportedError(
            f"the compiled model that led to {name} frees its graph in its backward pass",
            "expected a graph that can be used again",
            "call the model as it was before torch.compile, or set torch._functorch.config.donated_buffer = False",
        )
    what = reason(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {reason(error)}"
    return UnsupportedError(f"the backward pass of {name} fails: {what}", "expected operators with a derivative")


def _solved(name: str, graph: _Graph, chunk: int | None) -> list[Tensor]:
    """J, held against plain backward passes."""
    row_bytes = defaults.ROW_TENSORS * graph.widest()
    if graph.batch == 1 and graph.n_out < _FEW:
        return _by_rows(graph, False, 1)
    evidence = _Evidence.of(graph, _cotangents(graph, _masks(graph.batch, graph.n_out)))
    if graph.batch == 1 or not evidence.samples_mix():
        found, plain = _taken(name, graph, False, chunk, row_bytes, evidence.seconds)
        off = evidence.off(found)
        if off and off < _ROUNDING * evidence.noise(found):
            warn(f"{name}: J is no larger than its rounding errors ({off:.2g}): in truth it may be zero")
            return found
        again = _by_rows(graph, False, 1) if off and not plain else found
        still = evidence.off(again) if off else 0.0
        if off and not still:
            warn(f"{name}: J was {off:.2g} off an independent backward pass; it was taken again row by row")
        if still and graph.batch == 1:
            warn(f"{name}: two backward passes disagree by {still:.2g}: do not rely on J")
        if not still or graph.batch == 1:
            return again
    warn(
        f"{name}: samples mix: a sample's output depends on the other samples; "
        "J is each sample's own block, the others held"
    )
    found, plain = _taken(name, graph, True, chunk, row_bytes, evidence.seconds)
    first = torch.arange(graph.batch, device="cpu")[None] == 0
    off = 0.0 if plain else _Evidence.of(graph, _cotangents(graph, first)).off(found)
    if off:
        warn(f"{name}: J was {off:.2g} off an independent backward pass; it was taken again row by row")
    return _by_rows(graph, True, 1) if off else found


def _taken(
    name: str, graph: _Graph, apart: bool, chunk: int | None, row_bytes: int, seconds: float
) -> tuple[list[Tensor], bool]:
    """J the quickest way that works, and whether that was row by row: then it needs no check."""
    n_in = sum(graph.size(graph.inputs[i]) for i in graph.reached)
    columns = _NARROW * n_in <= graph.n_out
    passes = (n_in if columns else graph.n_out) * (graph.batch if apart else 1)
    size = chunk or max(1, defaults.WORKING_SET // row_bytes)
    if passes < _FEW or (chunk is None and not _imported() and passes * seconds < defaults.SYMPY_IMPORT):
        size = 1
    gaps: list[Exception] = []
    for fill, k in [(f, k) for f in ([_by_columns] if columns else []) + [_by_rows] for k in dict.fromkeys((size, 1))]:
        try:
            found = fill(graph, apart, k)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            gaps.append(error)
            continue
        if gaps:
            how = "rows" if fill is _by_rows else "columns"
            note(f"{name}: taken by {how}{' one by one' * (k == 1)}: {reason(gaps[0])}")
        return found, fill is _by_rows and k == 1
    raise gaps[-1]


def _by_rows(graph: _Graph, apart: bool, chunk: int) -> list[Tensor]:
    """``(batch, n_out, n_in)`` for each input. ``apart``: each sample has passes of its own, and its rows count."""
    groups, total = (1, graph.batch * graph.n_out) if apart else (graph.batch, graph.n_out)
    width = 0 if graph.create_graph else total
    sheets = [x.new_empty(groups, width, graph.size(x)) for x in graph.inputs]
    parts: list[list[Tensor]] = [[] for _ in sheets]
    for start, stop in spans(total, chunk):
        at, row = torch.arange(stop - start, device="cpu"), torch.arange(start, stop, device="cpu")
        sample = row // graph.n_out if apart else slice(None)
        u = graph.output.new_zeros(stop - start, graph.batch, graph.n_out)
        u[at, sample, row % graph.n_out] = 1
        for sheet, part, found in zip(sheets, parts, graph.vjps(u), strict=True):
            rows = found[at, sample][None] if apart else found.movedim(0, 1)
            if graph.create_graph:
                part.append(rows)
            else:
                sheet[:, start:stop] = rows
    whole = [torch.cat(part, 1) for part in parts] if graph.create_graph else sheets
    return [j.reshape(graph.batch, graph.n_out, j.shape[-1]) for j in whole]


def _by_columns(graph: _Graph, apart: bool, chunk: int) -> list[Tensor]:
    """As ``_by_rows``: Jᵀu is linear in u, and Jv its derivative along v (the double vjp, J. Townsend 2017)."""
    u = graph.output.new_zeros(graph.batch, graph.n_out).requires_grad_()
    with torch.enable_grad():
        rows = [row[0] for row in replace(graph, create_graph=True).vjps(u[None])]
    found = []
    for i, row in enumerate(rows):
        if i in graph.reached and row.numel():
            turned = _Graph(row, (u,), True, graph.create_graph)
            turned.widest()
            (columns,) = _by_rows(turned, apart, chunk)
            if not turned.reached:
                raise NotImplementedError("a gradient without a second derivative")
            found.append(columns.mT.to(row))
        else:
            found.append(row.new_zeros(graph.batch, graph.n_out, row.shape[-1]))
    return found
