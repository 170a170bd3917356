"""Finding the state dict in a checkpoint, and making its names those of the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jaccli.errors import RefusedError
from jaccli.models.inert import ArrayShell, Inert, SparseSpec, TensorSpec
from jaccli.models.quote import listed, quote

T = TypeVar("T")

# In order of preference, where several hold tensors: the plain weights before their moving average.
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
# These hold tensors that are not weights.
_NOT_WEIGHTS = (
    "optim",
    "sched",
    "scaler",
    "rng",
    "callback",
    "loop",
    "amp",
    "hyper",
    "args",
    "config",
    "criterion",
)
# Parts of a path that wrappers put anywhere into it.
_INFIXES = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# A prefix that may be taken off without asking which of several was meant.
_KNOWN_PREFIXES = ("", "module.", "model.", "net.", "network.")
_MAX_DEPTH = 5


@dataclass
class Unwrapped:
    """Names and tensors (or what stands for them), in the file's order."""

    entries: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def unwrap(found: Any, path: Path) -> Unwrapped | Any | None:
    """The state dict within ``found``; a module (or its stand-in) as it is; None if there is neither.

    Raises:
        RefusedError: several entries could be meant.
    """
    keys: list[str] = []
    for _ in range(_MAX_DEPTH):
        if _is_module(found):
            return found
        if not isinstance(found, Mapping):
            return None
        inner = [key for key, value in dict.items(_plain(found)) if isinstance(key, str) and _holds(value)]
        tensors = {key: value for key, value in _plain(found).items() if is_tensor(value)}
        key = _choose(inner, bool(tensors), path)
        if key is None:
            return _result(tensors, found, keys, path) if tensors else None
        keys.append(key)
        others = [name for name in inner if name != key and name in WRAPPERS]
        if others:
            keys[-1] = f"{key} (not {', '.join(others)})"
        found = _plain(found)[key]
    return None


def _plain(mapping: Any) -> dict[Any, Any]:
    return mapping if isinstance(mapping, dict) else dict(mapping)


def is_tensor(value: Any) -> bool:
    """Whether this is, or stands for, a tensor or an array of numbers."""
    if isinstance(value, ArrayShell):
        return value.data is not None and getattr(value.dtype, "code", "O")[:1] in "fiubc"
    if isinstance(value, (TensorSpec, SparseSpec)):
        return True
    return type(value).__module__ in ("torch", "torch.nn.parameter", "numpy") and hasattr(value, "shape")


def _is_module(value: Any) -> bool:
    if isinstance(value, Inert):
        return value.is_module()
    return hasattr(value, "named_parameters") and hasattr(value, "forward")


def _holds(value: Any, depth: int = 3, seen: set[int] | None = None) -> bool:
    """Whether tensors with names, or a module, are in ``value``."""
    if _is_module(value):
        return True
    # A dict may hold itself many times: each is looked at once.
    seen = set() if seen is None else seen
    if not isinstance(value, Mapping) or depth == 0 or id(value) in seen:
        return False
    seen.add(id(value))
    entries = list(_plain(value).items())
    return any(isinstance(key, str) and (is_tensor(one) or _holds(one, depth - 1, seen)) for key, one in entries)


def _choose(inner: list[str], has_tensors: bool, path: Path) -> str | None:
    """Which entry to go into; None to stay."""
    for key in WRAPPERS:
        if key in inner:
            return key
    if has_tensors:
        return None
    weights = [key for key in inner if not any(part in key.lower() for part in _NOT_WEIGHTS)]
    if len(weights) > 1:
        raise RefusedError(
            f"{quote(path)} holds several state dicts: {listed(weights, 5)}",
            "expected one, or one of them under 'state_dict' or 'model'",
            "save the one that you mean in a file of its own",
        )
    return weights[0] if weights else None


def _result(tensors: dict[Any, Any], found: Any, keys: list[str], path: Path) -> Unwrapped:
    named = {key: value for key, value in tensors.items() if isinstance(key, str)}
    notes = []
    if keys:
        notes.append(f"{path.name}: the weights are under {quote(' / '.join(keys))}")
    rest = [str(key) for key in _plain(found) if key not in named and not str(key).endswith("_extra_state")]
    if rest:
        notes.append(f"{path.name}: loaded past {len(rest)} entries that are no tensors: {listed(rest)}")
    return Unwrapped(named, notes)


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


def match_names(state: Mapping[str, T], wanted: Iterable[str], path: Path | str) -> tuple[dict[str, T], list[str]]:
    """``state`` under the names that the model uses: a prefix taken off or put on, parametrizations renamed.

    Raises:
        RefusedError: two prefixes fit equally well and none of them is a usual one.
    """
    names = list(wanted)
    state, notes = without_infixes(state, names)
    best = _best_prefix(state, names, path)
    if best.startswith("-"):
        prefix = best[1:]
        state = {name[len(prefix) :] if name.startswith(prefix) else name: v for name, v in _last(state, prefix)}
        notes.append(f"the prefix {quote(prefix)} was taken off the names")
    elif best:
        state = {best + name: value for name, value in state.items()}
        notes.append(f"the prefix {quote(best)} was put before the names")
    return _rename_parametrizations(state, set(names), notes)


def _last(state: Mapping[str, T], prefix: str) -> list[tuple[str, T]]:
    # Entries with the prefix come last, so that they win where another has the bare name.
    return sorted(state.items(), key=lambda entry: entry[0].startswith(prefix))


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) + "." for count in range(1, min(4, len(parts)))]


def _best_prefix(state: Mapping[str, T], names: list[str], path: Path | str) -> str:
    """``-p`` to take ``p`` off, ``p`` to put it on, empty to leave the names."""
    wanted = set(names)
    scores = {"": len(wanted & state.keys())}
    if scores[""] < len(wanted):
        # Name by name: prefix by prefix takes the square of their number.
        for sign, longer, shorter in (("-", state, wanted), ("", wanted, state)):
            for name in longer:
                for prefix in _prefixes(name):
                    scores[sign + prefix] = scores.get(sign + prefix, 0) + (name[len(prefix) :] in shorter)
    top = max(scores.values())
    best = [prefix for prefix, score in scores.items() if score == top]
    for prefix in _KNOWN_PREFIXES:
        for signed in ("-" + prefix if prefix else "", prefix):
            if signed in best:
                return signed
    if len(best) > 1 and all(one.startswith("-") for one in best):
        raise RefusedError(
            f"{quote(path)} holds the model {len(best)} times, under {listed(one[1:] for one in best)}",
            "expected it once",
            "save the one that you mean in a file of its own",
        )
    return best[0]


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
