"""Fetching OCSP responses and CRLs: the HTTP side, under each host's rate limit and circuit breaker.

Source: RFC 6960 appendix A and RFC 5019 clause 5 (OCSP over HTTP), RFC 5280 clause 4.2.1.13 (CRLs over HTTP).
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from typing import Any, Final
from urllib.parse import quote, urlsplit

from ccp.server.external.host_limits import HostKey, HostThrottle, Permit
from ccp.server.external.outbound import Answer, Outbound, OutboundError
from ccp.x509.crl_ocsp import is_ocsp_response
from ccp.x509.http_urls import origin_of
from ccp.x509.revocation_policy import EvidenceError

OCSP_OCTETS: Final = 131_072  # A response with a responder's chain takes some 5,000.
CRL_OCTETS: Final = 16_777_216  # Some 400,000 entries; a CA with more has to split its list or to offer OCSP.
OCSP_SECONDS: Final = 2.0
CRL_SECONDS: Final = 30.0  # The largest list at half a megabyte a second; a publisher does not wait for it.

_MAX_GET_ONLY: Final = 1_024
_POST_REFUSED: Final = frozenset({405, 501})
_LISTS: Final = "<lists>"  # Caller of CRLs: one fetch serves all publishers, so it is in no publisher's queue.


class RevocationFetcher:
    """Belongs to one event loop."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._hosts = HostThrottle()
        self._get_only: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def ocsp(self, url: str, request: bytes, *, issuer: str, caller: str = "") -> bytes:
        """What a responder answers, unread.

        POST first; GET where the responder refuses POST (405, 501, or 400 without an OCSP response), and from then on
        until GET is refused.
        request: OCSPRequest, DER. issuer: `Certificate.issuer_id`. caller: who shares the host's rate in turn.
        Raises Unavailable.
        """
        known = (url, issuer)
        if known in self._get_only:
            self._get_only.move_to_end(known)
            answer = await self._get(url, request, issuer, caller)
            if answer.status == 200:
                return answer.body
            self._get_only.pop(known, None)  # The responder is another one by now.
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

    async def _get(self, url: str, request: bytes, issuer: str, caller: str) -> Answer:
        return await self._ocsp("GET", _get_url(url, request), issuer, caller, {}, b"")

    async def crl(self, url: str, *, issuer: str, guarded: bool, headers: dict[str, str], caller: str = "") -> Answer:
        """The answer with a list, or 304. headers: conditions. caller: for whom the name is resolved.

        Raises Unavailable for any other status.
        """
        answer = await self._call(
            "GET", url, issuer, _LISTS, party=caller, guarded=guarded, headers=headers,
            seconds=CRL_SECONDS, octets=CRL_OCTETS,
        )  # fmt: skip
        if answer.status not in (200, 304):
            raise _status_error(url, answer.status)
        return answer

    async def _ocsp(
        self, method: str, url: str, issuer: str, caller: str, headers: dict[str, str], content: bytes
    ) -> Answer:
        return await self._call(
            method,
            url,
            issuer,
            caller,
            party=caller,
            guarded=True,
            headers={"Accept": "application/ocsp-response", **headers},
            content=content,
            seconds=OCSP_SECONDS,
            octets=OCSP_OCTETS,
        )

    async def _call(self, method: str, url: str, issuer: str, caller: str, **options: Any) -> Answer:
        """One exchange. Raises Unavailable, also for statuses that mean that the host is failing."""
        permit = await self._permit(url, issuer, caller)
        try:
            answer = await self._outbound.request(method, url, owner=issuer, **options)
        except OutboundError as exc:
            if exc.blame:
                exc.retry_after = permit.failure()
            else:
                permit.unused()
            raise
        except BaseException:
            permit.unused()
            raise
        if answer.status == 429 or (answer.status >= 500 and answer.status != 501):
            raise _status_error(url, answer.status, permit.failure())
        permit.success()
        return answer

    async def _permit(self, url: str, issuer: str, caller: str) -> Permit:
        try:
            scheme, host, port = origin_of(url)
        except ValueError as exc:
            raise OutboundError(str(exc), blame=False) from exc
        return await self._hosts.acquire(HostKey(scheme, host, port, issuer), caller)


def host_label(url: str) -> str:
    """The host of an address, for grouping and for the log; empty for what cannot be called."""
    try:
        return origin_of(url)[1]
    except ValueError:
        return ""


def _get_url(url: str, request: bytes) -> str:
    """Source: RFC 6960 appendix A.1: {url}/{url-encoding of the Base64 of the DER}."""
    parts = urlsplit(url)
    path = f"{parts.path.rstrip('/')}/{quote(base64.b64encode(request), safe='')}"
    return parts._replace(path=path, fragment="").geturl()


def _body(answer: Answer, url: str) -> bytes:
    if answer.status != 200:
        raise _status_error(url, answer.status)
    return answer.body


def _status_error(url: str, status: int, retry_after: int | None = None) -> EvidenceError:
    return EvidenceError(
        f"{urlsplit(url).netloc.lower()} answered with the HTTP status {status}.", retry_after=retry_after
    )
