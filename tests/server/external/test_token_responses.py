"""Token responses: lifetime, forms, and what counts as no usable token."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import orjson
import pytest

from ccp.server.external.access_tokens import TokenError, parse_token_response
from ccp.server.external.outbound import HttpResponse


def _response(body: bytes, kind: str = "application/json", status: int = 200) -> HttpResponse:
    return HttpResponse(status, {"content-type": kind}, body)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(3600, 3600), ("3600", 3600), (3599.5, 3599.5), (None, 300), (0, 300), (-5, 300), ("soon", 300), (True, 300),
     ([], 300), (1, 10), (10**9, 86_400), (10**18, 86_400), ("NaN", 300), ("1e999", 86_400)],
)  # fmt: skip
def test_token_response_lifetime_is_bounded(value: Any, seconds: float) -> None:
    body = json.dumps({"access_token": "t", "expires_in": value, "token_type": "bearer"}).encode()
    assert parse_token_response(_response(body)) == ("t", seconds)


def test_token_response_may_be_a_form_and_omit_members() -> None:
    form = urlencode({"access_token": "a.b-c", "expires_in": "60"}).encode()
    assert parse_token_response(_response(form, "application/x-www-form-urlencoded; charset=utf-8")) == ("a.b-c", 60)
    assert parse_token_response(_response(b'{"access_token":"t"}')) == ("t", 300)


@pytest.mark.parametrize(
    "response",
    [
        _response(b'{"access_token":"t"}', status=201),
        _response(b'{"access_token":""}'),
        _response(b'{"access_token":5}'),
        _response(b'{"access_token":"a b"}'),
        _response('{"access_token":"\u00e9"}'.encode()),
        _response(b'{"access_token":"a\\r\\nX: y"}'),
        _response(b'{"access_token":"t","token_type":"mac"}'),
        _response(b'{"access_token":"t","token_type":5}'),
        _response(b'["access_token"]'),
        _response(b""),
        _response(b"&".join(b"a=b" for _ in range(100)), "application/x-www-form-urlencoded"),
    ],
)
def test_token_response_without_a_usable_token_is_an_error(response: HttpResponse) -> None:
    with pytest.raises(TokenError):
        parse_token_response(response)


@pytest.mark.parametrize(
    ("error", "shown"),
    [("invalid_client", " (invalid_client)"), ("Zq8secret", ""), ("invalid client", ""), ("a" * 41, ""), (5, "")],
)
def test_token_response_error_shows_a_code_and_nothing_else(error: object, shown: str) -> None:
    with pytest.raises(TokenError) as failure:
        parse_token_response(_response(orjson.dumps({"error": error}), status=400))
    assert str(failure.value) == f"The token endpoint answered 400{shown}."
