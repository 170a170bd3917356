"""Step 2, address → location: which module call, which tensor of its value, and which numbers of that tensor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from jaccli.activations.address import Address
from jaccli.activations.nested import Path, get, leaves, locate_tensor, put
from jaccli.activations.sample_view import SampleView, view_for
from jaccli.errors import UnsupportedError, UsageError
from jaccli.networks.network import Network

if TYPE_CHECKING:
    from jaxtyping import Shaped

# One side of a module call: module path, "in" or "out", and the number of the call, from 1.
Boundary = tuple[str, str, int]

# Those of the root module, whose calls are not reported to taps.
MODEL_INPUT: Boundary = ("", "in", 1)
MODEL_OUTPUT: Boundary = ("", "out", 1)


def module_paths(boundaries: Iterable[Boundary]) -> frozenset[str]:
    """The modules whose calls a tap has to see for these boundaries."""
    return frozenset(path for path, _, _ in boundaries if path)


class BoundaryTap(ABC):
    """A tap that treats both sides of a call in one function, ``at``. See ``networks.network.Tap``."""

    paths: frozenset[str] | None

    def enter(self, path: str, call: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.at((path, "in", call), (args, kwargs))

    def leave(self, path: str, call: int, output: Any) -> Any:
        return self.at((path, "out", call), output)

    @abstractmethod
    def at(self, boundary: Boundary, value: Any) -> Any:
        """The value to go on with, for the value at a boundary."""

    def run(self, network: Network, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """One forward pass with this tap, which gets the model's own input and output too."""
        # A network reports no calls of its root module: its input and output are seen here.
        args = (self.at(MODEL_INPUT, args[0]), *args[1:])
        self.at(MODEL_OUTPUT, network.run(args, kwargs, self if self.paths else None))


@dataclass(frozen=True)
class ActivationLocation:
    """Where a run has an activation.

    The value at a boundary is a tensor or nested containers of tensors; at the ``in`` of a layer it is the pair
    ``(args, kwargs)``.

    Attributes:
        address: the name that was resolved.
        boundary: the side of a module call.
        path: the elements of the value that lead to the tensor.
        view: how the activation lies in that tensor.
    """

    address: Address
    boundary: Boundary
    path: Path
    view: SampleView

    def tensor(self, value: Any) -> Tensor:
        """The whole tensor that holds the activation, of any shape, from the boundary's value."""
        tensor: Tensor = get(value, self.path)
        return tensor

    def get(self, value: Any) -> Shaped[Tensor, "batch *shape"]:
        """The activation from the boundary's value."""
        return self.view.get(self.tensor(value))

    def put(self, value: Any, activation: Shaped[Tensor, "batch *shape"]) -> Any:
        """The boundary's value with another activation in it; the value itself stays as it is."""
        return put(value, self.path, self.view.put(self.tensor(value), activation))


def boundary_of(address: Address) -> Boundary:
    """The boundary that an address means; without ``#`` that of the first call.

    Raises:
        UsageError: the address means all calls.
    """
    if address.is_model_input:
        return MODEL_INPUT
    if address.is_model_output:
        return MODEL_OUTPUT
    if isinstance(address.call, str):
        raise UsageError(
            f"layer {str(address)!r} means all calls, and one is wanted here",
            f"expected the number of one, as {str(address.at_call(1))!r}",
        )
    return (address.path, address.port or "out", address.call or 1)


def locate_activation(address: Address, value: Any, batch: int, *, source: bool) -> ActivationLocation:
    """Resolve an address against the value that its boundary had in a run of ``batch`` samples.

    Args:
        address: of one call.
        value: at its boundary.
        batch: number of samples.
        source: whether the activation becomes a variable: then an index may not name an element twice.

    Raises:
        UsageError: several tensors or none to choose, samples elsewhere, an index that does not fit.
        UnsupportedError: no floating-point tensor there.
    """
    exact = as_key(address, value)
    path = locate_tensor(value, elements_in(exact, value), exact)
    view = view_for(exact, get(value, path), batch, distinct=source)
    return ActivationLocation(address, boundary_of(address), path, view)


def as_key(address: Address, value: Any) -> Address:
    """The address with its index and dimension read as part of an element's name, if the value is a dict that has a
    key such as ``x[0]`` or ``x@1``; else the address itself."""
    _, port, rest = address.suffix.partition(f":{address.port}.")
    bare = address.index is None and address.dim is None
    if bare or not port or address.port == "in" or rest not in _keys(value):
        return address
    return replace(address, elements=tuple(rest.split(".")), index=None, dim=None)


def _keys(value: Any) -> Collection[str]:
    """Names of a dict's tensors."""
    return {".".join(path) for path, _ in leaves(value)} if isinstance(value, Mapping) else ()


def elements_in(address: Address, value: Any) -> Path:
    """The elements that an address names, as a path in its boundary's value.

    That of an ``in`` boundary is ``(args, kwargs)``: ``PATH:in.1`` is the second positional argument, and
    ``PATH:in.name`` a named one.

    Raises:
        UnsupportedError: the call has no such argument.
    """
    if address.port != "in" or address.is_model_input:
        return address.elements
    args, kwargs = value
    if not address.elements:
        # Without named arguments the tensor is searched among the positional ones, else among both.
        return ("0",) if not kwargs else ()
    first, rest = address.elements[0], address.elements[1:]
    if first.isdigit() and int(first) < len(args):
        return ("0", first, *rest)
    if first in kwargs:
        return ("1", first, *rest)
    have = [*map(str, range(len(args))), *kwargs]
    raise UnsupportedError(f"layer {str(address)!r}: the call has no argument {first!r}", f"it has {', '.join(have)}")
