"""Refusals of a publication: fields, encoding, ids, chains, signature, key material."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ccp import exi
from ccp.exi import iso2, iso20
from ccp.ids import check_digit
from ccp.testing.pki import CONTRACT, CPS, SUB_CA1, SUB_CA2, algorithm_of, build_root
from ccp.verify import message_signatures
from tests.server.http.api.answers import sentences
from tests.server.http.api.publications import EDITIONS, bundle_of, refused, signed
from tests.world import AT, ISO2, ISO20, Contract, Pool, b64, new_emaid, new_pcid, put_body


def tampered(contract: Contract, message: Any) -> Contract:
    """The contract with another message, its signature as it was."""
    encoded = exi.encode(message)
    body = put_body(encoded, contract.emaid, contract.body["pcid"], contract.body["xsdMsgDefNamespace"])
    return replace(contract, message=encoded, body=body)


def with_body(message: iso2.V2G_Message, **parts: Any) -> iso2.V2G_Message:
    return message._replace(Body=message.Body._replace(**parts))


# --- Stage 1: fields -------------------------------------------------------------------------------------------------


def test_publication_lists_all_fields_that_are_wrong_together(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    messages = refused(
        pool,
        contract,
        emaid="DEEXA",
        pcid="WEX",
        xsdMsgDefNamespace="urn:iso:15118:3",
        cpsV2GRootCertificateFingerprint="00",
        cpsRootDistinguishedName="C=Germany",
        metaData=7,
    )
    assert 'emaid : must match "^[A-Za-z]{2}[-]?\\w{3}[-]?\\w{9,28}[-]?(\\w{1})?$"' in messages
    assert 'pcid : must match "^[a-zA-Z0-9]{17,18}$"' in messages
    assert 'cpsV2GRootCertificateFingerprint : must match "^[0-9a-fA-F]{64}$"' in messages
    fields = {message.split(" : ")[0] for message in messages}
    assert fields == {
        *("emaid", "pcid", "xsdMsgDefNamespace", "metaData"),
        *("cpsV2GRootCertificateFingerprint", "cpsRootDistinguishedName"),
    }


@pytest.mark.parametrize("member", ["emaid", "pcid", "certificateInstallationRes", "xsdMsgDefNamespace"])
def test_publication_without_a_mandatory_member_that_is_a_string_is_refused(pool: Pool, member: str) -> None:
    contract = pool.contract(pool.car())
    left_out = {name: value for name, value in contract.body.items() if name != member}
    messages = sentences(pool.cps.put("/signedcontractdata", json=left_out), 400)
    assert messages == [f"{member} : is missing"]
    for value in (None, 5, True, [], {}, ""):
        messages = refused(pool, contract, **{member: value})
        assert len(messages) == 1
        assert messages[0].startswith(f"{member} : must not be null" if value is None else f"{member} : must ")


def test_publication_of_an_empty_object_lacks_every_mandatory_member(pool: Pool) -> None:
    messages = sentences(pool.cps.put("/signedcontractdata", json={}), 400)
    mandatory = ("emaid", "pcid", "certificateInstallationRes", "xsdMsgDefNamespace")
    assert sorted(messages) == sorted(f"{member} : is missing" for member in mandatory)


@pytest.mark.parametrize(
    "emaid",
    [
        "DEEXAC1234567",  # 13 characters
        "DEEXA" + "C" * 32,  # 37
        "D3EXAC12345678",
        "DE--EXAC12345678",
        "DEEXAC1234567ä",
        "DEEXAC12345678\n",
        "DEEXA C12345678",
        "ſEEXAC12345678",
    ],
)
def test_publication_with_an_invalid_emaid_is_refused(pool: Pool, emaid: str) -> None:
    (message,) = refused(pool, pool.contract(pool.car()), emaid=emaid)
    assert message.startswith("emaid : must match")


@pytest.mark.parametrize("pcid", ["WEX0TEST00000000", "WEX0TEST00000000001", "WEX0TEST-00000000", "WEX0TEST0000000ß0"])
def test_publication_with_an_invalid_pcid_is_refused(pool: Pool, pcid: str) -> None:
    (message,) = refused(pool, pool.contract(pool.car()), pcid=pcid)
    assert message.startswith("pcid : must match")


# --- Stage 2: Base64 and EXI -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["%%%", "AAA", "AAAA=", "AAAA====", "AAB=", "AA\u00a0AA", "AA\x00AA", "gJg-", "ä"])
def test_publication_with_invalid_base64_is_refused(pool: Pool, text: str) -> None:
    messages = refused(pool, pool.contract(pool.car()), certificateInstallationRes=text)
    assert messages[0] == "EXI format is invalid!"
    assert len(messages) == 2
    assert "Base64" in messages[1]


@pytest.mark.parametrize("edition", EDITIONS)
def test_message_that_is_cut_off_or_goes_on_is_refused(pool: Pool, edition: str) -> None:
    contract = pool.contract(pool.car(edition))
    encoded = contract.message
    for broken in (b"\x80", encoded[:3], encoded[: len(encoded) // 2], encoded[:-1], encoded + b"\1", b"\0" * 64):
        messages = refused(pool, contract, certificateInstallationRes=b64(broken))
        assert messages[0] == "EXI format is invalid!"
        assert len(messages) == 2


@pytest.mark.parametrize("edition", EDITIONS)
def test_request_is_refused_where_a_response_is_expected(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    contract = pool.contract(car)
    request = car.request(bytes(8), AT)
    messages = refused(pool, contract, **put_body(request, contract.emaid, car.pcid, str(car.namespace)))
    assert messages[0] == "EXI format is invalid!"
    assert "CertificateInstallationReq" in messages[1]


@pytest.mark.parametrize(("edition", "namespace"), [("iso2", ISO20), ("iso20", ISO2)])
def test_message_of_another_namespace_than_is_named_is_refused(pool: Pool, edition: str, namespace: str) -> None:
    messages = refused(pool, pool.contract(pool.car(edition)), xsdMsgDefNamespace=namespace)
    assert messages[0] == "EXI format is invalid!"
    assert namespace in messages[1]


# --- Stage 3: response code and ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_negative_response_is_refused(pool: Pool, edition: str) -> None:
    contract = pool.contract(pool.car(edition))
    message = exi.decode(contract.message)
    if edition == "iso2":
        message = with_body(message, ResponseCode="FAILED_NoCertificateAvailable")
    else:
        message = message._replace(ResponseCode="WARNING_NoCertificateAvailable")
    (sentence,) = refused(pool, tampered(contract, message))
    assert "NoCertificateAvailable, not OK" in sentence


@pytest.mark.parametrize("edition", EDITIONS)
def test_contract_certificate_for_another_emaid_than_is_named_is_refused(pool: Pool, edition: str) -> None:
    contract = pool.contract(pool.car(edition))
    other = new_emaid()
    (sentence,) = refused(pool, contract, emaid=other)
    assert sentence == f"The contract certificate is for {contract.emaid}, not for {other}."
    assert pool.stored(other) == 0


def test_message_for_another_emaid_than_its_contract_certificate_is_refused(pool: Pool) -> None:
    car, pki = pool.car(), pool.pki()
    bundle = bundle_of(pool, car, pki)
    other = new_emaid()
    contract = replace(signed(pki, replace(bundle, emaid=other), car), emaid=bundle.emaid)
    (sentence,) = refused(pool, contract, emaid=bundle.emaid)
    assert sentence == f"The message's eMAID is {other}, the contract certificate is for {bundle.emaid}."


def test_contract_certificate_whose_common_name_is_no_emaid_is_refused(pool: Pool) -> None:
    car, pki = pool.car(), pool.pki()
    bundle = bundle_of(pool, car, pki)
    nameless = replace(bundle, contract=pki.emsp_sub2.issue("no EMAID", CONTRACT, now=AT))
    assert refused(pool, signed(pki, nameless, car)) == ["The contract certificate's common name is no EMAID."]


def test_errors_of_a_message_are_listed_together(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    message = with_body(exi.decode(contract.message), ResponseCode="FAILED")
    assert len(refused(pool, tampered(contract, message), emaid=new_emaid())) == 2


# --- Stage 4: chains -------------------------------------------------------------------------------------------------


def test_publication_reports_unknown_roots_of_contract_and_cps_together(pool: Pool) -> None:
    messages = refused(pool, pool.contract(pool.car(), signer="stranger"))
    assert len(messages) == 2


@pytest.mark.parametrize("edition", EDITIONS)
def test_contract_under_an_unknown_root_is_refused(pool: Pool, edition: str) -> None:
    pki = pool.pki(edition)
    root = build_root("Unheard-of Root CA", now=AT, algorithm=algorithm_of(pki.emsp_root.key))
    sub2 = root.issue("Unheard-of Sub1 CA", SUB_CA1, now=AT).issue("Unheard-of Sub2 CA", SUB_CA2, now=AT)
    (sentence,) = refused(pool, pool.contract(pool.car(edition), signer=replace(pki, emsp_sub2=sub2)))
    assert "Unheard-of" in sentence
    assert "trust" in sentence


def test_contract_under_a_root_that_only_has_the_name_of_a_trusted_one_is_refused(pool: Pool) -> None:
    impostor = replace(pool.pki(), emsp_sub2=pool.pki("stranger").emsp_sub2)
    assert len(refused(pool, pool.contract(pool.car(), signer=impostor))) == 1


def test_provisioning_service_under_an_unknown_root_is_refused(pool: Pool) -> None:
    impostor = replace(pool.pki(), cps=pool.pki("stranger").cps)
    assert len(refused(pool, pool.contract(pool.car(), signer=impostor))) == 1


def test_provisioning_service_under_an_emsp_root_is_refused(pool: Pool) -> None:
    pki = pool.pki()
    cps = pki.emsp_sub2.issue("CPS SIM", CPS, now=AT)
    assert refused(pool, pool.contract(pool.car(), signer=replace(pki, cps=cps)))


def test_contract_certificate_cannot_sign_for_a_provisioning_service(pool: Pool) -> None:
    pki = pool.pki()
    assert refused(pool, pool.contract(pool.car(), signer=replace(pki, cps=pki.contract(new_emaid(), now=AT))))


@pytest.mark.parametrize("edition", EDITIONS)
def test_publication_of_an_expired_contract_is_refused_with_the_described_sentence(pool: Pool, edition: str) -> None:
    valid = (AT - timedelta(days=2), AT - timedelta(days=1))
    messages = refused(pool, pool.contract(pool.car(edition), valid=valid))
    assert messages == ["The validUntil date of contract certificate is in the past."]


def test_contract_that_is_not_valid_yet_is_refused(pool: Pool) -> None:
    valid = (AT + timedelta(days=1), AT + timedelta(days=2))
    (sentence,) = refused(pool, pool.contract(pool.car(), valid=valid))
    assert "is not valid before" in sentence


def test_publication_by_an_expired_service_is_refused_and_is_not_called_a_contract(pool: Pool) -> None:
    pki = pool.pki()
    cps = pki.cps_sub2.issue("CPS SIM", CPS, now=AT, valid=(AT - timedelta(days=2), AT - timedelta(days=1)))
    (sentence,) = refused(pool, pool.contract(pool.car(), signer=replace(pki, cps=cps)))
    assert "expired" in sentence
    assert "contract" not in sentence


def test_chain_with_a_missing_sub_ca_is_refused(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    message = exi.decode(contract.message)
    chain = message.Body.SAProvisioningCertificateChain
    shortened = chain._replace(SubCertificates=chain.SubCertificates[:1])
    assert refused(pool, tampered(contract, with_body(message, SAProvisioningCertificateChain=shortened)))


def test_publication_with_bytes_that_are_no_certificate_is_refused(pool: Pool) -> None:
    contract = pool.contract(pool.car())
    message = exi.decode(contract.message)
    chain = message.Body.ContractSignatureCertChain._replace(Certificate=b"\x30\x03no!")
    assert refused(pool, tampered(contract, with_body(message, ContractSignatureCertChain=chain)))


def test_publication_with_another_v2g_root_than_the_chain_leads_to_is_refused(pool: Pool) -> None:
    other = pool.pki("other_iso2").v2g_root.certificate.fingerprint
    (sentence,) = refused(pool, pool.contract(pool.car()), cpsV2GRootCertificateFingerprint=other)
    assert "not to the one in cpsV2GRootCertificateFingerprint" in sentence


def _flipped(data: bytes) -> bytes:
    return bytes((data[0] ^ 1,)) + data[1:]


def _other_part(message: iso2.V2G_Message, part: str, pool: Pool) -> iso2.V2G_Message:
    """The message with one signed part replaced by another that is as good in itself."""
    value = getattr(message.Body, part)
    if part == "ContractSignatureCertChain":
        new = value._replace(SubCertificates=(*value.SubCertificates, value.SubCertificates[0]))
    elif part == "ContractSignatureEncryptedPrivateKey":
        new = value._replace(value=_flipped(value.value))
    elif part == "DHpublickey":
        new = value._replace(value=exi.decode(pool.contract(pool.car()).message).Body.DHpublickey.value)
    else:
        new = value._replace(value=value.value + check_digit(value.value))
    return with_body(message, **{part: new})


PARTS = ["ContractSignatureCertChain", "ContractSignatureEncryptedPrivateKey", "DHpublickey", "eMAID"]


# --- Stage 5: the provisioning service's signature -------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_publication_with_a_changed_signed_part_is_refused(pool: Pool, part: str) -> None:
    contract = pool.contract(pool.car())
    (sentence,) = refused(pool, tampered(contract, _other_part(exi.decode(contract.message), part, pool)))
    assert part in sentence


@pytest.mark.parametrize("part", PARTS)
def test_signature_that_leaves_out_a_mandatory_part_is_refused(pool: Pool, part: str) -> None:
    contract = pool.contract(pool.car())
    message = exi.decode(contract.message)
    references = [
        (getattr(message.Body, name).Id, exi.encode_fragment(name, getattr(message.Body, name), exi.ISO2))
        for name in PARTS
        if name != part
    ]
    header = message.Header._replace(Signature=message_signatures.create_signature(references, pool.pki().cps.key))
    (sentence,) = refused(pool, tampered(contract, message._replace(Header=header)))
    assert part in sentence


@pytest.mark.parametrize("edition", ["iso20", "ed448"])
def test_publication_with_a_changed_signed_part_of_part_20_is_refused(pool: Pool, edition: str) -> None:
    contract = pool.contract(pool.car(edition))
    message = exi.decode(contract.message)
    data = message.SignedInstallationData
    name = "SECP521_EncryptedPrivateKey" if edition == "iso20" else "X448_EncryptedPrivateKey"
    data = data._replace(**{name: _flipped(getattr(data, name))})
    (sentence,) = refused(pool, tampered(contract, message._replace(SignedInstallationData=data)))
    assert "SignedInstallationData" in sentence


@pytest.mark.parametrize("edition", EDITIONS)
def test_publication_with_a_changed_signature_value_is_refused(pool: Pool, edition: str) -> None:
    contract = pool.contract(pool.car(edition))
    message = exi.decode(contract.message)
    signature = message.Header.Signature
    value = signature.SignatureValue._replace(value=_flipped(signature.SignatureValue.value))
    header = message.Header._replace(Signature=signature._replace(SignatureValue=value))
    assert len(refused(pool, tampered(contract, message._replace(Header=header)))) == 1


@pytest.mark.parametrize("edition", EDITIONS)
def test_message_without_a_signature_is_refused(pool: Pool, edition: str) -> None:
    contract = pool.contract(pool.car(edition))
    message = exi.decode(contract.message)
    assert refused(pool, tampered(contract, message._replace(Header=message.Header._replace(Signature=None))))


@pytest.mark.parametrize("edition", EDITIONS)
def test_signature_by_another_key_than_the_provisioning_service_has_is_refused(pool: Pool, edition: str) -> None:
    pki = pool.pki(edition)
    impostor = replace(pki.cps, key=pki.contract(new_emaid(), now=AT).key)
    assert len(refused(pool, pool.contract(pool.car(edition), signer=replace(pki, cps=impostor)))) == 1


def _not_on_curve(data: bytes) -> bytes:
    return data[:-1] + bytes((data[-1] ^ 1,))


# --- Stage 6: key material -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edition", "change", "expected"),
    [
        ("iso2", lambda sent: replace(sent, dh_public_key=_not_on_curve(sent.dh_public_key)), "no point"),
        ("iso20", lambda sent: replace(sent, dh_public_key=_not_on_curve(sent.dh_public_key)), "no point"),
        ("ed448", lambda sent: replace(sent, dh_public_key=bytes(56)), "small order"),
        ("iso2", lambda sent: replace(sent, dh_public_key=sent.dh_public_key[:-1]), "bytes"),
        ("iso20", lambda sent: replace(sent, dh_public_key=sent.dh_public_key[:-1]), "bytes"),
        ("ed448", lambda sent: replace(sent, dh_public_key=sent.dh_public_key + b"\0"), "bytes"),
        ("iso2", lambda sent: replace(sent, dh_public_key=b"\2" + sent.dh_public_key[1:33]), "bytes"),
        ("iso2", lambda sent: replace(sent, encrypted=sent.encrypted[:-1]), "bytes"),
        ("iso20", lambda sent: replace(sent, encrypted=sent.encrypted[:-1]), "bytes"),
        ("ed448", lambda sent: replace(sent, encrypted=sent.encrypted[:-1]), "bytes"),
    ],
)
def test_key_material_that_no_car_could_use_is_refused(pool: Pool, edition: str, change: Any, expected: str) -> None:
    car, pki = pool.car(edition), pool.pki(edition)
    bundle = bundle_of(pool, car, pki)
    (sentence,) = refused(pool, signed(pki, replace(bundle, encrypted_key=change(bundle.encrypted_key)), car))
    assert expected in sentence


def test_publication_lists_all_key_material_that_is_wrong_together(pool: Pool) -> None:
    car, pki = pool.car(), pool.pki()
    bundle = bundle_of(pool, car, pki)
    assert (
        len(
            refused(
                pool,
                signed(
                    pki,
                    replace(bundle, encrypted_key=replace(bundle.encrypted_key, encrypted=b"\0", dh_public_key=b"\4")),
                    car,
                ),
            )
        )
        == 2
    )


def test_encrypted_key_that_does_not_go_with_the_curve_is_refused(pool: Pool) -> None:
    car, pki = pool.car("iso20"), pool.pki("iso20")
    contract = pool.contract(car)
    message = exi.decode(contract.message)
    data = message.SignedInstallationData._replace(SECP521_EncryptedPrivateKey=None, X448_EncryptedPrivateKey=bytes(84))
    reference = (data.Id, exi.encode_fragment("SignedInstallationData", data, exi.ISO20))
    header = iso20.Header(bytes(8), 0, message_signatures.create_signature([reference], pki.cps.key))
    (sentence,) = refused(pool, tampered(contract, message._replace(Header=header, SignedInstallationData=data)))
    assert "does not go with the curve" in sentence


def test_publication_names_no_later_stage_while_an_earlier_one_fails(pool: Pool) -> None:
    contract = pool.contract(pool.car(), signer="stranger")
    assert len(refused(pool, contract, emaid=new_emaid(), pcid=new_pcid())) == 1
