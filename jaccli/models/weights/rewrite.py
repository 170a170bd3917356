"""The file of weights that a model was read from, written again with the values of the trained model.

Wrapper keys, prefixes and plain entries stay. What is written loads without running code.
"""

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
from jaccli.models.weights.load_state_dict import fits_into, has_shape, tensors_of
from jaccli.models.weights.state_dict import match_names
from jaccli.pickles.stand_ins import ArraySpec, SparseSpec, StandIn, TensorSpec, TorchDtypeSpec
from jaccli.pickles.storages import TensorMaker
from jaccli.text.escape import quote

_PLAIN = (str, int, float, bool, type(None))
_MAX_DEPTH = 50
_LEFT_OUT = object()


@dataclass
class RewritableCheckpoint:
    """The content of the file that a model was read from, to be saved with other values.

    Attributes:
        contents: of the file.
        chosen: the state dict in it that was loaded.
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
        """The state dict under the file's names and in its shapes, with the model's values; the rest stays as it was.

        Of a file that is one state dict, such as safetensors, all entries.
        """
        trained = self._trained(model)
        if isinstance(self.contents.root, dict) and self.chosen.holder is self.contents.root:
            whole = Candidate((), {n: v for n, v in self.contents.root.items() if is_tensor(v)})
            return self.contents.state(whole) | trained
        others = {self.chosen.prefix + name: v for name, v in self.contents.state(self.chosen).items()}
        return others | trained

    def saved_object(self, model: nn.Module) -> Any:
        """The object to be saved: that of the file, made of types that load without running code."""
        self.left_out.clear()
        builder = _PlainBuilder(self, self._trained(model))
        plain = builder.value(self.contents.root, "")
        # Weights within an object that only code can make are written alone.
        return plain if builder.placed else self.state(model)

    @property
    def untouched(self) -> list[str]:
        """Keys of other weights, and of optimizers, in the file: their values stay as they were."""
        root = self.contents.root
        others = [c.key for c in candidates_in(root) if c.holder is not self.chosen.holder and c.key]
        states = [key for key in root if isinstance(key, str) and "optim" in key.lower()] if root else []
        return others + [key for key in states if key not in others and isinstance(root[key], (dict, list))]

    def _trained(self, model: nn.Module) -> dict[str, Tensor]:
        """Name in the file → value of the model, in the dtype and of the shape of the file's."""
        state = model.state_dict()
        shapes = without_data({name: self.chosen.entries[name] for name in self.names})
        values = {}
        for name, model_name in self.names.items():
            value = state[model_name].detach().cpu()
            # In the dtype and shape of the file: a single number may have one dimension more or less.
            values[self.chosen.prefix + name] = value.to(shapes[name].dtype).reshape(shapes[name].shape).clone()
        return _tied(values, self.names, state, self.chosen.prefix)


def rewritable_checkpoint(model: str, loaded: nn.Module) -> RewritableCheckpoint | None:
    """The content of the file that ``loaded`` was read from; None if MODEL is no state dict in a file.

    Reads the file again, and runs nothing that is in it.
    """
    path, kind, key = kind_of(model)
    if kind not in ("safetensors", "checkpoint"):
        return None
    try:
        contents = read_contents(path, kind)
        chosen, _ = contents.select(key, lambda state: fits_into(loaded, state))
    except JaccliError:  # the user trusted it, and only its own code can read it
        return None
    target = tensors_of(loaded)
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
    values: dict[str, Tensor], names: Mapping[str, str], state: Mapping[str, Tensor], prefix: str
) -> dict[str, Tensor]:
    """One value, of its shape, for all names of one tensor of the model, so that the file holds it once."""
    first: dict[tuple[Any, ...], Tensor] = {}
    for name, model_name in names.items():
        value = values[prefix + name]
        memory = (state[model_name].data_ptr(), value.shape, value.dtype)
        values[prefix + name] = first.setdefault(memory, value) if value.numel() else value
    return values


class _PlainBuilder:
    """Turns stand-ins and descriptions into objects that torch loads with ``weights_only=True``."""

    def __init__(self, template: RewritableCheckpoint, trained: Mapping[str, Tensor]) -> None:
        """``trained``: name in the file → value, of the same shape as there."""
        self._template, self._trained = template, trained
        self._maker = TensorMaker(quote(template.contents.path))
        self._built: dict[int, Any] = {}
        self.placed = False

    def value(self, value: Any, where: str, depth: int = 0) -> Any:
        """The plain value, or ``_LEFT_OUT``; ``where`` is the dotted key of the value in the file."""
        if type(value) in _PLAIN or isinstance(value, Tensor):
            return value
        if isinstance(value, TorchDtypeSpec):
            return getattr(torch, value.dtype)
        if depth > _MAX_DEPTH:
            return self._left_out(where)
        # Each object is built once, so that tensors and containers under two keys stay one.
        if id(value) not in self._built:
            self._built[id(value)] = _LEFT_OUT  # for a value that holds itself
            self._built[id(value)] = self._new(value, where, depth)
        return self._built[id(value)]

    def _new(self, value: Any, where: str, depth: int) -> Any:
        if isinstance(value, (TensorSpec, SparseSpec, ArraySpec)) and is_tensor(value):
            tensor = self._maker.make(where, value)
            return tensor.item() if isinstance(value, ArraySpec) and tensor.dim() == 0 else tensor
        if isinstance(value, dict) and not (isinstance(value, StandIn) and not value):
            return self._mapping(value, where, depth)
        if type(value) in (list, tuple):
            items = [self.value(item, where, depth + 1) for item in value]
            return self._left_out(where) if any(item is _LEFT_OUT for item in items) else type(value)(items)
        return self._left_out(where)

    def _mapping(self, value: dict[Any, Any], where: str, depth: int) -> Any:
        plain: dict[Any, Any] = OrderedDict() if isinstance(value, OrderedDict) else {}
        trained = self._trained if value is self._template.chosen.holder else {}
        for key, item in dict.items(value):
            if type(key) not in _PLAIN:
                self._left_out(where)
                continue
            new = trained[key] if key in trained else self.value(item, f"{where}.{key}".lstrip("."), depth + 1)
            if new is not _LEFT_OUT:
                plain[key] = new
        self.placed = self.placed or (bool(trained) and trained.keys() <= plain.keys())
        return plain

    def _left_out(self, where: str) -> Any:
        self._template.left_out.append(where.partition(".")[0] or "(all)")
        return _LEFT_OUT
