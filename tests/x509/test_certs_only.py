"""PKCS#7 messages of certificates only: both encodings, and every damage."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from ccp.errors import ChainError
from ccp.testing.pki import PKI
from ccp.x509.certificates import Certificate
from ccp.x509.certs_only import MAX_CERTIFICATES, encode_certs_only, read_certs_only

SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
DATA = bytes.fromhex("06092a864886f70d010701")


@pytest.fixture(scope="module")
def certificates(pkis: dict[str, PKI]) -> tuple[Certificate, ...]:
    return pkis["iso2"].v2g_root.certificate, pkis["iso2"].oem_root.certificate


def der(*found: Certificate) -> bytes:
    return pkcs7.serialize_certificates([x509.load_der_x509_certificate(one.der) for one in found], Encoding.DER)


def ber(*found: Certificate) -> bytes:
    """With indefinite lengths, as several CMS libraries write it."""
    body = b"".join(one.der for one in found)
    content = b"\x30\x80" + DATA + b"\0\0"
    signed = b"\x02\x01\x01\x31\x00" + content + b"\xa0\x80" + body + b"\0\0" + b"\x31\x80\0\0"
    return b"\x30\x80" + SIGNED_DATA + b"\xa0\x80\x30\x80" + signed + b"\0\0" * 3


def test_certs_only_is_read_in_both_encodings(certificates: tuple[Certificate, ...]) -> None:
    assert set(read_certs_only(der(*certificates))) == set(certificates)
    assert read_certs_only(ber(*certificates)) == certificates


def test_certs_only_is_written_as_others_write_it(certificates: tuple[Certificate, ...]) -> None:
    assert encode_certs_only(certificates[:1]) == der(certificates[0])
    assert read_certs_only(encode_certs_only(certificates[::-1])) == certificates[::-1]


@pytest.mark.parametrize("encode", [der, ber])
def test_certs_only_that_is_cut_off_or_continued_is_refused(certificates: tuple[Certificate, ...], encode) -> None:  # type: ignore[no-untyped-def]
    message = encode(*certificates)
    for length in range(len(message)):
        with pytest.raises(ChainError):
            read_certs_only(message[:length])
    with pytest.raises(ChainError):
        read_certs_only(message + b"\x05\x00")


@pytest.mark.parametrize("encode", [der, ber])
def test_certs_only_with_any_byte_changed_is_read_or_refused(certificates: tuple[Certificate, ...], encode) -> None:  # type: ignore[no-untyped-def]
    message = encode(certificates[0])
    for place in range(len(message)):
        for change in (0x01, 0x80, 0xFF):
            damaged = message[:place] + bytes([message[place] ^ change]) + message[place + 1 :]
            try:
                found = read_certs_only(damaged)
            except ChainError:
                continue
            assert len(found) == 1


def test_certs_only_nested_too_deep_or_with_too_many_is_refused(certificates: tuple[Certificate, ...]) -> None:
    for hostile in (b"\x30\x80" * 60_000, b"\xa0\x80" * 60_000, b"\x30\x84\xff\xff\xff\xff", b"\x1f" * 100):
        with pytest.raises(ChainError):
            read_certs_only(hostile)
    with pytest.raises(ChainError, match=f"more than {MAX_CERTIFICATES}"):
        read_certs_only(ber(*certificates[:1] * (MAX_CERTIFICATES + 1)))
