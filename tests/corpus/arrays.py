"""Arrays: npy, npz, safetensors, csv and images, as inputs and as saved Jacobians."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.corpus.files import Bad, Role, bytes_of


def npy(header: str, version: bytes = b"\x01\x00", data: bytes = b"") -> bytes:
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header.encode("latin1") + data


def header(shape: str, descr: str = "'<f4'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"


NPY: dict[str, bytes] = {
    "cut in its header": npy(header("(2, 3)"))[:20],
    "cut in its data": npy(header("(2, 3)"), data=bytes(20)),
    "shape of 2**62": npy(header(f"({2**62}, 3)"), data=bytes(24)),
    "shape of -1": npy(header("(-1, 3)"), data=bytes(24)),
    "shape of 5,000 digits": npy(header("(" + "1" * 5000 + ", 3)"), data=bytes(24)),
    "shape of text": npy(header("('a', 3)"), data=bytes(24)),
    "shape of infinity": npy(header("(1e999, 3)"), data=bytes(24)),
    "deep header": npy(header("(" * 5000 + ")" * 5000)),
    "header of 4 GiB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
    "unknown version": npy(header("(2, 3)"), b"\x09\x00", bytes(24)),
    "objects": npy(header("(2, 3)", "'|O'"), data=bytes(48)),
    "text": npy(header("(2, 3)", "'<U3'"), data=bytes(72)),
    "records": npy(header("(2,)", "[('a', '<f4'), ('b', '<f4')]"), data=bytes(16)),
    "unknown type": npy(header("(2, 3)", "'<q9'"), data=bytes(48)),
    "no samples": npy(header("(0, 3)")),
    "a type of no size": npy(header(f"({2**40},)", "'<V0'")),
}


def member(path: Path, name: str, data: bytes, method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, data)


def unfolding(path: Path, rows: int, name: str = "x.npy", tail: str = "3") -> None:
    """An npz that takes a thousandth of its array's size."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (rows, int(tail))})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as entry,
    ):
        entry.write(head.getvalue())
        for _ in range(0, rows * int(tail) * 4, 1 << 20):
            entry.write(bytes(1 << 20))


def forged(path: Path, name: str, data: bytes, said: int) -> None:
    """A member that says another size in the directory."""
    member(path, name, data, zipfile.ZIP_DEFLATED)
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    raw[at + 24 : at + 28] = struct.pack("<I", said)
    path.write_bytes(bytes(raw))


def directory(path: Path, count: int) -> None:
    """An archive whose end announces so many entries."""
    member(path, "x.npy", npy(header("(2, 3)"), data=bytes(24)))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x05\x06")
    raw[at + 8 : at + 12] = struct.pack("<HH", min(count, 65535), min(count, 65535))
    path.write_bytes(bytes(raw))


def many_entries(path: Path, count: int) -> None:
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 2) + bytes(16) + b"ab"
    end = b"PK\x05\x06" + bytes(4) + struct.pack("<HHIIH", 65535, 65535, len(entry) * count, 0, 0)
    path.write_bytes(b"PK\x03\x04" + entry * count + end)


def safetensors(head: Any, data: bytes = bytes(24), length: int | None = None) -> bytes:
    body = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(body) if length is None else length) + body + data


def entry(dtype: str = "F32", shape: object = (2, 3), offsets: object = (0, 24)) -> dict[str, object]:
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


SAFETENSORS: dict[str, bytes] = {
    "cut": safetensors(entry())[:-4],
    "longer than said": safetensors(entry()) + b"x",
    "header beyond the file": safetensors(entry(), length=10**6),
    "header that is no JSON": safetensors(b"{" + b"x" * 50),
    "header of deep JSON": safetensors(b'{"__metadata__":' + b"[" * 50_000 + b"]" * 50_000 + b"}", b""),
    "sizes of 2**62": safetensors(entry(shape=(2**62, 3))),
    "sizes of 5,000 digits": safetensors(b'{"x":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,24]}}'),
    "overlapping offsets": safetensors({**entry(), "y": entry(offsets=(12, 24), shape=(3,))["x"]}),
    "offsets backwards": safetensors(entry(offsets=(24, 0))),
    "negative offsets": safetensors(entry(offsets=(-24, 24))),
    "unknown dtype": safetensors(entry(dtype="F99")),
    "dtype of infinity": safetensors(b'{"x":{"dtype":Infinity,"shape":[2,3],"data_offsets":[0,24]}}'),
    "entry of another type": safetensors({"x": [1, 2]}, b""),
    "key that is no UTF-8": safetensors(b'{"\xff\xfe":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}'),
    "the same name twice": safetensors(b'{"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"x":3}'),
}


def many_tensors(count: int) -> bytes:
    one = '"layers.{}.weight":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}'
    body = ("{" + ",".join(one.format(i, 4 * i, 4 * i + 4) for i in range(count)) + "}").encode()
    return safetensors(body, bytes(4 * count))


def png(width: int, height: int, depth: int = 1) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def bmp(width: int, height: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 1, 0, 0, 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 90, 0, 0, 62) + head + bytes(8) + bytes(28)


IMAGES: dict[str, bytes] = {
    "png of 156 million pixels": png(12500, 12500),
    "png of 4 billion pixels": png(65535, 65535),
    "png of no width": png(0, 5),
    "png cut short": png(40, 40)[:50],
    "bmp of 156 million pixels": bmp(12500, 12500),
    "bmp of negative size": bmp(-5, -5),
    "gif of nothing": b"GIF89a" + struct.pack("<HHBBB", 60000, 3000, 0, 0, 0) + b";",
    "tiff of rubbish": b"II*\0\x08\0\0\0\xff\xff" + bytes(60),
    "jpeg of rubbish": b"\xff\xd8\xff\xe0" + bytes(60),
    "ppm of 5,000 digits": b"P6 " + b"9" * 5000 + b" 1 255\n",
    "ppm of 156 million pixels": b"P6 12500 12500 255\n" + bytes(60),
}
TEXT: dict[str, tuple[bytes, bool]] = {
    "csv of ragged rows": (b"1,2,3\n4,5\n", False),
    "csv of a header alone": (b"a,b,c\n", False),
    "csv of words": (b"1,2,3\n4,x,6\n", False),
    "csv of zero bytes": (b"1,2,3\n\0\0\0\n", False),
    "csv of 400 digits": (b"1" * 400 + b",2,3\n", True),
    "empty file": (b"", False),
    "one brace": (b"{", False),
    "deep JSON": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", False),
    "half a UTF-8 character": (b"1,2,3\n\xc3", False),
}


def files() -> Iterator[Bad]:
    roles: tuple[Role, ...] = ("input", "jacobian")
    for role in roles:
        for name, data in NPY.items():
            yield Bad(f"{role}, npy, {name}", role, bytes_of(data))
            yield Bad(f"{role}, npz, {name}", role, lambda path, data=data: member(path, "x.npy", data))
        for name, data in SAFETENSORS.items():
            yield Bad(f"{role}, safetensors, {name}", role, bytes_of(data), (0, 3, 5) if "twice" in name else (3, 5))
        for name, (data, harmless) in TEXT.items():
            yield Bad(f"{role}, {name}", role, bytes_of(data), (0, 3, 5) if harmless or role == "jacobian" else (3, 5))
        yield Bad(f"{role}, npz that unfolds to 3 GB", role, lambda path: unfolding(path, 1 << 28), slow=True)
        yield Bad(
            f"{role}, npz larger than it says",
            role,
            lambda path: forged(path, "x.npy", npy(header("(2, 3)"), data=bytes(10**6)), 152),
        )
        yield Bad(
            f"{role}, npz smaller than it says",
            role,
            lambda path: forged(path, "x.npy", npy(header("(99999, 3)"), data=bytes(24)), 1_300_000),
        )
        yield Bad(f"{role}, npz of fewer entries than it says", role, lambda path: directory(path, 60_000), (0, 3, 5))
        yield Bad(f"{role}, zip of a million entries", role, lambda path: many_entries(path, 10**6), slow=True)
        yield Bad(f"{role}, zip cut short", role, bytes_of(b"PK\x03\x04" + bytes(500)))
    for name, data in SAFETENSORS.items():
        yield Bad(f"model, safetensors, {name}", "model", bytes_of(data))
    for name, data in IMAGES.items():
        yield Bad(f"input, {name}", "input", bytes_of(data))
    yield Bad("model, safetensors of 100,000 other names", "model", bytes_of(many_tensors(100_000)), slow=True)
    yield Bad("model, safetensors of 3,000 other names", "model", bytes_of(many_tensors(3_000)))
    yield Bad("model, zip of a million entries", "model", lambda path: many_entries(path, 10**6), slow=True)


FILES = list(files())
