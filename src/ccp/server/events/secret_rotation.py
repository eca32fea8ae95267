"""Replacement of a webhook's secret. Pure, but for the random new secret."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from ccp.errors import Conflict, FieldError
from ccp.schemas.timestamps import rfc3339
from ccp.server.domain.subscriptions import MAX_PREVIOUS_SECRETS, PreviousSecret, Webhook

_SECRET_BYTES: Final = 32  # The output size of the HMAC's hash.


def new_secret() -> str:
    """Return a random secret for a webhook."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def rotated(webhook: Webhook, overlap: int | None, max_overlap: int, now: datetime) -> Webhook:
    """Return the webhook with a new secret.

    Each previous secret keeps the time until which it was announced to be valid, so at most `MAX_PREVIOUS_SECRETS` are
    valid at a time. overlap: seconds for which the secret that is replaced stays valid; 0 ends it and every older one
    at once, for a secret that has leaked; None for the longest. A damaged secret ends at once. max_overlap: setting
    `event_secret_overlap`. Raises FieldError, Conflict.
    """
    if overlap is not None and not 0 <= overlap <= max_overlap:
        raise FieldError(f"overlap : must be 0 to {max_overlap} seconds")
    seconds = max_overlap if overlap is None else overlap
    previous: tuple[PreviousSecret, ...] = ()
    if seconds and webhook.damage is None:
        previous = PreviousSecret(webhook.secret, now + timedelta(seconds=seconds)), *webhook.live_previous_secrets(now)
    if len(previous) > MAX_PREVIOUS_SECRETS:
        first = min(each.valid_until for each in previous)
        raise Conflict(
            f"{MAX_PREVIOUS_SECRETS} previous secrets are still valid, one until {rfc3339(first)}. "
            "Rotate after that, or with overlap 0, which ends them at once."
        )
    return replace(webhook, secret=new_secret(), previous_secrets=previous, updated_at=now, damage=None)


def rotation_fields(webhook: Webhook) -> dict[str, Any]:
    """What the audit trail records of a rotation."""
    return {"older_until": [rfc3339(each.valid_until) for each in webhook.previous_secrets]}
