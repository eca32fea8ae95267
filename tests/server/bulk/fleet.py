"""Lines to import, a database that trusts their signers, and the contents of a database."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson

from ccp.ids import EMAID, PCID
from ccp.server.access.client_secrets import new_secret
from ccp.server.sandbox.setup import Member, World, publish_body, register
from ccp.server.settings import Settings
from ccp.server.storage import connect
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI
from tests.databases import with_schema
from tests.server.storage.made import sql
from tests.world import AT, parties, put_body

_NUMBERS = itertools.count(1)


def new_emaid(provider: str = "DEEXA") -> EMAID:
    return EMAID(f"{provider}B{next(_NUMBERS):08d}")


def new_pcid(wmi: str = "WEX") -> PCID:
    return PCID(f"{wmi}0BULK{next(_NUMBERS):09d}")


_CARS: dict[int, Car] = {}


def car_of(pki: PKI, pcid: PCID) -> Car:
    """A vehicle. All share one key pair: generating keys takes time, and the pool does not check them here."""
    if id(pki) not in _CARS:
        _CARS[id(pki)] = Car.generate(pki, PCID("WEX0BULK000000000"), AT)
    return replace(_CARS[id(pki)], pcid=pcid)


def body(pki: PKI, emaid: EMAID | None = None, pcid: PCID | None = None, **members: Any) -> dict[str, Any]:
    """A PUT body. members: replace or add members."""
    return {**publish_body(pki, emaid or new_emaid(), car_of(pki, pcid or new_pcid()), AT), **members}


def expired(pki: PKI) -> dict[str, Any]:
    """A body whose contract certificate has expired."""
    emaid, car = new_emaid(), car_of(pki, new_pcid())
    valid = AT - timedelta(days=9), AT - timedelta(days=1)
    bundle = issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, AT, valid)
    return put_body(sign_contract(pki, bundle, AT), emaid, car.pcid, str(car.namespace))


def line(members: Mapping[str, Any]) -> bytes:
    return orjson.dumps(members) + b"\n"


def jsonl(*bodies: Mapping[str, Any]) -> bytes:
    return b"".join(map(line, bodies))


@dataclass(frozen=True, slots=True)
class Database:
    """A new database. env: environment variables for commands."""

    url: str
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        return {"CCP_DATABASE": self.url, "CCP_LOG_LEVEL": "error"}

    def contracts(self) -> list[tuple[Any, ...]]:
        """The data of every variant, without times and revisions."""
        return sql(
            self.url,
            "select pcid, emaid, namespace, root_fingerprint, is_default, valid_from, valid_to, root_serial, root_dn, "
            "remaining_from_end, metadata, certificate, response, certificates, provisioning_key, certificate_issuer, "
            "certificate_serial from contract order by 1, 2, 3, 4",
        )

    def events(self) -> list[tuple[Any, ...]]:
        """Kind, EMAID, vehicle and revision of each event of a contract, in the order of writing."""
        return sql(self.url, "select kind, emaid, pcid, rev from outbox where emaid <> '' order by rowid")

    def emaids(self) -> set[str]:
        return {row[0] for row in sql(self.url, "select emaid from contract")}


def database(folder: Path, pkis: Mapping[str, PKI], **options: Any) -> Database:
    """An empty pool that trusts the PKIs of both editions."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(database=f"sqlite:///{folder / 'ccp.db'}", **options)
    with_schema(settings.database)
    world = World(
        {name: pki for name, pki in pkis.items() if name != "stranger"},
        tuple(Member(party, new_secret()) for party in parties() if party.client_id in ("small_cps", "cpo")),
    )

    async def fill() -> None:
        store = connect(settings.database)
        await store.open()
        try:
            await register(store, world, AT)
        finally:
            await store.close()

    asyncio.run(fill())
    return Database(settings.database, folder)
