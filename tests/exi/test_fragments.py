"""Element fragments, compared with bits of messages and with real signatures; replacement of header fields."""

from __future__ import annotations

import hashlib
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from ccp.exi import (
    ISO2,
    ISO20,
    EXIError,
    ParsedMessage,
    SignedElement,
    decode,
    decode_fragment,
    emaid_fragment,
    encode,
    encode_fragment,
    encode_signed_info,
    fragment,
    iso2,
    iso20,
    namespace_of,
    parse,
    replace_header_fields,
    signed_info_fragment,
    xmldsig,
)
from tests.exi.messages import KINDS, Maker, messages
from tests.exi.samples import EXAMPLE, REQUEST, RESPONSE, shared_vector


def _digests(parsed: ParsedMessage) -> dict[str, bytes]:
    """SHA-256 over the fragment of every part, by URI; eMAID in its relaxed form."""
    body = parsed.message.Body  # type: ignore[union-attr]
    return {
        f"#{part.id}": hashlib.sha256(
            emaid_fragment(body.eMAID) if part.name == "eMAID" else fragment(parsed, part)
        ).digest()
        for part in parsed.elements
    }


def _verify(parsed: ParsedMessage, certificate: bytes) -> None:
    signature = parsed.message.Header.Signature
    assert signature is not None
    value = signature.SignatureValue.value
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    der = encode_dss_signature(int.from_bytes(value[:32]), int.from_bytes(value[32:]))
    key.verify(der, signed_info_fragment(parsed), ec.ECDSA(hashes.SHA256()))


def test_digests_and_signature_of_the_published_response_hold() -> None:
    parsed = parse(EXAMPLE)
    message = parsed.message
    assert isinstance(message, iso2.V2G_Message)
    assert isinstance(message.Body, iso2.CertificateInstallationRes)
    assert message.Header.Signature is not None
    digests = _digests(parsed)
    references = message.Header.Signature.SignedInfo.Reference
    assert [part.name for part in parsed.elements] == [
        "ContractSignatureCertChain",
        "ContractSignatureEncryptedPrivateKey",
        "DHpublickey",
        "eMAID",
    ]
    assert len(references) == 4
    for reference in references:
        assert digests[reference.URI or ""] == reference.DigestValue
    _verify(parsed, message.Body.SAProvisioningCertificateChain.Certificate)


def test_digest_and_signature_of_the_predecessor_protocols_request_hold() -> None:
    parsed = parse(shared_vector("installation_req_iso2_opcp_example.b64"))
    message = parsed.message
    assert isinstance(message, iso2.V2G_Message)
    assert isinstance(message.Body, iso2.CertificateInstallationReq)
    assert message.Header.Signature is not None
    (reference,) = message.Header.Signature.SignedInfo.Reference
    assert _digests(parsed) == {reference.URI: reference.DigestValue}
    _verify(parsed, message.Body.OEMProvisioningCert)


def test_fragment_of_two_forms_of_an_emaid_differs_and_the_cut_is_the_typed_one() -> None:
    parsed = parse(EXAMPLE)
    emaid = parsed.message.Body.eMAID  # type: ignore[union-attr]
    cut = fragment(parsed, parsed.elements[3])
    assert cut == emaid_fragment(emaid, "typed")
    assert cut != emaid_fragment(emaid) == encode_fragment("eMAID", emaid, ISO2)
    with pytest.raises(EXIError):
        emaid_fragment(emaid, "other")


def test_emaid_in_relaxed_form_is_as_the_specification_derives_it() -> None:
    """Bit by bit: header, code, @Id 4 of 9 bits, text 256 of 9 bits, end 244 of 8 bits, end of the fragment."""
    bits = "10000000" + "11101100" + "000000100" + "00000011" + "01001001" + "100000000" + "00000011" + "01011000"
    bits += "11110100" + "11110100"
    bits += "0" * (-len(bits) % 8)
    assert emaid_fragment(iso2.EMAID("I", "X")) == int(bits, 2).to_bytes(len(bits) // 8)


@pytest.mark.parametrize("kind", KINDS)
def test_fragments_of_the_values_equal_their_slices(kind: str) -> None:
    for message in messages(kind, 100, seed=11):
        parsed = parse(encode(message))
        namespace = namespace_of(message)
        body = message.Body if isinstance(message, iso2.V2G_Message) else message
        for part in parsed.elements:
            value = getattr(body, part.name, body)
            assert value.Id == part.id
            if part.name == "SAProvisioningCertificateChain":
                with pytest.raises(EXIError, match="no fragment"):
                    fragment(parsed, part)
            elif part.name == "eMAID":
                assert fragment(parsed, part) == emaid_fragment(value, "typed")
            else:
                assert fragment(parsed, part) == encode_fragment(part.name, value, namespace)
        signature = message.Header.Signature
        if signature is None:
            assert parsed.signed_info is None
            with pytest.raises(EXIError, match="not signed"):
                signed_info_fragment(parsed)
        else:
            combined = "iso2" if namespace == ISO2 else "iso20"
            assert signed_info_fragment(parsed) == encode_signed_info(signature.SignedInfo)
            assert signed_info_fragment(parsed, "combined") == encode_signed_info(signature.SignedInfo, combined)


def _fragments() -> list[tuple[str, object, str, bytes]]:
    made: list[tuple[str, object, str, bytes]] = []
    for seed in range(8):
        maker = Maker(seed)
        response = maker.iso2_res().Body
        assert isinstance(response, iso2.CertificateInstallationRes)
        for name in ("ContractSignatureCertChain", "ContractSignatureEncryptedPrivateKey", "DHpublickey", "eMAID"):
            value = getattr(response, name)
            made.append((name, value, "iso2", encode_fragment(name, value, ISO2)))
        request = maker.iso2_req_body()
        name = "CertificateInstallationReq"
        made.append((name, request, "iso2", encode_fragment(name, request, ISO2)))
        name = "OEMProvisioningCertificateChain"
        chain = maker.iso20_oem_chain()
        made.append((name, chain, "iso20", encode_fragment(name, chain, ISO20)))
        name = "SignedInstallationData"
        signed = maker.iso20_signed()
        made.append((name, signed, "iso20", encode_fragment(name, signed, ISO20)))
        info = maker.signed_info()
        made += [("SignedInfo", info, g, encode_signed_info(info, g)) for g in ("xmldsig", "iso2", "iso20")]
    return made


def test_fragments_are_read_back() -> None:
    for name, value, grammar, encoded in _fragments():
        assert decode_fragment(encoded, grammar) == (name, value)


def test_fragments_cut_after_any_octet_and_with_trailing_bytes_are_refused() -> None:
    for _, _, grammar, encoded in min(_fragments()[:10], key=lambda f: len(f[3])), *_fragments()[3:10]:
        for end in range(len(encoded)):
            with pytest.raises(EXIError):
                decode_fragment(encoded[:end], grammar)
        with pytest.raises(EXIError):
            decode_fragment(encoded + b"\1", grammar)


def test_fragments_of_unknown_names_grammars_and_wrong_values_are_refused() -> None:
    info = Maker(1).signed_info()
    for call in (
        lambda: encode_fragment("SalesTariff", None, ISO2),
        lambda: encode_fragment("DHpublickey", None, ISO2),
        lambda: encode_fragment("DHpublickey", iso2.DHpublickey("a", b""), ISO20),
        lambda: encode_fragment("eMAID", ("a", "b"), ISO2),
        lambda: encode_fragment("eMAID", iso2.EMAID("a", None), ISO2),  # type: ignore[arg-type]
        lambda: encode_fragment("eMAID", iso2.EMAID("a", "\ud800"), ISO2),
        lambda: encode_signed_info(info, "other"),
        lambda: encode_signed_info(None),  # type: ignore[arg-type]
        lambda: encode_signed_info(info._replace(Reference=())),
        lambda: decode_fragment(b"\x80", "other"),
        lambda: signed_info_fragment(parse(EXAMPLE), "other"),
        lambda: fragment(parse(EXAMPLE), SignedElement("ID1", "eMAID", 31996, 99999)),
        lambda: fragment(parse(EXAMPLE), SignedElement("ID1", "eMAID", 50, 20)),
    ):
        with pytest.raises(EXIError):
            call()


def test_parse_lists_a_repeated_id_twice() -> None:
    body = RESPONSE.Body._replace(DHpublickey=iso2.DHpublickey("ID1", b"\1"))
    parsed = parse(encode(RESPONSE._replace(Body=body)))
    assert [part.id for part in parsed.elements] == ["ID1", "ID2", "ID1", "ID4"]
    assert [part.start for part in parsed.elements] == sorted(part.start for part in parsed.elements)


# --- splices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_fragment_spliced_with_a_session_id_is_what_encoding_gives(kind: str) -> None:
    rng = random.Random(4)
    for message in messages(kind, 60, seed=21):
        session = rng.randbytes(rng.randint(0, 8))
        encoded = encode(message)
        changed = message._replace(Header=message.Header._replace(SessionID=session))  # type: ignore[arg-type]
        assert replace_header_fields(encoded, session_id=session) == encode(changed)
        assert replace_header_fields(encoded) == encoded


def test_response_stored_with_a_short_session_grows_by_seven_bytes() -> None:
    spliced = replace_header_fields(EXAMPLE, session_id=b"12345678")
    assert len(spliced) == len(EXAMPLE) + 7
    message = decode(spliced)
    assert message.Header.SessionID == b"12345678"
    assert message._replace(Header=decode(EXAMPLE).Header) == decode(EXAMPLE)  # type: ignore[arg-type]
    _verify(parse(spliced), message.Body.SAProvisioningCertificateChain.Certificate)  # type: ignore[union-attr]


def test_fragments_that_can_be_spliced_in_iso20_are_spliced_at_once_or_one_by_one() -> None:
    rng = random.Random(5)
    for message in messages("iso20_res", 60, seed=22):
        assert isinstance(message, iso20.CertificateInstallationRes)
        encoded = encode(message)
        place = parse(encoded).remaining_from_end
        assert place is not None
        session, time, rest = rng.randbytes(rng.randint(0, 8)), rng.getrandbits(rng.randint(1, 64)), rng.randrange(256)
        header = message.Header._replace(SessionID=session, TimeStamp=time)
        expected = encode(message._replace(Header=header, RemainingContractCertificateChains=rest))
        assert (
            replace_header_fields(encoded, session_id=session, timestamp=time, remaining=rest, remaining_from_end=place)
            == expected
        )
        assert replace_header_fields(encoded, session_id=session, timestamp=time, remaining=rest) == expected
        one = replace_header_fields(replace_header_fields(encoded, timestamp=time), session_id=session)
        assert parse(one).remaining_from_end == place
        assert replace_header_fields(one, remaining=rest, remaining_from_end=place) == expected


@pytest.mark.parametrize("zeros", [0, 1, 5])
def test_place_of_the_remaining_chains_counts_trailing_zero_bytes(zeros: int) -> None:
    encoded = encode(Maker(2).iso20_res()) + bytes(zeros)
    place = parse(encoded).remaining_from_end
    spliced = replace_header_fields(encoded, remaining=77, remaining_from_end=place)
    message = decode(spliced)
    assert isinstance(message, iso20.CertificateInstallationRes)
    assert message.RemainingContractCertificateChains == 77


def test_fragment_that_does_not_fit_is_not_spliced() -> None:
    response = encode(Maker(2).iso20_res())
    request = encode(Maker(2).iso20_req())
    for encoded, change in (
        (EXAMPLE, {"session_id": bytes(9)}),
        (EXAMPLE, {"session_id": "00"}),
        (EXAMPLE, {"timestamp": 1}),
        (EXAMPLE, {"remaining": 1}),
        (EXAMPLE, {"remaining": 1, "remaining_from_end": 20}),
        (request, {"remaining": 1}),
        (request, {"remaining": 1, "remaining_from_end": 20}),
        (request, {"timestamp": -1}),
        (request, {"timestamp": 2**64}),
        (request, {"timestamp": True}),
        (response, {"remaining": 256}),
        (response, {"remaining": -1}),
        (response, {"remaining": 1, "remaining_from_end": 7}),
        (response, {"remaining": 1, "remaining_from_end": -7}),
        (response, {"remaining": 1, "remaining_from_end": 8 * len(response) + 1}),
        (b"", {"session_id": b""}),
        (b"\x80\x98", {"session_id": b""}),
        (b"\x80\x1c\x02", {"session_id": b""}),
        (b"\x80\x9a" + bytes(60), {"session_id": b""}),
        (b"\x80\x98\xff" + bytes(60), {"session_id": b""}),
        (b"\x80\x98\x3f\xff" + bytes(60), {"session_id": b""}),
        (b"\x80\x1c\x04\x00\x00\xff" + b"\xff" * 60, {"timestamp": 1}),
    ):
        with pytest.raises(EXIError):
            replace_header_fields(encoded, **change)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        replace_header_fields("80", session_id=b"")  # type: ignore[arg-type]


def test_fragments_of_mutated_bytes_that_are_spliced_raise_nothing_else() -> None:
    rng = random.Random(6)
    for start in (encode(REQUEST), encode(Maker(2).iso20_res()), encode(Maker(2).iso20_req())):
        for _ in range(2000):
            encoded = bytearray(start[: rng.randint(0, 60)])
            for _ in range(rng.randint(0, 3)):
                if encoded:
                    encoded[rng.randrange(len(encoded))] = rng.randrange(256)
            for change in (
                {"session_id": b"12345678"},
                {"timestamp": 2**40},
                {"remaining": 3, "remaining_from_end": 21},
            ):
                try:
                    replace_header_fields(bytes(encoded), **change)  # type: ignore[arg-type]
                except EXIError:
                    continue


def test_fragment_with_an_empty_session_in_the_form_of_exificient_is_refused() -> None:
    """Its four bits are no whole number of bytes; such a message is to be encoded anew."""
    with pytest.raises(EXIError, match="cannot be replaced"):
        replace_header_fields(b"\x80\x98\x40" + bytes(50), session_id=b"12345678")


def test_signature_without_anything_optional_is_the_smallest() -> None:
    reference = xmldsig.Reference(None, None, None, None, xmldsig.DigestMethod(""), b"")
    info = xmldsig.SignedInfo(None, xmldsig.CanonicalizationMethod(""), xmldsig.SignatureMethod(""), (reference,))
    signature = xmldsig.Signature(None, info, xmldsig.SignatureValue(None, b""))
    message = REQUEST._replace(Header=REQUEST.Header._replace(Signature=signature))
    assert decode(encode(message)) == message
