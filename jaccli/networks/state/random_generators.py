"""Random generators: their states before a pass, whether the pass drew from them, and how the states are put back.

A model may draw from torch's generators (one for each device), from NumPy's and Python's global ones, from
generators of its own, and from those that it makes in a pass without a seed. Each is a ``GeneratorSource``: its state
is read once, compared by a short key, and set only if the generator has drawn since.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from ctypes import string_at
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from jaccli.errors import warn
from jaccli.networks.state.unseeded_generators import SEEDS, fixed_seeds

if TYPE_CHECKING:
    from jaxtyping import Shaped

TORCH = "torch's generator"
_LARGEST_NUMPY_SEED = 2**32
_UNSEEDED, _NONDETERMINISTIC = "a generator without a seed", "not deterministic"
_MERSENNE_BYTES = 624 * 4 + 4  # its words and its position


@dataclass(frozen=True, slots=True)
class GeneratorSource:
    """How one generator is read and set.

    Attributes:
        name: for messages.
        read: gives a key, which differs once the generator has drawn and is quickly compared, and the state.
        put: sets the state.
    """

    name: str
    read: Callable[[], tuple[Hashable, Any]]
    put: Callable[[Any], object]


@dataclass(frozen=True)
class GeneratorStates:
    """The states of some random generators at one moment.

    Cost of ``now`` and of ``restore``, where nothing has been drawn: 3 µs, and 20 more for Python's and NumPy's.

    Attributes:
        states: generator, key and state of each, as ``GeneratorSource.read`` gives them.
    """

    states: list[tuple[GeneratorSource, Hashable, Any]]

    @classmethod
    def now(cls, of_model: Iterable[Any] = (), *, python: bool = True) -> GeneratorStates:
        """The states of the global generators and those ``of_model``; ``python``: Python's and NumPy's too."""
        return cls([(source, *source.read()) for source in (*_global(python), *map(_source, of_model))])

    def current(self) -> GeneratorStates:
        """The states that the same generators have now."""
        return GeneratorStates([(source, *source.read()) for source, _, _ in self.states])

    def restore(self) -> list[str]:
        """Set the generators to these states; returns the names of those that had drawn since."""
        moved = []
        for source, key, state in self.states:
            if source.read()[0] != key:
                source.put(state)
                moved.append(source.name)
        return moved


@contextmanager
def generators_starting_at(start: GeneratorStates) -> Iterator[None]:
    """Inside, the generators begin in the states ``start``; afterwards they have the states of before."""
    # Read once: the states of before are needed in the end, and their keys tell which generators differ.
    before = start.current()
    for (source, key, state), (_, now, _) in zip(start.states, before.states, strict=True):
        if key != now:
            source.put(state)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, all global generators, and new ones without a seed, start at a seed; afterwards they are put back."""
    before = GeneratorStates.now()
    seed_all(seed)
    try:
        with fixed_seeds():
            yield
    finally:
        before.restore()


def seed_all(seed: int) -> None:
    """Seed torch on every device, Python's generator, NumPy's if NumPy is imported, and those that models make."""
    SEEDS.begin(seed)
    torch.manual_seed(seed)
    random.seed(seed)
    if "numpy" in sys.modules:
        import numpy.random

        numpy.random.seed(seed % _LARGEST_NUMPY_SEED)  # it refuses larger ones


@dataclass
class RandomDraws:
    """Which random generators the passes of a network have drawn from, and which the user was warned of.

    Attributes:
        generators: names of those drawn from, in order of the first draw.
        warned: names of those that a warning has named.
        passes: how many passes drew.
        compared: whether two passes at one point were compared.
        nondeterminism: by how much those differed, relative to the values; 0 where they were equal.
    """

    generators: dict[str, None] = field(default_factory=dict)
    warned: set[str] = field(default_factory=set)
    passes: int = 0
    compared: bool = False
    nondeterminism: float = 0.0

    def add(self, names: list[str]) -> None:
        """Count a pass that drew from the generators of these names, if there are any."""
        self.passes += bool(names)
        self.generators.update(dict.fromkeys(names))

    def begin_comparison(self) -> None:
        """A second pass follows, to be compared with the first. Generators without a seed count from here on only: an
        import makes some in the first pass alone."""
        self.compared = True
        self.generators.pop(_UNSEEDED, None)

    def warn(self) -> None:
        """Warn, once for each generator, that J is of one draw; or that the model is not deterministic."""
        if self.nondeterminism and _NONDETERMINISTIC not in self.warned:
            self.warned.add(_NONDETERMINISTIC)
            warn(
                f"two passes at one point differ by {self.nondeterminism:.2g} of themselves: the model is not "
                "deterministic (it asks the system for random numbers, a clock or a counter?), do not rely on J"
            )
            self.warned.update(self.generators)  # no seed makes that draw again
        new = [name for name in self.generators if not {name, name.partition(" on ")[0]} & self.warned]
        if new:
            self.warned.update(new)
            warn(f"the model draws random numbers ({', '.join(new)}): J is of one draw, the same for the same seed")


def use_numpy() -> None:
    """Import NumPy's generators, if NumPy is in use, before a pass does: their import seeds them from the system."""
    if "numpy" in sys.modules:
        import numpy.random  # noqa: F401


def is_generator(value: Any) -> bool:
    """Whether it is a generator whose state can be read and set."""
    kind = type(value)
    if kind not in _kinds:  # isinstance of a torch type is slow
        _kinds[kind] = _is_generator_type(kind)
    return _kinds[kind]


_kinds: dict[type, bool] = {}


def _is_generator_type(kind: type) -> bool:
    if issubclass(kind, torch.Generator | random.Random):
        return not issubclass(kind, random.SystemRandom)
    numpy = sys.modules.get("numpy.random")
    return numpy is not None and issubclass(kind, numpy.Generator | numpy.RandomState | numpy.BitGenerator)


def _global(python: bool) -> Iterator[GeneratorSource]:
    yield _torch_source(torch.default_generator, TORCH)
    yield from _accelerators()
    if not python:
        return
    yield _python_source(random._inst, "Python's generator")
    yield GeneratorSource(_UNSEEDED, lambda: (SEEDS.position, SEEDS.position), SEEDS.put)
    mtrand = sys.modules.get("numpy.random.mtrand")
    if mtrand is not None:
        yield _legacy_source(mtrand._rand, "NumPy's generator")


def _accelerators() -> Iterator[GeneratorSource]:
    """One for every device of an accelerator, if this process has begun to use it."""
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return
    backend: Any = torch.get_device_module(kind)
    # Asking an unused CUDA device for its state would initialise it, which takes time and memory there.
    if not getattr(backend, "is_initialized", lambda: True)() or not hasattr(backend, "get_rng_state"):
        return
    count = torch.accelerator.device_count()
    for index in range(count):
        where = (torch.device(kind.type, index),) if count > 1 else ()
        read = partial(_bytes_of, partial(backend.get_rng_state, *where))
        yield GeneratorSource(f"{TORCH} on {kind.type}:{index}", read, partial(_set, backend, where))


def _set(backend: Any, where: tuple[torch.device, ...], state: Shaped[torch.Tensor, " bytes"]) -> None:
    backend.set_rng_state(state, *where)


def _source(generator: Any) -> GeneratorSource:
    name = f"a {type(generator).__module__.partition('.')[0]} generator of its own"
    if isinstance(generator, torch.Generator):
        return _torch_source(generator, name)
    if isinstance(generator, random.Random):
        return _python_source(generator, name)
    if hasattr(generator, "get_state"):
        return _legacy_source(generator, name)
    bits = getattr(generator, "bit_generator", generator)
    return GeneratorSource(name, lambda: (repr(bits.state), bits.state), lambda state: setattr(bits, "state", state))


def _torch_source(generator: torch.Generator, name: str) -> GeneratorSource:
    return GeneratorSource(name, partial(_bytes_of, generator.get_state), generator.set_state)


def _bytes_of(read: Callable[[], torch.Tensor]) -> tuple[Hashable, Any]:
    """Of a state ``(…,)`` of bytes: their content, to compare, and the state."""
    state = read()
    return string_at(state.data_ptr(), state.numel()), state  # torch.equal takes ten times as long


def _python_source(generator: random.Random, name: str) -> GeneratorSource:
    def read() -> tuple[Hashable, Any]:
        state = generator.getstate()
        words = state[1]
        # The position, and words that change in a new round and with another seed: the first does not.
        return (words[-1], *words[:3], state[2]), state

    return GeneratorSource(name, read, generator.setstate)


def _legacy_source(generator: Any, name: str) -> GeneratorSource:
    """NumPy's ``RandomState``: reading its state takes 70 µs, reading the memory that holds it 1 µs."""
    bits = generator._bit_generator
    if type(bits).__name__ != "MT19937":
        return GeneratorSource(
            name, lambda: (repr(state := generator.get_state(legacy=False)), state), generator.set_state
        )
    address = bits.ctypes.state_address

    def read() -> tuple[Hashable, Any]:
        memory, (last, state) = string_at(address, _MERSENNE_BYTES), _last_read.get(id(generator), (b"", {}))
        # Drawing the second of two normal numbers leaves no trace in that memory.
        if last != memory or state["has_gauss"]:
            state = generator.get_state(legacy=False)
            if generator is sys.modules["numpy.random.mtrand"]._rand:
                _last_read[id(generator)] = memory, state
        return (memory, state["has_gauss"]), state

    def put(state: Any) -> None:
        generator.set_state(state)
        _last_read.pop(id(generator), None)

    return GeneratorSource(name, read, put)


# NumPy's global generator when it was last read: its memory, and its state.
_last_read: dict[int, tuple[bytes, Any]] = {}
