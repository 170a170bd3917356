"""TorchScript models run operator by operator, with every module boundary in sight."""

from jaccli.models.script.network import ScriptNetwork

__all__ = ["ScriptNetwork"]
