"""An accelerator that every machine has: its memory is the CPU's, its rules are those of a real one.

Tensors of the device ``standin`` share no operator with tensors of the CPU: each call that mixes them is refused where
CUDA refuses it, with CUDA's words, and is written down in ``REFUSED``, since a caller may take another way in silence.
What CUDA allows (``aten/src/ATen/TensorIterator.cpp``, ``native/IndexingUtils.h``) passes: copies, a CPU scalar in an
elementwise operator, an index list on the CPU in ``x[index]``.

It is torch's own place for devices of others (``PrivateUse1``): tensors have this device, memory of their own and
views of it, and go through autograd, vmap, forward mode and dispatch modes as any others do. Operators run on the
same memory as CPU tensors. Registered once in a process, before its first backward pass: autograd then starts a
thread for each device there is. It says that it is absent but within ``present``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

NAME = "standin"
REFUSED: list[str] = []

_aten: Any = torch.ops.aten
_KEYS: Any = torch._C.DispatchKey
_LIBRARIES: list[torch.library.Library] = []
# Copies between devices are what these are for.
_COPIES = frozenset(("copy_", "_copy_from", "_copy_from_and_resize", "_to_copy"))
# Elementwise, though torch does not mark them so; their value or condition may be a scalar of the CPU.
_TAKE_SCALARS = frozenset(("where", "masked_fill", "masked_fill_", "fill", "fill_"))
# The index may be on the CPU, a value that is one number too.
_INDEXED = frozenset(("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"))


class _Module:
    """``torch.standin``: what callers ask a device's module for."""

    here = False
    held = 0

    def is_available(self) -> bool:
        return self.here

    def device_count(self) -> int:
        return int(self.here)

    def current_device(self) -> int:
        return 0

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def synchronize(self, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    # Random numbers come from the CPU's generator.
    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        pass

    def memory_allocated(self, device: Any = None) -> int:
        return 0

    max_memory_allocated = memory_allocated


_Generator = torch.Generator
_GENERATORS: list[torch.Generator] = []


class _Named(_Generator):
    """``torch.Generator(device="standin")``: torch lets no device of Python's make one."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = _Generator()
        if torch.device(device).type == NAME:
            _GENERATORS.append(made)
        return made


MODULE = _Module()


@contextmanager
def present() -> Iterator[torch.device]:
    """Within, the machine has the device. What was refused stands in ``REFUSED``."""
    REFUSED.clear()
    _GENERATORS.clear()
    with (
        patch.object(MODULE, "here", True),
        patch.object(torch, "Generator", _Named),
        patch.object(torch.accelerator, "synchronize", MODULE.synchronize),
        patch.object(torch.UntypedStorage, "clone", _clone),
    ):
        yield torch.device(NAME, 0)


def register() -> None:
    """Make the device known to torch; once in a process."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    if _LIBRARIES:
        return
    _setup_privateuseone_for_python_backend(NAME, backend_module=MODULE)  # type: ignore[no-untyped-call]
    every, named = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(_run, "PrivateUse1")
    # Torch would take these apart into others, and name what is refused there itself.
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CompositeExplicitAutogradNonFunctional"):
        named.impl(name, partial(_run, _overload(name)), "PrivateUse1")
    for name, kernel in _KERNELS.items():
        named.impl(name, kernel, "PrivateUse1")
    _LIBRARIES.extend((every, named))


# --- memory -----------------------------------------------------------------------------------------------------------


def _on_host(tensor: Tensor) -> Tensor:
    """The CPU tensor of the same memory."""
    memory: Any = tensor.untyped_storage()
    if not hasattr(memory, "host"):  # made by torch, of no size
        memory.host = torch.UntypedStorage(memory.nbytes())
    made = torch.empty(0, dtype=tensor.dtype)
    made = made.set_(memory.host, tensor.storage_offset(), tensor.size(), tensor.stride())  # type: ignore[call-overload]
    made = torch._conj(made) if tensor.is_conj() else made
    return torch._neg_view(made) if tensor.is_neg() else made


def _memory_of(host: torch.UntypedStorage) -> Any:
    made: Any = torch._C._construct_storage_from_data_pointer(host.data_ptr(), torch.device(NAME, 0), host.nbytes())
    made.host = host  # keeps it alive
    return made


def _clone(memory: Any, clone: Callable[[Any], Any] = torch.UntypedStorage.clone) -> Any:
    """Torch itself would ask an allocator that is not there."""
    return clone(memory) if memory.device.type != NAME else _memory_of(clone(memory.host))


def _place(tensor: Tensor, memory: Any, like: Tensor) -> Tensor:
    set_ = _aten.set_.source_Storage_storage_offset
    set_._op_dk(_KEYS.CPU, tensor, memory, like.storage_offset(), like.size(), like.stride())
    return tensor


def _on_device(host: Tensor, memories: dict[int, Any]) -> Tensor:
    """The device's tensor of the same memory."""
    if host._is_zerotensor():
        host = torch.zeros(host.size(), dtype=host.dtype)
    storage = host.untyped_storage()
    memory = memories.setdefault(storage._cdata, None) or _memory_of(storage)
    memories[storage._cdata] = memory
    made = _place(torch._C._acc.create_empty_tensor([0], host.dtype), memory, host)
    torch._C._set_conj(made, host.is_conj())
    torch._C._set_neg(made, host.is_neg())
    return made


# --- operators --------------------------------------------------------------------------------------------------------


def _is_here(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == NAME


def _each(f: Callable[[Any], Any], tree: Any) -> Any:
    return type(tree)(_each(f, item) for item in tree) if type(tree) in (list, tuple) else f(tree)


def _leaves(tree: Any) -> Iterator[Any]:
    if type(tree) in (list, tuple):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operator: refused where it mixes devices, else run on the same memory by the CPU."""
    _check(op, args, kwargs)
    return _call(op, args, kwargs)


def _call(op: Any, args: Any, kwargs: Any) -> Any:
    hosts: dict[int, tuple[Tensor, Tensor]] = {}
    memories: dict[int, Any] = {}

    def down(value: Any) -> Any:
        if _is_here(value):
            if id(value) not in hosts:
                hosts[id(value)] = (value, _on_host(value))
                memories[hosts[id(value)][1].untyped_storage()._cdata] = value.untyped_storage()
            return hosts[id(value)][1]
        return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value

    def up(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        for mine, host in hosts.values():
            if host is value:
                return mine
        return _on_device(value, memories)

    with torch._C._AutoDispatchBelowAutograd():
        given, named = _each(down, args), {key: _each(down, value) for key, value in kwargs.items()}
        before = {key: host.untyped_storage().data_ptr() for key, (_, host) in hosts.items()}
        found = op(*given, **named)
        for key, (mine, host) in hosts.items():
            moved = host.untyped_storage().data_ptr() != before[key]
            if moved or host.size() != mine.size() or host.stride() != mine.stride():
                memories[host.untyped_storage()._cdata] = memory = _memory_of(host.untyped_storage())
                _place(mine, memory, host)
        here = bool(hosts) or NAME in str(kwargs.get("device"))
        return _each(up, found) if here else found


def _overload(name: str) -> Any:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    return getattr(getattr(_aten, packet), overload or "default")


@cache
def _rules(op: Any) -> tuple[str, bool, list[bool]]:
    """The operator's name, whether it takes scalars of the CPU, which of its arguments it writes into."""
    name = op.overloadpacket.__name__
    written = [bool(s.alias_info and s.alias_info.is_write) for s in op._schema.arguments]
    return name, torch.Tag.pointwise in op.tags or name in _TAKE_SCALARS or name in _INDEXED, written


def _check(op: Any, args: Any, kwargs: Any) -> None:
    name, scalars, writes = _rules(op)
    leaves = list(_leaves((args, *kwargs.values())))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    for leaf in leaves:
        if isinstance(leaf, _Generator) and leaf._cdata not in {one._cdata for one in _GENERATORS}:
            _refuse(f"Expected a '{NAME}' device type for generator but found 'cpu' ({op})")
    if name in _COPIES or not any(map(_is_here, tensors)):
        return
    if name in _INDEXED and _is_here(args[0]):
        tensors = [] if len(args) < 3 else [args[2]]
    written = {id(a) for a, w in zip(args, writes, strict=False) if w} | {id(kwargs.get("out"))}
    for tensor in tensors:
        if not _is_here(tensor) and not (scalars and tensor.dim() == 0 and id(tensor) not in written):
            shapes = ", ".join(f"{tuple(t.shape)} on {t.device}" for t in tensors)
            _refuse(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and cpu! ({op}: {shapes})"
            )


def _refuse(why: str) -> None:
    REFUSED.append(why)
    raise RuntimeError(why)


# --- operators that torch does not hand to a fallback -----------------------------------------------------------------


def _set(overload: str) -> Callable[..., Any]:
    """Tensors of a device on memory of the device: the CPU's kernel does not look at which."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        return getattr(_aten.set_, overload)._op_dk(_KEYS.CPU, *args, **kwargs)

    return kernel


def _copy(into: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _call(_aten.copy_.default, (into, source), {})
    return into


def _convolution(*args: Any) -> Any:
    return _run(_aten.convolution.default, *args)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    groups, transposed = rest[5], rest[3]
    width = weight.shape[1] * groups if transposed else weight.shape[0]
    return _run(_aten.convolution_backward.default, grad, x, weight, [width], *rest)


def _by(compute: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel by operators of the CPU, of tensors that are all here."""

    def kernel(*args: Any) -> Any:
        return _call(compute, args, {})

    return kernel


def _lstm_cell(given: Tensor, hidden: Tensor, cx: Tensor, *biases: Tensor | None) -> Any:
    gates = sum((b for b in biases if b is not None), given + hidden).chunk(4, 1)
    i, f, g, o = gates[0].sigmoid(), gates[1].sigmoid(), gates[2].tanh(), gates[3].sigmoid()
    cy = f * cx + i * g
    return o * cy.tanh(), cy, torch.cat([i, f, g, o], 1)


def _lstm_cell_backward(
    grad_hy: Tensor | None, grad_cy: Tensor | None, cx: Tensor, cy: Tensor, gates: Tensor, bias: bool
) -> Any:
    i, f, g, o = gates.chunk(4, 1)
    there = cy.tanh()
    dh = torch.zeros_like(cy) if grad_hy is None else grad_hy
    dc = dh * o * (1 - there**2) + (0 if grad_cy is None else grad_cy)
    parts = (dc * g * i * (1 - i), dc * cx * f * (1 - f), dc * i * (1 - g**2), dh * there * o * (1 - o))
    moved = torch.cat(parts, 1)
    return moved, dc * f, moved.sum(0) if bias else None


def _gru_cell(given: Tensor, hidden: Tensor, hx: Tensor, *biases: Tensor | None) -> Any:
    x, h = (a if b is None else a + b for a, b in zip((given, hidden), biases or (None, None), strict=True))
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), h.chunk(3, 1)
    r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
    n = (xn + r * hn).tanh()
    return n + z * (hx - n), torch.cat([r, z, n, hx, hn], 1)


def _gru_cell_backward(grad_hy: Tensor, workspace: Tensor, bias: bool) -> Any:
    r, z, n, hx, hn = workspace.chunk(5, 1)
    dn = grad_hy * (1 - z) * (1 - n**2)
    dr, dz = dn * hn * r * (1 - r), grad_hy * (hx - n) * z * (1 - z)
    x, h = torch.cat([dr, dz, dn], 1), torch.cat([dr, dz, dn * r], 1)
    return x, h, grad_hy * z, x.sum(0) if bias else None, h.sum(0) if bias else None


_KERNELS: dict[str, Callable[..., Any]] = {
    **{f"set_.{overload}": _set(overload) for overload in ("source_Storage", "source_Storage_storage_offset")},
    "set_.source_Tensor": _set("source_Tensor"),
    "set_": _set("default"),
    "copy_": _copy,
    "convolution_overrideable": _convolution,
    "convolution_backward_overrideable": _convolution_backward,
    # Accelerators run the cell of a recurrent layer as one kernel, and the CPU has none.
    "_thnn_fused_lstm_cell": _by(_lstm_cell),
    "_thnn_fused_lstm_cell_backward_impl": _by(_lstm_cell_backward),
    "_thnn_fused_gru_cell": _by(_gru_cell),
    "_thnn_fused_gru_cell_backward": _by(_gru_cell_backward),
}
