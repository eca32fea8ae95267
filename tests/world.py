"""A running pool and its partners: real HTTP, a real database, real keys.

    def test_…(pool):                                   # the fixture of conftest.py: one server for the session
        car = pool.car()
        emaid = pool.publish(car)                       # PUT; asserts 201
        items = pool.ask(car)                           # POST; asserts 200 and a contract

    with start(pkis, root_match="strict") as pool: …    # a server with other settings, for one test or module

Every car and every contract gets a unique id, so tests can share a server.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import itertools
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx

from ccp import verify
from ccp.ids import EMAID, PCID, WMI, Namespace, OperatorId, ProviderId
from ccp.server.access import party_registry
from ccp.server.access.client_secrets import hash_secret, new_secret
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.http.routes.opnc import BASE
from ccp.server.sandbox.local_pool import loopback, running
from ccp.server.sandbox.setup import Member, World, register
from ccp.server.settings import Settings
from ccp.server.storage import Store, connect
from ccp.server.storage.engine.query import Query
from ccp.server.storage.snapshot_refresh import REFRESH_INTERVAL
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI, Credential
from ccp.verify import InstallationResponse
from tests.databases import fresh, sql, with_schema

AT = datetime.now(UTC).replace(microsecond=0)
"""Start of the validity of all certificates, and the time of signatures."""
SESSION = bytes.fromhex("0102030405060708")

ISO2, ISO20 = str(Namespace.ISO2), str(Namespace.ISO20)


def build_pkis() -> dict[str, PKI]:
    """iso2 and other_iso2 (P-256), iso20 (P-521), ed448 (with X448), and stranger (P-256), which no pool trusts."""
    algorithms = {"iso2": "P-256", "other_iso2": "P-256", "iso20": "P-521", "ed448": "Ed448", "stranger": "P-256"}
    return {name: PKI.generate(AT, algorithm=algorithm) for name, algorithm in algorithms.items()}  # type: ignore[arg-type]


def party(name: str, *roles: PartyRole, providers: str = "", wmis: str = "", operators: str = "", **more: Any) -> Party:
    return Party(
        client_id=name,
        name=name,
        roles=frozenset(roles),
        provider_ids=frozenset(map(ProviderId.parse, providers.split())),
        wmis=frozenset(map(WMI.parse, wmis.split())),
        operator_ids=frozenset(map(OperatorId.parse, operators.split())),
        **more,
    )


def parties() -> list[Party]:
    """The registered parties, by the names that `Pool.client` takes."""
    return [
        party("emsp", PartyRole.EMSP, providers="DEEXA"),
        party("other_emsp", PartyRole.EMSP, providers="NLEXB"),
        party("cpo", PartyRole.CPO, operators="DEEXC"),
        party("oem", PartyRole.OEM, wmis="WEX"),
        party("other_oem", PartyRole.OEM, wmis="WXB"),
        party("cps", PartyRole.CPS, all_providers=True),
        party("small_cps", PartyRole.CPS, providers="DEEXA"),
        party("peer", PartyRole.CCP),
        party("everything", *PartyRole, providers="DEALL", wmis="ALL", operators="DEALL", all_providers=True),
    ]


_NUMBERS = itertools.count(1)


def new_emaid(provider: str = "DEEXA") -> EMAID:
    return EMAID.parse(f"{provider}T{next(_NUMBERS):08d}")


def new_pcid(wmi: str = "WEX") -> PCID:
    return PCID.parse(f"{wmi}0TEST{next(_NUMBERS):09d}")


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@dataclass
class Contract:
    """A contract to publish, or published. message: EXI. body: of the PUT. certificate: DER."""

    emaid: EMAID
    message: bytes
    body: dict[str, Any]
    certificate: bytes


@dataclass
class Pool:
    """A running server, with its parties and their HTTP clients."""

    base_url: str
    settings: Settings
    world: World
    database: Path
    http: httpx.Client
    _tokens: dict[str, str] = field(default_factory=dict)
    _clients: dict[str, httpx.Client] = field(default_factory=dict)

    # Callers.

    def token(self, name: str) -> str:
        """An access token of a party, requested once."""
        if name not in self._tokens:
            member = self.world.member(name)
            form = {"grant_type": "client_credentials", "client_id": name, "client_secret": member.secret}
            answer = self.http.post("/oauth/token", data=form)
            assert answer.status_code == 200, answer.text
            self._tokens[name] = answer.json()["access_token"]
        return self._tokens[name]

    def client(self, name: str | None) -> httpx.Client:
        """An HTTP client for the API's base path with the party's token, or without a token for None."""
        key = name or ""
        if key not in self._clients:
            headers = {"Authorization": f"Bearer {self.token(name)}"} if name else {}
            self._clients[key] = httpx.Client(base_url=self.base_url + BASE, headers=headers, timeout=10)
        return self._clients[key]

    emsp = property(lambda self: self.client("emsp"))
    cpo = property(lambda self: self.client("cpo"))
    oem = property(lambda self: self.client("oem"))
    cps = property(lambda self: self.client("cps"))

    # Cars and contracts.

    def pki(self, name: str = "iso2") -> PKI:
        return self.world.pkis[name]

    def car(self, edition: str = "iso2", wmi: str = "WEX") -> Car:
        return Car.generate(self.pki(edition), new_pcid(wmi), AT)

    def contract(
        self,
        car: Car,
        emaid: EMAID | None = None,
        *,
        signer: str | PKI | None = None,
        valid: tuple[datetime, datetime] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> Contract:
        """A signed contract for a car with the body of its PUT, not published yet.

        signer: the PKI of the eMSP and CPS, by default that of the car's edition. body: members to replace or add.
        """
        pki = signer if isinstance(signer, PKI) else self.pki(signer or edition_of(car))
        emaid = emaid or new_emaid()
        bundle = issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, AT, valid)
        message = sign_contract(pki, bundle, AT)
        members = {**put_body(message, emaid, car.pcid, str(car.namespace)), **(body or {})}
        return Contract(emaid, message, members, bundle.contract.certificate.der)

    def publish(self, car: Car, emaid: EMAID | None = None, **options: Any) -> Contract:
        """Publish a contract for a car and assert success. options: as for `contract`."""
        contract = self.contract(car, emaid, **options)
        answer = self.cps.put("/signedcontractdata", json=contract.body)
        assert answer.status_code == 201, answer.text
        return contract

    def put(self, contract: Contract, caller: str = "cps", **query: str) -> httpx.Response:
        """Put a contract. query: parameters of the request, such as dryRun."""
        return self.client(caller).put("/signedcontractdata", json=contract.body, params=query)

    def post(
        self,
        car: Car,
        session_id: bytes = SESSION,
        *,
        headers: Mapping[str, str] | None = None,
        caller: str = "cpo",
        **request: Any,
    ) -> httpx.Response:
        """Post a car's signed request. request: parameters of `Car.request`."""
        message = car.request(session_id, AT, **request)
        body = post_body(message, str(car.namespace))
        return self.client(caller).post("/signedcontractdata", json=body, headers=headers)

    def ask(self, car: Car, session_id: bytes = SESSION, **options: Any) -> list[dict[str, Any]]:
        """Post a car's request and assert success. Returns the items."""
        answer = self.post(car, session_id, **options)
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["signedContractDataCollection"]
        for item in items:
            assert "metaData" not in item, item["metaData"]
        return items

    def signed(self, emaid: EMAID, car: Car, **query: str) -> httpx.Response:
        """The signed contracts that the car's OEM fetches."""
        query = {"xsdMsgDefNamespace": str(car.namespace), **query}
        return self.oem.get(f"/signedcontractdata/{emaid}/{car.pcid}", params=query)

    def listed(self, car: Car, **query: str) -> list[dict[str, Any]]:
        """The contracts of a car that its OEM lists; empty after a 404."""
        query = {"xsdMsgDefNamespace": str(car.namespace), **query}
        answer = self.oem.get(f"/contractData/pcid/{car.pcid}", params=query)
        if answer.status_code == 404:
            return []
        assert answer.status_code == 200, answer.text
        items: list[dict[str, Any]] = answer.json()["contractDataCollection"]
        return items

    # Direct access to the database.

    def change(self, steps: Query[Any]) -> Any:
        """Run a transaction as another process would."""

        async def write() -> Any:
            async with opened(self.settings) as store:
                return await store.write(steps)

        return asyncio.run(write())

    def sql(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run an SQL statement, for states that no partner can cause, such as elapsed time."""
        return sql(self.settings.database, statement, *parameters)

    def expire(self, emaid: EMAID) -> None:
        """Set a stored contract's end of validity to the past."""
        self.sql("update contract set valid_to = ? where emaid = ?", int(AT.timestamp()) - 60, str(emaid))

    def stored(self, emaid: EMAID) -> int:
        """The number of a contract's variants in the database."""
        count: int = self.sql("select count(*) from contract where emaid = ?", str(emaid))[0][0]
        return count

    def close(self) -> None:
        for client in (self.http, *self._clients.values()):
            client.close()


def edition_of(car: Car) -> str:
    """The name of the PKI of a car that `Pool.car` made."""
    if car.namespace is Namespace.ISO2:
        return "iso2"
    return "iso20" if car.provisioning.agreement_key is None else "ed448"


def expired_car(pki: PKI, pcid: PCID | None = None) -> Car:
    """A car whose provisioning certificate expired an hour ago."""
    pcid = pcid or new_pcid()
    valid = (AT - timedelta(days=1), AT - timedelta(hours=1))
    return Car.from_credential(pki, pki.vehicle(pcid, now=AT, valid=valid), pcid)


def again(pki: PKI, car: Car) -> Credential:
    """The same vehicle with another provisioning certificate and key."""
    return pki.vehicle(car.pcid, now=AT)


def put_body(message: bytes, emaid: str, pcid: str, namespace: str) -> dict[str, Any]:
    return {
        "certificateInstallationRes": b64(message),
        "emaid": emaid,
        "pcid": pcid,
        "xsdMsgDefNamespace": namespace,
    }


def post_body(request: bytes, namespace: str) -> dict[str, Any]:
    return {"certificateInstallationReq": b64(request), "xsdMsgDefNamespace": namespace}


def response_bytes(item: Mapping[str, Any]) -> bytes:
    """The message of an item."""
    return base64.b64decode(item["certificateInstallationRes"], validate=True)


def read(item: Mapping[str, Any], namespace: str | None = None) -> InstallationResponse:
    """The message of an item, parsed without verification."""
    return verify.read_response(response_bytes(item), Namespace(namespace or item["xsdMsgDefNamespace"]))


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Store]:
    """A separate connection to a pool's database."""
    store = connect(settings.database, secrets_key_file=settings.secrets_key_file)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@functools.cache
def _secret(client_id: str) -> str:
    """The secret of an ordinary party, the same in every pool of this process."""
    return new_secret()


_hashed = functools.cache(hash_secret)
"""The hash of a secret, computed once for all pools: a real one, which takes 30 ms."""


@contextmanager
def start(
    pkis: Mapping[str, PKI],
    parties_too: Sequence[Party] = (),
    *,
    refresh_interval: float = REFRESH_INTERVAL,
    **options: Any,
) -> Iterator[Pool]:
    """Run a pool in a new directory for a block. options: settings that differ from the defaults.

    Events stay in the outbox, where tests count them, unless event_dispatch is given. refresh_interval: seconds until
    changes of other processes take effect.
    """
    with tempfile.TemporaryDirectory(prefix="ccp-test-") as folder, loopback() as (listening, base_url):
        database = Path(folder) / "ccp.db"
        values = {
            "database": fresh(Path(folder)),
            "base_url": base_url,
            "log_level": "error",
            "event_dispatch": False,
            **options,
        }
        settings = Settings(**values)
        with_schema(settings.database)
        world = World(
            {name: pki for name, pki in pkis.items() if name != "stranger"},
            (
                *(Member(party, _secret(party.client_id)) for party in parties()),
                *(Member(party, new_secret()) for party in parties_too),
            ),
        )

        async def fill() -> None:
            async with opened(settings) as store:
                await register(store, world, AT)

        with patch.object(party_registry, "hash_secret", _hashed):
            asyncio.run(fill())
        sql(settings.database, "delete from outbox")  # The events of the roots.
        world = World(pkis, world.members)
        with (
            running(settings, listening, refresh_interval=refresh_interval),
            httpx.Client(base_url=base_url, timeout=10) as http,
        ):
            pool = Pool(base_url, settings, world, database, http)
            try:
                yield pool
            finally:
                pool.close()
