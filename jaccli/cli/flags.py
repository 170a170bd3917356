"""Messages of the library with its parameters as flags: ``max_memory=`` becomes ``--max-memory``."""

from __future__ import annotations

import shlex

from jaccli.errors import JaccliError
from jaccli.text.wording import Term, Worded

# Where a flag is not the parameter's name with dashes; each without a value, and with one.
_SHELL = {
    "x": ("-i", "-i {}"),
    "source": ("--from", "--from {}"),
    "target": ("--to", "--to {}"),
    "arguments": ("--arg NAME=VALUE", "--arg {}=VALUE"),
    "arch_args": ("--arch-arg NAME=VALUE", "--arch-arg {}=VALUE"),
    "trust": ("--trust", "--trust"),
    "compile": ("--compile", "--compile"),
    "several_layers": ("globs and several layers go into --layer", ""),
    "layer_names": ("'jaccli layers MODEL' lists them all", ""),
    "layer_sizes": ("'jaccli layers MODEL -i INPUT' shows sizes", ""),
    "layer_calls": ("'jaccli layers MODEL -i INPUT' shows which do", ""),
    "exact": ("without --estimate", ""),
}


def flag(word: Term) -> str:
    """A term as a flag, with its value quoted for the shell, unless it is in quotes already."""
    name = "--" + word.name.replace("_", "-")
    forms = _SHELL.get(word.name, (name, name + " {}"))
    value = word.value if word.value[:1] in "'\"" else shlex.quote(word.value)
    return forms[bool(word.value)].format(value)


def in_flags(text: str) -> str:
    """A message with its parameters as flags; what is no term stays as it is."""
    return text.rendered(flag) if isinstance(text, Worded) else str(text)


def error_in_flags(error: JaccliError) -> str:
    """The lines of an error with its parameters as flags."""
    return "\n".join(in_flags(part) for part in (error.given, error.expected, error.remedy) if part)
