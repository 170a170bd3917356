"""``jaccli.identity_deviation``: the squared distance of J from the identity, and from other goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.backward_graph.differentiable_rows import wide
from jaccli.errors import warn
from jaccli.linear_maps.norms import power_of_two
from jaccli.names import check_count, check_one_of
from jaccli.networks.network import Network
from jaccli.penalty.call_site import Analysis, CallSite, site_of
from jaccli.penalty.choices import Estimator, Towards
from jaccli.penalty.verify import ProductRequest
from jaccli.run.program_runner import contiguous
from jaccli.text.quantities import dtype_name

if TYPE_CHECKING:
    from jaxtyping import Float


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

    J is ∂target / ∂source of one sample, ``(n, n)`` with both activations flattened. The result has no unit: divide it
    by n to compare layers of different sizes.

    ``exact`` computes J by the structured method, and gradients flow through that. A J = LR that goes through a
    bottleneck is never multiplied out: ‖LR − I‖² = ⟨LᵀL, RRᵀ⟩ − 2 tr RL + n. If the engine cannot capture the
    network, J comes from n backward passes.

    ``hutchinson`` is the mean over probes of ‖Jᵀv − v‖² with entries of v drawn from ±1. It is unbiased, since
    E vvᵀ = I (M. F. Hutchinson, *A stochastic estimator of the trace of the influence matrix for Laplacian smoothing
    splines*, Communications in Statistics 18, 1989).

    Args:
        model: an ``nn.Module``, ``ScriptModule`` or exported module, used in the mode it is in. Inside
            ``DataParallel`` and ``torch.compile`` the module itself is used.
        x: the samples, ``(batch, …)``, of any dtype that the model takes.
        source: layer name; ``input`` is the model's own.
        target: layer name; as large as the source.
        estimator: ``exact`` or ``hutchinson``.
        probes: number of products for each sample; ``hutchinson`` alone uses it.
        generator: draws the probes, on the device of the target; torch's own by default.
        args: further arguments of the model, after ``x``.
        kwargs: further arguments by name.

    Returns:
        ``(batch,)`` in the dtype of the target, float32 where that is shorter. Without a graph under ``no_grad``.

    Cost: a forward pass, and J by the structured method or by n backward passes; of ``hutchinson`` one backward pass
    for each probe. The first call with samples of a shape also finds out whether samples mix, and records how J is
    computed. Calls 1, 2, 4, 8, … verify the result by further passes.

    Raises:
        UsageError: an unknown layer or estimator, a J that is not square.
        RefusedError: the model refuses ``x``.
        UnsupportedError: a layer that is not reached; an operator without a second derivative.
        ResourceError: J does not fit the memory.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> model.weight.data = torch.tensor([[1.0, 0.5], [0.0, 3.0]])
        >>> squares = identity_deviation(model, torch.ones(3, 2))
        >>> squares.detach()
        tensor([4.2500, 4.2500, 4.2500])
        >>> squares.mean().backward()
        >>> model.weight.grad  # 2 (J - I)
        tensor([[0., 1.],
                [0., 4.]])
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
    """The squared distance of J from a goal, ``(batch,)``; arguments, cost and errors as of ``identity_deviation``.

    * ``identity``: ‖J − I‖_F².
    * ``scaled-identity``: ‖J − αI‖_F² at its best α = tr J/n. ``hutchinson`` takes α of the same probe, which makes the
      estimate too small by 2‖J‖_F²/n at most.
    * ``orthogonal``: ‖JJᵀ − I‖_F², or ‖JᵀJ − I‖_F² of a J with fewer columns than rows.
      A probe takes two products more.
    * ``zero``: ‖J‖_F².

    The last two take a J of any shape.
    """
    _check(towards, estimator, probes)
    # Dynamo would trace hooks and dispatch modes; a disabled function runs as it is, between two graphs. It is not a
    # decorator, since that would import dynamo (more than a second) where nothing is compiled.
    compute = torch.compiler.disable(_deviation) if torch.compiler.is_compiling() else _deviation
    result: Tensor = compute(towards, model, x, (source, target), estimator, probes, generator, args, kwargs)
    return result


def _check(towards: str, estimator: str, probes: int) -> None:
    check_one_of("towards", towards, get_args(Towards))
    check_one_of("estimator", estimator, get_args(Estimator))
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
) -> Float[Tensor, " batch"]:
    """``deviation_from`` of samples ``(batch, …)``, with its arguments checked."""
    network, site = site_of(model, x, names, args, kwargs)
    inputs = contiguous(Inputs.of(x, args, kwargs, site.dim))
    count = probes if estimator == "hutchinson" else 0
    request = ProductRequest(count, gram=count > 0 and towards == "orthogonal", square="identity" in towards)
    analysis = site.analysis_of(network, inputs, request)
    differentiable = torch.is_grad_enabled() and bool(analysis.variables(inputs))
    site.verify(network, inputs, analysis, request, differentiable)
    v = _signs(analysis, request, generator) if count else None
    factors = _factors(network, site, inputs, analysis, request, v, differentiable)
    distance = partial(of_factors, towards) if v is None else partial(_of_probes, towards, v)
    squares = distance(*factors)
    # On an accelerator the check waits for the device, which a training step must not do.
    if squares.device.type == "cpu" or not differentiable:
        squares = _in_range(squares, factors, distance, relative=towards in ("zero", "scaled-identity"))
    return squares if differentiable else squares.detach()


def _factors(
    network: Network,
    site: CallSite,
    inputs: Inputs,
    analysis: Analysis,
    request: ProductRequest,
    v: Float[Tensor, "batch n k"] | None,
    differentiable: bool,
) -> tuple[Tensor, ...]:
    """J ``(batch, n_out, n_in)``, its two factors, or products ``(batch, m, k)`` with v: by a program, else passes."""
    factors = analysis.accumulated(inputs, *([] if v is None else [v]))
    if factors is not None:
        return factors
    if analysis.accumulation is not None:
        # These values take another branch of the model than the program: its analysis counts calls of its own, so that
        # the first of them is verified.
        analysis = analysis.without_program()
        site.verify(network, inputs, analysis, request, differentiable)
    with analysis.rows(network, site.pair, inputs, differentiable) as rows:
        return (rows.matrix() if v is None else rows.images(v, request.gram),)


def _signs(
    analysis: Analysis, request: ProductRequest, generator: torch.Generator | None
) -> Float[Tensor, "batch n count"]:
    """Random ±1 in the space of the target; of ``gram`` in that of the smaller side of J."""
    batch, n_out, n_in = analysis.shape
    n = min(n_out, n_in) if request.gram else n_out
    signs = torch.empty(batch, n, request.probes, dtype=analysis.dtype, device=analysis.device)
    return signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _of_probes(
    towards: Towards, v: Float[Tensor, "batch n k"], image: Float[Tensor, "batch m k"]
) -> Float[Tensor, " batch"]:
    """The mean over probes v of ‖Jᵀv − v‖², ‖Jᵀv − αv‖², ‖JJᵀv − v‖² or ‖Jᵀv‖², where ``image`` has the products."""
    if towards == "scaled-identity":
        image = image - (image * v).sum(1, keepdim=True) / v.shape[1] * v
    elif towards != "zero":
        image = image - v
    return wide(image).square().sum(1).mean(1)


def _in_range(
    squares: Float[Tensor, " batch"],
    factors: Sequence[Tensor],
    distance: Callable[..., Tensor],
    relative: bool,
) -> Float[Tensor, " batch"]:
    """The squares, with a warning where their dtype has no such number; too large ones are inf, not NaN.

    Args:
        squares: ``distance(*factors)``.
        factors: J of each sample, its factors, or products with it, ``(batch, …, …)`` each.
        distance: the squared distance of factors.
        relative: the distance is homogeneous in J, so that it underflows where J is small.
    """
    kind, value = torch.finfo(squares.dtype), squares.detach()
    if not bool((~value.isfinite() | (value < kind.tiny)).any()):
        return squares
    # A J that is not finite is the model's own matter; only what this module's arithmetic lost is reported.
    finite = torch.stack([factor.detach().isfinite().flatten(1).all(1) for factor in factors]).all(0)
    beyond = over = ~value.isfinite() & finite
    if relative:
        # Scaled by a power of two, which is exact, J tells a distance that underflowed from one that is rounding.
        near_one = (f.detach() / power_of_two(f, (1, 2)).reshape(-1, 1, 1).to(f) for f in factors)
        beyond = over | ((value < kind.tiny) & (distance(*near_one) > kind.eps))
    if not bool(beyond.any()):
        return squares
    name = dtype_name(squares.dtype)
    warn(f"the squared distance of {int(beyond.sum())} of {len(squares)} samples is beyond the range of {name}")
    return torch.where(over, torch.inf, squares)


def of_factors(
    towards: Towards, first: Float[Tensor, "batch n_out m"], last: Float[Tensor, "batch m n_in"] | None = None
) -> Float[Tensor, " batch"]:
    """The squared distance of J from a goal, or that of J = LR without multiplying L by R; in float32 at least.

    Args:
        towards: the goal.
        first: J, or L.
        last: R; None where ``first`` is J.
    """
    if last is None:
        return _of_matrix(towards, wide(first))
    first, last = wide(first), wide(last)
    n = min(first.shape[1], last.shape[2])
    # All of what follows needs LᵀL and RRᵀ, (m, m) with m the width of the bottleneck, in place of the (n, n) product.
    left, right = first.mT @ first, last @ last.mT
    squares = (left * right).sum((1, 2))
    if towards == "zero":
        return squares
    if towards == "orthogonal":  # ‖JJᵀ‖² = tr (LᵀL RRᵀ)²
        gram = left @ right
        return (gram * gram.mT).sum((1, 2)) - 2 * squares + n
    trace = (first * last.mT).sum((1, 2))
    # The rank of J is m at most, so that ‖J - I‖² is n - m at least: little cancels.
    return squares - 2 * trace + n if towards == "identity" else squares - trace.square() / n


def _of_matrix(towards: Towards, j: Float[Tensor, "batch n_out n_in"]) -> Float[Tensor, " batch"]:
    """``of_factors`` of J itself."""
    if towards == "orthogonal":
        j = j @ j.mT if j.shape[1] <= j.shape[2] else j.mT @ j
    if towards in ("identity", "orthogonal"):
        return (j - torch.eye(j.shape[1], dtype=j.dtype, device=j.device)).square().sum((1, 2))
    squares = j.square().sum((1, 2))
    if towards == "zero":
        return squares
    return squares - j.diagonal(dim1=1, dim2=2).sum(1).square() / j.shape[1]
