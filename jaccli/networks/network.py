"""The interface of a model: run it, and see and replace its activations at module boundaries.

Every model format becomes a ``Network``. A run reports the boundaries of module calls to a ``Tap``, which may return
another value (this is how an activation becomes a variable) or raise ``StopRun`` (nothing after the target has to be
computed).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from jaccli.errors import warn
from jaccli.networks.state.fingerprint import Fingerprint
from jaccli.networks.state.random_generators import TORCH, GeneratorStates, RandomDraws
from jaccli.networks.state.snapshot import without_parameter_gradients
from jaccli.runtime.kernels import unfused


class StopRun(BaseException):
    """Raised by a tap to end the run; ``Network.run`` lets it through.

    Not an ``Exception``: a model's own ``except Exception`` must not swallow it.
    """


class Tap(Protocol):
    """An observer of module calls. ``call`` counts the calls of one path within a run, from 1.

    ``paths`` are the module paths whose boundaries are to be reported; None means all of them. The root module is never
    reported: its input and output are those of the run. A tap with a true attribute ``gives_copies`` returns tensors
    that are used nowhere else, which the model may write to.
    """

    paths: frozenset[str] | None

    def enter(
        self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a call: returns the arguments to call with."""

    def leave(self, path: str, call: int, output: Any) -> Any:
        """After a call: returns the output to go on with."""


class Network(ABC):
    """A model whose runs report its module calls, and leave it as it was."""

    kind: str
    # Whether recurrent layers may run as one kernel. Set to False after one whose backward pass raised.
    fused = True
    # Whether all gradient checkpoints run their function directly. Set to True after a source was found inside one.
    bypasses_checkpoints = False
    # Whether it has operators that raise under a dispatch mode (``cond``, ``flex_attention``). Set when one did.
    refuses_modes = False
    # Paths of the modules with weights packed into integers, whose kernels have no derivative.
    packed: Sequence[str] = ()

    @cached_property
    def draws(self) -> RandomDraws:
        """The random generators that runs have drawn from so far."""
        return RandomDraws()

    @property
    def runs_own_code(self) -> bool:
        """Whether, in the present session, a pass may run code that is not torch's own."""
        return False

    def generator_states(self) -> GeneratorStates:
        """The present states of all generators that a run may draw from: without code of its own, torch's alone."""
        return GeneratorStates.now(python=False)

    def report_warnings(self) -> None:
        """Give the user all ``warnings``. If they say that the model draws random numbers, it is not said again."""
        for text in self.warnings():
            warn(text)
        if self.draws_random_numbers():
            self.draws.warned.add(TORCH)

    def draws_random_numbers(self) -> bool:
        """Whether ``warnings`` says that the model draws from torch's generator."""
        return False

    def only_batch(self, dim: int = 0) -> int | None:
        """The only number of samples, in dimension ``dim`` of the first input, that it takes; None: it takes any."""
        del dim
        return None

    @abstractmethod
    def layers(self) -> Mapping[str, str]:
        """Module path → type name, for every module but the root, in ``named_modules()`` order."""

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None = None) -> Any:
        """One forward pass, from the state that the model was handed over with; returns the model's output.

        State that the pass changes (buffers, attributes, random generators) is put back. Gradients flow from the output
        to ``args`` and to the values that the tap returned. Gradient modes are those of the caller.
        """
        with nullcontext() if self.fused else unfused():
            return self._run(args, kwargs, tap)

    @abstractmethod
    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None) -> Any:
        """The pass itself."""

    def session(self, *, frozen: bool = True) -> AbstractContextManager[None]:
        """The context of the runs for one Jacobian; inside, ``frozen`` parameters require no gradients."""
        return without_parameter_gradients(self.tensors() if frozen else iter(()))

    @abstractmethod
    def cast(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Network:
        """A copy that shares nothing, with floating-point and complex parameters, buffers and constants converted.

        Complex ones stay complex: see ``dtypes.counterpart``.
        """

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Parameters and buffers, of any shapes."""

    def fingerprint(self, moving: Collection[int] = ()) -> Fingerprint:
        """The state that a recorded program depends on; if it differs, the program has to be recorded again.

        Args:
            moving: identities of tensors whose content the program does not depend on.
        """
        result = Fingerprint(moving)
        for tensor in self.tensors():
            result.tensor(tensor)
        return result

    def warnings(self) -> list[str]:
        """Reasons why J may not be what a user expects, such as BatchNorm in training mode."""
        return []
