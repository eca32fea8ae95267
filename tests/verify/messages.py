"""Installation messages for the tests of this folder: made, signed again, flipped, and verified."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ccp import exi, verify
from ccp.errors import (
    CCPError,
    ChainError,
    EXIError,
    KeyMaterialError,
    MismatchError,
    SignatureError,
)
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, PCID, Fingerprint
from ccp.testing.partners import Car, issue_contract, namespace_of, sign_contract
from ccp.testing.pki import PKI
from ccp.verify import InstallationResponse, VerifiedInstallationResponse, message_signatures
from ccp.x509.path_validation import VerifiedChain
from ccp.x509.revocation_policy import NoRevocationCheck
from tests.world import AT

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "tests" / "vectors" / "installation_res_iso2_opnc_example.b64"
# The published test root: an example in the API description, which lies beside the project and is not part of it.
PUBLISHED_ROOT = ROOT.parent / "shared" / "opnc-spec" / "components" / "schemas" / "rootCertificate.v1.json"
KINDS = ["iso2", "iso20", "ed448"]
THE_EMAID, OTHER_EMAID = EMAID("DEEXAI00000001"), EMAID("DEEXAI00000002")
THE_PCID = PCID("WEX0INSTALL000001")
SESSION = bytes.fromhex("0102030405060708")
DAY = timedelta(days=1)
MANDATORY = ("ContractSignatureCertChain", "ContractSignatureEncryptedPrivateKey", "DHpublickey", "eMAID")
REFUSALS = (EXIError, ChainError, SignatureError, MismatchError, KeyMaterialError)


def contract_message(pki: PKI, emaid: EMAID = THE_EMAID, car: Car | None = None, **how: Any) -> bytes:
    """What a provisioning service signs for a car."""
    car = car or Car.generate(pki, THE_PCID, AT)
    return sign_contract(pki, issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, AT, **how), AT)


def verify_response(
    encoded: bytes,
    pki: PKI,
    *,
    now: datetime = AT,
    emaid: EMAID | None = None,
    root: Fingerprint | None = None,
    **how: Any,
) -> VerifiedInstallationResponse:
    response = verify.read_response(encoded, namespace_of(pki))
    how = {"anchors": pki.anchors(), "revocation": NoRevocationCheck(), **how}
    return verify.check_response(response, emaid=emaid, root=root, now=now, **how)


def verify_request(encoded: bytes, pki: PKI, *, now: datetime = AT, **how: Any) -> verify.VerifiedInstallationRequest:
    how = {"anchors": pki.anchors(), "revocation": NoRevocationCheck(), **how}
    return verify.check_request(verify.read_request(encoded, namespace_of(pki)), now=now, **how)


def refusal(check: Callable[[], object]) -> tuple[type[Exception], tuple[str, ...]]:
    with pytest.raises(CCPError) as caught:
        check()
    return type(caught.value), caught.value.messages


def signed2(body: iso2.CertificateInstallationRes, key: Any) -> bytes:
    """An ISO 15118-2 response with these members, signed anew."""
    names = [(name, getattr(body, name)) for name in MANDATORY]
    references = [(part.Id, exi.encode_fragment(name, part, exi.ISO2)) for name, part in names]
    return exi.encode(
        iso2.V2G_Message(iso2.Header(b"\0", None, message_signatures.create_signature(references, key)), body)
    )


def body_of(encoded: bytes) -> iso2.CertificateInstallationRes:
    message = exi.decode(encoded)
    assert isinstance(message, iso2.V2G_Message)
    assert isinstance(message.Body, iso2.CertificateInstallationRes)
    return message.Body


def message20(encoded: bytes) -> iso20.CertificateInstallationRes:
    message = exi.decode(encoded)
    assert isinstance(message, iso20.CertificateInstallationRes)
    return message


def signed20(encoded: bytes, key: Any, **changes: Any) -> bytes:
    """An ISO 15118-20 response with other SignedInstallationData, signed anew."""
    message = message20(encoded)
    data = message.SignedInstallationData._replace(**changes)
    reference = (data.Id, exi.encode_fragment("SignedInstallationData", data, exi.ISO20))
    header = message.Header._replace(Signature=message_signatures.create_signature([reference], key))
    return exi.encode(message._replace(Header=header, SignedInstallationData=data))


def flip(encoded: bytes, position: int) -> bytes:
    return (int.from_bytes(encoded, "big") ^ 1 << 8 * len(encoded) - 1 - position).to_bytes(len(encoded), "big")


def signed_regions(encoded: bytes) -> dict[str, range]:
    """Bit positions of everything that the signature covers or consists of."""
    parsed = exi.parse(encoded)
    assert parsed.signed_info is not None
    signature = message_signatures.signature_of(parsed.message)
    assert signature is not None
    value = signature.SignatureValue.value
    start = parsed.signed_info.end
    # The value stands a few bits behind SignedInfo: event codes and its length.
    at = next(at for at in range(start, start + 32) if value == bits(encoded, at, 8 * len(value)))
    regions = {part.name: range(part.start, part.end) for part in parsed.elements}
    return regions | {
        "SignedInfo": range(parsed.signed_info.start, parsed.signed_info.end),
        "SignatureValue": range(at, at + 8 * len(value)),
    }


def bits(encoded: bytes, at: int, count: int) -> bytes:
    return (int.from_bytes(encoded, "big") >> 8 * len(encoded) - at - count & (1 << count) - 1).to_bytes(
        count // 8, "big"
    )


def sampled(encoded: bytes, seed: str, signed: int, anywhere: int) -> Iterator[tuple[str, int]]:
    """Seeded positions: `signed` of them spread evenly over the signed regions, `anywhere` over everything.

    The first is in the session id, which may change: a sample in which nothing passes would show little.
    """
    yield "unsigned", 30
    chance = random.Random(seed)
    regions = signed_regions(encoded)
    covered = {position for region in regions.values() for position in region}
    for name, region in regions.items():
        for position in sorted(chance.sample(region, min(len(region), signed // len(regions)))):
            yield name, position
    for position in sorted(chance.sample(range(8 * len(encoded)), anywhere)):
        yield ("signed" if position in covered else "unsigned"), position


def signed_content(response: InstallationResponse) -> tuple[object, ...]:
    return (
        response.response_code, response.emaid, response.contract_certificate, response.contract_sub_certificates,
        response.curve, response.dh_public_key, response.encrypted_key, response.encrypted_key_of,
    )  # fmt: skip


class Revoked:
    """Evidence that says: revoked, or not to be had, for chains with a certain leaf."""

    def __init__(self, leaf: str, error: CCPError) -> None:
        self.leaf, self.error = leaf, error

    def check(self, chain: VerifiedChain, at: datetime) -> str:
        if chain.leaf.subject_cn == self.leaf:
            raise self.error
        return "good"
