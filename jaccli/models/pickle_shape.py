"""How deep the objects of a pickle are nested, found without building them. Imports no torch.

``hash`` of a tuple and the destructors of C++ containers call themselves once a level, with no limit: a
few megabytes of nested tuples overflow the stack and end the process. Nothing real is nested so.
"""

from __future__ import annotations

import pickletools
import zipfile
from typing import IO, Any, Final

MAX_DEPTH: Final = 2000

_MUTATE: Final = frozenset(("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"))
_PUT: Final = frozenset(("PUT", "BINPUT", "LONG_BINPUT"))
_GET: Final = frozenset(("GET", "BINGET", "LONG_BINGET"))
_MUTABLE: Final = frozenset(("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "LIST", "DICT", "NEWOBJ", "REDUCE"))


class _Cell:
    """An object on the stack, as far as it matters here."""

    __slots__ = ("depth", "mutable")

    def __init__(self, depth: int, mutable: bool) -> None:
        self.depth, self.mutable = depth, mutable


def check_nesting(pickle: bytes | IO[bytes], *, cycles: bool = False) -> None:
    """Refuse a pickle whose objects are nested absurdly deep. Linear in its opcodes; reads up to its end.

    Args:
        pickle: its bytes, or a file that stands at its beginning.
        cycles: count containers that are filled after they were stored elsewhere as well: only so can
            lists and dicts hide their depth. Tuples cannot.

    Raises:
        ValueError: nested too deep, or no pickle.
    """
    stack: list[_Cell | None] = []
    memo: dict[Any, _Cell | None] = {}
    links = 0
    for count, (opcode, arg, _) in enumerate(pickletools.genops(pickle)):
        name = opcode.name
        try:
            if name in _GET:
                cell = memo[int(arg or 0)]
                links += cycles and cell is not None and cell.mutable
                stack.append(cell)
            elif name in _PUT or name == "MEMOIZE":
                index = len(memo) if name == "MEMOIZE" else int(arg or 0)
                # Unpicklers make room for all memo entries up to the highest.
                if index > 2 * count + 1000:
                    raise ValueError("a memo entry that is far too high")
                memo[index] = stack[-1]
            elif name == "DUP":
                stack.append(stack[-1])
            else:
                _apply(opcode, stack, links)
        except (IndexError, KeyError):
            raise ValueError("a pickle that takes what is not there") from None


def _apply(opcode: Any, stack: list[_Cell | None], links: int) -> None:
    """Pop what an opcode takes and push what it makes."""
    taken: list[_Cell] = []
    for item in reversed(opcode.stack_before):
        if item is pickletools.stackslice:
            while (cell := stack.pop()) is not None:
                taken.append(cell)
        elif item is not pickletools.markobject:
            popped = stack.pop()
            taken += [] if popped is None else [popped]
    if opcode.name == "MARK":
        stack.append(None)
        return
    if opcode.name in _MUTATE:
        *items, target = taken
        target.depth = max(target.depth, 1 + max((item.depth for item in items), default=0))
        stack.append(target)
        depth = target.depth
    else:
        depth = 1 + max((cell.depth for cell in taken), default=-1)
        stack.extend(_Cell(depth, opcode.name in _MUTABLE) for _ in opcode.stack_after)
    if depth + links > MAX_DEPTH:
        raise ValueError("objects nested too deep")


def check_torch_file(file: IO[bytes]) -> None:
    """``check_nesting`` of all pickles in a file of ``torch.save``; leaves the position at the start.

    Raises:
        ValueError: as there.
        zipfile.BadZipFile: a damaged archive.
    """
    file.seek(0)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.filename.endswith(".pkl"):
                    check_nesting(archive.read(info))
    else:
        # Three headers, the object and the keys of its storages; a plain pickle is alone.
        file.seek(0)
        for _ in range(5):
            check_nesting(file)
            following = file.read(1)
            if following != b"\x80":
                break
            file.seek(-1, 1)
    file.seek(0)
