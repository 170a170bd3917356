"""``FILE[KEY]``: a file, and a key in it. Needs no torch."""

from __future__ import annotations

import os
import re


def split_key(text: str) -> tuple[str, str | None]:
    """``file[key]`` → file and key. A text that is the name of an existing file has no key."""
    if not text.endswith("]") or os.path.lexists(text):
        return text, None
    cuts = [match.start() for match in re.finditer(r"\[", text)]
    if not cuts:
        return text, None
    for cut in cuts:
        if text[:cut] == "-" or (os.path.exists(text[:cut]) and not os.path.isdir(text[:cut])):
            return text[:cut], text[cut + 1 : -1]
    return text[: cuts[-1]], text[cuts[-1] + 1 : -1]


def path_of(text: str | os.PathLike[str]) -> str:
    """The file of ``FILE[KEY]``, without the key."""
    return split_key(os.fspath(text))[0]
