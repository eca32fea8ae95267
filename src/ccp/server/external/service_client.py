"""Base class of the clients of external services, and tolerant readers for the JSON that they send.

The published shapes contradict each other in places (OPNC 1.0: `subCa1Certificate` and `subCA1Certificate`, `rootType`
required but not described, wrapper objects that one document has and another omits). So responses are read tolerantly:
member names in any case, wrappers optional, certificates as DER in Base64 or as PEM. What a response claims about a
certificate never counts more than the certificate itself.
"""

from __future__ import annotations

import binascii
from typing import Any, ClassVar, Final

import orjson

from ccp.errors import ChainError, UpstreamError
from ccp.server.external.outbound import HttpResponse, OutboundError
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.x509.certificates import Certificate

_MAX_CERTIFICATE_TEXT: Final = 16_384  # Characters. Certificates of this ecosystem take 800 bytes, others a few 1,000.


class ServiceClient:
    """Client of one external service."""

    name: ClassVar[str]
    """The service in error messages."""

    def __init__(self, connection: ServiceConnection) -> None:
        self._connection = connection
        self.url: Final = connection.url
        self._parsing = BlockingCalls("reading of an answer", max_threads=2, timeout=60.0)

    async def _call(self, method: str, path: str, *, timeout: float, max_bytes: int, body: bytes = b"") -> HttpResponse:  # noqa: ASYNC109
        """Send a request and return the response, whatever its status. Raises UpstreamError if there is none."""
        headers = {"Accept": "application/json"}
        if body:
            headers["Content-Type"] = "application/json"
        try:
            return await self._connection.request(
                method, path, headers=headers, content=body, timeout=timeout, max_bytes=max_bytes
            )
        except OutboundError as exc:
            raise UpstreamError(f"The {self.name} does not answer now; nothing was changed.") from exc


def parse_json(response: HttpResponse, service: str) -> object:
    """Parse a response body. service: for the message. Raises UpstreamError."""
    try:
        return orjson.loads(response.body)
    except orjson.JSONDecodeError as exc:
        raise UpstreamError(f"The {service}'s answer is not JSON.") from exc


def get_member(parsed: object, name: str) -> Any:
    """Return a member of a JSON object; its name may be written in any case. None if it is missing."""
    if not isinstance(parsed, dict):
        return None
    return next((value for key, value in parsed.items() if key.lower() == name.lower()), None)


def unwrap(parsed: object, name: str) -> object:
    """Return the object under a name, or the object itself if the wrapper is missing."""
    inner = get_member(parsed, name)
    return inner if isinstance(inner, dict) else parsed


def parse_certificate(text: object) -> Certificate:
    """Parse a certificate from JSON: DER in Base64 as published, PEM, or PEM in Base64. Raises ChainError."""
    if not isinstance(text, str) or not text or len(text) > _MAX_CERTIFICATE_TEXT:
        raise ChainError("There is no certificate.")
    data = text.encode("utf-8", "replace")
    if b"-----BEGIN" not in data:
        base64 = b"".join(data.split()).rstrip(b"=")
        try:
            data = binascii.a2b_base64(base64 + b"=" * (-len(base64) % 4), strict_mode=True)
        except ValueError as exc:
            raise ChainError("It is not Base64.") from exc
    return Certificate.load_pem(data)[0] if b"-----BEGIN" in data else Certificate.load(data)
