"""The context around all reading of untrusted files: an exception in it becomes an error about the file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from jaccli.errors import JaccliError, RefusedError, ResourceError, UnsupportedError
from jaccli.runtime.torch_errors import is_out_of_memory
from jaccli.text.wording import worded

# Remedies: for a file that was damaged on its way, and for one that no program writes.
COPY_AGAIN: Final = "copy or download it again"
DAMAGED_OR_FORGED: Final = "the file is damaged or forged: get it again"
# Characters at the end of a name that show whether a message has it: names are shortened in their middle.
_TAIL = 16


class DamagedError(ValueError):
    """A file is damaged; the text says in which way and becomes the end of a message."""


@contextlib.contextmanager
def reading(name: str, expected: str = "", remedy: str = COPY_AGAIN) -> Iterator[None]:
    """Inside, an untrusted file is read.

    Errors of jaccli pass; if they do not name the file, its name is put before the message. Other exceptions become the
    cause of an error of jaccli.

    Args:
        name: of the file, quoted for messages.
        expected: second part of the message.
        remedy: third part of the message.

    Raises:
        RefusedError: for any other exception, a bug in a parser (ours or a library's) included.
        ResourceError: for lack of memory.
    """
    try:
        yield
    except (RefusedError, ResourceError, UnsupportedError) as error:
        if name[-_TAIL:] in str(error):
            raise
        message = worded("{name}: {message}", name=name, message=error.given)
        raise type(error)(message, error.expected, error.remedy) from error
    except JaccliError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ResourceError(
                f"{name} does not fit into memory", "expected less", "free some, or use a larger machine"
            ) from error
        reason = str(error) if isinstance(error, DamagedError) else f"it cannot be read ({type(error).__name__})"
        raise RefusedError(f"{name} is damaged: {reason}", expected, remedy) from error
