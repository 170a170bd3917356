"""MODEL → module: a file told by its content, or a SPEC. Imports no torch before it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaccli.errors import JaccliError, RefusedError, UsageError, note
from jaccli.models.factory import build, is_spec
from jaccli.models.quote import quote
from jaccli.models.sniff import EXPECTED, sniff
from jaccli.safety.reading import reading
from jaccli.wording import worded

if TYPE_CHECKING:
    from torch import nn


def load_model(
    path_or_spec: str | os.PathLike[str],
    arch: str | Callable[..., Any] | nn.Module | None = None,
    *,
    arch_args: Mapping[str, Any] | None = None,
    activation: str | None = None,
    trust: bool = False,
    seed: int | None = None,
) -> nn.Module:
    """The model in a file, or the one that a SPEC makes, on the CPU and in eval mode.

    Args:
        path_or_spec: a TorchScript archive, a ``torch.export`` archive, a state dict (safetensors or
            ``torch.save``), or ``package.module:callable`` or ``path/file.py:callable`` for fresh weights.
        arch: for a state dict, what makes the network: a SPEC, a callable, or a module, which is copied.
        arch_args: keyword arguments for ``arch``, or for the SPEC.
        activation: for a state dict of a plain chain of linear layers, the activation between them.
        trust: the file may run code. Without it, one that would is refused.
        seed: of the fresh weights; 0 if not given.

    Raises:
        RefusedError: unreadable, unsafe, of another format, or not of this architecture.
        UsageError: ``arch`` is missing or no use, or a name in it does not exist.
    """
    text = os.fspath(path_or_spec)
    if is_spec(text):
        return _fresh(text, arch, arch_args, activation, seed)
    path = Path(text)
    with reading(quote(path), EXPECTED):
        kind = sniff(path)
    if kind in ("torchscript", "exported") and (arch is not None or activation is not None or arch_args):
        what = "a TorchScript archive" if kind == "torchscript" else "a torch.export archive"
        text = "{file} is {what} and holds its own architecture; {arch} and {activation} are not used"
        note(worded(text, file=path.name, what=what))
    if kind == "torchscript":
        from jaccli.models.torchscript import load_torchscript

        with reading(quote(path), EXPECTED):
            return load_torchscript(path, trust=trust)
    if kind == "exported":
        from jaccli.models.exported import load_exported

        with reading(quote(path), EXPECTED):
            return load_exported(path, trust=trust)
    return _from_weights(path, kind, arch, arch_args, activation, trust, seed)


def model_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file, in hexadecimal: its identity in provenance. One pass over the file."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fresh(
    spec: str,
    arch: object | None,
    arch_args: Mapping[str, Any] | None,
    activation: str | None,
    seed: int | None,
) -> nn.Module:
    from torch.nn.parameter import is_lazy

    if arch is not None or activation is not None:
        raise UsageError(
            worded("the model {spec} is code, and {arch} or {activation} is given too", spec=quote(spec)),
            "expected those with a file of weights only",
            worded("give {arch_args} for its arguments"),
        )
    model = build(spec, arch_args, seed)
    lazy = [name for name, value in model.named_parameters() if is_lazy(value)]
    if lazy:
        raise RefusedError(
            f"the model {quote(spec)} has parameters without a shape: {', '.join(lazy[:3])}",
            "expected a network whose weights are there: lazy layers make theirs in a first forward pass",
            "let the code call it once before it returns it",
        )
    note(f"{spec} was built with fresh weights (seed {seed or 0})")
    return model.eval()


def _from_weights(
    path: Path,
    kind: Literal["safetensors", "checkpoint"],
    arch: str | Callable[..., Any] | nn.Module | None,
    arch_args: Mapping[str, Any] | None,
    activation: str | None,
    trust: bool,
    seed: int | None,
) -> nn.Module:
    from torch import nn

    from jaccli.models.checkpoint import read_state_dict

    if arch is not None and activation is not None:
        raise UsageError(worded("{arch} and {activation} are both given"), "expected one of them", "leave one out")
    if activation is None and arch is None and arch_args:
        raise UsageError(worded("{arch_args} is given without {arch}"), "", worded("name the network with {arch}"))
    with reading(quote(path), EXPECTED):
        state, notes = read_state_dict(path, kind, trust=trust)
    for text in notes:
        note(text)
    if isinstance(state, nn.Module):
        return state.eval()
    if activation is not None:
        from jaccli.models.chain import rebuild_chain

        with reading(quote(path)):
            return rebuild_chain(state, activation, path, ordered=kind == "checkpoint").eval()
    if arch is None:
        raise UsageError(
            f"{quote(path)} holds weights without a network",
            worded("expected {arch:package.module:callable} or {arch:file.py:callable}"),
            worded("or {activation:tanh}, or another, if it is a plain chain of linear layers"),
        )
    from jaccli.models.state_dict_load import load_into

    network = _network(arch, arch_args, seed)
    with reading(quote(path)):
        return load_into(network, state, path).eval()


def _network(
    arch: str | Callable[..., Any] | nn.Module, arch_args: Mapping[str, Any] | None, seed: int | None
) -> nn.Module:
    """The network to load into; one that was handed over is copied, so that it stays as it is."""
    import copy

    from torch import nn

    model = build(arch, arch_args, seed)
    if not isinstance(arch, nn.Module):
        return model
    try:
        return copy.deepcopy(model)
    except JaccliError:
        raise
    except Exception:
        raise RefusedError(
            f"the module given as arch ({type(model).__name__}) cannot be copied",
            "expected one that copy.deepcopy takes",
            "give a function that makes it",
        ) from None
