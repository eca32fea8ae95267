"""A sandbox: a test PKI, parties with credentials, cars and contracts, and a pool that knows them."""

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
from ccp.server.access.party_registry import Actor, PartyRegistry
from ccp.server.app import build_services
from ccp.server.audit.actor import command_actor
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.http.routes.oauth import PATH as TOKEN_PATH
from ccp.server.runtime.private_files import create_private
from ccp.server.settings import Settings
from ccp.server.storage import Store
from ccp.server.storage.engine import schema
from ccp.server.trust.anchors import add_anchor, trusted_certificate
from ccp.testing.partners import Car, issue_contract, new_session_id, sign_contract
from ccp.testing.pki import PKI
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole as TrustRole

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
)
_CARS: Final = 2


@dataclass(frozen=True, slots=True)
class Member:
    """A registered party and the secret it calls with."""

    party: Party
    secret: str


@dataclass(frozen=True, slots=True)
class World:
    """PKIs by edition ("iso2", "iso20") and the parties."""

    pkis: Mapping[str, PKI]
    members: tuple[Member, ...]

    def member(self, name: str) -> Member:
        return next(member for member in self.members if member.party.name == name)


def build_world(at: datetime) -> World:
    """Make everything up: keys, certificates, secrets."""
    pkis = {
        "iso2": PKI.generate(at, algorithm="P-256"),
        "iso20": PKI.generate(at, algorithm="P-521"),
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


async def register(store: Store, world: World, at: datetime) -> None:
    """Tell a pool about a world: its roots, the OEM's sub-CAs, which ISO 15118-2 cars do not send, and its parties."""
    for edition, pki in world.pkis.items():
        for role, certificate in trust_list(pki):
            entry = trusted_certificate(certificate, role, f"sandbox {edition}", at)
            await store.write(add_anchor(entry, command_actor(), at))
    actor = Actor(command_actor())
    for member in world.members:
        await PartyRegistry(store).add(member.party, actor, at, member.secret)


def trust_list(pki: PKI) -> list[tuple[TrustRole, Certificate]]:
    return [
        (TrustRole.V2G, pki.v2g_root.certificate),
        (TrustRole.EMSP, pki.emsp_root.certificate),
        (TrustRole.OEM, pki.oem_root.certificate),
        (TrustRole.OEM, pki.oem_sub1.certificate),
        (TrustRole.OEM, pki.oem_sub2.certificate),
    ]


def publish_body(pki: PKI, emaid: EMAID, car: Car, at: datetime) -> dict[str, Any]:
    """A complete body for PUT /signedcontractdata."""
    octets = sign_contract(pki, issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, at), at)
    root = pki.v2g_root.certificate
    return {
        "certificateInstallationRes": encode_base64(octets),
        "emaid": emaid,
        "pcid": car.pcid,
        "xsdMsgDefNamespace": car.namespace,
        "cpsV2GRootCertificateFingerprint": root.fingerprint,
        "cpsRootDistinguishedName": root.subject_dn,
    }


def request_body(car: Car, at: datetime) -> dict[str, Any]:
    """A complete body for POST /signedcontractdata, with a session of its own."""
    return {
        "certificateInstallationReq": encode_base64(car.request(new_session_id(), at)),
        "xsdMsgDefNamespace": car.namespace,
    }


def create(directory: Path, base_url: str, at: datetime, *, store_samples: bool) -> World:
    """Lay out a sandbox in a new or empty directory. Raises ConfigurationError when there is something in it."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigurationError(f"{directory} is not an empty directory; a sandbox needs one of its own.")
    directory.mkdir(parents=True, exist_ok=True)
    world = build_world(at)
    host, _, port = base_url.removeprefix("http://").partition(":")
    (directory / "ccp.toml").write_text(
        "# A sandbox: for trying things out. Its keys and secrets lie beside this file.\n"
        f'host = "{host}"\nport = {port}\nbase_url = "{base_url}"\n'
        'database = "sqlite:///ccp.db"\nlog_format = "console"\n',
        encoding="utf-8",
    )
    _write_private(directory / "credentials.json", credentials(world, base_url))
    bodies = []
    for number, (edition, pki) in enumerate(world.pkis.items()):
        pki.save(directory / "pki" / edition)
        for role, certificate in trust_list(pki):
            folder = directory / "trust" / role.value
            folder.mkdir(parents=True, exist_ok=True)
            name = certificate.subject_cn.lower().replace(" ", "-")
            (folder / f"{edition}-{name}.pem").write_bytes(certificate.pem())
        for place in range(_CARS):
            pcid = PCID.parse(f"{OEM_WMI}0SANDBOX{number * _CARS + place + 1:06d}")
            car = Car.generate(pki, pcid, at)
            car.provisioning.save(directory / "vehicles" / edition, pcid)
            samples = directory / "samples" / edition
            _write(samples / f"request_{pcid}.json", request_body(car, at))
            for provider in (EMSP_A, EMSP_B):
                emaid = EMAID.parse(f"{provider}C{number * _CARS + place + 1:08d}")
                body = publish_body(pki, emaid, car, at)
                _write(samples / f"publish_{emaid}.json", body)
                bodies.append(body)
    # Whatever the environment says: a sandbox's roots and parties must not get into another database.
    config = settings.load(directory / "ccp.toml", database=f"sqlite:///{directory.resolve() / 'ccp.db'}")
    schema.upgrade(config.database)
    asyncio.run(_fill(config, world, bodies if store_samples else [], at))
    return world


async def _fill(config: Settings, world: World, bodies: list[dict[str, Any]], at: datetime) -> None:
    """Register the world, and publish what shall be stored, through the pool's own checks."""
    logging.configure(config.model_copy(update={"log_level": "error"}))
    built = build_services(config, lambda: at)
    await built.open()
    try:
        await register(built.store, world, at)
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
                now=at,
            )
    finally:
        await built.close()


def credentials(world: World, base_url: str) -> dict[str, Any]:
    """What a caller needs to know."""
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
