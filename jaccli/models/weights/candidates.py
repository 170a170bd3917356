"""Step 2, object → candidates: all state dicts and modules in a checkpoint, with the keys that lead to them.

Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaccli.pickles.stand_ins import ArraySpec, PackedSpec, SparseSpec, StandIn, TensorSpec

_MAX_DEPTH = 5
# Words in a key which say that the tensors below it are not weights: beginnings of words, and whole words.
_NOT_WEIGHTS = re.compile(
    r"(optim|sched|hyper|hparam|callback|criterion)\w*|(scaler|rng|loops?|amp|args|config|cfg)", re.ASCII
)
# Keys in the state of an optimizer, for optimizers that use the names of the weights.
_MOMENTS = re.compile(r"(exp_avg(_sq)?|momentum(_buffers?)?|velocity|grad(ient)?s?)")
_QUANTIZED = re.compile(r"(torchao|optimum\.quanto|quanto|bitsandbytes)\.")


@dataclass
class Candidate:
    """One state dict, or one whole module, in a file.

    Attributes:
        path: the keys that lead to it.
        entries: name → tensor (or the description of one), in the file's order.
        module: the pickled module, or its stand-in.
        rest: keys beside the tensors, whose values are no tensors.
        packed: those of them whose values are tensors of packed integers.
        prefix: was removed from the names: the user gave it as key, to select the names that begin with it.
        holder: the dict or stand-in that has these entries.
    """

    path: tuple[str, ...]
    entries: dict[str, Any] = field(default_factory=dict)
    module: Any = None
    rest: tuple[str, ...] = ()
    packed: tuple[str, ...] = ()
    prefix: str = ""
    holder: Any = None

    @property
    def key(self) -> str:
        """``KEY`` of ``FILE[KEY]``."""
        return ".".join((*self.path, *([self.prefix[:-1]] if self.prefix else ())))

    @property
    def is_auxiliary(self) -> bool:
        """Whether a key says that it is the state of an optimizer or the like."""
        return any(map(is_no_weights, self.path))


def words_of(key: str) -> list[str]:
    """The words of a key in lower case: ``netG_ema`` → net, g, ema."""
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key)
    return [word.lower() for word in re.split(r"[\W_]+", separated) if word]


def is_no_weights(key: str) -> bool:
    """Whether the tensors below this key are those of an optimizer, a schedule, a generator and the like."""
    return bool(_MOMENTS.fullmatch(key)) or any(_NOT_WEIGHTS.fullmatch(word) for word in words_of(key))


def candidates_in(root: Any, path: tuple[str, ...] = ()) -> list[Candidate]:
    """All state dicts and modules in an object, outer ones first; each once, even if it is there under several keys."""
    result: list[Candidate] = []
    seen: set[int] = set()

    def visit(value: Any, path: tuple[str, ...], depth: int) -> None:
        if is_module(value):
            result.append(Candidate(path, module=value))
            return
        if depth < 0 or not _is_container(value) or id(value) in seen:
            return
        seen.add(id(value))
        items = list(_items(value))
        tensors = {key: item for key, item in items if isinstance(key, str) and is_tensor(item)}
        packed = tuple(key for key, item in items if isinstance(key, str) and _is_packed(item))
        if tensors or packed:
            rest = tuple(str(key) for key, _ in items if key not in tensors)
            result.append(Candidate(path, tensors, rest=rest, packed=packed, holder=value))
        for key, item in items:
            if not is_tensor(item) and not is_no_weights(str(key)):
                visit(item, (*path, str(key)), depth - 1)

    visit(root, path, _MAX_DEPTH)
    return result


def candidates_at(root: Any, key: str) -> list[Candidate]:
    """The candidates that ``KEY`` of ``FILE[KEY]`` can mean: those below a key; else the names that begin with it."""
    below = [candidate for value, path in _descend(root, key) for candidate in candidates_in(value, path)]
    if below:
        return below
    return [part for whole in candidates_in(root) if (part := _part(whole, key)) is not None]


def _descend(value: Any, key: str, path: tuple[str, ...] = ()) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """The values under ``key``, a dotted path of keys that may hold dots themselves."""
    if len(path) > _MAX_DEPTH or not _is_container(value) or is_module(value):
        return
    for name, item in _items(value):
        text = str(name)
        if text == key:
            yield item, (*path, text)
        elif key.startswith(text + "."):
            yield from _descend(item, key[len(text) + 1 :], (*path, text))


def _part(whole: Candidate, key: str) -> Candidate | None:
    """The entries whose names begin with what ``key`` leaves after the path."""
    for lead in (whole.key + ".", ""):
        prefix = key[len(lead) :] + "."
        if key.startswith(lead):
            part = {name[len(prefix) :]: v for name, v in whole.entries.items() if name.startswith(prefix)}
            if part:
                return Candidate(whole.path, part, prefix=prefix, holder=whole.holder)
    return None


def _is_container(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    """The keys that ``FILE[KEY]`` can name, with their values; attributes of an object count as keys."""
    if not isinstance(value, Mapping):
        # Numbers are left out: a list may hold millions, and none can be named.
        yield from ((i, item) for i, item in enumerate(value) if _is_container(item) or is_module(item))
        return
    entries = value if isinstance(value, dict) else dict(value)
    yield from ((key, item) for key, item in dict.items(entries) if isinstance(key, str) or type(key) is int)
    if isinstance(value, StandIn) and isinstance(value.state, dict):
        yield from ((key, item) for key, item in value.state.items() if isinstance(key, str) and key not in entries)


def is_tensor(value: Any) -> bool:
    """Whether this is, or stands for, a tensor or an array of numbers."""
    if isinstance(value, ArraySpec):
        return value.data is not None and getattr(value.dtype, "code", "O")[:1] in "fiubc"
    if isinstance(value, (TensorSpec, SparseSpec)):
        return True
    if _is_packed(value):
        return False
    return type(value).__module__ in ("torch", "torch.nn.parameter", "numpy") and hasattr(value, "shape")


def _is_packed(value: Any) -> bool:
    if isinstance(value, StandIn):  # a tensor of a class of its own, as those of torchao
        kinds = [type(value), *(arg for arg in value.args if isinstance(arg, type))]
        return any(_QUANTIZED.match(getattr(kind, "path", "")) for kind in kinds)
    return isinstance(value, PackedSpec) or getattr(value, "is_quantized", False) is True


def is_module(value: Any) -> bool:
    """Whether this is, or stands for, an ``nn.Module``."""
    if isinstance(value, StandIn):
        return value.is_module()
    return hasattr(value, "named_parameters") and hasattr(value, "forward")
