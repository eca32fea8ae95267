"""The catalogue of error codes and the code that raises errors: neither has what the other has not."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import ccp
from ccp.errors import CCPError
from ccp.errors import codes as error_codes
from ccp.errors.codes import HTTP_CODES, ErrorCode

_SOURCE = Path(ccp.__file__).parent
_WITHOUT_STATUS = frozenset(
    {"_StopParsing", "ValueError", "TypeError", "RuntimeError", "PydanticCustomError", "_TokenError", "error"}
)
"""What the HTTP layer raises and answers nowhere, or with the code of its own class."""
_REJECTIONS = frozenset({"_reject", "_fail", "abort_with", "_refuse", "HTTPException"})
"""What refuses a request with a status and no error class."""


def _trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(_SOURCE.rglob("*.py")):
        yield path.relative_to(_SOURCE), ast.parse(path.read_text("utf-8"))


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _classes(base: type[CCPError] = CCPError) -> Iterator[type[CCPError]]:
    yield base
    for derived in base.__subclasses__():
        yield from _classes(derived)


def test_error_codes_are_all_given_somewhere() -> None:
    used = {
        node.attr
        for path, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ErrorCode"
        if path != Path("errors/codes.py") or node.attr in {code.name for code in HTTP_CODES.values()}
    }
    assert used == set(ErrorCode.__members__)


def test_error_codes_belong_to_every_error_class() -> None:
    for module in pkgutil.walk_packages([str(_SOURCE)], "ccp."):
        if ".migrations" not in module.name:
            importlib.import_module(module.name)
    classes = set(_classes())
    assert len(classes) > 40
    assert {each.code for each in classes} <= set(ErrorCode)
    for each in classes - {CCPError}:
        if each.__module__ == "ccp.errors":
            assert "code" in vars(each), each


def test_error_codes_belong_to_every_raise_of_the_http_layer() -> None:
    known = {each.__name__ for each in _classes()}
    seen = 0
    for path, tree in _trees():
        if path.parts[:2] != ("server", "http"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = _name(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
                allowed = known | _WITHOUT_STATUS | _REJECTIONS | {"field_error", "failure", "hidden", "with_code_of"}
                assert raised in allowed, f"{path}:{node.lineno} raises {raised}"
                seen += 1
            if isinstance(node, ast.Call) and _name(node.func) in _REJECTIONS:
                for argument in node.args:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, int):
                        assert argument.value in HTTP_CODES, f"{path}:{node.lineno} answers {argument.value}"
    assert seen > 40


def test_error_codes_say_who_has_to_do_what() -> None:
    assert error_codes.HEADER == "X-Error-Code"
    assert len(ErrorCode) == len(ErrorCode.__members__)
    for code in ErrorCode:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code.value), code
        assert code.name.lower().replace("_", "-") == code.value
        assert 400 <= code.status < 600, code
        for text in (code.meaning, code.action):
            assert re.fullmatch(r"[A-Z].*[.]", text), text
            assert "  " not in text, text
    assert all(code.status == status for status, code in HTTP_CODES.items())
