"""INPUT, ``--samples`` and ``--arg`` as text → values. Needs neither torch nor numpy.

INPUT   = FILE | FILE[KEY] | FOLDER | - | -[KEY] | random:SHAPE[,n=8][,dist=normal|uniform][,seed=0]
SAMPLES = PART[,PART...]          PART = INDEX | START:STOP[:STEP]
ARG     = NAME=VALUE | POSITION=VALUE
VALUE   = number | true | false | none | [list] | "text" | text | @INPUT
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from jaccli.errors import RefusedError, UsageError, note
from jaccli.models.identify.file_key import split_key
from jaccli.samples.expected import INPUT, READABLE, nearby

Distribution: TypeAlias = Literal["normal", "uniform"]


@dataclass(frozen=True)
class FileInput:
    """A file, whose content shows its format; ``key`` names one array of an npz, safetensors or pt file."""

    path: str
    key: str | None = None


@dataclass(frozen=True)
class FolderInput:
    """A folder of images of one size."""

    path: str


@dataclass(frozen=True)
class StdinInput:
    """Standard input, with the content of a file."""

    key: str | None = None


@dataclass(frozen=True)
class RandomInput:
    """Random numbers: ``n`` samples of ``shape``; ``uniform`` is on [0, 1)."""

    shape: tuple[int, ...]
    n: int = 8
    dist: Distribution = "normal"
    seed: int = 0

    def __str__(self) -> str:
        """As a user writes it, with the defaults."""
        shape = "x".join(map(str, self.shape))
        return f"random:{shape},n={self.n},dist={self.dist},seed={self.seed}"


InputSpec: TypeAlias = FileInput | FolderInput | StdinInput | RandomInput
ArgValue: TypeAlias = "bool | int | float | str | list[ArgValue] | InputSpec | None"


def parse_input(text: str, flag: str = "--input") -> InputSpec:
    """INPUT as the user wrote it. Reads no data; looks only at which files exist.

    Raises:
        UsageError: the text is no INPUT; the message names ``flag``.
    """
    if text.startswith("random:"):
        return _parse_random(text, flag)
    path, key = split_key(text)
    if not path or key == "":
        raise UsageError(f"{flag} {text!r}: a file name or a key is missing", INPUT, f"as {flag} x.npz[x]")
    if path == "-":
        return StdinInput(key)
    if key is None and os.path.isdir(path):
        return FolderInput(path)
    return FileInput(path, key)


def check_input(spec: InputSpec, expected: str = INPUT) -> None:
    """Refuse a file that is not there or not readable, before any costly import; ``expected`` is for the message.

    Raises:
        RefusedError: no such file, or no permission.
    """
    if not isinstance(spec, FileInput | FolderInput):
        return
    path = spec.path
    if not os.path.exists(path):
        raise RefusedError(f"no such input file: {path!r}", expected, nearby(path))
    if os.path.isdir(path) and isinstance(spec, FileInput):
        raise RefusedError(
            f"{path!r} is a folder: {spec.key!r} cannot be taken from it", "expected FILE[KEY]", "name the file in it"
        )
    if not os.access(path, os.R_OK):
        raise RefusedError(f"no permission to read {path!r}", READABLE, f"'ls -l {path}' shows who may")


def _parse_random(text: str, flag: str) -> RandomInput:
    shape_text, *options = text.removeprefix("random:").split(",")
    expected = "expected random:SHAPE[,n=8][,dist=normal|uniform][,seed=0], SHAPE one sample's, as 3x32x32"
    if not re.fullmatch(r"[0-9]+(x[0-9]+)*", shape_text):
        raise UsageError(f"{flag} {text!r}: {shape_text!r} is not a shape", expected, f"as {flag} random:3x32x32,n=8")
    shape = tuple(int(size) for size in shape_text.split("x"))
    values: dict[str, str] = {}
    for option in options:
        name, equals, value = option.partition("=")
        if not equals or name not in ("n", "dist", "seed") or name in values:
            raise UsageError(
                f"{flag} {text!r}: {option!r} is not understood", expected, f"as {flag} random:3x32x32,n=8"
            )
        values[name] = value
    n, dist, seed = values.get("n", "8"), values.get("dist", "normal"), values.get("seed", "0")
    if 0 in shape or not re.fullmatch(r"[0-9]+", n) or int(n) == 0:
        raise UsageError(
            f"{flag} {text!r}: sizes and n are whole numbers from 1", expected, f"as {flag} random:3x32x32,n=8"
        )
    if not re.fullmatch(r"[0-9]+", seed) or int(seed) >= 2**63:
        raise UsageError(
            f"{flag} {text!r}: seed is a whole number from 0", expected, f"as {flag} random:3x32x32,seed=1"
        )
    if dist not in ("normal", "uniform"):
        raise UsageError(
            f"{flag} {text!r}: no distribution {dist!r}", expected, f"as {flag} random:3x32x32,dist=uniform"
        )
    return RandomInput(shape, int(n), cast(Distribution, dist), int(seed))


@dataclass(frozen=True)
class Selection:
    """Samples picked by index and by slice, in the order given."""

    parts: tuple[int | slice, ...]
    text: str
    flag: str = "--samples"

    def indices(self, n: int) -> list[int]:
        """The picked ones of ``n`` samples, from 0. A slice that runs past the end is cut, with a note.

        Raises:
            UsageError: an index out of range, or nothing picked.
        """
        have = f"there are {n} samples, 0 to {n - 1}" if n > 1 else f"there is only sample 0 (of {n})"
        picked: list[int] = []
        for part in self.parts:
            if isinstance(part, slice):
                picked += range(n)[part]
                if part.stop is not None and part.stop > n:
                    note(f"{self.flag} {self.text}: {have}")
            elif not -n <= part < n:
                raise UsageError(
                    f"{self.flag} {self.text}: no sample {part}", have, "numbers begin at 0, and from the end at -1"
                )
            else:
                picked.append(part % n)
        if not picked:
            raise UsageError(f"{self.flag} {self.text}: picks no sample", have, "pick one at least, as 0:1")
        return picked


def parse_samples(text: str, flag: str = "--samples") -> Selection:
    """``0:8``, ``3,5``, ``-1``, ``0:8,12``, ``::2`` → what it picks.

    Raises:
        UsageError: bad syntax, or a step of 0.
    """
    parts: list[int | slice] = []
    for part in text.split(","):
        fields = part.strip().split(":")
        if not all(re.fullmatch(r"-?[0-9]+", field) or (field == "" and len(fields) > 1) for field in fields):
            raise UsageError(
                f"{flag} {text!r}: {part!r} is not understood", "expected 0:8, 3,5, -1 or ::2", f"as {flag} 0:8"
            )
        values = [int(field) if field else None for field in fields]
        if len(fields) > 3 or (len(fields) == 3 and values[2] == 0):
            raise UsageError(
                f"{flag} {text!r}: {part!r} is not a slice",
                "expected START:STOP[:STEP], STEP not 0",
                f"as {flag} 0:8:2",
            )
        parts.append(slice(*values) if len(fields) > 1 else cast(int, values[0]))
    return Selection(tuple(parts), text, flag)


def parse_model_arg(text: str, flag: str = "--arg") -> tuple[str | int, ArgValue]:
    """``name=value`` or ``1=value`` → (name or position, value).

    ``@FILE`` (any INPUT but standard input) becomes an ``InputSpec`` whose first dimension is the
    samples. Quotes force text: ``name='"1"'``.

    Raises:
        UsageError: bad syntax.
    """
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals or not (name.isidentifier() or re.fullmatch(r"[0-9]+", name)):
        raise UsageError(
            f"{flag} {text!r} is not understood",
            "expected NAME=VALUE or POSITION=VALUE",
            "as --arg 1=16000 or --arg mask=@mask.npy",
        )
    key: str | int = int(name) if name[0].isdigit() else name
    return key, _parse_value(value, f"{flag} {name}")


def _parse_value(text: str, where: str) -> ArgValue:
    if text.startswith("@"):
        spec = parse_input(text[1:], where)
        if isinstance(spec, StdinInput):
            raise UsageError(f"{where}: standard input is for --input", "expected @FILE", "write it to a file first")
        return spec
    if text.startswith("["):
        return _parse_list(text, where)
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    words: dict[str, bool | None] = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    readers: tuple[Callable[[str], int | float], ...] = (int, float)
    for reader in readers:
        try:
            return reader(text)
        except ValueError:
            continue
    return text


def _parse_list(text: str, where: str) -> list[ArgValue]:
    for reader in (json.loads, ast.literal_eval):
        try:
            value = reader(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and _is_plain(value):
            return cast("list[ArgValue]", value)
    raise UsageError(
        f"{where}: {text!r} is not a list",
        "expected numbers, true, null or quoted text, as [1,2]",
        "put text in quotes, and the whole for the shell: '[1,\"a\"]'",
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
