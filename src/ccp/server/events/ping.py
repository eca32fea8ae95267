"""Ping: a test event that is sent to a webhook at once, and what came back.

A partner chooses the address, so a ping could be used to scan or to flood others. Therefore it reaches public addresses
only, as a delivery does, tells no more about an unreachable host than a delivery does, and shows nothing of a response
but its status. A party may send a few pings a minute, one at a time in each worker.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from ccp.errors import TooManyRequests
from ccp.schemas.event_types import PING
from ccp.server.domain.subscriptions import Webhook
from ccp.server.events.message import encode_event
from ccp.server.events.sending import Attempt, WebhookSender

_log = structlog.get_logger("ccp.server.events")


@dataclass(frozen=True, slots=True)
class PingResult:
    """event_id: of the test event. attempt: its outcome."""

    event_id: str
    attempt: Attempt

    def members(self) -> dict[str, Any]:
        """The result for JSON."""
        return {
            "eventId": self.event_id,
            "delivered": self.attempt.accepted,
            "status": self.attempt.status,
            "durationMs": self.attempt.ms,
            "error": self.attempt.error,
            "previousSecret": self.attempt.accepted and self.attempt.previous_secret,
        }

    def audit_fields(self) -> dict[str, Any]:
        """What the audit trail records of a ping."""
        return {"event_id": self.event_id, "status": self.attempt.status}


class Pinger:
    """Sends pings."""

    def __init__(self, sender: WebhookSender, check_rate: Callable[[str], None] = lambda client_id: None) -> None:
        """check_rate: counts a ping of a party, or raises TooManyRequests."""
        self._sender = sender
        self._check_rate = check_rate
        self._active: set[str] = set()  # Parties with a ping under way.

    async def ping(self, webhook: Webhook, now: datetime) -> PingResult:
        """Send a test event. Raises TooManyRequests."""
        if webhook.client_id in self._active:
            raise TooManyRequests("Another ping of this party is under way.", retry_after=1)
        self._check_rate(webhook.client_id)
        event_id = str(uuid.uuid4())
        # A payload without contract or vehicle.
        body = encode_event(event_id, PING, now, {"endpointId": webhook.id})
        self._active.add(webhook.client_id)
        try:
            attempt = await self._sender.send(webhook, body)
        finally:
            self._active.discard(webhook.client_id)
        _log.info(
            "webhook pinged",
            webhook=webhook.id,
            party=webhook.client_id,
            event_id=event_id,
            status=attempt.status,
            reason=attempt.error,
            previous_secret=attempt.previous_secret,
            ms=attempt.ms,
        )
        return PingResult(event_id, attempt)
