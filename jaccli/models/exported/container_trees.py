"""The containers that a model takes and returns, rebuilt from the text that an archive keeps of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaccli.errors import RefusedError, UsageError
from jaccli.models.interpretation.nested import named_tuple

_TUPLES = {"builtins.tuple", "torch.Size"}
_LISTS = {"builtins.list", "collections.deque", "torch.fx.immutable_collections.immutable_list"}
_DICTS = {"builtins.dict", "collections.OrderedDict", "torch.fx.immutable_collections.immutable_dict"}
_MAX_LEAVES = 100_000


@dataclass(frozen=True)
class ArchivedTree:
    """A tree read from an archive.

    Containers of a class that is not here (a dataclass, a library's output type) become a dict if
    the archive keeps their field names, otherwise a tuple.
    """

    kind: Literal["leaf", "tuple", "list", "dict", "named"]
    children: tuple[ArchivedTree, ...] = ()
    keys: tuple[Any, ...] = ()
    name: str = ""

    def size(self) -> int:
        """How many leaves there are."""
        return 1 if self.kind == "leaf" else sum(child.size() for child in self.children)

    def flatten(self, value: Any) -> list[Any]:
        """Leaves of a value arranged like this; ``UsageError`` if it is not."""
        if self.kind == "leaf":
            return [value]
        parts = self._parts(value)
        return [leaf for child, part in zip(self.children, parts, strict=True) for leaf in child.flatten(part)]

    def _parts(self, value: Any) -> list[Any]:
        if self.kind == "dict":
            if isinstance(value, Mapping) and set(value) == set(self.keys):
                return [value[key] for key in self.keys]
        elif isinstance(value, (tuple, list)) and len(value) == len(self.children):
            return list(value)
        expected = f"a {self.kind} of {len(self.children)}"
        raise UsageError(
            f"an argument of the exported model is {type(value).__name__!r}",
            f"expected {expected}, as given when the model was exported",
        )

    def unflatten(self, leaves: Iterator[Any]) -> Any:
        """The value with these leaves."""
        if self.kind == "leaf":
            return next(leaves)
        parts = [child.unflatten(leaves) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.keys, parts, strict=True))
        if self.kind == "list":
            return parts
        if self.kind == "named":
            return named_tuple(self.name, self.keys)(*parts)
        return tuple(parts)


def parse_spec(text: str, fields: Mapping[str, Any]) -> ArchivedTree:
    """The tree that an archive describes.

    Args:
        text: ``[version, {"type", "context", "children_spec"}]`` as JSON.
        fields: class name → ``{"field_names": […]}`` for named tuples.

    Raises:
        RefusedError: the description is damaged.
    """
    try:
        spec = _node(json.loads(text)[1], fields, depth=0)
    except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise RefusedError(
            "the archive's description of inputs or outputs is damaged",
            "expected what torch.export.save writes",
            "copy, download or export it again",
        ) from error
    if spec.size() > _MAX_LEAVES:
        raise RefusedError(
            "the archive describes more inputs or outputs than a model can have",
            f"expected at most {_MAX_LEAVES}",
            "copy, download or export it again",
        )
    return spec


def _node(raw: Mapping[str, Any], fields: Mapping[str, Any], depth: int) -> ArchivedTree:
    if depth > 64:
        raise ValueError("nested too deep")
    kind, children = raw["type"], raw["children_spec"]
    if kind is None:
        return ArchivedTree("leaf")
    parts = tuple(_node(child, fields, depth + 1) for child in children)
    context = _context(raw["context"])  # JSON in a text of the JSON, for most classes
    if kind in _LISTS:
        return ArchivedTree("list", parts)
    if kind in _TUPLES:
        return ArchivedTree("tuple", parts)
    if kind == "collections.namedtuple":
        return _named(context, parts, fields)
    if kind == "collections.defaultdict" and isinstance(context, Mapping):
        context = context.get("dict_context")
    keys = _keys(context, len(parts))
    if keys is not None:
        return ArchivedTree("dict", parts, keys)
    if kind in _DICTS:
        raise ValueError("a dict without keys")
    return ArchivedTree("tuple", parts)


def _context(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _keys(context: Any, count: int) -> tuple[Any, ...] | None:
    """Dict keys, or the field names of a dataclass, if the context is a list of them."""
    if not isinstance(context, list):
        return None
    # A dict's context is its keys. A dataclass's is a list with the field names in it, beside other things.
    for candidate in (context, *context):
        plain = isinstance(candidate, list) and all(isinstance(key, (str, int)) for key in candidate)
        if plain and len(candidate) == count == len(set(candidate)):
            return tuple(candidate)
    return None


def _named(context: Any, parts: tuple[ArchivedTree, ...], fields: Mapping[str, Any]) -> ArchivedTree:
    entry = fields.get(context) if isinstance(context, str) else None
    names = entry["field_names"] if entry else None
    if not (isinstance(names, list) and len(names) == len(parts)):
        return ArchivedTree("tuple", parts)
    return ArchivedTree("named", parts, tuple(str(item) for item in names), str(context))


class LiveTree:
    """A tree that torch itself described, with the real container classes in it."""

    def __init__(self, spec: Any) -> None:
        self._spec = spec

    @property
    def children(self) -> tuple[LiveTree, ...]:
        """The parts of the outermost container; empty for a leaf."""
        spec = self._spec
        parts = spec.children() if callable(getattr(spec, "children", None)) else spec.children_specs
        return tuple(LiveTree(part) for part in parts)

    @property
    def keys(self) -> tuple[Any, ...]:
        """The keys of the outermost container, if it is a dict."""
        return tuple(self._spec.context) if self._spec.type is dict else ()

    def size(self) -> int:
        """How many leaves there are."""
        return int(self._spec.num_leaves)

    def flatten(self, value: Any) -> list[Any]:
        """Leaves of a value arranged like this; ``UsageError`` if it is not."""
        try:
            return list(self._spec.flatten_up_to(value))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                "the arguments are not arranged as the exported model expects",
                "expected the containers that were given when the model was exported",
            ) from error

    def unflatten(self, leaves: Iterator[Any]) -> Any:
        """The value with these leaves."""
        return self._spec.unflatten(list(leaves))


ContainerTree = ArchivedTree | LiveTree
"""How leaves are arranged in containers. Both flatten a value to its leaves, and make a value of leaves again."""
