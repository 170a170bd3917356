"""A plain chain of linear layers, rebuilt from the names and shapes in its state dict.

The layers keep their names. An activation is named by the number that is free, as in an ``nn.Sequential`` (``1``
between ``0`` and ``2``), or after the layer before it (``fc1_act`` after ``fc1``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from jaccli.errors import UsageError, note
from jaccli.models.weights.load_state_dict import load_into
from jaccli.models.weights.state_dict import without_infixes
from jaccli.text.escape import listed, nearest, quote
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from jaxtyping import Shaped

ACTIVATIONS: dict[str, str] = {
    "identity": "Identity",
    "linear": "Identity",
    "none": "Identity",
    "tanh": "Tanh",
    "relu": "ReLU",
    "relu6": "ReLU6",
    "gelu": "GELU",
    "silu": "SiLU",
    "swish": "SiLU",
    "sigmoid": "Sigmoid",
    "elu": "ELU",
    "selu": "SELU",
    "celu": "CELU",
    "leaky_relu": "LeakyReLU",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "mish": "Mish",
    "hardtanh": "Hardtanh",
    "hardswish": "Hardswish",
    "hardsigmoid": "Hardsigmoid",
    "logsigmoid": "LogSigmoid",
    "tanhshrink": "Tanhshrink",
}
_NOT_A_CHAIN = worded("{activation} rebuilds a chain of linear layers only; give {arch} for this network")
# The most layers whose order is searched for, and the most steps of a search.
_MOST_LAYERS, _MOST_STEPS = 64, 20_000


class LinearChain(nn.Module):
    """``x ↦ Wₖ φ(… φ(W₁ x + b₁) …) + bₖ``: φ between the layers and not after the last.

    Args:
        shapes: path of a layer → (n_out, n_in), in the order of the chain.
        biased: paths of the layers that have a bias.
        activation: a key of ``ACTIVATIONS``.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], biased: set[str], activation: str) -> None:
        super().__init__()
        self._order: list[str] = []
        paths = list(shapes)
        for index, path in enumerate(paths):
            n_out, n_in = shapes[path]
            _place(self, path, nn.Linear(n_in, n_out, bias=path in biased))
            self._order.append(path)
            if index + 1 < len(paths):
                between = _between(path, set(paths))
                _place(self, between, getattr(nn, ACTIVATIONS[activation])())
                self._order.append(between)

    def forward(self, x: Shaped[Tensor, "*batch n_in"]) -> Shaped[Tensor, "*batch n_out"]:
        """The layers and activations in their order, on the last dimension of ``x``."""
        for path in self._order:
            x = self.get_submodule(path)(x)
        return x


def check_activation(name: str) -> str:
    """The name as a key of ``ACTIVATIONS``.

    Raises:
        UsageError: there is no such activation.
    """
    plain = name.strip().lower().replace("-", "_")
    if plain in ACTIVATIONS:
        return plain
    near = nearest(plain, ACTIVATIONS)
    raise UsageError(
        f"there is no activation {quote(name, 40)}",
        f"nearest: {listed(near)}" if near else f"there are {', '.join(ACTIVATIONS)}",
    )


def rebuild_chain(state: Mapping[str, Tensor], activation: str, path: Path | str, *, ordered: bool = True) -> nn.Module:
    """The chain of linear layers whose state dict this is, with ``activation`` between them.

    A weight is ``(n_out, n_in)``, a bias ``(n_out,)``.

    Consecutive layers must fit: the n_out of one is the n_in of the next. The order is that of the file (if
    ``ordered``), that of the numbers in the names, or the only possible one: the first of these in which layers fit.

    Raises:
        UsageError: the tensors are no such chain, or the layers fit in several orders.
    """
    activation = check_activation(activation)
    state = _without_wrapper(without_infixes(state)[0])
    shapes, biased = _layers(state, path)
    order = _order(shapes, path, ordered)
    if order == [""]:
        n_out, n_in = shapes[""]
        return load_into(nn.Linear(n_in, n_out, bias="" in biased), state, path)
    model = LinearChain({name: shapes[name] for name in order}, biased, activation)
    note(
        f"{Path(path).name}: rebuilt as {' → '.join(f'{quote(name, 40)[1:-1]}' for name in model._order[:9])}"
        + (" …" if len(model._order) > 9 else "")
    )
    return load_into(model, state, path)


def is_chain(state: Mapping[str, Tensor], *, ordered: bool = True) -> bool:
    """Whether ``rebuild_chain`` would accept ``state``, whose tensors may have any shape and be on ``meta``."""
    try:
        shapes, _ = _layers(_without_wrapper(without_infixes(state)[0]), "")
        return bool(shapes and _order(shapes, "", ordered))
    except UsageError:
        return False


def _without_wrapper(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries, of any shapes, without the prefix of ``DataParallel``."""
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        return {name[len(prefix) :]: value for name, value in state.items()}
    return state


def _layers(state: Mapping[str, Tensor], path: Path | str) -> tuple[dict[str, tuple[int, int]], set[str]]:
    """Layer path → (n_out, n_in), in the file's order; and the layers that have a bias.

    Raises:
        UsageError: a tensor is neither the weight ``(n_out, n_in)`` nor the bias ``(n_out,)`` of a layer.
    """
    shapes: dict[str, tuple[int, int]] = {}
    biased: set[str] = set()
    for name, value in state.items():
        layer, _, last = name.rpartition(".")
        if last == "weight" and value.dim() == 2:
            shapes[layer] = (value.shape[0], value.shape[1])
        elif last == "bias" and value.dim() == 1:
            biased.add(layer)
        else:
            raise _no_chain(path, f"{quote(name, 60)} has shape {tuple(value.shape)}, not that of a weight or a bias")
    for layer in biased:
        if layer not in shapes or state[f"{layer}.bias".lstrip(".")].shape[0] != shapes[layer][0]:
            raise _no_chain(path, f"the bias of {quote(layer, 60)} does not belong to a weight of that length")
    return shapes, biased


def _no_chain(path: Path | str, reason: str) -> UsageError:
    return UsageError(f"{quote(path)} is no plain chain of linear layers", reason, _NOT_A_CHAIN)


def _order(shapes: Mapping[str, tuple[int, int]], path: Path | str, ordered: bool) -> list[str]:
    stored = list(shapes)
    numbered = sorted(stored, key=_natural)
    if ordered and _chains(stored, shapes):
        return stored
    # Alphabetical order says nothing about the order of layers; numbers in otherwise equal names do.
    if len({re.sub(r"\d+", "#", name) for name in stored}) == 1 and _chains(numbered, shapes):
        return numbered
    orders = _all_chains(shapes)
    if len(orders) == 1:
        return orders[0]
    layers = f"{quote(path)}: the layers {listed(numbered)} "
    if not orders:
        raise UsageError(
            layers + "do not fit one behind the other",
            f"their shapes (n_out, n_in) are {', '.join(str(shapes[name]) for name in numbered[:6])}",
            _NOT_A_CHAIN,
        )
    raise UsageError(
        layers + "fit one behind the other in several orders",
        "expected names that differ in a number, or shapes that leave one order",
        worded("give {arch} for this network"),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _chains(order: list[str], shapes: Mapping[str, tuple[int, int]]) -> bool:
    return all(shapes[first][0] == shapes[second][1] for first, second in pairwise(order))


def _all_chains(shapes: Mapping[str, tuple[int, int]]) -> list[list[str]]:
    """At most two orders of all layers in which the shapes chain."""
    if len(shapes) > _MOST_LAYERS:
        return []
    orders: list[list[str]] = []
    steps = 0

    def extend(order: list[str]) -> None:
        nonlocal steps
        steps += 1
        if steps > _MOST_STEPS or len(orders) > 1:
            return
        if len(order) == len(shapes):
            orders.append(order)
            return
        for name in shapes:
            # Backtracking: of the layers left, those that take what the last one gives.
            if name not in order and (not order or shapes[order[-1]][0] == shapes[name][1]):
                extend([*order, name])

    extend([])
    # If the search was not finished, there may be another order.
    return orders if steps <= _MOST_STEPS else orders * 2


def _between(path: str, layers: set[str]) -> str:
    """The path of the activation after a layer."""
    parent, dot, last = path.rpartition(".")
    if last.isdecimal():
        following = f"{parent}{dot}{int(last) + 1}"
        if following not in layers:
            return following
    return f"{path}_act"


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, last = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)
