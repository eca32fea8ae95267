"""Health of other systems in words: peers, external services, and this pool's subscriptions to their events. Pure.

What the newest calls ended with is known to one worker, see `ccp.server.metrics.last_calls`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import quote

from ccp.server.console.rendering import age, plural
from ccp.server.metrics.last_calls import CallRecord
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.subscriptions import Subscription

_ADDRESS: Final = "Check its address and the network, then ask its operator."
_CREDENTIALS: Final = "Check this pool's credentials there with its operator."
_TLS: Final = "Ask its operator to mend its certificate, or check which CA the settings name."
_OPERATOR: Final = "Ask its operator."
_ANSWER: Final = "Ask its operator, with the time and the trace id that the log has."
_OUTCOMES: Final[dict[str, tuple[str, str]]] = {
    "timed_out": ("did not answer in time", _OPERATOR),
    "no_answer": ("did not answer", _ADDRESS),
    "refused_connection": ("refused the connection", _ADDRESS),
    "name_resolution": ("has a name that cannot be resolved", "Check its address and the DNS."),
    "not_called": ("could not be called", "Check its address and egress_allow_networks."),
    "tls": ("could not be reached over TLS", _TLS),
    "untrusted_certificate": ("has a TLS certificate of an unknown CA", _TLS),
    "expired_certificate": ("has an expired TLS certificate", _TLS),
    "name_mismatch": ("has a TLS certificate for another name", _TLS),
    "client_certificate": ("refused this pool's TLS certificate", _CREDENTIALS),
    "plain_http": ("does not speak TLS at its address", _ADDRESS),
    "tls_required": ("wants TLS at its address", _ADDRESS),
    "client_error": ("refused the call (status 4xx)", _CREDENTIALS),
    "server_error": ("failed by itself (status 5xx)", _OPERATOR),
    "token_refused": ("refused this pool's credentials", _CREDENTIALS),
    "not_authenticated": ("refused this pool's access token", _CREDENTIALS),
    "not_authorised": ("does not permit the call to this pool", _CREDENTIALS),
    "too_many_requests": ("limited the rate of this pool", _OPERATOR),
    "malformed_answer": ("gave an answer that cannot be read", _ANSWER),
}
"""What the other system did, and what to do, by the outcome of a call (see the metrics in docs/operations.md)."""
_RANKS: Final = ("bad", "warn", "quiet", "ok")


@dataclass(frozen=True, slots=True)
class SystemHealth:
    """The health of one system. kind: class of the style sheet. state: one or two words. words: what happened.

    action: what to do; empty if nothing. path: of the page that shows more, below the prefix.
    """

    name: str
    what: str
    kind: str
    state: str
    words: str
    action: str
    path: str


def rank(health: SystemHealth) -> int:
    """The place of a system in lists: what fails comes first, what works last."""
    return _RANKS.index(health.kind)


def did(outcome: str) -> str:
    """What a system did, by the outcome of a call: it "did not answer in time"."""
    return _OUTCOMES.get(outcome, (f"gave an answer that was not accepted ({outcome.replace('_', ' ')})", ""))[0]


def advice(outcome: str) -> str:
    """What to do about an outcome of a call."""
    return _OUTCOMES.get(outcome, ("", _ANSWER))[1]


def of_peer(peer: Peer, record: CallRecord, now: datetime, *, circuit_is_open: bool) -> SystemHealth:
    """The health of another pool. record: the newest calls."""
    path = f"/peers/{quote(peer.party_id, safe='')}"
    name, what = peer.party_id, "peer pool"
    if not peer.enabled:
        return SystemHealth(name, what, "quiet", "disabled", "This pool does not ask it.", "", path)
    if peer.damage is not None:
        words = "Its stored secret cannot be read, so it is not asked."
        return SystemHealth(name, what, "bad", "no secret", words, f"ccp peer rotate-secret {name}", path)
    if circuit_is_open:
        words, action = _failed(record, now)
        words = f"{words} It is left out for a while.".strip()
        return SystemHealth(name, what, "bad", "does not answer", words, action or _ADDRESS, path)
    return _of_calls(name, what, record, now, path, "No vehicle needed it since this worker began.")


def of_service(title: str, record: CallRecord, now: datetime) -> SystemHealth:
    """The health of an external service that the settings name."""
    none = "This worker has not needed it since it began."
    return _of_calls(title, "service", record, now, "/partners#services", none)


def of_subscription(found: Subscription, events: CallRecord, now: datetime) -> SystemHealth:
    """The health of a subscription to another system's events. events: those that this worker took."""
    source = found.peer or found.source
    name, what, path = f"Events of {source}", "subscription", _place(found)
    repair = f"ccp neighbour subscribe {source}"
    if found.endpoint_id is None:
        words = f"Asked for {age(found.created_at, now)}, and not accepted by the other system."
        return SystemHealth(name, what, "warn", "not accepted", words, repair, path)
    if found.secret is None:
        words = "The stored secret cannot be read, so its events are refused."
        return SystemHealth(name, what, "bad", "no secret", words, repair, path)
    subscribed = f"Subscribed to {plural(len(found.events), 'event')} {age(found.created_at, now)}."
    last = (
        f"The last event came {age(events.success.at, now)}." if events.success else "No event since this worker began."
    )
    return SystemHealth(name, what, "ok", "subscribed", f"{subscribed} {last}", "", path)


def _place(found: Subscription) -> str:
    return "/partners#services" if found.peer is None else f"/peers/{quote(found.peer, safe='')}"


def _of_calls(name: str, what: str, record: CallRecord, now: datetime, path: str, none: str) -> SystemHealth:
    if record.is_failing and record.failure is not None:
        words, action = _failed(record, now)
        return SystemHealth(name, what, "bad", "fails", words, action, path)
    if record.success is None:
        return SystemHealth(name, what, "quiet", "not asked yet", none, "", path)
    words = f"Answered {age(record.success.at, now)}, in {record.success.seconds * 1000:.0f} ms."
    if record.failure is not None:
        words += f" Before, {age(record.failure.at, now)}, it {did(record.failure.outcome)}."
    return SystemHealth(name, what, "ok", "works", words, "", path)


def _failed(record: CallRecord, now: datetime) -> tuple[str, str]:
    """What the newest failure was, and what to do; empty without one."""
    failure = record.failure
    if failure is None:
        return "", ""
    before = f" It answered {age(record.success.at, now)}." if record.success else ""
    return f"It {did(failure.outcome)} {age(failure.at, now)}.{before}", advice(failure.outcome)
