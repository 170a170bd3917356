"""``jaccli spectrum --lyapunov``: the exponents of the product of J along a chain of layers.

layers l0, l1, …, target → J of each (l0 -> l1), (l1 -> l2), …, each (batch, n_out, n_in)
                         → exponents of their product, by sample → records
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from jaccli.cli import work
from jaccli.cli.messages import release_messages
from jaccli.cli.output_request import OutputRequest
from jaccli.cli.results import Record, document, write_result
from jaccli.cli.run_request import RunRequest
from jaccli.cli.spectrum_table import chain_view
from jaccli.errors import UnsupportedError, note, warn
from jaccli.linear_maps.norms import norm, power_of_two
from jaccli.names import pair_name
from jaccli.statistics.spectral import lyapunov

if TYPE_CHECKING:
    from torch import Tensor

    from jaccli.planning.linearize import Pair

# Relative: of float32 products along a chain.
_ROUNDING = 1e-3


def write_exponents(loaded: work.Loaded, how: RunRequest, out: OutputRequest) -> None:
    """Write the exponents of the chain of pairs from the first layer named to the target."""
    target = loaded.pairs[0][1]
    stops = [source for source, _ in loaded.pairs if source != target] + [target]
    pairs, whole = list(pairwise(stops)), (stops[0], target)
    matrices, method, trivial = _matrices(loaded, [*pairs, *([whole] if len(pairs) > 1 else [])], how)
    for source, following in pairs:
        if (source, following) not in matrices:
            raise UnsupportedError(
                f"--lyapunov: there is no J of {pair_name(source, following)}",
                "expected layers that follow on each other",
                "name them in the order in which the network runs them",
            )
    if len(pairs) > 1 and pairs[-1] in trivial:
        note(f"{pairs[-1][0]!s} is {pairs[-1][1]!s} itself: no step of the chain")
        pairs, stops = pairs[:-1], stops[:-1]
    chains = [[matrices[pair][k] for pair in pairs] for k in range(len(loaded.numbers))]
    if len(pairs) > 1:
        _check_chain(chains, matrices[whole])
    names = [str(stop) for stop in stops]
    samples: list[Record] = [
        {"sample": n, "lyapunov_exponents": lyapunov(chain).tolist()}
        for n, chain in zip(loaded.numbers, chains, strict=True)
    ]
    body = {"lyapunov": {"layers": names, "method": method, "samples": samples}, "timing": loaded.timing.document()}
    rows = [{**sample, "method": method} for sample in samples]
    release_messages()
    write_result(out, document("spectrum", body), rows, chain_view(samples, names))


def _matrices(
    loaded: work.Loaded, pairs: Sequence[Pair], how: RunRequest
) -> tuple[dict[Pair, list[Tensor]], str, set[Pair]]:
    """J ``(n_out, n_in)`` of every sample by pair; the method; the pairs whose ends are one activation."""
    matrices: dict[Pair, list[Tensor]] = {}
    trivial: set[Pair] = set()
    method = ""
    for piece in work.pieces(loaded, pairs, how):
        matrices.setdefault(piece.pair, []).extend(piece.outcome.matrix)
        method = piece.outcome.method
        if piece.trivial:
            trivial.add(piece.pair)
    return matrices, method, trivial


def _check_chain(chains: Sequence[Sequence[Tensor]], whole: Sequence[Tensor]) -> None:
    """Warn where the product along the chain is not J of the whole: paths go around one of its layers.

    Args:
        chains: for each sample, J of each step, ``(n_out, n_in)``, first step first.
        whole: for each sample, J ``(n_out, n_in)`` from the first layer to the last.
    """
    for chain, j in zip(chains, whole, strict=True):
        v = torch.randn(j.shape[1], generator=torch.Generator().manual_seed(0)).to(j.device, torch.float64)
        v = v / power_of_two(j)  # so that images are near 1
        image, size = v, float(norm(j) * norm(v))
        for matrix in chain:
            image = matrix.double() @ image
            size = max(size, float(norm(image)))
        if float(norm(image - j.double() @ v)) > _ROUNDING * size:
            warn(
                "--lyapunov: the product along these layers is not J of the whole: paths go around one of them "
                "(a skip connection), and the exponents are those of the product alone"
            )
            return
