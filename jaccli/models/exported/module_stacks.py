"""The modules that an operator was traced inside of, from what an export wrote about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from typing import Final

from jaccli.models.exported.code import StackEntry

_NO_STACK: Final = "_empty_nn_module_stack_from_metadata_hook"
_EXPORT_ROOT: Final = "_export_root"
# A key is the root's name and the path, or a number; and from a second call on that of the call.
_ENTRIES: Final = (
    re.compile(r"(?P<key>L__self__(?P<path>.*?)(?:@\d+)?),(?P=path),(?P<type>[^,;]*)(?:;|$)", re.DOTALL),
    re.compile(r"(?P<key>\d+(?:@\d+)?),(?P<path>.*?),(?P<type>[^,;]*)(?:;(?=\d)|$)", re.DOTALL),
)
_CHILD: Final = re.compile(r"""\._modules\[((?:'(?:[^'\\]|\\.)*')|(?:"(?:[^"\\]|\\.)*"))\]""", re.DOTALL)
# Longer ones are not looked through for names that have commas, semicolons or brackets in them.
_MOST: Final = 4096


def parse_stack(text: str | None, listed: Collection[str]) -> tuple[StackEntry, ...] | None:
    """``key,path,type;…`` as entries, the root left out; None if nothing was recorded.

    Args:
        text: as it stands in an archive.
        listed: the paths of modules that it names elsewhere.

    Raises:
        ValueError: text of another form.
    """
    if not text:
        return None
    try:
        entries = [StackEntry(*_split(item)) for item in text.split(";")]
    except ValueError:
        entries = _by_keys(text)
    return clean_stack(entries, listed)


def _split(item: str) -> tuple[str, str, str]:
    """Three parts between commas that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(item):
        depth += (char in "[(") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(item[start:index])
            start = index + 1
    key, path, kind = (*parts, item[start:])
    return key, path, kind


def _by_keys(text: str) -> list[StackEntry]:
    """Where names have the separators in them: a key ends with the path that follows it."""
    entries, position = [], 0
    while position < len(text):
        matches = (form.match(text, position) for form in _ENTRIES if len(text) <= _MOST)
        match = next((match for match in matches if match is not None), None)
        if match is None:
            raise ValueError("a stack of modules that is not understood")
        entries.append(StackEntry(match["key"], match["path"], match["type"]))
        position = match.end()
    return entries


def clean_stack(entries: list[StackEntry], listed: Collection[str]) -> tuple[StackEntry, ...] | None:
    """Entries of real modules: without the root, and without the wrapper that ``strict=True`` adds."""
    if any(entry.path == _NO_STACK for entry in entries):
        return None
    modules = []
    for entry in entries:
        path = entry.path.removeprefix(f"{_EXPORT_ROOT}.")
        if path not in ("", _EXPORT_ROOT):
            modules.append(StackEntry(entry.key, path if path in listed else _real_path(path, listed), entry.type))
    return tuple(modules)


def _real_path(path: str, listed: Collection[str]) -> str:
    """The path of a module as it is named, from what ``strict=True`` writes for names that are no identifiers."""
    if len(path) <= _MOST:
        read = _by_expression(path)
        for real in (read, *(name for name in listed if "\\" in path and repr(name)[1:-1] == read)):
            if real in listed:
                return real
    return path.split("@")[0] or path


def _by_expression(path: str) -> str:
    """``getattr(L['self'].blocks, 'a b')`` and ``blocks._modules['a b']`` are ``blocks.a b``."""
    try:
        if not path.startswith(("getattr(", "L[")):
            return _CHILD.sub(lambda child: "." + str(ast.literal_eval(child[1])), path)
        return ".".join(_parts(ast.parse(path, mode="eval").body)).removeprefix(f"{_EXPORT_ROOT}.")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return path


def _parts(node: ast.expr) -> list[str]:
    match node:
        case ast.Subscript(ast.Name("L"), ast.Constant("self")):
            return []
        case ast.Attribute(value, "_modules"):
            return _parts(value)
        case ast.Attribute(value, str(name)) | ast.Call(ast.Name("getattr"), [value, ast.Constant(str(name))]):
            return [*_parts(value), name]
        case ast.Subscript(value, ast.Constant(str() | int() as key)):
            return [*_parts(value), str(key)]
    raise ValueError("not the path of a module")
