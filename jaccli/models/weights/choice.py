"""Step 3, candidates → choice: which of several state dicts in a file is meant. Needs no torch.

In this order: one that fits the architecture before one that does not; outer ones before those within them; weights
before a moving average of them; then by the names of keys (``WRAPPERS``). If several remain, the user has to choose, by
``FILE[KEY]``.
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
    distinct = _distinct(candidates)
    if len(distinct) == 1:
        return distinct[0], _notes(distinct[0], [], [], path)
    fitting = [candidate for candidate in distinct if fits(candidate)] if fits is not None else []
    preferred = _plain_outermost(fitting) if fitting else _preferred(distinct)
    if len(preferred) > 1:
        raise several_fit(path, [candidate.key for candidate in preferred])
    state_dicts = [candidate for candidate in distinct if candidate.module is None and candidate.key]
    others = [candidate.key for candidate in state_dicts if candidate is not preferred[0]]
    also_fitting = [candidate.key for candidate in fitting if candidate is not preferred[0]]
    return preferred[0], _notes(preferred[0], others, also_fitting, path)


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
    plain = [i for i, own in enumerate(words) if not own & _AVERAGED]
    alone = [i for i, own in enumerate(words) if own & _AVERAGED and not _companions(own, plain, words)]
    return sorted((*plain, *alone))


def _companions(averaged: set[str], plain: Sequence[int], words: Sequence[set[str]]) -> list[int]:
    """The keys that it can be the average of: ``g_ema`` that of ``g``, ``ema`` that of any."""
    owner = averaged - _AVERAGED - _GENERIC
    return [i for i in plain if owner <= words[i]]


def _plain_outermost(fitting: Sequence[Candidate]) -> list[Candidate]:
    outer = [candidate for candidate in fitting if not any(_within(candidate, other) for other in fitting)]
    return [outer[i] for i in not_averaged([(*candidate.path, candidate.prefix) for candidate in outer])]


def _within(inner: Candidate, outer: Candidate) -> bool:
    return len(inner.path) > len(outer.path) and inner.path[: len(outer.path)] == outer.path


def _preferred(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The best by the names of keys, from the outermost key on; tensors at a level come before unusual keys in it."""

    def rank(candidate: Candidate) -> list[int]:
        inner = [WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) + 1 for key in candidate.path]
        return [*inner, len(WRAPPERS)]

    best = min(map(rank, candidates))
    return [candidate for candidate in candidates if rank(candidate) == best]


def _distinct(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Without those that have the same tensors under the same names as an earlier one."""
    result: dict[Any, Candidate] = {}
    for candidate in candidates:
        tensors = tuple(map(_identity, candidate.entries.items()))
        result.setdefault(("module", id(candidate.module)) if candidate.module is not None else tensors, candidate)
    return list(result.values())


def _identity(entry: tuple[str, Any]) -> tuple[Any, ...]:
    name, value = entry
    if isinstance(value, TensorSpec):
        return name, value.storage.key, value.offset, value.size, value.stride
    return name, id(value)


def _notes(chosen: Candidate, others: Sequence[str], also_fitting: Sequence[str], path: Path) -> list[str]:
    notes = []
    if chosen.path or chosen.prefix:
        notes.append(f"{path.name}: the weights are under {quote(chosen.key)}" + _of_others(others, also_fitting))
    elif others:
        notes.append(f"{path.name}: the weights are the names outside of any key" + _of_others(others, also_fitting))
    rest = [key for key in chosen.rest if not key.endswith("_extra_state")]
    if rest:
        notes.append(f"{path.name}: loaded past {len(rest)} entries that are no tensors: {listed(rest)}")
    return notes


def _of_others(others: Sequence[str], also_fitting: Sequence[str]) -> str:
    """The other candidates, in brackets; ``also_fitting`` are those that fit the architecture too."""
    if not others:
        return ""
    named = ", ".join(quote(key, 60)[1:-1] for key in (also_fitting or others)[:3])
    if also_fitting:
        return f" (not {named}, which fits too: MODEL[{quote(also_fitting[0])[1:-1]}] takes it)"
    return f" (not {named})"
