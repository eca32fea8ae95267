"""The whole story over real HTTP, for both editions: from an empty pool to a car that holds a contract's key."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

from ccp import installation
from ccp.api.opnc import BASE
from ccp.errors import CCPError
from ccp.ids import EMAID, PCID, Namespace
from ccp.settings import Settings
from ccp.sim.parties import Car, new_session_id
from ccp.sim.pki import PKI
from ccp.sim.sandbox import EMSP_A, EMSP_B, OEM_WMI, World, build_world, publish_body, register, request_body
from ccp.sim.server import loopback, running
from ccp.store import connect, schema

_TITLES: Final = {"iso2": "ISO 15118-2", "iso20": "ISO 15118-20"}


class StepFailed(CCPError):
    """Something in the story did not go as it has to."""

    code = "demo"


@dataclass
class Story:
    """Tells each step in one line, with its HTTP status and time."""

    tell: Callable[[str, str, str, float], None]
    steps: int = 0
    installed: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, edition: str, text: str) -> Iterator[list[str]]:
        """A step; what is put into the list is told as its result."""
        began = time.perf_counter()
        result: list[str] = []
        yield result
        self.steps += 1
        self.tell(edition, text, " ".join(result) or "done", time.perf_counter() - began)


async def prepare(folder: Path, base_url: str, at: datetime) -> tuple[World, Settings]:
    """A new database with a PKI and parties."""
    config = Settings(database=f"sqlite:///{folder / 'ccp.db'}", base_url=base_url, log_level="error")
    schema.upgrade(config.database)
    world = build_world(at)
    store = connect(config.database)
    await store.open()
    try:
        await register(store, world, at)
    finally:
        await store.close()
    return world, config


def run(tell: Callable[[str, str, str, float], None]) -> Story:
    """Run the story in a temporary directory. Raises StepFailed, or any error of the checks that the car makes."""
    story = Story(tell)
    at = datetime.now(UTC)
    with tempfile.TemporaryDirectory(prefix="ccp-demo-") as folder, loopback() as (listening, base_url):
        with story.step("", "build two PKIs, create the database, register five parties") as result:
            world, config = asyncio.run(prepare(Path(folder), base_url, at))
            result.append(f"{len(world.pkis)} PKIs, {len(world.members)} parties")
        with running(config, listening), httpx.Client(base_url=base_url, timeout=10) as http:
            tokens = {}
            with story.step("", "every party gets an access token") as result:
                for member in world.members:
                    tokens[member.party.name] = _token(http, member.party.client_id, member.secret)
                result.append("HTTP 200")
            callers = {name: _Caller(http, token) for name, token in tokens.items()}
            for edition, pki in world.pkis.items():
                _tell_edition(story, edition, pki, callers, at)
    return story


class _Caller:
    """One party's calls."""

    def __init__(self, http: httpx.Client, token: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    def call(self, method: str, path: str, expected: int, body: Any = None) -> Any:
        answer = self._http.request(method, BASE + path, json=body, headers=self._headers)
        if answer.status_code != expected:
            raise StepFailed(f"{method} {path} answered {answer.status_code}, not {expected}: {answer.text}")
        return answer.json() if answer.content else None


def _token(http: httpx.Client, client_id: str, secret: str) -> str:
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    answer = http.post("/oauth/token", data=form)
    if answer.status_code != 200:
        raise StepFailed(f"The token endpoint answered {answer.status_code}: {answer.text}")
    token: str = answer.json()["access_token"]
    return token


def _tell_edition(story: Story, edition: str, pki: PKI, callers: dict[str, _Caller], at: datetime) -> None:
    title = _TITLES[edition]
    number = 1 if edition == "iso2" else 2
    car = Car.build(pki, PCID.parse(f"{OEM_WMI}0DEMO{number:09d}"), at)
    first, second = (EMAID.parse(f"{provider}D{number:08d}") for provider in (EMSP_A, EMSP_B))
    oem, cpo = callers["Example OEM"], callers["Example CPO"]

    for emaid, publisher in ((first, "Example eMSP A"), (second, "Example CPS")):
        with story.step(title, f"{emaid[:5]} makes contract {emaid}, the CPS signs it") as result:
            body = publish_body(pki, emaid, car, at)
            result.append(f"{len(base64.b64decode(body['certificateInstallationRes']))} octets")
        with story.step(title, f"{publisher.removeprefix('Example ')} publishes {emaid}") as result:
            callers[publisher].call("PUT", "/signedcontractdata", 201, body)
            result.append("HTTP 201")

    with story.step(title, f"OEM lists the contracts of {car.pcid}") as result:
        namespace = {"xsdMsgDefNamespace": str(car.namespace)}
        listed = oem.call("GET", f"/contractData/pcid/{car.pcid}?{httpx.QueryParams(namespace)}", 200)
        result.append(f"HTTP 200, {len(listed['contractDataCollection'])} contracts")
    with story.step(title, f"OEM makes {second} the default") as result:
        oem.call("POST", f"/signedcontractdata/{second}/{car.pcid}/setdefault", 200)
        result.append("HTTP 200")

    session_id = new_session_id()
    with story.step(title, "CPO posts the car's signed request") as result:
        request = {
            "certificateInstallationReq": base64.b64encode(car.request(session_id, at)).decode(),
            "xsdMsgDefNamespace": str(car.namespace),
        }
        items = cpo.call("POST", "/signedcontractdata", 200, request)["signedContractDataCollection"]
        result.append(f"HTTP 200, {len(items)} response(s)")
    with story.step(title, "the car checks session, chains and signature, decrypts the key") as result:
        emaid, _ = car.install(base64.b64decode(items[0]["certificateInstallationRes"]), session_id, at)
        if emaid != second:
            raise StepFailed(f"The car got {emaid}, not its default contract {second}.")
        result.append(f"installed {emaid}")
        story.installed.append(f"{title}: {emaid}")

    with story.step(title, "a car without contracts asks") as result:
        stranger = Car.build(pki, PCID.parse(f"{OEM_WMI}0NONE{number:09d}"), at)
        items = cpo.call("POST", "/signedcontractdata", 200, request_body(stranger, at))["signedContractDataCollection"]
        result.append(f"HTTP 200, {_code(items[0]['certificateInstallationRes'], car.namespace)}")

    for emaid, emsp in ((first, "Example eMSP A"), (second, "Example eMSP B")):
        with story.step(title, f"{emaid[:5]} deletes {emaid}") as result:
            callers[emsp].call("DELETE", f"/signedcontractdata/{emaid}", 200)
            result.append("HTTP 200")
    with story.step(title, "the first car asks again") as result:
        items = cpo.call("POST", "/signedcontractdata", 200, request_body(car, at))["signedContractDataCollection"]
        result.append(f"HTTP 200, {_code(items[0]['certificateInstallationRes'], car.namespace)}")


def _code(message: str, namespace: Namespace) -> str:
    """The code of a negative response. Raises StepFailed when it is a positive one."""
    response = installation.read_response(base64.b64decode(message), namespace)
    if response.response_code.startswith("OK"):
        raise StepFailed("A car got a contract that is not there.")
    return response.response_code
