"""Body of a webhook request. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import orjson

from ccp.schemas.timestamps import rfc3339
from ccp.server.storage.queries.deliveries import Delivery


def encode_body(delivery: Delivery) -> bytes:
    """Encode the event of a delivery. The bytes are the same at each attempt."""
    return encode_event(delivery.event_id, delivery.kind, delivery.created_at, delivery.payload, delivery.namespace)


def encode_event(event_id: str, kind: str, at: datetime, payload: Mapping[str, Any], namespace: str = "") -> bytes:
    """Encode an event as JSON.

    at: when the reported change happened. Receivers detect repeated deliveries by timestamp and eventId. namespace:
    empty for a test event, and for a root whose key no edition prescribes. Source: OPNC webhook.payload.
    """
    event: dict[str, Any] = {"timestamp": rfc3339(at, "milliseconds"), "eventId": event_id, "eventType": kind}
    if namespace:
        event["xsdMsgDefNamespace"] = namespace
    return orjson.dumps({**event, "payload": payload})
