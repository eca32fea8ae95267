"""Client of the event service of another system: this pool's webhooks there.

OPNC has them under `/opnc/v1/event/endpoints`, OPCP under `/v1/webhook/endpoints`, with the same operations and
members.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlsplit

import orjson

from ccp.client.untrusted_text import sentences
from ccp.errors import UpstreamError
from ccp.server.external.outbound import HttpResponse, OutboundError
from ccp.server.external.service_client import get_member
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.settings.services import Dialect

_TIMEOUT: Final = 15.0
_MAX_BYTES: Final = 262_144  # A list of webhooks.
_MAX_ID: Final = 200
_MAX_SECRET: Final = 1_000
_SERVICE_PATH: Final = re.compile(r"/(rcp|pcp|pki|ccp|event)$", re.IGNORECASE)


class WebhookRefused(UpstreamError):
    """The other system refuses a webhook because of what it asks for (status 400)."""


@dataclass(frozen=True, slots=True)
class RemoteWebhook:
    """A webhook of this pool at another system, as that reports it. secret: None if it is not reported."""

    id: str
    url: str
    secret: str | None = field(repr=False)


def endpoints_url(base: str, dialect: Dialect) -> str:
    """The URL of the webhooks of a system.

    base: the base URL of one of its services: with OPNC it may end in the service (`…/opnc/v1/rcp`), with OPCP it ends
    before `/v1`.
    """
    if dialect is Dialect.OPCP:
        return f"{base.removesuffix('/v1')}/v1/webhook/endpoints"
    stem = _SERVICE_PATH.sub("", base)
    return f"{stem}/event/endpoints" if urlsplit(stem).path.endswith("/v1") else f"{stem}/opnc/v1/event/endpoints"


class EventService:
    """The webhooks of this pool at one system."""

    def __init__(self, connection: ServiceConnection) -> None:
        """connection: its URL is that of the webhooks, see `endpoints_url`."""
        self._connection = connection
        self.name: Final = connection.name

    async def create(self, url: str, events: Sequence[str]) -> RemoteWebhook:
        """Create a webhook. Raises WebhookRefused, UpstreamError."""
        body = {"description": "opnc-ccp", "enabledEvents": list(events), "status": "enabled", "url": url}
        response = await self._call("POST", "", body)
        self._check(response, 200, 201)
        return self._webhook(self._parsed(response))

    async def update(self, webhook_id: str, url: str, events: Sequence[str]) -> bool:
        """Set address and events of a webhook, and enable it. False if it is not there (any more).

        Raises WebhookRefused, UpstreamError.
        """
        body = {"enabledEvents": list(events), "status": "enabled", "url": url}
        response = await self._call("PUT", f"/{quote(webhook_id, safe='')}", body)
        if response.status == 404:
            return False
        self._check(response, 200, 204)
        return True

    async def find(self, url: str) -> RemoteWebhook | None:
        """The webhook with an address, with its secret if the system reports it. Raises UpstreamError."""
        for webhook in await self._with_address(url):
            return webhook if webhook.secret else await self.get(webhook.id)
        return None

    async def delete_others(self, url: str, kept: str) -> None:
        """Remove webhooks with an address but for one, by its id. Raises UpstreamError."""
        for webhook in await self._with_address(url):
            if webhook.id != kept:
                await self.delete(webhook.id)

    async def _with_address(self, url: str) -> list[RemoteWebhook]:
        response = await self._call("GET", "")
        if response.status == 404:
            return []
        self._check(response, 200)
        listed = self._parsed(response)
        items = listed if isinstance(listed, list) else []
        return [self._webhook(item) for item in items if get_member(item, "url") == url]

    async def get(self, webhook_id: str) -> RemoteWebhook | None:
        """A webhook; None if it is not there. Raises UpstreamError."""
        response = await self._call("GET", f"/{quote(webhook_id, safe='')}")
        if response.status == 404:
            return None
        self._check(response, 200)
        return self._webhook(self._parsed(response))

    async def delete(self, webhook_id: str) -> None:
        """Remove a webhook; one that is not there is removed already. Raises UpstreamError."""
        response = await self._call("DELETE", f"/{quote(webhook_id, safe='')}")
        if response.status != 404:
            self._check(response, 200, 202, 204)

    async def _call(self, method: str, path: str, body: object = None) -> HttpResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            return await self._connection.request(
                method,
                path,
                headers=headers,
                content=b"" if body is None else orjson.dumps(body),
                timeout=_TIMEOUT,
                max_bytes=_MAX_BYTES,
            )
        except OutboundError as exc:
            raise UpstreamError(f"The event service of the {self.name} does not answer: {exc}") from exc

    def _check(self, response: HttpResponse, *expected: int) -> None:
        """Raises WebhookRefused for a 400, UpstreamError for any other unexpected status."""
        if response.status in expected:
            return
        try:
            reasons = sentences(get_member(orjson.loads(response.body), "errorMessages"))
        except orjson.JSONDecodeError:
            reasons = ()
        kind = WebhookRefused if response.status == 400 else UpstreamError
        reason = f": {' '.join(reasons)}" if reasons else "."
        raise kind(f"The event service of the {self.name} answered with status {response.status}{reason}")

    def _parsed(self, response: HttpResponse) -> Any:
        try:
            return orjson.loads(response.body)
        except orjson.JSONDecodeError as exc:
            raise UpstreamError(f"The answer of the event service of the {self.name} is not JSON.") from exc

    def _webhook(self, members: object) -> RemoteWebhook:
        found = {name: get_member(members, name) for name in ("id", "url", "secret")}
        identifier = str(found["id"]) if isinstance(found["id"], str | int) else ""
        if not 0 < len(identifier) <= _MAX_ID:
            raise UpstreamError(f"The answer of the event service of the {self.name} has no id of the webhook.")
        secret, url = found["secret"], found["url"]
        usable = isinstance(secret, str) and 0 < len(secret) <= _MAX_SECRET
        return RemoteWebhook(identifier, url if isinstance(url, str) else "", secret if usable else None)
