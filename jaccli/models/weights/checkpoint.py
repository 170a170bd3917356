"""Step 1, file → object: safetensors, and ``torch.save`` files that the user trusts; and the errors for other content.

Files that are not trusted are read by ``jaccli.pickles``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jaccli.errors import RefusedError
from jaccli.models.weights.candidates import is_tensor
from jaccli.runtime.printing import chatter
from jaccli.safety.reading import COPY_AGAIN
from jaccli.text.escape import listed, quote, shortened
from jaccli.text.wording import worded

_SAVE_AGAIN = "save model.state_dict() again with torch.save, or as safetensors"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Name → tensor, of any shapes and dtypes, on the CPU.

    Raises:
        RefusedError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError):
        raise RefusedError(
            f"{quote(path)} is a safetensors file that is damaged",
            "expected a header that describes the data",
            COPY_AGAIN,
        ) from None


def read_trusted(path: Path) -> Any:
    """The object in the file, read by executing its code: only if the user trusts it.

    Raises:
        RefusedError: the code raised, or cannot be imported.
    """
    try:
        # An open file, because torch interprets the name of a path.
        with path.open("rb") as file, contextlib.redirect_stdout(chatter()):
            return torch.load(file, map_location="cpu", weights_only=False)
    except (Exception, SystemExit) as error:
        raise RefusedError(
            f"{quote(path)} cannot be loaded: {shortened(error)}",
            "its code needs the modules that it was saved with",
            "run where they can be imported, or " + _SAVE_AGAIN,
        ) from None


def whole_module(path: Path, name: str) -> RefusedError:
    """The error for a pickled module, which only its own code can make."""
    return RefusedError(
        f"{quote(path)} is a whole pickled module: it needs the code of {quote(name)}",
        "expected a state dict, which needs no code to load",
        worded("save model.state_dict() or TorchScript; or {trust:True}, if you trust the file to run code"),
    )


def no_weights(path: Path, root: object, stand_ins: Mapping[str, object]) -> RefusedError:
    """The error for a file whose object ``root`` has no state dict in it."""
    if is_tensor(root):
        return RefusedError(
            f"{quote(path)} holds one tensor without a name: an input, not a model",
            "expected a dict of names and tensors",
            worded("give it as {x}, and a model file first"),
        )
    if stand_ins:
        return RefusedError(
            f"{quote(path)} holds no state dict; it needs the code of {listed(sorted(stand_ins))}",
            "expected names and tensors, which need no code to load",
            worded("save model.state_dict(); or {trust:True}, if you trust the file to run code"),
        )
    return RefusedError(f"{quote(path)} holds no state dict", "expected a dict of names and tensors", _SAVE_AGAIN)
