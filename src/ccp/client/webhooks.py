"""Management of the caller's webhooks. OPNC and OPCP have the same JSON under other paths.

Rotation and ping are beyond both descriptions; send them to opnc-ccp servers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal, TypeAlias
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from ccp.client.calls import Call, CallBuilder
from ccp.client.model import NewWebhookSecret, PingResult, RemovedWebhook, Webhook
from ccp.client.responses import HttpResponse, limited, malformed, parse, parse_time
from ccp.client.untrusted_text import MAX_SENTENCE
from ccp.errors import FieldError
from ccp.schemas.common import MAX_ITEMS, Routing
from ccp.schemas.events import EndpointSecret, PingOutcome, ReceivedEndpoint

SignatureFormat: TypeAlias = Literal["sha256", "bare"]

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
        return self._webhook_call("GET", "", _parse_list, routing, timeout)

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
        signature_format: SignatureFormat | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[Webhook]:
        """Subscribe to events. The result has the secret that signs them.

        events: their names, such as "oem.contract.created". wmis, provider_ids: limit it to some of the caller's ids.
        signature_format: "bare" for a receiver that expects no `sha256=` in X-Operator-Signature. It is not sent again
        when its outcome is unknown: see `list_webhooks` then.
        """
        body = {**_members(url, events, description, metadata, enabled, signature_format), **_ids(wmis, provider_ids)}
        return self._webhook_call(
            "POST", "", _parse_webhook, routing, timeout, body=body, success=_CREATED, repeatable=False
        )

    def get_webhook(
        self, webhook_id: str, *, routing: Routing | None = None, timeout: float | None = None
    ) -> Call[Webhook]:
        """Get a webhook, without its secret."""
        return self._webhook_call("GET", _path(webhook_id), _parse_webhook, routing, timeout)

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
        signature_format: SignatureFormat | None = None,
        routing: Routing | None = None,
        timeout: float | None = None,
    ) -> Call[Webhook]:
        """Change the given properties of a webhook; None leaves one as it is. url: required, also if it stays."""
        body = {**_members(url, events, description, metadata, enabled, signature_format), **_ids(wmis, provider_ids)}
        return self._webhook_call("PUT", _path(webhook_id), _parse_webhook, routing, timeout, body=body)

    def remove_webhook(
        self, webhook_id: str, *, routing: Routing | None = None, timeout: float | None = None
    ) -> Call[RemovedWebhook]:
        """Remove a webhook and its waiting events."""

        def parse(response: HttpResponse) -> RemovedWebhook:
            return RemovedWebhook()

        unconfirmed = RemovedWebhook(confirmed=False)
        return self._webhook_call(
            "DELETE", _path(webhook_id), parse, routing, timeout, success=_REMOVED, not_found_after_retry=unconfirmed
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
        path = f"{_path(webhook_id)}/secret"
        return self._webhook_call("POST", path, _parse_secret, routing, timeout, body=body, repeatable=False)

    def ping_webhook(
        self, webhook_id: str, *, routing: Routing | None = None, timeout: float | None = None
    ) -> Call[PingResult]:
        """Let the pool send a test event to a webhook now, and get what came back."""
        path = f"{_path(webhook_id)}/ping"
        return self._webhook_call("POST", path, _parse_ping, routing, timeout, repeatable=False)

    def _webhook_call(self, method: str, path: str, *args: Any, **options: Any) -> Call[Any]:
        return self._call(method, self.webhooks_path + path, *args, base="", **options)


def _path(webhook_id: str) -> str:
    """Raises FieldError for a text that is no id."""
    if not (0 < len(webhook_id) <= _MAX_ID and webhook_id.isprintable() and webhook_id not in (".", "..")):
        raise FieldError(f"webhook_id : must be 1 to {_MAX_ID} printable characters")
    return "/" + quote(webhook_id, safe="")


def _members(
    url: str,
    events: Iterable[str] | None,
    description: str | None,
    metadata: Mapping[str, Any] | None,
    enabled: bool | None,
    signature_format: str | None,
) -> dict[str, Any]:
    if isinstance(events, str):
        raise FieldError("events : must be a list of names, not one text")
    return {
        "url": url,
        "enabledEvents": None if events is None else list(events),
        "description": description,
        "metadata": None if metadata is None else dict(metadata),
        "status": None if enabled is None else "enabled" if enabled else "disabled",
        "signatureFormat": signature_format,
    }


def _ids(wmis: Iterable[str] | None, provider_ids: Iterable[str] | None) -> dict[str, list[str] | None]:
    return {
        "wmi": None if wmis is None else [str(each) for each in wmis],
        "providerIds": None if provider_ids is None else [str(each) for each in provider_ids],
    }


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
