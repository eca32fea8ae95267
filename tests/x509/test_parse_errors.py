"""parse_errors_as: which errors of `cryptography` it translates, and which errors pass."""

from __future__ import annotations

import asyncio

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from ccp.errors import ChainError, RevokedError
from ccp.x509.parse_errors import is_panic, is_parse_error, parse_errors_as

Panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        TypeError("x"),
        KeyError(7),
        OverflowError("x"),
        RecursionError("x"),
        UnsupportedAlgorithm("x"),
        InvalidSignature(),
        x509.DuplicateExtension("x", x509.ObjectIdentifier("1.2.3")),
        x509.InvalidVersion("x", 7),
        x509.UnsupportedGeneralNameType("x"),
        Panic("index out of bounds"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_parse_errors_become_the_named_error_and_its_cause(error: BaseException) -> None:
    with (
        pytest.raises(ChainError, match=r"^It cannot be read\.$") as raised,
        parse_errors_as(lambda: ChainError("It cannot be read.")),
    ):
        raise error
    assert raised.value.__cause__ is error
    assert is_panic(error) == isinstance(error, Panic)


@pytest.mark.parametrize(
    "error",
    [RevokedError("x"), MemoryError(), KeyboardInterrupt(), SystemExit(), asyncio.CancelledError(), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_parse_errors_let_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, parse_errors_as(lambda: ChainError("It cannot be read.")):
        raise error
    assert raised.value is error
    assert not is_parse_error(error)


def test_parse_errors_does_nothing_without_an_error() -> None:
    with parse_errors_as(lambda: ChainError("It cannot be read.")):
        pass
