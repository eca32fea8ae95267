"""A webhook receiver on loopback that behaves well or badly, by path."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ClassVar

from ccp.server.domain.subscriptions import Webhook
from tests.databases import sql
from tests.scripted_server import HANG as NO_RESPONSE
from tests.scripted_server import Received, Reply, Scripted, run
from tests.waiting import wait_until

SECRET = "a secret of thirty-two characters"


class Sent(Received):
    """A request with a signed event."""

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event

    @property
    def kind(self) -> str:
        return str(self.event["eventType"])

    @property
    def pcid(self) -> str:
        return str(self.event["payload"]["pcid"])

    def is_signed(self, secret: str = SECRET) -> bool:
        """Whether all three headers are what a receiver computes with the published rule."""
        expected = hmac.new(secret.encode("utf-8"), self.body, hashlib.sha256).hexdigest()
        names = ("x-operator-signature", "payload-signature", "x-hubject-signature")
        single = tuple(self.headers[name] for name in names) == (f"sha256={expected}", expected, expected)
        return single and f"sha256={expected}" in self.headers["x-operator-signatures"].split(", ")


class Receiver(Scripted):
    """A scripted server whose paths answer 200 by default."""

    request_type: ClassVar[type[Received]] = Sent
    default: ClassVar[Reply] = Reply(200)

    def says(self, path: str, *statuses: int) -> None:
        """Set the statuses that a path answers with, in order; the last one repeats. HANG: none."""
        self.on(path, *(_reply(status) for status in statuses))

    def decides(self, path: str, status_of: Callable[[Sent], int]) -> None:
        """Let a function choose the status of each response of a path."""
        self.on(path, lambda sent: _reply(status_of(sent)))

    # The names of webhook tests for what the scripted server calls asked and received.
    at = Scripted.asked

    @property
    def sent(self) -> list[Sent]:
        return self.received


HANG = 0
until = wait_until


def _reply(status: int) -> Reply:
    return Reply(status) if status != HANG else NO_RESPONSE


@contextmanager
def receiving() -> Iterator[Receiver]:
    with run(Receiver) as receiver:
        yield receiver


def webhook(url: str, client_id: str = "oem", *events: str, **more: Any) -> Webhook:
    """Return a subscription, by default to every event of a car maker."""
    fields: dict[str, Any] = {
        "id": str(uuid.uuid4()), "client_id": client_id, "url": url, "description": "",
        "events": events or ("oem.contract.created", "oem.contract.updated", "oem.contract.deleted"),
        "wmis": (), "provider_ids": (), "metadata": {}, "api_version": "v1", "enabled": True, "secret": SECRET,
        "created_at": datetime.now(UTC), "updated_at": datetime.now(UTC),
    }  # fmt: skip
    return Webhook(**{**fields, **more})


def states(url: str, webhook_id: str) -> list[tuple[str, int, int | None]]:
    """State, attempts and last status of a webhook's deliveries, the oldest event first."""
    return sql(
        url,
        "select state, attempts, last_status from delivery where webhook_id = ? order by created_at, pcid, rev, part",
        webhook_id,
    )
