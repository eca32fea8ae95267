"""Body of a webhook request. Pure."""

from __future__ import annotations

import orjson

from ccp.schemas.timestamps import rfc3339
from ccp.server.storage.queries.deliveries import Delivery


def encode_body(delivery: Delivery) -> bytes:
    """Encode an event as JSON. The bytes are the same at each attempt.

    timestamp: when the reported change happened. Receivers detect repeated deliveries by timestamp and eventId.
    Source: OPNC webhook.payload.
    """
    event = {
        "timestamp": rfc3339(delivery.created_at, "milliseconds"),
        "eventId": delivery.event_id,
        "eventType": delivery.kind,
    }
    if delivery.namespace:  # Of a root whose key no edition prescribes there is none.
        event["xsdMsgDefNamespace"] = delivery.namespace
    return orjson.dumps({**event, "payload": delivery.payload})
