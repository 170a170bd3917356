"""Values that scripts ask the type of, and what only scripts do with numbers, texts and lists."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jaccli.errors import RefusedError, ResourceError
from jaccli.models.torchscript import item_limits
from jaccli.models.torchscript.natives import ALWAYS, SCALARS
from jaccli.models.torchscript.script_types import matches, tuple_type


def type_of(text: str) -> Any:
    return torch._C.parse_schema(f"f({text} a) -> ()").arguments[0].type


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("Tensor", torch.ones(1), 1.0),
        ("int", 3, True),
        ("float", 3.0, 3),
        ("bool", True, 1),
        ("str", "a", 1),
        ("complex", 1j, 1.0),
        ("Scalar", 1.5, "a"),
        ("Device", torch.device("cpu"), "cpu"),
        ("int?", None, 1.0),
        ("int?", 2, "a"),
        ("int[]", [1, 2], [1, 2.0]),
        ("Tensor[]", [torch.ones(1)], (torch.ones(1),)),
        ("Dict(str, int)", {"a": 1}, {1: 1}),
        ("(int, str)", (1, "a"), (1, "a", 2)),
        ("NoneType", None, 0),
    ],
)
def test_values_match_their_types(text: str, right: Any, wrong: Any) -> None:
    assert matches(right, type_of(text))
    assert not matches(wrong, type_of(text))


def test_named_tuples_have_the_fields_of_their_type() -> None:
    point = tuple_type("__torch__.Point", "NamedTuple(x : Tensor, y : Tuple[int, int], class : int)")
    assert point is not None
    assert type(point(1, (2, 3), 4)).__name__ == "Point"
    assert point(1, (2, 3), 4)._fields == ("x", "y", "_2")
    assert tuple_type("__torch__.Odd-name", "NamedTuple(x : int)") is not None
    assert tuple_type("__torch__.Point", "(int, int)") is None


def test_what_scripts_do_with_numbers_and_texts() -> None:
    item_limits.start()
    assert ALWAYS["aten::expandtabs"]("a\tb", 4) == "a   b"
    assert ALWAYS["aten::replace"]("aba", "a", "c", 1) == "cba"
    assert ALWAYS["prim::rangelist"](3) == [0, 1, 2]
    assert ALWAYS["aten::as_tensor"](2.0, None, None).item() == 2.0
    assert SCALARS["aten::sqrt"](-4 + 0j) == 2j
    assert ALWAYS["aten::_unwrap_optional"](1) == 1
    with pytest.raises(RefusedError, match="null optional"):
        ALWAYS["aten::_unwrap_optional"](None)
    with pytest.raises(ResourceError, match="list or text"):
        ALWAYS["prim::rangelist"](1 << 40)
