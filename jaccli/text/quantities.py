"""Numbers with units and dtypes, as messages show them."""

from __future__ import annotations


def human(size: float) -> str:
    """A number of bytes, with three digits.

    >>> human(512), human(5000), human(3 * 2**29)
    ('512 B', '4.88 KiB', '1.5 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def seconds(value: float) -> str:
    """A duration in seconds, with three digits.

    >>> seconds(0.00325), seconds(1.4)
    ('3.25 ms', '1.4 s')
    """
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def dtype_name(dtype: object) -> str:
    """``float32`` of ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
