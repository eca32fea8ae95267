"""The event service's rules: one method for each operation on a party's own webhooks. The only owner of these
transactions; each change is audited in its own, without the secret.
"""

from __future__ import annotations

import contextlib
import secrets
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from ccp.errors import CCPError, Conflict, FieldError, NotAuthorised, NotFound
from ccp.ids import WMI, ProviderId
from ccp.schemas.event_types import API_VERSION, audience
from ccp.server.domain.authorization import EventOperation, authorise_role
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.domain.subscriptions import Webhook
from ccp.server.external.outbound import OutboundClient, OutboundError, host_of
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query, long_read
from ccp.server.storage.queries import audit, parties, webhooks
from ccp.server.storage.queries import deliveries as delivery_queries
from ccp.server.storage.queries.audit import Action, Entry
from ccp.server.storage.queries.caller_standing import check_standing
from ccp.server.storage.queries.deliveries import Delivery, DeliveryCursor, DeliveryState

MAX_WEBHOOKS: Final = 50
"""Webhooks of one party. Each that is not answered costs the dispatcher a task and the database its deliveries."""
_SECRET_OCTETS: Final = 32  # As many as the HMAC's hash has.

_PORTION: Final = 1000  # Deliveries that one transaction removes.
_EDITABLE: Final = ("url", "events", "wmis", "provider_ids", "description", "metadata", "enabled")

T = TypeVar("T")
Id = TypeVar("Id", WMI, ProviderId)


@dataclass(frozen=True, slots=True)
class WebhookSpec:
    """What a webhook shall be like; None: as it is, or as it is by default. wmis, provider_ids: empty for all own."""

    url: str
    events: tuple[str, ...] | None = None
    wmis: tuple[WMI, ...] | None = None
    provider_ids: tuple[ProviderId, ...] | None = None
    description: str | None = None
    metadata: dict[str, Any] | None = None
    enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class WebhookWithOwner:
    """A webhook, and the party whose it is, as it is registered."""

    webhook: Webhook
    party: Party

    @property
    def role(self) -> PartyRole:
        """What the party is to the pool where this webhook is concerned."""
        for role in (PartyRole.EMSP, PartyRole.OEM):
            if role in {audience(name) for name in self.webhook.events}:
                return role
        return PartyRole.EMSP if PartyRole.EMSP in self.party.roles else PartyRole.OEM

    @property
    def wmis(self) -> list[WMI]:
        """Those that it is told of."""
        return sorted(self.webhook.wmis or self.party.wmis)

    @property
    def provider_ids(self) -> list[ProviderId]:
        """Those that it is told of."""
        own = self.party.provider_ids if PartyRole.EMSP in self.party.roles else ()
        return sorted(self.webhook.provider_ids or own)


class Webhooks:
    """`at` is the time of the request, taken once at the edge. What is another party's is not found."""

    def __init__(
        self,
        store: Store,
        *,
        allow_http: bool,
        on_change: Callable[[], Awaitable[None]] | None = None,
        outbound: OutboundClient | None = None,
    ) -> None:
        """allow_http: whether webhooks may have an address without TLS. on_change: reloads subscriptions.
        outbound: judges where a webhook's host is; None: this is judged when events are sent only.

        Other processes take a change over within about a second.
        """
        self._store = store
        self._allow_http = allow_http
        self._on_change = on_change
        self._outbound = outbound

    async def add(self, caller: Caller, wanted: WebhookSpec, at: datetime) -> WebhookWithOwner:
        """Make a webhook with a secret of its own. Raises FieldError, NotAuthorised, Conflict."""
        self._check(caller.party, wanted)  # Before anything is locked; again with what is registered then.
        await self._check_reachable(caller, wanted.url)
        made = Webhook(
            id=str(uuid.uuid4()),
            client_id=caller.party.client_id,
            url=wanted.url,
            description=wanted.description or "",
            events=wanted.events or (),
            wmis=_sorted(wanted.wmis),
            provider_ids=_sorted(wanted.provider_ids),
            metadata=wanted.metadata or {},
            api_version=API_VERSION,
            enabled=wanted.enabled is not False,
            secret=secrets.token_urlsafe(_SECRET_OCTETS),
            created_at=at,
            updated_at=at,
        )

        def change() -> Query[WebhookWithOwner]:
            party = yield from _begin(caller, EventOperation.POST_ENDPOINT)
            self._check(_within_token(party, caller), wanted)
            if len((yield from webhooks.list_by_party(party.client_id))) >= MAX_WEBHOOKS:
                raise Conflict(f"A party has at most {MAX_WEBHOOKS} webhooks.")
            yield from webhooks.put(made)
            yield from _record(caller, at, Action.WEBHOOK_ADDED, made.id, **_told(made))
            return WebhookWithOwner(made, party)

        return await self._write(change())

    async def list_all(self, caller: Caller) -> list[WebhookWithOwner]:
        """The caller's webhooks, the oldest first."""

        def query() -> Query[list[WebhookWithOwner]]:
            party = yield from _registered(caller)
            return [
                WebhookWithOwner(webhook, party) for webhook in (yield from webhooks.list_by_party(party.client_id))
            ]

        return await self._store.read(query())

    async def get(self, caller: Caller, webhook_id: str) -> WebhookWithOwner:
        """Raises NotFound."""

        def query() -> Query[WebhookWithOwner]:
            party = yield from _registered(caller)
            return WebhookWithOwner((yield from _find(party, webhook_id)), party)

        return await self._store.read(query())

    async def edit(self, caller: Caller, webhook_id: str, wanted: WebhookSpec, at: datetime) -> WebhookWithOwner:
        """Change what is given; the secret stays. Raises NotFound, FieldError, NotAuthorised."""
        stored = await self._store.read(webhooks.find(webhook_id))
        # One whose host has vanished can still be disabled. The network is asked before the transaction, never in it.
        if stored is not None and stored.client_id == caller.party.client_id and stored.url != wanted.url:
            check_webhook_url(wanted.url, allow_http=self._allow_http)
            await self._check_reachable(caller, wanted.url)

        def change() -> Query[WebhookWithOwner]:
            party = yield from _begin(caller, EventOperation.UPDATE_ENDPOINT)
            before = yield from _find(party, webhook_id)
            owned = WebhookWithOwner(before, party)
            # Who sends back what it was told has not asked for a filter by that.
            same_wmis = wanted.wmis is None or set(wanted.wmis) == set(owned.wmis)
            same_providers = wanted.provider_ids is None or set(wanted.provider_ids) == set(owned.provider_ids)
            self._check(
                _within_token(party, caller),
                replace(
                    wanted,
                    wmis=None if same_wmis else wanted.wmis,
                    provider_ids=None if same_providers else wanted.provider_ids,
                ),
            )
            after = replace(
                before,
                url=wanted.url,
                events=before.events if wanted.events is None else wanted.events,
                wmis=before.wmis if same_wmis else _sorted(wanted.wmis),
                provider_ids=before.provider_ids if same_providers else _sorted(wanted.provider_ids),
                description=before.description if wanted.description is None else wanted.description,
                metadata=before.metadata if wanted.metadata is None else wanted.metadata,
                enabled=before.enabled if wanted.enabled is None else wanted.enabled,
            )
            if after == before:
                return owned
            after = replace(after, updated_at=at)
            yield from webhooks.put(after)
            were, are = _told(before), _told(after)
            members = sorted(name for name in are if are[name] != were[name])
            yield from _record(
                caller,
                at,
                Action.WEBHOOK_EDITED,
                webhook_id,
                changed=[name for name in _EDITABLE if getattr(after, name) != getattr(before, name)],
                before={name: were[name] for name in members},
                after={name: are[name] for name in members},
            )
            return WebhookWithOwner(after, party)

        return await self._write(change())

    async def remove(self, caller: Caller, webhook_id: str, at: datetime) -> None:
        """Remove a webhook; what still waits for it is not sent any more. Raises NotFound.

        Its deliveries may be a million: all but the last go before it, in portions, so that no other change waits for
        long. Where that fails half-way the webhook stays, without those that went.
        """

        def owned() -> Query[None]:
            yield from _find((yield from _party_now(caller, EventOperation.DELETE_ENDPOINT)), webhook_id)

        await self._store.read(owned())
        while await self._store.write(delivery_queries.remove_by_webhook(webhook_id, _PORTION)) == _PORTION:
            pass

        def change() -> Query[None]:
            party = yield from _begin(caller, EventOperation.DELETE_ENDPOINT)
            webhook = yield from _find(party, webhook_id)
            yield from webhooks.remove(webhook.id)
            yield from _record(caller, at, Action.WEBHOOK_REMOVED, webhook.id, **_told(webhook))

        await self._write(change())

    async def deliveries(
        self, caller: Caller, webhook_id: str, state: DeliveryState | None, before: DeliveryCursor | None, limit: int
    ) -> tuple[list[Delivery], bool]:
        """So many deliveries to a webhook, the newest first, and whether there are older ones. Raises NotFound."""

        @long_read
        def query() -> Query[tuple[list[Delivery], bool]]:
            webhook = yield from _find((yield from _registered(caller)), webhook_id)
            found = yield from delivery_queries.list_page(webhook.id, state, before, limit + 1)
            return found[:limit], len(found) > limit

        return await self._store.read(query())

    async def _write(self, change: Query[T]) -> T:
        result = await self._store.write(change)
        if self._on_change is not None:
            with contextlib.suppress(CCPError):  # It is tried again within a second anyway.
                await self._on_change()
        return result

    async def _check_reachable(self, caller: Caller, url: str) -> None:
        """Refuse a host that does not exist or may not be called, both with the same sentence: the difference
        would reveal which names exist in the operator's network. Raises FieldError.
        """
        if self._outbound is None:
            return
        try:
            await self._outbound.check_reachable(url, owner=caller.party.client_id)
        except OutboundError as exc:
            raise FieldError(f"url : {host_of(url)} cannot be reached from this pool") from exc

    def _check(self, party: Party, wanted: WebhookSpec) -> None:
        """What a webhook of the party cannot be. Raises FieldError, NotAuthorised."""
        check_webhook_url(wanted.url, allow_http=self._allow_http)
        _check_events(party, wanted.events or ())
        _check_ids("WMI", wanted.wmis or (), party.wmis if PartyRole.OEM in party.roles else ())
        _check_ids(
            "provider id", wanted.provider_ids or (), party.provider_ids if PartyRole.EMSP in party.roles else ()
        )


def check_webhook_url(url: str, *, allow_http: bool) -> None:
    """Refuse what is no address of a webhook. Where its host is is judged when it is called. Raises FieldError."""
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
    foreign = [name for name in names if (role := audience(name)) is not None and role not in party.roles]
    if foreign:
        raise FieldError(f"enabledEvents : {', '.join(foreign)} is for a role that the caller does not have")


def _check_ids(kind: str, wanted: Iterable[str], own: Iterable[str]) -> None:
    foreign = sorted(set(wanted) - set(own))
    if foreign:
        raise NotAuthorised(*(f"The {kind} {each} is not registered for the caller." for each in foreign))


def _begin(caller: Caller, operation: EventOperation) -> Query[Party]:
    """From here to the end of the transaction no webhook changes but by it: the limit on their number rests on it.

    Returns the caller's party as it is registered now. Raises NotAuthenticated, NotAuthorised.
    """
    yield from webhooks.lock()
    return (yield from _party_now(caller, operation))


def _party_now(caller: Caller, operation: EventOperation) -> Query[Party]:
    """The caller's party as it is registered now. Raises NotAuthenticated, NotAuthorised."""
    standing = caller.standing(lambda party: authorise_role(party, operation))
    return (yield from (_registered(caller) if standing is None else check_standing(standing)))


def _within_token(party: Party, caller: Caller) -> Party:
    """The party, within the roles that the caller's token is good for."""
    return replace(party, roles=party.roles & caller.party.roles)


def _registered(caller: Caller) -> Query[Party]:
    """The caller's party. A caller whom another issuer vouches for is registered nowhere, and would be told nothing."""
    party = yield from parties.find(caller.party.client_id)
    if party is None:
        raise NotAuthorised("Webhooks are for parties that are registered at this pool.")
    return party


def _find(party: Party, webhook_id: str) -> Query[Webhook]:
    webhook = yield from webhooks.find(webhook_id)
    if webhook is None or webhook.client_id != party.client_id:
        raise NotFound("There is no endpoint with this id.")
    return webhook


def _sorted(ids: Iterable[Id] | None) -> tuple[Id, ...]:
    return tuple(sorted(set(ids or ())))


def _told(webhook: Webhook) -> dict[str, Any]:
    """For the audit trail. Of the address the host alone: paths and queries of webhooks are often secrets."""
    parts = urlsplit(webhook.url)
    return {
        "host": f"{parts.scheme}://{parts.netloc}",
        "events": list(webhook.events),
        "wmis": list(webhook.wmis),
        "provider_ids": list(webhook.provider_ids),
        "enabled": webhook.enabled,
    }


def _record(caller: Caller, at: datetime, action: Action, webhook_id: str, **more: Any) -> Query[None]:
    subject = {"endpoint": webhook_id, "party": caller.party.client_id, **more}
    yield from audit.record(Entry(at, caller.party.client_id, action, subject, trace_id=caller.trace_id))
