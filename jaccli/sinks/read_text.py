"""Jacobians saved as text, parsed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.names import UNKNOWN
from jaccli.safety.documents import parse_json, plain_values
from jaccli.samples.expected import SAVE_AGAIN, SAVED_J, WHOLE
from jaccli.samples.table import read_table
from jaccli.text.quantities import dtype_name

Parts = tuple[str, str, Tensor, dict[str, str]]
_CSV_HEAD = ["sample", "source", "target", "row"]
_DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


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
            raise RefusedError(f"{name}, line {line}: no field 'jacobian'", "expected what compute writes", SAVE_AGAIN)
    by_pair: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        key = str(record.get("source", UNKNOWN)), str(record.get("target", UNKNOWN))
        by_pair.setdefault(key, []).append(record)
    pairs = []
    for key, same in by_pair.items():
        numbers, methods = ([str(record.get(field, "")) for record in same] for field in ("sample", "method"))
        matrix = _joined([_matrix(record, name) for record in same], name)
        pairs.append((*key, matrix, _origins(numbers, methods) | provenance))
    return pairs


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
        return [(UNKNOWN, UNKNOWN, read_table(handle, name), {})]
    pairs: dict[tuple[str, str], _CsvPair] = {}
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", newline="")
    rows = csv.reader(text)
    try:
        has_method = next(rows)[-1] == "method"
        for sample, source, target, number, *values in rows:
            pair = pairs.setdefault((source, target), _CsvPair())
            pair.methods.append(values.pop() if has_method else "")
            matrix = pair.samples.setdefault(sample, [])
            if int(number) != len(matrix):
                raise ValueError("rows are missing")
            matrix.append([float(value) for value in values if value])  # blanks follow the values of a narrow pair
    except (ValueError, IndexError, csv.Error, UnicodeError):
        raise RefusedError(
            f"{name}, line {rows.line_num}: not a row of a saved Jacobian", SAVED_J, SAVE_AGAIN
        ) from None
    finally:
        text.detach()  # the handle is the caller's, who closes it
    if not pairs:
        raise RefusedError(f"{name} holds no rows", SAVED_J, SAVE_AGAIN)
    return [(*key, *pair.joined(name)) for key, pair in pairs.items()]


@dataclass(frozen=True)
class _CsvPair:
    """The rows of one pair: of each sample by its number as written; and the method that each row names."""

    samples: dict[str, list[list[float]]] = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)

    def joined(self, name: str) -> tuple[Tensor, dict[str, str]]:
        """J ``(batch, n_out, n_in)`` and provenance."""
        matrices = [_array(matrix, name)[None] for matrix in self.samples.values()]
        return _joined(matrices, name), _origins(self.samples, self.methods)


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
            raise RefusedError(f"{name}, line {number}: not a JSON object, or cut short", *WHOLE)
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
            SAVE_AGAIN,
        )
    if array.dim() not in (2, 3):
        raise RefusedError(
            f"{name}: 'jacobian' has {array.dim()} dimensions", "expected 2, or 3 with the samples", SAVE_AGAIN
        )
    array = array if array.dim() == 3 else array[None]
    return array.to(_DTYPES.get(str(record.get("dtype")), torch.float64))


def _array(nested: Any, name: str) -> Tensor:
    """Nested lists of numbers as a tensor of their shape."""
    try:
        # Text is for "nan" and "inf"; null would become nan silently.
        array = np.array(nested, dtype=np.float64)
        if np.isnan(array).any() and "null" in json.dumps(nested):
            raise ValueError("null")
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise RefusedError(f"{name}: 'jacobian' is not a matrix of numbers", SAVED_J, SAVE_AGAIN) from None
    return torch.from_numpy(array)


def _joined(parts: list[Tensor], name: str) -> Tensor:
    """Parts ``(k, n_out, n_in)`` one after the other, ``(batch, n_out, n_in)``."""
    if len({part.shape[1:] for part in parts}) > 1:
        raise RefusedError(
            f"{name}: the samples of a pair have several shapes", "expected one shape for a pair", SAVE_AGAIN
        )
    return torch.cat(parts)
