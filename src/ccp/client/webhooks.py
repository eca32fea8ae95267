"""Management of the caller's webhooks. OPNC and OPCP have the same JSON under other paths.

Rotation and ping are beyond both descriptions; send them to opnc-ccp servers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from ccp.client.calls import Call, CallBuilder
from ccp.client.model import NewWebhookSecret, PingResult, RemovedWebhook, Webhook
from ccp.client.responses import HttpResponse, limited, malformed, parse, parse_time
from ccp.client.untrusted_text import MAX_SENTENCE
from ccp.errors import FieldError
from ccp.schemas.common import MAX_ITEMS, Routing
from ccp.schemas.events import EndpointSecret, PingOutcome, ReceivedEndpoint, SignatureFormatField

_ENDPOINTS: Final = TypeAdapter(list[ReceivedEndpoint])
_MAX_ID: Final = 200  # Characters of a webhook's id.
_CREATED: Final = frozenset({200, 201})
_REMOVED: Final = frozenset({200, 204})


class WebhookOperations(CallBuilder):
    """The operations on webhooks. Webhooks are named by their ids; NotFoundError is raised for an unknown one."""

    webhooks_path: ClassVar[str]

    def list_webhooks(
        self, *, routing: Routing | None = None, timeout: float | None = None
    ) -> Call[tuple[Webhook, ...]]:
        """List the caller's webhooks, without their secrets."""
        return self._call("GET", self.webhooks_path, _parse_list, routing, timeout, base="")

    def create_webhook(
        self,
        url: str,
        events: Iterable[str],
        *,
        wmis: Iterable[str] | None = None,
        provider_ids: Iterable[str] | None = None,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        enabled: bool | None = None,
        signature_format: SignatureFormatField | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[Webhook]:
        """Subscribe to events. The result has the secret that signs them.

        events: their names, such as "oem.contract.created". wmis, provider_ids: limit it to some of the caller's ids.
        signature_format: "bare" for a receiver that expects no `sha256=` in X-Operator-Signature. It is not sent again
        when its outcome is unknown: see `list_webhooks` then.
        """
        body = _members(url, events, wmis, provider_ids, description, metadata, enabled, signature_format)
        return self._call(
            "POST",
            self.webhooks_path,
            _parse_webhook,
            routing,
            timeout,
            base="",
            body=body,
            success=_CREATED,
            repeatable=False,
        )

    def get_webhook(
        self, webhook_id: str, *, routing: Routing | None = None, timeout: float | None = None
    ) -> Call[Webhook]:
        """Get a webhook, without its secret."""
        return self._call("GET", self._path_of(webhook_id), _parse_webhook, routing, timeout, base="")

    def change_webhook(
        self,
        webhook_id: str,
        url: str,
        *,
        events: Iterable[str] | None = None,
        wmis: Iterable[str] | None = None,
        provider_ids: Iterable[str] | None = None,
        description: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        enabled: bool | None = None,
        signature_format: SignatureFormatField | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[Webhook]:
        """Change the given properties of a webhook; None leaves one as it is. url: required, also if it stays."""
        body = _members(url, events, wmis, provider_ids, description, metadata, enabled, signature_format)
        return self._call("PUT", self._path_of(webhook_id), _parse_webhook, routing, timeout, base="", body=body)

    def remove_webhook(
        self, webhook_id: str, *, routing: Routing | None = None, timeout: float | None = None
    ) -> Call[RemovedWebhook]:
        """Remove a webhook and its waiting events."""

        def parse(response: HttpResponse) -> RemovedWebhook:
            return RemovedWebhook()

        return self._call(
            "DELETE",
            self._path_of(webhook_id),
            parse,
            routing,
            timeout,
            base="",
            success=_REMOVED,
            not_found_after_retry=RemovedWebhook(confirmed=False),
        )

    def rotate_webhook_secret(
        self,
        webhook_id: str,
        *,
        overlap: int | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[NewWebhookSecret]:
        """Replace the secret of a webhook and get the new one, which is not shown again.

        overlap: seconds for which the previous secret stays valid; None for as long as the pool allows; 0 ends all
        older ones at once. It is not sent again when its outcome is unknown: the previous secret is valid then, and a
        second rotation gives a secret that is known.
        """
        body = {} if overlap is None else {"overlap": overlap}
        path = f"{self._path_of(webhook_id)}/secret"
        return self._call("POST", path, _parse_secret, routing, timeout, base="", body=body, repeatable=False)

    def ping_webhook(
        self, webhook_id: str, *, routing: Routing | None = None, timeout: float | None = None
    ) -> Call[PingResult]:
        """Let the pool send a test event to a webhook now, and get what came back."""
        path = f"{self._path_of(webhook_id)}/ping"
        return self._call("POST", path, _parse_ping, routing, timeout, base="", repeatable=False)

    def _path_of(self, webhook_id: str) -> str:
        """Raises FieldError for a text that is no id."""
        if not (0 < len(webhook_id) <= _MAX_ID and webhook_id.isprintable() and webhook_id not in (".", "..")):
            raise FieldError(f"webhook_id : must be 1 to {_MAX_ID} printable characters")
        return f"{self.webhooks_path}/{quote(webhook_id, safe='')}"


def _members(
    url: str,
    events: Iterable[str] | None,
    wmis: Iterable[str] | None,
    provider_ids: Iterable[str] | None,
    description: str | None,
    metadata: Mapping[str, Any] | None,
    enabled: bool | None,
    signature_format: str | None,
) -> dict[str, Any]:
    """The members of a request. Raises FieldError."""
    return {
        "url": url,
        "enabledEvents": _list("events", events),
        "wmi": _list("wmis", wmis),
        "providerIds": _list("provider_ids", provider_ids),
        "description": description,
        "metadata": None if metadata is None else dict(metadata),
        "status": None if enabled is None else "enabled" if enabled else "disabled",
        "signatureFormat": signature_format,
    }


def _list(name: str, texts: Iterable[str] | None) -> list[str] | None:
    """Raises FieldError for a single text, whose characters would be the items."""
    if isinstance(texts, str):
        raise FieldError(f"{name} : must be a list, not one text")
    return None if texts is None else [str(each) for each in texts]


def _parse_list(response: HttpResponse) -> tuple[Webhook, ...]:
    try:
        items = _ENDPOINTS.validate_json(response.body)
    except ValidationError as exc:
        raise malformed("The response is not a list of webhooks.", response) from exc
    if len(items) > MAX_ITEMS:
        raise malformed(f"The response has more than {MAX_ITEMS} webhooks.", response)
    return tuple(_webhook(item, response) for item in items)


def _parse_webhook(response: HttpResponse) -> Webhook:
    return _webhook(parse(ReceivedEndpoint, response), response)


def _webhook(item: ReceivedEndpoint, response: HttpResponse) -> Webhook:
    try:
        created = datetime.fromtimestamp(item.created, UTC)
    except (ValueError, OverflowError, OSError) as exc:
        raise malformed("A time in the response cannot be read.", response) from exc
    return Webhook(
        item.id,
        item.url,
        tuple(item.names),
        item.status != "disabled",
        created,
        description=limited(item.description, MAX_SENTENCE) or "",
        metadata=item.metadata or {},
        signature_format=item.signatureFormat or "sha256",
        wmis=tuple(item.wmis or ()),
        provider_ids=tuple(item.providerIds or ()),
        role=limited(item.userRole, MAX_SENTENCE),
        owner=limited(item.userName, MAX_SENTENCE),
        secret=item.secret,
        previous_secrets_valid_until=tuple(parse_time(each, response) for each in item.previousSecretsValidUntil or ()),
    )


def _parse_secret(response: HttpResponse) -> NewWebhookSecret:
    found = parse(EndpointSecret, response)
    return NewWebhookSecret(found.secret, tuple(parse_time(each, response) for each in found.previousValidUntil))


def _parse_ping(response: HttpResponse) -> PingResult:
    found = parse(PingOutcome, response)
    return PingResult(
        found.eventId,
        found.delivered,
        found.status,
        found.durationMs,
        limited(found.error, MAX_SENTENCE),
        found.previousSecret,
    )
