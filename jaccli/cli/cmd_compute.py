"""``jaccli compute``: J of every pair and sample, written block by block as it is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaccli.cli.opening import loaded
from jaccli.cli.output_request import MatrixRequest
from jaccli.cli.request import InputRequest, ModelRequest, PairRequest
from jaccli.cli.results import provenance
from jaccli.cli.run_request import RunRequest
from jaccli.errors import note
from jaccli.sinks.choose import is_stream
from jaccli.text.quantities import dtype_name

if TYPE_CHECKING:
    from jaccli.cli.work import Loaded
    from jaccli.planning.decide import Decision
    from jaccli.planning.linearize import Linearization
    from jaccli.sinks.matrix import MatrixSink, PairMeta


def run(model: ModelRequest, inputs: InputRequest, pair: PairRequest, how: RunRequest, out: MatrixRequest) -> None:
    """Write J, and say what was written."""
    with loaded(model, inputs, pair, how) as work, _sink(out) as sink:
        methods = _write(work, how, sink)
        about = {"pairs": ", ".join(methods), "method": ", ".join(dict.fromkeys(methods.values()))}
        sink.close(provenance(model, about))
    if not is_stream(out.path):
        sizes = Counter(_size(sink, pair) for pair in sink.pairs.values())
        texts = (size if count == 1 else f"{size} of {count} pairs" for size, count in sizes.items())
        note(f"wrote {out.path}: {', '.join(texts)}")


def _write(loaded: Loaded, how: RunRequest, sink: MatrixSink) -> dict[str, str]:
    """Write the blocks, each ``(samples, n_out, n_in)``; the method of each pair."""
    from jaccli.cli import work

    methods: dict[str, str] = {}

    def open_sink(_: Sequence[Decision], linearizations: Sequence[Linearization]) -> None:
        sink.open([_meta(one, loaded.inputs.batch) for one in linearizations], samples=loaded.numbers)

    for piece in work.pieces(loaded, loaded.pairs, how, on_plan=open_sink):
        key = f"{piece.pair[0]!s}->{piece.pair[1]!s}"
        sink.write(key, piece.start, piece.outcome.matrix, piece.outcome.method)
        methods[key] = piece.outcome.method
    return methods


def _sink(out: MatrixRequest) -> MatrixSink:
    from jaccli.sinks.open_sink import matrix_sink
    from jaccli.sinks.terminal import style_for

    style = style_for(out.path, out.no_color)
    return matrix_sink(out.format, out.path, force=out.force, style=style, sparse=out.sparse)


def _size(sink: MatrixSink, pair: PairMeta) -> str:
    """``8 x 10 x 784``, and how much of it a sparse file keeps."""
    from jaccli.sinks.sparse import SparseSink

    size = " x ".join(map(str, pair.shape))
    if not isinstance(sink, SparseSink):
        return size
    entries = sink.entries[pair.key]
    return f"{size} ({entries} entries a sample, {entries / (pair.shape[1] * pair.shape[2]):.2%})"


def _meta(linearization: Linearization, batch: int) -> PairMeta:
    from jaccli.sinks.matrix import PairMeta

    f = linearization.linear.f
    dtype = dtype_name(linearization.linear.value.dtype)
    return PairMeta(str(f.source.address), str(f.target.address), (batch, f.n_out, f.n_in), dtype)
