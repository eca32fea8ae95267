"""GetSignedContractDataByCertificateInstallationReq: what a car gets, and what it is told when it gets nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from ccp import exi
from ccp.exi import iso2
from ccp.server.storage.queries import anchors
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.partners import Car
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.server.http.api.negatives import EDITIONS, negative
from tests.world import (
    AT,
    ISO20,
    SESSION,
    Pool,
    expired_car,
    new_emaid,
    new_pcid,
    post_body,
    response_bytes,
    start,
)

# --- Contracts that are delivered ------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_car_gets_its_contract_and_can_install_it(pool: Pool, edition: str) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    (item,) = pool.ask(car)
    root = pool.pki(edition).v2g_root.certificate
    assert (item["emaid"], item["pcid"]) == (contract.emaid, car.pcid)
    assert item["xsdMsgDefNamespace"] == str(car.namespace)
    assert item["cpsV2GRootCertificateFingerprint"] == root.fingerprint
    assert item["cpsRootDistinguishedName"] == root.subject_dn
    assert car.install(response_bytes(item), SESSION, datetime.now(UTC))[0] == contract.emaid


@pytest.mark.parametrize("session", [b"", b"\0", b"\1\2\3", b"\xff" * 8])
@pytest.mark.parametrize("edition", EDITIONS)
def test_delivery_has_the_request_session_and_a_valid_signature(pool: Pool, edition: str, session: bytes) -> None:
    car = pool.car(edition)
    contract = pool.publish(car)
    (item,) = pool.ask(car, session)
    car.install(response_bytes(item), session, datetime.now(UTC))
    sent, stored = exi.decode(response_bytes(item)), exi.decode(contract.message)
    if edition == "iso2":
        assert sent == stored._replace(Header=stored.Header._replace(SessionID=session))
    else:
        assert sent.SignedInstallationData == stored.SignedInstallationData
        assert sent.Header.Signature == stored.Header.Signature
        assert abs(sent.Header.TimeStamp - time.time()) < 60


def test_iso2_car_gets_one_item_only_and_it_is_the_default(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    second = pool.publish(car)
    pool.publish(car)
    assert pool.oem.post(f"/signedcontractdata/{second.emaid}/{car.pcid}/setdefault").status_code == 200
    assert [item["emaid"] for item in pool.ask(car)] == [second.emaid]


def test_car_gets_the_variant_under_the_v2g_root_that_it_lists(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    for name in ("iso2", "other_iso2", "iso2"):
        root = pool.pki(name).v2g_root.certificate
        (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial(root.subject_dn, root.serial_number),))
        assert item["cpsV2GRootCertificateFingerprint"] == root.fingerprint


@pytest.mark.parametrize(
    "spelled",
    [
        "CN=V2G Root CA SIM, DC=V2G, O=opnc-ccp simulator, C=DE",
        "CN=V2G Root CA SIM,O=opnc-ccp simulator,C=DE,DC=V2G",
        "C=DE, O=opnc-ccp simulator, CN=V2G Root CA SIM, DC=V2G",
        "CN=V2G Root CA SIM, DC=V2G",
        "CN=V2G Root CA SIM",
    ],
)
def test_name_of_a_listed_root_may_be_spelled_in_several_ways(pool: Pool, spelled: str) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")  # The newest, which a car without a match would get.
    root = pool.pki().v2g_root.certificate
    (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial(spelled, root.serial_number),))
    assert item["cpsV2GRootCertificateFingerprint"] == root.fingerprint


@pytest.mark.parametrize(("name", "more"), [("CN=Another Root", 0), (None, 1)])
def test_root_with_another_name_or_serial_number_is_not_the_listed_one(pool: Pool, name: str | None, more: int) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    root = pool.pki().v2g_root.certificate
    (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial(name or root.subject_dn, root.serial_number + more),))
    newest = pool.pki("other_iso2").v2g_root.certificate
    assert item["cpsV2GRootCertificateFingerprint"] == newest.fingerprint


def test_car_that_lists_no_known_root_gets_the_newest_variant(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car, signer="other_iso2")
    pool.publish(car, contract.emaid)
    (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial("CN=Unknown Root", 1),))
    assert item["cpsV2GRootCertificateFingerprint"] == pool.pki().v2g_root.certificate.fingerprint
    pool.publish(car, contract.emaid, signer="other_iso2")
    (item,) = pool.ask(car, roots=(iso2.X509IssuerSerial("CN=Unknown Root", 1),))
    assert item["cpsV2GRootCertificateFingerprint"] == pool.pki("other_iso2").v2g_root.certificate.fingerprint


def test_delivery_of_a_sole_contract_happens_when_none_is_the_default(pool: Pool) -> None:
    car = pool.car()
    default, other = pool.publish(car), pool.publish(car)
    assert pool.emsp.delete(f"/signedcontractdata/{default.emaid}").status_code == 200
    assert [item["emaid"] for item in pool.ask(car)] == [other.emaid]


@pytest.mark.parametrize("alias", ["urn:iso:15118:20:2022:MsgDef", "urn:iso:std:iso:15118:-20:CommonMessages"])
def test_namespace_alias_is_accepted_and_answered_in_canonical_form(pool: Pool, alias: str) -> None:
    car = pool.car("iso20")
    pool.publish(car)
    answer = pool.cpo.post("/signedcontractdata", json=post_body(car.request(SESSION, AT), alias))
    (item,) = answer.json()["signedContractDataCollection"]
    assert "metaData" not in item
    assert item["xsdMsgDefNamespace"] == ISO20


@pytest.mark.parametrize("value", ["true", "false", "TRUE", "False"])
@pytest.mark.parametrize("name", ["alwaysReturnEXI", "ALWAYSRETURNEXI", "broadcast", "Broadcast"])
def test_headers_change_nothing_about_a_contract_that_is_there(pool: Pool, name: str, value: str) -> None:
    car = pool.car()
    pool.publish(car)
    assert len(pool.ask(car, headers={name: value})) == 1


@pytest.mark.parametrize("value", ["", "1", "0", "yes", "on", "null", "True, False"])
@pytest.mark.parametrize("name", ["alwaysReturnEXI", "broadcast"])
def test_header_that_is_neither_true_nor_false_is_refused(pool: Pool, name: str, value: str) -> None:
    answer = pool.post(pool.car(), headers={name: value})
    assert sentences(answer, 400) == [f"{name} : must be true or false"]


def test_peer_pool_may_ask_like_an_operator(pool: Pool) -> None:
    car = pool.car()
    pool.publish(car)
    assert len(pool.ask(car, caller="peer", headers={"broadcast": "false"})) == 1


@pytest.mark.parametrize("edition", EDITIONS)
def test_delivery_to_a_stranger_has_nothing_even_when_others_are_asked(pool: Pool, edition: str) -> None:
    answer = pool.post(pool.car(edition), headers={"broadcast": "true", "alwaysReturnEXI": "false"})
    sentences(answer, 404)


@pytest.fixture(scope="module")
def rich(pool: Pool) -> tuple[Car, list[str]]:
    """A car with five contracts, the third is its default. The EMAIDs from the oldest to the newest."""
    car = pool.car("iso20")
    providers = ("DEEXA", "NLEXB", "DEEXA", "NLEXB", "DEEXA")
    emaids = [str(pool.publish(car, new_emaid(provider)).emaid) for provider in providers]
    assert pool.oem.post(f"/signedcontractdata/{emaids[2]}/{car.pcid}/setdefault").status_code == 200
    return car, emaids


# --- ISO 15118-20: several contracts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maximum", "prioritised", "order"),
    [
        (5, (), (2, 0, 1, 3, 4)),
        (255, (), (2, 0, 1, 3, 4)),
        (1, (), (2,)),
        (3, (4, 1), (4, 1, 2)),
        (5, (4, 1), (4, 1, 2, 0, 3)),
        (1, (0, 4), (0,)),
        (2, (4, 4, 3), (4, 3)),
    ],
)
def test_iso20_delivery_order_is_prioritised_then_default_then_oldest(
    pool: Pool, rich: tuple[Car, list[str]], maximum: int, prioritised: tuple[int, ...], order: tuple[int, ...]
) -> None:
    car, emaids = rich
    items = pool.ask(car, max_chains=maximum, prioritized_emaids=tuple(emaids[place] for place in prioritised))
    assert [item["emaid"] for item in items] == [emaids[place] for place in order]
    remaining = [exi.decode(response_bytes(item)).RemainingContractCertificateChains for item in items]
    assert remaining == list(reversed(range(len(order))))
    for item in items:
        assert car.install(response_bytes(item), SESSION, datetime.now(UTC))[0] == item["emaid"]


def test_prioritized_emaids_accept_any_spelling_and_skip_invalid_or_unknown(
    pool: Pool, rich: tuple[Car, list[str]]
) -> None:
    car, emaids = rich
    spelled = f"{emaids[4][:2]}-{emaids[4][2:5]}-{emaids[4][5:]}".lower()
    wishes = ("no emaid at all", str(new_emaid()), spelled, "")
    assert pool.ask(car, max_chains=1, prioritized_emaids=wishes)[0]["emaid"] == emaids[4]


def test_car_that_takes_no_chain_at_all_gets_none(pool: Pool, rich: tuple[Car, list[str]]) -> None:
    car, _ = rich
    code, _ = negative(pool, car, car.request(SESSION, AT, max_chains=0))
    assert code == "WARNING_NoCertificateAvailable"


def test_contract_is_as_old_as_its_first_variant(pool: Pool) -> None:
    car = pool.car("iso20")
    default, second, third = (pool.publish(car).emaid for _ in range(3))
    other = PKI.generate(AT, algorithm="P-521")
    for role, certificate in other.trust_list():
        pool.change(anchors.add(trusted_certificate(certificate, role, "test", AT)))
    later = pool.contract(car, second, signer=other)
    deadline = time.monotonic() + 30
    while pool.cps.put("/signedcontractdata", json=later.body).status_code != 201:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    roots = tuple(
        iso2.X509IssuerSerial(root.subject_dn, root.serial_number)
        for root in (other.v2g_root.certificate, pool.pki("iso20").v2g_root.certificate)
    )
    assert [item["emaid"] for item in pool.ask(car, roots=roots)] == [default, second, third]
    pool.publish(car, third)
    assert [item["emaid"] for item in pool.ask(car)] == [default, second, third]


def test_delivery_of_several_leaves_an_expired_contract_out(pool: Pool) -> None:
    car = pool.car("iso20")
    first, second, third = (pool.publish(car).emaid for _ in range(3))
    pool.expire(second)
    items = pool.ask(car)
    assert [item["emaid"] for item in items] == [first, third]
    assert [exi.decode(response_bytes(item)).RemainingContractCertificateChains for item in items] == [1, 0]


@pytest.fixture(scope="module")
def strict(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, root_match="strict", no_default_policy="none", vehicle_trust="signature") as running:
        yield running


# --- Pools with other settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_delivery_with_strict_root_match_is_nothing_for_a_car_without_known_root(strict: Pool, edition: str) -> None:
    car = strict.car(edition)
    strict.publish(car)
    code, reason = negative(strict, car, car.request(SESSION, AT, roots=(iso2.X509IssuerSerial("CN=Unknown Root", 1),)))
    assert code == ("FAILED_NoCertificateAvailable" if edition == "iso2" else "WARNING_NoCertificateAvailable")
    assert reason
    assert len(strict.ask(car)) == 1


def test_delivery_with_policy_none_leaves_an_only_contract_that_is_no_default_out(strict: Pool) -> None:
    car = strict.car()
    default, other = strict.publish(car), strict.publish(car)
    assert strict.emsp.delete(f"/signedcontractdata/{default.emaid}").status_code == 200
    assert negative(strict, car)[0] == "FAILED_NoCertificateAvailable"
    assert strict.oem.post(f"/signedcontractdata/{other.emaid}/{car.pcid}/setdefault").status_code == 200
    assert len(strict.ask(car)) == 1


def test_vehicle_trust_signature_delivers_to_a_vehicle_under_an_unknown_root(
    strict: Pool, pkis: dict[str, PKI]
) -> None:
    car = Car.from_credential(pkis["stranger"], pkis["stranger"].vehicle(pcid := new_pcid(), now=AT), pcid)
    strict.publish(car, signer="iso2")
    root = strict.pki().v2g_root.certificate
    listed = (iso2.X509IssuerSerial(root.subject_dn, root.serial_number),)
    assert len(strict.ask(car, roots=listed)) == 1


def test_vehicle_trust_signature_still_requires_a_valid_signature(strict: Pool) -> None:
    car, thief = strict.car(), strict.car()
    strict.publish(car)
    message, stolen = exi.decode(car.request(SESSION, AT)), exi.decode(thief.request(SESSION, AT))
    encoded = exi.encode(message._replace(Header=message.Header._replace(Signature=stolen.Header.Signature)))
    assert negative(strict, car, encoded)[0] == "FAILED_SignatureError"
    assert negative(strict, expired_car(strict.pki()))[0] == "FAILED_CertificateExpired"
