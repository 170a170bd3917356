"""Making the names in a state dict those of the model. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from jaccli.models.weights.choice import plain_of, several
from jaccli.text.escape import quote

T = TypeVar("T")

# Parts of a path that wrappers put anywhere into it.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Usual prefixes, taken where putting one on would do as well.
_KNOWN_PREFIXES = ("module.", "model.", "net.", "network.")
_MAX_PREFIX_PARTS = 3


def without_infixes(state: Mapping[str, T], wanted: Iterable[str] = ()) -> tuple[dict[str, T], list[str]]:
    """``_orig_mod.`` and the like taken out of every name, unless the model itself has them."""
    wanted = list(wanted)
    notes = []
    result = dict(state)
    for infix in _INFIXES:
        if any(infix in name for name in wanted):
            continue
        renamed = {name.replace(infix, ""): value for name, value in result.items()}
        if renamed.keys() != result.keys() and len(renamed) == len(result):
            result = renamed
            notes.append(f"{quote(infix)} was taken out of the names")
    return result, notes


def match_names(
    state: Mapping[str, T],
    wanted: Iterable[str],
    path: Path | str,
    fits: Callable[[T, str], bool] = lambda value, model_name: True,
) -> tuple[dict[str, T], list[str]]:
    """``state`` under the names that the model uses: a prefix taken off or put on, parametrizations renamed.

    Args:
        state: names and anything.
        wanted: the names that the model uses.
        path: of the file, for messages.
        fits: whether an entry has the shape of the model's tensor of that name.

    Raises:
        UsageError: the model is there under two prefixes, and neither is a moving average of the other.
    """
    names = list(wanted)
    state, notes = without_infixes(state, names)
    best, others = _best_prefix(state, names, path, fits)
    if best.startswith("-"):
        prefix = best[1:]
        state = {name[len(prefix) :] if name.startswith(prefix) else name: v for name, v in _last(state, prefix)}
        but = f" (not {', '.join(map(quote, others[:3]))}, which fit too)" if others else ""
        notes.append(f"the prefix {quote(prefix)} was taken off the names{but}")
    elif best:
        state = {best + name: value for name, value in state.items()}
        notes.append(f"the prefix {quote(best)} was put before the names")
    return _rename_parametrizations(state, set(names), notes)


def _last(state: Mapping[str, T], prefix: str) -> list[tuple[str, T]]:
    # Entries with the prefix come last, so that they win where another has the bare name.
    return sorted(state.items(), key=lambda entry: entry[0].startswith(prefix))


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """``a.b.c`` → (``a.``, ``b.c``), (``a.b.``, ``c``): the prefixes that may be cut off, and what is left."""
    cut = -1
    for _ in range(_MAX_PREFIX_PARTS):
        cut = name.find(".", cut + 1)
        if cut < 0:
            return
        yield name[: cut + 1], name[cut + 1 :]


def _scores(state: Mapping[str, T], names: list[str], fits: Callable[[T, str], bool]) -> dict[str, tuple[int, int]]:
    """How many names each prefix makes the model's, and how many of those have its shapes."""
    wanted, scores = set(names), {"": [0, 0]}  # one pass over the names: a file may hold 100,000

    def count(prefix: str, name: str, model_name: str) -> None:
        score = scores.setdefault(prefix, [0, 0])
        score[0] += 1
        score[1] += fits(state[name], model_name)

    for name in state:
        if name in wanted:
            count("", name, name)
    if scores[""][0] < len(wanted):
        for name in state:
            for prefix, rest in _splits(name):
                if rest in wanted:
                    count("-" + prefix, name, rest)
        for model_name in names:
            for prefix, rest in _splits(model_name):
                if rest in state:
                    count(prefix, rest, model_name)
    return {prefix: (named, fitting) for prefix, (named, fitting) in scores.items()}


def _best_prefix(
    state: Mapping[str, T], names: list[str], path: Path | str, fits: Callable[[T, str], bool]
) -> tuple[str, list[str]]:
    """``-p`` to take ``p`` off, ``p`` to put it on, empty to leave the names; and the other prefixes that fit."""
    scores = _scores(state, names, fits)
    top = max(scores.values())
    best = [prefix for prefix, score in scores.items() if score == top]
    if "" in best:
        return "", []
    off = [prefix[1:] for prefix in best if prefix.startswith("-")]
    if len(off) < len(best) or len(off) == 1:
        known = [sign + prefix for prefix in _KNOWN_PREFIXES for sign in ("-", "") if sign + prefix in best]
        return (known or best)[0], []
    plain = [off[at] for at in plain_of([(prefix,) for prefix in off])]
    if len(plain) > 1 and 2 * top[0] >= len(names):
        raise several(path, [prefix.rstrip(".") for prefix in plain])
    return "-" + plain[0], [prefix for prefix in off if prefix != plain[0]]


# Old names of weight_norm and spectral_norm, and those of torch.nn.utils.parametrizations.
_PARAMETRIZED = (
    ("weight_g", "parametrizations.weight.original0"),
    ("weight_v", "parametrizations.weight.original1"),
    ("weight_orig", "parametrizations.weight.original"),
    ("weight_u", "parametrizations.weight.0._u"),
    ("weight_v", "parametrizations.weight.0._v"),
)


def _rename_parametrizations(state: dict[str, T], wanted: set[str], notes: list[str]) -> tuple[dict[str, T], list[str]]:
    renamed: dict[str, T] = {}
    count = 0
    for name, value in state.items():
        new = name
        for pair in _PARAMETRIZED:
            for old, other in (pair, pair[::-1]):
                start, dot, last = name.rpartition(old)
                candidate = start + other
                if dot and not last and name not in wanted and candidate in wanted:
                    new = candidate
        count += new != name
        renamed[new] = value
    if count:
        notes.append(f"{count} names of weight or spectral normalisation were brought up to date")
    return renamed, notes
