"""What errors of torch mean."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from jaccli.runtime.torch_errors import is_out_of_memory, reraise_out_of_memory


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes do not fit"), False),
    ],
)
def test_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
    with pytest.raises(type(error)) if expected else nullcontext():
        reraise_out_of_memory(error)
