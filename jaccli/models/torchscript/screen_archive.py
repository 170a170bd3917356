"""Screen a TorchScript archive before torch loads it: entries, pickles and source. Nothing is built or run."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import torch

from jaccli.models.torchscript.archive_pickles import Tensors, damaged, inspect_pickle, refuse
from jaccli.models.torchscript.source_literals import without_literals
from jaccli.models.torchscript.source_nesting import size_of, too_nested
from jaccli.networks.quantized import packed_file
from jaccli.safety.archives import open_archive
from jaccli.safety.budget import Budget
from jaccli.text.escape import quote

_MAX_ENTRIES = 100_000  # a network of 10⁴ layers has some 5·10⁴
_MAX_PACKED = 64 << 20  # bytes of one compressed entry, unpacked; torch compresses only source code
_MAX_PACKED_TOTAL = 256 << 20

# What torch compiles in some seconds.
_MAX_TOKENS = 300_000
_TOKENS_OF_A_TENSOR = 100

_NAMESPACES = {"aten", "prim", "quantized", "_quantized"}
_FORBIDDEN = (
    (re.compile(r"__[gs]etstate__"), "runs code of its own when it is loaded or saved (__setstate__)"),
    (re.compile(r"\bfrom_file\b"), "opens other files (from_file)"),
    (re.compile(r"\b(torch|aten)\.save\b"), "writes files (torch.save)"),
    (re.compile(r"\btorch\.classes\b"), "holds native objects (torch.classes)"),
    (re.compile(r"\bgetattr ?\([ (]*(torch|ops)\b"), "looks operators up by a text (getattr)"),
)
_PACKED = re.compile(r"\btorch\.classes\.(quantized|rnn|xnnpack)\.|\bops\.quantized\.\w+_(dynamic|prepack)\b")


def screen_archive(path: Path) -> None:
    """Refuse an archive that is damaged or that could do more than compute. Loads nothing.

    Raises:
        RefusedError: names what is wrong with it.
    """
    sizes = _entries(path)
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        # Read by torch's reader, since that is what loads the archive; the sizes are those in Python's.
        names = set(reader.get_all_records())
        if names != set(sizes):  # two readers of one file that see different things
            raise damaged(path, "its table of contents is ambiguous")
        if "data.pkl" not in names or not any(name.startswith("code/") for name in names):
            raise damaged(path, "it holds no code")
        budget, tokens = Budget(sum(sizes.values())), 0
        for name in sorted(names):
            if name in {"data.pkl", "constants.pkl"}:
                folder = name.removesuffix(".pkl")
                tensors = Tensors({k[len(folder) + 1 :]: n for k, n in sizes.items() if k.startswith(folder + "/")})
                inspect_pickle(reader.get_record(name), tensors, path, budget)
            elif name.startswith("code/") and not name.endswith(".debug_pkl"):
                tokens += _screen_source(reader.get_record(name), path)
            elif name.endswith(".debug_pkl"):  # read by torch to say where an error is
                inspect_pickle(reader.get_record(name), Tensors({}), path, budget)
    except RuntimeError:
        raise damaged(path, "it is truncated or damaged") from None
    if tokens > _MAX_TOKENS + _TOKENS_OF_A_TENSOR * len(budget.storages):
        raise refuse(path, f"holds {tokens} tokens of code for {len(budget.storages)} tensors")


def _entries(path: Path) -> dict[str, int]:
    """Name → size of everything in the archive, the name of its top folder taken off."""
    try:
        with path.open("rb") as file, open_archive(file, quote(path)) as archive:
            infos = archive.infolist()
    except OSError:
        raise damaged(path, "it cannot be opened") from None
    if not infos:
        raise damaged(path, "it is empty")
    if len(infos) > _MAX_ENTRIES:
        raise refuse(path, f"has {len(infos)} entries, more than any model needs")
    top = infos[0].filename.partition("/")[0] + "/"
    if any(not info.filename.startswith(top) for info in infos):
        raise damaged(path, "it has no single top folder")
    if len({info.filename.casefold() for info in infos}) != len(infos):
        raise damaged(path, "two entries have the same name")
    _check_sizes(path, infos, top)
    return {info.filename[len(top) :]: info.file_size for info in infos}


def _check_sizes(path: Path, infos: list[zipfile.ZipInfo], top: str) -> None:
    length = path.stat().st_size
    # Entries that overlap can unpack to any size without being compressed much.
    if sum(info.compress_size for info in infos) > length:
        raise damaged(path, "its entries are larger than the file")
    packed = 0
    for info in infos:
        if info.flag_bits & 1:
            raise damaged(path, "it is encrypted")
        if info.compress_type == zipfile.ZIP_STORED:
            if info.file_size != info.compress_size:
                raise damaged(path, "the size of an entry is wrong")
            continue
        name = info.filename[len(top) :]
        packed += info.file_size
        if not (name.startswith("code/") or name.endswith(".pkl")):
            raise refuse(path, f"has compressed tensors ({quote(name, 60)}), which torch never writes")
        if info.file_size > _MAX_PACKED or packed > _MAX_PACKED_TOTAL:
            raise refuse(path, "unpacks to an absurd size")


def _screen_source(source: bytes, path: Path) -> int:
    """Refuse source that does more than compute; gives its size in tokens."""
    try:
        text = source.decode()
    except UnicodeDecodeError:
        raise damaged(path, "its code is not text") from None
    if too_nested(text):
        raise refuse(path, "holds code nested absurdly deep")
    code = without_literals(text)
    if code is None:
        raise damaged(path, "a text in its code does not end")
    if _PACKED.search(code):
        raise packed_file(path, "weights packed into int8 (quantized modules)")
    for pattern, what in _FORBIDDEN:
        if pattern.search(code):
            raise refuse(path, what)
    for namespace in re.findall(r"\bops\.(\w+)\.", code):
        if namespace not in _NAMESPACES:
            raise refuse(path, f"uses operators that are not PyTorch's own ({quote(namespace, 60)})")
    return size_of(text)
