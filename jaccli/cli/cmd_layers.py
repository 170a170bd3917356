"""``jaccli layers``: the names of a model's layers; with an input also calls, shapes and dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaccli.cli.endings import deadline
from jaccli.cli.output_request import OutputRequest
from jaccli.cli.request import InputRequest, ModelRequest
from jaccli.cli.results import Record, document, write_result
from jaccli.cli.run_request import TimedRequest

if TYPE_CHECKING:
    from jaccli.activations.calls import LayerCalls

COLUMNS = ("layer", "type", "calls", "shape", "elements")


def run(model: ModelRequest, inputs: InputRequest, how: TimedRequest, out: OutputRequest) -> None:
    """List the layers; with an input, what a forward pass shows of them."""
    model.check()
    if inputs.source is not None:
        inputs.check()
    from jaccli.cli import work
    from jaccli.sinks.table import TableView

    with deadline(how.timeout):
        if inputs.source is None:
            network = work.load_network(model)
            rows: list[Record] = [{"layer": name, "type": kind} for _, name, kind in _names(network)]
        else:
            loaded = work.load(model, inputs)
            rows = _with_calls(loaded.network, loaded.inputs)
        columns = [name for name in COLUMNS if any(name in row for row in rows)]
        view = TableView([{**row, **_readable(row)} for row in rows], columns)
        write_result(out, document("layers", {"model": model.path, "layers": rows}), rows, view)


def _names(network: Any) -> list[tuple[str | None, str, str]]:
    """Path, name as ``--layer`` takes it, and type; the model's own have no path."""
    from jaccli.activations.address import INPUT, OUTPUT, LayerNames

    layers = network.layers()
    names = LayerNames(layers)
    modules = [(path, str(names.at(path)), kind) for path, kind in layers.items()]
    return [(None, INPUT, "(model input)"), *modules, (None, OUTPUT, "(model output)")]


def _with_calls(network: Any, inputs: Any) -> list[Record]:
    from jaccli.activations.address import INPUT, OUTPUT
    from jaccli.activations.calls import LayerCalls, shapes, watch
    from jaccli.planning.linearize import readable

    with readable(inputs):
        calls, output = watch(network, inputs)
    ends = {INPUT: LayerCalls(1, shapes(inputs.args[0])), OUTPUT: LayerCalls(1, shapes(output))}
    rows = []
    for path, name, kind in _names(network):
        layer_calls = ends[name] if path is None else calls.get(path, LayerCalls())
        rows.append({"layer": name, "type": kind, "calls": layer_calls.calls, **_shapes(layer_calls, inputs.batch)})
    return rows


def _shapes(layer_calls: LayerCalls, batch: int) -> Record:
    """The shape that ``--layer`` takes the layer to have; of several outputs to choose from, the shape of each."""
    outputs = layer_calls.outputs
    floating = [name for name, (_, dtype) in outputs.items() if dtype.startswith(("float", "bfloat"))]
    record: Record = {"shape": None}
    # Without an element's name, ``--layer`` means the only output, or the only one that has a derivative.
    if len(outputs) == 1 or len(floating) == 1:
        shape, dtype = outputs[next(iter(floating or outputs))]
        record |= {"shape": _sample(shape, batch), "dtype": dtype}
        if shape[:1] != (batch,):
            record["samples_dim"] = _dim(shape, batch)
    elif outputs:
        record["elements"] = {name: _sample(shape, batch) for name, (shape, _) in outputs.items()}
    return record


def _dim(shape: tuple[int, ...], batch: int) -> int | None:
    return shape.index(batch) if batch in shape else None


def _sample(shape: tuple[int, ...], batch: int) -> list[int]:
    """One sample's shape: without the dimension that holds the samples."""
    dim = _dim(shape, batch)
    return [size for d, size in enumerate(shape) if d != dim]


def _readable(row: Record) -> dict[str, str]:
    def text(shape: list[int] | None) -> str:
        return "x".join(map(str, shape)) or "scalar" if shape is not None else "-"

    shown: dict[str, str] = {}
    if "calls" in row:
        dim = row.get("samples_dim")
        shown["shape"] = text(row["shape"]) + (f" (samples in @{dim})" if dim else "")
    if "elements" in row:
        shown["elements"] = ", ".join(f"out.{name} ({text(shape)})" for name, shape in row["elements"].items())
    return shown
