"""Services that speak OPCP: the shapes of its published descriptions, and another pool in the place of a service."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import ConfigurationError, UpstreamError
from ccp.ids import PCID, Namespace
from ccp.server.app import build_services
from ccp.server.external.provisioning_pool import ProvisioningCertificatePool, ProvisioningChain, key_fingerprint
from ccp.server.external.root_pool import RootCertificatePool, RootList
from ccp.server.settings import Settings
from ccp.server.storage.queries import anchors
from ccp.testing.pki import PKI, Credential
from ccp.verify import pcid_of
from ccp.x509.certificates import Certificate
from tests.cli.run import ccp_ok
from tests.scripted_server import CLOSE, HANG, Reply, Scripted, error, granted, json_reply, scripted
from tests.server.external.calls import connection, with_outbound
from tests.waiting import wait_until
from tests.world import AT, b64, new_pcid, start

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "opcp-spec"
ROOTS = "/v1/root/rootCerts"


def oem_message(vehicle: Credential, **more: Any) -> dict[str, Any]:
    """The published response with a vehicle's chain."""
    sub2, sub1 = vehicle.sub_cas
    members = {
        "subCA1Certificate": b64(sub1.der),
        "subCA2Certificate": b64(sub2.der),
        "vehicleCertificate": b64(vehicle.certificate.der),
        "xsdMsgDefNamespace": "urn:iso:15118:2:2013:MsgDef",
        "rootIssuerDistinguishedName": "CN=Root",
        "rootIssuerSerialNumber": "01",
    }
    return {"OEMMessage": {**members, **more}}


def chain_of(fake: Scripted, pcid: PCID) -> ProvisioningChain | None:
    return with_outbound(
        lambda out: ProvisioningCertificatePool(connection(out, fake.url, dialect="opcp", token="t")).fetch_chain(pcid)
    )


def roots_of(fake: Scripted) -> RootList:
    return with_outbound(lambda out: RootCertificatePool(connection(out, fake.url, dialect="opcp")).list_roots())


def entry(certificate: Certificate, **members: str) -> dict[str, Any]:
    return {
        "rootCertificateId": "b1b86334-7c74-4ccc-b78d-d4f773d3b559",
        "caCertificate": b64(certificate.der),
        **members,
    }


def collection(*entries: dict[str, Any]) -> Reply:
    return json_reply({"RootCertificateCollection": {"rootCertificates": list(entries)}})


# --- Root Certificate Pool ---


def test_opcp_root_pool_is_asked_once_and_types_decide_roles(fake: Scripted, pkis: dict[str, PKI]) -> None:
    pki = pkis["iso2"]
    v2g, mo, oem = (root.certificate for root in (pki.v2g_root, pki.emsp_root, pki.oem_root))
    other = pkis["iso20"].v2g_root.certificate
    fake.on(
        ROOTS,
        collection(
            entry(v2g, rootType="V2G"),
            entry(mo, rootType="MO"),
            entry(oem, rootType="OEM"),
            entry(v2g, rootType="OEM"),
            entry(other, rootType="PE"),
            entry(pkis["iso20"].oem_root.certificate),
        ),
    )
    found = roots_of(fake)
    roles = {root.certificate: {role.value for role in root.roles} for root in found.roots}
    assert roles[v2g] == {"v2g", "oem"}
    assert (roles[mo], roles[oem], roles[other]) == ({"emsp"}, {"oem"}, set())
    assert roles[pkis["iso20"].oem_root.certificate] == set(), "no type, no role"
    assert len(found.unusable) == 1
    assert [(call.path, call.query) for call in fake.received] == [(ROOTS, {})]


@pytest.mark.parametrize("answer", [Reply(404), collection(), Reply(500), Reply(401), json_reply({}), CLOSE])
def test_opcp_root_pool_raises_for_useless_responses(fake: Scripted, answer: Reply) -> None:
    fake.on(ROOTS, answer)
    with pytest.raises(UpstreamError):
        roots_of(fake)


def test_opcp_root_pool_reads_the_published_example(fake: Scripted) -> None:
    description = _published("rcp.v1.json")
    content = description["paths"]["/v1/root/rootCerts"]["get"]["responses"]["200"]["content"]
    example = content["application/json"]["examples"]["example"]["value"]
    fake.on(ROOTS, json_reply(example))
    (root,) = roots_of(fake).roots
    assert {role.value for role in root.roles} == {"v2g"}
    assert root.certificate.fingerprint == example["RootCertificateCollection"]["rootCertificates"][0]["fingerprint"]


def _published(name: str) -> Any:
    if not PUBLISHED.exists():
        pytest.skip("the published descriptions are not on this machine")
    return json.loads((PUBLISHED / name).read_text("utf-8"))


@pytest.mark.parametrize("roles", [None, ("v2g", "oem")])
def test_pool_takes_its_roots_from_another_pool(pkis: dict[str, PKI], roles: tuple[str, ...] | None) -> None:
    """Two pools: one is the Root Certificate Pool of the other, with its own token endpoint."""
    with start({"stranger": pkis["stranger"], "iso2": pkis["iso2"]}) as source:
        secret = source.world.member("cpo").secret
        options: dict[str, Any] = {
            "rcp_url": source.base_url,
            "rcp_dialect": "opcp",
            "rcp_token_url": source.base_url + "/oauth/token",
            "rcp_client_id": "cpo",
            "rcp_client_secret": secret,
            **({"rcp_roles": roles} if roles else {}),
        }
        listed = {(anchor.role, anchor.fingerprint) for anchor in source.change(anchors.list_all()) if anchor.is_root}
        with start({"iso20": pkis["iso20"]}, **options) as pool:
            before = {(anchor.role, anchor.fingerprint) for anchor in pool.change(anchors.list_all())}
            environment = {
                "CCP_DATABASE": pool.settings.database,
                **{f"CCP_{name.upper()}": str(value) for name, value in options.items() if name != "rcp_roles"},
                **({"CCP_RCP_ROLES": json.dumps(roles)} if roles else {}),
            }
            shown = json.loads(ccp_ok("trust", "sync", "--json", env=environment).out)
            assert shown["unusable"] == []
            after = pool.change(anchors.list_all())
            added = [anchor for anchor in after if (anchor.role, anchor.fingerprint) not in before]
            expected = {one for one in listed if roles is None or one[0] in roles}
            assert {(anchor.role, anchor.fingerprint) for anchor in added} == expected
            assert {anchor.source for anchor in added} == {source.base_url}
            assert all(anchor.is_root for anchor in added)


def test_pool_with_another_pool_as_its_root_pool_trusts_its_roots(
    pkis: dict[str, PKI], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccp.server.trust.root_sync._MAX_FIRST_DELAY", 0.01)
    with start({"iso2": pkis["iso2"]}) as source:
        options = {"rcp_url": source.base_url, "rcp_dialect": "opcp", "rcp_token": source.token("cpo")}
        with start({"iso20": pkis["iso20"], "stranger": pkis["iso2"]}, **options) as pool:
            contract = pool.contract(source.car(), signer="stranger")
            wait_until(lambda: pool.put(contract).status_code == 201)


# --- Provisioning Certificate Pool ---


def test_opcp_provisioning_pool_reads_the_vehicle_s_chain(fake: Scripted, pkis: dict[str, PKI]) -> None:
    pcid = new_pcid()
    vehicle = pkis["iso2"].vehicle(pcid, now=AT)
    fake.on(f"/v1/oem/provCerts/{pcid}", json_reply(oem_message(vehicle)))
    chain = chain_of(fake, pcid)
    assert chain is not None
    assert (chain.certificate, chain.sub_cas) == (vehicle.certificate, vehicle.sub_cas)
    assert chain.key_for(Namespace.ISO2) == key_fingerprint(vehicle.certificate)
    (call,) = fake.received
    assert (call.method, call.headers["authorization"]) == ("GET", "Bearer t")


def test_opcp_provisioning_pool_reads_announced_names_and_shorter_chains(fake: Scripted, pkis: dict[str, PKI]) -> None:
    pcid = new_pcid()
    vehicle = pkis["iso2"].vehicle(pcid, now=AT)
    members = {
        "provisioningCertificate": b64(vehicle.certificate.der),
        "subCa1Certificate": b64(vehicle.sub_cas[1].der),
    }
    for body in ({"OEMMessage": members}, members):
        fake.on("/*", json_reply(body))
        chain = chain_of(fake, pcid)
        assert chain is not None
        assert chain.sub_cas == (vehicle.sub_cas[1],)


def test_opcp_provisioning_pool_reads_the_published_example(fake: Scripted) -> None:
    description = _published("pcp.v1.json")
    content = description["paths"]["/v1/oem/provCerts/{pcid}"]["get"]["responses"]["200"]["content"]
    example = content["application/json"]["examples"]["example"]["value"]
    certificate = Certificate.load(base64.b64decode(example["OEMMessage"]["vehicleCertificate"]))
    fake.on("/*", json_reply(example))
    chain = chain_of(fake, pcid_of(certificate))
    assert chain is not None
    assert chain.certificate == certificate
    assert chain.sub_cas


# --- PKI service ---


def test_pki_service_of_opcp_is_refused_because_it_cannot_revoke() -> None:
    with pytest.raises(ConfigurationError, match="pki_dialect: OPCP describes no operation that revokes"):
        build_services(Settings(pki_url="https://pki.example", pki_dialect="opcp"))


# --- require_known_vehicle, in both dialects ---

DIALECTS = {
    "opnc": ("/provisioningcertificates/{}", "/lookupvehicle/{}"),
    "opcp": ("/v1/oem/provCerts/{}", "/v1/oem/provCerts/lookupVehicle/{}"),
}
UNKNOWN = ["pcid : is not known to the Provisioning Certificate Pool"]
UNAVAILABLE = ["The Provisioning Certificate Pool cannot be asked for the vehicle now; publish again later."]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_vehicles_must_be_known_by_default_with_a_pcp(pkis: dict[str, PKI], dialect: str) -> None:
    chain, lookup = DIALECTS[dialect]
    with scripted() as pcp, start(pkis, pcp_url=pcp.url, pcp_dialect=dialect, pcp_token="t") as pool:

        def put(reply: Reply, found: Reply | None = None, car: Any = None) -> tuple[int, Any]:
            car = car or pool.car()
            pcp.on(chain.format(car.pcid), reply)
            if found is not None:
                pcp.on(lookup.format(car.pcid), found)
            answer = pool.put(pool.contract(car))
            if answer.status_code == 503:
                assert int(answer.headers["Retry-After"]) > 0
            return answer.status_code, answer.json()["errorMessages"] if answer.content else None

        car = pool.car()
        known = json_reply(oem_message(car.provisioning))
        assert put(known, car=car) == (201, None)
        assert pool.sql("select provisioning_key from contract") == [(key_fingerprint(car.provisioning.certificate),)]
        for status in (404, 410):
            assert put(error(status, "The OEM provisioning certificate with given PCID is not found.")) == (
                400,
                UNKNOWN,
            )
        # The certificates are refused, but not the question whether the vehicle is known.
        assert put(error(403, "No."), Reply(200)) == (201, None)
        assert put(error(403, "No."), error(404, "Not found.")) == (400, UNKNOWN)
        assert put(error(403, "No."), error(403, "No.")) == (503, UNAVAILABLE)
        stranger = json_reply(oem_message(pool.car().provisioning))
        for reply in (error(401, "No."), error(400, "No."), Reply(302)):
            assert put(reply) == (503, UNAVAILABLE)
        assert put(Reply(404, b"<html>", {"Content-Type": "text/html"})) == (503, UNAVAILABLE)
        for _ in range(4):
            assert put(stranger) == (503, UNAVAILABLE)
        assert put(known, car=car) == (201, None), "an unusable answer about one vehicle costs the others nothing"
        for _ in range(3):
            assert put(CLOSE) == (503, UNAVAILABLE)
        asked = len(pcp.received)
        assert put(known, car=car) == (503, UNAVAILABLE), "the circuit is open after three failures"
        assert len(pcp.received) == asked
        assert pool.sql("select count(*) from contract") == [(3,)]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_vehicles_that_are_unknown_are_accepted_if_the_settings_say_so(pkis: dict[str, PKI], dialect: str) -> None:
    options: dict[str, Any] = {"pcp_dialect": dialect, "require_known_vehicle": False}
    with scripted() as pcp, start(pkis, pcp_url=pcp.url, **options) as pool:
        for reply in (error(404, "No."), error(403, "No."), Reply(500)):
            pcp.on("/*", reply)
            pool.publish(pool.car())
        assert {call.path.rpartition("/")[0] for call in pcp.received} == {DIALECTS[dialect][0].rpartition("/")[0]}


def test_publication_is_503_while_there_is_no_token_for_the_pcp(pkis: dict[str, PKI]) -> None:
    with scripted() as pcp:
        token = granted("fine")
        pcp.on("/token", Reply(503))
        options = {"pcp_token_url": pcp.url + "/token", "pcp_client_id": "pool", "pcp_client_secret": "s"}
        with start(pkis, pcp_url=pcp.url, pcp_dialect="opcp", **options) as pool:
            car = pool.car()
            pcp.on(f"/v1/oem/provCerts/{car.pcid}", json_reply(oem_message(car.provisioning)))
            answer = pool.put(pool.contract(car))
            assert (answer.status_code, answer.json()["errorMessages"]) == (503, UNAVAILABLE)
            pcp.on("/token", Reply(200, token.body))
            assert pool.put(pool.contract(car)).status_code == 201
            assert pool.ask(car)


def test_opcp_publisher_gets_the_same_answers(pkis: dict[str, PKI]) -> None:
    with scripted() as pcp, start(pkis, pcp_url=pcp.url, pcp_dialect="opcp") as pool:
        url = pool.base_url + "/v1/ccp/signedContractData"
        contract = pool.contract(pool.car())
        for reply, status, sentences in ((error(404, "No."), 400, UNKNOWN), (Reply(503), 503, UNAVAILABLE)):
            pcp.on("/*", reply)
            answer = pool.cps.put(url, json=contract.body)
            assert (answer.status_code, answer.json()["errorMessages"]) == (status, sentences)


def test_delivery_waits_a_second_at_most_for_a_token(pkis: dict[str, PKI]) -> None:
    with scripted() as pcp:
        pcp.on("/token", HANG)
        options = {"pcp_token_url": pcp.url + "/token", "pcp_client_id": "pool", "pcp_client_secret": "s"}
        with start(pkis, pcp_url=pcp.url, require_known_vehicle=False, **options) as pool:
            car = pool.car()
            pool.publish(car)
            began = time.monotonic()
            assert pool.ask(car)
            assert time.monotonic() - began < 2
