"""Checks of installation messages as a whole: valid ones, flipped bits, every reason of refusal, and responses."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP521R1, derive_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ccp import exi, verify
from ccp.errors import (
    CCPError,
    ChainError,
    EXIError,
    ExpiredError,
    KeyMaterialError,
    MismatchError,
    NoContract,
    NotFound,
    NothingDeliverable,
    RevokedError,
    SignatureError,
    Unavailable,
)
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain.contracts import SignedContract, signed_contract
from ccp.testing.partners import Car, issue_contract, namespace_of, sign_contract
from ccp.testing.pki import CONTRACT, CPS, OEM_PROVISIONING, PKI, Credential
from ccp.verify import InstallationRequest, InstallationResponse, VerifiedInstallationResponse, message_signatures
from ccp.verify.report import CheckList, CheckStatus
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.profiles import AnchorRole
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


@pytest.fixture(scope="module", params=KINDS)
def pki(request: pytest.FixtureRequest, pkis: dict[str, PKI]) -> PKI:
    return pkis[request.param]


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


# --- Messages that differ from the simulator's -----------------------------------------------------------------------


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


# --- Good messages ---------------------------------------------------------------------------------------------------


def test_a_response_verifies_and_tells_what_it_rests_on(pki: PKI) -> None:
    car = Car.generate(pki, THE_PCID, AT)
    root = Fingerprint(pki.v2g_root.certificate.fingerprint)
    encoded = contract_message(pki, car=car)
    verified = verify_response(encoded, pki, emaid=THE_EMAID, root=root)
    assert verified.emaid == THE_EMAID
    assert verified.cps_chain.leaf == pki.cps.certificate
    assert verified.cps_chain.root == pki.v2g_root.certificate
    assert verified.contract_chain.root == pki.emsp_root.certificate
    assert len(verified.signature.elements) == (4 if namespace_of(pki) is Namespace.ISO2 else 1)
    contract = signed_contract(verified, THE_PCID, "from a test", AT)
    assert contract == SignedContract(
        THE_EMAID,
        THE_PCID,
        namespace_of(pki),
        root,
        pki.v2g_root.certificate.serial_number,
        pki.v2g_root.certificate.subject_dn,
        verified.contract_chain.leaf.not_before,
        verified.contract_chain.leaf.not_after,
        verified.contract_chain.leaf.der,
        encoded,
        exi.parse(encoded).remaining_from_end,
        "from a test",
        AT,
        AT,
        False,
    )
    assert (contract.remaining_from_end is None) == (namespace_of(pki) is Namespace.ISO2)


def test_a_contract_chain_may_end_in_a_v2g_root(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    anchors = TrustAnchors.build([(AnchorRole.V2G, c.certificate) for c in (pki.v2g_root, pki.emsp_root)])
    assert verify_response(contract_message(pki), pki, anchors=anchors).contract_chain.root == pki.emsp_root.certificate


@pytest.mark.parametrize("with_anchors", [True, False])
def test_a_request_verifies_and_names_the_vehicle(pki: PKI, with_anchors: bool) -> None:
    car = Car.generate(pki, THE_PCID, AT)
    encoded = car.request(SESSION, AT)
    verified = verify_request(encoded, pki, **({} if with_anchors else {"anchors": None}))
    assert verified.pcid == THE_PCID
    assert verified.leaf == car.provisioning.certificate
    assert (verified.chain is not None) == with_anchors
    assert verified.request.session_id == SESSION
    assert verify.claimed_pcid(verified.request) == THE_PCID


def test_a_pcid_in_lower_case_is_the_same_vehicle(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    car = Car.from_credential(pki, pki.vehicle(THE_PCID.lower(), now=AT), THE_PCID)
    assert verify_request(car.request(SESSION, AT), pki).pcid == THE_PCID


def test_a_vehicles_wishes_are_read(pkis: dict[str, PKI]) -> None:
    car = Car.generate(pkis["iso20"], THE_PCID, AT)
    wishes = ("de-exa-i00000002", "no emaid", "DEEXAI00000001")
    request = verify.read_request(car.request(SESSION, AT, prioritized_emaids=wishes, max_chains=7), Namespace.ISO20)
    assert (request.prioritized_emaids, request.max_chains) == ((OTHER_EMAID, THE_EMAID), 7)
    assert [root.X509SerialNumber for root in request.root_ids] == [pkis["iso20"].v2g_root.certificate.serial_number]


def test_p256_is_accepted_in_iso20_and_p521_refused_in_iso2(pkis: dict[str, PKI]) -> None:
    """Some ISO 15118-20 senders still use ISO 15118-2 keys. ISO 15118-2 receivers cannot read ISO 15118-20 keys."""
    pki, strong = pkis["iso2"], pkis["iso20"]
    contract = pki.contract(THE_EMAID, now=AT)
    data = iso20.SignedInstallationData(
        "ID1",
        iso20.CertificateChain(contract.certificate.der, tuple(c.der for c in contract.sub_cas)),
        "SECP521",
        POINT_P521,
        SECP521_EncryptedPrivateKey=bytes(94),
    )
    reference = (data.Id, exi.encode_fragment("SignedInstallationData", data, exi.ISO20))
    header = iso20.Header(bytes(8), 1, message_signatures.create_signature([reference], pki.cps.key))
    chain = iso20.CertificateChain(pki.cps.certificate.der, tuple(c.der for c in pki.cps.sub_cas))
    encoded = exi.encode(iso20.CertificateInstallationRes(header, "OK", "Finished", chain, data, 0))
    response = verify.read_response(encoded, Namespace.ISO20)
    verified = verify.check_response(
        response, emaid=THE_EMAID, root=None, anchors=pki.anchors(), revocation=NoRevocationCheck(), now=AT
    )
    assert verified.signature.method.endswith("ecdsa-sha256")

    body = body_of(contract_message(pki))._replace(
        SAProvisioningCertificateChain=iso2.CertificateChain(
            None, strong.cps.certificate.der, tuple(c.der for c in strong.cps.sub_cas)
        )
    )
    kind, sentences = refusal(lambda: verify_response(signed2(body, pki.cps.key), pki, anchors=strong.anchors()))
    assert kind is ChainError
    assert sentences[0] == 'The key of certificate "CPS SIM" is not of a kind that ISO 15118-2 allows.'


# --- Every bit -------------------------------------------------------------------------------------------------------


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


def test_no_flipped_bit_of_a_response_passes_for_something_else(pki: PKI) -> None:
    encoded = contract_message(pki)
    response = verify.read_response(encoded, namespace_of(pki))
    anchors, passed = pki.anchors(), 0
    for region, position in sampled(encoded, "response", 210, 120):
        changed = flip(encoded, position)
        try:
            verified = verify_response(changed, pki, emaid=THE_EMAID, anchors=anchors)
        except REFUSALS:
            continue
        assert region == "unsigned", f"bit {position} of {region}"
        assert signed_content(verified.response) == signed_content(response), f"bit {position}"
        assert verified.cps_chain.leaf.public_key == pki.cps.certificate.public_key
        passed += 1
    assert passed >= 1


def signed_content(response: InstallationResponse) -> tuple[object, ...]:
    return (
        response.response_code, response.emaid, response.contract_certificate, response.contract_sub_certificates,
        response.curve, response.dh_public_key, response.encrypted_key, response.encrypted_key_of,
    )  # fmt: skip


def test_no_flipped_bit_of_a_request_passes_for_something_else(pki: PKI) -> None:
    car = Car.generate(pki, THE_PCID, AT)
    encoded = car.request(SESSION, AT)
    anchors, passed = pki.anchors(), 0
    for region, position in sampled(encoded, "request", 210, 120):
        try:
            verified = verify_request(flip(encoded, position), pki, anchors=anchors)
        except REFUSALS:
            continue
        assert region == "unsigned", f"bit {position} of {region}"
        assert (verified.pcid, verified.leaf) == (THE_PCID, car.provisioning.certificate)
        assert verified.request.sub_certificates == verify.read_request(encoded, namespace_of(pki)).sub_certificates
        passed += 1
    assert passed >= 1


def test_a_message_cut_short_anywhere_is_no_message(pki: PKI) -> None:
    for encoded, read in (
        (contract_message(pki), verify.read_response),
        (Car.generate(pki, THE_PCID, AT).request(SESSION, AT), verify.read_request),
    ):
        for length in range(0, len(encoded), 7):
            with pytest.raises(EXIError):
                read(encoded[:length], namespace_of(pki))


# --- Why a response is refused ---------------------------------------------------------------------------------------


def test_a_message_of_the_other_kind_or_edition_is_told_as_such(pkis: dict[str, PKI]) -> None:
    for name, other in (("iso2", Namespace.ISO20), ("iso20", Namespace.ISO2)):
        pki = pkis[name]
        response, request = contract_message(pki), Car.generate(pki, THE_PCID, AT).request(SESSION, AT)
        with pytest.raises(
            EXIError, match="a CertificateInstallationReq where a CertificateInstallationRes is expected"
        ):
            verify.read_response(request, namespace_of(pki))
        with pytest.raises(
            EXIError, match="a CertificateInstallationRes where a CertificateInstallationReq is expected"
        ):
            verify.read_request(response, namespace_of(pki))
        for read, encoded in ((verify.read_response, response), (verify.read_request, request)):
            with pytest.raises(EXIError, match=f"^a message of {namespace_of(pki)}, not of {other}$"):
                read(encoded, other)


@pytest.mark.parametrize("code", ["OK_CertificateExpiresSoon", "FAILED", "FAILED_NoCertificateAvailable"])
def test_a_response_that_is_not_ok_is_refused(pkis: dict[str, PKI], code: str) -> None:
    pki = pkis["iso2"]
    encoded = signed2(body_of(contract_message(pki))._replace(ResponseCode=code), pki.cps.key)
    assert refusal(lambda: verify_response(encoded, pki)) == (
        MismatchError, (f"The message's ResponseCode is {code}, not OK.",),
    )  # fmt: skip


def with_contract(pki: PKI, cn: str, **changes: Any) -> bytes:
    """An ISO 15118-2 response for a contract certificate with any common name."""
    credential = pki.emsp_sub2.issue(cn, CONTRACT, now=AT)
    body = body_of(contract_message(pki))
    chain = body.ContractSignatureCertChain._replace(Certificate=credential.certificate.der)
    return signed2(body._replace(ContractSignatureCertChain=chain, **changes), pki.cps.key)


def test_ids_that_do_not_agree_are_told(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    encoded = contract_message(pki)
    assert refusal(lambda: verify_response(encoded, pki, emaid=OTHER_EMAID)) == (
        MismatchError, (f"The contract certificate is for {THE_EMAID}, not for {OTHER_EMAID}.",),
    )  # fmt: skip
    assert refusal(lambda: verify_response(with_contract(pki, "no emaid"), pki)) == (
        MismatchError, ("The contract certificate's common name is no EMAID.",),
    )  # fmt: skip
    assert refusal(lambda: verify_response(with_contract(pki, OTHER_EMAID), pki)) == (
        MismatchError, (f"The message's eMAID is {THE_EMAID}, the contract certificate is for {OTHER_EMAID}.",),
    )  # fmt: skip
    encoded = with_contract(pki, THE_EMAID, eMAID=iso2.EMAID("ID4", "0"))
    assert refusal(lambda: verify_response(encoded, pki)) == (MismatchError, ("The message's eMAID is no EMAID.",))


@pytest.mark.parametrize("written", ["deexai00000001", "DEEXAI000000010", "DEEXAI00000001Q"])
def test_ids_agree_however_they_are_written(pkis: dict[str, PKI], written: str) -> None:
    """Upper or lower case, and with the check digit or without it."""
    canonical = EMAID.parse(written)
    encoded = with_contract(pkis["iso2"], written, eMAID=iso2.EMAID("ID4", str(canonical)))
    verified = verify_response(encoded, pkis["iso2"], emaid=canonical)
    assert verified.emaid == canonical


def test_several_failures_of_one_stage_are_told_together_and_later_stages_are_not(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    body = body_of(with_contract(pki, "no emaid"))
    chain = iso2.CertificateChain(None, b"no certificate")
    encoded = signed2(body._replace(ResponseCode="FAILED", SAProvisioningCertificateChain=chain), pki.emsp_root.key)
    assert refusal(lambda: verify_response(encoded, pki)) == (
        MismatchError,
        (
            "The message's ResponseCode is FAILED, not OK.",
            "These 14 bytes are not an X.509 certificate.",
            "The contract certificate's common name is no EMAID.",
        ),
    )


def test_an_expired_contract_is_told_in_the_words_of_the_api(pki: PKI) -> None:
    encoded = contract_message(pki, valid=(AT - 2 * DAY, AT - DAY))
    assert refusal(lambda: verify_response(encoded, pki)) == (
        ExpiredError, ("The validUntil date of contract certificate is in the past.",),
    )  # fmt: skip


def test_a_contract_is_valid_to_the_end_of_its_last_second(pki: PKI) -> None:
    encoded = contract_message(pki, valid=(AT - 2 * DAY, AT + DAY))
    verify_response(encoded, pki, now=AT + DAY + timedelta(microseconds=999_999))
    assert refusal(lambda: verify_response(encoded, pki, now=AT + DAY + timedelta(seconds=1)))[0] is ExpiredError


def test_check_response_refuses_an_untrusted_provisioning_service(pkis: dict[str, PKI]) -> None:
    encoded = contract_message(pkis["stranger"])
    kind, sentences = refusal(lambda: verify_response(encoded, pkis["iso2"]))
    assert kind is ChainError
    assert sentences == (
        'The authority key identifier of certificate "CPS Sub1 CA SIM" is not that of "V2G Root CA SIM".',
        'The authority key identifier of certificate "eMSP Sub1 CA SIM" is not that of "eMSP Root CA SIM".',
    )


def test_check_response_ignores_anchors_of_another_role(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    swapped = TrustAnchors.build(
        [(AnchorRole.OEM, pki.v2g_root.certificate), (AnchorRole.OEM, pki.emsp_root.certificate)]
    )
    assert refusal(lambda: verify_response(contract_message(pki), pki, anchors=swapped))[0] is ChainError
    emsp_only = TrustAnchors.build(
        [(AnchorRole.EMSP, pki.v2g_root.certificate), (AnchorRole.EMSP, pki.emsp_root.certificate)]
    )
    kind, sentences = refusal(lambda: verify_response(contract_message(pki), pki, anchors=emsp_only))
    assert (kind, len(sentences)) == (ChainError, 1)


def test_a_certificate_that_is_not_for_provisioning_services_cannot_sign(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    impostor = pki.cps_sub2.issue("No CPS", CONTRACT, now=AT)
    chain = iso2.CertificateChain(None, impostor.certificate.der, tuple(c.der for c in impostor.sub_cas))
    encoded = signed2(body_of(contract_message(pki))._replace(SAProvisioningCertificateChain=chain), impostor.key)
    assert refusal(lambda: verify_response(encoded, pki)) == (
        ChainError, ('The domain component of certificate "No CPS" (none) does not fit CPS.',),
    )  # fmt: skip


def test_root_fingerprint_of_the_publisher_must_match_the_cps_chain(pki: PKI) -> None:
    encoded = contract_message(pki)
    named = Fingerprint(pki.emsp_root.certificate.fingerprint)
    found = pki.v2g_root.certificate.fingerprint
    assert refusal(lambda: verify_response(encoded, pki, root=named)) == (
        MismatchError,
        (
            f"The provisioning service's chain leads to the V2G root {found}, "
            "not to the one in cpsV2GRootCertificateFingerprint.",
        ),
    )


class Revoked:
    """Evidence that says: revoked, or not to be had, for chains with a certain leaf."""

    def __init__(self, leaf: str, error: CCPError) -> None:
        self.leaf, self.error = leaf, error

    def check(self, chain: VerifiedChain, at: datetime) -> str:
        if chain.leaf.subject_cn == self.leaf:
            raise self.error
        return "good"


@pytest.mark.parametrize("leaf", ["CPS SIM", THE_EMAID])
@pytest.mark.parametrize("error", [RevokedError("The certificate is revoked."), Unavailable("No evidence.")])
def test_revoked_and_unknown_chains_are_refused(pki: PKI, leaf: str, error: CCPError) -> None:
    encoded = contract_message(pki)
    assert refusal(lambda: verify_response(encoded, pki, revocation=Revoked(leaf, error))) == (
        type(error), error.messages,
    )  # fmt: skip


def test_the_signature_of_another_provisioning_service_is_refused(pki: PKI) -> None:
    encoded = contract_message(replace(pki, cps=replace(pki.cps, key=pki.cps_sub2.issue("CPS", CPS, now=AT).key)))
    assert refusal(lambda: verify_response(encoded, pki)) == (
        SignatureError, ("The signature value does not match the certificate's key.",),
    )  # fmt: skip


# Points on both curves, the same in every process so that tests keep their names.
POINT_P256, POINT_P521 = (
    derive_private_key(7, curve).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    for curve in (SECP256R1(), SECP521R1())
)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (b"\4" + bytes(64), "The DH public key is no point on SECP256R1."),
        (POINT_P256[:-1] + bytes((POINT_P256[-1] ^ 1,)), "The DH public key is no point on SECP256R1."),
        (b"\5" + POINT_P256[1:], "The DH public key is no point on SECP256R1."),
        (POINT_P256[:33], "The DH public key has 33 bytes; on SECP256R1 it has 65."),
        (b"", "The DH public key has 0 bytes; on SECP256R1 it has 65."),
        (b"\0", "The DH public key has 1 bytes; on SECP256R1 it has 65."),
    ],
)
def test_an_iso2_dh_key_that_is_no_point_is_refused(pkis: dict[str, PKI], key: bytes, sentence: str) -> None:
    pki = pkis["iso2"]
    encoded = signed2(body_of(contract_message(pki))._replace(DHpublickey=iso2.DHpublickey("ID3", key)), pki.cps.key)
    assert refusal(lambda: verify_response(encoded, pki)) == (KeyMaterialError, (sentence,))


@pytest.mark.parametrize("length", [0, 1, 47])
def test_iso2_encrypted_key_of_wrong_length_is_refused_with_the_dh_key(pkis: dict[str, PKI], length: int) -> None:
    pki = pkis["iso2"]
    body = body_of(contract_message(pki))._replace(
        ContractSignatureEncryptedPrivateKey=iso2.ContractSignatureEncryptedPrivateKey("ID2", bytes(length)),
        DHpublickey=iso2.DHpublickey("ID3", bytes(65)),
    )
    assert refusal(lambda: verify_response(signed2(body, pki.cps.key), pki)) == (
        KeyMaterialError,
        (
            "The DH public key is no point on SECP256R1.",
            f"ContractSignatureEncryptedPrivateKey has {length} bytes; it has to have 48.",
        ),
    )


X448_P = 2**448 - 2**224 - 1
NO_KEYS: dict[str, None] = dict.fromkeys(
    ("SECP521_EncryptedPrivateKey", "X448_EncryptedPrivateKey", "TPM_EncryptedPrivateKey")
)


def key20(name: str, length: int) -> dict[str, Any]:
    return {**NO_KEYS, name: bytes(length)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"DHPublicKey": b"\4" + bytes(132)}, "The DH public key is no point on SECP521."),
        ({"DHPublicKey": POINT_P256}, "The DH public key has 65 bytes; on SECP521 it has 133."),
        ({"DHPublicKey": POINT_P521[:-1] + bytes((POINT_P521[-1] ^ 1,))}, "The DH public key is no point on SECP521."),
        (key20("SECP521_EncryptedPrivateKey", 93), "SECP521_EncryptedPrivateKey has 93 bytes; it has to have 94."),
        (key20("TPM_EncryptedPrivateKey", 94), "TPM_EncryptedPrivateKey has 94 bytes; it has to have 206."),
        (key20("X448_EncryptedPrivateKey", 84), "X448_EncryptedPrivateKey does not go with the curve SECP521."),
        (
            {"ECDHCurve": "X448", "DHPublicKey": b"\5" + bytes(55)},
            "SECP521_EncryptedPrivateKey does not go with the curve X448.",
        ),
        (
            {"ECDHCurve": "X448", **key20("TPM_EncryptedPrivateKey", 206), "DHPublicKey": b"\5" + bytes(55)},
            "TPM_EncryptedPrivateKey does not go with the curve X448.",
        ),
        (
            {"ECDHCurve": "X448", **key20("X448_EncryptedPrivateKey", 84)},
            "The DH public key has 133 bytes; on X448 it has 56.",
        ),
        *(
            (
                {
                    "ECDHCurve": "X448",
                    **key20("X448_EncryptedPrivateKey", 84),
                    "DHPublicKey": value.to_bytes(56, "little"),
                },
                "The DH public key is a point of small order.",
            )
            for value in (0, 1, X448_P - 1, X448_P, X448_P + 1)
        ),
    ],
)
def test_iso20_key_material_that_no_vehicle_could_use_is_refused(
    pkis: dict[str, PKI], changes: dict[str, Any], sentence: str
) -> None:
    pki = pkis["iso20"]
    encoded = signed20(contract_message(pki), pki.cps.key, **changes)
    assert refusal(lambda: verify_response(encoded, pki)) == (KeyMaterialError, (sentence,))


def test_a_key_for_a_tpm_has_its_own_length(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso20"]
    encoded = signed20(contract_message(pki), pki.cps.key, **key20("TPM_EncryptedPrivateKey", 206))
    assert verify_response(encoded, pki).response.encrypted_key_of == "TPM_EncryptedPrivateKey"


# --- Why a request is refused ----------------------------------------------------------------------------------------


def car_of(pki: PKI, provisioning: Credential) -> bytes:
    return Car.from_credential(pki, provisioning, THE_PCID).request(SESSION, AT)


@pytest.mark.parametrize("with_anchors", [True, False])
def test_an_expired_provisioning_certificate_is_refused_with_a_chain_or_without(pki: PKI, with_anchors: bool) -> None:
    car = car_of(pki, pki.vehicle(THE_PCID, now=AT, valid=(AT - 2 * DAY, AT - DAY)))
    kind, sentences = refusal(lambda: verify_request(car, pki, anchors=pki.anchors() if with_anchors else None))
    assert kind is ExpiredError
    assert sentences[0].startswith(f'Certificate "{THE_PCID}" ')
    assert "expired" in sentences[0]


@pytest.mark.parametrize("with_anchors", [True, False])
def test_a_provisioning_certificate_is_valid_to_the_end_of_its_last_second(pki: PKI, with_anchors: bool) -> None:
    car = car_of(pki, pki.vehicle(THE_PCID, now=AT, valid=(AT - 2 * DAY, AT)))
    anchors = pki.anchors() if with_anchors else None
    verify_request(car, pki, anchors=anchors, now=AT + timedelta(microseconds=999_999))
    late = AT + timedelta(seconds=1)
    assert refusal(lambda: verify_request(car, pki, anchors=anchors, now=late))[0] is ExpiredError


@pytest.mark.parametrize("with_anchors", [True, False])
def test_a_provisioning_certificate_of_the_future_is_refused(pki: PKI, with_anchors: bool) -> None:
    car = car_of(pki, pki.vehicle(THE_PCID, now=AT, valid=(AT + DAY, AT + 2 * DAY)))
    kind, sentences = refusal(lambda: verify_request(car, pki, anchors=pki.anchors() if with_anchors else None))
    assert kind is ChainError
    assert "is not valid" in sentences[0]


def test_check_request_refuses_an_untrusted_vehicle_if_chains_are_checked(pkis: dict[str, PKI]) -> None:
    encoded = Car.generate(pkis["stranger"], THE_PCID, AT).request(SESSION, AT)
    assert refusal(lambda: verify_request(encoded, pkis["iso2"]))[0] is ChainError
    verify_request(encoded, pkis["iso2"], anchors=None)


def test_roots_of_other_roles_do_not_vouch_for_vehicles(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    oem = (pki.oem_root, pki.oem_sub1, pki.oem_sub2)
    anchors = TrustAnchors.build(
        [(role, oem[0].certificate) for role in (AnchorRole.V2G, AnchorRole.EMSP)],
        [(AnchorRole.OEM, c.certificate) for c in oem[1:]],
    )
    encoded = Car.generate(pki, THE_PCID, AT).request(SESSION, AT)
    assert refusal(lambda: verify_request(encoded, pki, anchors=anchors))[0] is ChainError


@pytest.mark.parametrize("with_anchors", [True, False])
def test_a_request_that_another_key_signed_is_refused(pki: PKI, with_anchors: bool) -> None:
    victim, thief = pki.vehicle(THE_PCID, now=AT), pki.vehicle("WEX0INSTALL000002", now=AT)
    encoded = car_of(pki, replace(victim, key=thief.key))
    assert refusal(lambda: verify_request(encoded, pki, anchors=pki.anchors() if with_anchors else None)) == (
        SignatureError, ("The signature value does not match the certificate's key.",),
    )  # fmt: skip


@pytest.mark.parametrize("cn", ["no pcid", "WEX0INSTALL00001", "WEX0INSTALL00000001", "", "WEX0INSTALL-00001"])
def test_a_common_name_that_is_no_pcid_is_refused(pkis: dict[str, PKI], cn: str) -> None:
    pki = pkis["iso2"]
    encoded = car_of(pki, pki.oem_sub2.issue(cn or "x", OEM_PROVISIONING, now=AT))
    assert refusal(lambda: verify_request(encoded, pki)) == (
        ChainError, ("The provisioning certificate's common name is no PCID.",),
    )  # fmt: skip
    assert verify.claimed_pcid(verify.read_request(encoded, Namespace.ISO2)) is None


def test_a_provisioning_certificate_that_is_none_is_refused(pkis: dict[str, PKI]) -> None:
    message = exi.decode(Car.generate(pkis["iso2"], THE_PCID, AT).request(SESSION, AT))
    assert isinstance(message, iso2.V2G_Message)
    encoded = exi.encode(message._replace(Body=message.Body._replace(OEMProvisioningCert=b"none")))
    assert refusal(lambda: verify_request(encoded, pkis["iso2"])) == (
        ChainError, ("These 4 bytes are not an X.509 certificate.",),
    )  # fmt: skip
    assert verify.claimed_pcid(verify.read_request(encoded, Namespace.ISO2)) is None


def test_a_contract_certificate_cannot_ask_for_a_vehicle(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    encoded = car_of(pki, pki.emsp_sub2.issue(THE_PCID, CONTRACT, now=AT))
    assert refusal(lambda: verify_request(encoded, pki))[0] is ChainError


def test_a_revoked_vehicle_is_refused(pki: PKI) -> None:
    encoded = Car.generate(pki, THE_PCID, AT).request(SESSION, AT)
    error = RevokedError("The certificate is revoked.")
    assert refusal(lambda: verify_request(encoded, pki, revocation=Revoked(THE_PCID, error))) == (
        RevokedError, error.messages,
    )  # fmt: skip


# --- Told in full ----------------------------------------------------------------------------------------------------


def test_a_report_of_a_good_response_names_every_check_with_its_evidence(pki: PKI) -> None:
    checks = CheckList(collect=True)
    verify_response(contract_message(pki), pki, checks=checks, root=Fingerprint(pki.v2g_root.certificate.fingerprint))
    assert [check.number for check in checks.results] == list(range(1, 13))[: len(checks.results)]
    assert {check.status for check in checks.results} == {CheckStatus.PASSED}
    evidence = {check.subject: check.evidence for check in checks.results}
    assert evidence["EMAID the same everywhere"] == (THE_EMAID,)
    assert len(evidence["chain of the provisioning service to a V2G root"]) == 4
    assert pki.v2g_root.certificate.fingerprint in evidence["chain of the provisioning service to a V2G root"][-1]


def test_a_report_goes_on_after_a_failure_as_far_as_it_can(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    body = body_of(contract_message(pki))._replace(
        ResponseCode="FAILED", DHpublickey=iso2.DHpublickey("ID3", bytes(65))
    )
    checks = CheckList(collect=True)
    encoded = signed2(body, pki.cps.key)
    anchors = TrustAnchors.build([(AnchorRole.V2G, pki.v2g_root.certificate)])
    assert refusal(lambda: verify_response(encoded, pki, checks=checks, anchors=anchors)) == (
        ChainError, ("The response does not verify.",),
    )  # fmt: skip
    verdicts = {check.subject: check.status for check in checks.results}
    assert verdicts["response code"] is CheckStatus.FAILED
    assert verdicts["chain of the contract certificate to an eMSP or V2G root"] is CheckStatus.FAILED
    assert verdicts["revocation of the contract chain"] is CheckStatus.NOT_APPLICABLE
    assert verdicts["signature of the provisioning service"] is CheckStatus.PASSED
    assert verdicts["DH public key"] is CheckStatus.FAILED
    assert verdicts["encrypted private key"] is CheckStatus.PASSED


def test_check_list_report_with_a_failure_never_gives_a_verified_message(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    checks = CheckList(collect=True)
    encoded = Car.generate(pkis["stranger"], THE_PCID, AT).request(SESSION, AT)
    assert refusal(lambda: verify_request(encoded, pki, checks=checks)) == (
        ChainError, ("The request does not verify.",),
    )  # fmt: skip
    assert not checks.passed


# --- Verified types --------------------------------------------------------------------------------------------------


def test_nobody_else_can_make_a_verified_message(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    response = verify_response(contract_message(pki), pki)
    request = verify_request(Car.generate(pki, THE_PCID, AT).request(SESSION, AT), pki)
    chain = response.cps_chain
    for token in (None, object(), True):
        with pytest.raises(TypeError):
            verify.VerifiedInstallationResponse(response.response, OTHER_EMAID, chain, chain, response.signature, token)
        with pytest.raises(TypeError):
            verify.VerifiedInstallationRequest(request.request, request.leaf, THE_PCID, None, request.signature, token)
        with pytest.raises(TypeError):
            VerifiedChain(chain.certificates, chain.usage, AT, token)
    with pytest.raises((TypeError, ValueError)):
        replace(response, emaid=OTHER_EMAID)
    with pytest.raises((TypeError, ValueError)):
        replace(request, pcid=THE_PCID)
    with pytest.raises(AttributeError):
        response.emaid = OTHER_EMAID  # type: ignore[misc]


# --- Answering -------------------------------------------------------------------------------------------------------


def stored(pki: PKI, car: Car, emaid: EMAID = THE_EMAID) -> SignedContract:
    verified = verify_response(contract_message(pki, emaid, car), pki)
    return signed_contract(verified, car.pcid, None, AT)


@pytest.mark.parametrize("session", [b"", b"\1", SESSION, b"\xff" * 8])
def test_an_answer_is_for_the_session_and_the_vehicle_can_install_it(pki: PKI, session: bytes) -> None:
    car = Car.generate(pki, THE_PCID, AT)
    contract = stored(pki, car)
    answer = verify.with_session(contract, session, AT)
    emaid, key = car.install(answer, session, AT)
    assert emaid == THE_EMAID
    assert key.public_key() is not None
    with pytest.raises(MismatchError):
        car.install(answer, b"\7" * 8, AT)


@pytest.mark.parametrize("kind", ["iso20", "ed448"])
@pytest.mark.parametrize("remaining", [None, 0, 1, 255])
def test_an_iso20_answer_carries_the_time_and_the_number_left(
    pkis: dict[str, PKI], kind: str, remaining: int | None
) -> None:
    pki = pkis[kind]
    car = Car.generate(pki, THE_PCID, AT)
    contract = stored(pki, car)
    later = datetime(2033, 5, 18, 3, 33, 20, 900_000, tzinfo=UTC)
    answer = verify.with_session(contract, SESSION, later, remaining)
    message, before = message20(answer), message20(contract.response)
    assert message.Header.TimeStamp == 2_000_000_000
    assert message.RemainingContractCertificateChains == (remaining or 0)
    assert message.Header.Signature == before.Header.Signature
    assert message.SignedInstallationData == before.SignedInstallationData
    assert car.install(answer, SESSION, AT)[0] == THE_EMAID


def test_an_iso2_answer_differs_in_the_session_id_and_nothing_else(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    contract = stored(pki, Car.generate(pki, THE_PCID, AT))
    before, after = exi.decode(contract.response), exi.decode(verify.with_session(contract, SESSION, AT, 3))
    assert after.Header.SessionID == SESSION
    assert after._replace(Header=before.Header) == before  # type: ignore[arg-type]
    assert after.Header.Signature == before.Header.Signature


def test_a_session_id_that_is_too_long_is_refused(pki: PKI) -> None:
    contract = stored(pki, Car.generate(pki, THE_PCID, AT))
    with pytest.raises(EXIError):
        verify.with_session(contract, bytes(9), AT)


# --- Refusing --------------------------------------------------------------------------------------------------------

REASONS = [
    (
        NoContract("No contract is stored for the vehicle."),
        "FAILED_NoCertificateAvailable",
        "WARNING_NoContractMatchingPCIDFound",
    ),
    (
        NothingDeliverable("No contract of the vehicle is valid now."),
        "FAILED_NoCertificateAvailable",
        "WARNING_NoCertificateAvailable",
    ),
    (NotFound("Not found."), "FAILED_NoCertificateAvailable", "WARNING_NoCertificateAvailable"),
    (SignatureError("The message is not signed."), "FAILED_SignatureError", "FAILED_SignatureError"),
    (ExpiredError("Certificate expired."), "FAILED_CertificateExpired", "WARNING_CertificateExpired"),
    (RevokedError("Certificate revoked."), "FAILED_CertificateRevoked", "WARNING_CertificateRevoked"),
    (ChainError("No chain."), "FAILED_CertChainError", "WARNING_CertificateValidationError"),
    (MismatchError("Mismatch."), "FAILED", "FAILED"),
    (KeyMaterialError("Key."), "FAILED", "FAILED"),
    (EXIError("odd", 17, "V2G_Message"), "FAILED", "FAILED"),
    (Unavailable("Later."), "FAILED", "FAILED"),
    (ChainError("Several.", "Sentences."), "FAILED_CertChainError", "WARNING_CertificateValidationError"),
]
NUMBERS2 = {
    "FAILED": 4, "FAILED_CertificateExpired": 10, "FAILED_SignatureError": 11, "FAILED_NoCertificateAvailable": 12,
    "FAILED_CertChainError": 13, "FAILED_CertificateRevoked": 25,
}  # fmt: skip


@pytest.mark.parametrize(("reason", "code2", "code20"), REASONS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("session", [b"", SESSION])
def test_a_refusal_tells_the_vehicle_its_reason_in_the_codes_of_its_edition(
    reason: CCPError, code2: str, code20: str, session: bytes
) -> None:
    at = datetime(2026, 1, 1, 0, 0, 0, 700_000, tzinfo=UTC)
    assert iso2.RESPONSE_CODES.index(code2) == NUMBERS2[code2]
    message = exi.decode(verify.negative_response(Namespace.ISO2, session, reason, at))
    assert message == iso2.V2G_Message(
        iso2.Header(session, iso2.Notification("UnknownError", str(reason)), None),
        iso2.CertificateInstallationRes(
            code2,
            iso2.CertificateChain(None, b"\0"),
            iso2.CertificateChain("id1", b"\0"),
            iso2.ContractSignatureEncryptedPrivateKey("id2", bytes(48)),
            iso2.DHpublickey("id3", bytes(65)),
            iso2.EMAID("id4", "ZZZZZ000000000"),
        ),
    )
    message = exi.decode(verify.negative_response(Namespace.ISO20, session, reason, at))
    assert message == iso20.CertificateInstallationRes(
        iso20.Header(session, 1_767_225_600, None), code20, "Finished", iso20.CertificateChain(b"\0"),
        iso20.SignedInstallationData(
            "id1", iso20.CertificateChain(b"\0", (b"\0",)), "SECP521", bytes(133), SECP521_EncryptedPrivateKey=bytes(94)
        ), 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "x" * 64,
        "x" * 65,
        "word " * 200,
        "ü€😀" * 40,
        "x" * 60 + "   yy and more",
        "",
        'Certificate "…" has expired. ' * 9,
    ],
)
def test_a_fault_message_has_at_most_64_characters_whatever_the_reason(text: str) -> None:
    message = exi.decode(verify.negative_response(Namespace.ISO2, SESSION, ChainError(text), AT))
    assert isinstance(message, iso2.V2G_Message)
    assert message.Header.Notification is not None
    fault = message.Header.Notification.FaultMsg
    assert fault is not None
    assert len(fault) <= 64
    assert fault == text if len(text) <= 64 else fault.endswith("...") and text.startswith(fault[:-3])


@pytest.mark.parametrize("cn", ["a\u0000b", "\ud7ff\uffff", "a\nb", "\u202eabc", "😀" * 16])
def test_a_refusal_can_be_written_whatever_is_in_a_foreign_certificate(pkis: dict[str, PKI], cn: str) -> None:
    """The name of a certificate gets into the sentence, and EXI does not take every character."""
    pki = pkis["iso2"]
    issuer = pki.oem_sub2.issue("X", OEM_PROVISIONING, now=AT)
    provisioning = replace(issuer, certificate=issuer.issue(cn, OEM_PROVISIONING, now=AT).certificate)
    for reason in (ChainError(f"Certificate {provisioning.certificate.display_name} is odd."), NotFound(cn)):
        for namespace in Namespace:
            exi.decode(verify.negative_response(namespace, SESSION, reason, AT))


# --- The roots that a vehicle lists ----------------------------------------------------------------------------------

ROOT_DN = "CN=V2G Root CA QA G1, DC=V2G, O=Example\\, Inc., C=DE"
SERIAL = 2**100 + 1


def lists(name: str, serial: int = SERIAL, dn: str = ROOT_DN) -> bool:
    roots = (iso2.X509IssuerSerial("CN=Another", 5), iso2.X509IssuerSerial(name, serial))
    parsed: Any = None
    request = InstallationRequest(parsed, Namespace.ISO2, SESSION, b"", (), roots, (), 1)
    contract: Any = type("Contract", (), {"root_serial": SERIAL, "root_dn": dn})()
    return request.trusts_root_of(contract)


@pytest.mark.parametrize(
    "name",
    [
        ROOT_DN,
        "C=DE, O=Example\\, Inc., DC=V2G, CN=V2G Root CA QA G1",
        "CN=V2G Root CA QA G1,DC=V2G,O=Example\\, Inc.,C=DE",
        "cn=V2G Root CA QA G1; dc=V2G",
        "/C=DE/O=Example, Inc./DC=V2G/CN=V2G Root CA QA G1",
        'C = DE, O = "Example, Inc.", DC = V2G, CN = V2G Root CA QA G1',
        "<Name(C=DE,O=Example\\, Inc.,DC=V2G,CN=V2G Root CA QA G1)>",
        "commonName=V2G Root CA QA G1",
        "CN=v2g root ca qa g1, O=EXAMPLE\\, INC.",
        "CN=V2G  Root CA  QA G1",
        "CN=V2G Root CA QA G1, ST=Berlin, L=Berlin, EMAIL=a@example.com",
        "2.5.4.3=V2G Root CA QA G1",
        "DC=V2G",
        "",
        "not a name at all",
    ],
)
def test_a_root_is_recognised_however_its_name_is_written(name: str) -> None:
    assert lists(name)


@pytest.mark.parametrize(
    ("name", "serial"),
    [
        ("CN=V2G Root CA QA G2", SERIAL),
        ("CN=V2G Root CA QA G1, O=Other", SERIAL),
        ("CN=V2G Root CA QA G1, C=FR", SERIAL),
        (ROOT_DN, SERIAL + 1),
        (ROOT_DN, -SERIAL),
        (ROOT_DN, 0),
        ("", 5),
    ],
)
def test_another_name_or_serial_number_is_another_root(name: str, serial: int) -> None:
    assert not lists(name, serial)


def test_a_root_without_name_is_recognised_by_its_serial_number() -> None:
    assert lists("CN=Anything", dn="")


def test_an_empty_list_lists_nothing() -> None:
    parsed: Any = None
    request = InstallationRequest(parsed, Namespace.ISO2, SESSION, b"", (), (), (), 1)
    contract: Any = type("Contract", (), {"root_serial": SERIAL, "root_dn": ROOT_DN})()
    assert not request.trusts_root_of(contract)


# --- The published example -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example() -> bytes:
    return base64.b64decode(EXAMPLE.read_text())


def test_the_signature_of_the_published_example_verifies(example: bytes) -> None:
    response = verify.read_response(example, Namespace.ISO2)
    cps = Certificate.load(response.cps_certificate)
    evidence = message_signatures.verify_signature(response.parsed, cps.public_key, response.mandatory)
    assert evidence.grammar == "xmldsig"
    assert {part.name for part in evidence.elements} == set(MANDATORY)
    assert response.emaid == "DEICECOPNCCERT"
    with pytest.raises(ChainError):
        verify_published(example, TrustAnchors.build([]))


@pytest.fixture(scope="module")
def published_anchors() -> TrustAnchors:
    if not PUBLISHED_ROOT.exists():
        pytest.skip(f"the API description is not at {PUBLISHED_ROOT}")
    (der,) = set(certificates_in(json.loads(PUBLISHED_ROOT.read_text())))
    return TrustAnchors.build([(AnchorRole.V2G, Certificate.load(der))])


def certificates_in(value: Any) -> Iterator[bytes]:
    """Every text in a JSON document that is a certificate."""
    if isinstance(value, dict | list):
        for member in value.values() if isinstance(value, dict) else value:
            yield from certificates_in(member)
    elif isinstance(value, str) and len(value) > 300:
        try:
            yield Certificate.load(base64.b64decode(value, validate=False)).der
        except (ValueError, ChainError):
            return


def verify_published(encoded: bytes, anchors: TrustAnchors) -> VerifiedInstallationResponse:
    response = verify.read_response(encoded, Namespace.ISO2)
    at = datetime(2025, 1, 1, tzinfo=UTC)
    return verify.check_response(
        response, emaid=None, root=None, anchors=anchors, revocation=NoRevocationCheck(), now=at
    )


def test_everything_of_the_published_example_verifies_under_the_published_root(
    example: bytes, published_anchors: TrustAnchors
) -> None:
    verified = verify_published(example, published_anchors)
    assert verified.emaid == "DEICECOPNCCERT"
    root = "4e05b8922d43923cdf20b202cdd0d849770b50038c39f104f506d7f1030ff809"
    assert {verified.cps_chain.root.fingerprint, verified.contract_chain.root.fingerprint} == {root}


def test_one_flipped_bit_in_the_published_example_is_found_and_told_for_what_it_is(
    example: bytes, published_anchors: TrustAnchors
) -> None:
    errors: dict[str, list[CCPError]] = {}
    for region, position in sampled(example, "published", 300, 0):
        try:
            verify_published(flip(example, position), published_anchors)
        except REFUSALS as exc:
            errors.setdefault(region, []).append(exc)
        else:
            assert region == "unsigned", f"bit {position} of {region} was not noticed"
    kinds = {region: {type(exc) for exc in refusals} for region, refusals in errors.items()}
    assert set(errors) - {"unsigned"} == {*MANDATORY, "SignedInfo", "SignatureValue"}
    assert {str(exc) for exc in errors["SignatureValue"]} == {
        "The signature value does not match the certificate's key."
    }
    for name in ("ContractSignatureEncryptedPrivateKey", "DHpublickey"):
        assert f"The digest of {name} does not match." in map(str, errors[name])
    assert SignatureError in kinds["SignedInfo"]
    assert ChainError in kinds["ContractSignatureCertChain"]
    assert MismatchError in kinds["eMAID"]


def test_a_response_that_is_still_being_processed_is_refused(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso20"]
    car = Car.generate(pki, PCID.parse("WEX0TEST000000901"), AT)
    encoded = sign_contract(
        pki, issue_contract(pki, EMAID.parse("DEEXA900000001"), car.pcid, car.provisioning.certificate, AT), AT
    )
    message = exi.decode(encoded)
    assert isinstance(message, iso20.CertificateInstallationRes)
    ongoing = exi.encode(message._replace(EVSEProcessing="Ongoing"))
    with pytest.raises(MismatchError, match="EVSEProcessing is Ongoing, not Finished"):
        verify.check_response(
            verify.read_response(ongoing, Namespace.ISO20),
            emaid=None,
            root=None,
            anchors=pki.anchors(),
            revocation=NoRevocationCheck(),
            now=AT,
        )


def test_read_response_refuses_a_message_without_replaceable_session_id() -> None:
    # EXIficient's form of an empty SessionID: an escape and an end, not a length of zero, so that no bytes fit in.
    encoded = base64.b64decode(EXAMPLE.read_text("ascii"))
    bits = f"{int.from_bytes(encoded, 'big'):0{8 * len(encoded)}b}"
    empty = bits[:17] + "1000" + bits[17 + 1 + 8 + 8 + 1 :]
    empty += "0" * (-len(empty) % 8)
    written = int(empty, 2).to_bytes(len(empty) // 8, "big")
    message = exi.decode(written)
    assert message.Header.SessionID == b""
    with pytest.raises(EXIError):
        verify.read_response(written, Namespace.ISO2)
