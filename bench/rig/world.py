"""Cars, contracts and callers made with real cryptography before anything is measured.

Certificates name an OCSP responder, which is never queried: the status of each certificate is stored beforehand, as in
a pool that has been running for a while. Callers come in sixteen sets, so the load is that of many partners, and the
rate limits keep their defaults.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from ccp.ids import EMAID, PCID, WMI, ProviderId
from ccp.schemas.common import encode_base64
from ccp.schemas.opnc import SignedContractData
from ccp.server.access.client_secrets import new_secret
from ccp.server.app import build_services
from ccp.server.domain.parties import Caller, Party, PartyRole
from ccp.server.sandbox import setup
from ccp.server.settings import Settings
from ccp.server.storage.queries import revocation
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI, Credential, StatusURLs
from ccp.x509.certificates import Certificate
from ccp.x509.revocation_evidence import Evidence, RevocationStatus

SETS: Final = "ABCDEFGHIJKLMNOP"
BASE_URL: Final = "http://ccp.example"
_FRESH: Final = timedelta(hours=12)
AGAIN: Final = 512
"""Cars that ask again and again, in the row that says so."""
PATH: Final = "/opnc/v1/ccp"


@dataclass(frozen=True, slots=True)
class Contract:
    """A vehicle and the contract that is stored for it. message: EXI. publication, request: bodies of PUT and POST."""

    letter: str
    car: Car
    emaid: EMAID
    message: bytes
    publication: dict[str, Any]
    request: bytes


@dataclass(frozen=True, slots=True)
class Fleet:
    """The contracts of one edition, and every certificate below a root with its issuer."""

    pki: PKI
    contracts: tuple[Contract, ...]
    certificates: tuple[tuple[Certificate, Certificate], ...]


@dataclass(frozen=True, slots=True)
class World:
    at: datetime
    fleets: dict[str, Fleet]
    members: dict[tuple[PartyRole, str], setup.Member]


@dataclass(frozen=True, slots=True)
class Operation:
    """A kind of request. messages: whole HTTP requests, all different. expected: a part of every response body."""

    name: str
    messages: tuple[bytes, ...]
    expected: tuple[bytes, ...]
    status: int = 200


def build(at: datetime, counts: dict[str, int]) -> World:
    """counts: contracts by edition, "iso2" (P-256) and "iso20" (P-521)."""
    algorithms = {"iso2": "P-256", "iso20": "P-521"}
    fleets = {}
    for edition, count in counts.items():
        pki = PKI.generate(at, algorithm=algorithms[edition], status_urls=_responder)  # type: ignore[arg-type]
        fleets[edition] = _fleet(pki, edition.removeprefix("iso"), count, at)
    return World(at, fleets, {(role, letter): _member(role, letter) for letter in SETS for role in _ROLES})


def _responder(name: str) -> StatusURLs:
    return StatusURLs(ocsp="http://ocsp.example/")


_ROLES: Final = (PartyRole.CPO, PartyRole.CPS, PartyRole.EMSP, PartyRole.OEM)


def provider(letter: str) -> str:
    return f"DEEX{letter}"


def wmi(letter: str) -> str:
    return f"WX{letter}"


def _member(role: PartyRole, letter: str) -> setup.Member:
    party = Party(
        f"example-{role.value}-{letter.lower()}",
        f"Example {role.value} {letter}",
        frozenset({role}),
        provider_ids=frozenset({ProviderId.parse(provider(letter))} if role is PartyRole.EMSP else ()),
        all_providers=role is PartyRole.CPS,
        wmis=frozenset({WMI.parse(wmi(letter))} if role is PartyRole.OEM else ()),
    )
    return setup.Member(party, new_secret())


def _fleet(pki: PKI, edition: str, count: int, at: datetime) -> Fleet:
    contracts = []
    pairs: dict[tuple[str, int], tuple[Certificate, Certificate]] = {}

    def note(credential: Credential, root: Credential) -> None:
        chain = (credential.certificate, *credential.sub_cas, root.certificate)
        for certificate, issuer in itertools.pairwise(chain):
            pairs[issuer.issuer_key_id, certificate.serial_number] = certificate, issuer

    note(pki.cps, pki.v2g_root)
    for number in range(count):
        letter = SETS[number % len(SETS)]
        pcid = PCID.parse(_numbered(f"{wmi(letter)}0B{edition}", number, 17))
        emaid = EMAID.parse(_numbered(f"{provider(letter)}C{edition}", number, 14))
        car = Car.generate(pki, pcid, at)
        bundle = issue_contract(pki, emaid, pcid, car.provisioning.certificate, at)
        message = sign_contract(pki, bundle, at)
        publication = {
            "certificateInstallationRes": encode_base64(message),
            "emaid": emaid,
            "pcid": pcid,
            "xsdMsgDefNamespace": car.namespace,
            "cpsV2GRootCertificateFingerprint": pki.v2g_root.certificate.fingerprint,
        }
        request = json.dumps(setup.request_body(car, at)).encode()
        contracts.append(Contract(letter, car, emaid, message, publication, request))
        note(car.provisioning, pki.oem_root)
        note(bundle.contract, pki.emsp_root)
    return Fleet(pki, tuple(contracts), tuple(pairs.values()))


def _numbered(prefix: str, number: int, length: int) -> str:
    return prefix + str(number).zfill(length - len(prefix))


async def fill(config: Settings, world: World) -> None:
    """Add roots, parties, evidence and every contract, each published through all checks. The schema exists."""
    built = build_services(config)
    await built.open()
    try:
        known = setup.World(
            {edition: fleet.pki for edition, fleet in world.fleets.items()}, tuple(world.members.values())
        )
        await setup.register(built.store, known, world.at)
        await built.trust.refresh()
        evidence = [
            Evidence(
                issuer.issuer_key_id,
                certificate.serial_number,
                RevocationStatus.GOOD,
                world.at,
                world.at + _FRESH,
                None,
                "OCSP",
            )
            for fleet in world.fleets.values()
            for certificate, issuer in fleet.certificates
        ]
        for part in _parts(evidence):
            await asyncio.gather(*(built.store.write(revocation.store_evidence(each)) for each in part))
        for part in _parts([each for fleet in world.fleets.values() for each in fleet.contracts]):
            await asyncio.gather(*(_publish(built.pool, world, each) for each in part))
    finally:
        await built.close()


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + 250] for start in range(0, len(items), 250)]


async def _publish(pool: Any, world: World, contract: Contract) -> None:
    data = SignedContractData.model_validate(contract.publication)
    await pool.publish(
        Caller(world.members[PartyRole.CPS, contract.letter].party),
        emaid=data.emaid,
        pcid=data.pcid,
        namespace=data.xsdMsgDefNamespace,
        message=data.certificateInstallationRes,
        root=data.cpsV2GRootCertificateFingerprint,
        metadata=None,
        now=world.at,
    )


# --- Requests --------------------------------------------------------------------------------------------------------

Tokens = dict[tuple[PartyRole, str], str]


def message_of(method: str, path: str, token: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: ccp.example\r\nAuthorization: Bearer {token}\r\nAccept: */*\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def operations(world: World, tokens: Tokens) -> dict[str, Operation]:
    """Every kind of load by its short name."""
    two = world.fleets["iso2"].contracts
    emaids = tuple(contract.emaid.encode() for contract in two)
    sessions = random.Random(1)

    def made(
        name: str, role: PartyRole, method: str, path: str, contracts: Sequence[Contract], body: str = ""
    ) -> Operation:
        messages = tuple(
            message_of(
                method,
                PATH + path.format(emaid=c.emaid, pcid=c.car.pcid, session=sessions.randbytes(8).hex()),
                tokens[role, c.letter],
                {"": b"", "request": c.request, "publication": json.dumps(c.publication).encode()}[body],
            )
            for c in contracts
        )
        return Operation(name, messages, tuple(c.emaid.encode() for c in contracts))

    found = {
        "post": made("POST, ISO 15118-2", PartyRole.CPO, "POST", "/signedcontractdata", two, "request"),
        "by-emaid": made("GET contractData/emaid", PartyRole.EMSP, "GET", "/contractData/emaid/{emaid}", two),
        "by-pcid": made("GET contractData/pcid", PartyRole.OEM, "GET", "/contractData/pcid/{pcid}", two),
        "signed": made(
            "GET signedcontractdata/{emaid}/{pcid}",
            PartyRole.OEM,
            "GET",
            "/signedcontractdata/{emaid}/{pcid}?sessionID={session}",
            two,
        ),
    }
    if "iso20" in world.fleets:
        twenty = world.fleets["iso20"].contracts
        found["post-20"] = made("POST, ISO 15118-20", PartyRole.CPO, "POST", "/signedcontractdata", twenty, "request")
    again = slice(0, AGAIN)
    found["post-again"] = Operation("POST, the same cars", found["post"].messages[again], found["post"].expected[again])
    put = made("PUT, ISO 15118-2", PartyRole.CPS, "PUT", "/signedcontractdata", two, "publication")
    found["put"] = Operation(put.name, put.messages, (b"",) * len(emaids), 201)
    found["live"] = Operation("GET /health/live", (message_of("GET", "/health/live", "none"),), (b"alive",))
    return found
