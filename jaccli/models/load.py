"""MODEL → module: a file, whose content shows its kind, or a SPEC. Imports torch only when it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaccli.errors import RefusedError, UsageError, note
from jaccli.models.identify.file_key import path_of
from jaccli.models.identify.file_kind import EXPECTED, WHOLE_MODELS, kind_of
from jaccli.models.identify.import_spec import build, is_spec
from jaccli.safety.reading import reading
from jaccli.text.escape import quote
from jaccli.text.wording import worded

if TYPE_CHECKING:
    from torch import nn

    from jaccli.models.weights.architecture import Architecture


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
            ``torch.save``; ``file[key]`` chooses one of several in it), or ``package.module:callable`` or
            ``path/file.py:callable`` for fresh weights.
        arch: for a state dict, what makes the network: a SPEC, a callable, or a module, which is copied.
        arch_args: keyword arguments for ``arch``, or for the SPEC.
        activation: for a state dict of a plain chain of linear layers, the activation between them.
        trust: the file may run code. Without it, one that would is refused.
        seed: of the fresh weights; 0 if not given.

    Raises:
        RefusedError: unreadable, unsafe, of another format, or not of this architecture.
        UsageError: ``arch`` is missing or of no use, or a name in it does not exist.

    Cost: no forward pass. Parameters keep the file's shapes, and its floating dtype where all tensors agree on one.

    >>> import torch
    >>> torch.save({"0.weight": torch.eye(2), "2.weight": torch.ones(1, 2)}, "weights.pt")
    >>> model = load_model("weights.pt", activation="tanh")
    >>> model(torch.zeros(3, 2)).shape
    torch.Size([3, 1])
    """
    text = os.fspath(path_or_spec)
    if is_spec(text):
        return _fresh(text, arch, arch_args, activation, seed)
    path, kind, key = kind_of(text)
    if kind in WHOLE_MODELS and (arch is not None or activation is not None or arch_args):
        text = "{file} is {what} and holds its own architecture; {arch} and {activation} are not used"
        note(worded(text, file=path.name, what=WHOLE_MODELS[kind]))
    if kind == "torchscript":
        from jaccli.models.torchscript.load import load_torchscript

        with reading(quote(path), EXPECTED):
            return load_torchscript(path, trust=trust)
    if kind == "exported":
        from jaccli.models.exported.load import load_exported

        with reading(quote(path), EXPECTED):
            return load_exported(path, trust=trust)
    from jaccli.models.weights.architecture import Architecture

    architecture = Architecture(arch, arch_args, activation, seed, ordered=kind == "checkpoint")
    return _from_weights(path, key, kind, architecture, trust)


def model_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the file of a MODEL, in hexadecimal: its identity in provenance; empty where there is no file.

    Cost: one pass over the file.
    """
    import hashlib

    if not os.path.isfile(path_of(path)):
        return ""
    with open(path_of(path), "rb") as file:
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
    key: str | None,
    kind: Literal["safetensors", "checkpoint"],
    architecture: Architecture,
    trust: bool,
) -> nn.Module:
    from jaccli.models.weights.architecture import without_network
    from jaccli.models.weights.contents import read_contents

    with reading(quote(path), EXPECTED):
        contents = read_contents(path, kind, trust=trust)
        candidates = contents.candidates(key)
    if not architecture.is_known and all(candidate.module is None for candidate in candidates):
        raise without_network(path)
    chosen, notes = contents.select(key, architecture.fits if architecture.is_known else None)
    for text in notes:
        note(text)
    if chosen.module is not None:
        module: nn.Module = chosen.module.eval()
        return module
    architecture.check_floats(path, chosen)
    where = f"{path}[{chosen.key}]" if chosen.key and len(candidates) > 1 else str(path)
    with reading(quote(path), EXPECTED):
        state = contents.state(chosen)
    return architecture.load(state, where).eval()
