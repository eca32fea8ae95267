"""Creates a sandbox: a test PKI, parties with credentials, cars with contracts, and a pool's database with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ccp.errors import ConfigurationError
from ccp.ids import EMAID, PCID, WMI, OperatorId, ProviderId
from ccp.schemas.common import encode_base64
from ccp.schemas.opnc import SignedContractData
from ccp.server import logging, settings
from ccp.server.access.client_secrets import new_secret
from ccp.server.access.party_registry import PartyRegistry
from ccp.server.app import build_services
from ccp.server.audit.actor import command_actor
from ccp.server.domain.actor import Actor
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.http.routes.oauth import PATH as TOKEN_PATH
from ccp.server.runtime.private_files import create_private
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.engine import schema
from ccp.server.trust.anchors import add_anchor, trusted_certificate
from ccp.testing.partners import Car, issue_contract, new_session_id, sign_contract
from ccp.testing.pki import PKI

EMSP_A: Final = ProviderId.parse("DEEXA")
EMSP_B: Final = ProviderId.parse("NLEXB")
OEM_WMI: Final = WMI.parse("WEX")
OPERATOR: Final = OperatorId.parse("DEEXC")

# name, role, provider ids, WMIs, operator ids; the CPS signs for every provider.
_PARTIES: Final[tuple[tuple[str, PartyRole, set[ProviderId], set[WMI], set[OperatorId]], ...]] = (
    ("Example eMSP A", PartyRole.EMSP, {EMSP_A}, set(), set()),
    ("Example eMSP B", PartyRole.EMSP, {EMSP_B}, set(), set()),
    ("Example CPO", PartyRole.CPO, set(), set(), {OPERATOR}),
    ("Example OEM", PartyRole.OEM, set(), {OEM_WMI}, set()),
    ("Example CPS", PartyRole.CPS, set(), set(), set()),
    ("Example admin", PartyRole.ADMIN, set(), set(), set()),
)
_CARS: Final = 2
FIRST_STEPS: Final = "console.txt"
"""File of a sandbox with the console's address and credentials. `make run` shows it."""


@dataclass(frozen=True, slots=True)
class Member:
    """A registered party and its client secret."""

    party: Party
    secret: str


@dataclass(frozen=True, slots=True)
class World:
    """PKIs by edition ("iso2", "iso20") and the parties."""

    pkis: Mapping[str, PKI]
    members: tuple[Member, ...]

    def member(self, name: str) -> Member:
        """Return a party by its name. Raises StopIteration for an unknown one."""
        return next(member for member in self.members if member.party.name == name)


def build_world(now: datetime) -> World:
    """Generate PKIs, parties and secrets."""
    pkis = {
        "iso2": PKI.generate(now, edition="iso2"),
        "iso20": PKI.generate(now, edition="iso20"),
    }
    members = tuple(
        Member(
            Party(
                client_id=name.lower().replace(" ", "-"),
                name=name,
                roles=frozenset({role}),
                provider_ids=frozenset(provider_ids),
                all_providers=role is PartyRole.CPS,
                wmis=frozenset(wmis),
                operator_ids=frozenset(operator_ids),
            ),
            new_secret(),
        )
        for name, role, provider_ids, wmis, operator_ids in _PARTIES
    )
    return World(pkis, members)


async def register(store: Store, world: World, now: datetime) -> None:
    """Store a world in a pool's database: its roots, the OEM's sub-CAs, which ISO 15118-2 cars do not send, and its
    parties.
    """
    for edition, pki in world.pkis.items():
        for role, certificate in pki.trust_list():
            entry = trusted_certificate(certificate, role, f"sandbox {edition}", now)
            await store.write(add_anchor(entry, command_actor(), now))
    actor = Actor(command_actor())
    for member in world.members:
        await PartyRegistry(store).add(member.party, actor, now, member.secret)


def publish_body(pki: PKI, emaid: EMAID, car: Car, now: datetime) -> dict[str, Any]:
    """Return a complete body for PUT /signedcontractdata."""
    message = sign_contract(pki, issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, now), now)
    root = pki.v2g_root.certificate
    return {
        "certificateInstallationRes": encode_base64(message),
        "emaid": emaid,
        "pcid": car.pcid,
        "xsdMsgDefNamespace": car.namespace,
        "cpsV2GRootCertificateFingerprint": root.fingerprint,
        "cpsRootDistinguishedName": root.subject_dn,
    }


def request_body(car: Car, now: datetime) -> dict[str, Any]:
    """Return a complete body for POST /signedcontractdata, with a new session id."""
    return {
        "certificateInstallationReq": encode_base64(car.request(new_session_id(), now)),
        "xsdMsgDefNamespace": car.namespace,
    }


def create(directory: Path, base_url: str, now: datetime, *, store_samples: bool) -> World:
    """Create a sandbox in a new or empty directory. Raises ConfigurationError if it is not empty.

    store_samples: whether the pool contains the contracts of the samples.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} is not an empty directory; a sandbox needs an empty one.")
    directory.mkdir(parents=True, exist_ok=True)
    world = build_world(now)
    host, _, port = base_url.removeprefix("http://").partition(":")
    (directory / "ccp.toml").write_text(
        "# A sandbox, not for production: its keys and secrets are stored beside this file.\n"
        f'host = "{host}"\nport = {port}\nbase_url = "{base_url}"\n'
        'database = "sqlite:///ccp.db"\nlog_format = "console"\nconsole = true\ntry_it = true\n',
        encoding="utf-8",
    )
    _write_private(directory / "credentials.json", credentials(world, base_url))
    with create_private(directory / FIRST_STEPS) as file:
        file.write(first_steps(world, base_url).encode())
    bodies = []
    for number, (edition, pki) in enumerate(world.pkis.items()):
        pki.save(directory / "pki" / edition)
        for role, certificate in pki.trust_list():
            folder = directory / "trust" / role.value
            folder.mkdir(parents=True, exist_ok=True)
            name = certificate.subject_cn.lower().replace(" ", "-")
            (folder / f"{edition}-{name}.pem").write_bytes(certificate.pem())
        for place in range(_CARS):
            pcid = PCID.parse(f"{OEM_WMI}0SANDBOX{number * _CARS + place + 1:06d}")
            car = Car.generate(pki, pcid, now)
            car.provisioning.save(directory / "vehicles" / edition, pcid)
            samples = directory / "samples" / edition
            _write(samples / f"request_{pcid}.json", request_body(car, now))
            for provider in (EMSP_A, EMSP_B):
                emaid = EMAID.parse(f"{provider}C{number * _CARS + place + 1:08d}")
                body = publish_body(pki, emaid, car, now)
                _write(samples / f"publish_{emaid}.json", body)
                bodies.append(body)
    # The database of the sandbox, not one from the environment: test roots must not get into another pool.
    config = settings.load(directory / "ccp.toml", database=f"sqlite:///{directory.resolve() / 'ccp.db'}")
    schema.upgrade(config.database)
    asyncio.run(_fill(config, world, bodies if store_samples else [], now))
    return world


async def _fill(config: Settings, world: World, bodies: list[dict[str, Any]], now: datetime) -> None:
    """Register the world and publish contracts, with the pool's own checks."""
    logging.configure(config.model_copy(update={"log_level": "error"}))
    built = build_services(config, lambda: now)
    await built.open()
    try:
        await register(built.store, world, now)
        await built.trust.refresh()
        for body in bodies:
            data = SignedContractData.model_validate(body)
            await built.pool.publish(
                Caller(world.member("Example CPS").party),
                emaid=data.emaid,
                pcid=data.pcid,
                namespace=data.xsdMsgDefNamespace,
                message=data.certificateInstallationRes,
                root=data.cpsV2GRootCertificateFingerprint,
                metadata=data.metaData,
                now=now,
            )
    finally:
        await built.close()


def first_steps(world: World, base_url: str) -> str:
    """Return how to log in to the console, with the secret, and what to look for. Lines with their ends."""
    admin = world.member("Example admin")
    return (
        f"The console: {base_url}/console/\n"
        f"  client id      {admin.party.client_id}\n"
        f"  client secret  {admin.secret}\n"
        f"  a sample car   {OEM_WMI}0SANDBOX000001\n"
    )


def credentials(world: World, base_url: str) -> dict[str, Any]:
    """Return the contents of credentials.json: addresses, and the credentials of each party."""
    return {
        "base_url": base_url,
        "token_url": base_url + TOKEN_PATH,
        "parties": [
            {
                "name": member.party.name,
                "role": next(iter(member.party.roles)).value,
                "client_id": member.party.client_id,
                "client_secret": member.secret,
                "provider_ids": sorted(member.party.provider_ids),
                "wmis": sorted(member.party.wmis),
            }
            for member in world.members
        ],
    }


def _write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_private(path: Path, value: object) -> None:
    with create_private(path) as file:
        file.write(json.dumps(value, indent=2).encode() + b"\n")
