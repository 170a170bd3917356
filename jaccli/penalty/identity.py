"""How far J is from what a training step wants it to be: ``jaccli.identity_deviation``, and further ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from jaccli.activations.record import Inputs
from jaccli.backward_graph.differentiable_rows import wide
from jaccli.errors import UsageError, warn
from jaccli.linear_maps.norms import power_of_two
from jaccli.names import check_count
from jaccli.penalty.call_site import Analysis, accumulated, asking, live_pass, site_of
from jaccli.penalty.verify import Request
from jaccli.run.program_runner import contiguous

Towards = Literal["identity", "scaled-identity", "orthogonal", "zero"]
Estimator = Literal["exact", "hutchinson"]


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

    ``exact`` accumulates J by the structured method and lets gradients flow through that; a J that goes
    through a bottleneck LR is never multiplied out, ‖LR − I‖² = ⟨LᵀL, RRᵀ⟩ − 2 tr RL + n. Where the engine
    cannot see the network, J is made of n backward passes. ``hutchinson`` is the mean over probes of
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
    Of the first call with samples of a shape, a look at the network: whether samples mix, and how J is made.

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
    """As ``identity_deviation``, of J from another end.

    ``scaled-identity``: ‖J − αI‖_F² at its best α = tr J/n; by ``hutchinson`` with α of the same probe, which
    makes it too small by 2‖J‖_F²/n at most. ``orthogonal``: ‖JJᵀ − I‖_F², or ‖JᵀJ − I‖_F² of a J with fewer columns
    than rows; a probe takes two products more. ``zero``: ‖J‖_F². The last two take a J of any shape.
    """
    _check(towards, estimator, probes)
    given = (towards, model, x, (source, target), estimator, probes, generator, args, kwargs)
    if torch.compiler.is_compiling():
        # Dynamo would trace hooks and dispatch modes; what is disabled runs as it is, between two graphs.
        apart: Tensor = torch.compiler.disable(_deviation)(*given)
        return apart
    return _deviation(*given)


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
    wanted = torch.is_grad_enabled()
    network, site = site_of(model, x, names, args, kwargs)
    inputs = contiguous(Inputs.of(x, args, kwargs, site.dim))
    count, there_and_back = (probes if estimator == "hutchinson" else 0), towards == "orthogonal"
    wish = Request(count, there_and_back and count > 0, "identity" in towards)
    seen = site.look(network, inputs, wish)
    wanted = wanted and bool(asking(seen, inputs))
    site.verify(network, inputs, seen, wish, wanted)
    v = _signs(seen, count, there_and_back, generator) if count else None
    made = accumulated(seen, inputs, *([] if v is None else [v]))
    if made is None and seen.accumulation is not None:  # another branch
        seen = seen.elsewhere()
        site.verify(network, inputs, seen, wish, wanted)
    if made is None:
        with live_pass(network, site.pair, seen, inputs, wanted) as rows:
            made = (rows.matrix() if v is None else rows.images(v, there_and_back),)
    take = partial(of_factors, towards) if v is None else partial(_of_probes, towards, v)
    found = take(*made)
    if found.device.type == "cpu" or not wanted:  # elsewhere each look would wait for the device
        found = _in_range(found, made, take, relative=towards in ("zero", "scaled-identity"))
    return found if wanted else found.detach()


def _signs(seen: Analysis, count: int, there_and_back: bool, generator: torch.Generator | None) -> Tensor:
    """±1, ``(batch, n, count)``, over the target; over the source where products go there and back from it."""
    batch, n_out, n_in = seen.shape
    n = min(n_out, n_in) if there_and_back else n_out
    signs = torch.empty(batch, n, count, dtype=seen.dtype, device=seen.device)
    return signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _of_probes(towards: Towards, v: Tensor, image: Tensor) -> Tensor:
    """The mean over probes v of ‖Jᵀv − v‖², ‖Jᵀv − αv‖², ‖JJᵀv − v‖² or ‖Jᵀv‖²: ``(batch, n, k)`` → ``(batch,)``."""
    if towards == "scaled-identity":
        image = image - (image * v).sum(1, keepdim=True) / v.shape[1] * v
    elif towards != "zero":
        image = image - v
    return wide(image).square().sum(1).mean(1)


def _in_range(found: Tensor, made: Sequence[Tensor], take: Callable[..., Tensor], relative: bool) -> Tensor:
    """A square that its dtype has no number for is a warning, and inf, not NaN, where it is too large.

    Args:
        found: ``take(*made)``, ``(batch,)``.
        made: J of each sample, its factors, or products with it.
        take: squared distance.
        relative: it is 0 with J, so that it may be too small as well.
    """
    kind, value = torch.finfo(found.dtype), found.detach()
    if not bool((~value.isfinite() | (value < kind.tiny)).any()):
        return found
    finite = torch.stack([factor.detach().isfinite().flatten(1).all(1) for factor in made]).all(0)
    beyond = over = ~value.isfinite() & finite
    if relative:
        near_one = (f.detach() / power_of_two(f, (1, 2)).reshape(-1, 1, 1).to(f) for f in made)
        beyond = over | ((value < kind.tiny) & (take(*near_one) > kind.eps))
    if not bool(beyond.any()):
        return found
    name = str(found.dtype).removeprefix("torch.")
    warn(f"the squared distance of {int(beyond.sum())} of {len(found)} samples is beyond the range of {name}")
    return torch.where(over, torch.inf, found)


def of_factors(towards: Towards, *factors: Tensor) -> Tensor:
    """The squared distance of J, ``(batch, …)``, or of J = LR without multiplying: ``(batch,)``."""
    first, last = (wide(factor) for factor in (factors[0], factors[-1]))
    n = min(first.shape[1], last.shape[2])
    if len(factors) == 1 and towards == "identity":
        return (first - torch.eye(n, dtype=first.dtype, device=first.device)).square().sum((1, 2))
    if len(factors) == 1:
        j = first
        gram = (j @ j.mT if j.shape[1] <= j.shape[2] else j.mT @ j) if towards == "orthogonal" else None
        squares = j.square().sum((1, 2))
        trace = j.diagonal(dim1=1, dim2=2).sum(1)
    else:
        left, right = first.mT @ first, last @ last.mT
        gram = left @ right if towards == "orthogonal" else None
        squares = (left * right).sum((1, 2))
        trace = (first * last.mT).sum((1, 2)) if "identity" in towards else squares
    if gram is not None and len(factors) == 1:
        return (gram - torch.eye(n, dtype=gram.dtype, device=gram.device)).square().sum((1, 2))
    if gram is not None:  # ‖JJᵀ‖² = tr (LᵀL RRᵀ)²
        return (gram * gram.mT).sum((1, 2)) - 2 * squares + n
    if towards == "identity":  # ‖J - I‖² is n - m at least, so that little cancels
        return squares - 2 * trace + n
    return squares - trace.square() / n if towards == "scaled-identity" else squares
