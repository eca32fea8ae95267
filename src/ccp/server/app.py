"""Composition root: builds the services of a pool and the ASGI application on top of them."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ccp import __version__
from ccp.errors import CCPError
from ccp.server import logging, reloading, tracing
from ccp.server.access.authorization_server import AuthorizationServer
from ccp.server.access.party_registry import PartyRegistry
from ccp.server.access.rate_limits import RateLimits
from ccp.server.access.trusted_issuers import TrustedIssuers
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.events import BufferedNotifier, Dispatcher, Subscribers
from ccp.server.events.contract_checks import ContractChecks
from ccp.server.events.ping import Pinger
from ccp.server.events.sending import WebhookSender
from ccp.server.events.webhooks import Webhooks
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.services import ExternalServices
from ccp.server.http import errors, openapi
from ccp.server.http.client_certificate import ClientCertificates
from ccp.server.http.connection_limits import ConnectionRegistry
from ccp.server.http.middleware.client_address import ClientAddressMiddleware
from ccp.server.http.middleware.fast_path import FastPathMiddleware
from ccp.server.http.middleware.tracing import TraceMiddleware
from ccp.server.http.protocol import STATE as CONNECTIONS
from ccp.server.http.request_context import RequestContext
from ccp.server.http.routes import (
    admin,
    admin_peers,
    admin_refusals,
    documentation,
    est,
    events,
    oauth,
    ocpp,
    opcp,
    opcp_roots,
    opnc,
    pcp_webhook,
    subscribed_events,
)
from ccp.server.http.routes import metrics as metrics_route
from ccp.server.http.routes import refusals as refusal_routes
from ccp.server.http.routes.health import Health
from ccp.server.http.tls import Loop as TLSLoop
from ccp.server.http.tls import TLSFiles
from ccp.server.metrics import Metrics
from ccp.server.pool.enrolment import Enrolment
from ccp.server.pool.event_sources import EventSources
from ccp.server.pool.operations import Pool
from ccp.server.pool.peer_registry import PeerRegistry
from ccp.server.pool.peers import RegisteredPeers
from ccp.server.recorders import Recorders
from ccp.server.runtime import allocator, start_files
from ccp.server.runtime.background import BackgroundTasks, PeriodicTask
from ccp.server.runtime.clock import Clock, ClockGuard, utc_now
from ccp.server.runtime.loop_budget import LoopBudget
from ccp.server.runtime.loop_lag import LoopLag
from ccp.server.settings import Settings
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.schema import is_postgres
from ccp.server.storage.engine.time_limits import COMMANDS, REQUESTS, TimeLimits
from ccp.server.storage.queries.change_counters import ChangeCounter
from ccp.server.storage.snapshot_refresh import REFRESH_INTERVAL, Snapshot, SnapshotRefresher
from ccp.server.trust import anchors
from ccp.server.trust.anchor_expiry import AnchorExpiry
from ccp.server.trust.anchors import TrustStore
from ccp.server.trust.revocation import RevocationService
from ccp.server.trust.root_catalogue import CurrentRootCatalogue
from ccp.server.trust.root_sync import SyncTrigger, root_sync_task

if TYPE_CHECKING:
    from ccp.server.tracing.spans import Spans

_log = structlog.get_logger("ccp.server.app")
_RELOAD_TIMEOUT: Final = 60.0  # For tables that grow with the partners; a full reload reads them in portions.


def purge_task(pool: Pool, interval: int, clock: Callable[[], Awaitable[datetime]]) -> PeriodicTask:
    """Return the background task that purges expired and revoked contracts.

    It runs in every worker, at random times; the first one purges, the others find nothing. interval: seconds. clock:
    raises Unavailable if the time is implausible.
    """

    async def purge() -> None:
        async for _ in pool.purge_expired(await clock()):
            pass

    return PeriodicTask("purge", purge, interval, jitter=0.25)


@dataclass(frozen=True, slots=True)
class Services:
    """A pool and the services that it depends on."""

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
        """Connect to the database and load the trust anchors."""
        await self.store.open()
        await self.refresh_anchors()

    async def refresh_anchors(self) -> None:
        """Load the trust anchors, and find the configured CAs among them."""
        await self.trust.refresh()
        await self.revocation.issuers.refresh()

    async def close(self) -> None:
        """Close all connections."""
        await self.revocation.close()
        await self.peers.close()
        await self.outbound.close()
        await self.store.close()


def build_services(
    config: Settings,
    clock: Clock = utc_now,
    metrics: Metrics | None = None,
    time_limits: TimeLimits = COMMANDS,
    spans: Spans | None = None,
) -> Services:
    """Build a pool, for a server or for a command, without opening it.

    time_limits: of database queries. spans: traces requests; None for none.
    """
    metrics = metrics or Metrics()
    background = BackgroundTasks(metrics.task_failed)
    store = connect(config.database, config.database_connections, time_limits, config.secrets_key_file)
    if spans is not None:
        from ccp.server.storage.traced_store import TracedStore

        store = TracedStore(store, spans, "postgresql" if is_postgres(config.database) else "sqlite")
    trust = TrustStore(store)
    budget = LoopBudget()
    loop_lag = LoopLag(metrics.loop_probed)
    outbound = OutboundClient(
        config.egress_allow_networks, budget=budget, observe=metrics.service_request_ended, spans=spans
    )
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
        metrics,
        outbound.configured_backend,
        budget=budget,
        lag=loop_lag,
        spans=spans,
    )
    subscribers = Subscribers(store)
    notifier = BufferedNotifier(store, subscribers)
    pool = Pool(store, trust, revocation, peers, external, config, notifier, clock=clock, metrics=metrics, spans=spans)
    return Services(
        store, trust, budget, outbound, external, revocation, peers, subscribers, notifier, pool, background, guard,
        loop_lag,
    )  # fmt: skip


async def run_dispatcher(config: Settings, clock: Clock = utc_now) -> None:
    """Send events until cancelled, without an HTTP server. Raises ConfigurationError and Unavailable at the start."""
    store = connect(config.database, config.database_connections, secrets_key_file=config.secrets_key_file)
    subscribers = Subscribers(store)
    topics = (ChangeCounter.PARTIES, ChangeCounter.WEBHOOKS)
    refresher = SnapshotRefresher(store, Snapshot("subscribers", topics, subscribers.refresh, timeout=_RELOAD_TIMEOUT))
    background = BackgroundTasks()
    guard = ClockGuard(clock, store.time)
    dispatcher = Dispatcher(store, subscribers, config, clock, background=background, guard=guard)
    await store.open()
    try:
        await refresher.refresh_all()
        refresher.supervise(background)
        background.add(guard.watch_task())
        dispatcher.open()
        await asyncio.get_running_loop().create_future()  # Until cancelled.
    finally:
        await dispatcher.close()
        await background.close()
        await store.close()


class Application(FastAPI):
    """The FastAPI application behind the pool's own middleware, which traces, limits and answers hot requests.

    Registered with FastAPI, this middleware would run behind several issuers, at a cost for every request.
    """

    middleware_chain: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.middleware_chain if scope["type"] == "http" else self.framework)(scope, receive, send)

    async def framework(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call FastAPI."""
        await super().__call__(scope, receive, send)


def create_app(config: Settings | None = None, *, refresh_interval: float = REFRESH_INTERVAL) -> FastAPI:
    """Return the application of one worker. config: None reads the settings that `ccp serve` passed on.

    refresh_interval: seconds until changes of other processes take effect.
    """
    is_worker = config is None  # The process does nothing but serve.
    if is_worker:
        reloading.hold_signal()
        allocator.configure()
        # cryptography warns about unusual certificates. The pool reports those that it rejects, and the warnings module
        # would keep each new text in memory.
        warnings.filterwarnings("ignore", module=r"ccp\.(x509|server\.diagnosis)\.")
    config = config or reloading.settings_of_worker()
    clock = utc_now
    logging.configure(config)
    metrics = Metrics()
    spans = tracing.start(__version__)
    services = build_services(config, clock, metrics, REQUESTS, spans)
    store, trust, external, pool = services.store, services.trust, services.external, services.pool
    background, guard = services.background, services.guard
    issuers = TrustedIssuers(
        config.issuers, services.outbound, audience=config.public_url, changed=lambda: authority.clear_token_cache()
    )
    authority = AuthorizationServer(store, issuer=config.public_url, lifetime=config.token_lifetime, others=issuers)
    limits = RateLimits(config, metrics.limited)
    connections = ConnectionRegistry(config, limits.proxies, metrics)
    certificates = ClientCertificates(config.client_certificate_header, limits.proxies)
    context = RequestContext(authority, services.peers, clock, config.max_body, certificates, limits)
    dispatcher = Dispatcher(
        store,
        services.subscribers,
        config,
        clock,
        services.notifier.new_events,
        metrics,
        background,
        guard,
        services.budget,
        connections.admission.has_time,
        spans,
    )

    root_sync = SyncTrigger()
    sources = EventSources(store, root_sync.request)
    refresher = SnapshotRefresher(
        store,
        Snapshot("parties", (ChangeCounter.PARTIES,), authority.refresh_parties, timeout=_RELOAD_TIMEOUT),
        Snapshot("token_keys", (ChangeCounter.TOKEN_KEYS,), lambda: authority.refresh_keys(clock())),
        Snapshot("anchors", (ChangeCounter.ANCHORS,), services.refresh_anchors),
        Snapshot("peers", (ChangeCounter.PEERS,), services.peers.refresh),
        Snapshot("event_sources", (ChangeCounter.SUBSCRIPTIONS,), sources.refresh),
        Snapshot("negative_answers", (ChangeCounter.NEGATIVES,), services.peers.negatives.refresh, critical=False),
        Snapshot(
            "subscribers",
            (ChangeCounter.PARTIES, ChangeCounter.WEBHOOKS),
            services.subscribers.refresh,
            critical=False,
            timeout=_RELOAD_TIMEOUT,
        ),
        interval=refresh_interval,
    )

    pseudonyms = Pseudonyms(config)
    recorders = Recorders.build(
        config,
        store,
        trust,
        services.revocation.rules,
        services.outbound,
        metrics,
        clock,
        guard,
        queues={
            "delivery_notices": lambda: services.notifier.queued,
            "event_deliveries": lambda: dispatcher.queued,
            "evidence_fetches": lambda: services.revocation.queued,
        },
        overloaded=lambda: connections.admission.overloaded,
    )
    site = documentation.site_of(config, may_build=is_worker)
    health = Health(store, config.drain_period, trust.reasons, background.reasons, guard.reasons)

    def reload_tls(changed: Settings) -> None:
        if changed.tls_cert is not None and isinstance(loop := asyncio.get_running_loop(), TLSLoop):
            loop.reload_tls(TLSFiles(changed.tls_cert, changed.tls_key, changed.tls_client_ca))

    reloader = reloading.SettingsReloader(
        config, logging.set_level, limits.configure, services.peers.configure, reload_tls
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        await services.open()
        await pseudonyms.open(store)
        if console is not None:
            await console.open()
        await refresher.refresh_all()
        for warning in anchors.expiry_warnings(trust.anchors, clock()):
            _log.warning("anchor expiring", warning=warning)
        refresher.supervise(background)
        background.add(guard.watch_task())
        background.add(services.loop_lag.probe_task())
        background.add(services.peers.closing_expired())
        background.add(services.peers.negatives.write_task())
        background.add(connections.reaper())
        background.add(services.revocation.refresh_task())
        background.add(services.notifier.flush_task())
        background.add(authority.key_rotation_task(config.token_key_lifetime, guard.checked))
        for issuer in issuers:
            background.add(issuer.refresh_task())
        if external.root_pool is not None:
            background.add(
                root_sync_task(store, external.root_pool, config.rcp_interval, clock, config.rcp_roles, root_sync.wake)
            )
        background.add(AnchorExpiry(store, trust, guard.checked).task(config.event_check_interval))
        committed = services.notifier.change_committed
        checks = ContractChecks(store, services.subscribers, config, clock, guard.checked, committed)
        background.add(checks.task())
        if config.purge_interval:
            background.add(purge_task(pool, config.purge_interval, guard.checked))
        if config.event_dispatch:
            dispatcher.open()
        recorders.open(background)
        if site is not None:
            site.open(background)
        if is_worker:
            # Startup objects live as long as the process. Freezing them keeps full collections from pausing requests.
            gc.collect()
            gc.freeze()
            # Cached leaf certificates are replaced all the time, so by default full collections would be frequent, and
            # would pause requests too. Requests leave no reference cycles; the few that libraries leave are collected
            # by one full collection in a hundred of the middle generation.
            gc.set_threshold(700, 10, 100)
        start_files.release()  # Before a reload, which reads the files.
        try:
            with health.drain_on_sigterm(), reloading.on_signal(reloader.reload) if is_worker else nullcontext():
                yield {CONNECTIONS: connections}
        finally:
            await dispatcher.close()
            await recorders.flush()
            root_sync.close()
            await background.close()
            await recorders.close()
            await services.notifier.close()
            await services.close()
            if spans is not None:
                await spans.close()

    # No viewer of the description: it would run third-party scripts on the origin of the token endpoint.
    app = Application(
        title="opnc-ccp",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    # Pings do not share connections with deliveries: the dispatcher has an outbound client of its own.
    sender = WebhookSender(store, services.outbound, clock, config.event_timeout)
    pinger = Pinger(sender, limits.check_ping)
    webhooks = Webhooks(
        store,
        pinger=pinger,
        allow_http=config.event_allow_http,
        max_overlap=config.event_secret_overlap,
        on_change=services.subscribers.refresh,
        outbound=services.outbound,
    )
    registry = PartyRegistry(store)
    console = None
    if config.console or config.try_it:
        from ccp.server.console.identifiers import HandleCipher  # Templates and forms, which other pools do without.
        from ccp.server.console.parts import ConsoleParts
        from ccp.server.console.setup import OperatorConsole

        console = OperatorConsole(
            ConsoleParts(
                config=config,
                store=store,
                context=context,
                authority=authority,
                registry=registry,
                pseudonyms=pseudonyms,
                cipher=HandleCipher(store),
                trust=trust,
                revocation=services.revocation,
                pool=pool,
                peers=services.peers,
                webhooks=webhooks,
                pinger=pinger,
                statistics=recorders.statistics,
                external=external,
                outbound=services.outbound,
                background=background,
                health=health,
                calls=metrics.last_calls,
                has_documentation=site is not None,
            )
        )
    enrolment = Enrolment(store, external.est_server, config.est_labels, config.est_subjects, clock)
    # Before FastAPI's own routes, because Starlette tries routes in order.
    app.router.routes[:0] = [
        *opnc.router(pool, context).routes,
        *ocpp.routes(pool, context),
        *oauth.routes(authority, context, issuer=config.public_url, bind=config.certificate_bound_tokens),
        pcp_webhook.pcp_route(context, pool, config.pcp_webhook_secret),
        subscribed_events.route(
            context, pool, sources, services.peers.negatives.forget, root_sync.request, metrics.last_calls
        ),
        *events.router(webhooks, context, events.OPNC).routes,
        *admin.router(registry, recorders.statistics, context).routes,
        *admin_refusals.router(store, context).routes,
        *refusal_routes.router(store, context).routes,
        *admin_peers.router(PeerRegistry(store), context).routes,
        *est.routes(enrolment, context),
        *health.routes(),
        *metrics_route.routes(metrics, context, config.metrics),
        *documentation.routes(site),
        *(console.routes if console is not None else ()),
    ]
    if config.opcp:
        catalogue = CurrentRootCatalogue()
        app.router.routes[1:1] = [
            *opcp.router(pool, context, config, catalogue).routes,
            *opcp_roots.router(pool, context, catalogue).routes,
            *events.router(webhooks, context, events.OPCP).routes,
        ]
    fast_path = FastPathMiddleware(app.framework, app.router.routes)
    addressed = ClientAddressMiddleware(fast_path, limits, metrics.forwarded_problem)
    trace_ids = None if spans is None else spans.trace_ids()
    traced = TraceMiddleware(
        addressed,
        pseudonyms,
        recorders.refusals,
        metrics,
        trace_ids,
        recorders.refused_deliveries,
        has_documentation=site is not None,
    )
    app.middleware_chain = traced
    if spans is not None:
        from ccp.server.http.middleware.request_spans import RequestSpanMiddleware

        app.middleware_chain = RequestSpanMiddleware(traced, spans, traced.parties_and_ids)
    app.add_exception_handler(Exception, errors.handle_crash)
    app.add_exception_handler(CCPError, errors.handle_ccp_error)
    app.add_exception_handler(RequestValidationError, errors.handle_validation_error)
    app.add_exception_handler(HTTPException, errors.handle_http_exception)
    app.openapi = lambda: openapi.describe(app, config.public_url)  # type: ignore[method-assign]
    return app
