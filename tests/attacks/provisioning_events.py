"""Signed events of a Provisioning Certificate Pool, sent to a pool's webhook."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime

import httpx

from ccp.server.http.routes.pcp_webhook import PATH
from tests.world import Pool

SECRET = "a secret of the webhook"


def send_event(pool: Pool, event_type: str, pcid: str, at: datetime | None = None) -> httpx.Response:
    """Post an event as the Provisioning Certificate Pool does."""
    members = {
        "eventId": "7d9a6c1e-53b8-4e0f-8a27-6f2f0d9b4c35",
        "eventType": event_type,
        "timestamp": (at or datetime.now(UTC)).isoformat(),
        "payload": {"pcid": pcid},
    }
    body = json.dumps(members).encode()
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return pool.http.post(PATH, content=body, headers={"X-Hubject-Signature": signature})
