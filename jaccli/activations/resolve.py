"""Step 1a, names → addresses: what a user wrote, read against the layers that a network has."""

from __future__ import annotations

from collections.abc import Sequence

from jaccli.activations.address import EVERY, INPUT, OUTPUT, Address, LayerNames, nearest, parse_address
from jaccli.errors import UsageError
from jaccli.networks.network import Network
from jaccli.text.wording import worded


def resolve(network: Network, name: str) -> Address:
    """The address of one activation.

    Raises:
        UsageError: no such layer, and the message names the nearest; or the name is a glob, or means all calls.
    """
    if not isinstance(name, str):
        what = f"a layer is given as an object of type {type(name).__name__}"
        raise UsageError(what, "expected its name, as 'fc1'", worded("{layer_names}"))
    names = LayerNames(network.layers())
    address = names.read(name)
    if address is None and names.globbed(name):
        raise UsageError(
            f"layer {name!r} is a glob, and one layer is wanted here",
            "expected a name without * ? { }",
            worded("{several_layers}"),
        )
    if address is None:
        raise _unknown(name, names)
    if address.call == EVERY:
        raise UsageError(
            f"layer {name!r} means all calls of a layer, and one is wanted here",
            f"expected the number of a call, as {str(address.at_call(1))!r}",
            worded("{several_layers}"),
        )
    return address


def _unknown(name: str, names: LayerNames) -> UsageError:
    """The error for a text that is neither a name of the network nor a glob that matches one."""
    near = nearest(name, names.paths)
    try:
        address = parse_address(name)
    except UsageError as error:
        remedy = worded("nearest: {near}; {layer_names}", near=", ".join(near)) if near else worded("{layer_names}")
        return UsageError(error.given, error.expected, remedy)
    if address.is_glob:
        return UsageError(
            f"layer {name!r} matches none of the model's {len(names.paths)} layers",
            "expected a glob: * within a part, ** across dots, {a,b} choices",
            worded("{layer_names}"),
        )
    paths = [INPUT, OUTPUT, *names.paths]
    near = nearest(address.path, paths) or paths[:6]
    return UsageError(
        f"layer {name!r} is not in the model",
        f"nearest: {', '.join(near)}",
        worded("{layer_names}"),
    )


def expand(network: Network, texts: Sequence[str]) -> list[Address]:
    """The addresses that names and globs mean, in order and each once; ``#*`` stays, see ``calls.each_call``.

    Raises:
        UsageError: an unknown name, or a glob that matches nothing.
    """
    names = LayerNames(network.layers())
    result: dict[Address, None] = {}
    for text in texts:
        address = names.read(text)
        addresses = [address] if address is not None else names.globbed(text)
        if not addresses:
            raise _unknown(text, names)
        result.update(dict.fromkeys(addresses))
    return list(result)
