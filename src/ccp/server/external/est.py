"""Client of an EST server: CA certificates, enrolment and renewal of certificates. Source: RFC 7030.

The pool passes on what the server answers only after it has checked it: certificates alone, in a PKCS#7 message that
the pool writes itself, never headers or pages of the server.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final
from urllib.parse import urlencode, urlsplit

import structlog

from ccp.client.untrusted_text import plain
from ccp.errors import ChainError, FieldError, InputError, NotFound, Unavailable, UpstreamError, strip_tracebacks
from ccp.errors.codes import ErrorCode
from ccp.server.external.host_limits import KeyedSlots
from ccp.server.external.outbound import HttpResponse, OutboundError
from ccp.server.external.service_client import ServiceClient
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.settings.services import Dialect
from ccp.x509.certificates import Certificate
from ccp.x509.certs_only import read_certs_only
from ccp.x509.signing_requests import SigningRequest, unwrap

_log = structlog.get_logger("ccp.server.external.est")

TIMEOUT: Final = 15.0
"""Seconds for one exchange. A CA may need an HSM and a queue; the charging station back end waits for it."""
_MAX_BYTES: Final = 131_072  # Of an answer: some 70 certificates in Base64.
_MAX_PER_CALLER: Final = 4  # Concurrent exchanges of one party.
_MAX_REASON: Final = 200  # Characters of the server's explanation.
_DEFAULT_WAIT: Final = 60  # Seconds, where the server states no time to wait. RFC 7030 requires it to state one.
_MAX_WAIT: Final = 86_400
_WELL_KNOWN: Final = "/.well-known/est"


class ESTOperation(StrEnum):
    """Operations of EST that are passed on, by the last part of their paths. Source: RFC 7030 clause 3.2.2."""

    CA_CERTS = "cacerts"
    SIMPLE_ENROLL = "simpleenroll"
    SIMPLE_REENROLL = "simplereenroll"


@dataclass(frozen=True, slots=True)
class CASelection:
    """The CA that a request is for.

    label: of the CA at the EST server; empty for its default. edition: "ISO15118-2", "ISO15118-20", or None for the
    server's default. algorithm: "secp256r1", "secp521r1", "ed448", or None.
    """

    label: str
    edition: str | None = None
    algorithm: str | None = None


@dataclass(frozen=True, slots=True)
class Pending:
    """The EST server has accepted a request, and has not issued the certificate yet (status 202).

    retry_after: seconds after which the same request should be sent again. Source: RFC 7030 clause 4.2.3.
    """

    retry_after: int


class ESTRefusal(InputError):
    """The EST server refuses a request because of what it contains."""

    outcome = "est_refused"
    code = ErrorCode.ENROLMENT_REFUSED


class ESTServer(ServiceClient):
    """EST operations on one server."""

    name = "EST server"

    def __init__(self, connection: ServiceConnection) -> None:
        """With `est_dialect = "opnc"` in the settings, the server has the paths and parameters of the PKI API of OPNC.

        By default and with "opcp" it has those of RFC 7030.
        """
        super().__init__(connection)
        given = connection.settings
        self._opnc = "dialect" in given.model_fields_set and given.dialect is Dialect.OPNC
        self._slots = KeyedSlots(_MAX_PER_CALLER)

    async def ca_certificates(self, selection: CASelection, caller: str) -> tuple[Certificate, ...]:
        """Fetch the certificates of a CA, in the server's order. caller: client id, which limits are counted for.

        Raises NotFound, Unavailable, UpstreamError.
        """
        response = await self._exchange("GET", ESTOperation.CA_CERTS, selection, caller)
        self._check_status(response, selection)
        return await self._certificates(response)

    async def enrol(
        self, operation: ESTOperation, request: SigningRequest, selection: CASelection, caller: str
    ) -> tuple[Certificate, ...] | Pending:
        """Pass a request on. Returns the certificate for its key first, then others that the server sends with it.

        Not retried: the server may have issued a certificate although its answer was lost. Raises ESTRefusal, NotFound,
        Unavailable, UpstreamError.
        """
        body = base64.encodebytes(request.der)
        response = await self._exchange("POST", operation, selection, caller, body)
        if response.status == 202:
            return Pending(_wait(response, _DEFAULT_WAIT))
        self._check_status(response, selection)
        found = await self._certificates(response)
        issued = [certificate for certificate in found if request.is_answered_by(certificate)]
        if len(issued) != 1:
            raise UpstreamError("The EST server's answer has no certificate for the key of the request.")
        return (*issued, *(certificate for certificate in found if certificate is not issued[0]))

    async def _exchange(
        self, method: str, operation: ESTOperation, selection: CASelection, caller: str, body: bytes = b""
    ) -> HttpResponse:
        headers = {"Accept": "application/pkcs7-mime"}
        if body:
            headers |= {"Content-Type": "application/pkcs10", "Content-Transfer-Encoding": "base64"}
        try:
            async with asyncio.timeout(TIMEOUT), self._slots.hold(caller):
                return await self._connection.request(
                    method,
                    self._path(operation, selection),
                    headers=headers,
                    content=body,
                    timeout=TIMEOUT,
                    max_bytes=_MAX_BYTES,
                )
        except (TimeoutError, OutboundError) as exc:
            raise UpstreamError("The EST server does not answer now.") from strip_tracebacks(exc)

    def _path(self, operation: ESTOperation, selection: CASelection) -> str:
        """The path below the server's URL, whose path may be empty, or end in /.well-known or /.well-known/est."""
        if self._opnc:
            query = {
                "caDomain": selection.label,
                "iso15118Version": selection.edition or "ISO15118-2",
                **({"algorithm": selection.algorithm} if selection.algorithm else {}),
            }
            return f"/est/{operation}?{urlencode(query)}"
        parts = [selection.label, operation.value, selection.edition, selection.algorithm]
        prefix = _WELL_KNOWN if not urlsplit(self.url).path else ""
        return "/".join((prefix, *(part for part in parts if part)))

    def _check_status(self, response: HttpResponse, selection: CASelection) -> None:
        """Translate any status but 200. Raises ESTRefusal, NotFound, Unavailable, UpstreamError."""
        status = response.status
        if status == 200:
            return
        _log.warning("est request refused", status=status, reason=plain(_text(response), _MAX_REASON))
        if status in (400, 409, 422):
            raise ESTRefusal(f"The EST server refuses the request (status {status}){_reason(response)}.")
        if status == 404:
            label = f"the CA {selection.label}" if selection.label else "its CA"
            raise NotFound(
                f"The EST server does not have this operation for {label}.", code=ErrorCode.ENROLMENT_NOT_FOUND
            )
        if status in (401, 403):
            raise UpstreamError("The EST server does not accept the credentials of this pool.")
        if status in (429, 503):
            raise Unavailable("The EST server cannot answer now; try again later.", retry_after=_wait(response, 5))
        raise UpstreamError(f"The EST server answered with status {status}.")

    async def _certificates(self, response: HttpResponse) -> tuple[Certificate, ...]:
        """The certificates of an answer, which may be up to 100 KiB that a thread reads. Raises UpstreamError."""
        try:
            return await self._parsing.run(lambda: read_certs_only(unwrap(response.body, "PKCS#7 message")))
        except (ChainError, FieldError) as exc:
            _log.warning("est answer rejected", reason=str(exc))
            raise UpstreamError("The EST server's answer is not a PKCS#7 message of certificates only.") from exc


def _wait(response: HttpResponse, default: int) -> int:
    """Seconds to wait by the header Retry-After, which may be a date: at least one, at most a day.

    A date counts from the server's own date. Source: RFC 9110 clause 10.2.3.
    """
    text = response.headers.get("retry-after", "").strip()
    seconds: float = default
    if text.isascii() and text.isdigit() and len(text) < 10:
        seconds = int(text)
    elif text:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            until, sent = (parsedate_to_datetime(each) for each in (text, response.headers.get("date", "")))
            seconds = (until - sent).total_seconds()
    return min(max(1, int(seconds)), _MAX_WAIT)


def _text(response: HttpResponse) -> str:
    """An explanation in plain text; empty if the body is anything else, such as a page."""
    text = response.body.decode("utf-8", "replace") if response.media_type == "text/plain" else ""
    return "" if "<" in text else text.strip()


def _reason(response: HttpResponse) -> str:
    text = plain(" ".join(_text(response).split()), _MAX_REASON).rstrip(". ")
    return f": {text}" if text else ""
