"""The options that commands share, as types for Typer, and what they mean together."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated

import typer

from jaccli.errors import UsageError
from jaccli.names import METHOD_NAMES
from jaccli.sinks.choose import MATRIX, NUMBERS


def _completed(names: Sequence[str], incomplete: str) -> list[str]:
    """What a shell offers for a value."""
    return [name for name in names if name.startswith(incomplete)]


_MODEL = (
    "A model file (TorchScript, state dict, .pt2; told by its content), or package.module:callable. "
    "FILE[KEY] takes one of several state dicts in a file."
)
Model = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)]
OptionalModel = Annotated[str | None, typer.Argument(metavar="MODEL", help=_MODEL, show_default=False)]
Input = Annotated[
    str | None,
    typer.Option(
        "-i",
        "--input",
        metavar="INPUT",
        help="Samples: npy, npz[key], safetensors[key], pt, csv, a folder of images, -, or random:3x32x32,n=8.",
        show_default=False,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="LAYER",
        help="Source layer, glob, or all calls (cell#*); may be repeated.",
        show_default=False,
    ),
]
From = Annotated[
    list[str] | None,
    typer.Option("--from", metavar="LAYER", help="Source layer; 'input' if not given.", show_default=False),
]
To = Annotated[
    str | None,
    typer.Option("--to", metavar="LAYER", help="Target layer; 'output' if not given.", show_default=False),
]
PerSample = Annotated[
    bool, typer.Option("--per-sample", help="In a table of several layers a line a sample, not a line a layer.")
]
Output = Annotated[
    str | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE|-",
        help="Where to write; the extension names the format. Standard output by default.",
        show_default=False,
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="table (on a terminal), jsonl (in a pipe), json, csv or markdown.",
        autocompletion=lambda incomplete: _completed(NUMBERS, incomplete),
        show_default=False,
    ),
]
MatrixFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="table (on a terminal), npy (in a pipe), npz, pt, safetensors, zarr, json, jsonl or csv.",
        autocompletion=lambda incomplete: _completed(MATRIX, incomplete),
        show_default=False,
    ),
]
Sparse = Annotated[bool, typer.Option("--sparse", help="Save only what is not zero, and where: as npz or safetensors.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Samples = Annotated[
    str | None,
    typer.Option("--samples", metavar="PICK", help="Which samples: 0:8, or 3,5, counted from 0.", show_default=False),
]
ModelArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--arg",
        metavar="NAME=VALUE",
        help="A further argument of the model, by name or position (1=16000, m=@m.npy).",
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch", metavar="SPEC", help="The network of a state dict: package.module:callable or file.py:name."
    ),
]
ArchArgs = Annotated[
    list[str] | None,
    typer.Option("--arch-arg", metavar="NAME=VALUE", help="An argument for --arch; may be repeated."),
]
Activation = Annotated[
    str | None,
    typer.Option("--activation", metavar="NAME", help="Rebuild a plain chain of linear layers with this activation."),
]
Trust = Annotated[bool, typer.Option("--trust", help="The model file may run code, and read and write other files.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help=f"{', '.join(METHOD_NAMES[:-1])} or {METHOD_NAMES[-1]}.",
        autocompletion=lambda incomplete: _completed(METHOD_NAMES, incomplete),
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="NAME", help="cpu (if not given), cuda[:n], mps, xpu or auto.", show_default=False
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", metavar="NAME", help="float32, float64, bfloat16 or float16; the model's own if not given."
    ),
]
Chunk = Annotated[str, typer.Option("--chunk", metavar="auto|N", help="Rows or columns that go through at once.")]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="What J and the passes may take, as 4GiB or 500MB; a share of what is free if not given.",
        show_default=False,
    ),
]
Threads = Annotated[
    str | None, typer.Option("--threads", metavar="N", help="CPU threads; all cores if not given.", show_default=False)
]
Seed = Annotated[
    str | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="For fresh weights of a MODEL that is code, what a model draws, and random vectors; 0 if not given.",
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="TIME", help="Give up after this, as 60s or 5m; exit code 5.", show_default=False
    ),
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Print the plan on standard error: method, passes, memory, and why.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Run what the structured engine does through torch.compile.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No notes, no progress; warnings stay.")]
NoColor = Annotated[bool, typer.Option("--no-color", help="No colours.")]
Jacobian = Annotated[
    str | None,
    typer.Option(
        "--jacobian", metavar="FILE|-", help="A saved Jacobian, in place of MODEL and -i.", show_default=False
    ),
]

Estimate = Annotated[
    bool,
    typer.Option("--estimate", help="From products with random vectors, with standard errors; J is not built."),
]
Probes = Annotated[
    str | None,
    typer.Option("--probes", metavar="N", help="Random vectors of an estimate; implies it.", show_default=False),
]
Tolerance = Annotated[
    str | None,
    typer.Option(
        "--tolerance",
        metavar="SHARE",
        help="Estimate until 95 % intervals reach no further, as 1%; implies --estimate.",
        show_default=False,
    ),
]


def parse_seconds(text: str | None, flag: str = "--timeout") -> float | None:
    """``60s``, ``5m``, ``500ms``, ``1.5h``, ``60`` → seconds.

    Raises:
        UsageError: not a time.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*(ms|s|m|min|h)?\s*", text.lower())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"{flag} {text!r} is not a time", "expected a number with a unit, as 60s, 5m or 1h")
    return float(match[1]) * {"ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600}[match[2] or "s"]


def parse_count(text: str | None, flag: str, least: int = 1) -> int | None:
    """A whole number.

    Raises:
        UsageError: not one, or less than ``least``.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
        raise UsageError(f"{flag} {text!r} is not understood", f"expected a whole number from {least}")
    return int(text)


def parse_share(text: str | None, flag: str) -> float | None:
    """``1%`` or ``0.01`` → 0.01.

    Raises:
        UsageError: not a share above 0.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e-?\d+)?|\.\d+)\s*(%?)\s*", text.lower())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value < 1:
        raise UsageError(f"{flag} {text!r} is not understood", "expected a share, as 1% or 0.01")
    return value


def parse_number(text: str, flag: str, zero: bool = False) -> float:
    """A finite number above 0; with ``zero`` 0 too.

    Raises:
        UsageError: not one.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        least = "from 0" if zero else "above 0"
        raise UsageError(f"{flag} {text!r} is not understood", f"expected a number {least}, as 0.5 or 1e-3")
    return value


def parse_chunk(text: str) -> int | None:
    """``auto`` or a positive number.

    Raises:
        UsageError: neither.
    """
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < 1:
        raise UsageError(f"--chunk {text!r} is not understood", "expected auto or a whole number from 1")
    return int(text)


DTYPES = ("float32", "float64", "bfloat16", "float16")


def check_dtype(name: str | None) -> str | None:
    """A dtype's name as it is.

    Raises:
        UsageError: not one that J can be taken in.
    """
    if name is not None and name not in DTYPES:
        raise UsageError(f"--dtype {name!r} is not known", f"expected one of {', '.join(DTYPES)}")
    return name


def check_device(name: str | None) -> str:
    """A device's name as it is; whether it is there is found out later.

    Raises:
        UsageError: not the name of a device.
    """
    if name is None:
        return "cpu"
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", name):
        raise UsageError(f"--device {name!r} is not known", "expected cpu, cuda, cuda:N, mps, xpu or auto")
    return name
