"""The Jacobian of tensors that are computed already, from the gradient graph that led to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from jaccli import defaults
from jaccli.autograd.products import batching_imported
from jaccli.autograd.sample_mixing import separating_sets
from jaccli.autograd.walk import mend_batch_norm
from jaccli.backward_graph.passes import (
    AdjointCheck,
    AutogradGraph,
    by_columns,
    by_rows,
    cotangents,
    missing_graph,
)
from jaccli.errors import JaccliError, ResourceError, UnsupportedError, UsageError, note, warn
from jaccli.names import check_count
from jaccli.planning.memory import available
from jaccli.runtime.kernels import full_precision
from jaccli.runtime.torch_errors import is_out_of_memory, reason, reraise_out_of_memory

# Fewer passes than this take less time one by one than together.
_FEW = 3
# J is taken by columns where it has at least 4 times as many rows: columns go through a graph twice as long.
_NARROW = 4
# If J is no more than rounding noise, a tolerance relative to ‖J‖ is useless. Then an error of up to 100 times the
# difference between two plain backward passes is accepted.
_ROUNDING = 100


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
        inputs: tensors that the outputs were computed from, leaves or results in between.
        create_graph: make the result differentiable: for a loss on J, or a derivative of higher order.
        samples: the first dimension of every tensor holds the same ``batch`` independent samples. Where they mix,
            a warning says so, and J is each sample's own block, the others held.
        chunk: rows or columns that go through the graph at once; by default as many as fit a cache.

    Returns:
        For one output and one input a tensor ``(*output.shape, *input.shape)``, with ``samples``
        ``(batch, n_out, n_in)``, flattened in C order; in the input's dtype, on its device, without a graph
        unless ``create_graph``. A tuple over the inputs if they are a sequence, and a tuple of that over the
        outputs if they are. Zeros, and a note, where no path leads from an input to an output.

    Cost: for each output n_out backward passes, which serve all inputs, or n_in where that is a quarter of it or
    less; many at once, in a working set of 32 MiB. One pass more to check. With ``samples`` n_out and n_in are a
    sample's, some log2(batch) passes more find out whether samples mix, and if they do, all is done for each sample.
    Memory: J and a chunk of rows, and with ``create_graph`` the graph of every row.

    The graph is kept: this function and ``backward`` can use it again. The ``grad`` of leaves, of outputs and of
    inputs stays as it is; into that of results in between torch adds where ``retain_grad()`` was called on them.

    Raises:
        UsageError: not tensors of real numbers, an input that does not require gradients, samples that do not
            match, a graph that was freed, or a tensor of it that was modified in place.
        UnsupportedError: complex or sparse tensors; an operator without a derivative.
        ResourceError: out of memory.

    Example:
        >>> import jaccli, torch
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
        # torch accumulates into the ``grad`` of results with ``retain_grad()`` in any pass: it is put back afterwards.
        grads = {t: t.grad for t in (*targets.values(), *sources.values()) if t.retains_grad}
        try:
            for name, target in targets.items():
                graph = AutogradGraph(target, tuple(sources.values()), samples, create_graph)
                jacobians = _jacobians_of(name, graph, list(sources), chunk)
                if not samples:
                    jacobians = [
                        j.reshape(target.shape + x.shape) for j, x in zip(jacobians, graph.inputs, strict=True)
                    ]
                rows.append(jacobians[0] if isinstance(inputs, Tensor) else tuple(jacobians))
        finally:
            for tensor, grad in grads.items():
                tensor.grad = grad
    return rows[0] if isinstance(outputs, Tensor) else tuple(rows)


def _named(tensors: Tensor | Iterable[Tensor], name: str) -> dict[str, Tensor]:
    """The tensors, of any shapes, by their names in messages: ``inputs``, or ``inputs[0]``, ``inputs[1]``."""
    if not isinstance(tensors, Tensor | Iterable):
        raise UsageError(f"{name} is a {type(tensors).__name__}", "expected a torch.Tensor or a sequence of them")
    named = {name: tensors} if isinstance(tensors, Tensor) else {f"{name}[{i}]": t for i, t in enumerate(tensors)}
    if not named:
        raise UsageError(f"{name} is empty", "expected at least one tensor")
    return named


def _check(targets: dict[str, Tensor], sources: dict[str, Tensor], samples: bool) -> None:
    """Refuse tensors, of any shapes, that have no Jacobian here.

    Raises:
        UsageError: not tensors of real numbers, no gradients, or samples that do not match.
        UnsupportedError: complex or sparse tensors.
    """
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


def _jacobians_of(name: str, graph: AutogradGraph, sources: Sequence[str], chunk: int | None) -> list[Tensor]:
    """J of one output, ``(batch, n_out, n_in)`` for each input, with warnings and notes about it.

    Args:
        name: of the output.
        graph: from the inputs to it.
        sources: names of the inputs.
        chunk: as of ``graph_jacobian``.
    """
    # Zeros that take no memory, expanded from one number: they also say how much J needs.
    jacobians = [x.new_zeros(()).expand(graph.batch, graph.n_out, graph.size(x)) for x in graph.inputs]
    need = sum(j.numel() * j.element_size() for j in jacobians)
    hooks: list[Any] = []
    try:
        # Refused before anything is computed: the system may end a process that takes more memory than there is.
        if need > defaults.WORKING_SET and need > available(graph.output.device):
            raise MemoryError
        if need and not graph.output.requires_grad:
            warn(f"{name} has no graph, J is zero: was it computed under no_grad, or detached?")
        elif need:
            hooks = mend_batch_norm(graph.output, beyond=graph.inputs)
            jacobians = _checked_jacobians(name, graph, chunk)
            _report(name, graph, sources)
        return [j.contiguous() for j in jacobians]
    except (JaccliError, Warning):
        raise
    except Exception as error:
        raise _explained(name, error, need) from error
    finally:
        for hook in hooks:
            hook.remove()


def _report(name: str, graph: AutogradGraph, sources: Sequence[str]) -> None:
    """Say which inputs no pass arrived at, and where derivatives of J are missing."""
    gap = missing_graph(graph.output, graph.inputs) if graph.create_graph else None
    if gap is not None:
        warn(f"{name}: {gap}: derivatives of J do not go through there")
    unreached = [i for i in range(len(graph.inputs)) if i not in graph.reached]
    if unreached:
        result = any(graph.inputs[i].grad_fn is not None for i in unreached)
        hint = " (is it a result made after the output, as x[0] of x would be?)" if result else ""
        note(f"{name}: J is zero, no path leads there from {', '.join(sources[i] for i in unreached)}{hint}")


# Errors of torch that the caller can do something about: a part of their text → error, problem, expected, remedy.
_KNOWN_ERRORS: dict[str, tuple[type[JaccliError], str, str, str]] = {
    "backward through the graph a second time": (
        UsageError,
        "the graph that led to {name} has been freed",
        "expected one that is kept",
        "call backward(retain_graph=True), or grad(..., retain_graph=True), or compute the outputs again",
    ),
    "modified by an inplace operation": (
        UsageError,
        "a tensor that the derivative of {name} needs was modified in place after it was computed",
        "expected the graph's tensors as they were",
        "compute the outputs again, or change a clone()",
    ),
    "RNN backward can only be called in training mode": (
        UnsupportedError,
        "the backward pass of {name} leads through cuDNN, whose recurrent layers go back in training mode only",
        "expected one that goes without cuDNN",
        "compute the outputs within torch.backends.cudnn.flags(enabled=False)",
    ),
    "donated buffers": (
        UnsupportedError,
        "the compiled model that led to {name} frees its graph in its backward pass",
        "expected a graph that can be used again",
        "call the model as it was before torch.compile, or set torch._functorch.config.donated_buffer = False",
    ),
}


def _explained(name: str, error: Exception, need: int) -> JaccliError:
    """An error of a pass as one that says what to do; ``need`` is J's bytes."""
    if is_out_of_memory(error):
        return ResourceError(
            f"out of memory: the Jacobian of {name} takes {need / 2**20:.3g} MiB",
            "expected it and its passes to fit",
            "take part of the output, such as y[:100], or set a smaller chunk",
        )
    for text, (kind, problem, expected, remedy) in _KNOWN_ERRORS.items():
        if text in str(error):
            return kind(problem.format(name=name), expected, remedy)
    what = reason(error) if isinstance(error, RuntimeError) else f"{type(error).__name__}: {reason(error)}"
    return UnsupportedError(f"the backward pass of {name} fails: {what}", "expected operators with a derivative")


def _checked_jacobians(name: str, graph: AutogradGraph, chunk: int | None) -> list[Tensor]:
    """J of each input, ``(batch, n_out, n_in)``, compared with plain backward passes."""
    row_bytes = defaults.ROW_TENSORS * graph.widest()
    # A gradient, or two of them, is plain passes anyway: there is nothing to compare it with.
    if graph.batch == 1 and graph.n_out < _FEW:
        return by_rows(graph, False, 1)
    truth = AdjointCheck.of(graph, cotangents(graph, separating_sets(graph.batch, graph.n_out)))
    if graph.batch == 1 or not truth.samples_mix():
        jacobians, error = _of_independent_samples(name, graph, truth, chunk, row_bytes)
        if error and graph.batch == 1:
            warn(f"{name}: two backward passes disagree by {error:.2g}: do not rely on J")
        if not error or graph.batch == 1:
            return jacobians
    warn(
        f"{name}: samples mix: a sample's output depends on the other samples; "
        "J is each sample's own block, the others held"
    )
    jacobians, plain = _by_first_that_works(name, graph, True, chunk, row_bytes, truth.seconds)
    # Of mixing samples only a cotangent of one sample checks one sample's own block.
    first = torch.arange(graph.batch, device="cpu")[None] == 0
    error = 0.0 if plain else AdjointCheck.of(graph, cotangents(graph, first)).disagreement(jacobians)
    if not error:
        return jacobians
    _warn_corrected(name, error)
    return by_rows(graph, True, 1)


def _of_independent_samples(
    name: str, graph: AutogradGraph, truth: AdjointCheck, chunk: int | None, row_bytes: int
) -> tuple[list[Tensor], float]:
    """J of independent samples, ``(batch, n_out, n_in)`` of each input, and its remaining error.

    It is taken again row by row where it is wrong.
    """
    jacobians, plain = _by_first_that_works(name, graph, False, chunk, row_bytes, truth.seconds)
    error = truth.disagreement(jacobians)
    if not error:
        return jacobians, 0.0
    if error < _ROUNDING * truth.noise(jacobians):
        warn(f"{name}: J is no larger than its rounding errors ({error:.2g}): in truth it may be zero")
        return jacobians, 0.0
    by_plain_passes = jacobians if plain else by_rows(graph, False, 1)
    # Where even plain rows disagree with plain passes, samples mix in a way that the first check could not see.
    remaining = truth.disagreement(by_plain_passes)
    if not remaining:
        _warn_corrected(name, error)
    return by_plain_passes, remaining


def _warn_corrected(name: str, error: float) -> None:
    warn(f"{name}: J was {error:.2g} off an independent backward pass; it was taken again row by row")


def _by_first_that_works(
    name: str, graph: AutogradGraph, mixes: bool, chunk: int | None, row_bytes: int, seconds: float
) -> tuple[list[Tensor], bool]:
    """J, ``(batch, n_out, n_in)`` of each input, by what works first, and whether that was row by row: no check then.

    Columns, where J is narrow, before rows; several at once before one by one.

    Args:
        name: of the output.
        graph: from the inputs to it.
        mixes: samples mix.
        chunk: rows or columns of a batched pass, as the user set it.
        row_bytes: working set of a row.
        seconds: what a pass takes.
    """
    n_in = sum(graph.size(graph.inputs[i]) for i in graph.reached)
    columns = _NARROW * n_in <= graph.n_out
    passes = (n_in if columns else graph.n_out) * (graph.batch if mixes else 1)
    size = chunk or max(1, defaults.WORKING_SET // row_bytes)
    # A batched pass imports sympy first: few or quick passes are over before that is.
    if passes < _FEW or (chunk is None and not batching_imported() and passes * seconds < defaults.SYMPY_IMPORT):
        size = 1
    gaps: list[Exception] = []
    for fill, k in [(f, k) for f in ([by_columns] if columns else []) + [by_rows] for k in dict.fromkeys((size, 1))]:
        try:
            jacobians = fill(graph, mixes, k)
        except Exception as error:
            reraise_out_of_memory(error)
            gaps.append(error)
            continue
        if gaps:
            how = "rows" if fill is by_rows else "columns"
            note(f"{name}: taken by {how}{' one by one' * (k == 1)}: {reason(gaps[0])}")
        return jacobians, fill is by_rows and k == 1
    raise gaps[-1]
