"""Text for people in the charset of the stream that shows it, with readable substitutes for what it lacks."""

from __future__ import annotations

import codecs
import os

SUBSTITUTE = "jaccli.substitute"

# The characters that jaccli's own texts use; of names from files, escapes tell more than look-alikes.
_SUBSTITUTES = """
    ∂ d  ∇ grad  ∈ in  √ sqrt  ∞ inf  Σ sum  ∏ prod  ½ 1/2  ‖ ||  · *  × x  ⊙ *  ± +/-  − -  – -  — -  … ...  ⋯ ...
    ≤ <=  ≥ >=  ≠ !=  ≈ ~  ⟨ <  ⟩ >  “ "  ” "  ‘ '  ’ '  • *  → ->  ← <-  ↑ ^  ↓ v  ↦ |->  ⇒ =>  ° deg
    ᵀ ^T  ² ^2  ³ ^3  ⁴ ^4  ₀ _0  ₁ _1  ₂ _2  ₖ _k  α alpha  β beta  γ gamma  δ delta  ε eps  η eta  θ theta
    λ lambda  µ u  μ u  π pi  ρ rho  σ sigma  τ tau  φ phi  χ chi  ω omega
    │ |  ┃ |  ║ |  ─ -  ━ -  ═ =  ╸ -  ╺ -  █ #  ▀ #  ▄ #
"""
_BOX_CORNERS = dict.fromkeys(map(chr, [*range(0x250C, 0x254C), *range(0x2552, 0x2571)]), "+")
_READABLE = {
    **_BOX_CORNERS,
    **dict(zip(_SUBSTITUTES.split()[::2], _SUBSTITUTES.split()[1::2], strict=True)),
    "\u0302": "^",
}


def _substitute(error: UnicodeError) -> tuple[str, int]:
    """An error handler of ``codecs``: a readable substitute, or an escape as ``\\u1234``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    shown = "".join(_READABLE.get(char) or _escaped(char) for char in error.object[error.start : error.end])
    return shown, error.end


def _escaped(char: str) -> str:
    return char.encode("ascii", "backslashreplace").decode("ascii")


codecs.register_error(SUBSTITUTE, _substitute)


def encode(text: str, charset: str) -> bytes:
    """``text`` in ``charset``; never raises ``UnicodeEncodeError``."""
    return text.encode(charset, SUBSTITUTE)


def shown(text: str, charset: str) -> str:
    """``text`` as ``charset`` can show it."""
    return encode(text, charset).decode(charset)


def is_unicode(charset: str) -> bool:
    """All characters are in it, those that draw boxes among them."""
    return charset.lower().startswith("utf")


def charset_of(encoding: str | None, terminal: bool) -> str:
    """What a stream can show.

    Python writes UTF-8 where the locale is C; who asks for C wants ASCII, and a terminal without a UTF-8
    locale shows no more. ``PYTHONIOENCODING`` and ``PYTHONUTF8=1`` are taken at their word.

    Args:
        encoding: of Python's stream; UTF-8 unless it has one.
        terminal: the stream is one.
    """
    encoding = encoding or "utf-8"
    by_setting = os.environ.get("PYTHONIOENCODING", "").partition(":")[0] or os.environ.get("PYTHONUTF8") == "1"
    locale = next((os.environ[name] for name in ("LC_ALL", "LC_CTYPE", "LANG") if os.environ.get(name)), "")
    is_ascii = locale in ("C", "POSIX") or (terminal and not locale.upper().replace("-", "").endswith("UTF8"))
    return "ascii" if is_ascii and not by_setting and is_unicode(encoding) else encoding
