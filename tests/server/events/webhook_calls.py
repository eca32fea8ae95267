"""Calls of the event service."""

from __future__ import annotations

from typing import Any

import httpx

from tests.server.events.webhook_api import (
    URL,
    call,
)
from tests.world import Pool

UNKNOWN = "00000000-0000-4000-8000-000000000000"


NOT_FOUND = ["There is no endpoint with this id."]


CALLS = {
    "PostEndpoint": ("POST", "", {"url": URL, "enabledEvents": ["root.cert.added"]}),
    "GetEndpoints": ("GET", "", None),
    "GetEndpointById": ("GET", "/{id}", None),
    "UpdateEndpointById": ("PUT", "/{id}", {"url": URL}),
    "GetEndpointDeliveries": ("GET", "/{id}/deliveries", None),
    "RotateEndpointSecret": ("POST", "/{id}/secret", None),
    "PingEndpoint": ("POST", "/{id}/ping", None),
    "DeleteEndpointById": ("DELETE", "/{id}", None),
}


def ask(pool: Pool, caller: str | None, operation: str, webhook_id: str, **options: Any) -> httpx.Response:
    method, path, body = CALLS[operation]
    return call(pool, caller, method, path.replace("{id}", webhook_id), json=body, **options)
