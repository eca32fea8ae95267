"""Certificates that are encoded otherwise than others read them, over HTTP: bits, names, authorities, defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from ccp.exi import ISO2, decode, encode
from ccp.testing.partners import Car, issue_contract, sign_contract
from ccp.testing.pki import PKI, Credential, subject_name
from ccp.x509.certificates import Certificate
from tests.server.http.api.answers import sentences
from tests.world import AT, SESSION, Pool, b64, new_emaid, new_pcid, post_body, put_body
from tests.x509.made import added, content, der, forge, respelled, tlv, unused_bit, without


def put(pool: Pool, signer: PKI, message: Callable[[bytes], bytes] = lambda message: message) -> httpx.Response:
    contract = pool.contract(pool.car(), signer=signer)
    contract.body["certificateInstallationRes"] = b64(message(contract.message))
    return pool.cps.put("/signedcontractdata", json=contract.body)


def with_cps(pki: PKI, certificate: Certificate, sub_cas: tuple[Certificate, ...] | None = None) -> PKI:
    return replace(pki, cps=replace(pki.cps, certificate=certificate, sub_cas=sub_cas or pki.cps.sub_cas))


def sent_instead(old: Certificate, new: bytes) -> Callable[[bytes], bytes]:
    """Exchange a certificate of the provisioning service's chain in a message; -2 does not sign that chain."""

    def change(message: bytes) -> bytes:
        read = decode(message)
        chain = read.Body.SAProvisioningCertificateChain
        subs = tuple(new if sub == old.der else sub for sub in chain.SubCertificates)
        leaf = new if chain.Certificate == old.der else chain.Certificate
        chain = chain._replace(Certificate=leaf, SubCertificates=subs)
        return encode(read._replace(Body=read.Body._replace(SAProvisioningCertificateChain=chain)))

    return change


# --- Unused bits ---


def test_sub_ca_whose_signature_claims_an_unused_bit_is_refused(pool: Pool) -> None:
    pki = pool.pki()
    sub2 = pki.cps.sub_cas[0]
    changed = unused_bit(sub2, pki.cps_sub1.key)
    answer = put(pool, pki, sent_instead(sub2, changed))
    assert answer.status_code == 400, answer.text
    assert 'The signature or public key of certificate \\"CPS Sub2 CA SIM\\" claims unused bits.' in answer.text


def test_provisioning_service_whose_signature_claims_an_unused_bit_is_refused(pool: Pool) -> None:
    pki = pool.pki()
    answer = put(pool, pki, sent_instead(pki.cps.certificate, unused_bit(pki.cps.certificate, pki.cps_sub2.key)))
    assert answer.status_code == 400, answer.text
    assert "claims unused bits" in answer.text


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_contract_whose_key_is_no_point_on_its_curve_is_refused(pool: Pool, edition: str) -> None:
    """Nothing here uses that key, and OpenSSL does not read it."""
    pki, car, emaid = pool.pki(edition), pool.car(edition), new_emaid()
    bundle = issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, AT)
    point = bundle.contract.certificate.x509.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

    def edit(tbs: Any) -> None:
        info = bytes(tbs.subject_public_key_info.data)
        tbs.subject_public_key_info = tlv(0x30, info.replace(point, point[:-1] + bytes((point[-1] ^ 1,))))

    forged = forge(bundle.contract.certificate, pki.emsp_sub2.key, edit)
    message = sign_contract(pki, replace(bundle, contract=replace(bundle.contract, certificate=forged)), AT)
    answer = pool.cps.put("/signedcontractdata", json=put_body(message, emaid, car.pcid, str(car.namespace)))
    assert sentences(answer, 400) == [f'The public key of certificate "{emaid}" cannot be read.']
    assert pool.stored(emaid) == 0


# --- Which certificate of its issuer ---


def authority(named: Certificate) -> bytes:
    number = named.serial_number.to_bytes(named.serial_number.bit_length() // 8 + 1, "big")
    return der(0x30, der(0xA1, der(0xA4, der(0x30, named.issuer_name))) + der(0x82, number))


def test_sub_ca_renewed_with_the_same_key_is_not_the_one_that_is_named(pool: Pool) -> None:
    pki = pool.pki()
    old, sub1 = pki.cps.sub_cas
    renewed = forge(old, pki.cps_sub1.key, lambda tbs: setattr(tbs, "serial_number", old.serial_number + 1))

    def edit(tbs: Any) -> None:
        without(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
        added(tbs, ExtensionOID.AUTHORITY_KEY_IDENTIFIER, authority(old))

    leaf = forge(pki.cps.certificate, pki.cps_sub2.key, edit)
    answer = put(pool, with_cps(pki, leaf, (renewed, sub1)))
    assert answer.status_code == 400, answer.text
    assert "names a certificate of its issuer with another serial number than" in answer.text
    assert put(pool, with_cps(pki, leaf)).status_code == 201
    assert put(pool, with_cps(pki, leaf, (renewed, old, sub1))).status_code == 201


# --- Names by value ---


def reissued(credential: Credential, signer: Credential, edit: Callable[[Any], None]) -> Credential:
    return replace(credential, certificate=forge(credential.certificate, signer.key, edit))


def in_other_letters(issuer: Credential) -> Callable[[Any], None]:
    return lambda tbs: setattr(tbs, "issuer", tlv(0x30, respelled(issuer.certificate.subject_name)))


def test_provisioning_service_whose_issuer_is_written_otherwise_publishes(pool: Pool) -> None:
    pki = pool.pki()
    answer = put(pool, replace(pki, cps=reissued(pki.cps, pki.cps_sub2, in_other_letters(pki.cps_sub2))))
    assert answer.status_code == 201, answer.text


def test_cars_of_a_ca_that_changed_its_string_type_get_their_contracts(pool: Pool) -> None:
    """The pool knows the sub-CA in one spelling, and the cars' certificates name it in another."""
    pki, pcid = pool.pki(), new_pcid()
    provisioning = reissued(pki.vehicle(pcid, now=AT), pki.oem_sub2, in_other_letters(pki.oem_sub2))
    car = Car.from_credential(pki, provisioning, pcid)
    contract = pool.publish(car)
    assert pool.ask(car)[0]["emaid"] == contract.emaid


def test_issuer_that_is_another_by_value_is_refused(pool: Pool) -> None:
    pki = pool.pki()
    other = subject_name("CPS Sub 2 CA SIM").public_bytes()[2:]
    leaf = forge(pki.cps.certificate, pki.cps_sub2.key, lambda tbs: setattr(tbs, "issuer", tlv(0x30, other)))
    answer = put(pool, with_cps(pki, leaf))
    assert answer.status_code == 400
    assert "is neither trusted, known nor sent" in answer.text


@pytest.mark.parametrize("tag", [0x02, 0x03, 0x04, 0x30], ids=["INTEGER", "BIT STRING", "OCTET STRING", "SEQUENCE"])
@pytest.mark.parametrize("field", ["issuer", "subject"])
def test_name_with_a_strange_value_is_an_error_of_ours(pool: Pool, tag: int, field: str) -> None:
    pki = pool.pki()
    value = der(tag, der(0x0C, b"x") if tag == 0x30 else b"\0CPS")
    odd = der(0x31, der(0x30, bytes.fromhex("0603550403") + value))

    def edit(tbs: Any) -> None:
        setattr(tbs, field, tlv(0x30, content(getattr(tbs, field)) + odd))

    leaf = forge(pki.cps.certificate, pki.cps_sub2.key, edit)
    answer = put(pool, with_cps(pki, leaf))
    assert answer.status_code == 400, answer.text
    if field == "subject" or tag in (0x02, 0x04):
        assert f"The {field} of certificate" in answer.text
        assert "cannot be read." in answer.text
    else:  # A name that can be compared, and is another.
        assert "is neither trusted, known nor sent" in answer.text


# --- What `cryptography` has no ValueError for ---


@pytest.mark.parametrize("what", ["contract", "provisioning service", "vehicle"])
def test_extension_that_raises_a_key_error_is_unreadable(pool: Pool, what: str) -> None:
    """A TLS feature that the library has no name for: it looks it up in a table without asking whether it is there."""
    pki, feature = pool.pki(), bytes.fromhex("3003020107")

    def edit(tbs: Any) -> None:
        added(tbs, ExtensionOID.TLS_FEATURE, feature)

    if what == "vehicle":
        pcid = new_pcid()
        provisioning = reissued(pki.vehicle(pcid, now=AT), pki.oem_sub2, edit)
        answer = pool.post(Car.from_credential(pki, provisioning, pcid))
        assert answer.status_code == 200, answer.text
        (item,) = answer.json()["signedContractDataCollection"]
        assert "The extensions of certificate" in item["metaData"]
        return
    if what == "provisioning service":
        answer = put(pool, with_cps(pki, forge(pki.cps.certificate, pki.cps_sub2.key, edit)))
    else:
        car, emaid = pool.car(), new_emaid()
        bundle = issue_contract(pki, emaid, car.pcid, car.provisioning.certificate, AT)
        bundle = replace(bundle, contract=reissued(bundle.contract, pki.emsp_sub2, edit))
        body = put_body(sign_contract(pki, bundle, AT), emaid, car.pcid, str(car.namespace))
        answer = pool.cps.put("/signedcontractdata", json=body)
        dry = pool.cps.put("/signedcontractdata?dryRun=true", json=body)
        assert dry.status_code == 200
        assert not dry.json()["passed"]
    assert answer.status_code == 400, answer.text
    assert "The extensions of certificate" in answer.text
    assert "cannot be read." in answer.text


# --- What the sentence says ---


def test_extension_with_an_explicit_critical_false_is_named(pool: Pool) -> None:
    pki = pool.pki()
    sub2 = pki.cps.sub_cas[0]
    plain, explicit = bytes.fromhex("0603551d0e04"), bytes.fromhex("0603551d0e01010004")
    members = [sub2.der[at : at + 4] for at in (0, 4)]
    assert all(header[:2] == b"\x30\x82" for header in members)
    grown = sub2.der.replace(plain, explicit)
    grown = _grown(grown, 0, 3)
    grown = _grown(grown, 4, 3)
    at = grown.index(explicit)
    one = at - 2
    three = grown.rindex(b"\xa3", 0, one)
    for place in (one, *((three + 2, three) if grown[three + 1] == 0x81 or grown[three + 1] < 0x80 else (three,))):
        grown = _grown_short(grown, place, 3)
    answer = put(pool, pki, sent_instead(sub2, grown))
    assert answer.status_code == 400
    assert "bytes are not DER: critical is FALSE explicitly." in answer.text


def _grown(raw: bytes, at: int, by: int) -> bytes:
    length = int.from_bytes(raw[at + 2 : at + 4], "big") + by
    return raw[: at + 2] + length.to_bytes(2, "big") + raw[at + 4 :]


def _grown_short(raw: bytes, at: int, by: int) -> bytes:
    place = at + 2 if raw[at + 1] == 0x81 else at + 1
    return raw[:place] + bytes((raw[place] + by,)) + raw[place + 1 :]


def test_root_list_beyond_the_limit_is_named(pool: Pool) -> None:
    """The encoder writes the 21st root by the code that ends the list, as one that counts no items does."""
    car = pool.car()
    request = decode(car.request(SESSION, AT))
    root = request.Body.ListOfRootCertificateIDs[0]

    def bits(count: int) -> str:
        body = request.Body._replace(ListOfRootCertificateIDs=(root,) * count)
        return "".join(f"{byte:08b}" for byte in encode(request._replace(Body=body)))

    eighteen, nineteen, twenty = bits(18), bits(19), bits(20)
    first = next(at for at, (one, other) in enumerate(zip(eighteen, nineteen, strict=False)) if one != other)
    second = next(at for at, (one, other) in enumerate(zip(nineteen, twenty, strict=False)) if one != other)
    end = 2 * second - first - 1
    stream = twenty[:end] + "00" + nineteen[first + 1 : second - 1] + twenty[end:]
    raw = int(stream.ljust(-(-len(stream) // 8) * 8, "0"), 2).to_bytes(-(-len(stream) // 8), "big")
    answer = pool.cpo.post("/signedcontractdata", json=post_body(raw, ISO2))
    assert answer.status_code == 400
    assert "EXI format is invalid!" in answer.text
    assert "More than 20 RootCertificateID" in answer.text
