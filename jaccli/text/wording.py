"""Messages that name parameters, as each caller writes them: ``max_memory=`` in Python, ``--max-memory`` in the shell.

    worded("take fewer samples, or allow more with {max_memory}")
    worded("{name}: try {method:finite-difference}", name=pair)

A placeholder that is given a value stands for that text, which is left as it is. Any other is a term: the name of a
parameter, with its value after a colon. The result reads as Python; ``cli.flags`` reads the same terms as flags.
"""

from __future__ import annotations

from collections.abc import Callable
from string import Formatter
from typing import NamedTuple


class Term(NamedTuple):
    """A parameter, or something else that Python and the shell have different words for; ``value`` may be empty."""

    name: str
    value: str


class Worded(str):
    """A text in Python's words that knows which of its parts are terms."""

    parts: tuple[str | Term, ...]

    def rendered(self, of_term: Callable[[Term], str]) -> str:
        """The text with other words for its terms."""
        return "".join(of_term(part) if isinstance(part, Term) else part for part in self.parts)


def worded(template: str, **values: object) -> Worded:
    """The text of a template: ``{name}`` is a value or a term, ``{name:value}`` a term with a value.

    The value of a term may hold values: ``{source:{layer}@1}``. Values with terms of their own keep them.
    """
    parts: list[str | Term] = []
    for text, name, spec, conversion in Formatter().parse(template):
        parts.append(text)
        if name is not None and name not in values:
            parts.append(Term(name, (spec or "").format(**values)))
        elif name is not None:
            value = Formatter().convert_field(values[name], conversion) if conversion else values[name]
            parts.extend(value.parts if isinstance(value, Worded) else [format(value, spec or "")])
    return _joined(parts)


def term(name: str, value: str = "") -> Worded:
    """One term alone: a value for ``worded`` where the parameter is not known beforehand."""
    return _joined([Term(name, value)])


def _joined(parts: list[str | Term]) -> Worded:
    text = Worded("".join(in_python(part) if isinstance(part, Term) else part for part in parts))
    text.parts = tuple(parts)
    return text


# Of what is no ``name=value``; each with its form without a value, and with one.
_PYTHON = {
    "x": ("x", "x{}"),
    "samples": ("x", "x[{}]"),
    "dtype": ("its dtype", "model.to(torch.{0}) and x.to(torch.{0})"),
    "arguments": ("args= and kwargs=", 'kwargs={{"{}": …}}'),
    "arch_args": ("arch_args=", 'arch_args={{"{}": …}}'),
    "several_layers": ("name one: a call takes one pair", ""),
    "layer_names": ("model.named_modules() has them all", ""),
    "layer_sizes": ("print(model) shows sizes", ""),
    "layer_calls": ("choose one that the forward pass calls", ""),
    "exact": ("jaccli.jacobian", ""),
}
_TEXTS = ("source", "target", "method", "arch", "activation", "towards", "estimator")


def in_python(word: Term) -> str:
    """A term as a caller in Python writes it."""
    if word.name in _PYTHON:
        return _PYTHON[word.name][bool(word.value)].format(word.value)
    quote = '"' if word.name in _TEXTS and word.value else ""
    return f"{word.name}={quote}{word.value}{quote}"
