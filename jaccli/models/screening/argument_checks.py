"""Checks of arguments that PyTorch's kernels do not make themselves, before the kernels run.

Some operators that real networks use crash the process, or read memory that is not theirs, on arguments
that no real network gives them. A model file is a stranger's: each of these operators is checked first.
A check gets the operator's name and its arguments by name; it refuses them, or gives None and the operator
runs, or (division) gives the result itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from jaccli.errors import RefusedError

if TYPE_CHECKING:
    from jaxtyping import Shaped


@cache
def guarded(op: Callable[..., Any]) -> Callable[..., Any]:
    """An overload of an ``aten`` operator, behind a check of its arguments where it does none itself.

    The check costs some microseconds. Operators that need none, and plain functions, are handed back as they are.

    Raises:
        RefusedError: later, from the call: arguments that would crash the process.
    """
    schema: Any = getattr(op, "_schema", None)
    namespace, _, name = schema.name.partition("::") if schema is not None else ("", "", "")
    check = _CHECKS.get(name.removesuffix("_")) if namespace in ("aten", "prims") else None
    if check is None:
        return op
    names = [argument.name for argument in schema.arguments]

    def checked(*args: Any, **kwargs: Any) -> Any:
        by_name = {**dict(zip(names, args, strict=False)), **kwargs}
        result = check(name, by_name)
        if result is None:
            return op(*args, **kwargs)
        return by_name["self"].copy_(result) if name.endswith("_") else result

    return checked


def _refuse(name: str, why: str) -> RefusedError:
    return RefusedError(
        f"the model calls {name} in a way that would crash: {why}",
        "arguments that fit together",
        "check the input, and whether the model file is whole and from a source you trust",
    )


def _batch_norm(name: str, args: dict[str, Any]) -> None:
    """The kernels read one number for each channel of ``input`` ``(batch, channels, …)``, unchecked."""
    x = args["input"]
    channels = x.shape[1] if x.dim() > 1 else 1
    for key in ("weight", "bias", "running_mean", "running_var"):
        vector = args.get(key)
        if isinstance(vector, Tensor) and vector.numel() != channels:
            raise _refuse(name, f"{key} has {vector.numel()} numbers for {channels} channels")


def _weight_norm(name: str, args: dict[str, Any]) -> None:
    """``g`` has one number for each slice of ``v`` along ``dim``."""
    v, g, dim = args["v"], args["g"], args.get("dim", 0)
    if not v.numel():
        raise _refuse(name, "v is empty")
    if v.dim() and dim in (0, v.dim() - 1) and g.numel() != v.shape[dim]:
        raise _refuse(name, f"g has {g.numel()} numbers for {v.shape[dim]}")


def _attention(name: str, args: dict[str, Any]) -> None:
    """``query`` ``(…, n_q, d)``, ``key`` ``(…, n_k, d)``, ``value`` ``(…, n_k, d_v)``.

    The kernels themselves take four dimensions: ``(batch, heads, n, d)``.
    """
    q, k, v = args["query"], args["key"], args["value"]
    if min(q.dim(), k.dim(), v.dim()) < 2 or k.shape[-2] != v.shape[-2] or q.shape[-1] != k.shape[-1]:
        raise _refuse(name, "query, key and value do not fit")
    if args.get("enable_gqa") and _heads_do_not_divide(q, k, v):
        raise _refuse(name, "heads of query, key and value do not fit")
    kernel = name.startswith("_") and not name.endswith("_math")
    if kernel and (q.dim() != 4 or k.shape[:2] != v.shape[:2] or q.shape[0] != k.shape[0] or q.shape[1] % k.shape[1]):
        raise _refuse(name, "query, key and value do not fit")


def _heads_do_not_divide(q: Shaped[Tensor, "..."], *others: Shaped[Tensor, "..."]) -> bool:
    """Whether the heads of ``q`` cannot be shared out among those of the others: the kernel divides by their number."""
    if min(q.dim(), *(other.dim() for other in others)) < 3:
        return True
    return any(not other.shape[-3] or q.shape[-3] % other.shape[-3] for other in others)


def _transform(name: str, args: dict[str, Any]) -> None:
    """A Fourier transform below torch.fft, which does not check dimensions and sizes."""
    x, dims = args["self"], list(args["dim"])
    dtypes = (torch.float32, torch.float64) if name.endswith("r2c") else (torch.complex64, torch.complex128)
    if x.dtype not in dtypes:
        raise _refuse(name, f"numbers of {x.dtype}")
    if not dims or not all(0 <= dim < x.dim() for dim in dims):
        raise _refuse(name, "a dimension that is not there")
    if len(set(dims)) < len(dims) or not 0 <= int(args.get("normalization", 0)) <= 2:
        raise _refuse(name, "a dimension that is named twice, or a scale that does not exist")
    length = args.get("last_dim_size")
    if min(x.shape[dim] for dim in dims) < 1 or (length is not None and x.shape[dims[-1]] != length // 2 + 1):
        raise _refuse(name, "a size that does not fit")


def _pivots(name: str, args: dict[str, Any]) -> None:
    """LAPACK swaps the rows that pivots name, counted from 1 (and negative for blocks of two)."""
    pivots = args.get("pivots", args.get("LU_pivots"))
    matrix = args.get("LU", args.get("LD", args.get("LU_data")))
    if pivots is None or matrix is None or matrix.dim() < 2:
        raise _refuse(name, "no matrix, or no pivots")
    if pivots.is_floating_point() or _beyond(pivots.abs(), 1, matrix.shape[-2]):
        raise _refuse(name, "a pivot that is no row")


def _distances(name: str, args: dict[str, Any]) -> None:
    """``self`` is ``(points, coordinates)``, and not empty."""
    if args["self"].dim() != 2 or not args["self"].shape[0]:
        raise _refuse(name, "no points")


def _power(name: str, args: dict[str, Any]) -> None:
    """The smallest integer has no opposite: the loop over the bits of its size does not end."""
    if args["n"] == -(1 << 63):
        raise _refuse(name, "an exponent of -2^63")


def _not_empty(name: str, args: dict[str, Any]) -> None:
    """A list of tensors that is not empty."""
    if not args.get("tensors"):
        raise _refuse(name, "no tensors")


_GATES: Final = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _recurrent(name: str, args: dict[str, Any]) -> None:
    """Weights, state and input fit: oneDNN does not check their sizes.

    ``input`` is ``(time, batch, width)``, or ``(rows, width)`` packed; each state is
    ``(layers * directions, batch, hidden)``.
    """
    states = args["hx"] if isinstance(args["hx"], (list, tuple)) else [args["hx"]]
    params: Sequence[Tensor] = args["params"]
    data = args.get("input", args.get("data"))
    assert isinstance(data, Tensor)
    directions, layers, biases = 1 + bool(args["bidirectional"]), int(args["num_layers"]), bool(args["has_biases"])
    hidden, width = states[0].shape[-1], data.shape[-1]
    # Tensors of one layer in one direction: for input and state a weight each, biases, at last a projection.
    step = 2 * (1 + biases)
    projected = len(states) > 1 and states[1].shape[-1] != hidden
    cell = states[1].shape[-1] if projected else hidden
    step += projected
    if "batch_sizes" in args:
        _batch_sizes(name, args["batch_sizes"], data.shape[0])
    elif data.dim() == 3:
        batch = data.shape[0 if args.get("batch_first") else 1]
        if any(state.dim() != 3 or state.shape[:2] != (layers * directions, batch) for state in states):
            raise _refuse(name, "the state does not fit the input")
    if len(params) != layers * directions * step:
        raise _refuse(name, f"{len(params)} weights for {layers} layers")
    for index in range(0, len(params), step):
        before = width if index // step < directions else hidden * directions
        gates = _GATES[name] * cell
        shapes = [(gates, before), (gates, hidden), *([(gates,)] * (2 * biases)), *([(hidden, cell)] * projected)]
        if [tuple(p.shape) for p in params[index : index + step]] != shapes:
            raise _refuse(name, "a weight does not fit the state and the input")


def _batch_sizes(name: str, sizes: Shaped[Tensor, "..."], rows: int) -> None:
    """Sizes of a packed batch at each time: they fall, and add up to the rows of the data."""
    if _is_batched(sizes):
        return
    listed = sizes.flatten().tolist()
    falling = all(a >= b for a, b in pairwise(listed))
    if not listed or not falling or listed[-1] < 1 or sum(listed) != rows:
        raise _refuse(name, "the batch sizes do not fit the data")


def _unpacking(name: str, args: dict[str, Any]) -> None:
    _batch_sizes(name, args["batch_sizes"], args["data"].shape[0])


def _packing(name: str, args: dict[str, Any]) -> None:
    """Lengths of sequences are at most that of ``input``."""
    x, lengths = args["input"], args["lengths"]
    longest = x.shape[1 if args.get("batch_first") else 0]
    if _beyond(lengths, 1, longest):
        raise _refuse(name, "lengths beyond the input")


def _ctc(name: str, args: dict[str, Any]) -> None:
    """Labels index the classes of ``log_probs`` ``(time, batch, classes)``, unchecked."""
    targets, classes = args["targets"], args["log_probs"].shape[-1]
    if not 0 <= int(args.get("blank", 0)) < classes:
        raise _refuse(name, "the blank is no class")
    if _beyond(targets, 0, classes - 1):
        raise _refuse(name, "a target is no class")


def _fractional(name: str, args: dict[str, Any]) -> None:
    """Random samples choose the windows: from 0 to below 1."""
    samples = args["random_samples"]
    if not _is_batched(samples) and not bool(((samples >= 0) & (samples < 1)).all()):
        raise _refuse(name, "random samples outside of [0, 1)")


def _finite(name: str, args: dict[str, Any]) -> None:
    """LAPACK crashes on infinity and NaN, or prints about them."""
    first = args.get("self", args.get("A", args.get("input")))
    if isinstance(first, Tensor) and not _is_batched(first) and not bool(first.isfinite().all()):
        raise _refuse(name, "a matrix with infinite or undefined entries")


def _division(_: str, args: dict[str, Any]) -> Shaped[Tensor, "..."] | None:
    """The smallest integer divided by -1 is a trap of the processor."""
    a, b = args["self"], args["other"]
    whole = not (isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex()))
    whole &= isinstance(b, int) or (isinstance(b, Tensor) and not (b.is_floating_point() or b.is_complex()))
    if not whole or args.get("rounding_mode") != "trunc":
        return None
    b = b if isinstance(b, Tensor) else torch.tensor(b)
    minus = b == -1
    return torch.where(minus, -a, torch.div(a, torch.where(minus, 1, b), rounding_mode="trunc"))


def _sparse(name: str, args: dict[str, Any]) -> None:
    """Indices ``(dimensions, entries)``: kernels write there unchecked."""
    indices, size = args.get("indices"), args.get("size")
    if not isinstance(indices, Tensor):
        raise _refuse(name, "a compressed sparse tensor, whose indices nobody checks")
    if _is_batched(indices) or not indices.numel():
        return
    limits = torch.tensor(list(size or ())[: indices.shape[0]], device=indices.device)
    if int(indices.min()) < 0 or (size is not None and len(limits) != indices.shape[0]):
        raise _refuse(name, "indices that do not fit the size")
    if size is not None and bool((indices.amax(1) >= limits).any()):
        raise _refuse(name, "an index beyond the size")


def _beyond(numbers: Shaped[Tensor, "..."], low: int, high: int) -> bool:
    """Whether one of some whole numbers is not from ``low`` to ``high``; False where nobody can look."""
    if _is_batched(numbers) or not numbers.numel():
        return False
    return not low <= int(numbers.min()) <= int(numbers.max()) <= high


def _is_batched(tensor: Shaped[Tensor, "..."]) -> bool:
    """Whether a tensor stands for many inside ``vmap``, and cannot be looked into."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


_CHECKS: Final[dict[str, Callable[[str, dict[str, Any]], Tensor | None]]] = {
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_functional"),
            *("_native_batch_norm_legit_no_training", "_batch_norm_impl_index", "_batch_norm_no_update"),
            *("_batch_norm_with_update", "_batch_norm_with_update_functional"),
        ),
        _batch_norm,
    ),
    **dict.fromkeys(("_weight_norm", "_weight_norm_interface"), _weight_norm),
    **dict.fromkeys(
        (
            *("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_flash_attention"),
            *("_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention"),
            "_scaled_dot_product_efficient_attention",
        ),
        _attention,
    ),
    **dict.fromkeys(("_fft_c2c", "_fft_c2r", "_fft_r2c", "fft_c2c", "fft_c2r", "fft_r2c"), _transform),
    **dict.fromkeys(("stack", "_stack", "cat"), _not_empty),
    **dict.fromkeys(("lu_solve", "lu_unpack", "linalg_lu_solve", "linalg_ldl_solve"), _pivots),
    "_pdist_forward": _distances,
    **dict.fromkeys(("matrix_power", "linalg_matrix_power"), _power),
    **dict.fromkeys(_GATES, _recurrent),
    "_pack_padded_sequence": _packing,
    "_pad_packed_sequence": _unpacking,
    **dict.fromkeys(("ctc_loss", "_ctc_loss"), _ctc),
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), _fractional),
    **dict.fromkeys(("linalg_eigvals", "_linalg_eigvals", "linalg_lstsq", "linalg_eig"), _finite),
    **dict.fromkeys(
        (
            *("sparse_coo_tensor", "sparse_csr_tensor", "sparse_csc_tensor", "sparse_bsr_tensor"),
            *("sparse_bsc_tensor", "sparse_compressed_tensor"),
        ),
        _sparse,
    ),
    **dict.fromkeys(("div", "divide"), _division),
}
