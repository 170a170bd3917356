"""Any model that a user passes → ``Network``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from jaccli.errors import UsageError, note
from jaccli.networks.eager import EagerNetwork
from jaccli.networks.network import Network
from jaccli.text.escape import quote


def as_network(model: Any) -> Network:
    """``model`` as a network; a network is returned as it is. Nothing is copied.

    Args:
        model: an ``nn.Module``, ``ScriptModule``, ``ExportedProgram`` or module of one, or ``Network``.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(model, Network):
        return model
    model = _unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        from jaccli.models.torchscript.network import ScriptNetwork

        return ScriptNetwork(model)
    if _may_be_exported(model):
        from jaccli.models.exported.network import ExportedNetwork, is_exported

        if is_exported(model):
            return ExportedNetwork(model)
    if isinstance(model, nn.Module):
        return EagerNetwork(model)
    what = f"the class {model.__name__}" if isinstance(model, type) else f"an object of type {type(model).__name__}"
    raise UsageError(
        f"the model is {what}",
        "expected an nn.Module, a ScriptModule or an exported program",
        _remedy(model),
    )


def _unwrapped(model: Any) -> Any:
    """The module inside ``DataParallel`` or ``torch.compile``: those hide its layers."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        # By name: importing the class would import the whole compiler.
        elif type(model).__name__ == "OptimizedModule" and isinstance(model, nn.Module):
            inner = model._orig_mod
        else:
            return model
        note(f"the model inside {type(model).__name__} is used")
        model = inner


def _may_be_exported(model: Any) -> bool:
    # Cheap, so that importing the reader of exported programs is left to those who need it.
    name = type(model).__name__
    return name in ("ExportedProgram", "ExportedModel") or name.startswith("GraphModule")


def _remedy(model: Any) -> str:
    if isinstance(model, str):
        return f"load it first: jaccli.load_model({quote(model)})"
    if isinstance(model, dict):
        return "load the state dict into the network that it belongs to"
    if isinstance(model, type):
        return "make an instance of it"
    return "wrap a function in an nn.Module whose forward calls it"
