"""Payloads of Get15118EVCertificate, held against the schemas of the package ocpp."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import httpx
from ocpp.messages import Call, CallResult, validate_payload

from ccp.ids import Namespace
from ccp.schemas.ocpp import PATH
from ccp.testing.partners import Car
from ccp.verify import InstallationResponse, read_response
from tests.world import AT, SESSION, Pool, b64

ACTION = "Get15118EVCertificate"
SCHEMAS = {Namespace.ISO2: "urn:iso:15118:2:2013:MsgDef", Namespace.ISO20: "urn:iso:std:iso:15118:-20:CommonMessages"}


def payload(car: Car, message: bytes | None = None, *, session_id: bytes = SESSION, **members: Any) -> dict[str, Any]:
    """The payload of a station. message: by default the car's request."""
    body = {
        "iso15118SchemaVersion": SCHEMAS[car.namespace],
        "action": "Install",
        "exiRequest": b64(car.request(session_id, AT) if message is None else message),
    }
    return {**body, **members}


def post(
    pool: Pool, body: Any, caller: str | None = "cpo", headers: Mapping[str, str] | None = None, **query: Any
) -> httpx.Response:
    token = {"Authorization": f"Bearer {pool.token(caller)}"} if caller else {}
    return pool.http.post(PATH, json=body, headers={**token, **(headers or {})}, params=query)


def check(answer: Any, version: str) -> None:
    """Validate a response against the schema of a version. Raises an error of the package ocpp."""
    asyncio.run(validate_payload(CallResult("1", answer, ACTION), version))


def check_request(body: Any, version: str) -> None:
    """Validate a request against the schema of a version. Raises an error of the package ocpp."""
    asyncio.run(validate_payload(Call("1", ACTION, body), version))


def ask(pool: Pool, body: Any, version: str | None = None, **options: Any) -> dict[str, Any]:
    """Post a payload, and validate the response against the schema of the version: by default of 2.0.1 and of 2.1."""
    query = {"ocppVersion": version} if version else {}
    answer = post(pool, body, **query, **options)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    for each in [version] if version else ["2.1"] if "remainingContracts" in found else ["2.0.1", "2.1"]:
        check(found, each)
    return found


def exi_of(answer: Mapping[str, Any]) -> bytes:
    return base64.b64decode(answer["exiResponse"], validate=True)


def message_of(answer: Mapping[str, Any], car: Car) -> InstallationResponse:
    return read_response(exi_of(answer), car.namespace)


def installed(answer: Mapping[str, Any], car: Car, session_id: bytes = SESSION) -> str:
    """The EMAID of the contract that the car installs from a response."""
    assert answer["status"] == "Accepted", answer
    return str(car.install(exi_of(answer), session_id, AT)[0])


def remaining_in(answer: Mapping[str, Any], car: Car) -> int:
    """RemainingContractCertificateChains of a response to an ISO 15118-20 car."""
    return int(message_of(answer, car).parsed.message.RemainingContractCertificateChains)


def with_long_emaid(message: bytes) -> bytes:
    """A car's request whose last value, an EMAID of 255 characters, has one character more.

    No writer makes it. The length of a text is two bytes of seven bits each, the least significant first: of 255
    characters 81 02, of 256 characters 82 02.
    """
    number = int.from_bytes(message)
    length, text = b"\x81\x02", b"x" * 255
    for shift in range(8):
        found = (number >> shift).to_bytes(len(message))
        place = found.find(length + text)
        if place >= 0:
            changed = found[:place] + b"\x82\x02" + b"x" + found[place + 2 :]
            low = number & (1 << shift) - 1
            return (int.from_bytes(changed) << shift | low).to_bytes(len(message) + 1)
    raise AssertionError("no EMAID of 255 characters")
