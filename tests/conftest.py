"""What holds for all tests: nothing is read from, or written to, the user's cache folder; there is a device to test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests import shapes, standin

# Before the first import of jaccli.
shapes.install()

# Before any backward pass of this process; a real accelerator is torch's only one.
if not torch.accelerator.is_available():
    standin.register()


@pytest.fixture(scope="session", autouse=True)
def _cache_apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("JACCLI_CACHE_DIR")
    os.environ["JACCLI_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["JACCLI_CACHE_DIR"]
    else:
        os.environ["JACCLI_CACHE_DIR"] = before
