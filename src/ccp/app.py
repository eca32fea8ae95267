"""Where objects are built: the application with its store, snapshots and routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ccp import __version__, settings, wire
from ccp.api import errors, oauth, opnc
from ccp.api.trace import Tracing
from ccp.auth import Authority, Operation
from ccp.errors import CCPError, Unavailable
from ccp.peers import NoPeers
from ccp.pki.evidence import Unchecked
from ccp.pool import Pool
from ccp.settings import Settings
from ccp.store import Store, changes, connect
from ccp.store.changes import Topic
from ccp.trust import Trust

_log = structlog.get_logger("ccp.app")
_REFRESH_SECONDS: Final = 1.0


def now() -> datetime:
    return datetime.now(UTC)


class Refresher:
    """Takes over changes of parties, anchors and keys that other processes made, within a second or so."""

    def __init__(self, store: Store, topics: dict[Topic, Callable[[], Awaitable[None]]]) -> None:
        self._store = store
        self._topics = topics
        self._seen: dict[str, int] = {}

    async def once(self) -> None:
        numbers = await self._store.read(changes.numbers())
        for topic, refresh in self._topics.items():
            if numbers.get(topic, 0) != self._seen.get(topic):
                await refresh()
                self._seen[topic] = numbers.get(topic, 0)

    async def forever(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            try:
                await self.once()
            except CCPError as exc:
                _log.warning("refresh failed", reason=str(exc))


def create(config: Settings | None = None) -> FastAPI:
    """The application of one worker. Without settings they are read as `ccp serve` handed them over."""
    config = config or settings.load()
    configure_logging(config)
    store = connect(config.database)
    authority = Authority(store, issuer=config.public_url, lifetime=config.token_lifetime)
    trust = Trust(store)
    peers = NoPeers()
    pool = Pool(store, trust, Unchecked(), peers, config)
    edge = opnc.Edge(authority, peers, now, config.max_body)
    refresher = Refresher(
        store,
        {
            Topic.PARTIES: authority.refresh_parties,
            Topic.TOKEN_KEYS: lambda: authority.refresh_keys(now()),
            Topic.ANCHORS: trust.refresh,
        },
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await store.open()
        await refresher.once()
        refreshing = asyncio.create_task(refresher.forever())
        try:
            yield
        finally:
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing
            await store.close()

    async def health(request: Any) -> Response:
        try:
            await store.read(changes.numbers())
        except Unavailable:
            return Response(orjson.dumps({"status": "unavailable"}), 503, media_type="application/json")
        return Response(orjson.dumps({"status": "ok"}), media_type="application/json")

    app = FastAPI(title="opnc-ccp", version=__version__, lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    # Before everything else: Starlette goes through routes in order, and these carry the load.
    app.router.routes[:0] = [
        *opnc.router(pool, edge).routes,
        oauth.token_route(authority, edge),
        Route("/health", health),
    ]
    app.add_middleware(Tracing)
    app.add_exception_handler(CCPError, errors.deliberate)
    app.add_exception_handler(RequestValidationError, errors.invalid)
    app.add_exception_handler(HTTPException, errors.unrouted)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the operations that stand outside of the framework's parameter machinery."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        # The framework describes an answer of its own that is never given: what is wrong with a request is 400 here.
        for item in described["paths"].values():
            for operation in item.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for model in (wire.SignedContractData, wire.GetSignedContractDataReq, wire.SignedContractDataCollection):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        described["paths"][f"{opnc.BASE}/signedcontractdata"] = {
            "post": _operation(
                Operation.DELIVER,
                "GetSignedContractDataReq",
                "200",
                "SignedContractDataCollection",
                opnc.DeliverHeaders,
            ),
            "put": _operation(Operation.PUBLISH, "SignedContractData", "201", None, opnc.Routing),
        }
        app.openapi_schema = described
    return app.openapi_schema


def _operation(
    operation: Operation, body: str, status: str, answer: str | None, headers: type[opnc.Routing]
) -> dict[str, Any]:
    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    properties = headers.model_json_schema()["properties"]
    failures = {
        code: {"description": "Error", "content": content("Error")}
        for code in ("400", "401", "403", "404", "413", "500", "503")
    }
    success: dict[str, Any] = {"description": "Success"}
    if answer is not None:
        success["content"] = content(answer)
    return {
        "operationId": operation.value,
        "summary": operation.value,
        "parameters": [{"name": name, "in": "header", "schema": schema} for name, schema in properties.items()],
        "requestBody": {"required": True, "content": content(body)},
        "responses": {status: success, **failures},
    }


def configure_logging(config: Settings) -> None:
    """One event a line on standard error, as JSON or for people."""
    last: Any = (
        structlog.dev.ConsoleRenderer()
        if config.log_format == "console"
        else structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event, default=str).decode())
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, config.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
