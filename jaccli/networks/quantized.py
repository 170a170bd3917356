"""Weights packed into integers: how they are named in files, and the errors that say that they have no derivative.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaccli.errors import RefusedError, UnsupportedError
from jaccli.text.escape import listed, quote

# Names that only packed weights have, by the library that writes them.
_NAMES = {
    "int8 of torch.ao": re.compile(r"(.*\.)?(_packed_params|_all_weight_values)(\..*)?"),
    "int8 of bitsandbytes": re.compile(r".*\.(SCB|CB|weight_format)"),
    "4 bits of bitsandbytes": re.compile(r".*\.(absmax|nested_absmax|quant_map|nested_quant_map|quant_state(\..*)?)"),
    "integers of GPTQ or AWQ": re.compile(r".*\.(qweight|qzeros|g_idx)"),
    "integers of HQQ": re.compile(r".*\.W_q"),
    "integers of compressed-tensors": re.compile(r".*\.(weight_packed|weight_scale(_inv)?)"),
    "integers of quanto": re.compile(r".*\.weight\._(data|scale|shift)"),
}
_OBJECTS = ("_packed_params", "_all_weight_values")
_NO_DERIVATIVE = "expected floating-point weights: int8 kernels have no derivative"
_REMEDY = "give the float checkpoint that it was made from, or dequantize the weights and save them again"


def is_packed_name(name: str) -> bool:
    """Whether only packed weights have such a name."""
    return any(pattern.fullmatch(name) for pattern in _NAMES.values())


def refuse_packed(path: Path | str, names: Iterable[str], network_names: Iterable[str] = ()) -> None:
    """Refuse names of packed weights that the network does not have itself.

    Args:
        path: of the file.
        names: all names in its state dict, also of entries that are no tensors.
        network_names: names that the network has.

    Raises:
        RefusedError: there is one.
    """
    last_parts = {name.rpartition(".")[2] for name in network_names}
    for name in names:
        for what, pattern in _NAMES.items():
            if pattern.fullmatch(name) and name.rpartition(".")[2] not in last_parts:
                raise packed_file(path, f"weights packed into {what}: {quote(name, 60)}")


def packed_file(path: Path | str, what: str) -> RefusedError:
    """The error for a file with packed weights."""
    return RefusedError(f"{quote(path)} holds {what}", _NO_DERIVATIVE, _REMEDY)


def packed_modules(named: Iterable[tuple[str, Any]]) -> list[str]:
    """Paths of the modules whose weights are packed: those of ``torch.ao.nn.quantized``, and their scripts."""
    names = [name for name, module in named if any(_has_attribute(module, packed) for packed in _OBJECTS)]
    return [name or "(model)" for name in names if name.rpartition(".")[2] not in _OBJECTS]


def _has_attribute(module: Any, name: str) -> bool:
    script = getattr(module, "_c", None)
    return name in vars(module) or name in module._modules or (script is not None and script.hasattr(name))


def no_derivative(modules: Iterable[str]) -> UnsupportedError:
    """The error for a J that would go through such modules."""
    return UnsupportedError(
        f"the model has weights packed into int8: {listed(modules)}",
        "int8 kernels have no derivative",
        "take the float model that it was made from, or layers behind them",
    )
