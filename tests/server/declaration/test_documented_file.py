"""The file of docs/declaring.md, applied to a running pool, which serves a car right after it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.settings import Settings
from ccp.server.storage.engine import schema
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI
from tests.cli.run import ccp, ccp_error, ccp_ok
from tests.documents import DOCS
from tests.scripted_server import error, scripted
from tests.server.http.api.answers import sentences
from tests.server.pool.peers.requests import to
from tests.waiting import wait_until
from tests.world import AT, SESSION, new_emaid, new_pcid, post_body, put_body

CPS_SECRET = "a-secret-of-the-provisioning-service"
CPO_SECRET = "a-secret-of-the-charging-operator"


@dataclass
class Place:
    """A pool on an empty database, the directory of the declaration, and the documented file in it."""

    http: httpx.Client
    folder: Path
    database: str

    @property
    def variables(self) -> dict[str, str]:
        return {"CCP_DATABASE": self.database, "EXAMPLE_CPS_SECRET": CPS_SECRET}

    def apply(self, *options: object) -> dict[str, Any]:
        done = ccp_ok("apply", self.folder / "pool.toml", "--json", *options, env=self.variables)
        members: dict[str, Any] = json.loads(done.out)
        return members

    def token(self, client_id: str, secret: str) -> dict[str, str]:
        form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
        answer = self.http.post("/oauth/token", data=form)
        assert answer.status_code == 200, answer.text
        return {"Authorization": f"Bearer {answer.json()['access_token']}"}


@pytest.fixture
def database(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'ccp.db'}"


@pytest.fixture
def place(tmp_path: Path, database: str, pkis: dict[str, PKI]) -> Iterator[Place]:
    schema.upgrade(database)
    documented = re.search(r"```toml\n(.*?)```", (DOCS / "declaring.md").read_text("utf-8"), re.DOTALL)
    assert documented is not None
    for name, secret in (("example-cpo", CPO_SECRET), ("pool-b", "a-secret-that-pool-b-gave")):
        (tmp_path / "secrets").mkdir(exist_ok=True)
        (tmp_path / "secrets" / name).write_text(f"{secret}\n")
    anchors = tmp_path / "anchors"
    (anchors / "oem").mkdir(parents=True)
    files = {"v2g": anchors / "v2g.pem", "emsp": anchors / "emsp.pem", "oem": anchors / "oem" / "sub-cas-too.pem"}
    for role, certificate in pkis["iso2"].trust_list():
        with files[role.value].open("ab") as file:
            file.write(certificate.pem())
    with scripted() as peer, loopback() as (listening, base_url):
        peer.on("/oauth/token", error(401))
        text = documented[1].replace("https://pool-b.example", peer.url)
        (tmp_path / "pool.toml").write_text(text)
        settings = Settings(
            database=database, base_url=base_url, log_level="error", event_dispatch=False, pool_id="pool-a"
        )
        with (
            running(settings, listening, refresh_interval=0.1),
            httpx.Client(base_url=base_url, timeout=10) as http,
        ):
            yield Place(http, tmp_path, database)


def test_apply_of_the_documented_file_lets_a_running_pool_serve_a_car(place: Place, pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    shown = ccp("apply", place.folder / "pool.toml", "--dry-run", env=place.variables)
    assert shown.status == 2
    done = place.apply()
    assert sorted(done["client_secrets"]) == ["example-emsp", "example-oem", "pool-b"]
    cps, cpo = place.token("example-cps", CPS_SECRET), place.token("example-cpo", CPO_SECRET)
    car = Car.generate(pki, new_pcid(), AT)
    emaid = new_emaid()
    message = sign_contract(pki, issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, AT), AT)
    path, edition = "/opnc/v1/ccp/signedcontractdata", str(car.namespace)
    body = put_body(message, emaid, car.pcid, edition)
    wait_until(lambda: place.http.put(path, headers=cps, json=body).status_code == 201, timeout=5)
    asked = place.http.post(path, headers=cpo, json=post_body(car.request(SESSION, AT), edition))
    (item,) = asked.json()["signedContractDataCollection"]
    assert (item["emaid"], "metaData" in item) == (emaid, False)
    emsp = place.token("example-emsp", done["client_secrets"]["example-emsp"])
    addressed = place.http.get(f"/opnc/v1/ccp/contractData/emaid/{emaid}", headers={**emsp, **to("pool-b")})
    assert sentences(addressed, 502) == ["The pool pool-b does not take this pool's credentials."]
    assert place.apply()["changes"] == []
    assert place.apply("--prune", "--yes")["changes"] == []


def test_apply_that_fails_leaves_the_running_pool_as_it_is(place: Place) -> None:
    place.apply()
    text = (place.folder / "pool.toml").read_text()
    (place.folder / "pool.toml").write_text(text.replace('"Example OEM"', '"example-cpo"'))
    refused = ccp("apply", place.folder / "pool.toml", env=place.variables)
    assert (refused.status, "more than once" in refused.err) == (1, True)
    (place.folder / "pool.toml").write_text(f"{text}\nparties = []\n")
    assert "anchor 3 (line" in ccp_error("apply", place.folder / "pool.toml", env=place.variables)
    assert place.token("example-cpo", CPO_SECRET)


def test_apply_changes_of_a_declared_secret_let_the_previous_one_work(place: Place) -> None:
    place.apply()
    (place.folder / "secrets" / "example-cpo").write_text(CPO_SECRET[::-1])
    assert [change["secret"] for change in place.apply()["changes"]] == ["changed"]
    for secret in (CPO_SECRET[::-1], CPO_SECRET):
        place.token("example-cpo", secret)


def test_apply_prune_ends_the_access_of_a_party_within_seconds(place: Place) -> None:
    place.apply()
    token = place.token("example-cpo", CPO_SECRET)
    text = (place.folder / "pool.toml").read_text()
    begin, end = text.index("# An operator"), text.index("# A provisioning service")
    (place.folder / "pool.toml").write_text(text[:begin] + text[end:])
    done = place.apply("--prune", "--yes")
    assert [(change["action"], change["id"]) for change in done["changes"]] == [("remove", "example-cpo")]
    path = "/opnc/v1/ccp/signedcontractdata"
    wait_until(lambda: place.http.post(path, headers=token, json={}).status_code == 401, timeout=5)
