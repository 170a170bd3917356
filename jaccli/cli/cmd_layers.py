"""``jaccli layers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaccli.cli.endings import deadline
from jaccli.cli.request import InputRequest, ModelRequest, OutputRequest


def run(
    model: Callable[[], ModelRequest],
    given: Callable[[], InputRequest] | None,
    out: OutputRequest,
    timeout: float | None,
) -> None:
    """List the layers; with an input, what a forward pass shows of them."""
    asked = model()
    samples = given() if given is not None else None
    from jaccli.cli import work
    from jaccli.sinks.atomic import open_output
    from jaccli.sinks.numbers import write_numbers
    from jaccli.sinks.table import TableView
    from jaccli.sinks.terminal import style_for

    with deadline(timeout):
        if samples is None:
            network = work.load_network(asked)
            rows: list[dict[str, Any]] = [{"layer": name, "type": kind} for _, name, kind in _names(network)]
        else:
            loaded = work.load(asked, samples)
            network = loaded.network
            rows = _seen(network, loaded.inputs)
        document = {"schema_version": 1, "command": "layers", "model": asked.path, "layers": rows}
        shown = [name for name in ("layer", "type", "calls", "shape", "elements") if any(name in row for row in rows)]
        with open_output(out.path, out.force) as handle:
            style = style_for(out.path, out.no_color)
            view = TableView([{**row, **_readable(row)} for row in rows], shown)
            write_numbers(out.format, handle, document=document, records=rows, view=view, style=style)


def _names(network: Any) -> list[tuple[str | None, str, str]]:
    """Path, name as ``--layer`` takes it, and type; the model's own have no path."""
    from jaccli.activations.address import INPUT, OUTPUT, LayerNames

    layers = network.layers()
    names = LayerNames(layers)
    modules = [(path, str(names.at(path)), kind) for path, kind in layers.items()]
    return [(None, INPUT, "(model input)"), *modules, (None, OUTPUT, "(model output)")]


def _seen(network: Any, inputs: Any) -> list[dict[str, Any]]:
    from jaccli.activations.address import INPUT, OUTPUT
    from jaccli.activations.calls import LayerCalls, shapes, watch
    from jaccli.planning.linearize import readable

    with readable(inputs):
        found, output = watch(network, inputs)
    own = {INPUT: LayerCalls(1, shapes(inputs.args[0])), OUTPUT: LayerCalls(1, shapes(output))}
    rows = []
    for path, name, kind in _names(network):
        seen = own[name] if path is None else found.get(path, LayerCalls())
        row: dict[str, Any] = {"layer": name, "type": kind, "calls": seen.calls, "shape": None}
        floating = {
            name: shape for name, (shape, dtype) in seen.outputs.items() if dtype.startswith(("float", "bfloat"))
        }
        if len(seen.outputs) == 1 or len(floating) == 1:
            shape, dtype = seen.outputs[next(iter(floating or seen.outputs))]
            row |= {"shape": _sample(shape, inputs.batch), "dtype": dtype}
            if shape[:1] != (inputs.batch,):
                row["samples_dim"] = _dim(shape, inputs.batch)
        elif seen.outputs:
            row["elements"] = {name: _sample(shape, inputs.batch) for name, (shape, _) in seen.outputs.items()}
        rows.append(row)
    return rows


def _dim(shape: tuple[int, ...], batch: int) -> int | None:
    return shape.index(batch) if batch in shape else None


def _sample(shape: tuple[int, ...], batch: int) -> list[int]:
    """One sample's shape: without the dimension that holds the samples."""
    dim = _dim(shape, batch)
    return [size for d, size in enumerate(shape) if d != dim]


def _readable(row: dict[str, Any]) -> dict[str, str]:
    def text(shape: list[int] | None) -> str:
        return "x".join(map(str, shape)) or "scalar" if shape is not None else "-"

    shown: dict[str, str] = {}
    if "calls" in row:
        dim = row.get("samples_dim")
        shown["shape"] = text(row["shape"]) + (f" (samples in @{dim})" if dim else "")
    if "elements" in row:
        shown["elements"] = ", ".join(f"out.{name} ({text(shape)})" for name, shape in row["elements"].items())
    return shown
