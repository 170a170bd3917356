"""JAX as a peer (optional: ``pip install jax asdex``): jit of vmap of jacrev, of jacfwd, and asdex's coloured J."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from networks import Case
from peers import Variant

JAX = ("jax jit(jacrev)", "jax jit(jacfwd)", "jax asdex")


def available() -> tuple[str, ...]:
    """Which of the peers can run here."""
    if find_spec("jax") is None:
        return ()
    return JAX if find_spec("asdex") is not None else JAX[:2]


def variants(case: Case, name: str) -> Iterator[Variant]:
    """The variants of one JAX peer; they take a JAX array of the input's samples.

    The first trial compiles; the colouring, where there is one, is found before that, once.
    """
    import jax
    from jax_networks import twin

    head, tail = twin(case)
    if name == "jax asdex":
        yield Variant("", _ready(_coloured(case, head, tail)), slow_start=True)
        return
    transform = jax.jacrev if name == "jax jit(jacrev)" else jax.jacfwd
    jacobian: Any = jax.jit(jax.vmap(lambda x: transform(tail)(head(x))))
    yield Variant("", _ready(jacobian), slow_start=True)


def _coloured(case: Case, head: Callable[..., Any], tail: Callable[..., Any]) -> Callable[..., Any]:
    import asdex
    import jax
    from jax import numpy as jnp

    point = head(jnp.zeros(case.sample, jnp.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a dense pattern is news to nobody here
        jacobian = asdex.jacobian(tail, point, output_format="dense")
    return jax.jit(jax.vmap(lambda x: jacobian(head(x))))


def _ready(jacobian: Callable[..., Any]) -> Callable[..., Any]:
    """Wait for the result and flatten it: JAX returns before it is done."""

    def run(x: Any) -> Any:
        J = jacobian(x).block_until_ready()
        return J if J.ndim == 3 else J.reshape(*J.shape[:2], -1)

    return run


def array(x: Any) -> Any:
    """A torch tensor as a JAX array."""
    from jax import numpy as jnp

    return jnp.asarray(x.numpy())


def versions() -> dict[str, str]:
    """Versions of what is installed."""
    from importlib.metadata import version

    return {name: version(name) for name in ("jax", "asdex") if find_spec(name) is not None}
