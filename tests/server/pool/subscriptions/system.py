"""A root or provisioning certificate pool with an event service, and commands and events for a pool that uses it.

with event_system("/v1/webhook/endpoints") as system, start(pkis, pcp_url=system.url, …) as pool:
    subscribe(pool, "pcp")
    system.send("mo.prov.cert.deleted", {"pcid": car.pcid})       # signed, to the address that the pool gave
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx

from tests.cli.run import CommandResult, ccp_error, ccp_ok
from tests.scripted_server import Received, Reply, Scripted, json_reply, run
from tests.world import Pool

OPNC, OPCP = "/opnc/v1/event/endpoints", "/v1/webhook/endpoints"
TOKEN = "token-at-the-system"


class EventSystem(Scripted):
    """Its webhooks are in `webhooks`, by id. known: the events that it accepts. shows_secret: in which answers."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.webhooks: dict[str, dict[str, Any]] = {}
        self.known: set[str] | None = None
        self.shows_secret = {"POST", "GET"}
        self._numbers = itertools.count(1)

    def serve(self, path: str) -> None:
        self.on(path, self._collection)
        self.on(f"{path}/*", self._one)

    @property
    def webhook(self) -> dict[str, Any]:
        """The only webhook."""
        (found,) = self.webhooks.values()
        return found

    def send(self, kind: str, payload: Mapping[str, Any], at: datetime | None = None, **more: Any) -> httpx.Response:
        """Send a signed event to the only webhook. more: as for `post_event`."""
        return post_event(self.webhook["url"], self.webhook["secret"], event_body(kind, payload, at), **more)

    def _collection(self, request: Received) -> Reply:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return Reply(401)
        if request.method == "GET":
            return json_reply([self._shown(each, "") for each in self.webhooks.values()])
        wanted = json.loads(request.body)
        if (refused := self._refusal(wanted)) is not None:
            return refused
        made = {**wanted, "id": f"hook {next(self._numbers)}", "secret": f"secret-{uuid.uuid4()}"}
        self.webhooks[made["id"]] = made
        return json_reply(self._shown(made, "POST"), 201)

    def _one(self, request: Received) -> Reply:
        found = self.webhooks.get(request.path.rpartition("/")[2].replace("%20", " "))
        if found is None:
            return json_reply({"errorMessages": ["There is no such webhook."]}, 404)
        if request.method == "DELETE":
            del self.webhooks[found["id"]]
            return Reply(200)
        if request.method == "PUT":
            wanted = json.loads(request.body)
            if (refused := self._refusal(wanted)) is not None:
                return refused
            found.update(wanted)
        return json_reply(self._shown(found, request.method))

    def _refusal(self, wanted: Mapping[str, Any]) -> Reply | None:
        unknown = set(wanted["enabledEvents"]) - (self.known or set(wanted["enabledEvents"]))
        return json_reply({"errorMessages": [f"unknown: {sorted(unknown)}"]}, 400) if unknown else None

    def _shown(self, webhook: Mapping[str, Any], method: str) -> dict[str, Any]:
        return {name: each for name, each in webhook.items() if name != "secret" or method in self.shows_secret}


@contextmanager
def event_system(path: str) -> Iterator[EventSystem]:
    """path: of its webhooks."""
    with run(EventSystem) as system:
        system.serve(path)
        yield system


def event_body(kind: str, payload: Mapping[str, Any], at: datetime | None = None) -> bytes:
    at = at or datetime.now(UTC)
    return json.dumps(
        {"eventId": str(uuid.uuid4()), "eventType": kind, "timestamp": at.isoformat(), "payload": payload}
    ).encode()


def post_event(
    url: str, secret: str, body: bytes, header: str = "X-Operator-Signature", form: str = "sha256={}"
) -> httpx.Response:
    """form: of the header's value, with the hexadecimal signature in the place of {}."""
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return httpx.post(url, content=body, headers={"Content-Type": "application/json", header: form.format(signature)})


def environment(pool: Pool, **more: str) -> dict[str, str]:
    """The environment of commands that use a pool's database and settings."""
    settings = pool.settings
    values = {"CCP_DATABASE": settings.database, "CCP_BASE_URL": pool.base_url}
    for name, service in settings.services.items():
        token = service.token
        values |= {f"CCP_{name.upper()}_URL": service.url, f"CCP_{name.upper()}_DIALECT": service.dialect.value}
        if token is not None:
            values[f"CCP_{name.upper()}_TOKEN"] = token.get_secret_value()
    return values | more


def command(pool: Pool, line: str, **more: str) -> CommandResult:
    """Run a command that succeeds. line: with its arguments. more: environment."""
    return ccp_ok(*line.split()[1:], env=environment(pool, **more))


def command_error(pool: Pool, line: str, **more: str) -> str:
    """Run a command that fails; returns its sentence."""
    return ccp_error(*line.split()[1:], env=environment(pool, **more))


def subscribe(pool: Pool, name: str, **more: str) -> str:
    """Returns what the command prints."""
    return command(pool, f"ccp neighbour subscribe {name}", **more).out
