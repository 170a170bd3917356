"""Groups messages that differ only in their layer pair or in a number into one message."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# A message names up to this many layers; of more it says how many there are.
_NAMED = 4
_ARROW = " -> "
_GAP = "\0"  # stands for the pair; no message holds it, since ``inert`` has escaped control characters
# Not a part of a name, nor a side of a matrix: shapes make no range.
_NUMBER = re.compile(r"(?<![\w.])(?<!x )\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\w)(?! x)")


def grouped(texts: Iterable[str], pairs: Sequence[str]) -> list[str]:
    """The texts, in the order in which they begin; numbers that differ become a range.

    Args:
        texts: messages, each at most once.
        pairs: how messages name layer pairs: ``fc1 -> output``.

    >>> grouped(["a -> c: zeros", "b -> c: error 2e-05", "d -> c: error 4e-06"], ["a -> c", "b -> c", "d -> c"])
    ['a -> c: zeros', 'b, d -> c: error 4e-06 to 2e-05']
    """
    if not pairs:
        return list(texts)
    longest = sorted(map(re.escape, pairs), key=len, reverse=True)
    named = re.compile(rf"(?<!\S)(?:{'|'.join(longest)})(?!\w)")
    groups: dict[str, list[tuple[str, str]]] = {}
    for text in texts:
        match = named.search(text)
        if match is None:
            groups.setdefault(text, []).append(("", text))
            continue
        without_pair = text.replace(match[0], _GAP)
        groups.setdefault(_NUMBER.sub("0", without_pair), []).append((match[0], without_pair))
    return [_one([rest for _, rest in alike], [name for name, _ in alike]) for alike in groups.values()]


def _one(texts: Sequence[str], names: Sequence[str]) -> str:
    numbers = iter([_range(column) for column in zip(*map(_NUMBER.findall, texts), strict=True)])
    text = _NUMBER.sub(lambda _: next(numbers), texts[0])
    return text.replace(_GAP, _together(list(dict.fromkeys(names)))) if names[0] else texts[0]


def _range(numbers: Sequence[str]) -> str:
    least, most = min(numbers, key=float), max(numbers, key=float)
    return least if float(least) == float(most) else f"{least} to {most}"


def _together(names: Sequence[str]) -> str:
    targets = {name.partition(_ARROW)[2] for name in names}
    if len(targets) > 1:
        return _listed(names, "pairs")
    return _listed([name.partition(_ARROW)[0] for name in names], "layers") + _ARROW + targets.pop()


def _listed(names: Sequence[str], noun: str) -> str:
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{len(names)} {noun} ({', '.join(names[: _NAMED - 1])}, …, {names[-1]})"
