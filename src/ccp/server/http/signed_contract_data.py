"""POST and PUT of signed contract data: the hot path of both dialects.

POST and PUT are bare ASGI endpoints, because FastAPI's parameter handling costs more than reading the request.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ccp.ids import Fingerprint
from ccp.schemas.common import RoutingHeaders
from ccp.schemas.json_bodies import read_body
from ccp.schemas.opnc import GetSignedContractDataReq, PublishQuery, SignedContractData
from ccp.server.domain.authorization import Operation
from ccp.server.http import query_parameters
from ccp.server.http.admission import WAITED
from ccp.server.http.middleware.fast_path import FastPathEndpoint
from ccp.server.http.middleware.tracing import trace_of
from ccp.server.http.request_context import RequestContext, read_headers
from ccp.server.http.responses import FastJSONResponse
from ccp.server.pool.delivery import DELIVERY_TIMEOUT, DeliveredContract, NegativeResponse
from ccp.server.pool.operations import Pool


class SignedContractDataEndpoint(FastPathEndpoint):
    """ASGI endpoint of POST (deliver) and PUT (publish). A dialect writes the response of POST.

    publication_model: the body of PUT.
    """

    publication_model: type[SignedContractData] = SignedContractData

    def __init__(self, pool: Pool, context: RequestContext) -> None:
        self._pool = pool
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            response = await self._post(scope, receive)
        elif scope["method"] == "PUT":
            response = await self._put(scope, receive)
        else:
            raise HTTPException(405, headers={"Allow": "POST, PUT"})
        await response(scope, receive, send)

    @abstractmethod
    async def _post(self, scope: Scope, receive: Receive) -> Response:
        """Return the response to a vehicle's request."""

    async def _deliver(
        self,
        scope: Scope,
        receive: Receive,
        model: type[RoutingHeaders],
        *,
        max_one: bool = False,
        detect_edition: bool = False,
    ) -> tuple[Any, list[DeliveredContract] | NegativeResponse]:
        """Read a vehicle's request and deliver.

        model: of the headers. max_one: whether the caller takes one contract at most. detect_edition: whether the
        message's edition counts and not the one that the body states. Returns the headers and the outcome. The time
        limit runs from the arrival of the request, without the time in which the caller sends the body.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DELIVERY_TIMEOUT
        headers = Headers(scope=scope)
        caller = await self._context.authenticate(scope, headers, Operation.DELIVER)
        options = read_headers(model, headers)
        pool_id = self._context.resolve_pool_id(caller, options)
        started = loop.time()
        data = await self._context.read_body(receive, headers)
        # Waiting for admission, before the head and again after the body, counts against the deadline.
        deadline += loop.time() - started - scope.get(WAITED, 0.0)
        caller = await self._context.reauthenticate(scope, headers, caller)
        body = read_body(GetSignedContractDataReq, data)
        trace = trace_of(scope)
        trace.edition, trace.message = body.xsdMsgDefNamespace.value, body.certificateInstallationReq
        outcome = await self._pool.deliver(
            caller,
            body.xsdMsgDefNamespace,
            body.certificateInstallationReq,
            broadcast=options.may_ask_peers,
            now=self._context.clock(),
            max_one=max_one,
            detect_edition=detect_edition,
            target_pool=pool_id,
            deadline=deadline,
        )
        if isinstance(outcome, NegativeResponse):
            trace.pcid, trace.failure, trace.edition = outcome.pcid, outcome.reason, outcome.namespace.value
        else:
            trace.emaid, trace.pcid = outcome[0].contract.emaid, outcome[0].contract.pcid
        return options, outcome

    async def _put(self, scope: Scope, receive: Receive) -> Response:
        began = self._context.clock()
        headers = Headers(scope=scope)
        caller = await self._context.authenticate(scope, headers, Operation.PUBLISH)
        dry_run = query_parameters.read(PublishQuery, scope["query_string"], changes=True).dry_run
        target = self._context.resolve_target(self._pool, caller, read_headers(RoutingHeaders, headers))
        data = await self._context.read_body(receive, headers)
        caller = await self._context.reauthenticate(scope, headers, caller)
        body = read_body(self.publication_model, data)
        trace = trace_of(scope)
        trace.emaid, trace.pcid = body.emaid, body.pcid
        now = self._context.clock()
        publication: dict[str, Any] = {
            "emaid": body.emaid,
            "pcid": body.pcid,
            "namespace": body.xsdMsgDefNamespace,
            "message": body.message,
            "root": self._root_of(body),
            "now": now,
            "began": began,
        }
        if dry_run:
            checks, warnings = await target.dry_run(caller, **publication)
            return FastJSONResponse(checks.to_json("CertificateInstallationRes", now, warnings))
        await target.publish(caller, metadata=self._metadata_of(body), **publication)
        return Response(status_code=201)

    def _root_of(self, body: SignedContractData) -> Fingerprint | None:
        """Return the V2G root that a publication names. Raises FieldError."""
        root: Fingerprint | None = body.cpsV2GRootCertificateFingerprint
        return root

    def _metadata_of(self, body: SignedContractData) -> str | None:
        """Return the metadata of a publication. Raises FieldError."""
        return body.metaData
