"""Which of several state dicts in a file is meant. Needs no torch.

One that fits the architecture is taken before one that does not, and the weights themselves before a moving average
of them. Two that are left are for the user to choose between, by ``FILE[KEY]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaccli.errors import UsageError
from jaccli.models.identify.file_key import split_key
from jaccli.models.weights.candidates import Candidate, words_of
from jaccli.pickles.stand_ins import TensorSpec
from jaccli.text.escape import listed, quote

# In order of preference where no architecture is known, or none of them fits it.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "params",
    "module",
    "network",
    "weights",
    "net_state_dict",
    "generator",
    "netG",
    "params_ema",
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "g_ema",
)
_AVERAGED = {"ema", "emas", "swa", "avg", "average", "averaged", "shadow", "polyak"}
# These words do not say whose weights they are.
_ANYBODYS = {"model", "models", "net", "network", "params", "parameters", "weights", "module", "state", "dict"}


def choose(
    candidates: Sequence[Candidate], fits: Callable[[Candidate], bool] | None, path: Path
) -> tuple[Candidate, list[str]]:
    """The one that is meant, and what is to be said of the others.

    Args:
        candidates: at least one.
        fits: whether one holds the weights of the architecture; None where that is not known.
        path: of the file.

    Raises:
        UsageError: several could be meant.
    """
    every = _once(candidates)
    if len(every) == 1:
        return every[0], _said(every[0], [], [], path)
    fitting = [one for one in every if fits(one)] if fits is not None else []
    left = _plain_outermost(fitting) if fitting else _preferred(every)
    if len(left) > 1:
        raise several(path, [one.key for one in left])
    others = [one.key for one in every if one is not left[0] and one.module is None and one.key]
    also = [one.key for one in fitting if one is not left[0]]
    return left[0], _said(left[0], others, also, path)


def several(path: Path | str, keys: Sequence[str]) -> UsageError:
    """The error that lists the choices; ``path`` may be ``FILE[KEY]``, below which they are."""
    file, above = split_key(str(path))
    keys = [key if above is None else f"{above}.{key}" for key in keys if key]
    return UsageError(
        f"{quote(file)} holds several state dicts that can be meant: {listed(keys, 6)}",
        f"expected MODEL[KEY], as {listed((f'{Path(file).name}[{key}]' for key in keys), 2)}",
        "name the one that you mean",
    )


def plain_of(keys: Sequence[tuple[str, ...]]) -> list[int]:
    """Positions of the keys that are no moving average of what is under another one."""
    words = [{word for part in key for word in words_of(part)} for key in keys]
    plain = [at for at, some in enumerate(words) if not some & _AVERAGED]
    alone = [at for at, some in enumerate(words) if some & _AVERAGED and not _companions(some, plain, words)]
    return sorted((*plain, *alone))


def _companions(averaged: set[str], plain: Sequence[int], words: Sequence[set[str]]) -> list[int]:
    """Those that it can be the average of: ``g_ema`` is that of ``g``, ``ema`` that of anything."""
    owner = averaged - _AVERAGED - _ANYBODYS
    return [at for at in plain if owner <= words[at]]


def _plain_outermost(fitting: Sequence[Candidate]) -> list[Candidate]:
    outer = [one for one in fitting if not any(_within(one, other) for other in fitting)]
    return [outer[at] for at in plain_of([(*one.path, one.prefix) for one in outer])]


def _within(inner: Candidate, outer: Candidate) -> bool:
    return len(inner.path) > len(outer.path) and inner.path[: len(outer.path)] == outer.path


def _preferred(candidates: Sequence[Candidate]) -> list[Candidate]:
    """By the names of the keys alone, from the outermost on; the tensors of a level before unusual keys in it."""

    def rank(one: Candidate) -> list[int]:
        inner = [WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) + 1 for key in one.path]
        return [*inner, len(WRAPPERS)]

    best = min(map(rank, candidates))
    return [one for one in candidates if rank(one) == best]


def _once(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those whose tensors are the very ones of another: two names of one thing."""
    result: dict[Any, Candidate] = {}
    for one in candidates:
        same = ("module", id(one.module)) if one.module is not None else tuple(map(_identity, one.entries.items()))
        result.setdefault(same, one)
    return list(result.values())


def _identity(entry: tuple[str, Any]) -> tuple[Any, ...]:
    name, value = entry
    if isinstance(value, TensorSpec):
        return name, value.storage.key, value.offset, value.size, value.stride
    return name, id(value)


def _said(chosen: Candidate, others: Sequence[str], also: Sequence[str], path: Path) -> list[str]:
    notes = []
    if chosen.path or chosen.prefix:
        notes.append(f"{path.name}: the weights are under {quote(chosen.key)}" + _of_others(others, also))
    elif others:
        notes.append(f"{path.name}: the weights are the names outside of any key" + _of_others(others, also))
    rest = [key for key in chosen.rest if not key.endswith("_extra_state")]
    if rest:
        notes.append(f"{path.name}: loaded past {len(rest)} entries that are no tensors: {listed(rest)}")
    return notes


def _of_others(others: Sequence[str], also: Sequence[str]) -> str:
    """In brackets; ``also`` are those that would have fitted as well."""
    if not others:
        return ""
    named = ", ".join(quote(key, 60)[1:-1] for key in (also or others)[:3])
    if also:
        return f" (not {named}, which fits too: MODEL[{quote(also[0])[1:-1]}] takes it)"
    return f" (not {named})"
