"""Changes of contracts, and what they leave behind."""

from __future__ import annotations

import json
from datetime import datetime

from ccp.ids import EMAID, PCID
from ccp.server.domain.contracts import SignedContract
from ccp.server.storage.queries import contracts
from ccp.server.storage.queries.contracts import Published
from tests.server.storage.made import (
    AT,
    CAR,
    broken_invariants,
    read,
    sql,
    write,
)

UNKNOWN = EMAID("DEEXAS99999999")


def publish(url: str, *variants: SignedContract, now: datetime = AT) -> Published:
    published: Published = write(url, *(contracts.publish(each, now) for each in variants))
    return published


def default_of(url: str, pcid: PCID = CAR) -> str | None:
    """The default EMAID, which the vehicle and its variants have to agree on."""
    assert broken_invariants(url) == []
    default: str | None = sql(url, "select default_emaid from vehicle where pcid = ?", pcid)[0][0]
    stored = {contract.emaid for contract in read(url, contracts.by_vehicle(pcid)) if contract.is_default}
    assert stored == ({default} if default else set())
    return default


def events(url: str, pcid: PCID = CAR) -> list[tuple[str, str]]:
    """Kind and EMAID of a vehicle's events, in the order of its revisions."""
    rows = sql(url, "select rev, kind, emaid, payload from outbox where pcid = ? order by rev", pcid)
    assert len({row[0] for row in rows}) == len(rows)
    for _, _, emaid, payload in rows:
        payloads = json.loads(payload)
        assert payloads.pop("namespaces"), "an event has at least one namespace"
        assert payloads == {"emaid": emaid, "pcid": pcid}
    return [(kind.removeprefix("oem.contract."), emaid) for _, kind, emaid, _ in rows]
