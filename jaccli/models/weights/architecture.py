"""Step 4, weights → network: made by the user's code, or a chain of linear layers rebuilt from the weights alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from jaccli.errors import JaccliError, RefusedError, UsageError
from jaccli.models.identify.import_spec import build
from jaccli.models.weights.candidates import Candidate
from jaccli.networks.quantized import is_packed_name, packed_file, refuse_packed
from jaccli.text.escape import quote
from jaccli.text.wording import worded


@dataclass(frozen=True)
class Architecture:
    """The arguments of ``load_model`` that say which network a state dict belongs to.

    Attributes:
        arch: a SPEC, a callable, a module, or None.
        arch_args: keyword arguments for it.
        activation: that between the layers of a chain, or None.
        seed: of the random weights that ``arch`` makes before the file's are loaded.
        ordered: whether the file's entries are in the order in which the layers were made.
    """

    arch: str | Callable[..., Any] | nn.Module | None
    arch_args: Mapping[str, Any] | None
    activation: str | None
    seed: int | None
    ordered: bool

    def __post_init__(self) -> None:
        if self.arch is not None and self.activation is not None:
            raise UsageError(worded("{arch} and {activation} are both given"), "expected one of them", "leave one out")
        if not self.is_known and self.arch_args:
            raise UsageError(worded("{arch_args} is given without {arch}"), "", worded("name the network with {arch}"))

    @property
    def is_known(self) -> bool:
        """Whether a network was given."""
        return self.arch is not None or self.activation is not None

    @cached_property
    def network(self) -> nn.Module:
        """The network to load into; a module given by the user is copied, so that it stays as it is.

        Raises:
            UsageError, RefusedError: it cannot be made or copied.
        """
        assert self.arch is not None
        model = build(self.arch, self.arch_args, self.seed)
        if not isinstance(self.arch, nn.Module):
            return model
        try:
            return copy.deepcopy(model)
        except JaccliError:
            raise
        except Exception:
            raise RefusedError(
                f"the module given as arch ({type(model).__name__}) cannot be copied",
                "expected one that copy.deepcopy takes",
                "give a function that makes it",
            ) from None

    def fits(self, state: Mapping[str, Tensor]) -> bool:
        """Whether a state dict, with tensors of any shape that may be on ``meta``, holds its weights."""
        if self.activation is not None:
            from jaccli.models.weights.linear_chain import is_chain

            return is_chain(state, ordered=self.ordered)
        from jaccli.models.weights.load_state_dict import fits_into

        return fits_into(self.network, state)

    def check_floats(self, path: Path, chosen: Candidate) -> None:
        """Check that the weights are floating-point numbers.

        Raises:
            RefusedError: they are packed into integers, and the network has no such names itself.
        """
        if chosen.packed:
            raise packed_file(path, f"a tensor of packed integers: {quote(chosen.packed[0], 60)}")
        names = [*chosen.entries, *chosen.rest]
        if any(is_packed_name(name) for name in names):
            state = self.network.state_dict() if self.arch is not None else {}
            refuse_packed(path, names, [name for name, value in state.items() if isinstance(value, Tensor)])

    def load(self, state: Mapping[str, Tensor], path: str) -> nn.Module:
        """The network with these weights, of the same shapes as its own; ``path`` is for messages.

        Raises:
            UsageError: no architecture was given, or the layers fit together in several ways.
            RefusedError: the weights are not those of this architecture.
        """
        if self.activation is not None:
            from jaccli.models.weights.linear_chain import rebuild_chain

            return rebuild_chain(state, self.activation, path, ordered=self.ordered)
        if self.arch is None:
            raise without_network(path)
        from jaccli.models.weights.load_state_dict import load_into

        return load_into(self.network, state, path)


def without_network(path: str | Path) -> UsageError:
    """The error for weights without an architecture."""
    return UsageError(
        f"{quote(path)} holds weights without a network",
        worded("expected {arch:package.module:callable} or {arch:file.py:callable}"),
        worded("or {activation:tanh}, or another, if it is a plain chain of linear layers"),
    )
