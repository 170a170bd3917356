"""Parameters that a forward pass writes to: a write is stopped before it happens, and nothing has to be undone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from jaccli.runtime.dispatch import Mode, passed


class ParameterWritten(BaseException):
    """A pass was about to write to a parameter's storage, or has given the parameter another one.

    Not an ``Exception``: a model's own ``except Exception`` must not swallow it.
    """

    def __init__(self, storage: int) -> None:
        super().__init__()
        self.storage = storage


class WriteWatch(Mode):
    """A dispatch mode that raises ``ParameterWritten`` in place of an operator that writes to one of the storages.

    Cost: some 4 µs an operator.

    Attributes:
        written: the first storage that was to be written to; set even if the model swallowed the exception.
    """

    def __init__(self, storages: Iterable[int]) -> None:
        super().__init__()
        self.storages = frozenset(storages)
        self.written: int | None = None

    def leave(self) -> None:
        """Stop watching, also if an interrupt came while the mode was entered or left."""
        self.storages = frozenset()
        if _get_current_dispatch_mode() is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def see(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for argument in _written_arguments(op):
            for tensor in _tensors(argument(args, kwargs)):
                if (storage := storage_of(tensor)) in self.storages:
                    # Set first: a model's bare ``except`` may swallow the exception.
                    self.written = storage
                    raise ParameterWritten(storage)
        return passed(op, args, kwargs)


# Picks one argument of a call.
Argument = Callable[[tuple[Any, ...], dict[str, Any]], Any]


# Cached by operator: it is asked for at every operator call of a pass.
@cache
def _written_arguments(op: Any) -> tuple[Argument, ...]:
    """The arguments that an operator writes to, by its schema."""
    if not isinstance(op, torch._ops.OpOverload):
        return ()
    arguments = enumerate(op._schema.arguments)
    return tuple(_argument(i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def _argument(position: int, name: str) -> Argument:
    return lambda args, kwargs: args[position] if position < len(args) else kwargs.get(name)


def _tensors(value: Any) -> Iterable[Tensor]:
    """Those, of any shapes, in an argument of an operator."""
    if isinstance(value, Tensor):
        return (value,)
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, list | tuple) else ()


def storage_of(tensor: Tensor) -> int:
    """A number that tensors of one storage share, whatever their shapes; 0 of a tensor without memory of its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # a sparse tensor, or a subclass without memory of its own
        return 0
