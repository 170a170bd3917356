"""The names in a state dict turned into those of the model. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from jaccli.models.weights.choice import not_averaged, several_fit
from jaccli.text.escape import quote

T = TypeVar("T")

# Parts that wrappers insert anywhere in a path.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# Usual prefixes, preferred if several would do.
_KNOWN_PREFIXES = ("module.", "model.", "net.", "network.")
_MAX_PREFIX_PARTS = 3


def without_infixes(state: Mapping[str, T], model_names: Iterable[str] = ()) -> tuple[dict[str, T], list[str]]:
    """Every name without ``_orig_mod.`` and the like, unless the model has them; and notes on what was removed."""
    model_names = list(model_names)
    notes = []
    result = dict(state)
    for infix in _INFIXES:
        if any(infix in name for name in model_names):
            continue
        renamed = {name.replace(infix, ""): value for name, value in result.items()}
        if renamed.keys() != result.keys() and len(renamed) == len(result):
            result = renamed
            notes.append(f"{quote(infix)} was taken out of the names")
    return result, notes


def match_names(
    state: Mapping[str, T],
    model_names: Iterable[str],
    path: Path | str,
    fits: Callable[[T, str], bool],
) -> tuple[dict[str, T], list[str]]:
    """``state`` under the names of the model: a prefix removed or added, parametrizations renamed; and notes on it.

    Args:
        state: name → entry of any type.
        model_names: the names in the model's own state dict.
        path: of the file, for messages.
        fits: whether an entry has the shape of the model's tensor of that name.

    Raises:
        UsageError: it fits under two prefixes, and neither is a moving average of the other.
    """
    names = list(model_names)
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
    """The entries with the prefix last, so that they win over one that has the bare name."""
    return sorted(state.items(), key=lambda entry: entry[0].startswith(prefix))


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """``a.b.c`` → (``a.``, ``b.c``), (``a.b.``, ``c``): prefix and rest, for each prefix that may be removed."""
    cut = -1
    for _ in range(_MAX_PREFIX_PARTS):
        cut = name.find(".", cut + 1)
        if cut < 0:
            return
        yield name[: cut + 1], name[cut + 1 :]


def _scores(state: Mapping[str, T], names: list[str], fits: Callable[[T, str], bool]) -> dict[str, tuple[int, int]]:
    """For each prefix: how many names become names of the model, and how many of those have its shapes.

    ``-p`` removes ``p``, ``p`` adds it.
    """
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
    """The prefix with the highest score (``-p`` removes ``p``, empty changes nothing), and others that fit as well."""
    scores = _scores(state, names, fits)
    top = max(scores.values())
    best = [prefix for prefix, score in scores.items() if score == top]
    if "" in best:
        return "", []
    # Taking different prefixes off gives different weights (of a generator and its average); putting one on does not.
    taken_off = [prefix[1:] for prefix in best if prefix.startswith("-")]
    if len(taken_off) < len(best) or len(taken_off) == 1:
        usual = [sign + prefix for prefix in _KNOWN_PREFIXES for sign in ("-", "") if sign + prefix in best]
        return (usual or best)[0], []
    plain = [taken_off[i] for i in not_averaged([(prefix,) for prefix in taken_off])]
    if len(plain) > 1 and 2 * top[0] >= len(names):
        raise several_fit(path, [prefix.rstrip(".") for prefix in plain])
    return "-" + plain[0], [prefix for prefix in taken_off if prefix != plain[0]]


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
