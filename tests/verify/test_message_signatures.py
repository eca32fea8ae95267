"""Message signatures: what is accepted, and every reason for refusal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from ccp import exi
from ccp.errors import SignatureError
from ccp.exi import iso2, iso20, xmldsig
from ccp.ids import EMAID, PCID
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI
from ccp.verify import message_signatures
from tests.world import AT

CANONICAL_EXI = "http://www.w3.org/TR/canonical-exi/"
ECDSA_SHA256 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha256"
ECDSA_SHA512 = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha512"
ED448 = "urn:iso:std:iso:15118:-20:Security:xmldsig#Ed448"
SHA256 = "http://www.w3.org/2001/04/xmlenc#sha256"
SHA512 = "http://www.w3.org/2001/04/xmlenc#sha512"
SHA1 = "http://www.w3.org/2000/09/xmldsig#sha1"
SHAKE256 = "urn:iso:std:iso:15118:-20:Security:xmlenc#SHAKE256"
DIGESTS: Mapping[str, Callable[[bytes], bytes]] = {
    SHA1: lambda encoded: hashlib.sha1(encoded).digest(),
    SHA256: lambda encoded: hashlib.sha256(encoded).digest(),
    SHA512: lambda encoded: hashlib.sha512(encoded).digest(),
    SHAKE256: lambda encoded: hashlib.shake_256(encoded).digest(64),
}
MANDATORY = ("ContractSignatureCertChain", "ContractSignatureEncryptedPrivateKey", "DHpublickey", "eMAID")

P256, OTHER_P256 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
P521, EDWARDS = ec.generate_private_key(ec.SECP521R1()), Ed448PrivateKey.generate()
Key = ec.EllipticCurvePrivateKey | Ed448PrivateKey

BODY = iso2.CertificateInstallationRes(
    "OK",
    iso2.CertificateChain(None, b"cps", (b"sub",)),
    iso2.CertificateChain("id1", b"contract", (b"sub",)),
    iso2.ContractSignatureEncryptedPrivateKey("id2", bytes(48)),
    iso2.DHpublickey("id3", bytes(65)),
    iso2.EMAID("id4", "DEEXAC00000001"),
)
DATA = iso20.SignedInstallationData(
    "id1", iso20.CertificateChain(b"contract", (b"sub",)), "SECP521", bytes(133), SECP521_EncryptedPrivateKey=bytes(94)
)


def fragments(body: iso2.CertificateInstallationRes = BODY) -> dict[str, bytes]:
    """The four parts that are signed, by Id."""
    return {getattr(body, name).Id: exi.encode_fragment(name, getattr(body, name), exi.ISO2) for name in MANDATORY}


def reference(
    identifier: str | None, encoded: bytes, digest: str = SHA256, transforms: tuple[str, ...] | None = (CANONICAL_EXI,)
) -> xmldsig.Reference:
    """identifier: the URI as a whole where it has a "#", else the Id."""
    uri = identifier if identifier is None or "#" in identifier or "/" in identifier else f"#{identifier}"
    value = DIGESTS.get(digest, DIGESTS[SHA256])(encoded)
    transformed = None if transforms is None else tuple(map(xmldsig.Transform, transforms))
    return xmldsig.Reference(None, None, uri, transformed, xmldsig.DigestMethod(digest), value)


def sign(
    references: list[xmldsig.Reference],
    key: Key = P256,
    *,
    method: str = ECDSA_SHA256,
    canonical: str = CANONICAL_EXI,
    grammar: str = "xmldsig",
    value: bytes | None = None,
) -> xmldsig.Signature:
    """A signature made by hand, so that everything can be wrong in it. value: instead of the right one."""
    signed_info = xmldsig.SignedInfo(
        None, xmldsig.CanonicalizationMethod(canonical), xmldsig.SignatureMethod(method), tuple(references)
    )
    encoded = exi.encode_signed_info(signed_info, grammar)
    if value is None and isinstance(key, Ed448PrivateKey):
        value = key.sign(encoded)
    elif value is None:
        half = (key.key_size + 7) // 8
        digest = hashes.SHA256() if half == 32 else hashes.SHA512()
        value = b"".join(n.to_bytes(half, "big") for n in decode_dss_signature(key.sign(encoded, ec.ECDSA(digest))))
    return xmldsig.Signature(None, signed_info, xmldsig.SignatureValue(None, value))


def response(signature: xmldsig.Signature | None, body: iso2.CertificateInstallationRes = BODY) -> exi.ParsedMessage:
    """An ISO 15118-2 response as it is received."""
    return exi.parse(exi.encode(iso2.V2G_Message(iso2.Header(b"\0", None, signature), body)))


def response20(signature: xmldsig.Signature | None) -> exi.ParsedMessage:
    header = iso20.Header(bytes(8), 1, signature)
    chain = iso20.CertificateChain(b"cps")
    return exi.parse(exi.encode(iso20.CertificateInstallationRes(header, "OK", "Finished", chain, DATA, 0)))


def all_four(**how: Any) -> list[xmldsig.Reference]:
    return [reference(identifier, encoded, **how) for identifier, encoded in fragments().items()]


def data_reference(digest: str) -> xmldsig.Reference:
    return reference("id1", exi.encode_fragment("SignedInstallationData", DATA, exi.ISO20), digest)


def verify(parsed: exi.ParsedMessage, key: Key = P256) -> message_signatures.SignatureEvidence:
    return message_signatures.verify_signature(parsed, key.public_key(), MANDATORY)


def refusal(parsed: exi.ParsedMessage, key: Key = P256, mandatory: tuple[str, ...] = MANDATORY) -> tuple[str, ...]:
    """The sentences with which it is refused."""
    with pytest.raises(SignatureError) as caught:
        message_signatures.verify_signature(parsed, key.public_key(), mandatory)
    return caught.value.messages


# --- What is accepted ------------------------------------------------------------------------------------------------


def test_verify_signature_lists_the_covered_elements() -> None:
    evidence = verify(response(sign(all_four())))
    assert (evidence.method, evidence.grammar) == (ECDSA_SHA256, "xmldsig")
    assert [(part.id, part.name, part.digest) for part in evidence.elements] == [
        (f"id{number}", name, SHA256) for number, name in enumerate(MANDATORY, start=1)
    ]


def test_references_may_stand_in_any_order() -> None:
    assert {part.name for part in verify(response(sign(all_four()[::-1]))).elements} == set(MANDATORY)


@pytest.mark.parametrize("transforms", [None, (CANONICAL_EXI,), (CANONICAL_EXI.rstrip("/"),), (CANONICAL_EXI,) * 2])
def test_transforms_may_be_left_out_or_be_canonical_exi(transforms: tuple[str, ...] | None) -> None:
    verify(response(sign(all_four(transforms=transforms))))


def test_name_of_canonical_exi_is_known_without_its_slash() -> None:
    verify(response(sign(all_four(), canonical=CANONICAL_EXI.rstrip("/"))))


def test_signed_info_under_the_combined_grammar_is_accepted_and_told() -> None:
    assert verify(response(sign(all_four(), grammar="iso2"))).grammar == "combined"
    signature = sign([data_reference(SHA512)], P521, method=ECDSA_SHA512, grammar="iso20")
    evidence = message_signatures.verify_signature(
        response20(signature), P521.public_key(), ("SignedInstallationData",)
    )
    assert evidence.grammar == "combined"


def test_message_signature_under_a_combined_grammar_of_the_other_edition_is_refused() -> None:
    assert refusal(response(sign(all_four(), grammar="iso20"))) == (
        "The signature value does not match the certificate's key.",
    )


def test_verify_signature_accepts_a_digest_over_the_typed_emaid() -> None:
    typed = exi.emaid_fragment(BODY.eMAID, "typed")
    assert typed != fragments()["id4"]
    references = [reference(i, typed if i == "id4" else encoded) for i, encoded in fragments().items()]
    verify(response(sign(references)))


@pytest.mark.parametrize(
    ("key", "method", "digest"),
    [
        (P256, ECDSA_SHA256, SHA256),
        (P521, ECDSA_SHA512, SHA512),
        (EDWARDS, ED448, SHAKE256),
        (P521, ECDSA_SHA512, SHA256),
    ],
)
def test_iso20_takes_the_suites_of_its_own_and_that_of_iso2(key: Key, method: str, digest: str) -> None:
    parsed = response20(sign([data_reference(digest)], key, method=method))
    evidence = message_signatures.verify_signature(parsed, key.public_key(), ("SignedInstallationData",))
    assert (evidence.method, evidence.elements[0].digest) == (method, digest)


@pytest.mark.parametrize("name", ["iso2", "iso20", "ed448"])
def test_signatures_of_the_simulator_verify(pkis: dict[str, PKI], name: str) -> None:
    pki = pkis[name]
    car = Car.generate(pki, PCID("WEX0SIGN000000001"), AT)
    contract = issue_contract(pki, EMAID("DEEXAC00000001"), car.pcid, car.provisioning.certificate, AT)
    mandatory = MANDATORY if name == "iso2" else ("SignedInstallationData",)
    parsed = exi.parse(sign_contract(pki, contract, AT))
    assert len(message_signatures.verify_signature(parsed, pki.cps.certificate.public_key, mandatory).elements) == len(
        mandatory
    )
    signed = "CertificateInstallationReq" if name == "iso2" else "OEMProvisioningCertificateChain"
    parsed = exi.parse(car.request(bytes(8), AT))
    message_signatures.verify_signature(parsed, car.provisioning.certificate.public_key, (signed,))


# --- What is refused -------------------------------------------------------------------------------------------------


def test_message_without_signature_is_refused() -> None:
    assert refusal(response(None)) == ("The message is not signed.",)
    assert refusal(response20(None)) == ("The message is not signed.",)


@pytest.mark.parametrize("left_out", range(4))
def test_message_signature_has_to_cover_every_mandatory_part(left_out: int) -> None:
    references = all_four()
    del references[left_out]
    assert refusal(response(sign(references))) == (f"The signature does not cover {MANDATORY[left_out]}.",)


def test_message_signature_that_does_not_cover_all_parts_names_them_together() -> None:
    assert refusal(response(sign(all_four()[:1]))) == tuple(
        f"The signature does not cover {name}." for name in MANDATORY[1:]
    )


def test_message_signature_that_covers_one_part_twice_lacks_another() -> None:
    references = all_four()
    assert refusal(response(sign([*references[:3], references[0]]))) == ("The signature does not cover eMAID.",)


def test_message_signature_names_every_digest_that_does_not_match() -> None:
    signature = sign([reference(identifier, encoded + b"\0") for identifier, encoded in fragments().items()])
    assert refusal(response(signature)) == tuple(f"The digest of {name} does not match." for name in MANDATORY)


@pytest.mark.parametrize("change", range(4))
def test_part_that_was_changed_after_signing_is_named(change: int) -> None:
    value: Any = getattr(BODY, MANDATORY[change])
    changed = value._replace(Certificate=b"another") if change == 0 else value._replace(value=b"\1" * 48)
    if change == 3:
        changed = value._replace(value="DEEXAC00000002")
    body = BODY._replace(**{MANDATORY[change]: changed})
    assert refusal(response(sign(all_four()), body)) == (f"The digest of {MANDATORY[change]} does not match.",)


def test_parts_cannot_trade_their_digests() -> None:
    encoded = list(fragments().values())
    signature = sign([reference(f"id{number}", encoded[-number]) for number in range(1, 5)])
    assert len(refusal(response(signature))) == 4


@pytest.mark.parametrize("uri", ["#nothing", "id1/", "#", "#ID1", "http://example.com/#id1", "#id1 "])
def test_reference_to_something_else_is_refused_even_beside_the_right_ones(uri: str) -> None:
    signature = sign([*all_four(), reference(uri, b"")])
    assert refusal(response(signature)) == (f"The reference {uri!a} names no part of the message.",)


def test_reference_without_uri_is_refused() -> None:
    assert refusal(response(sign([*all_four(), reference(None, b"")]))) == (
        "The reference '' names no part of the message.",
    )


def test_message_signature_names_a_long_or_foreign_uri_short_and_printable() -> None:
    (sentence,) = refusal(response(sign([*all_four(), reference("#\n\u202e" + "ü" * 500, b"")])))
    assert len(sentence) < 700
    assert sentence.isascii()
    assert sentence.isprintable()


@pytest.mark.parametrize("place", ["ContractSignatureEncryptedPrivateKey", "DHpublickey", "eMAID"])
def test_id_that_two_parts_have_names_neither(place: str) -> None:
    """Otherwise the part that is digested need not be the part that is used."""
    body = BODY._replace(**{place: getattr(BODY, place)._replace(Id="id1")})
    parts = fragments(body) | fragments()
    signature = sign([reference(identifier, encoded) for identifier, encoded in parts.items()])
    assert "The reference '#id1' names more than one part of the message." in refusal(response(signature, body))


def test_verify_signature_refuses_a_reference_to_the_cps_chain() -> None:
    body = BODY._replace(SAProvisioningCertificateChain=iso2.CertificateChain("id0", b"cps"))
    verify(response(sign(all_four()), body))
    assert refusal(response(sign([*all_four(), reference("id0", b"")]), body)) == (
        "The reference to SAProvisioningCertificateChain names a part that is not for signing.",
    )


@pytest.mark.parametrize("digest", [SHA1, SHA512, SHAKE256, "", "urn:x" * 100])
def test_digest_method_that_iso2_does_not_know_is_refused(digest: str) -> None:
    sentences = refusal(response(sign(all_four(digest=digest))))
    assert [sentence.partition(" of ")[2] for sentence in sentences] == [
        f"{name} is not allowed here." for name in MANDATORY
    ]
    assert all(sentence.startswith("The digest method '") and len(sentence) < 200 for sentence in sentences)


def test_digest_method_that_iso20_does_not_know_is_refused() -> None:
    signature = sign([data_reference(SHA1)], P521, method=ECDSA_SHA512)
    (sentence,) = refusal(response20(signature), P521, ("SignedInstallationData",))
    assert sentence == f"The digest method '{SHA1}' of SignedInstallationData is not allowed here."


@pytest.mark.parametrize(
    ("key", "method"),
    [(P521, ECDSA_SHA512), (EDWARDS, ED448), (P256, "http://www.w3.org/2000/09/xmldsig#hmac-sha1"), (P256, "")],
)
def test_signature_method_that_iso2_does_not_know_is_refused(key: Key, method: str) -> None:
    assert refusal(response(sign(all_four(), key, method=method)), key) == (
        f"The signature method '{method}' is not allowed here.",
    )


@pytest.mark.parametrize("canonical", ["http://www.w3.org/2001/10/xml-exc-c14n#", "", CANONICAL_EXI + "#WithComments"])
def test_message_signature_with_another_canonicalisation_is_refused(canonical: str) -> None:
    sentence = f"The canonicalisation '{canonical}' is not canonical EXI."
    assert refusal(response(sign(all_four(), canonical=canonical))) == (sentence,)
    assert refusal(response(sign(all_four(transforms=(CANONICAL_EXI, canonical))))) == (sentence,)


@pytest.mark.parametrize(
    ("key", "method", "digest", "right"),
    [(P256, ECDSA_SHA256, SHA256, 64), (P521, ECDSA_SHA512, SHA512, 132)],
)
@pytest.mark.parametrize("length", [0, 1, 63, 65, 70, 72, 131, 133, 139, 200])
def test_signature_value_of_another_length_is_refused(
    key: Key, method: str, digest: str, right: int, length: int
) -> None:
    signature = sign([data_reference(digest)], key, method=method, value=bytes(length))
    assert refusal(response20(signature), key, ("SignedInstallationData",)) == (
        f"The signature value has {length} bytes where {right} are expected.",
    )


@pytest.mark.parametrize("length", [0, 64, 113, 114, 115, 228])
def test_signature_value_of_ed448_of_another_length_is_refused(length: int) -> None:
    signature = sign([data_reference(SHAKE256)], EDWARDS, method=ED448, value=bytes(length))
    assert refusal(response20(signature), EDWARDS, ("SignedInstallationData",)) == (
        "The signature value does not match the certificate's key.",
    )


def test_der_signature_is_refused() -> None:
    signed_info = sign(all_four()).SignedInfo
    value = P256.sign(exi.encode_signed_info(signed_info), ec.ECDSA(hashes.SHA256()))
    (sentence,) = refusal(response(sign(all_four(), value=value)))
    assert "bytes where 64 are expected" in sentence


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize("r", [0, 1, ORDER - 1, ORDER, ORDER + 1, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1, ORDER, 2**256 - 1])
def test_signature_values_at_the_edges_of_their_range_are_refused(r: int, s: int) -> None:
    value = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert refusal(response(sign(all_four(), value=value))) == (
        "The signature value does not match the certificate's key.",
    )


def test_signature_of_another_key_is_refused() -> None:
    assert refusal(response(sign(all_four(), OTHER_P256))) == (
        "The signature value does not match the certificate's key.",
    )


@pytest.mark.parametrize("key", [P521, EDWARDS])
def test_key_that_does_not_fit_the_method_is_refused(key: Key) -> None:
    assert refusal(response(sign(all_four())), key) == ("The certificate's key does not fit the signature method.",)
    signature = sign([data_reference(SHA512)], P521, method=ECDSA_SHA512)
    assert refusal(response20(signature), P256, ("SignedInstallationData",)) == (
        "The certificate's key does not fit the signature method.",
    )


def test_method_that_nobody_knows_is_refused_by_the_value_check_itself() -> None:
    with pytest.raises(SignatureError, match="The signature method 'urn:none' is unknown"):
        message_signatures.verify_signature_value(bytes(64), b"", "urn:none", P256.public_key())


def test_signature_over_one_message_does_not_fit_another() -> None:
    signature = sign(all_four())
    body = BODY._replace(eMAID=iso2.EMAID("id4", "DEEXAC00000002"))
    references = [reference(identifier, encoded) for identifier, encoded in fragments(body).items()]
    mixed = signature._replace(SignedInfo=signature.SignedInfo._replace(Reference=tuple(references)))
    assert refusal(response(mixed, body)) == ("The signature value does not match the certificate's key.",)


def test_keys_that_iso_15118_does_not_know_cannot_sign() -> None:
    with pytest.raises(SignatureError, match="Keys on the curve secp384r1 do not sign messages"):
        message_signatures.create_signature([], ec.generate_private_key(ec.SECP384R1()))
