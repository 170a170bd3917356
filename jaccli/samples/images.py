"""A folder of images as samples."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jaccli.errors import RefusedError, UsageError, note
from jaccli.safety.memory import require_memory, require_unpacked
from jaccli.safety.reading import DAMAGED_OR_FORGED
from jaccli.samples.expected import ARRAYS, WHOLE

# Pillow's other formats start programs (PostScript) or draw (WMF): not for files from strangers.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_GRAY = ("1", "L", "LA", "I;16", "I;16B", "I;16L", "I")
# What compression of plain areas reaches, in images that people have; and what is never asked about.
_MOST_PIXELS_OF_A_BYTE = 10_000
_FEW_PIXELS = 1 << 20
# The image, its copy in the right mode and three channels of float32, with one copy in work.
_BYTES_OF_A_PIXEL = 32

Pixels = np.ndarray[Any, np.dtype[np.float32]]


def read_folder(folder: str) -> Tensor:
    """All images of a folder, sorted by name: float32 ``(n, channels, height, width)`` in [0, 1].

    One channel if all images are gray, else three; transparency is dropped. Other files are passed
    over with a note; subfolders are not entered.

    Raises:
        RefusedError: no images, a damaged one, or images of several sizes.
        UsageError: Pillow is not installed.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError as error:
        raise RefusedError(
            f"{folder!r} cannot be read: {error.strerror}",
            "expected a folder that you may read",
            f"'ls -ld {folder}' shows who may",
        ) from None
    images: dict[str, Pixels] = {}
    others = []
    for name in (name for name in names if not name.startswith(".")):
        pixels = _read(os.path.join(folder, name))
        if pixels is None:
            others.append(name)
            continue
        if not images:  # images of a folder have one size, or are refused
            require_memory(pixels.nbytes * len(names), repr(folder))
        images[name] = pixels
    if not images:
        raise RefusedError(
            f"{folder!r} holds no images",
            "expected PNG, JPEG, BMP, GIF, TIFF, WebP or PPM files in it",
            f"it holds {others[0]!r}" + (" and other files" if len(others) > 1 else "")
            if others
            else "subfolders are not looked into",
        )
    if others:
        note(f"{folder!r}: {len(others)} files that are no images were passed over, as {others[0]!r}")
    return _stack(images, folder)


def read_image(path: str) -> Tensor:
    """One image file as a single sample, ``(1, channels, height, width)``; otherwise as ``read_folder``."""
    pixels = _read(path)
    if pixels is None:
        raise RefusedError(f"{path!r} is not an image", ARRAYS, "choose another file, or save it as png")
    return _stack({os.path.basename(path): pixels}, path)


def _stack(images: dict[str, Pixels], where: str) -> Tensor:
    """Images of one size as ``(samples, channels, height, width)``."""
    (first, example), *_ = images.items()
    for name, pixels in images.items():
        if pixels.shape[1:] != example.shape[1:]:
            sizes = [f"{p.shape[2]}x{p.shape[1]}" for p in (example, pixels)]
            raise RefusedError(
                f"{where!r}: {first!r} is {sizes[0]} and {name!r} is {sizes[1]}",
                "expected images of one size",
                "crop or resize them first",
            )
    channels = max(pixels.shape[0] for pixels in images.values())
    return torch.from_numpy(np.stack([np.broadcast_to(p, (channels, *p.shape[1:])) for p in images.values()]))


def _read(path: str) -> Pixels | None:
    """Pixels ``(1 or 3, height, width)``; None where the file is no image."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError(
            f"{path!r} is an image, and Pillow is not installed", remedy="pip install 'jaccli[images]'"
        ) from None
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_size(image, path)
            if image.mode in _GRAY:
                return _gray(image)
            return np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    except Image.DecompressionBombError:
        raise RefusedError(
            f"{path!r} has too many pixels to be opened safely",
            "expected at most 178 million",
            "make it smaller, or give its numbers as npy",
        ) from None
    except UnidentifiedImageError:
        return None
    except (OSError, ValueError, SyntaxError, EOFError):  # SyntaxError: how Pillow reports a broken PNG
        raise RefusedError(f"{path!r} is a damaged or truncated image", *WHOLE) from None


def _check_size(image: Any, path: str) -> None:
    """Before a pixel is made: a header of some bytes may announce any number of them."""
    pixels, stored = image.width * image.height, os.path.getsize(path)
    if pixels > _MOST_PIXELS_OF_A_BYTE * stored + _FEW_PIXELS:
        raise RefusedError(
            f"{path!r} announces {image.width} x {image.height} pixels in {stored} bytes",
            f"expected at most {_MOST_PIXELS_OF_A_BYTE} pixels a byte",
            DAMAGED_OR_FORGED,
        )
    require_unpacked(_BYTES_OF_A_PIXEL * pixels, stored, repr(path), _BYTES_OF_A_PIXEL * _MOST_PIXELS_OF_A_BYTE)


def _gray(image: Any) -> Pixels:
    if image.mode.startswith("I"):
        return np.asarray(image, dtype=np.float32)[None] / np.float32(65535)
    return np.asarray(image.convert("L"), dtype=np.float32)[None] / np.float32(255)
