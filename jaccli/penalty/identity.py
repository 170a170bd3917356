"""``jaccli.identity_deviation``: the squared distance of J from the identity, and from other goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.backward_graph.differentiable_rows import wide
from jaccli.errors import UsageError, warn
from jaccli.linear_maps.norms import power_of_two
from jaccli.names import check_count
from jaccli.penalty.call_site import Analysis, site_of
from jaccli.penalty.goals import Estimator, Towards
from jaccli.penalty.verify import Request
from jaccli.run.program_runner import contiguous


def identity_deviation(
    model: Any,
    x: Tensor,
    source: str = "input",
    target: str = "output",
    *,
    estimator: Estimator = "exact",
    probes: int = 1,
    generator: torch.Generator | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """‖J − I‖_F² of each sample, differentiable in the parameters of the model and in ``x``.

    ``exact`` computes J by the structured method, and gradients flow through that. A J = LR that goes through a
    bottleneck is never multiplied out: ‖LR − I‖² = ⟨LᵀL, RRᵀ⟩ − 2 tr RL + n. If the engine cannot capture the
    network, J comes from n backward passes. ``hutchinson`` is the mean over probes of
    ‖Jᵀv − v‖² with entries of v drawn from ±1: unbiased, E vvᵀ = I (M. F. Hutchinson, *A stochastic estimator
    of the trace of the influence matrix*, 1989).

    Args:
        model: an ``nn.Module``, ``ScriptModule`` or exported module, used in the mode it is in. Inside
            ``DataParallel`` and ``torch.compile`` the module itself is used.
        x: the samples, ``(batch, …)``.
        source: layer name; ``input`` is the model's own.
        target: layer name; as large as the source.
        estimator: ``exact``, or ``hutchinson`` with so many probes.
        probes: products for each sample, of ``hutchinson``.
        generator: draws the probes, on the device of the target; torch's own by default.
        args: further arguments of the model, after ``x``.
        kwargs: further arguments by name.

    Returns:
        ``(batch,)`` in the dtype of the target, float32 where that is shorter. Without a graph under ``no_grad``.

    Cost: a forward pass; and for each probe of ``hutchinson`` one backward pass that is differentiated again.
    The first call with samples of a shape also finds out whether samples mix, and records how J is computed.

    Raises:
        UsageError: an unknown layer or estimator, a J that is not square.
        RefusedError: the model refuses ``x``.
        UnsupportedError: a layer that is not reached; an operator without a second derivative.
        ResourceError: J does not fit the memory.
    """
    return deviation_from("identity", model, x, source, target, estimator, probes, generator, args, kwargs)


def deviation_from(
    towards: Towards,
    model: Any,
    x: Tensor,
    source: str = "input",
    target: str = "output",
    estimator: Estimator = "exact",
    probes: int = 1,
    generator: torch.Generator | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Tensor:
    """As ``identity_deviation``, of J from another goal.

    ``scaled-identity``: ‖J − αI‖_F² at its best α = tr J/n; by ``hutchinson`` with α of the same probe, which
    makes it too small by 2‖J‖_F²/n at most. ``orthogonal``: ‖JJᵀ − I‖_F², or ‖JᵀJ − I‖_F² of a J with fewer columns
    than rows; a probe takes two products more. ``zero``: ‖J‖_F². The last two take a J of any shape. Arguments, cost
    and errors are those of ``identity_deviation``; ``(batch,)`` is returned.
    """
    _check(towards, estimator, probes)
    # Dynamo would trace hooks and dispatch modes; a disabled function runs as it is, between two graphs.
    compute = torch.compiler.disable(_deviation) if torch.compiler.is_compiling() else _deviation
    result: Tensor = compute(towards, model, x, (source, target), estimator, probes, generator, args, kwargs)
    return result


def _check(towards: str, estimator: str, probes: int) -> None:
    for name, value, known in (("towards", towards, get_args(Towards)), ("estimator", estimator, get_args(Estimator))):
        if value not in known:
            raise UsageError(f"{name} {value!r} is not known", f"expected one of {', '.join(known)}")
    check_count("probes", probes)


def _deviation(
    towards: Towards,
    model: Any,
    x: Tensor,
    names: tuple[str, str],
    estimator: Estimator,
    probes: int,
    generator: torch.Generator | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
) -> Tensor:
    network, site = site_of(model, x, names, args, kwargs)
    inputs = contiguous(Inputs.of(x, args, kwargs, site.dim))
    count, gram = (probes if estimator == "hutchinson" else 0), towards == "orthogonal"
    request = Request(count, gram and count > 0, "identity" in towards)
    analysis = site.look(network, inputs, request)
    differentiable = torch.is_grad_enabled() and bool(analysis.variables(inputs))
    site.verify(network, inputs, analysis, request, differentiable)
    v = _signs(analysis, count, gram, generator) if count else None
    factors = analysis.accumulated(inputs, *([] if v is None else [v]))
    if factors is None and analysis.accumulation is not None:  # the model takes another branch
        analysis = analysis.elsewhere()
        site.verify(network, inputs, analysis, request, differentiable)
    if factors is None:
        with analysis.rows(network, site.pair, inputs, differentiable) as rows:
            factors = (rows.matrix() if v is None else rows.images(v, gram),)
    distance = partial(of_factors, towards) if v is None else partial(_of_probes, towards, v)
    squares = distance(*factors)
    if squares.device.type == "cpu" or not differentiable:  # on an accelerator each look would wait for the device
        squares = _in_range(squares, factors, distance, relative=towards in ("zero", "scaled-identity"))
    return squares if differentiable else squares.detach()


def _signs(analysis: Analysis, count: int, gram: bool, generator: torch.Generator | None) -> Tensor:
    """±1, ``(batch, n, count)``, over the target; over the source where products go there and back from it."""
    batch, n_out, n_in = analysis.shape
    n = min(n_out, n_in) if gram else n_out
    signs = torch.empty(batch, n, count, dtype=analysis.dtype, device=analysis.device)
    return signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _of_probes(towards: Towards, v: Tensor, image: Tensor) -> Tensor:
    """The mean over probes v of ‖Jᵀv − v‖², ‖Jᵀv − αv‖², ‖JJᵀv − v‖² or ‖Jᵀv‖²: ``(batch, n, k)`` → ``(batch,)``."""
    if towards == "scaled-identity":
        image = image - (image * v).sum(1, keepdim=True) / v.shape[1] * v
    elif towards != "zero":
        image = image - v
    return wide(image).square().sum(1).mean(1)


def _in_range(squares: Tensor, factors: Sequence[Tensor], distance: Callable[..., Tensor], relative: bool) -> Tensor:
    """The squares, with a warning where their dtype has no such number; too large ones are inf, not NaN.

    Args:
        squares: ``distance(*factors)``, ``(batch,)``.
        factors: J of each sample, its factors, or products with it, ``(batch, …)`` each.
        distance: squared distance.
        relative: it is 0 with J, so that it may be too small as well.
    """
    kind, value = torch.finfo(squares.dtype), squares.detach()
    if not bool((~value.isfinite() | (value < kind.tiny)).any()):
        return squares
    finite = torch.stack([factor.detach().isfinite().flatten(1).all(1) for factor in factors]).all(0)
    beyond = over = ~value.isfinite() & finite
    if relative:
        near_one = (f.detach() / power_of_two(f, (1, 2)).reshape(-1, 1, 1).to(f) for f in factors)
        beyond = over | ((value < kind.tiny) & (distance(*near_one) > kind.eps))
    if not bool(beyond.any()):
        return squares
    name = str(squares.dtype).removeprefix("torch.")
    warn(f"the squared distance of {int(beyond.sum())} of {len(squares)} samples is beyond the range of {name}")
    return torch.where(over, torch.inf, squares)


def of_factors(towards: Towards, *factors: Tensor) -> Tensor:
    """The squared distance of J, or of J = LR without multiplying L by R.

    Args:
        towards: from what.
        factors: J, ``(batch, n_out, n_in)``; or L, ``(batch, n_out, m)``, and R, ``(batch, m, n_in)``.

    Returns:
        ``(batch,)``, in float32 at least.
    """
    if len(factors) == 1:
        return _of_matrix(towards, wide(factors[0]))
    first, last = (wide(factor) for factor in factors)
    n = min(first.shape[1], last.shape[2])
    left, right = first.mT @ first, last @ last.mT
    squares = (left * right).sum((1, 2))
    if towards == "zero":
        return squares
    if towards == "orthogonal":  # ‖JJᵀ‖² = tr (LᵀL RRᵀ)²
        gram = left @ right
        return (gram * gram.mT).sum((1, 2)) - 2 * squares + n
    trace = (first * last.mT).sum((1, 2))
    # ‖J - I‖² is n - m at least, so that little cancels.
    return squares - 2 * trace + n if towards == "identity" else squares - trace.square() / n


def _of_matrix(towards: Towards, j: Tensor) -> Tensor:
    """``of_factors`` of J itself, ``(batch, n_out, n_in)``."""
    if towards == "orthogonal":
        j = j @ j.mT if j.shape[1] <= j.shape[2] else j.mT @ j
    if towards in ("identity", "orthogonal"):
        return (j - torch.eye(j.shape[1], dtype=j.dtype, device=j.device)).square().sum((1, 2))
    squares = j.square().sum((1, 2))
    if towards == "zero":
        return squares
    return squares - j.diagonal(dim1=1, dim2=2).sum(1).square() / j.shape[1]
