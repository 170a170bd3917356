"""The text that an export writes about the modules around an operator."""

from __future__ import annotations

import pytest

from jaccli.models.exported.module_stacks import parse_stack

LISTED = ["blocks", "blocks.0", "blocks.a b", "blocks.x,y", "net"]


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("L__self__,,pkg.Net;L__self___blocks.0,blocks.0,pkg.Block", ["blocks.0"]),
        ("L__self__,_export_root,pkg.Net;L__self___net,_export_root.net,pkg.Block", ["net"]),
        ("L__self__,,pkg.Net;L__self___b,getattr(L['self'].blocks, 'a b'),pkg.Block", ["blocks.a b"]),
        ("L__self__,,pkg.Net;L__self___b,L['self'].blocks._modules['0'],pkg.Block", ["blocks.0"]),
        ("L__self__,,pkg.Net;L__self___b,L['self'].blocks[0],pkg.Block", ["blocks.0"]),
        ("L__self__,,pkg.Net;L__self___b,blocks._modules['a b'],pkg.Block", ["blocks.a b"]),
        ("L__self__,,pkg.Net;L__self__blocks.x,y,blocks.x,y,pkg.Block", ["blocks.x,y"]),
        ("L__self__,,pkg.Net;L__self___b,L['self'](3),pkg.Block", ["L['self'](3)"]),
        ("L__self__,,pkg.Net;L__self___net@1,net@1,pkg.Block", ["net"]),
    ],
)
def test_paths_are_those_of_the_modules(text: str, paths: list[str]) -> None:
    stack = parse_stack(text, LISTED)
    assert stack is not None
    assert [entry.path for entry in stack] == paths
    assert all(entry.type == "pkg.Block" for entry in stack)


def test_what_is_no_stack() -> None:
    assert parse_stack("", LISTED) is None
    assert parse_stack("k,_empty_nn_module_stack_from_metadata_hook,pkg.Net", LISTED) is None
    with pytest.raises(ValueError, match="not understood"):
        parse_stack("no stack at all", LISTED)
