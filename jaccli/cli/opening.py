"""The first steps of a command that works with a model: check the requests, import torch, load."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from jaccli.cli.endings import limits
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest
from jaccli.cli.run_request import BlocksRequest

if TYPE_CHECKING:
    from jaccli.cli.work import Loaded


def check_files(model: ModelRequest, inputs: InputRequest, pair: PairRequest) -> None:
    """Check names and files, before torch is imported.

    Raises:
        UsageError, RefusedError: as the ``check`` of each request.
    """
    model.check()
    pair.check()
    inputs.check()


@contextlib.contextmanager
def loaded(model: ModelRequest, inputs: InputRequest, pair: PairRequest, how: BlocksRequest) -> Iterator[Loaded]:
    """A network, its input and the layer pairs; inside, the limits of time and memory hold.

    Raises:
        UsageError, RefusedError: as ``check_files`` and ``work.load``.
        ResourceError: the time is over.
    """
    check_files(model, inputs, pair)
    from jaccli.cli import work

    with limits(how):
        yield work.load(model, inputs, pair)
