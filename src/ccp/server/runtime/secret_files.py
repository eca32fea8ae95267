"""Files that hold a secret: read with a bound, checked, and never quoted in an error."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Final

from ccp.server.runtime import start_files

MAX_BYTES: Final = 16_384
"""Size of the largest secret; access tokens with many claims take some kB."""


class SecretFileError(ValueError):
    """A file without a usable secret. The message is the end of a sentence about the file; it never has the content."""


def read_secret_file(path: Path) -> str:
    """Return the text of a file without the line breaks at its end: UTF-8, not empty. Raises SecretFileError.

    The text may have several lines.
    """
    try:
        content = start_files.read(path, MAX_BYTES)
    except (OSError, ValueError) as exc:
        if isinstance(exc, OSError) and exc.errno == errno.EFBIG:
            raise SecretFileError(f"is too big for a secret (more than {MAX_BYTES:,} bytes)") from None
        if isinstance(exc, OSError) and exc.strerror == start_files.NOT_REGULAR:
            raise SecretFileError(f"is {exc.strerror}") from None
        raise SecretFileError(f"cannot be read: {_reason(exc)}") from None
    try:
        text = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise SecretFileError("is not text in UTF-8") from None
    if not text.strip():
        raise SecretFileError("is empty")
    return text


def read_secret_line(path: Path) -> str:
    """Return the text of a file that has one line, see `read_secret_file`. Raises SecretFileError."""
    text = read_secret_file(path)
    if not text.isprintable():
        raise SecretFileError("is not one line of printable text")
    return text


def is_readable_by_others(path: Path) -> bool:
    """Whether every user of the machine may read a file; False if the file cannot be examined."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except (OSError, ValueError):
        return False


def _reason(exc: Exception) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or "the path is not valid"
