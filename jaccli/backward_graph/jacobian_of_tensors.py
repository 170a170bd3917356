"""The Jacobian of tensors that are computed already, from the gradient graph that led to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.products import batching_imported
from jaccli.autograd.walk import mend_batch_norm
from jaccli.backward_graph.passes import (
    AdjointCheck,
    AutogradGraph,
    by_columns,
    by_rows,
    cotangents,
    masks,
    missing_graph,
)
from jaccli.errors import JaccliError, ResourceError, UnsupportedError, UsageError, note, warn
from jaccli.methods.base import is_out_of_memory, reason
from jaccli.names import check_count
from jaccli.planning.memory import available
from jaccli.runtime.kernels import full_precision

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
    if chunk is not None:
        check_count("chunk", chunk, ", or None")
    targets, sources = _named(outputs, "outputs"), _named(inputs, "inputs")
    _check(targets, sources, samples)
    rows: list[Any] = []
    device = next(iter(targets.values())).device.type
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(create_graph),
        torch.autocast(device, enabled=False),
        full_precision(),
    ):
        kept = {t: t.grad for t in (*targets.values(), *sources.values()) if t.retains_grad}
        try:
            for name, target in targets.items():
                graph = AutogradGraph(target, tuple(sources.values()), samples, create_graph)
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


def _of_one(name: str, graph: AutogradGraph, sources: Sequence[str], chunk: int | None) -> list[Tensor]:
    """J of one output, ``(batch, n_out, n_in)`` for each input, and what is to be said of it."""
    found = [x.new_zeros(()).expand(graph.batch, graph.n_out, graph.size(x)) for x in graph.inputs]
    need = sum(j.numel() * j.element_size() for j in found)
    hooks: list[Any] = []
    try:
        if need > defaults.WORKING_SET and need > available(graph.output.device):
            raise MemoryError
        if need and not graph.output.requires_grad:
            warn(f"{name} has no graph, J is zero: was it computed under no_grad, or detached?")
        elif need:
            hooks = mend_batch_norm(graph.output, beyond=graph.inputs)
            found = _solved(name, graph, chunk)
            lost = [i for i in range(len(found)) if i not in graph.reached]
            made = any(graph.inputs[i].grad_fn is not None for i in lost)
            hint = " (is it a result made after the output, as x[0] of x would be?)" if made else ""
            constant = missing_graph(graph.output, graph.inputs) if graph.create_graph else None
            if constant is not None:
                warn(f"{name}: {constant}: derivatives of J do not go through there")
            if lost:
                note(f"{name}: J is zero, no path leads there from {', '.join(sources[i] for i in lost)}{hint}")
        return [j.contiguous() for j in found]
    except (JaccliError, Warning):
        raise
    except Exception as error:
        raise _explained(name, error, need) from error
    finally:
        for hook in hooks:
            hook.remove()


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
    if "RNN backward can only be called in training mode" in text:
        return UnsupportedError(
            f"the backward pass of {name} leads through cuDNN, whose recurrent layers go back in training mode only",
            "expected one that goes without cuDNN",
            "compute the outputs within torch.backends.cudnn.flags(enabled=False)",
        )
    if "donated buffers" in text:
        return UnsupportedError(
            f"the compiled model that led to {name} frees its graph in its backward pass",
            "expected a graph that can be used again",
            "call the model as it was before torch.compile, or set torch._functorch.config.donated_buffer = False",
        )
    what = reason(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {reason(error)}"
    return UnsupportedError(f"the backward pass of {name} fails: {what}", "expected operators with a derivative")


def _solved(name: str, graph: AutogradGraph, chunk: int | None) -> list[Tensor]:
    """J, held against plain backward passes."""
    row_bytes = defaults.ROW_TENSORS * graph.widest()
    if graph.batch == 1 and graph.n_out < _FEW:
        return by_rows(graph, False, 1)
    evidence = AdjointCheck.of(graph, cotangents(graph, masks(graph.batch, graph.n_out)))
    if graph.batch == 1 or not evidence.samples_mix():
        found, plain = _taken(name, graph, False, chunk, row_bytes, evidence.seconds)
        off = evidence.off(found)
        if off and off < _ROUNDING * evidence.noise(found):
            warn(f"{name}: J is no larger than its rounding errors ({off:.2g}): in truth it may be zero")
            return found
        again = by_rows(graph, False, 1) if off and not plain else found
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
    off = 0.0 if plain else AdjointCheck.of(graph, cotangents(graph, first)).off(found)
    if off:
        warn(f"{name}: J was {off:.2g} off an independent backward pass; it was taken again row by row")
    return by_rows(graph, True, 1) if off else found


def _taken(
    name: str, graph: AutogradGraph, apart: bool, chunk: int | None, row_bytes: int, seconds: float
) -> tuple[list[Tensor], bool]:
    """J the quickest way that works, and whether that was row by row: then it needs no check."""
    n_in = sum(graph.size(graph.inputs[i]) for i in graph.reached)
    columns = _NARROW * n_in <= graph.n_out
    passes = (n_in if columns else graph.n_out) * (graph.batch if apart else 1)
    size = chunk or max(1, defaults.WORKING_SET // row_bytes)
    if passes < _FEW or (chunk is None and not batching_imported() and passes * seconds < defaults.SYMPY_IMPORT):
        size = 1
    gaps: list[Exception] = []
    for fill, k in [(f, k) for f in ([by_columns] if columns else []) + [by_rows] for k in dict.fromkeys((size, 1))]:
        try:
            found = fill(graph, apart, k)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            gaps.append(error)
            continue
        if gaps:
            how = "rows" if fill is by_rows else "columns"
            note(f"{name}: taken by {how}{' one by one' * (k == 1)}: {reason(gaps[0])}")
        return found, fill is by_rows and k == 1
    raise gaps[-1]
