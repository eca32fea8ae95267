"""Whatever `cryptography` raises for bytes from outside, as one of our errors.

    with parse_errors_as(lambda: ChainError("The public key cannot be read.")):
        return certificate.public_key()

For hostile bytes `cryptography` raises ValueError, TypeError, OverflowError, UnsupportedAlgorithm and errors of its
own, KeyError (a value that one of its tables does not have), and PanicException (a defect in its Rust code), which is
no Exception. Its documentation lists none of them, and the next release may raise others. So everything counts.

Use it around calls into `cryptography` and around objects of its that are read lazily: extensions, names, times.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Final

from ccp.errors import CCPError

# Made by PyO3 when Rust code panics. Each library has a type of its own with this name, and none exports it.
_PANIC: Final = "PanicException"


def is_panic(error: BaseException) -> bool:
    """Whether Rust code under Python panicked. The library reports it on standard error itself."""
    return type(error).__name__ == _PANIC and type(error).__module__ == "pyo3_runtime"


def is_parse_error(error: BaseException) -> bool:
    """Whether a library failed at what it was given, as opposed to: an error of ours, no memory, an end of the task."""
    return (isinstance(error, Exception) and not isinstance(error, CCPError | MemoryError)) or is_panic(error)


class parse_errors_as:
    """A context in which every parse error becomes the error that a callable makes. Errors of ours pass."""

    __slots__ = ("_error",)

    def __init__(self, error: Callable[[], CCPError]) -> None:
        """error: called for a parse error only, so it may take its time."""
        self._error = error

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and is_parse_error(error):
            raise self._error() from error
