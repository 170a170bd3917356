"""``jaccli show``: a saved J: where it is from, its norms, and a picture of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from jaccli.cli.endings import deadline
from jaccli.cli.figures import saved_name
from jaccli.cli.output_request import OutputRequest
from jaccli.cli.request import SavedRequest
from jaccli.cli.results import Record, document, write_result
from jaccli.cli.run_request import TimedRequest
from jaccli.names import UNKNOWN
from jaccli.text.quantities import dtype_name

if TYPE_CHECKING:
    from jaccli.sinks.terminal import Style

_ORDER = ("model", "model_sha256", "method", "command", "jaccli", "torch", "python")
_IN_THE_HEAD = ("source", "target", "pairs", "samples")


def run(saved: SavedRequest, how: TimedRequest, out: OutputRequest) -> None:
    """Describe and draw a saved Jacobian."""
    saved.check()
    from jaccli.sinks.read import read_jacobian

    with deadline(how.timeout):
        entries = []
        for jacobian in read_jacobian(saved.path):
            batch = jacobian.array.shape[0]
            entries.append((jacobian, saved.samples.indices(batch) if saved.samples else list(range(batch))))
        if out.format == "table":
            _draw(entries, saved, out)
            return
        described = [(jacobian, _rows(jacobian, numbers)) for jacobian, numbers in entries]
        content = document("show", {"jacobians": [_described(jacobian, rows) for jacobian, rows in described]})
        write_result(out, content, [row for _, rows in described for row in rows])


def _draw(entries: list[tuple[Any, list[int]]], saved: SavedRequest, out: OutputRequest) -> None:
    """Write the pictures. All are drawn before any is written: a file may turn out bad half-way."""
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.terminal import style_for

    style, every = style_for(out.path, out.no_color), saved.samples is not None
    text = "".join(_drawn(saved.path, jacobian, numbers, style, every=every) for jacobian, numbers in entries)
    with open_output(out.path, out.force) as handle:
        handle.write(style.encode(text))


def _described(jacobian: Any, rows: list[Record]) -> Record:
    return {
        "source": {"layer": jacobian.source},
        "target": {"layer": jacobian.target},
        "shape": list(jacobian.array.shape),
        "dtype": dtype_name(jacobian.array.dtype),
        "provenance": {k: jacobian.provenance[k] for k in _ordered(jacobian.provenance)},
        "samples": [{k: v for k, v in row.items() if k not in ("source", "target")} for row in rows],
    }


def _ordered(names: Iterable[str]) -> list[str]:
    """Always the same order: safetensors keeps none."""
    return sorted(names, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))


def _rows(jacobian: Any, numbers: list[int]) -> list[Record]:
    from jaccli.linear_maps.norms import norm

    rows = []
    for number in numbers:
        one = jacobian.array[number].double()
        finite = one[one.isfinite()]
        rows.append(
            {
                "source": jacobian.source,
                "target": jacobian.target,
                "sample": jacobian.numbers[number],
                "frobenius": float(norm(one)),
                "min": float(finite.min()) if finite.numel() else float("nan"),
                "max": float(finite.max()) if finite.numel() else float("nan"),
                "zeros": float((one == 0).double().mean()),
                "non_finite": int((~one.isfinite()).sum()),
            }
        )
    return rows


def _line(name: str, width: int, value: str, style: Style) -> str:
    """``  name  value``, in several lines where the terminal is narrower."""
    from jaccli.sinks.wrap import wrapped
    from jaccli.text.escape import inert

    first, *more = wrapped(inert(value), max(style.width - width - 4, 16)) if style.fixed else [inert(value)]
    return "\n".join([f"  {inert(name):<{width}}  {first}", *(" " * (width + 4) + line for line in more)]) + "\n"


def _drawn(path: str, jacobian: Any, numbers: list[int], style: Style, *, every: bool) -> str:
    """The description, and pictures: of the first sample, or of those that were picked."""
    from jaccli.sinks.render import render_matrix
    from jaccli.sinks.terminal import heading

    batch, n_out, n_in = jacobian.array.shape
    dtype = dtype_name(jacobian.array.dtype)
    samples = f"{batch} sample" + "s" * (batch != 1)
    is_named = (jacobian.source, jacobian.target) != (UNKNOWN, UNKNOWN)
    name = f"{jacobian.source} -> {jacobian.target}" if is_named else saved_name(path)
    parts = [heading(f"{name}: {samples}, each J {n_out} x {n_in}, {dtype}", style)]
    about = {k: v for k, v in jacobian.provenance.items() if v and k not in _IN_THE_HEAD}
    order = _ordered(about)
    width = max(map(len, order), default=0)
    parts += [_line(k, width, about[k], style) for k in order]
    for number in numbers if every else numbers[:1]:
        row = _rows(jacobian, [number])[0]
        span = f"from {row['min']:.4g} to {row['max']:.4g}, {row['zeros']:.0%} zeros"
        parts.append(heading(f"sample {row['sample']}: frobenius {row['frobenius']:.6g}, {span}", style))
        parts.append(render_matrix(jacobian.array[number], source=jacobian.source, target=jacobian.target, style=style))
    if not every and len(numbers) > 1:
        remaining = f"{len(numbers) - 1} more sample" + "s" * (len(numbers) > 2)
        parts.append(f"{remaining}: --samples 0:{len(numbers)} draws all\n")
    return "".join(parts)
