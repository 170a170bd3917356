"""Settings of torch that choose the kernels of a network, changed for a block and restored after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

# Recurrent layers as one kernel, as operators ...
FUSED_OPERATORS = frozenset(("aten._cudnn_rnn", "aten.miopen_rnn", "aten.mkldnn_rnn_layer"))
# ... and how the names of their nodes in a gradient graph begin: those without a second derivative,
FUSED_NODES = ("CudnnRnn", "MiopenRnn", "MkldnnRnn", "ThnnFused")
# and those of an accelerator's library, whose backward pass also asks for training mode.
LIBRARY_NODES = ("CudnnRnn", "MiopenRnn")

# Backends and operators for which torch has a setting that allows TF32 or bfloat16 in place of float32.
REDUCIBLE = [
    (backend, part)
    for backend in ("cuda", "mkldnn")
    for part in ("matmul", "conv", "rnn")
    if backend == "mkldnn" or torch.backends.cuda.is_built()
]
_SHORT = ("tf32", "bf16")
_torch: Any = torch._C
# The older interface to them: functions that read and write a setting, and the value that stands for float32.
_OLDER: list[tuple[Any, Any, Any]] = [
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (_torch._get_cudnn_allow_tf32, _torch._set_cudnn_allow_tf32, False),
]


@contextmanager
def unfused() -> Iterator[None]:
    """Recurrent layers by the operators that they are made of, which have all derivatives."""
    onednn, cudnn = _torch._get_mkldnn_enabled(), _torch._get_cudnn_enabled()
    _torch._set_mkldnn_enabled(False)
    _torch._set_cudnn_enabled(False)
    try:
        yield
    finally:
        _torch._set_mkldnn_enabled(onednn)
        _torch._set_cudnn_enabled(cudnn)


@contextmanager
def full_precision() -> Iterator[None]:
    """Products and convolutions of float32 in float32: TF32, which cuDNN takes unasked, puts 5e-4 of J aside.

    Torch has two interfaces to this. The older one refuses to tell what the newer one alone has changed; both are
    kept in step, since a network may ask the older one.
    """
    before = {part: _torch._get_fp32_precision_getter(*part) for part in REDUCIBLE}
    short = [part for part, kind in before.items() if kind in _SHORT]
    if not short:
        yield
        return
    older = []
    for read, write, full in _OLDER:
        with suppress(RuntimeError):
            older.append((write, read(), full))
    try:
        for write, was, full in older:
            if was != full:
                write(full)
        for part in short:
            _torch._set_fp32_precision_setter(*part, "ieee")
        yield
    finally:
        for write, was, full in older:
            if was != full:
                write(was)
        for part, kind in before.items():
            _torch._set_fp32_precision_setter(*part, kind)
