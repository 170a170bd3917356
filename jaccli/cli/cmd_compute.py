"""``jaccli compute``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from jaccli.cli.endings import limits
from jaccli.cli.request import InputRequest, ModelRequest, OutputRequest, PairRequest, RunRequest
from jaccli.errors import note
from jaccli.sinks.choose import is_stream

if TYPE_CHECKING:
    from jaccli.planning.decide import Decision
    from jaccli.planning.linearize import Linearization
    from jaccli.sinks.matrix import MatrixSink, PairMeta


def run(
    model: Callable[[], ModelRequest],
    given: Callable[[], InputRequest],
    names: PairRequest,
    how: RunRequest,
    out: OutputRequest,
) -> None:
    """Write J of every pair and sample, block by block."""
    asked, samples = model(), given()
    from jaccli.cli import work

    with limits(how):
        loaded = work.load(asked, samples, names)
        pairs = loaded.pairs
        batch = loaded.inputs.batch
        used: dict[str, str] = {}
        with _sink(out) as sink:

            def planned(_: Sequence[Decision], ready: Sequence[Linearization]) -> None:
                sink.open([_meta(p, batch) for p in ready], samples=loaded.numbers)

            for piece in work.pieces(loaded, pairs, how, on_plan=planned):
                key = f"{piece.pair[0]!s}->{piece.pair[1]!s}"
                sink.write(key, piece.start, piece.outcome.matrix, piece.outcome.method)
                used[key] = piece.outcome.method
            sink.close(_provenance(asked, used))
    if not is_stream(out.path):
        sizes = Counter(_size(sink, pair) for pair in sink.pairs.values())
        told = (size if count == 1 else f"{size} of {count} pairs" for size, count in sizes.items())
        note(f"wrote {out.path}: {', '.join(told)}")


def _sink(out: OutputRequest) -> MatrixSink:
    from jaccli.sinks.open_sink import matrix_sink
    from jaccli.sinks.sparse import sparse_sink
    from jaccli.sinks.terminal import style_for

    if out.sparse:
        return sparse_sink(out.format, out.path, force=out.force)
    return matrix_sink(out.format, out.path, force=out.force, style=style_for(out.path, out.no_color))


def _size(sink: MatrixSink, pair: PairMeta) -> str:
    """``8 x 10 x 784``, and how much of it a sparse file keeps."""
    from jaccli.sinks.sparse import SparseSink

    size = " x ".join(map(str, pair.shape))
    if not isinstance(sink, SparseSink):
        return size
    kept = sink.kept[pair.key]
    return f"{size} ({kept} entries a sample, {kept / (pair.shape[1] * pair.shape[2]):.2%})"


def _meta(linearization: Linearization, batch: int) -> PairMeta:
    from jaccli.sinks.matrix import PairMeta

    f = linearization.linear.f
    dtype = str(linearization.linear.value.dtype).removeprefix("torch.")
    return PairMeta(str(f.source.address), str(f.target.address), (batch, f.n_out, f.n_in), dtype)


def _provenance(asked: ModelRequest, methods: Mapping[str, str]) -> dict[str, str]:
    """How this J came about."""
    import platform

    import torch

    from jaccli import __version__
    from jaccli.cli.messages import command_line
    from jaccli.models.load import model_hash

    return {
        "model": asked.path,
        "model_sha256": model_hash(asked.path),
        "pairs": ", ".join(methods),
        "method": ", ".join(dict.fromkeys(methods.values())),
        "jaccli": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": command_line(),
    }
