"""Documents: round trips, both forms of list ends and of empty values, limits, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ccp.exi import ISO2, ISO20, EXIError, decode, encode, iso2, iso20, namespace_of, parse, xmldsig
from ccp.exi import bits as limits
from tests.exi.messages import KINDS, Maker, messages
from tests.exi.samples import CHAIN, EXAMPLE, REQUEST, RESPONSE, Stream, shared_vector


def test_codec_round_trips_the_published_response() -> None:
    message = decode(EXAMPLE)
    assert isinstance(message, iso2.V2G_Message)
    assert isinstance(message.Body, iso2.CertificateInstallationRes)
    assert message.Header.SessionID == b"\0"
    assert message.Body.eMAID.value == "DEICECOPNCCERT"
    assert encode(message) == EXAMPLE


def test_opcp_request_round_trips() -> None:
    encoded = shared_vector("installation_req_iso2_opcp_example.b64")
    message = decode(encoded)
    assert isinstance(message, iso2.V2G_Message)
    assert message.Header.SessionID.hex().upper() == "69FC09895168C8B2"
    assert encode(message) == encoded


def test_opcp_negative_response_round_trips() -> None:
    encoded = shared_vector("installation_res_iso2_opcp_negative.b64")
    message = decode(encoded)
    assert isinstance(message, iso2.V2G_Message)
    assert isinstance(message.Body, iso2.CertificateInstallationRes)
    assert message.Body.ResponseCode == "FAILED_NoCertificateAvailable"
    assert message.Header.Notification == iso2.Notification("UnknownError", "CPO certInstall status")
    assert encode(message) == encoded


@pytest.mark.parametrize("kind", KINDS)
def test_codec_round_trips_random_messages(kind: str) -> None:
    for message in messages(kind, 300):
        encoded = encode(message)
        assert decode(encoded) == message
        assert parse(encoded).message == message
        assert namespace_of(message) == (ISO2 if kind.startswith("iso2_") else ISO20)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**64), kind=st.sampled_from(KINDS))
def test_codec_round_trips_any_message(seed: int, kind: str) -> None:
    message = getattr(Maker(seed), kind)()
    assert decode(encode(message)) == message


@given(name=st.text(max_size=200), serial=st.integers(-(2**320), 2**320 - 1), session=st.binary(max_size=8))
def test_codec_round_trips_or_refuses_any_name_serial_and_session(name: str, serial: int, session: bytes) -> None:
    body = REQUEST.Body._replace(ListOfRootCertificateIDs=(iso2.X509IssuerSerial(name, serial),))
    message = iso2.V2G_Message(iso2.Header(session), body)
    if any((ord(c) < 32 and c not in "\t\n\r") or c in "\ufffe\uffff" for c in name) or serial == -(2**320):
        if serial == -(2**320):
            assert decode(encode(message._replace(Body=REQUEST.Body))) == message._replace(Body=REQUEST.Body)
            return
        with pytest.raises(EXIError):
            encode(message)
    else:
        assert decode(encode(message)) == message


@given(st.binary(max_size=300))
def test_codec_gives_a_message_or_an_error_for_any_bytes(encoded: bytes) -> None:
    for prefix in (b"", b"\x80", b"\x80\x98", b"\x80\x98\x02", b"\x80\x1c", b"\x80\x20"):
        try:
            message = decode(prefix + encoded)
        except EXIError as error:
            offset = error.offset
        else:
            offset = 0
            assert isinstance(
                message, iso2.V2G_Message | iso20.CertificateInstallationReq | iso20.CertificateInstallationRes
            )
        assert offset is not None
        assert 0 <= offset <= 8 * len(prefix + encoded)


def _cases() -> list[Any]:
    cases = [("example", EXAMPLE), ("response", encode(RESPONSE)), ("request", encode(REQUEST))]
    cases += [(f"{kind}-{n}", encode(m)) for kind in KINDS for n, m in enumerate(messages(kind, 3, seed=7))]
    return [pytest.param(encoded, id=name) for name, encoded in cases]


@pytest.mark.parametrize("encoded", _cases())
def test_message_cut_after_any_octet_is_refused(encoded: bytes) -> None:
    for end in range(len(encoded)):
        with pytest.raises(EXIError) as caught:
            decode(encoded[:end])
        assert caught.value.offset is not None
        assert caught.value.offset <= 8 * end


@pytest.mark.parametrize("encoded", _cases())
def test_decode_refuses_bytes_after_the_end_unless_all_zero(encoded: bytes) -> None:
    for garbage in (b"\1", b"\0\1", b"\x80", bytes(100) + b"\1"):
        with pytest.raises(EXIError, match="after the end"):
            decode(encoded + garbage)
    assert decode(encoded + bytes(3)) == decode(encoded)


def test_codec_refuses_padding_bits_that_are_not_zero() -> None:
    for message in messages("iso2_req", 30):
        encoded = encode(message)
        # Where there is no padding it is the end of the message that is changed, which does not pass either.
        with pytest.raises(EXIError):
            decode(encoded[:-1] + bytes((encoded[-1] | 1,)))


@pytest.mark.parametrize("start", [b"", b"\0", b"$EXI", b"\x81", b"\xa0", b"<?xml"])
def test_codec_refuses_other_streams_at_their_first_octet(start: bytes) -> None:
    with pytest.raises(EXIError, match="not an EXI stream") as caught:
        decode(start + b"\x98\x02")
    assert caught.value.offset == 0


def test_codec_refuses_other_messages() -> None:
    with pytest.raises(EXIError) as caught:
        decode(b"\x80\x9a" + bytes(30))
    assert caught.value.offset == 8
    # PreChargeReq or whatever: any other body.
    for code in (0, 1, 2, 4, 7, 8, 34, 35, 36, 63):
        encoded = Stream(encode(RESPONSE), 8 + 7 + 1 + 2 + 16 + 1 + 2).add("0", (code, 6), bytes(20)).encoded()
        with pytest.raises(EXIError) as caught:
            decode(encoded)
        assert caught.value.path == "V2G_Message/Body"


def test_codec_asks_for_bytes() -> None:
    for value in ("80", bytearray(b"\x80"), memoryview(b"\x80"), None, 1):
        with pytest.raises(TypeError):
            decode(value)  # type: ignore[arg-type]


def test_codec_reads_an_endless_list_end_and_writes_the_conformant_one() -> None:
    """A made-up request with the full list of 20 roots, ended with the two bits that endless-loop encoders write."""
    roots = tuple(iso2.X509IssuerSerial(f"CN={n}", n) for n in range(20))
    message = REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=roots))
    encoded = encode(message)
    # Behind the last serial: its end, the end of the pair, then the end of the list, of the request, body and message.
    end = parse(encoded).elements[0].end
    assert Stream(encoded, end + 2).bits[-6:] == "000000"
    other = Stream(encoded, end - 2).add("01", "0", "00").encoded()
    assert decode(other) == message
    assert encode(decode(other)) == encoded


def test_codec_reads_an_endless_end_of_every_other_full_list() -> None:
    subs = iso2.CertificateChain("ID1", b"leaf", (b"1", b"2", b"3", b"4"))
    message = RESPONSE._replace(Body=RESPONSE.Body._replace(ContractSignatureCertChain=subs))
    encoded = encode(message)
    part = next(p for p in parse(encoded).elements if p.name == "ContractSignatureCertChain")
    rest = Stream(encoded, 8 * len(encoded)).bits[part.end :]
    assert decode(Stream(encoded, part.end - 2).add("01", "0", rest).encoded()) == message

    maker = Maker(5)
    request = maker.iso20_req()._replace(PrioritizedEMAIDs=tuple("ABCDEFGH"))
    encoded = encode(request)
    # The request ends with the end of the last EMAID, of the list, of the request; find where by the padding.
    for pad in range(8):
        stream = Stream(encoded, 8 * len(encoded) - pad)
        if decode(stream.encoded()) == request:
            try:
                assert decode(Stream(encoded, len(stream.bits) - 2).add("01", "0").encoded()) == request
                break
            except EXIError:
                continue
    else:
        pytest.fail("no place for the end of the list")

    chain = iso20.OEMProvisioningCertificateChain("ID1", b"leaf", (b"1", b"2", b"3"))
    request = request._replace(OEMProvisioningCertificateChain=chain)
    encoded = encode(request)
    part = parse(encoded).elements[0]
    rest = Stream(encoded, 8 * len(encoded)).bits[part.end :]
    assert decode(Stream(encoded, part.end - 2).add("01", "0", rest).encoded()) == request


def test_codec_refuses_one_item_too_many_in_every_list() -> None:
    roots = tuple(iso2.X509IssuerSerial("x", n) for n in range(21))
    for message in (
        REQUEST._replace(Body=REQUEST.Body._replace(ListOfRootCertificateIDs=roots)),
        RESPONSE._replace(
            Body=RESPONSE.Body._replace(ContractSignatureCertChain=CHAIN._replace(SubCertificates=(b"",) * 5))
        ),
        Maker(1).iso20_req()._replace(PrioritizedEMAIDs=("x",) * 9),
        Maker(1).iso20_req()._replace(ListOfRootCertificateIDs=roots),
    ):
        with pytest.raises(EXIError, match="at most"):
            encode(message)


@pytest.mark.parametrize("message", [REQUEST, Maker(1).iso20_req()], ids=["-2", "-20"])
def test_root_list_beyond_the_schema_is_named(message: Any) -> None:
    """However an encoder goes on where the list is full: by the way out, or by the code that is that of the end.

    In -20 the latter is read as what follows the list, so there its sentence is about that.
    """
    root = iso2.X509IssuerSerial("CN=Root", 1)

    def written(count: int) -> str:
        roots = (root,) * count
        if isinstance(message, iso2.V2G_Message):
            return bits(message._replace(Body=message.Body._replace(ListOfRootCertificateIDs=roots)))
        return bits(message._replace(ListOfRootCertificateIDs=roots))

    def bits(value: Any) -> str:
        return "".join(f"{byte:08b}" for byte in encode(value))

    eighteen, nineteen, twenty = written(18), written(19), written(20)
    first = next(at for at, (one, other) in enumerate(zip(eighteen, nineteen, strict=False)) if one != other)
    second = next(at for at, (one, other) in enumerate(zip(nineteen, twenty, strict=False)) if one != other)
    item, end = nineteen[first + 1 : second - 1], 2 * second - first - 1
    for code in ("10", "00")[: 1 + isinstance(message, iso2.V2G_Message)]:
        stream = twenty[:end] + code + item + twenty[end:]
        encoded = int(stream.ljust(-(-len(stream) // 8) * 8, "0"), 2).to_bytes(-(-len(stream) // 8), "big")
        with pytest.raises(EXIError, match="more than 20 RootCertificateID"):
            decode(encoded)
    with pytest.raises(EXIError, match="more than 20 RootCertificateID"):
        written(21)


def _signed(references: tuple[xmldsig.Reference, ...]) -> iso2.V2G_Message:
    info = xmldsig.SignedInfo(None, xmldsig.CanonicalizationMethod("c"), xmldsig.SignatureMethod("s"), references)
    signature = xmldsig.Signature(None, info, xmldsig.SignatureValue(None, b"v"))
    return REQUEST._replace(Header=REQUEST.Header._replace(Signature=signature))


def test_codec_bounds_lists_that_the_schema_leaves_open_when_reading() -> None:
    digest = xmldsig.DigestMethod("d")
    reference = xmldsig.Reference(None, None, None, None, digest, b"")
    message = _signed((reference,) * limits.MAX_REFERENCES)
    encoded = encode(message)
    assert decode(encoded) == message
    info = parse(encoded).signed_info
    assert info is not None
    # In place of the end of SignedInfo (code 1 of two bits) another reference (code 0).
    with pytest.raises(EXIError, match="more than 8 Reference") as caught:
        decode(Stream(encoded, info.end - 2).add("00", bytes(100)).encoded())
    assert caught.value.path == "V2G_Message/Header/Signature/SignedInfo"
    assert caught.value.offset == info.end - 2

    transform = xmldsig.Transform("t", ("x",) * limits.MAX_XPATHS)
    message = _signed((reference._replace(Transforms=(transform,) * limits.MAX_TRANSFORMS),))
    assert decode(encode(message)) == message
    with pytest.raises(EXIError, match="at most 2 items"):
        encode(_signed((reference._replace(Transforms=(transform,) * 3),)))


def test_codec_reads_an_empty_value_in_the_form_of_exificient() -> None:
    """<Certificate/> and others written as the way out (one) and the end of the element (three zero bits)."""
    encoded = encode(RESPONSE)
    for name, filled, empty in (
        ("ContractSignatureEncryptedPrivateKey", RESPONSE.Body.ContractSignatureEncryptedPrivateKey, b""),
        ("DHpublickey", RESPONSE.Body.DHpublickey, b""),
        ("eMAID", RESPONSE.Body.eMAID, ""),
    ):
        part = next(p for p in parse(encoded).elements if p.name == name)
        rest = Stream(encoded, 8 * len(encoded)).bits[part.end :]
        identifier = Stream(encoded, part.start + 1 + 8 + 8 * 3).bits[part.start :]
        other = Stream(encoded, part.start).add(identifier, "1000", rest).encoded()
        expected = RESPONSE._replace(Body=RESPONSE.Body._replace(**{name: filled._replace(value=empty)}))
        assert decode(other) == expected
        # What is written is the typed form, which both read.
        assert decode(encode(expected)) == expected
        assert encode(decode(other)) == encode(expected) != other
    # SessionID: start, way out, end; then Body follows.
    session = Stream(encoded, 17).add("1000", Stream(encoded, 8 * len(encoded)).bits[18 + 16 + 1 - 1 :][1:]).encoded()
    assert decode(session) == RESPONSE._replace(Header=iso2.Header(b""))


def test_codec_refuses_an_empty_number() -> None:
    encoded = encode(Maker(1).iso20_req())
    end = 17 + 8 + 8 * session_id_length(encoded) + 2
    with pytest.raises(EXIError, match="an empty value") as caught:
        decode(Stream(encoded, end).add("1000", bytes(9)).encoded())
    assert caught.value.path == "CertificateInstallationReq/Header/TimeStamp"


def session_id_length(encoded: bytes) -> int:
    return len(decode(encoded).Header.SessionID)


@pytest.mark.parametrize("bits", ["1001", "1010", "1100", "1111"])
def test_codec_refuses_content_that_is_not_as_in_the_schema_by_name(bits: str) -> None:
    """One production system writes xsi:type and untyped children, as if it had no schema."""
    encoded = Stream(encode(RESPONSE), 17).add(bits, bytes(40)).encoded()
    with pytest.raises(EXIError, match="xsi:type") as caught:
        decode(encoded)
    assert caught.value.path == "V2G_Message/Header/SessionID"


def test_key_info_and_foreign_elements_are_refused_by_name() -> None:
    encoded = encode(_signed((xmldsig.Reference(None, None, None, None, xmldsig.DigestMethod("d"), b""),)))
    info = parse(encoded).signed_info
    assert info is not None
    # SignatureValue: start 1 bit, text 2 bits, one byte of length, one of value, end; then KeyInfo 0, Object 1.
    end = info.end + 1 + 2 + 16 + 1
    for code, name in ((0, "KeyInfo"), (1, "Object")):
        with pytest.raises(EXIError, match=f"{name} is not supported"):
            decode(Stream(encoded, end).add((code, 2), bytes(20)).encoded())
    # CanonicalizationMethod "c": start 2 bits, attribute 1, length and letter; then a foreign element 0, text 2.
    for code, name in ((0, "a foreign element"), (2, "text between elements")):
        with pytest.raises(EXIError, match=f"{name} is not supported"):
            decode(Stream(encoded, info.start + 2 + 1 + 16).add((code, 2), bytes(20)).encoded())


def test_codec_refuses_a_string_table_reference() -> None:
    encoded = encode(REQUEST)
    start = parse(encoded).elements[0].start
    for hit in (0, 1):
        with pytest.raises(EXIError, match="string table"):
            decode(Stream(encoded, start + 1).add((hit, 8), bytes(90)).encoded())


@pytest.mark.parametrize(
    "character",
    [
        b"\x80\xb0\x03",  # U+D800
        b"\xff\xbf\x03",  # U+DFFF
        b"\x80\x80\x44",  # U+110000
        b"\x80\x80\x80\x01",  # four groups
        b"\x00",  # not in XML
        b"\x1f",
        b"\xfe\xff\x03",  # U+FFFE
    ],
)
def test_codec_refuses_characters_that_xml_does_not_have(character: bytes) -> None:
    encoded = encode(REQUEST)
    start = parse(encoded).elements[0].start
    with pytest.raises(EXIError, match="character") as caught:
        decode(Stream(encoded, start + 1).add((3, 8), character, bytes(90)).encoded())
    assert caught.value.path == "V2G_Message/Body/CertificateInstallationReq"
    assert caught.value.offset == start + 1


def test_code_point_with_needless_groups_is_read() -> None:
    encoded = encode(REQUEST)
    part = parse(encoded).elements[0]
    rest = Stream(encoded, 8 * len(encoded)).bits[part.start + 1 + 8 + 24 :]
    message = decode(Stream(encoded, part.start + 1).add((5, 8), b"I\xc4\x80\x001", rest).encoded())
    assert message == REQUEST._replace(Body=REQUEST.Body._replace(Id="ID1"))


def test_values_beyond_the_reading_limits_are_refused() -> None:
    encoded = encode(REQUEST)
    start = parse(encoded).elements[0].start + 1
    with pytest.raises(EXIError, match="1025 characters"):
        decode(Stream(encoded, start).add(b"\x83\x08", b"x" * 1025, bytes(50)).encoded())
    certificate = start + 8 + 24 + 2
    with pytest.raises(EXIError, match="801 bytes") as caught:
        decode(Stream(encoded, certificate).add(b"\xa1\x06", bytes(900)).encoded())
    assert caught.value.path.endswith("CertificateInstallationReq/OEMProvisioningCert")
    with pytest.raises(EXIError, match="more than 10 bytes"):
        decode(Stream(encoded, certificate).add(b"\xff" * 3000).encoded())
    with pytest.raises(EXIError, match="at most 65536"):
        decode(encoded + bytes(65536))
    serial = Stream(encoded, parse(encoded).elements[0].end - 2 - 2 - 1 - 16 - 1)
    with pytest.raises(EXIError, match="an integer of more than"):
        decode(serial.add("0", b"\xff" * 60, bytes(9)).encoded())


def test_codec_raises_nothing_else_for_random_changes_of_a_message() -> None:
    """Every slot of random messages is replaced by things of other types and sizes."""
    junk = (None, "", "x" * 2000, b"", bytes(2000), -1, 10**500, 1.5, (), [], {}, (None,), ("x",), object(), True)

    def changed(value: Any) -> list[Any]:
        made = list(junk)
        if isinstance(value, tuple):
            for index, item in enumerate(value):
                for other in changed(item):
                    items = [*value[:index], other, *value[index + 1 :]]
                    made.append(tuple.__new__(type(value), items))
        return made

    for kind in KINDS:
        for other in changed(min(messages(kind, 8, seed=3), key=lambda m: len(repr(m)))):
            try:
                encoded = encode(other)
            except EXIError:
                continue
            assert isinstance(encoded, bytes)
