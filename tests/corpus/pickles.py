"""Pickles by hand: as a checkpoint in both forms of ``torch.save``, as an input, and nested in other files."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus.files import Bad

NONE = b"N"


def text(s: str | bytes) -> bytes:
    data = s.encode() if isinstance(s, str) else s
    return b"X" + struct.pack("<I", len(data)) + data


def integer(n: int) -> bytes:
    digits = pickle.encode_long(n)
    if len(digits) < 256:
        return b"\x8a" + bytes([len(digits)]) + digits
    return b"\x8b" + struct.pack("<i", len(digits)) + digits


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def called(module: str, name: str, *args: bytes) -> bytes:
    return f"c{module}\n{name}\n".encode() + several(*args) + b"R"


def storage(record: str = "0", declared: bytes | None = None, kind: str = "FloatStorage", *rest: bytes) -> bytes:
    size = integer(6) if declared is None else declared
    return several(text("storage"), f"ctorch\n{kind}\n".encode(), text(record), text("cpu"), size, *rest) + b"Q"


def numbers(*values: int) -> bytes:
    return several(*map(integer, values))


def tensor(
    held: bytes | None = None,
    offset: bytes = b"K\x00",
    size: bytes | None = None,
    stride: bytes | None = None,
) -> bytes:
    hooks = called("collections", "OrderedDict")
    sizes = (size or numbers(2, 3)), (stride or numbers(3, 1))
    return called("torch._utils", "_rebuild_tensor_v2", held or storage(), offset, *sizes, b"\x89", hooks)


def state(before: bytes = b"", entry: bytes = b"", weight: bytes | None = None) -> bytes:
    """The pickle of weights of ``Plain``: opcodes before it, and a further entry."""
    bias = tensor(storage("1", integer(2)), size=numbers(2), stride=numbers(1))
    weights = text("fc.weight") + (weight or tensor()) + text("fc.bias") + bias
    return b"\x80\x02" + before + b"}(" + weights + entry + b"u."


def zipped(path: Path, data: bytes, **records: bytes) -> None:
    held = {"data/0": np.arange(6, dtype="<f4").tobytes(), "data/1": bytes(8), **records}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        for name, content in held.items():
            archive.writestr(f"archive/{name}", content)


def legacy(path: Path, data: bytes, tail: bytes = b"") -> None:
    """The form before 1.6: three headers, the object, the keys of its storages, and these."""
    head = b"\x80\x02" + integer(0x1950A86A20F9469CFC6C) + b"."
    system = b"\x80\x02}(" + text("little_endian") + b"\x88u."
    keys = b"\x80\x02](" + text("0") + text("1") + b"e."
    held = struct.pack("<q", 6) + np.arange(6, dtype="<f4").tobytes() + struct.pack("<q", 2) + bytes(8)
    path.write_bytes(head + b"\x80\x02M\xe9\x03." + system + data.replace(b"tQ", b"NtQ") + keys + (tail or held))


def repeated(levels: int, width: int, item: bytes = NONE, seal: bytes = b"") -> bytes:
    """A tuple of so many times the one below, again and again."""
    rungs = (b"q%c0" % i + several(*[b"h%c" % i] * width) + seal for i in range(levels))
    return item + b"".join(rungs)


def remembered(count: int) -> bytes:
    put = np.empty(count, dtype=[("none", "S1"), ("put", "S1"), ("number", "<u4"), ("pop", "S1")])
    put["none"], put["put"], put["number"], put["pop"] = NONE, b"r", np.arange(count), b"0"
    return put.tobytes()


def globals_(count: int, fresh: bool = True) -> bytes:
    return b"".join(b"cm%d\nC\n0" % (i if fresh else 0) for i in range(count))


def nested_tuples(depth: int) -> bytes:
    return b")" + b"\x85" * depth


def nested_lists(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1)


def plain_pickle(*, inner: bytes) -> bytes:
    """Bytes of ``torch.save`` within a pickle, as pickle.dump writes storages."""
    return called("torch.storage", "_load_from_bytes", b"B" + struct.pack("<I", len(inner)) + inner)


def nested_loads(depth: int) -> bytes:
    data = b"\x80\x03N."
    for _ in range(depth):
        data = b"\x80\x03" + plain_pickle(inner=data) + b"."
    return data


# Entries of a state dict, or opcodes before it; whether harmless ones may be read; whether they take seconds.
ENTRIES: dict[str, tuple[bytes, bool]] = {
    "key of tuples that share": (repeated(6, 50) + NONE, False),
    "key of a deep tuple": (nested_tuples(100_000) + NONE, False),
    "key of frozensets that share": (b"N" + b"".join(b"q%c0(" % i + b"h%c" % i * 2 + b"\x91" for i in range(40)), True),
    "value of tuples that share": (text("note") + repeated(30, 50), True),
    "deep value": (text("note") + nested_lists(50_000), True),
    "integer of 5,000 digits": (text("epoch") + integer(10**5000), False),
    "key of 5,000 digits": (integer(10**5000) + NONE, False),
    "key of 300 digits": (integer(10**300) + NONE, True),
    "key that is no UTF-8": (text(b"fc\xff\xfe.weight") + tensor(), True),
    "key with half a surrogate": (text(b"fc\xed\xa0\x80") + tensor(), True),
    "bytearray of 2**60": (text("x") + b"\x96" + struct.pack("<Q", 1 << 60) + b"x", False),
    "string of 2**60": (text("x") + b"\x8d" + struct.pack("<Q", 1 << 60) + b"x", False),
    "memo entry 2**31": (b"Nr\xff\xff\xff\x7f0" + text("x") + NONE, True),
    "encode beside the file": (
        text("x") + b"(" + text("y" * 10**6) + b"q\x000" + b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R" * 40 + b"t",
        False,
    ),
    "pairs of a shared list": (
        text("x") + b"(" + b"](" + several(text("k"), NONE) * 3000 + b"eq\x000"
        + b"ccollections\nOrderedDict\nh\x00\x85R" * 3000 + b"t",
        False,
    ),
    "arguments that are shared": (
        text("x") + b"(" + several(*[NONE] * 3000) + b"q\x000" + b"cm\nC\nh\x00R" * 3000 + b"t",
        False,
    ),
    "a call of what is no function": (text("x") + b"K\x01)R", True),
    "os.system": (text("x") + called("os", "system", text("true")), False),
    "eval": (text("x") + called("builtins", "eval", text("1")), False),
    "subprocess": (text("x") + called("subprocess", "Popen", text("true")), False),
    "getattr of a module": (text("x") + called("builtins", "getattr", text("os"), text("system")), True),
    "a name that is no UTF-8": (text("x") + b"cm\xff\nC\n", False),
}  # fmt: skip
BEFORE: dict[str, tuple[bytes, bool]] = {
    "millions of memo entries": (remembered(3_000_000), True),
    "a million classes": (globals_(30_000), False),
    "one class a million times": (globals_(700_000, fresh=False), True),
    "millions of dicts": (b"}0" * 3_000_000, True),
    "bytes in bytes in bytes": (nested_loads(300)[2:-1] + b"0", False),
    "nothing to pop": (b"0" * 10, False),
    "marks alone": (b"(" * 100_000, True),
    "opcode of an instance": (b"(im\nC\n0", False),
    "extension": (b"\x82\x010", False),
}
WEIGHTS: dict[str, bytes] = {
    "storage a number too long": tensor(storage(declared=integer(7))),
    "storage of 2**62": tensor(storage(declared=integer(2**62))),
    "storage of -1": tensor(storage(declared=integer(-1))),
    "storage of None": tensor(storage(declared=NONE)),
    "storage that is not there": tensor(storage("9")),
    "storage of a key that is no text": tensor(several(text("storage"), b"ctorch\nFloatStorage\n", NONE) + b"Q"),
    "storage of no type": tensor(several(text("storage"), NONE, text("0"), text("cpu"), integer(6)) + b"Q"),
    "sizes of 2**62": tensor(size=numbers(2**62, 3)),
    "sizes of 2**80": tensor(size=numbers(2**80, 3)),
    "negative size": tensor(size=numbers(-2, 3)),
    "negative stride": tensor(stride=numbers(-3, 1)),
    "negative offset": tensor(offset=integer(-1)),
    "offset of 2**62": tensor(offset=integer(2**62)),
    "beyond its storage": tensor(size=numbers(3, 3)),
    "repeated a trillion times": tensor(size=numbers(10**6, 10**6), stride=numbers(0, 0)),
    "of 100 dimensions": tensor(size=numbers(*[1] * 100), stride=numbers(*[0] * 100)),
    "of a million dimensions": tensor(size=several(*[b"K\x01"] * 10**6), stride=several(*[b"K\x00"] * 10**6)),
    "sizes of text": tensor(size=several(text("2"), text("3"))),
    "no storage": tensor(NONE),
    "another dtype's storage": tensor(storage(kind="DoubleStorage")),
    "quantized": called("torch._utils", "_rebuild_qtensor", storage(), integer(0), numbers(2, 3), numbers(3, 1)),
    "sparse with bad indices": called(
        "torch._utils",
        "_rebuild_sparse_tensor",
        called("torch.serialization", "_get_layout", text("torch.sparse_coo")),
        several(tensor(size=numbers(1, 2), stride=numbers(2, 1)), tensor(size=numbers(2), stride=numbers(1)), NONE),
    ),
    "sparse of deep parts": called(
        "torch._utils",
        "_rebuild_sparse_tensor",
        called("torch.serialization", "_get_layout", text("torch.sparse_coo")),
        several(nested_tuples(100_000), NONE, NONE),
    ),
    "array of objects": called("numpy.core.multiarray", "_reconstruct", NONE, NONE, NONE),
}


def files() -> Iterator[Bad]:
    """Each harm in both forms of ``torch.save``."""
    made: list[tuple[str, bytes, Any]] = []
    made += [(name, state(entry=entry), harmless) for name, (entry, harmless) in ENTRIES.items()]
    made += [(name, state(before=before), harmless) for name, (before, harmless) in BEFORE.items()]
    made += [(name, state(weight=weight), False) for name, weight in WEIGHTS.items()]
    for name, data, harmless in made:
        codes = (0, 3, 5) if harmless else (3, 5)
        slow = name in ("millions of memo entries", "one class a million times", "millions of dicts")
        yield Bad(f"checkpoint, {name}", "model", lambda path, data=data: zipped(path, data), codes, slow)
        yield Bad(f"old checkpoint, {name}", "model", lambda path, data=data: legacy(path, data), codes, slow)
    views = {"deep": several(text("v"), nested_tuples(100_000), integer(1)), "negative": numbers(0, -5, 1)}
    for name, view in views.items():
        data = state(weight=tensor(storage("0", None, "FloatStorage", view)))
        yield Bad(f"old checkpoint, {name} view", "model", lambda path, data=data: legacy(path, data))
    whole = state()
    yield Bad("old checkpoint, shorter than its storages", "model", lambda path: legacy(path, whole, bytes(20)))
    yield Bad("old checkpoint, negative length", "model", lambda path: legacy(path, whole, struct.pack("<q", -6)))
    yield Bad(
        "input, a pickle of 5,000 digits",
        "input",
        lambda path: zipped(path, state(entry=ENTRIES["integer of 5,000 digits"][0])),
    )
    yield Bad(
        "input, storage of 2**62", "input", lambda path: zipped(path, b"\x80\x02" + WEIGHTS["storage of 2**62"] + b".")
    )
    yield Bad(
        "jacobian, key of tuples that share",
        "jacobian",
        lambda path: zipped(path, state(entry=ENTRIES["key of tuples that share"][0])),
    )
    provenance = text("provenance") + b"}(" + text("a") + nested_lists(50_000) + b"u"
    yield Bad(
        "jacobian, deep provenance",
        "jacobian",
        lambda path: zipped(path, b"\x80\x02}(" + text("jacobian") + tensor() + provenance + b"u."),
        (0, 3),
    )
    shared = text("provenance") + b"}(" + text("a") + repeated(30, 50) + b"u"
    yield Bad(
        "jacobian, provenance that shares",
        "jacobian",
        lambda path: zipped(path, b"\x80\x02}(" + text("jacobian") + tensor() + shared + b"u."),
        (0, 3),
    )


FILES = list(files())
