"""Event service: one method per operation on a party's webhooks.

Each change writes its audit entry in the same transaction, without the secret.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from ccp.errors import CCPError, Conflict, FieldError, NotAuthorised, NotFound
from ccp.errors.codes import ErrorCode
from ccp.ids import WMI, ProviderId
from ccp.schemas.event_types import API_VERSION, audience
from ccp.server.domain.authorization import SUBSCRIBING_ROLES, EventOperation, authorise_role
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.domain.subscriptions import SignatureFormat, Webhook
from ccp.server.events.ping import Pinger, PingResult
from ccp.server.events.secret_rotation import new_secret, rotated, rotation_fields
from ccp.server.external.outbound import OutboundClient, OutboundError, host_of
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, long_read
from ccp.server.storage.queries import audit, parties, webhooks
from ccp.server.storage.queries import deliveries as delivery_queries
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.caller_standing import check_standing
from ccp.server.storage.queries.deliveries import Delivery, DeliveryCursor, DeliveryState

MAX_WEBHOOKS: Final = 50
"""Webhooks of one party. Each one that does not answer costs a dispatcher task and accumulating deliveries."""

DELETE_BATCH: Final = 1000
"""Deliveries that one transaction removes."""
_EDITABLE: Final = (
    "url", "events", "wmis", "provider_ids", "description", "metadata", "enabled", "signature_format",
)  # fmt: skip

T = TypeVar("T")
Id = TypeVar("Id", WMI, ProviderId)


@dataclass(frozen=True, slots=True)
class WebhookSpec:
    """Requested properties of a webhook; None: unchanged or default. wmis, provider_ids: empty for all of the party."""

    url: str
    events: tuple[str, ...] | None = None
    wmis: tuple[WMI, ...] | None = None
    provider_ids: tuple[ProviderId, ...] | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    enabled: bool | None = None
    signature_format: SignatureFormat | None = None


@dataclass(frozen=True, slots=True)
class WebhookWithOwner:
    """A webhook and the party that owns it, as registered."""

    webhook: Webhook
    party: Party

    @property
    def role(self) -> PartyRole:
        """The role in which the party uses this webhook."""
        own = [role for role in SUBSCRIBING_ROLES if role in self.party.roles]
        audiences = {audience(name) for name in self.webhook.events}
        return next((role for role in own if role in audiences), own[0] if own else PartyRole.EMSP)

    @property
    def wmis(self) -> list[WMI]:
        """The WMIs whose events it gets."""
        return sorted(self.webhook.wmis or self.party.wmis)

    @property
    def provider_ids(self) -> list[ProviderId]:
        """The provider ids whose events it gets."""
        own = self.party.provider_ids if PartyRole.EMSP in self.party.roles else ()
        return sorted(self.webhook.provider_ids or own)


class Webhooks:
    """Operations on webhooks. Webhooks of other parties count as not found. now: time of the request."""

    def __init__(
        self,
        store: Store,
        *,
        pinger: Pinger,
        allow_http: bool,
        max_overlap: int,
        on_change: Callable[[], Awaitable[None]] | None = None,
        outbound: OutboundClient | None = None,
    ) -> None:
        """allow_http: whether webhooks may have an address without TLS. max_overlap: setting `event_secret_overlap`.
        on_change: reloads subscriptions in this process; others do so within about a second. outbound: checks that the
        host of a new URL can be reached; None: only the dispatcher checks that.
        """
        self._store = store
        self._pinger = pinger
        self._allow_http = allow_http
        self._max_overlap = max_overlap
        self._on_change = on_change
        self._outbound = outbound

    async def add(self, caller: Caller, spec: WebhookSpec, now: datetime) -> WebhookWithOwner:
        """Create a webhook with a new secret. Raises FieldError, NotAuthorised, Conflict."""
        self._check(caller.party, spec)  # Before anything is locked; again below, with the party as registered then.
        await self._check_reachable(caller, spec.url)
        created = Webhook(
            id=str(uuid.uuid4()),
            client_id=caller.party.client_id,
            url=spec.url,
            description=spec.description or "",
            events=spec.events or (),
            wmis=_sorted(spec.wmis),
            provider_ids=_sorted(spec.provider_ids),
            metadata=spec.metadata or {},
            api_version=API_VERSION,
            enabled=spec.enabled is not False,
            secret=new_secret(),
            created_at=now,
            updated_at=now,
            signature_format=spec.signature_format or SignatureFormat.SHA256,
        )

        def change() -> Query[WebhookWithOwner]:
            party = yield from _begin(caller, EventOperation.POST_ENDPOINT)
            self._check(_within_token(party, caller), spec)
            if len((yield from webhooks.list_by_party(party.client_id))) >= MAX_WEBHOOKS:
                raise Conflict(f"A party has at most {MAX_WEBHOOKS} webhooks.")
            yield from webhooks.put(created)
            yield from _record(caller, now, Action.WEBHOOK_ADDED, created.id, **audit_fields(created))
            return WebhookWithOwner(created, party)

        return await self._write(change())

    async def list_all(self, caller: Caller) -> list[WebhookWithOwner]:
        """The caller's webhooks, oldest first."""

        def query() -> Query[list[WebhookWithOwner]]:
            party = yield from _registered(caller)
            return [
                WebhookWithOwner(webhook, party) for webhook in (yield from webhooks.list_by_party(party.client_id))
            ]

        return await self._store.read(query())

    async def get(self, caller: Caller, webhook_id: str) -> WebhookWithOwner:
        """Get a webhook of the caller. Raises NotFound."""

        def query() -> Query[WebhookWithOwner]:
            party = yield from _registered(caller)
            return WebhookWithOwner((yield from _find(party, webhook_id)), party)

        return await self._store.read(query())

    async def edit(self, caller: Caller, webhook_id: str, spec: WebhookSpec, now: datetime) -> WebhookWithOwner:
        """Change the given properties; the secret stays. Raises NotFound, FieldError, NotAuthorised."""
        stored = await self._store.read(webhooks.find(webhook_id))
        # An unchanged URL is not checked: a webhook whose host has vanished can still be disabled. The check uses the
        # network, so it runs before the transaction.
        if stored is not None and stored.client_id == caller.party.client_id and stored.url != spec.url:
            check_webhook_url(spec.url, allow_http=self._allow_http)
            await self._check_reachable(caller, spec.url)

        def change() -> Query[WebhookWithOwner]:
            party = yield from _begin(caller, EventOperation.UPDATE_ENDPOINT)
            before = yield from _find(party, webhook_id)
            owned = WebhookWithOwner(before, party)
            # A caller that sends back the ids of a GET does not ask for a filter.
            same_wmis = spec.wmis is None or set(spec.wmis) == set(owned.wmis)
            same_providers = spec.provider_ids is None or set(spec.provider_ids) == set(owned.provider_ids)
            self._check(
                _within_token(party, caller),
                replace(
                    spec,
                    wmis=None if same_wmis else spec.wmis,
                    provider_ids=None if same_providers else spec.provider_ids,
                ),
            )
            after = replace(
                before,
                url=spec.url,
                events=before.events if spec.events is None else spec.events,
                wmis=before.wmis if same_wmis else _sorted(spec.wmis),
                provider_ids=before.provider_ids if same_providers else _sorted(spec.provider_ids),
                description=before.description if spec.description is None else spec.description,
                metadata=before.metadata if spec.metadata is None else spec.metadata,
                enabled=before.enabled if spec.enabled is None else spec.enabled,
                signature_format=spec.signature_format or before.signature_format,
            )
            if after == before:
                return owned
            after = replace(after, updated_at=now)
            yield from webhooks.put(after)
            yield from _record(caller, now, Action.WEBHOOK_EDITED, webhook_id, **edit_fields(before, after))
            return WebhookWithOwner(after, party)

        return await self._write(change())

    async def remove(self, caller: Caller, webhook_id: str, now: datetime) -> None:
        """Remove a webhook with its pending deliveries. Raises NotFound.

        There may be a million deliveries. They are removed in batches before the webhook, so that no other change waits
        for long. If that fails half-way, the webhook stays without the removed deliveries.
        """

        def owned() -> Query[None]:
            yield from _find((yield from _party_now(caller, EventOperation.DELETE_ENDPOINT)), webhook_id)

        await self._store.read(owned())
        while await self._store.write(delivery_queries.remove_by_webhook(webhook_id, DELETE_BATCH)) == DELETE_BATCH:
            pass

        def change() -> Query[None]:
            party = yield from _begin(caller, EventOperation.DELETE_ENDPOINT)
            webhook = yield from _find(party, webhook_id)
            yield from webhooks.remove(webhook.id)
            yield from _record(caller, now, Action.WEBHOOK_REMOVED, webhook.id, **audit_fields(webhook))

        await self._write(change())

    async def rotate_secret(
        self, caller: Caller, webhook_id: str, overlap: int | None, now: datetime
    ) -> WebhookWithOwner:
        """Replace the secret of a webhook; see `secret_rotation.rotated`. overlap: None for the longest.

        Raises NotFound, FieldError, Conflict.
        """

        def change() -> Query[WebhookWithOwner]:
            party = yield from _begin(caller, EventOperation.ROTATE_SECRET)
            after = rotated((yield from _find(party, webhook_id)), overlap, self._max_overlap, now)
            yield from webhooks.put(after)
            yield from _record(caller, now, Action.WEBHOOK_SECRET_ROTATED, webhook_id, **rotation_fields(after))
            return WebhookWithOwner(after, party)

        return await self._write(change())

    async def ping(self, caller: Caller, webhook_id: str, now: datetime) -> PingResult:
        """Send a test event to a webhook, also to a disabled one. Raises NotFound, TooManyRequests."""

        def query() -> Query[Webhook]:
            return (yield from _find((yield from _party_now(caller, EventOperation.PING)), webhook_id))

        webhook = await self._store.read(query())
        result = await self._pinger.ping(webhook, now)
        record = _record(caller, now, Action.WEBHOOK_PINGED, webhook_id, **result.audit_fields())
        await self._store.write(record)
        return result

    async def deliveries(
        self, caller: Caller, webhook_id: str, state: DeliveryState | None, before: DeliveryCursor | None, limit: int
    ) -> tuple[list[Delivery], bool]:
        """Up to `limit` deliveries to a webhook, newest first, and whether there are older ones. Raises NotFound."""

        @long_read
        def query() -> Query[tuple[list[Delivery], bool]]:
            webhook = yield from _find((yield from _registered(caller)), webhook_id)
            found = yield from delivery_queries.list_page(webhook.id, state, before, limit + 1)
            return found[:limit], len(found) > limit

        return await self._store.read(query())

    async def _write(self, change: Query[T]) -> T:
        result = await self._store.write(change)
        if self._on_change is not None:
            with contextlib.suppress(CCPError):  # The periodic refresh repeats it within a second.
                await self._on_change()
        return result

    async def _check_reachable(self, caller: Caller, url: str) -> None:
        """Refuse a host that does not exist or may not be called. Raises FieldError.

        The message is the same for both: the difference would reveal which names exist in the operator's network.
        """
        if self._outbound is None:
            return
        try:
            await self._outbound.check_reachable(url, owner=caller.party.client_id)
        except OutboundError as exc:
            raise FieldError(f"url : {host_of(url)} cannot be reached from this pool") from exc

    def _check(self, party: Party, spec: WebhookSpec) -> None:
        """Refuse properties that the party may not use. Raises FieldError, NotAuthorised."""
        check_webhook_url(spec.url, allow_http=self._allow_http)
        _check_events(party, spec.events or ())
        _check_ids("WMI", spec.wmis or (), party.wmis if PartyRole.OEM in party.roles else ())
        _check_ids("provider id", spec.provider_ids or (), party.provider_ids if PartyRole.EMSP in party.roles else ())


def check_webhook_url(url: str, *, allow_http: bool) -> None:
    """Refuse a URL that no webhook may have. The host's address is checked when it is called. Raises FieldError."""
    try:
        host_of(url)
    except OutboundError as exc:
        raise FieldError("url : must be an https address without blanks and credentials") from exc
    parts = urlsplit(url)
    if parts.scheme != "https" and not allow_http:
        raise FieldError("url : must be an https address")
    if parts.fragment or "#" in url:
        raise FieldError("url : must not have a fragment, which is never sent")


def _check_events(party: Party, names: Iterable[str]) -> None:
    not_owned = [name for name in names if (role := audience(name)) is not None and role not in party.roles]
    if not_owned:
        raise FieldError(f"enabledEvents : {', '.join(not_owned)} is for a role that the caller does not have")


def _check_ids(kind: str, wanted: Iterable[str], own: Iterable[str]) -> None:
    not_owned = sorted(set(wanted) - set(own))
    if not_owned:
        sentences = (f"The {kind} {name} is not registered for the caller." for name in not_owned)
        raise NotAuthorised(*sentences, code=ErrorCode.ID_NOT_REGISTERED)


def _begin(caller: Caller, operation: EventOperation) -> Query[Party]:
    """Lock webhooks against concurrent changes until the end of the transaction, which the limit on their number needs.

    Returns the caller's party as registered now. Raises NotAuthenticated, NotAuthorised.
    """
    yield from webhooks.lock()
    return (yield from _party_now(caller, operation))


def _party_now(caller: Caller, operation: EventOperation) -> Query[Party]:
    """The caller's party as registered now. Raises NotAuthenticated, NotAuthorised."""
    standing = caller.standing(lambda party: authorise_role(party, operation))
    return (yield from (_registered(caller) if standing is None else check_standing(standing)))


def _within_token(party: Party, caller: Caller) -> Party:
    """The party with only those roles that the caller's token grants."""
    return replace(party, roles=party.roles & caller.party.roles)


def _registered(caller: Caller) -> Query[Party]:
    """The caller's registered party. Callers known only to an external issuer get no events. Raises NotAuthorised."""
    party = yield from parties.find(caller.party.client_id)
    if party is None:
        raise NotAuthorised("Webhooks are for parties that are registered at this pool.")
    return party


def _find(party: Party, webhook_id: str) -> Query[Webhook]:
    webhook = yield from webhooks.find(webhook_id)
    if webhook is None or webhook.client_id != party.client_id:
        raise NotFound("There is no endpoint with this id.", code=ErrorCode.WEBHOOK_NOT_FOUND)
    return webhook


def _sorted(ids: Iterable[Id] | None) -> tuple[Id, ...]:
    return tuple(sorted(set(ids or ())))


def audit_fields(webhook: Webhook) -> dict[str, Any]:
    """The webhook for the audit trail; of its URL only the host, because path and query are often secrets."""
    parts = urlsplit(webhook.url)
    return {
        "host": f"{parts.scheme}://{parts.netloc}",
        "events": list(webhook.events),
        "wmis": list(webhook.wmis),
        "provider_ids": list(webhook.provider_ids),
        "enabled": webhook.enabled,
        "signature_format": webhook.signature_format.value,
    }


def edit_fields(before: Webhook, after: Webhook) -> dict[str, Any]:
    """What the audit trail records of an edit: the changed members, and the `audit_fields` that differ."""
    were, are = audit_fields(before), audit_fields(after)
    differing = sorted(name for name in are if are[name] != were[name])
    return {
        "changed": [name for name in _EDITABLE if getattr(after, name) != getattr(before, name)],
        "before": {name: were[name] for name in differing},
        "after": {name: are[name] for name in differing},
    }


def _record(caller: Caller, now: datetime, action: Action, webhook_id: str, **more: Any) -> Query[None]:
    subject = {"endpoint": webhook_id, "party": caller.party.client_id, **more}
    yield from audit.record(Entry(now, caller.party.client_id, action, subject, trace_id=caller.trace_id))
