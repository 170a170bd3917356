"""From what the user typed to addresses that the network has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jaccli.errors import UsageError
from jaccli.layers.address import INPUT, OUTPUT, Address, matches, nearest, parse_address
from jaccli.models.network import Network
from jaccli.wording import worded


def resolve(network: Network, name: str) -> Address:
    """The address of one layer.

    Raises:
        UsageError: no such layer, and the answer names the nearest; or a glob.
    """
    if not isinstance(name, str):
        given = f"a layer is given as an object of type {type(name).__name__}"
        raise UsageError(given, "expected its name, as 'fc1'", worded("{layer_names}"))
    layers = network.layers()
    address = parse_address(name, layers)
    if address.is_glob and address.path not in layers:
        raise UsageError(
            f"layer {name!r} is a glob, and one layer is wanted here",
            "expected a target without * ? { }",
            worded("{several_layers}"),
        )
    _check_known(address, layers)
    return address


def _check_known(address: Address, layers: Iterable[str]) -> None:
    known = [INPUT, OUTPUT, *layers]
    if address.path in known:
        return
    near = nearest(address.path, known) or known[:6]
    raise UsageError(
        f"layer {str(address)!r} is not in the model",
        f"nearest: {', '.join(near)}",
        worded("{layer_names}"),
    )


def expand(network: Network, names: Sequence[str]) -> list[Address]:
    """Addresses for names and globs, in order and each once.

    Raises:
        UsageError: an unknown name, or a glob that matches nothing.
    """
    layers = network.layers()
    found: dict[Address, None] = {}
    for name in names:
        address = parse_address(name, layers)
        if address.path in layers or not address.is_glob:
            _check_known(address, layers)
            found[address] = None
            continue
        paths = matches(address.path, layers)
        if not paths:
            raise UsageError(
                f"layer {name!r} matches none of the model's {len(layers)} layers",
                "expected a glob: * within a part, ** across dots, {a,b} choices",
                worded("{layer_names}"),
            )
        for path in paths:
            found.setdefault(address.at(path))
    return list(found)
