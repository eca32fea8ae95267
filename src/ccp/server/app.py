"""Where objects are services: the application with its store, snapshots and routes."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ccp import __version__
from ccp.errors import CCPError
from ccp.schemas.common import RoutingHeaders
from ccp.schemas.opnc import (
    DeliverHeaders,
    GetSignedContractDataReq,
    PublishQuery,
    SignedContractData,
    SignedContractDataCollection,
)
from ccp.server import logging, settings
from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.access.party_registry import PartyRegistry
from ccp.server.access.rate_limits import RateLimits
from ccp.server.access.trusted_issuers import TrustedIssuers
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.audit.refusals import AccessDenialRecorder
from ccp.server.domain.authorization import Operation
from ccp.server.events import BufferedNotifier, Dispatcher, Subscribers
from ccp.server.events.webhooks import Webhooks
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.services import ExternalServices
from ccp.server.http import errors, openapi_security, query_parameters
from ccp.server.http.client_certificate import ClientCertificates
from ccp.server.http.connection_limits import ConnectionRegistry
from ccp.server.http.middleware.client_address import ClientAddressMiddleware
from ccp.server.http.middleware.fast_path import FastPathMiddleware
from ccp.server.http.middleware.tracing import TraceMiddleware
from ccp.server.http.protocol import STATE as CONNECTIONS
from ccp.server.http.routes import admin, events, metrics, oauth, opcp, opnc, pcp_webhook
from ccp.server.http.routes.health import Health
from ccp.server.metrics import Metrics
from ccp.server.pool.operations import Pool
from ccp.server.pool.peers import RegisteredPeers
from ccp.server.runtime import allocator
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask
from ccp.server.runtime.clock import Clock, ClockGuard, utc_now
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.settings import Settings
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.time_limits import COMMANDS, REQUESTS, TimeLimits
from ccp.server.storage.queries.change_counters import ChangeCounter
from ccp.server.storage.snapshot_refresh import REFRESH_INTERVAL, Snapshot, SnapshotRefresher
from ccp.server.trust import anchors
from ccp.server.trust.anchors import TrustStore
from ccp.server.trust.revocation import RevocationService
from ccp.server.trust.root_sync import root_sync_task

_log = structlog.get_logger("ccp.server.app")
_RELOAD_TIMEOUT: Final = 60.0  # For tables that partners fill, which are sometimes read as a whole, in portions.


def purge_task(pool: Pool, interval: int, clock: Callable[[], Awaitable[datetime]]) -> PeriodicTask:
    """Purge expired and revoked contracts. Every worker does it at its own time; the first one finds something.

    clock: raises Unavailable where it is implausible.
    """

    async def purge() -> None:
        async for _ in pool.purge_expired(await clock()):
            pass

    return PeriodicTask("purge", purge, interval, jitter=0.25)


@dataclass(frozen=True, slots=True)
class Services:
    """A pool and what it rests on."""

    store: Store
    trust: TrustStore
    budget: LoopBudget
    outbound: OutboundClient
    external: ExternalServices
    revocation: RevocationService
    peers: RegisteredPeers
    subscribers: Subscribers
    notifier: BufferedNotifier
    pool: Pool
    background: BackgroundTasks
    guard: ClockGuard
    loop_lag: LoopLag

    async def open(self) -> None:
        await self.store.open()
        await self.refresh_anchors()

    async def refresh_anchors(self) -> None:
        """Take over trusted certificates, and look among them for the CAs that the configuration names."""
        await self.trust.refresh()
        await self.revocation.issuers.refresh()

    async def close(self) -> None:
        await self.revocation.close()
        await self.peers.close()
        await self.outbound.close()
        await self.store.close()


def build_services(
    config: Settings, clock: Clock = utc_now, numbers: Metrics | None = None, limits: TimeLimits = COMMANDS
) -> Services:
    """Build a pool, for a server or for a command. Nothing is opened yet. limits: for the answers of the database."""
    numbers = numbers or Metrics()
    background = BackgroundTasks(numbers.task_failed)
    store = connect(config.database, config.database_connections, limits)
    trust = TrustStore(store)
    budget = LoopBudget()
    loop_lag = LoopLag(numbers.loop_probed)
    outbound = OutboundClient(config.egress_allow_networks, budget=budget)
    external = ExternalServices.from_settings(config, outbound)
    guard = ClockGuard(clock, store.time)
    revocation = RevocationService(store, outbound, config, clock, background=background, checked_now=guard.checked)
    if external.pki_service is not None:
        revocation.issuers.add("operator_cas", external.pki_service.operator_cas)
    peers = RegisteredPeers(
        store,
        lambda: trust.anchors,
        revocation.check_vehicle,
        config,
        numbers,
        outbound.configured_backend,
        budget=budget,
        lag=loop_lag,
    )
    subscribers = Subscribers(store)
    notifier = BufferedNotifier(store, subscribers)
    pool = Pool(store, trust, revocation, peers, external, config, notifier, clock=clock, metrics=numbers)
    return Services(
        store, trust, budget, outbound, external, revocation, peers, subscribers, notifier, pool, background, guard,
        loop_lag,
    )  # fmt: skip


async def run_dispatcher(config: Settings, clock: Clock = utc_now) -> None:
    """Send events and do nothing else, until cancelled. Raises ConfigurationError, Unavailable at the start."""
    store = connect(config.database, config.database_connections)
    subscribers = Subscribers(store)
    followed = (ChangeCounter.PARTIES, ChangeCounter.WEBHOOKS)
    refresher = SnapshotRefresher(
        store, Snapshot("subscribers", followed, subscribers.refresh, timeout=_RELOAD_TIMEOUT)
    )
    background = BackgroundTasks()
    guard = ClockGuard(clock, store.time)
    dispatcher = Dispatcher(store, subscribers, config, clock, background=background, guard=guard)
    await store.open()
    try:
        await refresher.refresh_all()
        refresher.supervise(background)
        background.add(guard.watch_task())
        dispatcher.open()
        await asyncio.get_running_loop().create_future()  # Until it is cancelled.
    finally:
        await dispatcher.close()
        await background.close()
        await store.close()


class Application(FastAPI):
    """The framework's application behind a front of ours, which traces and limits requests and answers the hot ones.

    As middleware of the framework it would stand behind several others, each of which every request would pay for.
    """

    front: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.front if scope["type"] == "http" else self.framework)(scope, receive, send)

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)


def create_app(config: Settings | None = None, *, refresh_interval: float = REFRESH_INTERVAL) -> FastAPI:
    """The application of one worker. Without settings they are read as `ccp serve` handed them over.

    refresh_interval: seconds until changes of other processes take effect.
    """
    served = config is None  # This process serves and does nothing else.
    if served:
        allocator.configure()
        # Of cryptography, about certificates that are refused in the log's own words or are none of ours to judge. Each
        # new sentence would be kept for ever.
        warnings.filterwarnings("ignore", module=r"ccp\.pki\.")
    config = config or settings.load()
    clock = utc_now
    logging.configure(config)
    numbers = Metrics()
    services = build_services(config, clock, numbers, REQUESTS)
    store, trust, external, pool = services.store, services.trust, services.external, services.pool
    background, guard = services.background, services.guard
    others = TrustedIssuers(
        config.issuers, services.outbound, audience=config.public_url, changed=lambda: authority.clear_token_cache()
    )
    authority = AuthorizationServer(store, issuer=config.public_url, lifetime=config.token_lifetime, others=others)
    limits = RateLimits(config, numbers.limited)
    connections = ConnectionRegistry(config, limits.proxies, numbers)
    certificates = ClientCertificates(config.client_certificate_header, limits.proxies)
    edge = opnc.Edge(authority, services.peers, clock, config.max_body, certificates, limits)
    dispatcher = Dispatcher(
        store,
        services.subscribers,
        config,
        clock,
        services.notifier.new_events,
        numbers,
        background,
        guard,
        services.budget,
        connections.admission.has_time,
    )

    refresher = SnapshotRefresher(
        store,
        Snapshot("parties", (ChangeCounter.PARTIES,), authority.refresh_parties, timeout=_RELOAD_TIMEOUT),
        Snapshot("token_keys", (ChangeCounter.TOKEN_KEYS,), lambda: authority.refresh_keys(clock())),
        Snapshot("anchors", (ChangeCounter.ANCHORS,), services.refresh_anchors),
        Snapshot("peers", (ChangeCounter.PEERS,), services.peers.refresh),
        Snapshot(
            "subscribers",
            (ChangeCounter.PARTIES, ChangeCounter.WEBHOOKS),
            services.subscribers.refresh,
            critical=False,
            timeout=_RELOAD_TIMEOUT,
        ),
        interval=refresh_interval,
    )

    pseudonyms, refusals = Pseudonyms(config), AccessDenialRecorder(store)
    health = Health(store, config.drain_period, trust.reasons, background.reasons, guard.reasons)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await services.open()
        await pseudonyms.open(store)
        await refresher.refresh_all()
        for warning in anchors.expiry_warnings(trust.anchors, clock()):
            _log.warning("anchor expiring", warning=warning)
        refresher.supervise(background)
        background.add(guard.watch_task())
        background.add(services.loop_lag.probe_task())
        background.add(services.peers.closing_expired())
        background.add(connections.watching())
        background.add(services.revocation.refresh_task())
        background.add(services.notifier.flush_task())
        background.add(authority.key_rotation_task(config.token_key_lifetime, guard.checked))
        for issuer in others:
            background.add(issuer.refresh_task())
        if external.root_pool is not None:
            background.add(root_sync_task(store, external.root_pool, config.rcp_interval, clock))
        if config.purge_interval:
            background.add(purge_task(pool, config.purge_interval, guard.checked))
        if config.event_dispatch:
            dispatcher.open()
        refusals.open(background)
        if served:
            # What is there by now stays for good: going through it for garbage would stop every request meanwhile.
            gc.collect()
            gc.freeze()
            # The remembered leaves come and go all the time. Going through all of them each time that a quarter is new
            # would do the same, and next to nothing here is garbage that only a collector finds: requests leave none,
            # refused ones neither. What libraries leave is found once in a hundred rounds.
            gc.set_threshold(700, 10, 100)
        try:
            with health.drain_on_sigterm():
                yield {CONNECTIONS: connections}
        finally:
            await dispatcher.close()
            await refusals.close()
            await background.close()
            await services.notifier.close()
            await services.close()

    # No page to read the description on: it would run scripts of a third party beside the token endpoint.
    app = Application(
        title="opnc-ccp",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    changed = services.subscribers.refresh
    webhooks = Webhooks(store, allow_http=config.event_allow_http, on_change=changed, outbound=services.outbound)
    # Before everything else: Starlette goes through routes in order, and these carry the load.
    app.router.routes[:0] = [
        *opnc.router(pool, edge).routes,
        *oauth.routes(authority, edge, issuer=config.public_url, bind=config.certificate_bound_tokens),
        pcp_webhook.pcp_route(edge, pool, config.pcp_webhook_secret),
        *events.router(webhooks, edge).routes,
        *admin.router(PartyRegistry(store), edge).routes,
        *health.routes(),
        *metrics.routes(numbers, edge, config.metrics),
    ]
    if config.opcp:
        app.router.routes[1:1] = opcp.router(pool, edge, config.opcp_no_contract_response).routes
    shortcut = FastPathMiddleware(app.framework, app.router.routes)
    app.front = TraceMiddleware(ClientAddressMiddleware(shortcut, limits), pseudonyms, refusals, numbers)
    app.add_exception_handler(Exception, errors.handle_crash)
    app.add_exception_handler(CCPError, errors.handle_ccp_error)
    app.add_exception_handler(RequestValidationError, errors.handle_validation_error)
    app.add_exception_handler(HTTPException, errors.handle_http_exception)
    app.openapi = lambda: _described(app, config.public_url)  # type: ignore[method-assign]
    return app


def _described(app: FastAPI, public_url: str) -> dict[str, Any]:
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
        for model in (
            SignedContractData,
            GetSignedContractDataReq,
            SignedContractDataCollection,
            *events.BODIES,
            *admin.BODIES,
        ):
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        described["paths"][f"{opnc.BASE}/signedcontractdata"] = {
            "post": _operation(
                Operation.DELIVER,
                "GetSignedContractDataReq",
                "200",
                "SignedContractDataCollection",
                DeliverHeaders,
            ),
            "put": _operation(Operation.PUBLISH, "SignedContractData", "201", None, RoutingHeaders, PublishQuery),
        }
        described["paths"][pcp_webhook.PATH] = {"post": pcp_webhook.description()}
        if any(getattr(route, "path", None) == opcp.ROOTS for route in app.routes):
            opcp.describe(described, _operation)
        openapi_security.describe(described, public_url, opcp.TAG)
        app.openapi_schema = described
    return app.openapi_schema


def _operation(
    operation: Operation,
    body: str,
    status: str,
    answer: str | None,
    headers: type[RoutingHeaders],
    query: type[BaseModel] | None = None,
) -> dict[str, Any]:
    def content(name: str) -> dict[str, Any]:
        return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}

    properties = headers.model_json_schema()["properties"]
    failures = {
        code: {"description": "Error", "content": content("Error")}
        for code in ("400", "401", "403", "404", "413", "415", "500", "503")
    }
    success: dict[str, Any] = {"description": "Success"}
    if answer is not None:
        success["content"] = content(answer)
    return {
        "operationId": operation.value,
        "summary": operation.value,
        "parameters": [
            *({"name": name, "in": "header", "schema": schema} for name, schema in properties.items()),
            *(query_parameters.parameters(query) if query else ()),
        ],
        "requestBody": {"required": True, "content": content(body)},
        "responses": {status: success, **failures},
    }
