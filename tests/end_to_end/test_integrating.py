"""docs/integrating.md shows requests and responses of a run, and its programs run as printed.

To write them into the document:  python -m tests.end_to_end.test_integrating
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.ids import EMAID, PCID, Namespace
from ccp.schemas.common import encode_base64
from ccp.server import settings
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.sandbox.setup import World, create, publish_body
from ccp.server.storage.queries import peers
from ccp.server.storage.queries.peers import Peer
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import Credential
from ccp.verify import read_response
from tests.scripted_server import Received, Reply, Scripted, scripted
from tests.server.http.ocpp.stations import connected
from tests.waiting import wait_until
from tests.world import opened, start

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "integrating.md"
SESSION = bytes.fromhex("0011223344556677")
PCID_1, PCID_2, UNKNOWN = (PCID.parse(f"WEX0SANDBOX{number:06d}") for number in (1, 2, 99))
DEEXA, NLEXB, NEW, ELSEWHERE = map(
    EMAID.parse, ("DEEXAC00000001", "NLEXBC00000001", "DEEXAC00000777", "DEEXAC00000888")
)
ANNOUNCED = EMAID.parse("DEEXAC00000778")
TRACE_ID = "c52fe6ad-1e39-4f6e-a0d0-e2d51aacf09f"


@dataclass
class Sandbox:
    """A running pool with a sandbox, and a server for the partners' webhooks."""

    base_url: str
    world: World
    folder: Path
    partners: Scripted
    shown: dict[str, str] = field(default_factory=dict)

    def car(self, pcid: PCID, edition: str = "iso2") -> Car:
        pki = self.world.pkis[edition]
        stored = self.folder / "vehicles" / edition
        own = Credential.load(stored, pcid) if any(stored.glob(f"*{pcid}*")) else None
        return Car.generate(pki, pcid, AT) if own is None else Car.from_credential(pki, own, pcid)

    def secret(self, client_id: str) -> str:
        return next(member.secret for member in self.world.members if member.party.client_id == client_id)

    def token(self, client_id: str) -> str:
        form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": self.secret(client_id)}
        token: str = httpx.post(f"{self.base_url}/oauth/token", data=form).json()["access_token"]
        return token

    def show(
        self,
        name: str,
        party: str | None,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        body: Any = None,
        form: dict[str, str] | None = None,
        status: int = 200,
    ) -> Any:
        """Send a request and record it with its response as text, without the values that differ between runs."""
        sent = {**({"Authorization": f"Bearer {self.token(party)}"} if party else {}), **(headers or {})}
        answer = httpx.request(method, self.base_url + path, headers=sent, json=body, data=form)
        assert answer.status_code == status, answer.text
        lines = [f"{method} {path} HTTP/1.1", "Host: ccp.example"]
        lines += [f"{key}: {'Bearer eyJ0…' if key == 'Authorization' else value}" for key, value in sent.items()]
        if form is not None:
            shown = {**form, "client_secret": "…"} if "client_secret" in form else form
            encoded = (
                str(httpx.QueryParams(shown))
                .replace("%E2%80%A6", "…")
                .replace(str(httpx.QueryParams({"x": self.base_url}))[2:], "https%3A%2F%2Fccp.example")
            )
            lines += ["Content-Type: application/x-www-form-urlencoded", "", encoded]
        if body is not None:
            lines += ["Content-Type: application/json", "", _json(body)]
        lines += ["", f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        if answer.content:
            lines.append(f"Content-Type: {answer.headers['content-type']}")
        if code := answer.headers.get("x-error-code"):
            lines.append(f"X-Error-Code: {code}")
        lines.append(f"X-Trace-Id: {TRACE_ID}")
        if answer.content:
            lines += ["", _json(answer.json())]
        self._keep(name, lines)
        return answer.json() if answer.content else None

    def show_event(self, name: str, event: Received, host: str) -> None:
        """Record an event and the partner's response. The partners share one server, each with a path."""
        lines = [f"{event.method} {event.target.removeprefix('/oem').removeprefix('/emsp')} HTTP/1.1", f"Host: {host}"]
        lines += ["Content-Type: application/json", "X-Operator-Signature: sha256=5f3a…", "payload-signature: 5f3a…"]
        lines += ["X-Hubject-Signature: 5f3a…", "X-Operator-Signatures: sha256=5f3a…"]
        assert event.headers["content-type"] == "application/json"
        assert event.headers["x-operator-signature"] == f"sha256={event.headers['payload-signature']}"
        assert event.headers["x-operator-signatures"] == event.headers["x-operator-signature"]
        self._keep(name, [*lines, "", _json(json.loads(event.body)), "", "HTTP/1.1 204 No Content"])

    def _keep(self, name: str, lines: list[str]) -> None:
        text = "\n".join(lines)
        for path, host in (("/oem", "maker.example"), ("/emsp", "provider.example")):
            text = text.replace(self.partners.url + path, f"https://{host}")
        text = re.sub(r"(?<=/endpoints/)[0-9a-f-]{36}", FIXED["id"], text)
        self.shown[name] = f"```http\n{text}\n```\n"


AT = datetime.now(UTC).replace(microsecond=0)
FIXED: dict[str, Any] = {
    "access_token": "eyJ0…",
    "client_secret": "…",
    "traceId": TRACE_ID,
    "certValidFrom": "2026-01-01T00:00:00Z",
    "certValidTo": "2028-01-01T00:00:00Z",
    "validFrom": "2026-01-01T00:00:00Z",
    "validTo": "2066-01-01T00:00:00Z",
    "rootCertificateId": "896b6655-180e-4304-b642-606bb00df8f0",
    "rootAuthorityKeyIdentifier": "S0X/giX8EJY=",
    "rootAuthorityKeyIdentifierHex": "4b45ff8225fc1096",
    "rootIssuerSerialNumber": "69ab00d259bbdf42ce80529ad30ce5ed",
    "fingerprint": "4e05b8922d43…",
    "fingerprintSha1": "a94a8fe5ccb1…",
    "cpsV2GRootCertificateFingerprint": "4e05b8922d43…",
    "cpsSignerRootFingerprint": "4e05b8922d43…",
    "at": "2026-01-01T00:00:00+00:00",
    "evidence": ["…"],
    "id": "0c1fb2a5-2f0e-4d3c-9a54-0f6d3b1c7e21",
    "created": 1767225600,
    "secret": "…",
    "eventId": "7d9a6c1e-53b8-4e0f-8a27-6f2f0d9b4c35",
    "timestamp": "2026-01-01T00:00:00.000Z",
    "finishedAt": "2026-01-01T00:00:00.120Z",
    "previousValidUntil": ["2026-01-01T01:00:00Z"],
    "durationMs": 12.5,
}


def _json(value: Any) -> str:
    return json.dumps(_shortened(value), indent=2, ensure_ascii=False)


def _shortened(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _shortened(member, key) for key, member in value.items()}
    if name in FIXED:
        return FIXED[name]
    if isinstance(value, list):
        return [_shortened(member) for member in value]
    if isinstance(value, str) and len(value) > 100 and re.fullmatch(r"[A-Za-z0-9+/=]+", value):
        return value[:3] + "…"
    return value


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    with tempfile.TemporaryDirectory(prefix="ccp-doc-") as name, loopback() as (listening, base_url):
        folder = Path(name) / ".sandbox"
        world = create(folder, base_url, AT, store_samples=True)
        # The partners' server is on loopback and without TLS.
        lax = {"log_level": "error", "event_allow_http": True, "egress_allow_networks": ("127.0.0.0/8",)}
        with running(settings.load(folder / "ccp.toml", **lax), listening), scripted() as partners:
            yield Sandbox(base_url, world, folder, partners)


def walk(box: Sandbox) -> dict[str, str]:
    """Send all requests of the document, in its order. Returns their texts by name."""
    token = {"grant_type": "client_credentials", "client_id": "example-cpo", "client_secret": box.secret("example-cpo")}
    box.show("token", None, "POST", "/oauth/token", form=token)
    ask = {
        "certificateInstallationReq": encode_base64(box.car(PCID_1).request(SESSION, AT)),
        "xsdMsgDefNamespace": str(Namespace.ISO2),
    }
    unknown_car = {**ask, "certificateInstallationReq": encode_base64(box.car(UNKNOWN).request(SESSION, AT))}
    opnc, opcp = "/opnc/v1/ccp", "/v1/ccp"
    headers = {"alwaysReturnEXI": "true", "broadcast": "true"}
    box.show("deliver", "example-cpo", "POST", f"{opnc}/signedcontractdata", body=ask, headers=headers)
    box.show("deliver-nothing", "example-cpo", "POST", f"{opnc}/signedcontractdata", body=unknown_car)
    box.show(
        *("deliver-404", "example-cpo", "POST", f"{opnc}/signedcontractdata"),
        **{"body": unknown_car, "headers": {"alwaysReturnEXI": "false"}, "status": 404},
    )
    station = {"action": "Install", "iso15118SchemaVersion": "urn:iso:15118:2:2013:MsgDef"}
    for name, body in (("ocpp-deliver", ask), ("ocpp-deliver-nothing", unknown_car)):
        payload = {**station, "exiRequest": body["certificateInstallationReq"]}
        box.show(name, "example-cpo", "POST", "/ocpp/v1/get15118EVCertificate?ocppVersion=2.0.1", body=payload)
    box.show("opcp-token-json", None, "POST", "/oauth/token", body=token)
    box.show("opcp-token-form", None, "POST", "/oauth/token", form={**token, "audience": box.base_url})
    box.show("opcp-deliver", "example-cpo", "POST", f"{opcp}/signedContractData", body=ask)
    box.show("opcp-deliver-nothing", "example-cpo", "POST", f"{opcp}/signedContractData", body=unknown_car)
    box.show("opcp-roots", "example-cpo", "GET", "/v1/root/rootCerts?rootType=MO")
    publication = {**publish_body(box.world.pkis["iso2"], NEW, box.car(PCID_2), AT), "metaData": "Example tariff"}
    box.show("dry-run", "example-emsp-a", "PUT", f"{opnc}/signedcontractdata?dryRun=true", body=publication)
    box.show("publish", "example-emsp-a", "PUT", f"{opnc}/signedcontractdata", body=publication, status=201)
    wrong = {**publication, "certificateInstallationRes": "AAAA"}
    box.show("publish-wrong", "example-emsp-a", "PUT", f"{opnc}/signedcontractdata", body=wrong, status=400)
    box.show("by-emaid", "example-emsp-a", "GET", f"{opnc}/contractData/emaid/{NEW}")
    box.show("withdraw", "example-emsp-a", "DELETE", f"{opnc}/signedcontractdata/{NEW}")
    box.show("by-pcid", "example-oem", "GET", f"{opnc}/contractData/pcid/{PCID_1}")
    box.show("set-default", "example-oem", "POST", f"{opnc}/signedcontractdata/{NLEXB}/{PCID_1}/setdefault")
    path = f"{opnc}/signedcontractdata/{NLEXB}/{PCID_1}?sessionID={SESSION.hex()}"
    box.show("pull", "example-oem", "GET", path)
    box.show("opcp-default", "example-oem", "POST", f"{opcp}/signedContractData/{PCID_1}/{DEEXA}/default")
    box.show("opcp-list", "example-oem", "GET", f"{opcp}/signedContractData/{PCID_1}")
    with start(box.world.pkis, pool_id="pool-b") as there:
        there.publish(box.car(PCID_2), ELSEWHERE)
        register_peer(box, Peer("pool-b", there.base_url, "opnc", "oem", there.world.member("oem").secret))
        to = {"OPNC-to-party-type": "ccp", "OPNC-to-party-id": "pool-b"}
        box.show("addressed", "example-oem", "GET", f"{opnc}/contractData/pcid/{PCID_2}", headers=to)
    walk_events(box)
    return box.shown


def register_peer(box: Sandbox, peer: Peer) -> None:
    """Register another pool and wait until the running pool knows it."""

    async def add() -> None:
        async with opened(settings.load(box.folder / "ccp.toml")) as store:
            await store.write(peers.add(peer, AT))

    asyncio.run(add())
    headers = {
        "Authorization": f"Bearer {box.token('example-oem')}",
        "OPNC-to-party-type": "ccp",
        "OPNC-to-party-id": peer.party_id,
    }
    deadline = time.monotonic() + 30
    while "No pool" in httpx.get(f"{box.base_url}/opnc/v1/ccp/contractData/pcid/{PCID_1}", headers=headers).text:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def walk_events(box: Sandbox) -> None:
    """Subscribe an OEM and an eMSP, publish a contract, and record both events."""
    service = "/opnc/v1/event/endpoints"
    maker = {
        "url": f"{box.partners.url}/oem/ccp-events",
        "enabledEvents": ["oem.contract.created", "oem.contract.updated", "oem.contract.deleted"],
        "wmi": ["WEX"],
        "description": "Contracts of our cars",
    }
    provider = {
        "url": f"{box.partners.url}/emsp/ccp-events",
        "enabledEvents": ["emsp.contract.created.sent.to.oem", "emsp.contract.delivered.to.oem"],
    }
    for path in ("/oem/ccp-events", "/emsp/ccp-events"):
        box.partners.on(path, Reply(204))
    made = box.show("subscribe-oem", "example-oem", "POST", service, body=maker, status=201)
    box.show("subscribe-emsp", "example-emsp-a", "POST", service, body=provider, status=201)
    publish(box, ANNOUNCED)
    box.show_event("event-oem", first_event(box, "/oem/ccp-events"), "maker.example")
    box.show_event("event-emsp", first_event(box, "/emsp/ccp-events"), "provider.example")
    change = {"url": maker["url"], "status": "disabled"}
    path = f"{service}/{made['id']}"
    wait_until(lambda: delivered(box, path), 60)
    box.show("deliveries", "example-oem", "GET", f"{path}/deliveries?limit=10")
    box.show("disable-endpoint", "example-oem", "PUT", path, body=change)
    box.show("rotate-endpoint-secret", "example-oem", "POST", f"{path}/secret", body={"overlap": 3600})
    box.show("ping-endpoint", "example-oem", "POST", f"{path}/ping")
    box.show("delete-endpoint", "example-oem", "DELETE", path)


def publish(box: Sandbox, emaid: EMAID) -> None:
    headers = {"Authorization": f"Bearer {box.token('example-emsp-a')}"}
    body = publish_body(box.world.pkis["iso2"], emaid, box.car(PCID_2), AT)
    answer = httpx.put(f"{box.base_url}/opnc/v1/ccp/signedcontractdata", headers=headers, json=body)
    assert answer.status_code == 201, answer.text


def first_event(box: Sandbox, path: str) -> Received:
    """Wait for the first event at a path."""
    wait_until(lambda: box.partners.asked(path), 60)
    return box.partners.asked(path)[0]


def delivered(box: Sandbox, path: str) -> bool:
    headers = {"Authorization": f"Bearer {box.token('example-oem')}"}
    answer = httpx.get(f"{box.base_url}{path}/deliveries?state=delivered", headers=headers)
    return len(answer.json()["deliveries"]) > 0


_BLOCK = re.compile(r"<!-- run: ([a-z0-9-]+) -->\n(```http\n.*?\n```\n)", re.DOTALL)
_PROGRAM = re.compile(r"<!-- program: ([a-z]+) -->\n```python\n(.*?)```", re.DOTALL)


def test_document_shows_the_requests_and_responses_of_a_run() -> None:
    shown = dict(_BLOCK.findall(DOCUMENT.read_text("utf-8")))
    with sandbox() as box:
        made = walk(box)
    assert set(shown) == set(made)
    for name, text in made.items():
        assert shown[name] == text, name


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with sandbox() as made:
        yield made


def program(box: Sandbox, name: str, monkeypatch: pytest.MonkeyPatch, client_id: str, max_lines: int = 10) -> str:
    monkeypatch.setenv("CCP_SECRET", box.secret(client_id))
    programs = dict(_PROGRAM.findall(DOCUMENT.read_text("utf-8")))
    assert client_id in programs[name]
    code = programs[name].replace("https://ccp.example", box.base_url)
    assert code != programs[name]
    assert len([line for line in code.splitlines() if line.strip()]) <= max_lines
    return code


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_csms_program_answers_its_stations(box: Sandbox, monkeypatch: pytest.MonkeyPatch, edition: str) -> None:
    scope: dict[str, Any] = {}
    exec(program(box, "csms", monkeypatch, "example-cpo"), scope)
    car = box.car(PCID_1 if edition == "iso2" else PCID.parse("WEX0SANDBOX000003"), edition)
    stranger = box.car(UNKNOWN, edition)

    async def station() -> tuple[bytes, bytes]:
        answers = [
            await scope["answer_station"](each.request(SESSION, AT), str(car.namespace)) for each in (car, stranger)
        ]
        await scope["ccp"].close()
        return answers[0], answers[1]

    answer, negative = asyncio.run(station())
    assert car.install(answer, SESSION, AT)[0].startswith(("DEEXA", "NLEXB"))
    assert not read_response(negative, car.namespace).response_code.startswith("OK")


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_stations_program_answers_a_station(box: Sandbox, monkeypatch: pytest.MonkeyPatch, edition: str) -> None:
    scope: dict[str, Any] = {}
    exec(program(box, "stations", monkeypatch, "example-cpo", 15), scope)
    car = box.car(PCID_1 if edition == "iso2" else PCID.parse("WEX0SANDBOX000003"), edition)
    stranger = box.car(UNKNOWN, edition)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def work() -> None:
        serving = asyncio.create_task(scope["serve_stations"]("127.0.0.1", port))
        await asyncio.to_thread(wait_until, lambda: is_listening(port))
        async with connected("2.0.1", f"ws://127.0.0.1:{port}/CS-1") as station:
            answer = await station.ask(car, car.request(SESSION, AT))
            refused = await station.ask(stranger, stranger.request(SESSION, AT))
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await scope["ccp"].close()
        assert (answer.status, refused.status) == ("Accepted", "Failed")
        message = base64.b64decode(answer.exi_response)
        assert car.install(message, SESSION, AT)[0].startswith(("DEEXA", "NLEXB"))

    asyncio.run(work())


def test_emsp_program_publishes_and_withdraws(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scope: dict[str, Any] = {}
    exec(program(box, "emsp", monkeypatch, "example-emsp-a"), scope)
    pcid = PCID.parse("WEX0SANDBOX000088")  # A car without contracts: the first one becomes the default.
    pki, car = box.world.pkis["iso2"], box.car(pcid)
    emaid = EMAID.parse("DEEXAC00000888")
    message = sign_contract(pki, issue_contract(pki, emaid, pcid, car.provisioning.certificate, AT), AT)
    scope["publish"](message, emaid, pcid)
    assert capsys.readouterr().out == f"{emaid} waits for {pcid}\n"
    with pytest.raises(ValueError, match="certificate"):
        scope["publish"](message, "DEEXAC00000889", pcid)
    assert scope["ccp"].withdraw(emaid).confirmed
    scope["ccp"].close()
    assert os.environ["CCP_SECRET"] not in DOCUMENT.read_text("utf-8")


def test_oem_program_sets_the_default_and_fetches(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scope: dict[str, Any] = {}
    exec(program(box, "oem", monkeypatch, "example-oem"), scope)
    message = scope["fetch"](PCID_1, NLEXB, SESSION)
    assert box.car(PCID_1).install(message, SESSION, AT)[0] == NLEXB
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {DEEXA, NLEXB}
    scope["ccp"].close()


def test_webhook_program_accepts_events_of_the_pool_only(
    box: Sandbox, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = {"Authorization": f"Bearer {box.token('example-oem')}"}
    box.partners.on("/taken", Reply(503), Reply(204))
    body = {"url": f"{box.partners.url}/taken", "enabledEvents": ["oem.contract.created"]}
    made = httpx.post(f"{box.base_url}/opnc/v1/event/endpoints", headers=headers, json=body).json()
    emaid = EMAID.parse("DEEXAC00000779")
    publish(box, emaid)
    event = first_event(box, "/taken")
    monkeypatch.setenv("CCP_WEBHOOK_SECRET", made["secret"])
    scope: dict[str, Any] = {}
    exec(dict(_PROGRAM.findall(DOCUMENT.read_text("utf-8")))["webhook"], scope)
    take = scope["take"]
    assert take({}, event.body) == 403
    assert take({**event.headers, "x-operator-signatures": "sha256=ü"}, event.body) == 403
    assert take(event.headers, event.body + b" ") == 403
    assert [take(event.headers, event.body) for _ in range(2)] == [204, 204]
    assert capsys.readouterr().out == f"oem.contract.created {emaid} {PCID_2}\n", "what came twice counts once"


if __name__ == "__main__":
    with sandbox() as made_here:
        texts = walk(made_here)
    document = re.sub(
        r"<!-- run: ([a-z0-9-]+) -->\n(```http\n.*?\n```\n)?",
        lambda found: f"<!-- run: {found[1]} -->\n{texts[found[1]]}",
        DOCUMENT.read_text("utf-8"),
        flags=re.DOTALL,
    )
    DOCUMENT.write_text(document, "utf-8")
