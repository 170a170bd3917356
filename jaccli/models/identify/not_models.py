"""Other files that users give as a model: what they are, and what to give instead. Imports no torch."""

from __future__ import annotations

_NOT_TORCH = "jaccli runs PyTorch networks only; rebuild it in PyTorch and give its state dict"
_UNPACK = "unpack it and give the model file inside"

# (offset, bytes, what it is, remedy)
_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x93NUMPY", "an npy array: an input, not a model", "give it with -i, and a model file first"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it", _NOT_TORCH),
    (0, b"GGUF", "a GGUF model, as llama.cpp uses it", "give the safetensors files it was converted from"),
    (0, b"lmgg", "a GGML model, as llama.cpp used it", "give the checkpoint it was converted from"),
    (4, b"TFL3", "a TensorFlow Lite model", _NOT_TORCH),
    (4, b"ET12", "an ExecuTorch program", "give the .pt2 it was lowered from"),
    (0, b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (0, b"BZh", "compressed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!", "a RAR archive", _UNPACK),
    (0, b"\x89PNG", "a PNG image: an input, not a model", "give it with -i, and a model file first"),
    (0, b"\xff\xd8\xff", "a JPEG image: an input, not a model", "give it with -i, and a model file first"),
    (0, b"%PDF", "a PDF document", "give the model file"),
    (0, b"\x7fELF", "a compiled program or library", "give the model file"),
    # A SavedModel begins with its schema version, 1, and then a meta graph.
    (0, b"\x08\x01\x12", "a TensorFlow SavedModel", _NOT_TORCH),
)


def foreign_magic(head: bytes) -> tuple[str, str] | None:
    """What a binary file of another kind is, and the remedy; None if it is not one of those known."""
    for offset, magic, what, remedy in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return what, remedy
    return None


def foreign_text(head: bytes) -> tuple[str, str] | None:
    """What a text file is, and the remedy; None if it is not text."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text[:200].lower()
    if lower.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself", "fetch the file: git lfs pull"
    if lower.startswith((b"<!doctype html", b"<html", b"<head", b"<script", b"<!--")):
        return "an HTML page saved under this name: download failed?", "download it again, from the raw link"
    if lower.startswith(b"<"):
        return "an XML document: an error message of a download?", "download it again"
    if b"\x00" in head or not _is_text(head):
        return None
    if lower.startswith((b"{", b"[")):
        return "a JSON text, not a model", "give the file with the weights (safetensors, .pt)"
    if lower.startswith((b"import ", b"from ", b"def ", b"class ", b'"""', b"#!")):
        return "source code, not a model file", "name the callable in it: file.py:callable"
    first = text.partition(b"\n")[0]
    if any(first.count(mark) for mark in (b",", b";", b"\t")):
        return "a table in text form (CSV): an input, not a model", "give it with -i, and a model file first"
    return "a text file, not a model", "give the model file"


def _is_text(head: bytes) -> bool:
    try:
        # ``head`` may end within a character, and then has up to three bytes of it.
        decoded = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        decoded = head[: error.start].decode("utf-8")
    return all(char.isprintable() or char in "\t\r\n\f" for char in decoded)


def is_onnx(head: bytes, size: int) -> bool:
    """Whether the top-level protobuf fields are those of an ONNX model.

    An ONNX ``ModelProto`` holds ir_version (1, a small number), producer (2 and 3, text), domain (4),
    model_version (5), graph (7) and opset_import (8), each within the file.
    """
    position, seen = 0, set()
    while position < len(head):
        tag = head[position]
        field, wire = tag >> 3, tag & 7
        value, after = _varint(head, position + 1)
        if value is None or not 1 <= field <= 26 or wire not in (0, 2):
            return False
        if field == 1 and not (wire == 0 and 1 <= value <= 100):
            return False
        seen.add(field)
        position = after if wire == 0 else after + value
        if position > size:
            return False
    return 1 in seen and bool(seen & {7, 8})


def _varint(data: bytes, position: int) -> tuple[int | None, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            return None, position
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
    return None, position
