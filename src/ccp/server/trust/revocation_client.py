"""HTTP client for OCSP responders and CRLs, with a rate limit and a circuit breaker per host.

Source: RFC 6960 appendix A and RFC 5019 clause 5 (OCSP over HTTP), RFC 5280 clause 4.2.1.13 (CRLs over HTTP).
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from typing import Any, Final
from urllib.parse import quote, urlsplit

from ccp.server.external.host_limits import HostKey, HostThrottle, Permit
from ccp.server.external.outbound import HttpResponse, OutboundClient, OutboundError
from ccp.x509.crl_ocsp import is_ocsp_response
from ccp.x509.http_urls import origin_of
from ccp.x509.revocation_evidence import EvidenceError

OCSP_MAX_BYTES: Final = 131_072  # A response with the responder's chain takes some 5,000.
CRL_MAX_BYTES: Final = 16_777_216  # Some 400,000 entries; a larger CA has to split its CRL or offer OCSP.
OCSP_TIMEOUT: Final = 2.0
CRL_TIMEOUT: Final = 30.0  # The largest CRL at half a megabyte per second; a publisher does not wait for it.

_MAX_GET_ONLY: Final = 1_024
_POST_REFUSED: Final = frozenset({405, 501})
_CRLS: Final = "<crls>"  # Caller in the queues of hosts: one CRL fetch serves all publishers.


class RevocationClient:
    """Requests to OCSP responders and CRL servers. Belongs to one event loop."""

    def __init__(self, outbound: OutboundClient) -> None:
        self._outbound = outbound
        self._hosts = HostThrottle()
        self._get_only: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def ocsp(self, url: str, request: bytes, *, issuer: str, caller: str = "") -> bytes:
        """Return the unparsed body of an OCSP response.

        POST first. If the responder refuses POST (405, 501, or 400 without an OCSP response), GET, and GET for later
        requests too, until it is refused.
        request: OCSPRequest, DER. issuer: `Certificate.issuer_key_id`. caller: for the queue of the host.
        Raises Unavailable.
        """
        known = (url, issuer)
        if known in self._get_only:
            self._get_only.move_to_end(known)
            answer = await self._get(url, request, issuer, caller)
            if answer.status == 200:
                return answer.body
            self._get_only.pop(known, None)  # The responder has changed.
        headers = {"Content-Type": "application/ocsp-request"}
        answer = await self._ocsp("POST", url, issuer, caller, headers, request)
        refused = answer.status in _POST_REFUSED or (answer.status == 400 and not is_ocsp_response(answer.body))
        if not refused:
            return _body(answer, url)
        body = _body(await self._get(url, request, issuer, caller), url)
        if is_ocsp_response(body):
            self._get_only[known] = None
            if len(self._get_only) > _MAX_GET_ONLY:
                self._get_only.popitem(last=False)
        return body

    async def _get(self, url: str, request: bytes, issuer: str, caller: str) -> HttpResponse:
        return await self._ocsp("GET", _get_url(url, request), issuer, caller, {}, b"")

    async def crl(
        self, url: str, *, issuer: str, block_private: bool, headers: dict[str, str], caller: str = ""
    ) -> HttpResponse:
        """Return the response with a CRL, or 304. headers: conditions. caller: for whose limit the name is resolved.

        Raises Unavailable for any other status.
        """
        answer = await self._call(
            "GET", url, issuer, _CRLS, party=caller, block_private=block_private, headers=headers,
            timeout=CRL_TIMEOUT, max_bytes=CRL_MAX_BYTES, service="crl",
        )  # fmt: skip
        if answer.status not in (200, 304):
            raise _status_error(url, answer.status)
        return answer

    async def _ocsp(
        self, method: str, url: str, issuer: str, caller: str, headers: dict[str, str], content: bytes
    ) -> HttpResponse:
        return await self._call(
            method,
            url,
            issuer,
            caller,
            party=caller,
            block_private=True,
            headers={"Accept": "application/ocsp-response", **headers},
            content=content,
            timeout=OCSP_TIMEOUT,
            max_bytes=OCSP_MAX_BYTES,
            service="ocsp",
        )

    async def _call(self, method: str, url: str, issuer: str, caller: str, **options: Any) -> HttpResponse:
        """One exchange. Raises Unavailable, also for 429 and 5xx except 501, which count as failures of the host."""
        permit = await self._permit(url, issuer, caller)
        try:
            answer = await self._outbound.request(method, url, owner=issuer, **options)
        except OutboundError as exc:
            if exc.host_failed:
                exc.retry_after = permit.record_failure()
            else:
                permit.release()
            raise
        except BaseException:
            permit.release()
            raise
        if answer.status == 429 or (answer.status >= 500 and answer.status != 501):
            raise _status_error(url, answer.status, permit.record_failure())
        permit.record_success()
        return answer

    async def _permit(self, url: str, issuer: str, caller: str) -> Permit:
        try:
            scheme, host, port = origin_of(url)
        except ValueError as exc:
            raise OutboundError(str(exc), host_failed=False) from exc
        return await self._hosts.acquire(HostKey(scheme, host, port, issuer), caller)


def host_label(url: str) -> str:
    """The host of a URL, for grouping and for the log; empty if the URL cannot be called."""
    try:
        return origin_of(url)[1]
    except ValueError:
        return ""


def _get_url(url: str, request: bytes) -> str:
    """Source: RFC 6960 appendix A.1: {url}/{url-encoding of the Base64 of the DER}."""
    parts = urlsplit(url)
    path = f"{parts.path.rstrip('/')}/{quote(base64.b64encode(request), safe='')}"
    return parts._replace(path=path, fragment="").geturl()


def _body(answer: HttpResponse, url: str) -> bytes:
    if answer.status != 200:
        raise _status_error(url, answer.status)
    return answer.body


def _status_error(url: str, status: int, retry_after: int | None = None) -> EvidenceError:
    return EvidenceError(
        f"{urlsplit(url).netloc.lower()} answered with the HTTP status {status}.", retry_after=retry_after
    )
