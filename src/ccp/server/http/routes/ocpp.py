"""Get15118EVCertificate: the payloads of OCPP, as a charging back end receives them from a station and returns them.

Every body that is a payload of OCPP gets a payload as the response, which the back end hands on: a refusal has the
status Failed, its reason, and the negative message for the vehicle's session. If the vehicle's message cannot be read,
no message can answer it and `exiResponse` is empty: one with an invented session id would make the vehicle abort with
a misleading error. Errors of HTTP tell the back end what is wrong with its own call.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, Final

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from ccp import verify
from ccp.errors import CCPError, EXIError, TooLong, Unsupported
from ccp.exi.base64_text import message_bytes
from ccp.ids import Namespace
from ccp.schemas import ocpp
from ccp.schemas.common import encode_base64
from ccp.schemas.json_bodies import read_body
from ccp.schemas.ocpp import EVCertificateHeaders, EVCertificateQuery, Get15118EVCertificateRequest, OCPPVersion
from ccp.server.domain.authorization import OCPPOperation
from ccp.server.domain.deliveries import effective_request, refusal
from ccp.server.http import query_parameters
from ccp.server.http.admission import WAITED
from ccp.server.http.errors import retry_after
from ccp.server.http.middleware.fast_path import FastPathEndpoint
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.request_context import RequestContext, read_headers
from ccp.server.http.responses import FastJSONResponse
from ccp.server.pool.delivery import DELIVERY_TIMEOUT, NegativeResponse
from ccp.server.pool.operations import Pool
from ccp.server.pool.turns import OneByOne
from ccp.verify import InstallationRequest

_log = structlog.get_logger("ccp.server.http.ocpp")

TAG: Final = "OCPP"


class EVCertificateEndpoint(FastPathEndpoint):
    """POST /ocpp/v1/get15118EVCertificate."""

    def __init__(self, pool: Pool, context: RequestContext) -> None:
        self._pool = pool
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        response = await self._post(scope, receive)
        await response(scope, receive, send)

    async def _post(self, scope: Scope, receive: Receive) -> Response:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DELIVERY_TIMEOUT
        headers = Headers(scope=scope)
        caller = await self._context.authenticate(scope, headers, OCPPOperation.GET_15118_EV_CERTIFICATE)
        query = query_parameters.read(EVCertificateQuery, scope["query_string"], changes=True)
        options: EVCertificateHeaders = read_headers(EVCertificateHeaders, headers)
        pool_id = self._context.resolve_pool_id(caller, options)
        started = loop.time()
        data = await self._context.read_body(receive, headers)
        # As for a vehicle's request in OPNC: the time in which the body arrives does not count.
        deadline += loop.time() - started - scope.get(WAITED, 0.0)
        caller = await self._context.reauthenticate(scope, headers, caller)
        payload = read_body(Get15118EVCertificateRequest, data)
        version = query.version or payload.version
        max_response = query.max_response or version.limits.response
        trace, now = trace_of(scope), self._context.clock()
        trace.message = payload.exiRequest
        try:
            request = _read(payload, trace.id)
        except EXIError as exc:
            trace.failure = _refusal(payload, version) or exc
            return _failed("", trace.failure, version)
        trace.pcid, trace.edition = verify.claimed_pcid(request), request.namespace.value
        trace.failure = _refusal(payload, version)
        if trace.failure is not None:
            message = verify.negative_response(request.namespace, request.session_id, trace.failure, now)
            return _failed(encode_base64(message), trace.failure, version)
        outcome = await self._pool.deliver(
            caller,
            request.namespace,
            effective_request(request, payload.maximumContractCertificateChains, payload.prioritizedEMAIDs or ()),
            broadcast=query.broadcast and options.hop is None,
            now=now,
            one_by_one=OneByOne(_digest(options.idempotency_key), max_response),
            target_pool=pool_id,
            deadline=deadline,
        )
        if isinstance(outcome, NegativeResponse):
            trace.failure = outcome.reason
            return _failed(encode_base64(outcome.response), outcome.reason, version)
        (delivered,) = outcome
        trace.emaid, trace.pcid = delivered.contract.emaid, delivered.contract.pcid
        answer: dict[str, Any] = {"status": "Accepted", "exiResponse": encode_base64(delivered.response)}
        if version is not OCPPVersion.V2_0_1 and request.namespace is Namespace.ISO20:
            answer["remainingContracts"] = delivered.remaining
        return FastJSONResponse(answer)


def routes(pool: Pool, context: RequestContext) -> list[BaseRoute]:
    """Return the routes of OCPP."""
    return [Route(ocpp.PATH, EVCertificateEndpoint(pool, context))]


def _read(payload: Get15118EVCertificateRequest, trace_id: str) -> InstallationRequest:
    """Read the vehicle's request, whose bytes show the edition. Raises EXIError.

    Some back ends and stations state a fixed edition for every vehicle, so a different one is only logged.
    """
    request = verify.read_request(message_bytes(payload.exiRequest), None)
    stated = ocpp.edition_of(payload.iso15118SchemaVersion)
    if stated is not request.namespace:
        # The text itself is not logged, because it may contain anything.
        _log.info(
            "schema version differs from message",
            trace_id=trace_id,
            stated=None if stated is None else stated.value,
            edition=request.namespace.value,
        )
    return request


def _refusal(payload: Get15118EVCertificateRequest, version: OCPPVersion) -> CCPError | None:
    """Why a payload is refused whatever its message contains; None if it is not."""
    if payload.action == "Update":
        return Unsupported("action : Update is not supported; the vehicle gets a new contract with Install.")
    if len(payload.exiRequest) > version.limits.request:
        return TooLong(
            f"exiRequest has {len(payload.exiRequest)} characters; OCPP {version} allows {version.limits.request}."
        )
    return None


def _failed(message: str, reason: CCPError, version: OCPPVersion) -> Response:
    """The payload of a refusal. message: the negative message in Base64, or empty."""
    code, info = refusal(reason, version.limits.info)
    answer = {
        "status": "Failed",
        "exiResponse": message,
        "statusInfo": {"reasonCode": code, "additionalInfo": info},
    }
    return FastJSONResponse(answer, headers=retry_after(reason))


def _digest(key: str | None) -> str | None:
    return None if key is None else hashlib.sha256(key.encode()).hexdigest()[:32]
