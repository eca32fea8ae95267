"""A pool that holds the most that partners and operators can store, in texts that need the most bytes in a page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from ccp import exi
from ccp.ids import EMAID
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import peers, subscriptions, webhooks
from ccp.server.storage.queries.peers import Peer
from ccp.server.storage.queries.subscriptions import Subscription
from ccp.server.storage.queries.vehicle_lock import microseconds
from ccp.testing.partners import Car
from ccp.testing.pki import CPS, PKI, SUB_CA2
from tests.server.events.receiver import webhook
from tests.world import AT, SESSION, Contract, Pool

QUOTES: Final = '"'
"""A character that needs five bytes in a page."""
NAME: Final = '"' * 64
"""The longest common name."""
MANY: Final = 120
_CONTRACTS: Final = 16
_ROOTS: Final = 12


@dataclasses.dataclass
class Largest:
    """What is stored. pages: below the prefix, of an admin."""

    car: Car
    contract: Contract
    pages: list[str]


def fill(pool: Pool) -> Largest:
    """Fill a pool."""
    car = pool.car()
    contract = pool.publish(car, signer=_long_named(pool.pki()), body={"metaData": QUOTES * 10_000})
    _copy_contract(pool, contract)
    webhook_id = _webhooks(pool)
    _events(pool, car, contract.emaid, webhook_id)
    _peers(pool)
    _lists(pool, car)
    trace_id = _refusals(pool, car, contract.emaid)
    pages = [
        f"/vehicles/{car.pcid}", f"/contracts/{contract.emaid}", f"/why?q={trace_id}", f"/why?q={car.pcid}",
        f"/refusals?id={car.pcid}", "/refusals", "/parties", "/parties/oem", "/parties/cps", "/webhooks",
        f"/webhooks/{webhook_id}", "/partners", "/peers/DE*0001", "/anchors", "/audit", "/health", "/sessions",
        "/overview", "/overview?period=30d", "/contested", f"/why?emaid={contract.emaid}",
        f"/search?q={'x' * 190}", f"/audit?days=31&id={contract.emaid}",
    ]  # fmt: skip
    return Largest(car, contract, pages)


def longest_request(pool: Pool, car: Car) -> bytes:
    """A request of ISO 15118-20 with as many and as long names as its schema permits, EXI."""
    message: Any = exi.to_json(exi.decode(car.request(SESSION, AT)))
    body = next(iter(message.values())) if len(message) == 1 else message
    roots = body["ListOfRootCertificateIDs"]["RootCertificateID"]
    body["ListOfRootCertificateIDs"]["RootCertificateID"] = [
        {**roots[0], "X509IssuerName": f"CN={QUOTES * 1000}"} for _ in range(20)
    ]
    return exi.encode(exi.from_json(message))


def _long_named(pki: PKI) -> PKI:
    sub2 = pki.emsp_sub1.issue(NAME, SUB_CA2, now=AT)
    return dataclasses.replace(pki, emsp_sub2=sub2, cps=pki.cps_sub2.issue(NAME, CPS, now=AT))


def _insert(pool: Pool, table: str, rows: Iterable[dict[str, Any]]) -> None:
    found = list(rows)
    places = ", ".join(f"({', '.join('?' * len(row))})" for row in found)
    values = [value for row in found for value in row.values()]
    pool.sql(f"insert into {table} ({', '.join(found[0])}) values {places}", *values)


def _copy_contract(pool: Pool, contract: Contract) -> None:
    """Make 16 contracts of 12 variants of it, all expired or revoked but itself, in both editions."""
    columns = [name for (name,) in pool.sql("select name from pragma_table_info('contract')")]
    (row,) = pool.sql(f"select {', '.join(columns)} from contract where emaid = ?", str(contract.emaid))
    stored = dict(zip(columns, row, strict=True))
    copies = []
    for number in range(_CONTRACTS):
        emaid = contract.emaid if number == 0 else EMAID.parse(f"DEEXA{number:028}X")
        for root in range(_ROOTS):
            for edition in ("urn:iso:15118:2:2013:MsgDef", "urn:iso:15118:20:2020:MsgDef"):
                new = {"emaid": str(emaid), "root_fingerprint": f"{root + 1:064x}", "namespace": edition}
                copies.append({**stored, **new, "root_dn": f"CN={NAME}", "is_default": number == 0})
    _insert(pool, "contract", copies)


def _webhooks(pool: Pool) -> str:
    """Fill the list, and give a party as many webhooks as it can have. Returns the id of one."""
    text, url = QUOTES * 1000, "https://hooks.example/" + "x" * 2000
    made = [webhook(url, "oem", *["oem.contract.created"] * 20, description=text) for _ in range(50)]
    made += [webhook(url, "cps", "oem.contract.created", description=text) for _ in range(30)]
    long_host = f"https://{'h' * 60}.example/" + "x" * 1900
    made.append(webhook(long_host, "emsp", "oem.contract.created", description=text))

    def change() -> Query[None]:
        for each in made:
            yield from webhooks.put(each)

    pool.change(change())
    return made[-1].id


def _events(pool: Pool, car: Car, emaid: str, webhook_id: str) -> None:
    kinds = ("emsp.contract.delivered.to.oem", "oem.contract.created")
    _insert(
        pool,
        "delivery",
        (
            {
                "pcid": str(car.pcid), "rev": 100 + number, "part": 0, "webhook_id": webhook_id,
                "event_id": f"00000000-0000-4000-8000-{number:012}", "kind": kinds[number % 2], "emaid": str(emaid),
                "namespace": "", "payload": "{}", "created_at": number, "queued_at": 1, "lease_until": 1,
                "attempts": 3, "state": "dead", "last_status": 500, "last_error": QUOTES * 10_000,
            }
            for number in range(MANY)
        ),
    )  # fmt: skip
    contracts = json.dumps([[f"DEEXA{number:028}Y", False] for number in range(255)])
    _insert(
        pool,
        "handed_out",
        (
            {
                "pcid": str(car.pcid), "client_id": "cpo", "request": str(number), "contracts": contracts,
                "expires_at": microseconds(AT + timedelta(days=1)),
            }
            for number in range(MANY)
        ),
    )  # fmt: skip


def _peers(pool: Pool) -> None:
    providers = frozenset(f"DE{number:03}" for number in range(1000))
    roots = frozenset(f"{number:064x}" for number in range(1000))
    url = "https://peer.example/" + "x" * 1900
    names = tuple(f"oem.contract.created.{place}" for place in range(60))

    def change() -> Query[None]:
        for number in range(MANY):
            party_id = f"DE*{number:04}"
            ids = {"v2g_roots": roots, "provider_ids": providers}
            yield from peers.add(Peer(party_id, url, client_id=QUOTES * 60, secret="s", **ids), AT)  # type: ignore[arg-type]
            yield from subscriptions.put(Subscription(f"s{number}", f"peer:{party_id}", url, None, None, names, AT, AT))

    pool.change(change())


def _lists(pool: Pool, car: Car) -> None:
    """Parties, anchors, sessions, contested vehicles, and rows of the audit trail that name a vehicle."""
    (party,) = pool.sql("select client_id, roles, wmis from party where client_id = 'oem'")
    ids = json.dumps([f"DE{number:03}" for number in range(1000)])
    _insert(
        pool,
        "party",
        (
            {
                "client_id": f"many-{number}-{'x' * 50}", "name": f"{number} {QUOTES * 250}", "roles": party[1],
                "provider_ids": ids, "all_providers": 0, "wmis": party[2], "operator_ids": ids, "enabled": 1,
                "created_at": 1,
            }
            for number in range(MANY)
        ),
    )  # fmt: skip
    (anchor,) = pool.sql("select certificate from trust_anchor limit 1")
    _insert(
        pool,
        "trust_anchor",
        (
            {
                "role": "oem", "fingerprint": f"{number:064x}", "is_root": 1, "certificate": anchor[0],
                "label": QUOTES * 300, "source": QUOTES * 300, "added_at": 1,
            }
            for number in range(2 * MANY)
        ),
    )  # fmt: skip
    now = microseconds(datetime.now(UTC))
    _insert(
        pool,
        "console_session",
        (
            {
                "id_hash": f"{number:064}", "actor": QUOTES * 250, "client_id": "admin", "role": "viewer",
                "credential": "x", "agent": "x", "created_at": now, "seen_at": now, "expires_at": now + 10**10,
            }
            for number in range(MANY)
        ),
    )  # fmt: skip
    contested = json.dumps([f"DEEXA{number:028}Z" for number in range(64)])
    _insert(
        pool,
        "vehicle",
        (
            {
                "pcid": f"WEXCONTESTED{number:05}", "rev": 1, "default_emaid": f"DEEXA{number:028}Z",
                "default_chosen": 0, "contested": contested,
            }
            for number in range(MANY)
        ),
    )  # fmt: skip
    pool.sql("update vehicle set contested = ? where pcid = ?", contested, str(car.pcid))
    _audit(pool, car, now)


def _audit(pool: Pool, car: Car, now: int) -> None:
    """Rows in the vehicle's shard."""
    ((lane, number),) = pool.sql("select lane, max(number) from audit where subject like ?", f"%{car.pcid}%")
    subject = {
        "pcid": str(car.pcid), "emaid": f"DEEXA{1:028}Z", "moved_from": "WEX0SANDBOX000001", "party": "oem",
        "peer": "DE*0001", "endpoint": "x" * 64, "source": "peer:DE*0001",
        **{f"{QUOTES * 40}{place}": [QUOTES * 500] * 9 for place in range(30)},
    }  # fmt: skip
    _insert(
        pool,
        "audit",
        (
            {
                "lane": lane, "number": number + 1 + place, "at": now + place, "actor": QUOTES * 250,
                "action": QUOTES * 100, "outcome": QUOTES * 100, "trace_id": "0" * 36, "subject": json.dumps(subject),
                "salt": "", "commitment": "", "hash": "",
            }
            for place in range(MANY)
        ),
    )  # fmt: skip
    pool.sql("update audit_head set number = ? where lane = ?", number + MANY, lane)


def _refusals(pool: Pool, car: Car, emaid: str) -> str:
    """Records of one vehicle; the newest one keeps its request. Returns its trace id."""
    ids = [f"{number:08x}-0000-4000-8000-{number:012x}" for number in range(MANY)]
    request = longest_request(pool, pool.car("iso20"))
    _insert(
        pool,
        "refusal",
        (
            {
                "id": each, "at": microseconds(AT) + number, "client_id": QUOTES * 100, "operation": QUOTES * 100,
                "dialect": "opnc", "status": 200, "edition": QUOTES * 100, "pcid": str(car.pcid), "wmi": "WEX",
                "emaid": str(emaid), "digest": "0" * 64, "code": "no-valid-contract", "check_name": QUOTES * 1000,
                "reason": QUOTES * 10_000, "request": request if number == MANY - 1 else None,
            }
            for number, each in enumerate(ids)
        ),
    )  # fmt: skip
    _insert(
        pool,
        "refusal_contract",
        (
            {"refusal_id": ids[-1], "emaid": f"DEEXA{number:028}Z", "provider_id": "DEEXA", "concerned": 1, "at": 1}
            for number in range(64)
        ),
    )
    return ids[-1]
