"""Step 3, candidates → choice: which of several state dicts in a file is meant. Needs no torch.

In this order: one that fits the architecture before one that does not; outer ones before those within them; weights
before a moving average of them; then by the names of keys (``WRAPPERS``). If several are left, the user has to choose,
by ``FILE[KEY]``.
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

# Keys in order of preference, if no architecture is known or none of the candidates fits it.
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
# Words of keys that do not tell one network from another.
_GENERIC = {"model", "models", "net", "network", "params", "parameters", "weights", "module", "state", "dict"}


def choose(
    candidates: Sequence[Candidate], fits: Callable[[Candidate], bool] | None, path: Path
) -> tuple[Candidate, list[str]]:
    """The candidate that is meant, and notes on what was chosen and skipped.

    Args:
        candidates: at least one.
        fits: whether a candidate holds the weights of the architecture; None if that is not known.
        path: of the file.

    Raises:
        UsageError: several could be meant.
    """
    every = _distinct(candidates)
    if len(every) == 1:
        return every[0], _notes(every[0], [], [], path)
    fitting = [one for one in every if fits(one)] if fits is not None else []
    left = _plain_outermost(fitting) if fitting else _preferred(every)
    if len(left) > 1:
        raise several_fit(path, [one.key for one in left])
    others = [one.key for one in every if one is not left[0] and one.module is None and one.key]
    also = [one.key for one in fitting if one is not left[0]]
    return left[0], _notes(left[0], others, also, path)


def several_fit(path: Path | str, keys: Sequence[str]) -> UsageError:
    """The error that lists the keys to choose from; ``path`` may be ``FILE[KEY]``, and then they are below that key."""
    file, above = split_key(str(path))
    keys = [key if above is None else f"{above}.{key}" for key in keys if key]
    return UsageError(
        f"{quote(file)} holds several state dicts that can be meant: {listed(keys, 6)}",
        f"expected MODEL[KEY], as {listed((f'{Path(file).name}[{key}]' for key in keys), 2)}",
        "name the one that you mean",
    )


def not_averaged(keys: Sequence[tuple[str, ...]]) -> list[int]:
    """Positions of the keys that are not named as a moving average of the weights under another key."""
    words = [{word for part in key for word in words_of(part)} for key in keys]
    plain = [at for at, some in enumerate(words) if not some & _AVERAGED]
    alone = [at for at, some in enumerate(words) if some & _AVERAGED and not _companions(some, plain, words)]
    return sorted((*plain, *alone))


def _companions(averaged: set[str], plain: Sequence[int], words: Sequence[set[str]]) -> list[int]:
    """The keys that it can be the average of: ``g_ema`` that of ``g``, ``ema`` that of any."""
    owner = averaged - _AVERAGED - _GENERIC
    return [at for at in plain if owner <= words[at]]


def _plain_outermost(fitting: Sequence[Candidate]) -> list[Candidate]:
    outer = [one for one in fitting if not any(_within(one, other) for other in fitting)]
    return [outer[at] for at in not_averaged([(*one.path, one.prefix) for one in outer])]


def _within(inner: Candidate, outer: Candidate) -> bool:
    return len(inner.path) > len(outer.path) and inner.path[: len(outer.path)] == outer.path


def _preferred(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best by the names of keys, from the outermost key on; tensors at a level come before unusual keys in it."""

    def rank(one: Candidate) -> list[int]:
        inner = [WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) + 1 for key in one.path]
        return [*inner, len(WRAPPERS)]

    best = min(map(rank, candidates))
    return [one for one in candidates if rank(one) == best]


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those that have the same tensors under the same names as an earlier one."""
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


def _notes(chosen: Candidate, others: Sequence[str], also: Sequence[str], path: Path) -> list[str]:
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
    """The other candidates, in brackets; ``also`` are those that fit the architecture too."""
    if not others:
        return ""
    named = ", ".join(quote(key, 60)[1:-1] for key in (also or others)[:3])
    if also:
        return f" (not {named}, which fits too: MODEL[{quote(also[0])[1:-1]}] takes it)"
    return f" (not {named})"
