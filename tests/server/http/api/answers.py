"""The shape of every error answer, and a status that API descriptions do not list."""

from __future__ import annotations

import uuid

import httpx

from ccp.errors.codes import ErrorCode

PATH_TOO_LONG = 414
"""Any path longer than the longest route is refused unread; docs/spec-divergences.md says so."""


def sentences(answer: httpx.Response, status: int) -> list[str]:
    """The sentences of an error answer, whose whole shape is checked."""
    assert answer.status_code == status, f"{answer.status_code}: {answer.text}"
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert sorted(body) == ["errorMessages", "traceId"]
    assert str(uuid.UUID(body["traceId"])) == body["traceId"] == answer.headers["x-trace-id"]
    assert status < 400 or ErrorCode(answer.headers["x-error-code"])
    messages: list[str] = body["errorMessages"]
    assert messages
    assert all(isinstance(message, str) and message for message in messages)
    assert len(set(messages)) == len(messages)
    assert not any("Traceback" in message or "Value error" in message for message in messages)
    return messages
