"""Translates the errors that `cryptography` raises for untrusted bytes.

    with parse_errors_as(lambda: ChainError("The public key cannot be read.")):
        return certificate.public_key()

For hostile bytes `cryptography` raises ValueError, TypeError, OverflowError, UnsupportedAlgorithm, its own errors,
KeyError (a value missing in one of its tables), and PanicException (a defect in its Rust code), which is not an
Exception. Its documentation does not list them, and a release may raise others, so every error is translated.

Use it around calls into `cryptography` and around its lazily parsed objects: extensions, names, times.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final

from ccp.errors import CCPError

# Raised by PyO3 when Rust code panics. Each library has its own type with this name, and none exports it.
_PANIC: Final = "PanicException"


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of Rust code. The library writes it to standard error itself."""
    return type(error).__name__ == _PANIC and type(error).__module__ == "pyo3_runtime"


def is_parse_error(error: BaseException) -> bool:
    """Whether a library failed on its input; not a `CCPError`, lack of memory, or cancellation."""
    return (isinstance(error, Exception) and not isinstance(error, CCPError | MemoryError)) or is_panic(error)


class parse_errors_as:
    """Context manager that replaces parse errors by the error that a callable creates. A `CCPError` passes."""

    __slots__ = ("_error",)

    def __init__(self, error: Callable[[], CCPError]) -> None:
        """error: called only for a parse error, so it may be expensive."""
        self._error = error

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and is_parse_error(error):
            raise self._error() from error
