"""A provisioning service's response: what verifies, every reason of refusal, and the report."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import timedelta
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
    RevokedError,
    SignatureError,
    Unavailable,
)
from ccp.exi import iso2, iso20
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain.contracts import SignedContract, signed_contract
from ccp.testing.partners import Car, issue_contract, namespace_of, sign_contract
from ccp.testing.pki import CONTRACT, CPS, PKI
from ccp.verify import message_signatures
from ccp.verify.report import CheckList, CheckStatus
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.profiles import AnchorRole
from ccp.x509.revocation_policy import NoRevocationCheck
from tests.verify.messages import (
    DAY,
    EXAMPLE,
    OTHER_EMAID,
    SESSION,
    THE_EMAID,
    THE_PCID,
    Revoked,
    body_of,
    contract_message,
    refusal,
    signed2,
    signed20,
    verify_request,
    verify_response,
)
from tests.world import AT


def test_response_verifies_and_tells_what_it_rests_on(pki: PKI) -> None:
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


def test_contract_chain_may_end_in_a_v2g_root(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    anchors = TrustAnchors.build([(AnchorRole.V2G, c.certificate) for c in (pki.v2g_root, pki.emsp_root)])
    assert verify_response(contract_message(pki), pki, anchors=anchors).contract_chain.root == pki.emsp_root.certificate


def test_response_with_p256_is_accepted_in_iso20_and_with_p521_refused_in_iso2(pkis: dict[str, PKI]) -> None:
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


def test_message_of_the_other_kind_or_edition_is_told_as_such(pkis: dict[str, PKI]) -> None:
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
def test_response_that_is_not_ok_is_refused(pkis: dict[str, PKI], code: str) -> None:
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


def test_response_failures_of_one_stage_are_told_together_and_later_stages_are_not(pkis: dict[str, PKI]) -> None:
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


def test_response_with_an_expired_contract_is_refused_in_the_words_of_the_api(pki: PKI) -> None:
    encoded = contract_message(pki, valid=(AT - 2 * DAY, AT - DAY))
    assert refusal(lambda: verify_response(encoded, pki)) == (
        ExpiredError, ("The validUntil date of contract certificate is in the past.",),
    )  # fmt: skip


def test_contract_is_valid_to_the_end_of_its_last_second(pki: PKI) -> None:
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


def test_certificate_that_is_not_for_provisioning_services_cannot_sign(pkis: dict[str, PKI]) -> None:
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


@pytest.mark.parametrize("leaf", ["CPS SIM", THE_EMAID])
@pytest.mark.parametrize("error", [RevokedError("The certificate is revoked."), Unavailable("No evidence.")])
def test_response_with_a_revoked_or_unknown_chain_is_refused(pki: PKI, leaf: str, error: CCPError) -> None:
    encoded = contract_message(pki)
    assert refusal(lambda: verify_response(encoded, pki, revocation=Revoked(leaf, error))) == (
        type(error), error.messages,
    )  # fmt: skip


def test_signature_of_another_provisioning_service_is_refused(pki: PKI) -> None:
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
def test_iso2_dh_key_that_is_no_point_is_refused(pkis: dict[str, PKI], key: bytes, sentence: str) -> None:
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


def test_key_for_a_tpm_has_its_own_length(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso20"]
    encoded = signed20(contract_message(pki), pki.cps.key, **key20("TPM_EncryptedPrivateKey", 206))
    assert verify_response(encoded, pki).response.encrypted_key_of == "TPM_EncryptedPrivateKey"


def test_report_of_a_good_response_names_every_check_with_its_evidence(pki: PKI) -> None:
    checks = CheckList(collect=True)
    verify_response(contract_message(pki), pki, checks=checks, root=Fingerprint(pki.v2g_root.certificate.fingerprint))
    assert [check.number for check in checks.results] == list(range(1, 13))[: len(checks.results)]
    assert {check.status for check in checks.results} == {CheckStatus.PASSED}
    evidence = {check.subject: check.evidence for check in checks.results}
    assert evidence["EMAID the same everywhere"] == (THE_EMAID,)
    assert len(evidence["chain of the provisioning service to a V2G root"]) == 4
    assert pki.v2g_root.certificate.fingerprint in evidence["chain of the provisioning service to a V2G root"][-1]


def test_report_goes_on_after_a_failure_as_far_as_it_can(pkis: dict[str, PKI]) -> None:
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


def test_response_that_is_verified_is_made_by_its_check_alone(pkis: dict[str, PKI]) -> None:
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


def test_response_that_is_still_being_processed_is_refused(pkis: dict[str, PKI]) -> None:
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
