"""The log contains no EMAID or PCID, but pseudonyms by which one vehicle can be followed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.ids import EMAID, PCID
from ccp.server.logging import mask_exception
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.cli.run import ccp_ok
from tests.cli.served_sandbox import BASE, free_port, serving
from tests.server.storage.made import sql
from tests.world import AT, Pool, new_emaid, new_pcid, post_body, start


@dataclass
class ServerLog:
    """The output of a server, and the requests and ids that it got."""

    text: str
    ids: list[EMAID | PCID]
    config: Path
    car: Car
    emaid: EMAID
    requests: int

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]


@contextmanager
def asked(pkis: dict[str, PKI], folder: Path, **settings: str) -> Iterator[ServerLog]:
    """A server of its own on a database that was filled before; it does everything, well and badly, and ends."""
    with start(pkis) as pool:
        port = free_port()
        config, log = folder / "ccp.toml", folder / "log"
        values = {"base_url": f"http://127.0.0.1:{port}", "log_level": "debug", "workers": "2", **settings}
        pool.sql("delete from pool_secret")  # Two workers that start together make it anew.
        lines = [f'{name} = "{value}"' for name, value in values.items()]
        config.write_text("\n".join([f'database = "{pool.settings.database}"', *lines]))
        with serving(values["base_url"], "--config", config, "--port", port, log=log) as http:
            tokens = {name: token(http, pool, name) for name in ("emsp", "cpo", "oem", "cps")}
            server_log = everything(pool, http, tokens)
        server_log.text, server_log.config = log.read_text(), config
        yield server_log


def token(http: httpx.Client, pool: Pool, name: str) -> dict[str, str]:
    form = {"grant_type": "client_credentials", "client_id": name, "client_secret": pool.world.member(name).secret}
    answer = http.post("/oauth/token", data=form)
    assert answer.status_code == 200, answer.text
    return {"Authorization": f"Bearer {answer.json()['access_token']}"}


def everything(pool: Pool, http: httpx.Client, tokens: dict[str, dict[str, str]]) -> ServerLog:
    """All seven operations, and each of them refused, unknown, malformed, and without a token."""
    car, other = pool.car(), pool.car()
    foreign = pool.car(wmi="WXB")
    contract, unknown, foreign_emaid, foreign_pcid = pool.contract(car), new_emaid(), new_emaid("NLEXB"), foreign.pcid
    emaid = contract.emaid
    statuses: list[int] = []

    def call(method: str, path: str, who: str | None, **how: Any) -> None:
        headers = {**(tokens[who] if who else {}), **how.pop("headers", {})}
        answer = http.request(method, f"{BASE}{path}", headers=headers, **how)
        assert answer.status_code < 500, answer.text
        statuses.append(answer.status_code)

    def request(asking: Car) -> dict[str, Any]:
        return post_body(asking.request(b"\1" * 8, AT), str(asking.namespace))

    iso2 = {"xsdMsgDefNamespace": str(car.namespace)}
    call("PUT", "/signedcontractdata", "cps", json=contract.body)
    call("PUT", "/signedcontractdata", "cps", json=pool.contract(other, emaid, signer="stranger").body)
    call("PUT", "/signedcontractdata", "cps", json={**contract.body, "emaid": str(unknown)})
    call("PUT", "/signedcontractdata", "cps", json={**contract.body, "pcid": f"{car.pcid}!"})
    call("PUT", "/signedcontractdata", "cps", json={**contract.body, "more": str(emaid)}, params={"dryRun": str(emaid)})
    for who in ("emsp", "oem", None):
        foreign_body = pool.contract(foreign, foreign_emaid).body
        call("PUT", "/signedcontractdata", who, json=foreign_body)
    for asking in (car, other):
        for always in ("true", "false"):
            call("POST", "/signedcontractdata", "cpo", json=request(asking), headers={"alwaysReturnEXI": always})
    call("POST", "/signedcontractdata", None, json=request(car))
    call("POST", "/signedcontractdata", "cpo", content=str(emaid).encode())
    paths = [
        ("GET", "/contractData/emaid/{emaid}"),
        ("GET", "/contractData/pcid/{pcid}"),
        ("GET", "/signedcontractdata/{emaid}/{pcid}"),
        ("POST", "/signedcontractdata/{emaid}/{pcid}/setdefault"),
        ("GET", "/nothing/{emaid}/{pcid}"),
        ("DELETE", "/signedcontractdata/{emaid}"),
    ]
    pairs = [(emaid, car.pcid), (unknown, new_pcid()), (foreign_emaid, foreign_pcid), (f"{emaid}!", f"{car.pcid}0000")]
    for method, path in paths:
        for who in (None, "cps", "oem", "emsp"):
            for one, vehicle in reversed(pairs):
                call(method, path.format(emaid=one, pcid=vehicle), who, params=iso2 if method == "GET" else None)
    hyphens = f"{emaid[:2]}-{emaid[2:5]}-{emaid[5:]}".lower()
    call("GET", f"/contractData/emaid/{hyphens}", "emsp", params={"xsdMsgDefNamespace": str(emaid)})
    assert set(statuses) == {200, 201, 400, 401, 403, 404}, statuses
    assert statuses.count(200) >= 7
    named = [emaid, unknown, foreign_emaid, car.pcid, other.pcid, foreign_pcid]
    return ServerLog("", named, Path(), car, emaid, len(statuses))


@pytest.fixture(scope="module")
def server_log(pkis: dict[str, PKI], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerLog]:
    with asked(pkis, tmp_path_factory.mktemp("logs")) as server_log:
        yield server_log


def test_ids_stand_in_the_log_in_no_form_whatever_was_asked(server_log: ServerLog) -> None:
    assert len([event for event in server_log.events if event["event"] == "request handled"]) > server_log.requests
    text = server_log.text.upper().replace("-", "")
    for named in server_log.ids:
        assert named not in text


def test_ids_are_longer_than_every_word_in_the_log_but_for_hashes_and_names(server_log: ServerLog) -> None:
    """Covers ids that the previous test does not list."""
    operations = {event.get("operation") for event in server_log.events}
    words = set(re.findall(r"[A-Za-z0-9_]{14,}", server_log.text)) - operations
    assert {word for word in words if not re.fullmatch(r"[0-9a-f]{16}|[a-z_]+|\d{4}.*", word)} == set()


def test_pseudonyms_let_one_vehicle_and_one_contract_be_followed(server_log: ServerLog) -> None:
    for kind, named in (("emaid", server_log.emaid), ("pcid", server_log.car.pcid)):
        (pseudonym,) = ccp_ok("audit", "pseudonym", named, "--config", server_log.config).lines
        assert re.fullmatch(r"[0-9a-f]{16}", pseudonym)
        found = {event["operation"] for event in server_log.events if event.get(kind) == pseudonym}
        assert {"AddSignedContractData", "GetSignedContractDataByCertificateInstallationReq"} <= found
        assert {"GetSignedContractDataByEmaidAndPcid", "SetSignedContractDataAsDefault"} <= found
        assert ("DeleteSignedContractDataByEmaid" in found) is (kind == "emaid")
        others = {event[kind] for event in server_log.events if event.get(kind)} - {pseudonym}
        assert len(others) >= 2


def test_request_that_is_refused_or_fails_has_its_ids_in_the_log_too(server_log: ServerLog) -> None:
    statuses = {event["status"] for event in server_log.events if event.get("emaid") and event.get("pcid")}
    assert {200, 201, 400, 401, 403, 404} <= statuses
    assert all(event["owner"] in ("DEEXA", "NLEXB", "WEX", "WXB") for event in server_log.events if event.get("emaid"))


def test_workers_that_start_together_use_the_one_key_that_the_database_keeps(server_log: ServerLog) -> None:
    values = server_log.config.read_text()
    database = re.search(r'database = "(.*)"', values)
    assert database is not None
    assert sql(database[1], "select count(*) from pool_secret") == [(1,)]
    named = {event["emaid"] for event in server_log.events if event.get("owner") == "NLEXB" and event.get("emaid")}
    assert len(named) == 1


@pytest.mark.parametrize("mode", ["owner", "clear"])
def test_log_says_of_ids_what_the_setting_allows(pkis: dict[str, PKI], tmp_path: Path, mode: str) -> None:
    with start(pkis) as pool:
        port, emaid = free_port(), new_emaid()
        config, log = tmp_path / "ccp.toml", tmp_path / "log"
        base = f"http://127.0.0.1:{port}"
        config.write_text(f'database = "{pool.settings.database}"\nbase_url = "{base}"\nlog_identifiers = "{mode}"\n')
        with serving(base, "--config", config, "--port", port, log=log) as http:
            http.get(f"{BASE}/contractData/emaid/{emaid}")
        events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        (event,) = [event for event in events if event.get("owner") == "DEEXA"]
        assert event.get("emaid") == (emaid if mode == "clear" else None)
        # What is refused waits for its turn, and is written when the server ends at the latest.
        assert sql(pool.settings.database, "select count(*) from audit where subject like ?", f"%{emaid}%") == [(1,)]


def test_logging_masks_the_text_of_an_exception_and_its_traceback_can_be_read() -> None:
    text = (
        'File "/usr/lib/python3.11/site-packages/ccp/pool.py", line 17, in signed_contract_data_of_vehicle\n'
        "KeyError: 'DEEXAT00000001' and WEX0TEST000000001"
    )
    event = mask_exception({"exception": text})
    assert event["exception"] == text.replace("T00000001", "…").replace("TEST000000001", "TEST000000001"[:1] + "…")
