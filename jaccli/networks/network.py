"""What jaccli needs of a model: run it, see and replace activations at module boundaries.

Every model format becomes a ``Network``. A run reports the boundaries of module calls to a ``Tap``,
which may hand back another value (this is how an activation becomes a variable) or raise ``StopRun``
(nothing after the target needs to be computed).
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
from jaccli.runtime.kernels import unfused


class StopRun(BaseException):
    """Raised by a tap that has seen all it wants; ``Network.run`` lets it through.

    Not an ``Exception``: a model's own ``except Exception`` must not swallow it.
    """


class Tap(Protocol):
    """Sees module calls. ``call`` counts the calls of one path within a run, from 1.

    ``paths`` are the module paths whose boundaries are to be reported; None means all of them.
    The root module is never reported: its input and output are the run's own. A tap with a true ``gives_copies`` puts
    in tensors that nobody else holds, which the model may write to.
    """

    paths: frozenset[str] | None

    def enter(
        self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before the call: the arguments to call with."""

    def leave(self, path: str, call: int, output: Any) -> Any:
        """After the call: the output to go on with."""


class Network(ABC):
    """A model that can be run with its layers in sight. Running changes nothing of the model."""

    kind: str
    # Whether recurrent layers may run as one kernel: no longer, once one has been seen whose backward pass refuses.
    fused = True
    # Whether gradient checkpoints run as they are, since a source was seen inside one.
    bypasses_checkpoints = False
    # Whether it uses operators that take functions (``cond``, ``flex_attention``), which do not run below a mode.
    refuses_modes = False
    # Paths of modules whose weights are packed into integers, and whose kernels have no derivative.
    packed: Sequence[str] = ()

    @cached_property
    def draws(self) -> RandomDraws:
        """What runs have drawn from so far."""
        return RandomDraws()

    @property
    def runs_own_code(self) -> bool:
        """Whether, in a session, a pass may run code that nobody here sees, as Python's."""
        return False

    def generator_states(self) -> GeneratorStates:
        """Where all generators stand that a run may draw from."""
        return GeneratorStates.now()

    def report_warnings(self) -> None:
        """Warn of what ``warnings`` finds; that the model draws is then told already."""
        for doubt in self.warnings():
            warn(doubt)
        if self.draws_random_numbers():
            self.draws.warned.add(TORCH)

    def draws_random_numbers(self) -> bool:
        """Whether ``warnings`` says that the model draws from torch's generators."""
        return False

    def only_batch(self, dim: int = 0) -> int | None:
        """The number of samples, in dimension ``dim`` of the first input, that the model is bound to; None if free."""
        del dim
        return None

    @abstractmethod
    def layers(self) -> Mapping[str, str]:
        """Module path → type name, for every module but the root, in ``named_modules()`` order."""

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None = None) -> Any:
        """One forward pass from the state the model was handed over with.

        State that the pass leaves behind (buffers, attributes, random generators) is put back.
        Gradients flow from the output to ``args`` and to whatever the tap put in; nothing in here
        enters or leaves a gradient mode.
        """
        with nullcontext() if self.fused else unfused():
            return self._run(args, kwargs, tap)

    @abstractmethod
    def _run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], tap: Tap | None) -> Any:
        """The pass itself."""

    @abstractmethod
    def session(self, *, frozen: bool = True) -> AbstractContextManager[None]:
        """Held while a Jacobian is computed: ``frozen`` parameters do not ask for gradients inside."""

    @abstractmethod
    def cast(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Network:
        """An independent copy with floating-point and complex parameters, buffers and constants converted.

        Complex ones stay complex: see ``dtypes.counterpart``.
        """

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """Parameters and buffers: where the model lives and in which dtype."""

    def fingerprint(self, moving: Collection[int] = ()) -> Fingerprint:
        """What a recorded program rests on; another stamp means that it has to be recorded again.

        Args:
            moving: identities of tensors whose content it does not rest on.
        """
        stamp = Fingerprint(moving)
        for tensor in self.tensors():
            stamp.tensor(tensor)
        return stamp

    def warnings(self) -> list[str]:
        """Why numbers about this model may not mean what they seem (BatchNorm in training mode)."""
        return []
