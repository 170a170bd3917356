"""TorchScript models run operator by operator, with every module boundary in sight."""

from jaccli.models.torchscript.network import ScriptNetwork

__all__ = ["ScriptNetwork"]
