"""Time of check: a caller loses its access during its request, while the body arrives or before the change commits.

The server reads a body for up to `read_timeout`. A change by another process reaches the server's memory within about a
second; before that, the transaction of the change detects it.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from ccp.server.access import client_secrets, token_keys
from ccp.server.domain.parties import TOKEN_NOT_VALID, PartyRole
from ccp.server.http.routes.opnc import BASE
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import parties, signing_keys
from ccp.server.storage.queries.parties import disable, get, lock, update
from ccp.testing.pki import PKI
from tests.background_rounds import wait_until_loaded
from tests.scripted_server import Reply, scripted
from tests.server.access.tokens.issuer import fake_issuer, key
from tests.server.http.api.answers import sentences
from tests.server.http.guards.raw import Answer, connected
from tests.world import AT, Pool, new_emaid, party, post_body, start

EVENTS = "/opnc/v1/event/endpoints"
ADMIN = "/admin/v1"


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def pool(request: pytest.FixtureRequest, pkis: dict[str, PKI]) -> Iterator[Pool]:
    options: dict[str, Any] = {}
    if request.param == "postgresql":
        options["database"] = request.getfixturevalue("postgres").database()
    with start({"iso2": pkis["iso2"]}, refresh_interval=0.2, rate_limit_unauthenticated=0, **options) as running:
        yield running


# --- Who calls -------------------------------------------------------------------------------------------------------

_NUMBERS = iter(range(1, 10_000))


@dataclass
class Someone:
    """A party for one test, with a token."""

    pool: Pool
    client_id: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def loses(self, **fields: Any) -> None:
        """Change the party in another process, with a change counter: the server loads it within about a second."""

        def change() -> Query[None]:
            yield from lock()
            before = yield from get(self.client_id)
            yield from update(before, replace(before, **fields))

        self.pool.change(change())

    def knows_of(self, status: int, path: str = EVENTS) -> None:
        """Wait until the server gives this party the expected answer."""
        deadline = time.monotonic() + 10
        while self.ask("GET", path).status_code != status:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return self.pool.http.request(method, path, headers=self.headers, json=body)


def someone(pool: Pool, *, admin: bool = False) -> Someone:
    """An eMSP, OEM and CPO with ids of its own, known to the server."""
    number = next(_NUMBERS)
    client_id = f"someone-{number}"
    roles = (PartyRole.EMSP, PartyRole.OEM, PartyRole.CPO, *([PartyRole.ADMIN] if admin else []))
    made = party(client_id, *roles, providers=f"DE{number:03d}", wmis=f"W{number:02d}")
    secret = client_secrets.new_secret()
    pool.change(parties.add(made, client_secrets.hash_secret(secret), AT))
    form = {"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret}
    answer = pool.http.post("/oauth/token", data=form)
    assert answer.status_code == 200, answer.text
    return Someone(pool, client_id, answer.json()["access_token"])


class Dripping:
    """A request whose body is completed by a call."""

    def __init__(self, pool: Pool, method: str, path: str, token: str, body: Any, stack: ExitStack) -> None:
        content_bytes = json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: pool\r\nAuthorization: Bearer {token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content_bytes)}\r\nConnection: close\r\n\r\n"
        )
        self._raw = stack.enter_context(connected(pool.base_url))
        self._raw.send(head)
        self._raw.send(content_bytes[:-1])
        self._last = content_bytes[-1:]

    def end(self) -> Answer:
        self._raw.send(self._last)
        answer = self._raw.answer()
        assert answer is not None
        return answer


def reached(pool: Pool, token: str) -> None:
    """Wait until the server has read what was sent earlier on another connection; it reads in the order of arrival."""
    for _ in range(3):
        pool.http.get("/health/live")


def bodies(pool: Pool, by: Someone) -> dict[str, tuple[str, str, Any]]:
    """Every operation with a body, in both dialects, that the party may call."""
    other = pool.car(wmi=wmi_of(by))
    webhook = {"url": "https://hooks.example.com/x", "enabledEvents": ["emsp.contract.delivered.to.oem"]}
    put = pool.contract(other, emaid_of(by)).body
    return {
        "POST": ("POST", f"{BASE}/signedcontractdata", request_of(pool, by)),
        "POST in OPCP": ("POST", "/v1/ccp/signedContractData", request_of(pool, by)),
        "PUT": ("PUT", f"{BASE}/signedcontractdata", put),
        "PUT in OPCP": ("PUT", "/v1/ccp/signedContractData", put),
        "dry run": ("PUT", f"{BASE}/signedcontractdata?dryRun=true", put),
        "new webhook": ("POST", EVENTS, webhook),
        "edited webhook": ("PUT", f"{EVENTS}/{subscribed(by)}", {**webhook, "description": "changed"}),
        "new party": ("POST", f"{ADMIN}/parties", {"name": f"Made by {by.client_id}", "roles": ["cpo"]}),
        "edited party": ("PATCH", f"{ADMIN}/parties/cpo", {"name": f"Changed by {by.client_id}"}),
        "new secret": ("POST", f"{ADMIN}/parties/cpo/rotate-secret", {"overlap": 60}),
    }


def wmi_of(by: Someone) -> str:
    return f"W{int(by.client_id.removeprefix('someone-')):02d}"


def emaid_of(by: Someone) -> Any:
    return new_emaid(f"DE{int(by.client_id.removeprefix('someone-')):03d}")


def request_of(pool: Pool, by: Someone) -> dict[str, Any]:
    """A vehicle's request for a stored contract."""
    car = pool.car(wmi=wmi_of(by))
    pool.publish(car, emaid_of(by))
    return post_body(car.request(b"\1" * 8, AT), str(car.namespace))


def subscribed(by: Someone) -> str:
    body = {"url": "https://hooks.example.com/x", "enabledEvents": ["emsp.contract.delivered.to.oem"]}
    answer = by.ask("POST", EVENTS, body)
    assert answer.status_code == 201, answer.text
    webhook_id: str = answer.json()["id"]
    return webhook_id


TABLES = ("contract", "emaid_claim", "vehicle", "outbox", "webhook", "party", "party_secret")


def everything(pool: Pool) -> list[Any]:
    """The state that no refused request may change."""
    return [sorted(map(str, pool.sql(f"select * from {table}"))) for table in TABLES]


OPERATIONS = (
    "POST", "POST in OPCP", "PUT", "PUT in OPCP", "dry run", "new webhook", "edited webhook", "new party",
    "edited party", "new secret",
)  # fmt: skip


# --- While the body comes --------------------------------------------------------------------------------------------


def test_operations_succeed_without_a_concurrent_change(pool: Pool) -> None:
    by = someone(pool, admin=True)
    for name, (method, path, body) in bodies(pool, by).items():
        with ExitStack() as stack:
            answer = Dripping(pool, method, path, by.token, body, stack).end()
            assert answer.status in (200, 201), (name, answer.body)


def test_party_disabled_during_its_body_is_refused(pool: Pool) -> None:
    by = someone(pool, admin=True)
    with ExitStack() as stack:
        begun = {
            name: Dripping(pool, *asked[:2], by.token, asked[2], stack) for name, asked in bodies(pool, by).items()
        }
        assert tuple(begun) == OPERATIONS
        reached(pool, by.token)
        by.loses(enabled=False)
        by.knows_of(401)
        before = everything(pool)
        for name, request in begun.items():
            assert request.end().refused(401) == TOKEN_NOT_VALID, name
        assert everything(pool) == before


def test_party_losing_its_roles_during_its_body_is_refused(pool: Pool) -> None:
    by = someone(pool, admin=True)
    with ExitStack() as stack:
        begun = {
            name: Dripping(pool, *asked[:2], by.token, asked[2], stack) for name, asked in bodies(pool, by).items()
        }
        reached(pool, by.token)
        by.loses(roles=frozenset({PartyRole.CPS}), wmis=frozenset(), all_providers=True, provider_ids=frozenset())
        by.knows_of(403, f"{ADMIN}/parties")
        before = everything(pool)
        for name, request in begun.items():
            if not (name.startswith("PUT") or name == "dry run"):  # That is a CPS's too.
                assert request.end().refused(403), name
        assert everything(pool) == before


def test_token_key_revoked_during_the_body_is_refused(pkis: dict[str, PKI]) -> None:
    with start({"iso2": pkis["iso2"]}, rate_limit_unauthenticated=0) as running, ExitStack() as stack:
        by = someone(running, admin=True)
        begun = {
            name: Dripping(running, *asked[:2], by.token, asked[2], stack)
            for name, asked in bodies(running, by).items()
        }
        reached(running, by.token)
        ((kid,),) = running.sql("select kid from token_key")
        running.change(signing_keys.revoke(kid, token_keys.new_key(AT)))
        by.knows_of(401)
        before = everything(running)
        for name, request in begun.items():
            assert request.end().refused(401) == TOKEN_NOT_VALID, name
        assert everything(running) == before


def test_external_token_expiring_during_the_body_is_refused(
    pkis: dict[str, PKI],
) -> None:
    with fake_issuer() as fake, ExitStack() as stack:
        options: dict[str, Any] = {
            "issuers": (fake.entry(jwks_refresh_interval=1),),
            "egress_allow_networks": ("127.0.0.0/8",),
        }
        running = stack.enter_context(start({"iso2": pkis["iso2"]}, rate_limit_unauthenticated=0, **options))
        car = running.car()
        body = running.contract(car).body
        roles = {"roles": ["emsp", "cpo"], "providers": ["DEEXA"]}
        short = fake.token(exp=lambda now: now + 2, **roles)
        withdrawn = fake.token(**roles)
        asked = post_body(car.request(b"\1" * 8, AT), str(car.namespace))
        begun = [
            Dripping(running, method, f"{BASE}/signedcontractdata", token, members, stack)
            for token in (short, withdrawn)
            for method, members in (("PUT", body), ("POST", asked))
        ]
        reached(running, short)
        time.sleep(2.1)  # The life of a token is what this test is about.
        for request in begun[:2]:
            assert request.end().refused(401) == TOKEN_NOT_VALID
        fake.keys[:] = [key()]
        headers = {"Authorization": f"Bearer {withdrawn}"}
        deadline = time.monotonic() + 10
        while running.http.get(f"{BASE}/contractData/emaid/{new_emaid()}", headers=headers).status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for request in begun[2:]:
            assert request.end().refused(401) == TOKEN_NOT_VALID
        assert running.sql("select count(*) from contract") == [(0,)]


# --- In the transaction ----------------------------------------------------------------------------------------------


def changes(pool: Pool, by: Someone) -> dict[str, tuple[str, str, Any]]:
    """Every operation of the API that changes the party's own data."""
    car = pool.car(wmi=wmi_of(by))
    first, second = pool.publish(car, emaid_of(by)).emaid, pool.publish(car, emaid_of(by)).emaid
    webhook = {"url": "https://hooks.example.com/x", "enabledEvents": ["emsp.contract.delivered.to.oem"]}
    put = pool.contract(pool.car(wmi=wmi_of(by)), emaid_of(by)).body
    return {
        "PUT": ("PUT", f"{BASE}/signedcontractdata", put),
        "PUT again": ("PUT", f"{BASE}/signedcontractdata", pool.contract(car, first).body),
        "DELETE": ("DELETE", f"{BASE}/signedcontractdata/{first}", None),
        "DELETE in OPCP": ("DELETE", f"/v1/ccp/signedContractData/{first}", None),
        "setdefault": ("POST", f"{BASE}/signedcontractdata/{second}/{car.pcid}/setdefault", None),
        "setdefault that changes nothing": (
            "POST", f"{BASE}/signedcontractdata/{first}/{car.pcid}/setdefault", None,
        ),
        "default in OPCP": ("POST", f"/v1/ccp/signedContractData/{car.pcid}/{second}/default", None),
        "new webhook": ("POST", EVENTS, webhook),
        "edited webhook": ("PUT", f"{EVENTS}/{subscribed(by)}", {**webhook, "description": "changed"}),
        "webhook removed": ("DELETE", f"{EVENTS}/{subscribed(by)}", None),
    }  # fmt: skip


def settled(by: Someone) -> None:
    """Wait until the server has loaded every announced change."""
    by.knows_of(200)
    wait_until_loaded("parties", "token_keys", "subscribers")


def test_change_checks_the_party_in_its_transaction(pool: Pool) -> None:
    by = someone(pool)
    asked = changes(pool, by)
    settled(by)
    # Behind the server's back: without counting the change its memory stays as it is.
    pool.sql("update party set enabled = false where client_id = ?", by.client_id)
    before = everything(pool)
    for name, (method, path, body) in asked.items():
        assert sentences(by.ask(method, path, body), 401) == [TOKEN_NOT_VALID], name
    assert everything(pool) == before
    pool.sql("update party set enabled = true, roles = '[\"admin\"]' where client_id = ?", by.client_id)
    between = everything(pool)
    for name, (method, path, body) in asked.items():
        assert by.ask(method, path, body).status_code == 403, name
    assert everything(pool) == between
    pool.sql('update party set roles = \'["emsp", "oem", "cpo"]\' where client_id = ?', by.client_id)
    for name, (method, path, body) in asked.items():
        if name not in ("DELETE in OPCP", "setdefault that changes nothing"):  # It is gone by then.
            assert by.ask(method, path, body).status_code in (200, 201), name


def test_change_checks_owned_ids_in_its_transaction(pool: Pool) -> None:
    by = someone(pool)
    asked = changes(pool, by)
    settled(by)
    pool.sql("update party set provider_ids = '[\"DEZZZ\"]', wmis = '[\"ZZZ\"]' where client_id = ?", by.client_id)
    before = everything(pool)
    for name, (method, path, body) in asked.items():
        if "webhook" not in name:
            assert by.ask(method, path, body).status_code == 403, name
    filtered = {"url": "https://hooks.example.com/x", "enabledEvents": ["oem.contract.created"], "wmi": [wmi_of(by)]}
    assert by.ask("POST", EVENTS, filtered).status_code == 403
    assert everything(pool) == before


def test_change_checks_the_token_key_in_its_transaction(pool: Pool) -> None:
    by, admin = someone(pool), someone(pool, admin=True)
    asked = {
        **changes(pool, by),
        "new party": ("POST", f"{ADMIN}/parties", {"name": "Late", "roles": ["cpo"]}),
        "disabled party": ("POST", f"{ADMIN}/parties/cpo/disable", None),
    }
    settled(by)
    ((kid, pem, created_at),) = pool.sql("select kid, private_key, created_at from token_key")
    pool.sql("delete from token_key where kid = ?", kid)
    try:
        before = everything(pool)
        for name, (method, path, body) in asked.items():
            caller = admin if "party" in name else by
            assert sentences(caller.ask(method, path, body), 401) == [TOKEN_NOT_VALID], name
        assert everything(pool) == before
    finally:
        insert = "insert into token_key (kid, private_key, created_at) values (?, ?, ?)"
        pool.sql(insert, kid, pem, created_at)


def test_pki_revocation_checks_the_party_again(pkis: dict[str, PKI]) -> None:
    with scripted() as fake:
        options: dict[str, Any] = {
            "pki_url": fake.url + "/opnc/v1/pki",
            "pki_token": "a token of the tests",
            "operator_cas": (pkis["iso2"].emsp_sub2.certificate.fingerprint,),
        }
        fake.on("/opnc/v1/pki/pki/revokeCertificate", Reply(200))
        with start({"iso2": pkis["iso2"]}, **options) as running:
            contract, other = running.publish(running.car()), running.publish(running.car())
            assert running.emsp.delete(f"/signedcontractdata/{other.emaid}").status_code == 200
            assert len(fake.received) == 1
            running.sql("update party set enabled = false where client_id = 'emsp'")
            answer = running.emsp.delete(f"/signedcontractdata/{contract.emaid}")
            assert sentences(answer, 401) == [TOKEN_NOT_VALID]
            assert len(fake.received) == 1
            assert running.stored(contract.emaid) == 1


# --- Races -----------------------------------------------------------------------------------------------------------


def test_party_that_is_disabled_stores_nothing_in_flight(pool: Pool) -> None:
    by = someone(pool)
    ready = [pool.contract(pool.car(wmi=wmi_of(by)), emaid_of(by)).body for _ in range(40)]
    settled(by)
    answers: list[tuple[float, str, int]] = []
    under_way = threading.Event()

    def publish(share: list[Any]) -> None:
        """Publish until it is refused; an existing contract is replaced."""
        with httpx.Client(base_url=pool.base_url, headers=by.headers, timeout=20) as http:
            until = time.monotonic() + 60
            for body in itertools.cycle(share):
                began = time.monotonic()
                status = http.put(f"{BASE}/signedcontractdata", json=body).status_code
                answers.append((began, body["emaid"], status))
                under_way.set()
                if status != 201 or began > until:
                    return

    threads = [threading.Thread(target=publish, args=(ready[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    assert under_way.wait(20)
    pool.change(disable(by.client_id))
    disabled = time.monotonic()
    for thread in threads:
        thread.join()
    assert {status for began, _, status in answers if began > disabled} <= {401}
    assert sorted(status for _, _, status in answers if status != 201) == [401] * 4
    stored = pool.sql("select count(*) from contract where emaid like ?", f"DE{wmi_of(by)[1:].zfill(3)}%")
    assert stored == [(len({emaid for _, emaid, status in answers if status == 201}),)]
