"""Jacobians saved as text, parsed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.safety.documents import parse_json, plain_values
from jaccli.samples.expected import SAVED_J, WHOLE
from jaccli.samples.table import read_table

Parts = tuple[str, str, Tensor, dict[str, str]]
_CSV_HEAD = ["sample", "source", "target", "row"]
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def read_json(handle: BinaryIO, name: str) -> list[Parts]:
    """The document or the lines that ``compute`` writes: source, target, J and provenance of each pair.

    Raises:
        RefusedError: not JSON, or not of that form; names the line.
    """
    records: list[dict[str, Any]] = []
    provenance: dict[str, str] = {}
    for line, document in _documents(handle, name):
        if isinstance(document.get("jacobians"), list):
            records += [record for record in document["jacobians"] if isinstance(record, dict)]
            provenance |= plain_values(document.get("provenance"))
        elif "jacobian" in document:
            records.append(document)
        else:
            raise RefusedError(f"{name}, line {line}: no field 'jacobian'", "expected what compute writes")
    pairs: dict[tuple[str, str], list[Tensor]] = {}
    numbers: dict[tuple[str, str], list[str]] = {}
    methods: dict[tuple[str, str], list[str]] = {}
    for record in records:
        key = str(record.get("source", "?")), str(record.get("target", "?"))
        pairs.setdefault(key, []).append(_matrix(record, name))
        numbers.setdefault(key, []).append(str(record.get("sample", "")))
        methods.setdefault(key, []).append(str(record.get("method", "")))
    return [
        (*key, _joined(parts, name), _origins(numbers[key], methods[key]) | provenance) for key, parts in pairs.items()
    ]


def _origins(samples: Iterable[str], methods: Iterable[str]) -> dict[str, str]:
    """The samples' numbers as provenance, where every record tells one, and the methods."""
    numbers, names = list(samples), [name for name in dict.fromkeys(methods) if name]
    provenance = {"samples": ",".join(numbers)} if all(number.isdecimal() for number in numbers) else {}
    return provenance | ({"method": ", ".join(names)} if names else {})


def read_csv(handle: BinaryIO, name: str) -> list[Parts]:
    """The rows that ``compute`` writes, or a plain table of numbers as one sample.

    Raises:
        RefusedError: neither.
    """
    head = handle.readline(4096).decode("utf-8-sig", "replace")
    handle.seek(0)
    if head.strip().split(",")[:4] != _CSV_HEAD:
        return [("?", "?", read_table(handle, name), {})]
    pairs: dict[tuple[str, str], dict[str, list[list[float]]]] = {}
    methods: dict[tuple[str, str], list[str]] = {}
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    rows = csv.reader(text)
    try:
        named = next(rows)[-1] == "method"
        for sample, source, target, row, *values in rows:
            methods.setdefault((source, target), []).append(values.pop() if named else "")
            matrix = pairs.setdefault((source, target), {}).setdefault(sample, [])
            if int(row) != len(matrix):
                raise ValueError("rows are missing")
            matrix.append([float(value) for value in values if value])
    except (ValueError, IndexError, csv.Error, UnicodeError):
        raise RefusedError(f"{name}, line {rows.line_num}: not a row of a saved Jacobian", SAVED_J) from None
    finally:
        text.detach()
    if not pairs:
        raise RefusedError(f"{name} holds no rows", SAVED_J)
    return [
        (
            *key,
            _joined([_array(matrix, name)[None] for matrix in samples.values()], name),
            _origins(samples, methods[key]),
        )
        for key, samples in pairs.items()
    ]


def _documents(handle: BinaryIO, name: str) -> Iterable[tuple[int, dict[str, Any]]]:
    """One document, or one a line."""
    text = handle.read()
    try:
        whole = parse_json(text, name)
    except ValueError:
        whole = None
    if isinstance(whole, dict):
        return [(1, whole)]
    documents = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            document = parse_json(line, f"{name}, line {number}")
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise RefusedError(f"{name}, line {number}: not a JSON object, or cut short", WHOLE)
        documents.append((number, document))
    return documents


def _matrix(record: dict[str, Any], name: str) -> Tensor:
    """One record's J as ``(k, n_out, n_in)``."""
    array = _array(record.get("jacobian"), name)
    shape = record.get("shape")
    if isinstance(shape, list) and shape != list(array.shape):
        raise RefusedError(
            f"{name}: a Jacobian of shape {tuple(array.shape)} is said to have {str(tuple(shape[:9]))[:80]}",
            "expected the two to agree",
        )
    if array.dim() not in (2, 3):
        raise RefusedError(f"{name}: 'jacobian' has {array.dim()} dimensions", "expected 2, or 3 with the samples")
    array = array if array.dim() == 3 else array[None]
    return array.to(_DTYPES.get(str(record.get("dtype")), torch.float64))


def _array(nested: Any, name: str) -> Tensor:
    try:
        # Text is for "nan" and "inf"; null would become nan silently.
        array = np.array(nested, dtype=np.float64)
        if np.isnan(array).any() and "null" in json.dumps(nested):
            raise ValueError("null")
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise RefusedError(f"{name}: 'jacobian' is not a matrix of numbers", SAVED_J) from None
    return torch.from_numpy(array)


def _joined(parts: list[Tensor], name: str) -> Tensor:
    if len({part.shape[1:] for part in parts}) > 1:
        raise RefusedError(f"{name}: the samples of a pair have several shapes", "expected one shape for a pair")
    return torch.cat(parts)
