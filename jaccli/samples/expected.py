"""What errors about files say was expected, and what to do. Needs neither torch nor numpy."""

from __future__ import annotations

import os

from jaccli.text.escape import nearest

ARRAYS = "expected arrays: npy, npz, safetensors, pt, csv or a folder of images"
INPUT = "expected FILE, FILE[KEY], a folder of images, -, or random:SHAPE"
SAVED_J = "expected what 'jaccli compute -o FILE' writes, or an array (batch, n_out, n_in)"
# What was expected, and what to do.
WHOLE = "expected a whole file", "copy, download or write it again"
SAVE_AGAIN = "save it again with 'jaccli compute -o J.npz'"
READABLE = "expected a file or folder that you may read"

_LISTED = 6


def nearby(path: str) -> str:
    """What could have been meant by a path that is not there: a name like it, or what its folder holds."""
    folder, name = os.path.split(path)
    if folder and not os.path.isdir(folder):
        missing = folder
        while os.path.dirname(missing) and not os.path.isdir(os.path.dirname(missing)):
            missing = os.path.dirname(missing)
        if os.path.exists(missing):
            return f"{missing!r} is a file and holds no others"
        return f"there is no folder {missing!r}, seen from {os.getcwd()!r}"
    try:
        names = sorted(entry for entry in os.listdir(folder or ".") if not entry.startswith("."))
    except OSError:
        return "check the path"
    where = folder or "this folder"
    similar = [other for other in names if other.split(".")[0] == name.split(".")[0]]
    similar = similar or nearest(name, names, 2, cutoff=0.7)
    if similar:
        return f"did you mean {' or '.join(repr(os.path.join(folder, other)) for other in similar[:2])}?"
    shown = ", ".join(names[:_LISTED]) + ", …" * (len(names) > _LISTED)
    return f"{where} holds {shown}" if names else f"{where} is empty"
