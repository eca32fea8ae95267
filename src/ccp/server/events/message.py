"""What is sent to a webhook. Pure."""

from __future__ import annotations

import hmac
from datetime import UTC, datetime

import orjson

from ccp.server.storage.queries.events import Delivery


def body_of(delivery: Delivery) -> bytes:
    """The JSON of an event, octet for octet the same at each try.

    timestamp: when what it tells of happened; with eventId it is what a receiver knows a repetition by.
    Source: OPNC webhook.payload.
    """
    return orjson.dumps(
        {
            "timestamp": _rfc3339(delivery.created_at),
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


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z"
