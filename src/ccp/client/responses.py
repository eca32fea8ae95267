"""Reads HTTP responses into results. Pure: no I/O.

The text in a response comes from another system; `untrusted_text` limits and cleans it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from ccp import verify
from ccp.client.errors import MalformedResponseError
from ccp.client.model import CheckResult, Delivered, DryRunReport, NoContractResponse, SignedResponse
from ccp.client.untrusted_text import MAX_METADATA, plain
from ccp.errors import ChainError, EXIError
from ccp.ids import Namespace
from ccp.x509.certificates import Certificate

Model = TypeVar("Model", bound=BaseModel)

_MAX_TRACE_ID: Final = 100  # Characters; a UUID has 36.


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An HTTP response with any status. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def trace_id(self) -> str | None:
        """The pool's id of the request, from the header X-Trace-Id."""
        return self.limited_trace_id(self.headers.get("x-trace-id"))

    @staticmethod
    def limited_trace_id(value: object) -> str | None:
        """Return a trace id from a header or a body, limited and printable; None if it is no text."""
        return plain(value, _MAX_TRACE_ID) if isinstance(value, str) else None


def malformed(message: str, response: HttpResponse) -> MalformedResponseError:
    """Build the error for a response that cannot be read."""
    return MalformedResponseError(message, status=response.status, trace_id=response.trace_id)


def parse(model: type[Model], response: HttpResponse) -> Model:
    """Read a JSON body. Raises MalformedResponseError."""
    try:
        return model.model_validate_json(response.body)
    except ValidationError as exc:
        raise malformed(f"The response is not a {model.__name__.removeprefix('Received')}.", response) from exc


def parse_nothing(response: HttpResponse) -> None:
    """Ignore the body of a response that has no result."""


def limited(text: str | None, max_length: int) -> str | None:
    """Limit a text of another pool in length and characters, as the pool limits those of its own callers."""
    return None if text is None else plain(text, max_length)


def decode_base64(text: str, response: HttpResponse) -> bytes:
    """Decode a member in Base64. Raises MalformedResponseError."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise malformed("A value in the response is not Base64.", response) from exc


def parse_certificate(text: str, response: HttpResponse) -> bytes:
    """Read a contract certificate. Returns DER. Raises MalformedResponseError.

    text: Base64 of DER or PEM. The published API says PEM and its example is DER, so pools may send either.
    """
    data = decode_base64(text, response)
    try:
        return Certificate.load_pem(data)[0].der if data.startswith(b"-----BEGIN") else data
    except ChainError as exc:
        raise malformed("The certificate in the response cannot be read.", response) from exc


def parse_time(text: str, response: HttpResponse) -> datetime:
    """Read a timestamp; one without a zone is UTC. Raises MalformedResponseError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise malformed("A time in the response cannot be read.", response) from exc
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def delivery(
    items: Iterable[tuple[SignedResponse, str | None]], edition: Namespace, response: HttpResponse
) -> Delivered | NoContractResponse:
    """Decide by the ResponseCode in the EXI messages. The JSON around them differs between pools.

    items: each message, and the metadata beside it as received, which gives the reason for a negative one. Raises
    MalformedResponseError.
    """
    positive: list[SignedResponse] = []
    negative: NoContractResponse | None = None
    for item, metadata in items:
        try:
            code = verify.read_response(item.message, edition).response_code
        except EXIError as exc:
            raise malformed(f"The message in the response cannot be read: {exc}.", response) from exc
        if code.startswith("OK"):
            positive.append(item)
        elif negative is None:
            reason = limited(metadata, MAX_METADATA)
            negative = NoContractResponse(item.message, edition, code, reason, response.trace_id)
    if positive:
        return Delivered(tuple(positive), response.trace_id)
    if negative is None:
        raise malformed("The response has no item.", response)
    return negative


def parse_report(response: HttpResponse) -> DryRunReport:
    """Read the report of a dry run. Raises MalformedResponseError."""
    try:
        raw = orjson.loads(response.body)
        checks = tuple(
            CheckResult(check["subject"], check["verdict"], check["reason"], tuple(check["evidence"]))
            for check in raw["checks"]
        )
        return DryRunReport(raw["passed"] is True, checks, tuple(raw["warnings"]), raw)
    except (orjson.JSONDecodeError, KeyError, TypeError) as exc:
        raise malformed("The response is not the report of a dry run.", response) from exc
