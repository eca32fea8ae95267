"""A vehicle's request: what verifies, every reason of refusal, and the roots that it lists."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ccp import exi, verify
from ccp.errors import (
    ChainError,
    ExpiredError,
    RevokedError,
    SignatureError,
)
from ccp.exi import iso2
from ccp.ids import Namespace
from ccp.testing.partners import Car
from ccp.testing.pki import CONTRACT, OEM_PROVISIONING, PKI, Credential
from ccp.verify import InstallationRequest
from ccp.x509.path_validation import TrustAnchors
from ccp.x509.profiles import AnchorRole
from tests.verify.messages import DAY, OTHER_EMAID, SESSION, THE_EMAID, THE_PCID, Revoked, refusal, verify_request
from tests.world import AT


@pytest.mark.parametrize("with_anchors", [True, False])
def test_request_verifies_and_names_the_vehicle(pki: PKI, with_anchors: bool) -> None:
    car = Car.generate(pki, THE_PCID, AT)
    encoded = car.request(SESSION, AT)
    verified = verify_request(encoded, pki, **({} if with_anchors else {"anchors": None}))
    assert verified.pcid == THE_PCID
    assert verified.leaf == car.provisioning.certificate
    assert (verified.chain is not None) == with_anchors
    assert verified.request.session_id == SESSION
    assert verify.claimed_pcid(verified.request) == THE_PCID


def test_pcid_in_lower_case_is_the_same_vehicle(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    car = Car.from_credential(pki, pki.vehicle(THE_PCID.lower(), now=AT), THE_PCID)
    assert verify_request(car.request(SESSION, AT), pki).pcid == THE_PCID


def test_vehicles_wishes_are_read(pkis: dict[str, PKI]) -> None:
    car = Car.generate(pkis["iso20"], THE_PCID, AT)
    wishes = ("de-exa-i00000002", "no emaid", "DEEXAI00000001")
    request = verify.read_request(car.request(SESSION, AT, prioritized_emaids=wishes, max_chains=7), Namespace.ISO20)
    assert (request.prioritized_emaids, request.max_chains) == ((OTHER_EMAID, THE_EMAID), 7)
    assert [root.X509SerialNumber for root in request.root_ids] == [pkis["iso20"].v2g_root.certificate.serial_number]


def car_of(pki: PKI, provisioning: Credential) -> bytes:
    return Car.from_credential(pki, provisioning, THE_PCID).request(SESSION, AT)


@pytest.mark.parametrize("with_anchors", [True, False])
def test_provisioning_certificate_that_expired_is_refused_with_a_chain_or_without(pki: PKI, with_anchors: bool) -> None:
    car = car_of(pki, pki.vehicle(THE_PCID, now=AT, valid=(AT - 2 * DAY, AT - DAY)))
    kind, sentences = refusal(lambda: verify_request(car, pki, anchors=pki.anchors() if with_anchors else None))
    assert kind is ExpiredError
    assert sentences[0].startswith(f'Certificate "{THE_PCID}" ')
    assert "expired" in sentences[0]


@pytest.mark.parametrize("with_anchors", [True, False])
def test_provisioning_certificate_is_valid_to_the_end_of_its_last_second(pki: PKI, with_anchors: bool) -> None:
    car = car_of(pki, pki.vehicle(THE_PCID, now=AT, valid=(AT - 2 * DAY, AT)))
    anchors = pki.anchors() if with_anchors else None
    verify_request(car, pki, anchors=anchors, now=AT + timedelta(microseconds=999_999))
    late = AT + timedelta(seconds=1)
    assert refusal(lambda: verify_request(car, pki, anchors=anchors, now=late))[0] is ExpiredError


@pytest.mark.parametrize("with_anchors", [True, False])
def test_provisioning_certificate_of_the_future_is_refused(pki: PKI, with_anchors: bool) -> None:
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
def test_request_that_another_key_signed_is_refused(pki: PKI, with_anchors: bool) -> None:
    victim, thief = pki.vehicle(THE_PCID, now=AT), pki.vehicle("WEX0INSTALL000002", now=AT)
    encoded = car_of(pki, replace(victim, key=thief.key))
    assert refusal(lambda: verify_request(encoded, pki, anchors=pki.anchors() if with_anchors else None)) == (
        SignatureError, ("The signature value does not match the certificate's key.",),
    )  # fmt: skip


@pytest.mark.parametrize("cn", ["no pcid", "WEX0INSTALL00001", "WEX0INSTALL00000001", "", "WEX0INSTALL-00001"])
def test_common_name_that_is_no_pcid_is_refused(pkis: dict[str, PKI], cn: str) -> None:
    pki = pkis["iso2"]
    encoded = car_of(pki, pki.oem_sub2.issue(cn or "x", OEM_PROVISIONING, now=AT))
    assert refusal(lambda: verify_request(encoded, pki)) == (
        ChainError, ("The provisioning certificate's common name is no PCID.",),
    )  # fmt: skip
    assert verify.claimed_pcid(verify.read_request(encoded, Namespace.ISO2)) is None


def test_provisioning_certificate_that_is_none_is_refused(pkis: dict[str, PKI]) -> None:
    message = exi.decode(Car.generate(pkis["iso2"], THE_PCID, AT).request(SESSION, AT))
    assert isinstance(message, iso2.V2G_Message)
    encoded = exi.encode(message._replace(Body=message.Body._replace(OEMProvisioningCert=b"none")))
    assert refusal(lambda: verify_request(encoded, pkis["iso2"])) == (
        ChainError, ("These 4 bytes are not an X.509 certificate.",),
    )  # fmt: skip
    assert verify.claimed_pcid(verify.read_request(encoded, Namespace.ISO2)) is None


def test_contract_certificate_cannot_ask_for_a_vehicle(pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    encoded = car_of(pki, pki.emsp_sub2.issue(THE_PCID, CONTRACT, now=AT))
    assert refusal(lambda: verify_request(encoded, pki))[0] is ChainError


def test_vehicle_that_is_revoked_is_refused(pki: PKI) -> None:
    encoded = Car.generate(pki, THE_PCID, AT).request(SESSION, AT)
    error = RevokedError("The certificate is revoked.")
    assert refusal(lambda: verify_request(encoded, pki, revocation=Revoked(THE_PCID, error))) == (
        RevokedError, error.messages,
    )  # fmt: skip


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
def test_root_is_recognised_however_its_name_is_written(name: str) -> None:
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
def test_root_id_with_another_name_or_serial_number_is_another_root(name: str, serial: int) -> None:
    assert not lists(name, serial)


def test_root_without_name_is_recognised_by_its_serial_number() -> None:
    assert lists("CN=Anything", dn="")


def test_root_ids_that_are_empty_list_nothing() -> None:
    parsed: Any = None
    request = InstallationRequest(parsed, Namespace.ISO2, SESSION, b"", (), (), (), 1)
    contract: Any = type("Contract", (), {"root_serial": SERIAL, "root_dn": ROOT_DN})()
    assert not request.trusts_root_of(contract)
