"""Lifetimes, alias sets and nested values of the two graph readers."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from jaccli.errors import InternalError
from jaccli.models.interpretation.alias_sets import AliasSets
from jaccli.models.interpretation.last_use import expiring, last_uses
from jaccli.models.interpretation.module_calls import CallReports
from jaccli.models.interpretation.nested import arrange, leaves, map_leaves, pairs
from jaccli.models.interpretation.overloads import find_overload
from jaccli.models.interpretation.training_flags import draws_numbers


class Pair(NamedTuple):
    first: int
    second: Any


def test_a_value_expires_after_its_last_use_unless_it_lasts() -> None:
    uses = [["a", "b"], ["b", "c"], ["a"]]
    assert last_uses(uses) == {"a": 2, "b": 1, "c": 1}
    assert expiring(uses, {"c"}) == {1: ["b"], 2: ["a"]}


def test_alias_sets_are_united_through_a_common_value() -> None:
    sets = AliasSets[str]()
    sets.unite("ab")
    sets.unite("cd")
    assert sets.members("a") == {"a", "b"}
    sets.unite("bc")
    assert all(sets.members(name) == set("abcd") for name in "abcd")
    assert sets.members("e") == {"e"}
    sets.unite("")


def test_leaves_are_mapped_in_place_of_each_other() -> None:
    value = {"x": [1, (2, Pair(3, None))], "y": 4}
    doubled = map_leaves(value, lambda leaf: leaf and 2 * leaf)
    assert doubled == {"x": [2, (4, Pair(6, None))], "y": 8}
    assert type(doubled["x"][1][1]) is Pair
    assert list(leaves(value)) == [1, 2, 3, None, 4]


def test_pairs_undo_arrange() -> None:
    layout, values = ("out", ("h", None)), {"out": 1, "h": 2}
    nested = arrange(layout, values)
    assert nested == (1, (2, None))
    assert dict(pairs(layout, nested)) == values
    with pytest.raises(InternalError, match="how many"):
        list(pairs(layout, (1, 2, 3)))


def test_operators_by_name() -> None:
    assert str(find_overload("aten", "add", "Tensor")) == "aten.add.Tensor"
    assert str(find_overload("aten", "relu")) == "aten.relu.default"
    for name in ("no_such_operator", "__class__", "__dict__"):
        assert find_overload("aten", name) is None
    assert find_overload("aten", "add", "__class__") is None
    assert draws_numbers(find_overload("aten", "bernoulli"))
    assert not draws_numbers(find_overload("aten", "relu"))


def test_calls_of_a_path_are_counted_and_inputs_keep_their_number() -> None:
    class Tap:
        paths = frozenset({"fc"})

        def enter(self, path: str, call: int, args: Any, kwargs: Any) -> Any:
            return args[:1], kwargs

        def leave(self, path: str, call: int, output: Any) -> Any:
            return output, call

    reports = CallReports(Tap())
    assert reports.wants("fc")
    assert not reports.wants("other")
    assert not CallReports(None).wants("fc")
    assert [reports.enter("fc", (1,)) for _ in range(2)] == [(1, (1,)), (2, (1,))]
    assert reports.leave("fc", 2, "y") == ("y", 2)
    with pytest.raises(InternalError, match="number of inputs"):
        reports.enter("fc", (1, 2))
