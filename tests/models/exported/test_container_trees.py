"""Containers of inputs and outputs, from the text that torch writes."""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict, namedtuple
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from jaccli.errors import RefusedError, UsageError
from jaccli.models.exported.container_trees import LiveTree, parse_spec

Pair = namedtuple("Pair", ["first", "second"])
pytree._register_namedtuple(Pair, serialized_type_name="tests.Pair")


@pytest.mark.parametrize(
    "value",
    [
        1,
        (1, [2, {"b": 3, "a": (4,)}], ()),
        OrderedDict(z=1, y=[2]),
        {"only": None, 3: 4},
        [torch.Size([1, 2]), 3],
    ],
)
def test_round_trip(value: Any) -> None:
    leaves, spec = pytree.tree_flatten(value)
    tree = parse_spec(pytree.treespec_dumps(spec), {})
    assert tree.size() == len(leaves)
    assert tree.flatten(value) == leaves
    assert tree.unflatten(iter(leaves)) == value


def test_named_tuples_and_default_dicts() -> None:
    leaves, spec = pytree.tree_flatten(Pair(1, [2]))
    tree = parse_spec(pytree.treespec_dumps(spec), {"tests.Pair": {"field_names": ["first", "second"]}})
    got = tree.unflatten(iter(leaves))
    assert (got.first, got.second) == (1, [2])
    leaves, spec = pytree.tree_flatten(defaultdict(list, a=1, b=2))
    assert parse_spec(pytree.treespec_dumps(spec), {}).unflatten(iter(leaves)) == {"a": 1, "b": 2}


def test_unknown_classes_become_what_their_fields_say() -> None:
    leaf = {"type": None, "context": None, "children_spec": []}

    def tree(context: Any) -> Any:
        raw = {"type": "evil.Output", "context": json.dumps(context), "children_spec": [leaf, leaf]}
        return parse_spec(json.dumps([1, raw]), {}).unflatten(iter([1, 2]))

    assert tree(["logits", "loss"]) == {"logits": 1, "loss": 2}
    assert tree([["logits", "loss"], []]) == {"logits": 1, "loss": 2}
    assert tree("__import__('os')") == (1, 2)


def test_other_arrangements_are_refused() -> None:
    _, spec = pytree.tree_flatten(((1, 2), {"a": 3}))
    tree = parse_spec(pytree.treespec_dumps(spec), {})
    for bad in (((1,), {"a": 3}), ((1, 2), {"b": 3}), (1, {"a": 3}), ((1, 2), [3])):
        with pytest.raises(UsageError, match="an argument of the exported model"):
            tree.flatten(bad)


@pytest.mark.parametrize("text", ["", "[", "[1]", "{}", '[1, {"type": "builtins.dict"}]', "[1, " + "[" * 5000])
def test_damage(text: str) -> None:
    with pytest.raises(RefusedError, match="damaged"):
        parse_spec(text, {})


def test_absurd_depth() -> None:
    node: Any = {"type": None, "context": None, "children_spec": []}
    for _ in range(100):
        node = {"type": "builtins.tuple", "context": "null", "children_spec": [node]}
    with pytest.raises(RefusedError, match="damaged"):
        parse_spec(json.dumps([1, node]), {})


def test_live_trees_refuse_other_containers():
    spec = pytree.tree_flatten(({"a": 1}, [2]))[1]
    tree = LiveTree(spec)
    assert tree.flatten(({"a": 5}, [6])) == [5, 6]
    with pytest.raises(UsageError, match="not arranged"):
        tree.flatten(({"b": 5}, [6]))


def test_damaged_descriptions_are_refused():
    leaf = {"type": None, "context": None, "children_spec": []}
    many = {"type": "builtins.tuple", "context": "null", "children_spec": [leaf] * 100_001}
    for text in (
        json.dumps([1, many]),
        json.dumps([1, {"type": "builtins.dict", "context": "3", "children_spec": []}]),
    ):
        with pytest.raises(RefusedError):
            parse_spec(text, {})
