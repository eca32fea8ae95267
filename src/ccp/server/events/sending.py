"""One attempt to send an event to a webhook, signed so that a receiver needs to know only one of the valid secrets.

While a secret is being replaced, the receiver may know the new one, the previous one, or both. A receiver that reads
`SIGNATURES` finds its signature there. A receiver that reads a published header, which has one value, refuses the
request if that value is for another secret; the sender then repeats the request at once with the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from ccp.errors import CCPError
from ccp.server.domain.subscriptions import Webhook
from ccp.server.events.signatures import build_headers
from ccp.server.external.outbound import OutboundClient, OutboundError, host_of
from ccp.server.storage import Store
from ccp.server.storage.queries import webhooks

_MAX_RESPONSE_BYTES: Final = 16_384  # Only the status matters; the body is read so that the connection can be reused.
_MIN_SHARE: Final = 0.1  # Of the timeout: what has to be left for another request.

UNREADABLE: Final = "The pool cannot read the secret of this webhook; it needs a new one."
REJECTED: Final = (400, 409)
"""Statuses by which a receiver rejects an event for good."""
_UNSIGNED: Final = (401, 403)
_NOT_REFUSED: Final = (404, 405, 408, 413, 429)  # About the address or the load, whatever the signature is.


@dataclass(frozen=True, slots=True)
class Attempt:
    """The outcome of an attempt.

    status: of the HTTP response; None without one. error: a sentence for the webhook's owner; None after 2xx.
    previous_secret: whether the published headers were signed with a previous secret. ms: duration in milliseconds.
    """

    status: int | None
    error: str | None
    previous_secret: bool = False
    ms: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the receiver accepted the event."""
        return self.status is not None and 200 <= self.status < 300


class WebhookSender:
    """Sends events. The dispatcher and the ping have one each, with an outbound client of their own."""

    def __init__(self, store: Store, outbound: OutboundClient, clock: Callable[[], datetime], timeout: float) -> None:
        """timeout: seconds for an attempt with all its requests."""
        self._store = store
        self._outbound = outbound
        self._clock = clock
        self._timeout = timeout

    async def send(self, webhook: Webhook, body: bytes) -> Attempt:
        """Send an event once for each valid secret until the receiver accepts it, mostly once."""
        started = time.monotonic()
        if webhook.damage is not None:
            return Attempt(None, UNREADABLE)
        first = await self._post(webhook, body, webhook.secret, self._timeout)
        if not _may_be_for_the_signature(first.status):
            return _timed(first, started)
        attempts, tried = [first], {webhook.secret}
        # Read again: another worker may have replaced the secret since this worker's copy was made.
        current = await self._stored(webhook)
        for secret in current.valid_secrets(self._clock()):
            left = self._timeout - (time.monotonic() - started)
            if secret in tried or left < _MIN_SHARE * self._timeout:
                continue
            tried.add(secret)
            attempt = await self._post(current, body, secret, left)
            attempts.append(attempt)
            if attempt.accepted:
                break
        return _timed(min(attempts, key=_rank), started)

    async def _stored(self, webhook: Webhook) -> Webhook:
        try:
            stored = await self._store.read(webhooks.find(webhook.id))
        except CCPError:
            return webhook
        usable = stored is not None and stored.enabled and stored.url == webhook.url and stored.damage is None
        return stored if stored is not None and usable else webhook

    async def _post(self, webhook: Webhook, body: bytes, secret: str, timeout: float) -> Attempt:  # noqa: ASYNC109
        secrets = webhook.valid_secrets(self._clock())
        previous = secret != webhook.secret
        try:
            response = await self._outbound.request(
                "POST",
                webhook.url,
                block_private=True,
                headers=build_headers(body, secrets, webhook.signature_format, secret),
                content=body,
                timeout=round(timeout, 1) or timeout,
                max_bytes=_MAX_RESPONSE_BYTES,
                truncate=True,
                service="webhook",
                owner=webhook.client_id,
            )
        except OutboundError as exc:
            return Attempt(None, str(exc), previous)
        status = response.status
        error = None if 200 <= status < 300 else f"{host_of(webhook.url)} answered {status}."
        return Attempt(status, error, previous)


def _may_be_for_the_signature(status: int | None) -> bool:
    """Whether a receiver may have refused a request for its signature; 500 stands for an exception that it raised."""
    return status is not None and 400 <= status <= 500 and status not in _NOT_REFUSED


def _rank(attempt: Attempt) -> int:
    """Order in which the outcome of several requests is chosen: a rejection never hides a failure that is retried.

    A refused signature says nothing about the event, so 401 and 403 come last.
    """
    if attempt.accepted:
        return 0
    return 3 if attempt.status in _UNSIGNED else 2 if attempt.status in REJECTED else 1


def _timed(attempt: Attempt, started: float) -> Attempt:
    ms = round((time.monotonic() - started) * 1000, 2)
    return Attempt(attempt.status, attempt.error, attempt.previous_secret, ms)
