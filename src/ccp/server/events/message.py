"""What is sent to a webhook. Pure."""

from __future__ import annotations

import hmac

import orjson

from ccp.schemas.timestamps import rfc3339
from ccp.server.storage.queries.deliveries import Delivery


def body_of(delivery: Delivery) -> bytes:
    """The JSON of an event, octet for octet the same at each try.

    timestamp: when what it tells of happened; with eventId it is what a receiver knows a repetition by.
    Source: OPNC webhook.payload.
    """
    return orjson.dumps(
        {
            "timestamp": rfc3339(delivery.created_at, "milliseconds"),
            "eventId": delivery.event_id,
            "eventType": delivery.kind,
            "xsdMsgDefNamespace": delivery.namespace,
            "payload": delivery.payload,
        }
    )


def headers_of(body: bytes, secret: str) -> dict[str, str]:
    """Its signature in each published form: HMAC-SHA256 over the octets, the key being the secret in UTF-8."""
    signature = hmac.digest(secret.encode(), body, "sha256").hex()
    return {
        "Content-Type": "application/json",
        "X-Operator-Signature": f"sha256={signature}",
        "payload-signature": signature,
        "X-Hubject-Signature": signature,
    }
