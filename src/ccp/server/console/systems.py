"""The other systems of a pool with their health: peers, external services, and subscriptions to events."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ccp.server.console import system_health
from ccp.server.console.parts import ConsoleParts
from ccp.server.console.system_health import SystemHealth
from ccp.server.metrics.last_calls import EVENTS, PEER, SERVICE
from ccp.server.settings.services import SERVICES
from ccp.server.storage.queries import peers, subscriptions
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.subscriptions import PEER_PREFIX, Subscription


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A peer with its health. subscription: to its events; None without one."""

    peer: Peer
    health: SystemHealth
    subscription: SystemHealth | None
    events: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """An external service with its health. prefix: of its settings."""

    prefix: str
    health: SystemHealth
    subscription: SystemHealth | None


async def load_peers(parts: ConsoleParts, now: datetime) -> list[PeerRow]:
    """All peers, those that fail first. Raises Unavailable."""
    found = await _subscriptions(parts, now)
    rows = [peer_row(parts, peer, now, found) for peer in await parts.store.read(peers.list_all())]
    return sorted(rows, key=lambda row: system_health.rank(row.health))


async def load_peer(parts: ConsoleParts, party_id: str, now: datetime) -> PeerRow:
    """One peer. Raises NotFound, Unavailable."""
    peer = await parts.store.read(peers.get(party_id))
    return peer_row(parts, peer, now, await _subscriptions(parts, now))


async def load_services(parts: ConsoleParts, now: datetime) -> list[ServiceRow]:
    """The external services that the settings name. Raises Unavailable."""
    found = await _subscriptions(parts, now)
    rows = []
    for prefix in parts.config.services:
        health = system_health.of_service(SERVICES[prefix], parts.calls.of(SERVICE, prefix), now)
        subscribed = found.get(prefix)
        rows.append(ServiceRow(prefix, health, subscribed[1] if subscribed else None))
    return rows


def all_health(peer_rows: list[PeerRow], service_rows: list[ServiceRow]) -> list[SystemHealth]:
    """The health of everything around the pool, what fails first."""
    rows: list[PeerRow | ServiceRow] = [*peer_rows, *service_rows]
    subscribed = [row.subscription for row in rows if row.subscription is not None]
    return sorted([*(row.health for row in rows), *subscribed], key=system_health.rank)


def peer_row(
    parts: ConsoleParts, peer: Peer, now: datetime, found: dict[str, tuple[Subscription, SystemHealth]]
) -> PeerRow:
    """A peer with its health. found: the subscriptions by source."""
    is_open = parts.peers.circuit_is_open(peer.party_id)
    health = system_health.of_peer(peer, parts.calls.of(PEER, peer.party_id), now, circuit_is_open=is_open)
    subscribed = found.get(f"{PEER_PREFIX}{peer.party_id}")
    return PeerRow(peer, health, *((subscribed[1], subscribed[0].events) if subscribed else (None,)))


async def _subscriptions(parts: ConsoleParts, now: datetime) -> dict[str, tuple[Subscription, SystemHealth]]:
    """The subscriptions by source, each with its health."""
    return {
        each.source: (each, system_health.of_subscription(each, parts.calls.of(EVENTS, each.source), now))
        for each in await parts.store.read(subscriptions.list_all())
    }
