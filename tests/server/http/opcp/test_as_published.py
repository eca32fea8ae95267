"""What the published description of OPCP 1.0 adds to what its clients read: members, the 404 with a message, roots."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import CapturedCall, CapturingLogger

from ccp.ids import Namespace
from ccp.schemas.opcp import distinguished_name
from ccp.server.pool import delivery
from ccp.server.storage.queries import anchors
from ccp.server.trust.anchors import trusted_certificate
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, SUB_CA1, Credential, build_certificate
from ccp.x509 import der
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole
from tests.server.http.api.answers import sentences
from tests.server.http.opcp.requests import call
from tests.waiting import wait_until
from tests.world import AT, ISO2, ISO20, SESSION, Pool, new_emaid, post_body, read, start

EDITIONS = ["iso2", "iso20", "ed448"]
PATH = "/ccp/signedContractData"


def root_of(pool: Pool, edition: str) -> str:
    found: str = pool.pki(edition).v2g_root.certificate.fingerprint
    return found


def root_id(pool: Pool, fingerprint: str, root_type: str = "V2G") -> str:
    items = call(pool, "cpo", "GET", "/root/rootCerts").json()["RootCertificateCollection"]["rootCertificates"]
    (found,) = [
        item["rootCertificateId"]
        for item in items
        if (item["fingerprint"], item["rootType"]) == (fingerprint, root_type)
    ]
    assert str(uuid.UUID(found)) == found
    text: str = found
    return text


# --- Members ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edition", EDITIONS)
def test_opcp_answers_name_the_v2g_root_by_its_fingerprint(pool: Pool, edition: str) -> None:
    car, root = pool.car(edition), root_of(pool, edition)
    contract = pool.publish(car)
    query = {"xsdMsgDefNamespace": str(car.namespace)}
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    delivered = call(pool, "cpo", "POST", PATH, json=body).json()["CCPResponse"]["emaidContent"][0]["messageDef"]
    provided = call(pool, "oem", "GET", f"/ccp/provideSignedContractData/{contract.emaid}/{car.pcid}", params=query)
    (listed,) = call(pool, "oem", "GET", f"{PATH}/{car.pcid}", params=query).json()["XMLContracts"]
    (looked_up,) = call(pool, "emsp", "GET", f"/ccp/lookupContract/{contract.emaid}", params=query).json()[
        "XMLContracts"
    ]
    for found in (delivered, provided.json(), listed, looked_up):
        assert found["cpsV2GRootCertificateFingerprint"] == root
    for found in (listed, looked_up):
        dn = pool.pki(edition).v2g_root.certificate.subject_dn
        assert found["cpsRootCertificateDN"] == found["cpsRootDistinguishedName"] == dn
        assert (found["defaultContract"], found["priority"]) == (True, 1)
    other = pool.publish(car)
    items = call(pool, "oem", "GET", f"{PATH}/{car.pcid}", params=query).json()["XMLContracts"]
    assert {(item["emaid"], item["defaultContract"]) for item in items} == {
        (contract.emaid, True),
        (other.emaid, False),
    }


def test_opcp_publication_takes_metadata_under_its_published_name(pool: Pool) -> None:
    car = pool.car()

    def put(**members: Any) -> Any:
        contract = pool.contract(car, body=members)
        return contract, call(pool, "cps", "PUT", PATH, json=contract.body)

    def stored(contract: Any) -> Any:
        return pool.sql("select metadata from contract where emaid = ?", str(contract.emaid))[0][0]

    for members in ({"metadata": "about"}, {"metaData": "about"}, {"metadata": "about", "metaData": "about"}):
        contract, answer = put(**members)
        assert answer.status_code == 201, answer.text
        assert stored(contract) == "about"
    contract, answer = put(metadata=None)
    assert (answer.status_code, stored(contract)) == (201, None)
    contract, answer = put(metadata="one", metaData="other")
    assert sentences(answer, 400) == ["metadata : differs from metaData"]
    assert pool.stored(contract.emaid) == 0
    for wrong in ("x" * 10_001, "a\0b", 5):
        contract, answer = put(metadata=wrong)
        assert sentences(answer, 400)[0].startswith("metadata : must")


def test_opcp_publication_names_the_root_by_fingerprint_or_id(pool: Pool) -> None:
    car, root, other = pool.car(), root_of(pool, "iso2"), root_of(pool, "other_iso2")

    def put(reference: str) -> Any:
        contract = pool.contract(car, body={"cpsV2GRootCertificateFingerprint": reference})
        answer = call(pool, "cps", "PUT", PATH, json=contract.body)
        assert pool.stored(contract.emaid) == (answer.status_code == 201)
        return answer

    for good in (root, root.upper(), root_id(pool, root), root_id(pool, root).upper()):
        assert put(good).status_code == 201
    for wrong in (other, root_id(pool, other)):  # Not the root that the chain leads to.
        assert sentences(put(wrong), 400)
    assert sentences(put(str(uuid.uuid4())), 400) == [
        "No root of this pool has the id in cpsV2GRootCertificateFingerprint."
    ]
    for wrong in ("0" * 63, "urn:uuid:" + root_id(pool, root), root_id(pool, root).replace("-", ""), ""):
        (sentence,) = sentences(put(wrong), 400)
        assert sentence.startswith("cpsV2GRootCertificateFingerprint : must be 64 hexadecimal digits")


def test_opcp_queries_filter_by_fingerprint_or_id_of_the_root(pool: Pool) -> None:
    car = pool.car()
    contract = pool.publish(car)
    pool.publish(car, contract.emaid, signer="other_iso2")
    for party, path in (
        ("oem", f"{PATH}/{car.pcid}"),
        ("emsp", f"/ccp/lookupContract/{contract.emaid}"),
        ("oem", f"/ccp/provideSignedContractData/{contract.emaid}/{car.pcid}"),
    ):
        for edition in ("iso2", "other_iso2"):
            root = root_of(pool, edition)
            for reference in (root, root.upper(), root_id(pool, root)):
                answer = call(pool, party, "GET", path, params={"cpsV2GRootCertificateFingerprint": reference})
                found = answer.json()
                items = found.get("XMLContracts", [found])
                assert [item["cpsV2GRootCertificateFingerprint"] for item in items] == [root], path
        for unknown in ("0" * 64, str(uuid.uuid4()), root_id(pool, root_of(pool, "iso20"))):
            answer = call(pool, party, "GET", path, params={"cpsV2GRootCertificateFingerprint": unknown})
            assert sentences(answer, 404)
        answer = call(pool, party, "GET", path, params={"cpsV2GRootCertificateFingerprint": "no root"})
        assert sentences(answer, 400)


# --- The 404 with a message ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, opcp_no_contract_response="404", opcp_detect_edition=False) as running:
        yield running


def refused(pool: Pool, car: Car, **headers: str) -> Any:
    body = post_body(car.request(SESSION, AT), str(car.namespace))
    return call(pool, "cpo", "POST", PATH, json=body, headers=headers)


@pytest.mark.parametrize("edition", EDITIONS)
@pytest.mark.parametrize("headers", [{}, {"alwaysReturnEXI": "true"}])
def test_opcp_404_carries_the_negative_message(strict: Pool, edition: str, headers: dict[str, str]) -> None:
    car = strict.car(edition)
    answer = refused(strict, car, **headers)
    assert answer.status_code == 404
    body = answer.json()
    assert sorted(body) == ["CCPResponse", "errorMessages", "traceId"]
    assert body["errorMessages"] == ["No contract is stored for the vehicle."]
    assert body["traceId"] == answer.headers["X-Trace-Id"]
    assert list(body["CCPResponse"]) == ["emaidContent"]
    (content,) = body["CCPResponse"]["emaidContent"]
    assert list(content) == ["messageDef"]
    assert list(content["messageDef"]) == ["certificateInstallationRes"]
    message = read(content["messageDef"], str(car.namespace))
    assert message.response_code in ("FAILED_NoCertificateAvailable", "WARNING_NoContractMatchingPCIDFound")
    assert message.parsed.message.Header.SessionID == SESSION


def test_opcp_404_is_an_error_alone_where_no_message_is_wanted(strict: Pool, pool: Pool) -> None:
    for there in (strict, pool):
        answer = refused(there, there.car(), alwaysReturnEXI="false")
        assert sentences(answer, 404) == ["No contract is stored for the vehicle."]


def test_opcp_404_is_for_every_refusal_of_a_vehicle(strict: Pool) -> None:
    stranger = strict.car("stranger")
    answer = refused(strict, stranger)
    assert answer.status_code == 404
    item = answer.json()["CCPResponse"]["emaidContent"][0]["messageDef"]
    assert read(item, ISO2).response_code == "FAILED_CertChainError"
    body = {"certificateInstallationReq": "AAAA", "xsdMsgDefNamespace": ISO2}
    assert sentences(call(strict, "cpo", "POST", PATH, json=body), 400)


def test_opcp_temporary_failure_is_no_404(pkis: dict[str, PKI]) -> None:
    with start({"iso2": pkis["iso2"]}, opcp_no_contract_response="404") as pool:
        car = pool.car()
        pool.token("cpo")
        pool.sql("alter table contract rename to elsewhere")
        answer = refused(pool, car)
        assert answer.status_code == 200
        assert answer.headers["Retry-After"]
        item = answer.json()["CCPResponse"]["emaidContent"][0]["messageDef"]
        assert read(item, ISO2).response_code == "FAILED"
        answer = refused(pool, car, alwaysReturnEXI="false")
        assert sentences(answer, 503)


# --- The edition -----------------------------------------------------------------------------------------------------


class _EveryLevel(CapturingLogger):
    def is_enabled_for(self, level: int) -> bool:
        return True


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[CapturedCall]:
    """What the pools of this process log of deliveries."""
    logger = _EveryLevel()
    monkeypatch.setattr(delivery, "_log", logger)
    return logger.calls


@pytest.mark.parametrize(("edition", "stated"), [("iso20", ISO2), ("ed448", ISO2), ("iso2", ISO20)])
def test_opcp_takes_the_edition_from_the_message(
    pool: Pool, log: list[CapturedCall], edition: str, stated: str
) -> None:
    car = pool.car(edition)

    def ask() -> dict[str, Any]:
        answer = call(pool, "cpo", "POST", PATH, json=post_body(car.request(SESSION, AT), stated))
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["xsdMsgDefNamespace"] == str(car.namespace)
        item: dict[str, Any] = body["CCPResponse"]["emaidContent"][0]["messageDef"]
        return item

    assert ask()["emaid"] == "ZZZZZ000000000"  # A negative message is of the vehicle's edition too.
    contract = pool.publish(car)
    message = base64.b64decode(ask()["certificateInstallationRes"])
    assert car.install(message, SESSION, AT)[0] == contract.emaid
    detected = [line.kwargs for line in log if line.args == ("edition of request detected",)]
    assert detected == [{"caller": "cpo", "stated": stated, "detected": str(car.namespace)}] * 2


def test_opcp_edition_has_to_be_the_stated_one_without_detection(strict: Pool, pool: Pool) -> None:
    body = post_body(strict.car("iso20").request(SESSION, AT), ISO2)
    assert sentences(call(strict, "cpo", "POST", PATH, json=body), 400)[0].startswith("EXI format is invalid!")
    # A publication says what it is, and OPNC has no detection.
    contract = pool.contract(pool.car("iso20"), body={"xsdMsgDefNamespace": ISO2})
    assert sentences(call(pool, "cps", "PUT", PATH, json=contract.body), 400)
    assert sentences(pool.cpo.post("/signedcontractdata", json=body), 400)
    body["xsdMsgDefNamespace"] = "urn:iso:15118:3"
    assert sentences(call(pool, "cpo", "POST", PATH, json=body), 400)


# --- Roots -----------------------------------------------------------------------------------------------------------


def test_opcp_root_members_are_derived_from_the_certificate(pool: Pool) -> None:
    expected = {"iso2": ("secp256r1", ISO2), "iso20": ("secp521r1", None), "ed448": ("ed448", None)}
    for edition, (algorithm, namespace) in expected.items():
        root = pool.pki(edition).v2g_root.certificate
        answer = call(pool, "oem", "GET", f"/root/rootCerts/{root_id(pool, root.fingerprint)}")
        assert answer.status_code == 200
        item = answer.json()["RootResponse"]
        identifier = base64.b64decode(item["rootAuthorityKeyIdentifier"])
        assert item["rootAuthorityKeyIdentifierHex"] == identifier.hex() != ""
        assert item["fingerprintSha1"] == hashlib.sha1(root.der, usedforsecurity=False).hexdigest()
        assert item["signatureAlgorithm"] == algorithm
        # The description's name of the edition, which is read as the canonical one.
        assert item["xsdMsgDefNamespace"] == (namespace or "urn:iso:15118:20:2022:MsgDef")
        assert Namespace.parse(item["xsdMsgDefNamespace"]) is (Namespace.ISO2 if namespace else Namespace.ISO20)
        # There is no cross-certificate, and the other two members are not described.
        assert not {"crossCertificatePair", "certificateRevocationList", "labeledUri"} & set(item)
        assert item["rootType"] == "V2G"
        assert item["fingerprint"] == root.fingerprint
        assert (item["commonName"], item["distinguishedName"]) == (root.subject_cn, root.subject_dn)
        assert int(item["rootIssuerSerialNumber"], 16) == root.serial_number
        assert item["organizationName"] == "opnc-ccp simulator"
        for name, time in (("validFrom", root.not_before), ("validTo", root.not_after)):
            assert item[name] == time.strftime("%Y-%m-%dT%H:%M:%SZ")
        assert base64.b64decode(item["caCertificate"], validate=True) == root.der
        items = call(pool, "oem", "GET", "/root/rootCerts").json()["RootCertificateCollection"]["rootCertificates"]
        assert item in items


@pytest.mark.parametrize(("of", "root_type"), [("emsp_root", "MO"), ("v2g_root", "V2G")])
def test_opcp_root_has_its_cross_certificates(pkis: dict[str, PKI], of: str, root_type: str) -> None:
    """A successor's certificate that the old root has issued: both roots have it, each in its place of the pair."""
    old, third = (pkis[name].v2g_root for name in ("iso2", "iso20"))
    new: Credential = getattr(pkis["other_iso2"], of)
    trusted = {name: pkis[name] for name in ("iso2", "other_iso2", "iso20")}
    valid = (AT - timedelta(days=1), AT + timedelta(days=3650))
    crossed, shorter = (
        build_certificate(
            new.certificate.x509.public_key(),
            subject=new.certificate.x509.subject,
            issuer=old.certificate,
            signer=old.key,
            template=SUB_CA1,
            valid=(valid[0], valid[1] - timedelta(days=less)),
        )
        for less in (0, 5)
    )
    with start(trusted, refresh_interval=0.05) as pool:

        def pair(root: Certificate) -> str | None:
            kind = root_type if root == new.certificate else "V2G"
            path = f"/root/rootCerts/{root_id(pool, root.fingerprint, kind)}"
            found: str | None = call(pool, "cpo", "GET", path).json()["RootResponse"].get("crossCertificatePair")
            return found

        assert pair(new.certificate) is pair(old.certificate) is None
        for certificate in (crossed, shorter):
            pool.change(anchors.add(trusted_certificate(certificate, AnchorRole.V2G, "file.pem", AT)))
        wait_until(lambda: pair(new.certificate) is not None)
        for root, tag in ((new, 0xA0), (old, 0xA1)):
            encoded = base64.b64decode(pair(root.certificate) or "", validate=True)
            sequence = der.read_element(encoded, 0)
            (member,) = der.read_elements(encoded, sequence.start, sequence.end)
            assert (sequence.tag, sequence.end, member.tag) == (der.SEQUENCE, len(encoded), tag)
            assert encoded[member.start : member.end] == crossed.der  # Of two, the one that is valid longer.
        assert pair(third.certificate) is None
        items = call(pool, "cpo", "GET", "/root/rootCerts").json()["RootCertificateCollection"]["rootCertificates"]
        assert crossed.fingerprint not in {item["fingerprint"] for item in items}


def test_opcp_root_is_found_by_its_id_for_every_party(pool: Pool) -> None:
    identifier = root_id(pool, root_of(pool, "iso2"))
    for member in pool.world.members:
        answer = call(pool, member.party.client_id, "GET", f"/root/rootCerts/{identifier.upper()}")
        assert answer.json()["RootResponse"]["rootCertificateId"] == identifier
    sentences(call(pool, None, "GET", f"/root/rootCerts/{identifier}"), 401)
    for unknown in (str(uuid.uuid4()), "x", "%20", root_of(pool, "iso2"), "a" * 60):
        answer = call(pool, "cpo", "GET", f"/root/rootCerts/{unknown}")
        assert sentences(answer, 404) == ["Root certificate with the given ID is not found"]
    elsewhere = {"OPNC-to-party-type": "ccp", "OPNC-to-party-id": "elsewhere"}
    sentences(call(pool, "cpo", "GET", f"/root/rootCerts/{identifier}", headers=elsewhere), 404)


def test_opcp_root_that_has_expired_is_neither_listed_nor_found(pkis: dict[str, PKI]) -> None:
    old = PKI.generate(AT - timedelta(days=16_000))
    with start({"iso2": pkis["iso2"], "other_iso2": old}) as pool:
        items = call(pool, "cpo", "GET", "/root/rootCerts").json()["RootCertificateCollection"]["rootCertificates"]
        assert {item["fingerprint"] for item in items} & {old.v2g_root.certificate.fingerprint} == set()
        gone = str(uuid.uuid5(uuid.NAMESPACE_URL, f"sha256:{old.v2g_root.certificate.fingerprint}:V2G"))
        assert sentences(call(pool, "cpo", "GET", f"/root/rootCerts/{gone}"), 404)


def test_opcp_trust_list_is_not_there_and_says_so(pool: Pool) -> None:
    (sentence,) = sentences(call(pool, "cpo", "GET", "/root/ctl"), 404)
    assert "/v1/root/rootCerts" in sentence
    sentences(call(pool, None, "GET", "/root/ctl"), 401)
    # The description has a body for it.
    sentences(call(pool, "cpo", "GET", "/ROOT/CTL", json={}), 404)


def test_opcp_roots_are_not_changed_over_http(pool: Pool) -> None:
    """The operations of the description's administrator; here `ccp trust` changes the roots."""
    before = call(pool, "cpo", "GET", "/root/rootCerts").json()
    certificate = base64.b64encode(pool.pki("stranger").v2g_root.certificate.der).decode()
    for party in ("everything", "cpo"):
        body = {"caCertificate": certificate, "rootType": "V2G"}
        assert sentences(call(pool, party, "PUT", "/root/rootCerts", json=body), 405)
        identifier = root_id(pool, root_of(pool, "iso2"))
        assert sentences(call(pool, party, "DELETE", f"/root/rootCerts/{identifier}"), 405)
    assert call(pool, "cpo", "GET", "/root/rootCerts").json() == before


def test_opcp_lookup_is_for_the_emsp_alone(pool: Pool) -> None:
    """The description's security list names OEM and CPO; its text and its tags name the MO."""
    contract = pool.publish(pool.car())
    path = f"/ccp/lookupContract/{contract.emaid}"
    assert call(pool, "emsp", "GET", path).status_code == 200
    for party in ("oem", "cpo", "cps"):
        sentences(call(pool, party, "GET", path), 403)
    assert sentences(call(pool, "emsp", "GET", f"/ccp/lookupContract/{new_emaid()}"), 404)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("CN=A Root, DC=V2G, O=Example, C=DE", True),
        ("CN=a,O=b", True),
        ("CN=a, O=b, ", True),
        ("CN=a O=b", True),
        ("", False),
        ("CN=a,, O=b", False),
        ("CN=a,  O=b", False),
        ("CN=a, L=b", False),
        (r"CN=a\, b", False),
        ("O=" * 5000 + ",,", False),  # Matching takes as long as the name, whatever another pool sends.
    ],
)
def test_opcp_name_of_a_root_matches_the_published_pattern(name: str, fits: bool) -> None:
    assert distinguished_name(name) == (name if fits else None)
    if len(name) < 100:
        assert (re.fullmatch(r"((CN|OU|O|C|DC|ST)=[^,]+,? ?)+", name) is not None) == fits
