"""The names of activations, ``PATH[#CALL][:PORT[.ELEMENT…]][@DIM][[INDEX]]``, and what they are read into.

Needs no torch.

    fc1            the output of module fc1             blocks.0:in     its input
    fc1#2          the output of its second call        lstm:out.1.0@1  element 1.0, samples in dimension 1
    fc1#*          the outputs of all its calls         blocks.*        a glob, see ``matches``
    fc1[:, 0]      an index into one sample's value

PyTorch allows any character but a dot in a module's name, and no empty name. So names are read against the module
paths of the model: the longest path that a text begins with, and that leaves a suffix of the grammar, is meant. A name
that is hidden by another one is written with dots that no path has: ``a..#2`` is a call of ``a`` where a module is
named ``a#2``, and ``.input`` is a module of that name, since ``input`` is the model's own input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from jaccli.activations.glob import has_glob, matches, nearest
from jaccli.activations.index import IndexItem
from jaccli.activations.suffix import EVERY, GRAMMAR, AddressSuffix, CallNumber, Port, parse_suffix, split_suffix
from jaccli.errors import UsageError

__all__ = ["EVERY", "INPUT", "OUTPUT", "Address", "LayerNames", "matches", "nearest", "parse_address"]

INPUT, OUTPUT = "input", "output"
# A suffix begins with one of these.
_ENDS = "#:@["
# Separates a path from its suffix where they could be read otherwise. No path has it, since no module's name is empty.
_STOP = ".."


@dataclass(frozen=True)
class Address:
    """One activation, or with a glob in ``path`` or all calls in ``call`` a family of them.

    Attributes:
        path: of the module, or a glob; ``input`` and ``output`` are the model's own.
        call: number of the call, from 1, or ``*`` for all; None: the only call.
        port: None: the output of a module; of the model's own, what the word says.
        elements: keys and positions in the value, if it is nested.
        dim: the dimension of the samples; None: 0.
        index: into one sample's value.
        suffix: the text behind the path.
        is_module: whether it is a module, although it is called ``input`` or ``output``.
        globbed: whether a glob gave it: then it is left out where it does not fit.
        text: the whole name, as it is read back.
        stem: the part of ``text`` before the suffix.
    """

    path: str
    call: CallNumber | None = None
    port: Port | None = None
    elements: tuple[str, ...] = ()
    dim: int | None = None
    index: tuple[IndexItem, ...] | None = field(default=None, compare=False)  # a slice has no hash
    suffix: str = ""
    is_module: bool = False
    globbed: bool = field(default=False, compare=False)
    text: str = field(default="", compare=False)
    stem: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.text or self.path + self.suffix

    @property
    def is_glob(self) -> bool:
        """Whether the path may stand for several layers."""
        return has_glob(self.path)

    @property
    def is_model_input(self) -> bool:
        """The model's own input."""
        return self.path == INPUT and not self.is_module

    @property
    def is_model_output(self) -> bool:
        """The model's own output."""
        return self.path == OUTPUT and not self.is_module

    def at_call(self, number: int) -> Address:
        """The same activation at one call."""
        # ``#CALL`` comes first in a suffix: it is cut off the front.
        rest = self.suffix if self.call is None else self.suffix[1 + len(str(self.call)) :]
        suffix = f"#{number}{rest}"
        return replace(self, call=number, suffix=suffix, text=(self.stem or self.path) + suffix)

    def with_elements(self, elements: Iterable[str]) -> str:
        """The name of an element of the value."""
        return ".".join([f"{self._called}:{self.port or 'out'}", *elements])

    def with_dim(self, dim: int) -> str:
        """The name of the same activation with its samples in another dimension."""
        return f"{self.with_elements(self.elements) if self.port else self._called}@{dim}"

    @property
    def _called(self) -> str:
        return (self.stem or self.path) + ("" if self.call is None else f"#{self.call}")


class LayerNames:
    """The module paths of a model, against which names are read."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = tuple(paths)
        self._all = frozenset(self.paths)
        self._odd = tuple(path for path in self.paths if any(end in path for end in _ENDS))

    def __contains__(self, path: str) -> bool:
        return path in self._all

    def at(self, path: str, suffix: str = "", *, globbed: bool = False) -> Address:
        """The address of the module ``path`` with a suffix, under the shortest name that is read back as it."""
        # The plain spelling serves unless a longer path, or the model's own input or output, is read in its place.
        plain = self.read(path + suffix)
        hidden = plain is None or (plain.path, plain.suffix) != (path, suffix) or not _is_module(plain)
        stem = self._stem(path)
        parts = parse_suffix(suffix) or AddressSuffix()
        is_reserved = path in (INPUT, OUTPUT)
        text = stem + suffix if hidden else path + suffix
        return Address(path, **vars(parts), suffix=suffix, is_module=is_reserved, globbed=globbed, text=text, stem=stem)

    def read(self, text: str) -> Address | None:
        """The address with the longest path that a text begins with and that leaves a suffix; None if there is none.

        Raises:
            UsageError: the model's own input or output with a suffix that it does not have.
        """
        for path, rest, is_module in self._readings(text):
            suffix = rest.removeprefix(_STOP)
            parts = parse_suffix(suffix)
            if parts is None:
                continue
            if path in (INPUT, OUTPUT) and not is_module and (error := _misfit(text, path, parts)) is not None:
                # A module of that name may have what the model's own input or output has not.
                if path not in self._all:
                    raise error
                is_module = True
            stem = self._stem(path) if path in self._all and (is_module or path not in (INPUT, OUTPUT)) else path
            return Address(path, **vars(parts), suffix=suffix, is_module=is_module, text=text, stem=stem)
        return None

    def _readings(self, text: str) -> Iterator[tuple[str, str, bool]]:
        """The paths that a text begins with, the longest first; the rest of the text; whether a leading dot says that
        a module is meant and not the model's own."""
        has_leading_dot = text.startswith(".") and text not in self._all
        body = text.removeprefix(".") if has_leading_dot else text
        # The longest path wins, since a module's name may hold characters of the grammar: ``a#2``.
        for end in range(len(body), 0, -1):
            path, rest = body[:end], body[end:]
            if rest and rest[0] not in _ENDS and not rest.startswith(_STOP):
                continue
            is_reserved = path in (INPUT, OUTPUT)
            if path in self._all or (is_reserved and not has_leading_dot):
                yield path, rest, is_reserved and has_leading_dot

    def _stem(self, path: str) -> str:
        """How a path is written before a suffix."""
        longer = (odd[len(path)] for odd in self._odd if odd != path and odd.startswith(path))
        hidden = any(char in _ENDS for char in longer)
        return "." * (path in (INPUT, OUTPUT)) + path + _STOP * hidden

    def globbed(self, text: str) -> list[Address]:
        """The addresses that a glob means, with the longest suffix that leaves a pattern which matches some paths."""
        for end in range(1, len(text) + 1):
            pattern, rest = text[:end], text[end:]
            if not has_glob(pattern) or (rest and rest[0] not in _ENDS and not rest.startswith(_STOP)):
                continue
            suffix = rest.removeprefix(_STOP)
            if parse_suffix(suffix) is not None and (paths := matches(pattern, self.paths)):
                return [self.at(path, suffix, globbed=True) for path in paths]
        return []


def parse_address(text: str, known: Iterable[str] | LayerNames = ()) -> Address:
    """Read a name against the paths of a model; the grammar alone decides on one that the model does not have.

    Raises:
        UsageError: a suffix that is not of the grammar.
    """
    names = known if isinstance(known, LayerNames) else LayerNames(known)
    if (address := names.read(text)) is not None:
        return address
    path, parts = split_suffix(text)
    if not path:
        raise UsageError(f"layer {text!r}: no name before the ending", GRAMMAR)
    if any(char in path for char in "[]:#"):
        raise UsageError(f"layer {text!r}: not understood after {path.split('[')[0]!r}", GRAMMAR)
    return Address(path, **vars(parts), suffix=text[len(path) :], text=text)


def _is_module(address: Address) -> bool:
    return not (address.is_model_input or address.is_model_output)


def _misfit(text: str, path: str, suffix: AddressSuffix) -> UsageError | None:
    """The error for a suffix that the model's own input or output cannot have."""
    if path == OUTPUT and suffix.port == "in":
        return UsageError(f"layer {text!r}: the model's output has no :in", "expected output or output:out.ELEMENT")
    if suffix.call is not None:
        return UsageError(f"layer {text!r}: {path} is there once", "expected it without '#'")
    return None
