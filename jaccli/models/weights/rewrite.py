"""A file of weights once more, with the values of a trained model: wrapper keys, prefixes and plain entries kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jaccli.errors import JaccliError
from jaccli.models.identify.file_kind import kind_of
from jaccli.models.weights.candidates import Candidate, candidates_in, is_tensor
from jaccli.models.weights.contents import CheckpointContents, read_contents, without_data
from jaccli.models.weights.load_state_dict import fits_into, has_shape
from jaccli.models.weights.state_dict import match_names
from jaccli.pickles.stand_ins import ArraySpec, SparseSpec, StandIn, TensorSpec, TorchDtypeSpec
from jaccli.pickles.storages import TensorMaker
from jaccli.text.escape import quote

_PLAIN = (str, int, float, bool, type(None))
_MAX_DEPTH = 50
_GONE = object()


@dataclass
class RewritableCheckpoint:
    """The file that a model was read from, ready to be written with other values.

    Args:
        contents: what is in it.
        chosen: the state dict that was loaded.
        names: name in ``chosen`` → name in the model.
        left_out: keys of entries that cannot be written as plain data; filled by ``saved_object``.
        metadata: of safetensors.
    """

    contents: CheckpointContents
    chosen: Candidate
    names: Mapping[str, str]
    metadata: Mapping[str, str]
    left_out: list[str] = field(default_factory=list)

    def state(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict under the file's names, with the model's values; entries that the model lacks as they were.

        Of safetensors all of the file: there is nothing around it.
        """
        trained = self._trained(model)
        if isinstance(self.contents.found, dict) and self.chosen.holder is self.contents.found:
            whole = Candidate((), {n: v for n, v in self.contents.found.items() if is_tensor(v)})
            return self.contents.state(whole) | trained
        others = {self.chosen.prefix + name: v for name, v in self.contents.state(self.chosen).items()}
        return others | trained

    def saved_object(self, model: nn.Module) -> Any:
        """The object to be saved: as in the file, and of types that load without running code."""
        self.left_out.clear()
        maker = _PlainBuilder(self, self._trained(model))
        found = maker.value(self.contents.found, "")
        # An object that only code can make is not written; weights within one stand alone.
        return found if maker.placed else self.state(model)

    @property
    def untouched(self) -> list[str]:
        """Keys of other weights, and of optimizers, in the file: those of before."""
        found = self.contents.found
        others = [one.key for one in candidates_in(found) if one.holder is not self.chosen.holder and one.key]
        states = [key for key in found if isinstance(key, str) and "optim" in key.lower()] if found else []
        return others + [key for key in states if key not in others and isinstance(found[key], (dict, list))]

    def _trained(self, model: nn.Module) -> dict[str, Tensor]:
        state = model.state_dict()
        shapes = without_data({name: self.chosen.entries[name] for name in self.names})
        found = {}
        for name, model_name in self.names.items():
            value = state[model_name].detach().cpu()
            # Kept in the dtype of the file; a single number may have had no dimension there.
            found[self.chosen.prefix + name] = value.to(shapes[name].dtype).reshape(shapes[name].shape).clone()
        return _tied(found, self.names, state, self.chosen.prefix)


def rewritable_checkpoint(model: str, loaded: nn.Module) -> RewritableCheckpoint | None:
    """The file of a MODEL that ``loaded`` was read from; None where it is no state dict in a file.

    Reads it once more, and runs nothing that is in it.
    """
    path, kind, key = kind_of(model)
    if kind not in ("safetensors", "checkpoint"):
        return None
    try:
        contents = read_contents(path, kind)
        chosen, _ = contents.select(key, lambda state: fits_into(loaded, state))
    except JaccliError:  # only its own code can read it, as it was trusted to
        return None
    target = {name: value for name, value in loaded.state_dict().items() if isinstance(value, Tensor)}
    named = {name: (name, value) for name, value in without_data(chosen.entries).items()}
    matched, _ = match_names(named, target, path, lambda value, name: has_shape(value[1], target[name]))
    names = {name: model_name for model_name, (name, _) in matched.items() if model_name in target}
    return RewritableCheckpoint(contents, chosen, names, _metadata(path) if kind == "safetensors" else {})


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    opener: Any = safe_open  # untyped
    with opener(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _tied(
    found: dict[str, Tensor], names: Mapping[str, str], state: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """Names of one tensor of the model get one tensor, so that a file holds it once."""
    first: dict[tuple[Any, ...], Tensor] = {}
    for name, model_name in names.items():
        value = found[prefix + name]
        place = (state[model_name].data_ptr(), value.shape, value.dtype)
        found[prefix + name] = first.setdefault(place, value) if value.numel() else value
    return found


class _PlainBuilder:
    """Makes what torch loads with ``weights_only=True`` out of what a pickle described."""

    def __init__(self, template: RewritableCheckpoint, trained: Mapping[str, Tensor]) -> None:
        self._template, self._trained = template, trained
        self._maker = TensorMaker(quote(template.contents.path))
        self._made: dict[int, Any] = {}
        self.placed = False

    def value(self, value: Any, where: str, depth: int = 0) -> Any:
        """The value, or ``_GONE`` where it is not plain."""
        if type(value) in _PLAIN or isinstance(value, Tensor):
            return value
        if isinstance(value, TorchDtypeSpec):
            return getattr(torch, value.dtype)
        if depth > _MAX_DEPTH:
            return self._left_out(where)
        if id(value) not in self._made:
            self._made[id(value)] = _GONE  # what holds itself is not plain
            self._made[id(value)] = self._new(value, where, depth)
        return self._made[id(value)]

    def _new(self, value: Any, where: str, depth: int) -> Any:
        if isinstance(value, (TensorSpec, SparseSpec, ArraySpec)) and is_tensor(value):
            made = self._maker.make(where, value)
            return made.item() if isinstance(value, ArraySpec) and made.dim() == 0 else made
        if isinstance(value, dict) and not (isinstance(value, StandIn) and not value):
            return self._mapping(value, where, depth)
        if type(value) in (list, tuple):
            items = [self.value(one, where, depth + 1) for one in value]
            return self._left_out(where) if any(one is _GONE for one in items) else type(value)(items)
        return self._left_out(where)

    def _mapping(self, value: dict[Any, Any], where: str, depth: int) -> Any:
        made: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        trained = self._trained if value is self._template.chosen.holder else {}
        for key, one in dict.items(value):
            if type(key) not in _PLAIN:
                self._left_out(where)
                continue
            new = trained[key] if key in trained else self.value(one, f"{where}.{key}".lstrip("."), depth + 1)
            if new is not _GONE:
                made[key] = new
        self.placed = self.placed or (bool(trained) and trained.keys() <= made.keys())
        return made

    def _left_out(self, where: str) -> Any:
        self._template.left_out.append(where.partition(".")[0] or "(all)")
        return _GONE
