"""The grammar of layer names, without torch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaccli.activations.address import Address, LayerNames, matches, nearest, parse_address
from jaccli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("fc1", Address("fc1")),
        ("a.b.0", Address("a.b.0")),
        ("fc1:in", Address("fc1", port="in")),
        ("fc1:out", Address("fc1", port="out")),
        ("fc1#2", Address("fc1", call=2)),
        ("fc1#2:in", Address("fc1", call=2, port="in")),
        ("lstm:out.1.0@1", Address("lstm", port="out", elements=("1", "0"), dim=1)),
        ("body:out.key", Address("body", port="out", elements=("key",))),
        ("body:in.gain", Address("body", port="in", elements=("gain",))),
        ("input", Address("input")),
        ("input:out.1", Address("input", port="out", elements=("1",))),
        ("output:out.logits", Address("output", port="out", elements=("logits",))),
        ("input@1", Address("input", dim=1)),
    ],
)
def test_names(text: str, want: Address) -> None:
    got = parse_address(text)
    assert replace(got, suffix="") == want
    assert str(got) == text


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("fc[-1]", (-1,)),
        ("fc[:, 0]", (slice(None), 0)),
        ("fc[1:4]", (slice(1, 4),)),
        ("fc[[0,2]]", ((0, 2),)),
        ("fc[..., 0]", (..., 0)),
        ("fc[None]", (None,)),
        ("fc[::2, -3:]", (slice(None, None, 2), slice(-3, None))),
        ("fc@1[2]", (2,)),
        ("fc[2]@1", (2,)),
        ("fc:out.a[0]", (0,)),
    ],
)
def test_indices(text: str, index: tuple[object, ...]) -> None:
    got = parse_address(text)
    assert got.index == index
    assert got.path == "fc"
    assert got.dim == (1 if "@" in text else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":in",
        "#2",
        "fc#0",
        "fc]",
        "fc[",
        "fc[a]",
        "fc[0.5]",
        "fc[__import__('os')]",
        "fc[0][1]x",
        "fc:on",
        "output:in",
        "input#2",
        "output#1",
        "fc[True]",
        "fc['a']",
        "fc[1:2:x]",
        "fc[" + "(" * 300 + ")" * 300 + "]",
    ],
)
def test_what_is_not_a_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 3


KNOWN = [
    *("a", "a#2", "a:in", "user:item", "user", "block#b", "*", "odd[0]", "{x,y}", "input", "b.input", "out", "user:a.b")
]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("user:item", Address("user:item")),
        ("user:item:in", Address("user:item", port="in")),
        ("user:item:out.1", Address("user:item", port="out", elements=("1",))),
        ("user:in", Address("user", port="in")),
        ("user:a.b@1", Address("user:a.b", dim=1)),
        ("block#b#2", Address("block#b", call=2)),
        ("block#b#*:in", Address("block#b", call="*", port="in")),
        ("odd[0]", Address("odd[0]")),
        ("odd[0]@1", Address("odd[0]", dim=1)),
        ("a#2", Address("a#2")),
        ("a..#2", Address("a", call=2)),
        ("a#1", Address("a", call=1)),
        ("a#2#2", Address("a#2", call=2)),
        ("a:in", Address("a:in")),
        ("a..:in", Address("a", port="in")),
        ("*", Address("*")),
        ("*#2", Address("*", call=2)),
        ("{x,y}:out", Address("{x,y}", port="out")),
        ("input", Address("input")),
        (".input", Address("input", is_module=True)),
        ("input#1", Address("input", call=1, is_module=True)),
        (".input:in", Address("input", port="in", is_module=True)),
        ("b.input", Address("b.input")),
        ("output", Address("output")),
        ("out:in", Address("out", port="in")),
    ],
)
def test_names_of_a_model_that_has_the_grammar_in_its_own(text: str, want: Address) -> None:
    """The longest name that is there wins; what it hides is named with dots."""
    got = parse_address(text, KNOWN)
    assert replace(got, suffix="", index=None) == want
    assert str(got) == text


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.text(alphabet="ab0#:@[]*?{},inout ", min_size=1, max_size=8), min_size=1, max_size=6))
def test_every_name_is_read_back(paths: list[str]) -> None:
    """Whatever modules are called: the spelling that is given for one means it, with any ending."""
    names = LayerNames(paths)
    for path in paths:
        for suffix in ("", "#1", "#*", ":in", ":out.1.x", "@1", "[0]", "#2:in.k@1[-1]"):
            address = names.at(path, suffix)
            got = parse_address(str(address), names)
            assert (got.path, got.suffix) == (path, suffix)
            assert not got.is_model_input
            assert not got.is_model_output
            assert got == address


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("user:*", ["user:item"]),
        ("block#*", ["block#b"]),
        ("a*", ["a", "a#2", "a:in"]),
        ("{*}", ["a", "a#2", "a:in", "user:item", "user", "block#b", "*", "odd[0]", "{x,y}", ".input", "out"]),
        ("{a,out}:in", ["a..:in", "out:in"]),
        ("u**#*", ["user:item#*", "user#*", "user:a.b#*"]),
        ("*.input", ["b.input"]),
        ("nothing*", []),
    ],
)
def test_globs_of_such_a_model(text: str, want: list[str]) -> None:
    assert [str(address) for address in LayerNames(KNOWN).globbed(text)] == want


def test_each_call_has_the_ending_of_all() -> None:
    every = parse_address("cell#*:out.1[0]", ["cell"])
    assert str(every.at_call(3)) == "cell#3:out.1[0]"
    assert every.at_call(3) == parse_address("cell#3:out.1[0]", ["cell"])
    assert str(parse_address("a", KNOWN).at_call(2)) == "a..#2"


PATHS = ["fc1", "fc2", "blocks.0", "blocks.0.fc", "blocks.10", "blocks.10.fc", "blocks.0.attn.out", "head"]


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("fc?", ["fc1", "fc2"]),
        ("blocks.*", ["blocks.0", "blocks.10"]),
        ("blocks.*.fc", ["blocks.0.fc", "blocks.10.fc"]),
        ("**.fc", ["blocks.0.fc", "blocks.10.fc"]),
        ("{fc1,head}", ["fc1", "head"]),
        ("blocks.?", ["blocks.0"]),
        ("*", ["fc1", "fc2", "head"]),
        ("**", PATHS),
        ("blocks.{0,10}.{fc,attn.*}", ["blocks.0.fc", "blocks.10.fc", "blocks.0.attn.out"]),
        ("x*", []),
        ("fc.", []),
    ],
)
def test_globs(pattern: str, want: list[str]) -> None:
    assert sorted(matches(pattern, PATHS)) == sorted(want)
    assert matches(pattern, PATHS) == [p for p in PATHS if p in want]


def test_glob_of_an_open_brace() -> None:
    with pytest.raises(UsageError, match="without its"):
        matches("{a,b", PATHS)


def test_nearest() -> None:
    assert nearest("block.0", PATHS)[0] == "blocks.0"
    assert nearest("zzz", PATHS) == []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="ab.0#:@[]()-,*?{}\x1b\n 'inout", max_size=20))
def test_any_text_is_read_or_refused(text: str) -> None:
    said, address = "", None
    try:
        address = parse_address(text)
    except UsageError as error:
        said = str(error)
    assert len(said.splitlines()) <= 3
    assert "\x1b" not in said
    assert said or (address is not None and address.path)
