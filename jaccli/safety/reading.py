"""The one boundary around all reading of files: whatever a reader raises there is the file's fault."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from jaccli.errors import JaccliError, RefusedError, ResourceError, UnsupportedError
from jaccli.runtime.torch_errors import is_out_of_memory
from jaccli.text.wording import worded

# What can be done with a file that is not what it was, and with one that nobody wrote so.
AGAIN: Final = "copy or download it again"
FORGED: Final = "the file is damaged or forged: get it again"
# Names are shortened in their middle.
_TAIL = 16


class Damaged(ValueError):
    """What is wrong with a file, in words that a message can end with."""


@contextlib.contextmanager
def reading(name: str, expected: str = "", remedy: str = AGAIN) -> Iterator[None]:
    """Inside, a stranger's bytes are read. Errors of our own pass, the file's name put before them where they lack
    it; the cause of others is kept beside them.

    Args:
        name: of the file, quoted for messages.
        expected: what would have been right.
        remedy: what to do.

    Raises:
        RefusedError: for any other exception, a bug in a parser (ours or a library's) included.
        ResourceError: for lack of memory.
    """
    try:
        yield
    except (RefusedError, ResourceError, UnsupportedError) as error:
        if name[-_TAIL:] in str(error):
            raise
        given = worded("{name}: {given}", name=name, given=error.given)
        raise type(error)(given, error.expected, error.remedy) from error
    except JaccliError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"{name} does not fit into memory", "expected less", "free some, or use a larger machine"
            ) from error
        why = str(error) if isinstance(error, Damaged) else f"it cannot be read ({type(error).__name__})"
        raise RefusedError(f"{name} is damaged: {why}", expected, remedy) from error
