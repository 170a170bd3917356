"""The object in a file of weights, and the state dict in it that is meant: ties the steps 1 to 3 together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from jaccli.errors import UsageError
from jaccli.models.weights.candidates import Candidate, candidates_at, candidates_in
from jaccli.models.weights.checkpoint import no_weights, read_safetensors, read_trusted, whole_module
from jaccli.models.weights.choice import choose
from jaccli.networks.quantized import packed_file
from jaccli.pickles.saved_object import read_pickled
from jaccli.pickles.stand_ins import ArraySpec, SparseSpec, StandIn, TensorSpec
from jaccli.pickles.storages import TensorMaker, torch_dtype
from jaccli.text.escape import listed, quote
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped


@dataclass
class CheckpointContents:
    """The content of a file of weights, read once.

    Attributes:
        path: of the file.
        root: the object in it, with stand-ins; of safetensors, the state dict.
        stand_ins: path → class, of the objects that were not loaded.
        is_trusted: whether the file's code was executed, so that modules in it are real.
    """

    path: Path
    root: Any
    stand_ins: Mapping[str, object] = field(default_factory=dict)
    is_trusted: bool = False

    @cached_property
    def _all(self) -> list[Candidate]:
        return candidates_in(self.root)

    def candidates(self, key: str | None) -> list[Candidate]:
        """The state dicts and modules that can be meant, those under ``key`` if it is given.

        Raises:
            UsageError: there is none under ``key``.
            RefusedError: there is none at all.
        """
        if not self._all:
            # Quantisation schemes (torch.per_channel_affine) stand in files of packed weights only.
            if any(name.startswith("torch.per_") for name in self.stand_ins):
                raise packed_file(self.path, "quantized modules")
            raise no_weights(self.path, self.root, self.stand_ins)
        candidates = self._all if key is None else candidates_at(self.root, key)
        if not candidates:
            raise no_such_key(self.path, str(key), self._all)
        return candidates

    def select(
        self, key: str | None, fits: Callable[[Mapping[str, Tensor]], bool] | None
    ) -> tuple[Candidate, list[str]]:
        """The candidate that is meant, and notes on what was chosen, skipped and executed.

        Args:
            key: of ``FILE[KEY]``.
            fits: whether a state dict, of tensors of any shape on ``meta``, fits the architecture; None: none is known.

        Raises:
            UsageError: there is none under ``key``, or several could be meant.
            RefusedError: there is none, or it is a pickled module and the file is not trusted.
        """
        candidates = self.candidates(key)

        def suits(candidate: Candidate) -> bool:
            if candidate.module is not None:
                return self.is_trusted
            return fits is not None and fits(without_data(candidate.entries))

        # A key of the user's own may name weights that look like an optimizer's, if they fit the architecture.
        if key is not None and all(candidate.is_auxiliary and not suits(candidate) for candidate in candidates):
            raise no_such_key(self.path, key, self._all)
        chosen, notes = choose(candidates, suits if fits is not None else None, self.path)
        if isinstance(chosen.module, StandIn):
            raise whole_module(self.path, type(chosen.module).path)
        return chosen, notes + self._notes(chosen)

    def state(self, chosen: Candidate) -> dict[str, Tensor]:
        """Name → tensor of a candidate, on the CPU, in the file's shapes and dtypes.

        They may be mapped from the file: copy before writing.
        """
        maker = TensorMaker(quote(self.path))
        return {name: _tensor(maker, name, spec) for name, spec in chosen.entries.items()}

    def _notes(self, chosen: Candidate) -> list[str]:
        if chosen.module is not None:
            text = "{file}: a whole pickled module was loaded, its code executed ({trust:True})"
            return [worded(text, file=self.path.name)]
        if not self.stand_ins:
            return []
        return [f"{self.path.name}: objects of these types were not loaded: {listed(sorted(self.stand_ins), 6)}"]


def read_contents(path: Path, kind: Literal["safetensors", "checkpoint"], *, trust: bool = False) -> CheckpointContents:
    """Read a file; only with ``trust`` is a pickle executed.

    Raises:
        RefusedError: the file is damaged, or needs code.
    """
    if kind == "safetensors":
        return CheckpointContents(path, read_safetensors(path))
    if trust:
        return CheckpointContents(path, read_trusted(path), is_trusted=True)
    return CheckpointContents(path, *read_pickled(path, quote(path)))


def no_such_key(path: Path, key: str, candidates: Sequence[Candidate]) -> UsageError:
    """The error for a key that is not in the file; it lists those that are."""
    keys = [candidate.key for candidate in candidates if candidate.key and not candidate.is_auxiliary]
    keys = keys or [candidate.key for candidate in candidates if candidate.key]
    if not keys:
        names = listed(candidates[0].entries)
        return UsageError(
            f"{quote(path)} has no {quote(key)}",
            f"it is one state dict, of {names}",
            "leave [KEY] out, or give what its names begin with",
        )
    return UsageError(
        f"{quote(path)} has no state dict {quote(key)}", f"expected one of {listed(keys, 6)}", "name it as MODEL[KEY]"
    )


def without_data(entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """Entries as tensors on ``meta``, with their shapes and dtypes; entries with impossible ones are left out."""
    result = {}
    for name, spec in entries.items():
        with contextlib.suppress(ValueError, TypeError, RuntimeError, OverflowError, IndexError):
            result[name] = _without_data(spec)
    return result


def _without_data(spec: Any) -> Shaped[Tensor, "..."]:
    if isinstance(spec, TensorSpec):
        return torch.empty(spec.size, dtype=torch_dtype(spec.dtype), device="meta")
    if isinstance(spec, SparseSpec):
        size = next(part for part in spec.parts[::-1] if type(part) is tuple)
        values = [part for part in spec.parts if isinstance(part, TensorSpec)]
        return torch.empty(size, dtype=torch_dtype(values[-1].dtype), device="meta")
    if isinstance(spec, Tensor):
        return spec
    code = spec.dtype.code if isinstance(spec, ArraySpec) else spec.dtype.str[1:]
    return torch.empty(spec.shape, dtype=torch.from_numpy(np.empty(0, code)).dtype, device="meta")


def _tensor(maker: TensorMaker, name: str, spec: Any) -> Shaped[Tensor, "..."]:
    if isinstance(spec, (TensorSpec, SparseSpec, ArraySpec)):
        return maker.make(name, spec)
    return torch.as_tensor(spec)
