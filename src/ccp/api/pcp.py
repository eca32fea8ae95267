"""The webhook that a Provisioning Certificate Pool posts to: `POST /opnc/v1/ccp/events/pcp`.

A provisioning certificate that was deleted, renewed with a new key, or lost in a factory reset makes a vehicle's
contracts worthless: their keys were encrypted for the old one. The events are those of OPNC 1.0
(webhook.payload, emsp.… and mo.… names). The body is signed with HMAC-SHA256 under `pcp_webhook_secret`; the published
description puts the bare hexadecimal digest into `X-Operator-Signature` for one kind of event and into
`payload-signature` for the other, implementations write `sha256=` before it; each of these is read.

Nothing is remembered of events, and still one that comes twice, late or again after years does no harm: it removes only
what was published before it happened.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr
from pydantic_core import PydanticCustomError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ccp import wire
from ccp.api.opnc import BASE, Edge
from ccp.api.trace import trace_of
from ccp.errors import FieldError, NotAuthorised, Unavailable, UpstreamError
from ccp.ids import EMAID, PCID, Namespace
from ccp.neighbours import ProvisioningCertificatePool, ProvisioningChain
from ccp.store import Store
from ccp.store.vehicles import Binding, bindings, withdraw_vehicle

PATH: Final = f"{BASE}/events/pcp"

# An event that claims to be from later would remove what is published until then, again whenever it is replayed.
_CLOCKS_DIFFER: Final = timedelta(minutes=5)


class Change(StrEnum):
    """What happened to a vehicle's provisioning certificate."""

    DELETED = "prov.cert.deleted"
    UPDATED = "prov.cert.updated"
    FACTORY_RESET = "prov.cert.updated.factory.reset"


@dataclass(frozen=True, slots=True)
class VehicleEvent:
    """until: what was published later than this is no concern of the event. namespace: None for either edition."""

    change: Change
    pcid: PCID
    until: datetime
    namespace: Namespace | None


class VehicleEvents:
    """What events about vehicles bring about."""

    def __init__(self, store: Store, pcp: ProvisioningCertificatePool | None) -> None:
        """pcp: who is asked for the current key of a vehicle; None where nobody can be."""
        self._store = store
        self._pcp = pcp

    async def take(self, event: VehicleEvent, at: datetime) -> list[EMAID]:
        """Remove the contracts that the event makes worthless. Returns them. Raises Unavailable: send it again.

        Deleted and factory reset: all. Updated: those encrypted for another key than the vehicle has now. Where either
        key is not known, those published before the event go too: their eMSP is told of the event as well and signs
        anew, while a contract that the vehicle cannot decrypt would be delivered again and again.
        """
        if self._pcp is not None:
            self._pcp.forget(event.pcid)
        stale: Callable[[Binding], bool] = _published_by(event.until)
        if event.change is Change.UPDATED:
            if not await self._store.read(bindings(event.pcid)):
                return []
            stale = _bound_otherwise(event, await self._current(event.pcid))
        return await self._store.write(withdraw_vehicle(event.pcid, at, stale))

    async def _current(self, pcid: PCID) -> ProvisioningChain | None:
        try:
            return await self._pcp.ask(pcid) if self._pcp is not None else None
        except UpstreamError as exc:
            raise Unavailable("The Provisioning Certificate Pool cannot be asked for the vehicle's key now.") from exc


def _published_by(until: datetime) -> Callable[[Binding], bool]:
    return lambda binding: binding.published_at <= until


def _bound_otherwise(event: VehicleEvent, current: ProvisioningChain | None) -> Callable[[Binding], bool]:
    """Which variants an update makes stale; those of the other edition have a certificate of their own."""

    def stale(binding: Binding) -> bool:
        if event.namespace not in (None, binding.namespace):
            return False
        key = current.key_for(binding.namespace) if current else None
        if key is not None and binding.provisioning_key is not None:
            return key != binding.provisioning_key
        return binding.published_at <= event.until

    return stale


def pcp_route(edge: Edge, events: VehicleEvents, secret: SecretStr | None) -> Route:
    """secret: None takes no events at all; the path then answers as if there were nothing."""
    key = secret.get_secret_value().encode() if secret is not None else b""

    async def take(request: Request) -> Response:
        trace = trace_of(request.scope)
        trace.operation = "TakeProvisioningEvent"
        if not key:
            raise HTTPException(404)
        body = await edge.body(request.receive, request.headers)
        check_signature(key, request.headers, body)
        trace.caller = "pcp"
        at = edge.clock()
        event = read_event(body, at)
        if event is not None:
            trace.owner = event.pcid.wmi
            await events.take(event, at)
        return Response(status_code=200)

    return Route(PATH, take, methods=["POST"])


def check_signature(key: bytes, headers: Headers, body: bytes) -> None:
    """Raises NotAuthorised, in time that does not tell how wrong the signature is."""
    given = headers.get("x-operator-signature") or headers.get("payload-signature") or ""
    expected = hmac.new(key, body, hashlib.sha256).hexdigest()
    said = given.strip().lower().removeprefix("sha256=")
    if not hmac.compare_digest(said.encode("utf-8", "replace"), expected.encode()):
        raise NotAuthorised("The signature of the event is missing or wrong.")


class _Vehicle(BaseModel):
    model_config = ConfigDict(extra="ignore")

    pcid: wire.PCIDField


def _instant(value: object) -> datetime:
    """The last microsecond that a time may stand for: one without a fraction is the whole second. Source: RFC 3339."""
    try:
        if not isinstance(value, str):
            raise TypeError
        moment = datetime.fromisoformat(value)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        return moment if "." in value else moment.replace(microsecond=999_999)
    except (ValueError, TypeError, OverflowError) as exc:
        raise PydanticCustomError("field", "timestamp : must be a time as in RFC 3339") from exc


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore")

    eventType: str
    timestamp: Annotated[datetime, BeforeValidator(_instant)]
    payload: _Vehicle
    xsdMsgDefNamespace: wire.NamespaceField | None = None


class _AnyEvent(BaseModel):
    model_config = ConfigDict(extra="ignore")

    eventType: str


def read_event(body: bytes, at: datetime) -> VehicleEvent | None:
    """The event of a body; None if it is one that does not concern vehicles' certificates. Raises FieldError."""
    name = wire.read_body(_AnyEvent, body).eventType
    owner, _, what = name.partition(".")
    if owner not in ("emsp", "mo") or what not in {change.value for change in Change}:
        return None
    event = wire.read_body(_Event, body)
    if event.timestamp > at + _CLOCKS_DIFFER:
        raise FieldError("timestamp : must not be in the future")
    return VehicleEvent(Change(what), event.payload.pcid, event.timestamp, event.xsdMsgDefNamespace)
