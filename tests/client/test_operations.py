"""The client against a pool: every operation, with both clients and both dialects."""

from __future__ import annotations

import inspect
import json
from datetime import timedelta

import pytest

from ccp import exi
from ccp.client import (
    AnchorRole,
    AsyncClient,
    BadRequestError,
    Client,
    Delivered,
    Dialect,
    MalformedResponseError,
    Namespace,
    NoContractResponse,
    NotAuthenticatedError,
    NotAuthorisedError,
    NotFoundError,
    Routing,
    TokenRefusedError,
    TooLargeError,
    Withdrawn,
)
from ccp.client.clients import OPERATIONS
from ccp.client.operations import Operations
from ccp.errors import ConfigurationError, FieldError
from ccp.server.http.routes import opcp, opnc
from ccp.x509.certificates import Certificate
from tests.client.either import KINDS, EitherClient, connect, credentials
from tests.exi.samples import RESPONSE
from tests.scripted_server import Reply, json_reply, scripted
from tests.world import AT, SESSION, Pool, b64, new_emaid, new_pcid

pytestmark = pytest.mark.parametrize("kind", KINDS)

DIALECTS = list(Dialect)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_client_operations_against_a_pool(pool: Pool, kind: str, dialect: Dialect, edition: str) -> None:
    car = pool.car(edition)
    contract, other = pool.contract(car), pool.contract(car)
    named = {"emaid": contract.emaid, "pcid": car.pcid, "namespace": car.namespace}
    edition_of = {"namespace": car.namespace}

    def client(party: str) -> EitherClient:
        return EitherClient(kind, pool.base_url, credentials=credentials(pool, party), dialect=dialect)

    cps, emsp, oem, cpo = map(client, ("cps", "emsp", "oem", "cpo"))
    try:
        report = cps.dry_run(contract.message, **named)
        assert report.passed
        assert all(check.verdict == "passed" for check in report.checks)
        assert pool.stored(contract.emaid) == 0

        root = pool.pki(edition).v2g_root.certificate
        assert cps.publish(contract.message, root=root.fingerprint, metadata="about it", **named) is None
        assert cps.publish(other.message, emaid=other.emaid, pcid=car.pcid, **edition_of) is None

        (state,) = emsp.contracts_of_emaid(contract.emaid, root=root.fingerprint, **edition_of)
        assert (state.emaid, state.pcid, state.namespace) == (contract.emaid, car.pcid, car.namespace)
        assert (state.certificate, state.is_default) == (contract.certificate, True)
        assert state.valid_from < AT + timedelta(days=1) < state.valid_to
        waiting = oem.contracts_of_pcid(car.pcid, **edition_of)
        assert {one.emaid: one.is_default for one in waiting} == {contract.emaid: True, other.emaid: False}

        assert oem.set_default(other.emaid, car.pcid) is None
        waiting = oem.contracts_of_pcid(car.pcid, **edition_of)
        assert {one.emaid: one.is_default for one in waiting} == {contract.emaid: False, other.emaid: True}

        delivered = cpo.deliver(car.request(SESSION, AT), car.namespace)
        assert isinstance(delivered, Delivered)
        # OPCP's clients can hand on one item, so one is sent, and it tells the vehicle that nothing is left.
        expected = [other.emaid, contract.emaid] if (edition, dialect) == ("iso20", Dialect.OPNC) else [other.emaid]
        assert [one.emaid for one in delivered.contracts] == expected
        emaid, _ = car.install(delivered.contracts[0].message, SESSION, AT)
        assert emaid == other.emaid

        (signed,) = oem.signed_contracts(contract.emaid, car.pcid, session_id=SESSION, **edition_of)
        assert car.install(signed.message, SESSION, AT)[0] == contract.emaid
        if dialect is Dialect.OPNC:
            assert (signed.pcid, signed.root, signed.metadata) == (car.pcid, root.fingerprint, "about it")
        (unchanged,) = oem.signed_contracts(contract.emaid, car.pcid, **edition_of)
        assert unchanged.message == contract.message

        assert emsp.withdraw(contract.emaid) == Withdrawn()
        assert pool.stored(contract.emaid) == 0
        assert emsp.withdraw(other.emaid, revoke=False, reason="superseded") == Withdrawn(confirmed=True)
    finally:
        for one in (cps, emsp, oem, cpo):
            one.close()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("edition", ["iso2", "iso20"])
def test_deliver_returns_another_type_for_a_negative_message(
    pool: Pool, kind: str, dialect: Dialect, edition: str
) -> None:
    car = pool.car(edition)
    with connect(kind, pool.base_url, credentials=credentials(pool, "cpo"), dialect=dialect) as cpo:
        refused = cpo.deliver(car.request(SESSION, AT), car.namespace)
        assert isinstance(refused, NoContractResponse)
        assert refused.code in ("FAILED_NoCertificateAvailable", "WARNING_NoContractMatchingPCIDFound")
        assert refused.reason == "No contract is stored for the vehicle."
        assert refused.namespace is car.namespace
        assert refused.trace_id is not None
        # Where the message is not wanted it is an error.
        with pytest.raises(NotFoundError) as caught:
            cpo.deliver(car.request(SESSION, AT), car.namespace, always_exi=False)
    assert caught.value.messages == ("No contract is stored for the vehicle.",)


def test_messages_are_accepted_in_base64(pool: Pool, kind: str) -> None:
    car = pool.car()
    contract = pool.contract(car)
    with connect(kind, pool.base_url, credentials=credentials(pool, "cps")) as cps:
        named = {"emaid": contract.emaid, "pcid": car.pcid, "namespace": car.namespace}
        assert cps.publish(b64(contract.message), **named) is None
        with pytest.raises(FieldError, match="Base64"):
            cps.publish("no Base64!", **named)
    with connect(kind, pool.base_url, credentials=credentials(pool, "cpo")) as cpo:
        delivered = cpo.deliver(b64(car.request(SESSION, AT)), car.namespace)
        assert delivered.message == delivered.contracts[0].message
        assert delivered.base64 == delivered.contracts[0].base64 == b64(delivered.message)
        assert car.install(delivered.message, SESSION, AT)[0] == contract.emaid
        refused = cpo.deliver(b64(pool.car().request(SESSION, AT)), car.namespace)
        assert isinstance(refused, NoContractResponse)
        assert refused.base64 == b64(refused.message)


def test_dry_run_reports_the_failed_checks(pool: Pool, kind: str) -> None:
    car = pool.car()
    contract = pool.contract(car, signer="stranger")
    with connect(kind, pool.base_url, credentials=credentials(pool, "cps")) as cps:
        report = cps.dry_run(contract.message, emaid=contract.emaid, pcid=car.pcid, namespace=car.namespace)
    assert not report.passed
    assert any(check.verdict == "failed" and check.reason for check in report.checks)
    assert report.raw["message"] == "CertificateInstallationRes"


def test_errors_have_type_sentences_and_trace_id(pool: Pool, kind: str) -> None:
    car = pool.car()
    with (
        connect(kind, pool.base_url, credentials=credentials(pool, "cps")) as cps,
        connect(kind, pool.base_url, credentials=credentials(pool, "emsp")) as emsp,
        connect(kind, pool.base_url, credentials=credentials(pool, "oem")) as oem,
    ):
        with pytest.raises(BadRequestError) as caught:
            cps.publish(b"not EXI", emaid=new_emaid(), pcid=car.pcid, namespace=car.namespace)
        assert caught.value.messages[0] == "EXI format is invalid!"
        assert caught.value.status == 400
        assert caught.value.trace_id is not None
        assert caught.value.trace_id in str(caught.value)
        with pytest.raises(NotFoundError):
            emsp.contracts_of_emaid(new_emaid())
        with pytest.raises(NotAuthorisedError, match="is not registered for the caller"):
            emsp.withdraw(new_emaid("FRXXX"))
        with pytest.raises(BadRequestError, match="not found"):
            oem.set_default(new_emaid(), new_pcid())
        with pytest.raises(TooLargeError):
            cps.publish(b"\0" * 300_000, emaid=new_emaid(), pcid=car.pcid, namespace=car.namespace)


def test_credentials_and_tokens_that_are_wrong_raise_different_errors(pool: Pool, kind: str) -> None:
    wrong = credentials(pool, "cpo")
    wrong = type(wrong)(wrong.client_id, "not the secret")
    with connect(kind, pool.base_url, credentials=wrong) as client, pytest.raises(TokenRefusedError) as caught:
        client.contracts_of_emaid(new_emaid())
    assert caught.value.error == "invalid_client"
    with connect(kind, pool.base_url, token="not-a-token") as client, pytest.raises(NotAuthenticatedError):
        client.contracts_of_emaid(new_emaid())
    with connect(kind, pool.base_url, token=pool.token("emsp")) as client, pytest.raises(NotFoundError):
        client.contracts_of_emaid(new_emaid())


def test_routing_headers_are_sent(pool: Pool, kind: str) -> None:
    own, foreign = Routing(from_type="emsp", from_id="DEEXA"), Routing(from_type="emsp", from_id="FRXXX")
    elsewhere = Routing(to_type="ccp", to_id="elsewhere")
    with connect(kind, pool.base_url, credentials=credentials(pool, "emsp"), routing=own) as emsp:
        contract = pool.publish(pool.car())
        assert len(emsp.contracts_of_emaid(contract.emaid)) == 1
        with pytest.raises(NotAuthorisedError, match="OPNC-from-party-id"):
            emsp.contracts_of_emaid(contract.emaid, routing=foreign)
        with pytest.raises(NotFoundError, match="OPNC-to-party-id"):
            emsp.contracts_of_emaid(contract.emaid, routing=elsewhere)


def test_client_raises_for_invalid_ids_before_a_request_is_sent(kind: str) -> None:
    with connect(kind, "http://127.0.0.1:9", token="unused") as client:
        for wrong in (
            lambda: client.withdraw("DE"),
            lambda: client.contracts_of_pcid("short"),
            lambda: client.contracts_of_emaid(new_emaid(), root="00"),
            lambda: client.deliver(b"", "urn:iso:15118:99"),
            lambda: client.set_default(new_emaid(), "../../../x"),
        ):
            with pytest.raises(FieldError):
                wrong()
    with pytest.raises(FieldError):
        Routing(from_id="DEEXA\r\nX-Other: 1").headers()


def test_client_rejects_an_invalid_configuration(kind: str) -> None:
    for wrong in (
        {"base_url": "ccp.example", "token": "t"},
        {"base_url": "ftp://ccp.example", "token": "t"},
        {"base_url": "https://user:password@ccp.example", "token": "t"},
        {"base_url": "https://ccp.example/?a=b", "token": "t"},
        {"base_url": "https://ccp.example:none", "token": "t"},
        {"base_url": "https://ccp.example"},
        {"base_url": "https://ccp.example", "token": "a\nb"},
    ):
        with pytest.raises(ConfigurationError):
            EitherClient(kind, **wrong)


def test_clients_have_the_same_methods_and_the_servers_paths(kind: str) -> None:
    operations = {
        name for name, value in inspect.getmembers(Operations) if not name.startswith("_") and callable(value)
    }
    assert len(operations) == 18  # The seven, a dry run, the OCPP call, roots, and webhooks.
    client = {"sync": Client, "async": AsyncClient}[kind]
    for name in operations:
        assert (
            inspect.signature(getattr(client, name)).parameters
            == inspect.signature(getattr(Operations, name)).parameters
        )
        assert getattr(client, name).__doc__ == getattr(Operations, name).__doc__
    assert {dialect: calls.base for dialect, calls in OPERATIONS.items()} == {
        Dialect.OPNC: opnc.BASE,
        Dialect.OPCP: opcp.BASE,
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_roots_are_those_that_the_pool_trusts(pool: Pool, kind: str, dialect: Dialect) -> None:
    with connect(kind, pool.base_url, credentials=credentials(pool, "oem"), dialect=dialect) as oem:
        found = oem.roots()
        expected = {
            (role, root.certificate.fingerprint)
            for name in ("iso2", "iso20")
            for role, root in (
                (AnchorRole.V2G, pool.pki(name).v2g_root),
                (AnchorRole.EMSP, pool.pki(name).emsp_root),
                (AnchorRole.OEM, pool.pki(name).oem_root),
            )
        }
        assert expected <= {(root.role, root.fingerprint) for root in found}
        for role in AnchorRole:
            of_role = oem.roots(role)
            assert of_role
            assert {root.id for root in of_role} == {root.id for root in found if root.role is role}
        for root in found:
            certificate = Certificate.load(root.certificate)
            assert (root.fingerprint, root.distinguished_name) == (certificate.fingerprint, certificate.subject_dn)
            assert (root.valid_from, root.valid_to) == (certificate.not_before, certificate.not_after)
            assert oem.root(root.id) == root
        with pytest.raises(NotFoundError):
            oem.root("00000000-0000-0000-0000-000000000000")
        with pytest.raises(FieldError):
            oem.root("../../admin/v1/parties")


def test_roots_of_a_malformed_response_are_refused(kind: str) -> None:
    root = {"rootCertificateId": "x", "caCertificate": "AAAA", "rootType": "V2G"}
    with scripted() as server, connect(kind, server.url, token="t") as client:
        for body in (
            {},
            {"RootCertificateCollection": {"rootCertificates": [root]}},
            {"RootCertificateCollection": {"rootCertificates": [{**root, "caCertificate": "?"}]}},
            {"RootCertificateCollection": {"rootCertificates": [{}]}},
            {"RootCertificateCollection": {"rootCertificates": [root] * 10_000}},
        ):
            server.on("/v1/root/rootCerts", json_reply(body))
            with pytest.raises(MalformedResponseError):
                client.roots()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_messages_are_accepted_as_xml(pool: Pool, kind: str, dialect: Dialect) -> None:
    with connect(kind, pool.base_url, credentials=credentials(pool, "cps"), dialect=dialect) as cps:
        for encoded in (lambda data: data, b64):
            contract = pool.contract(pool.car())
            named = {"emaid": contract.emaid, "pcid": contract.body["pcid"], "namespace": Namespace.ISO2}
            document = exi.to_xml(exi.decode(contract.message))
            assert cps.dry_run(encoded(document), **named).passed
            assert cps.publish(encoded(document), **named) is None
            ((stored,),) = pool.sql("select response from contract where emaid = ?", str(contract.emaid))
            assert bytes(stored) == contract.message
            with pytest.raises(FieldError, match="in V2G_Message"):
                cps.publish(encoded(document.replace(b"Body>", b"Other>")), **named)


def test_publication_has_the_members_of_the_dialect(kind: str) -> None:
    message = exi.encode(RESPONSE)
    # A zero byte after the message, which XML does not preserve.
    other = message + b"\0"
    # An attribute with white space around it, which XML does not preserve either.
    assert isinstance(RESPONSE.Body, exi.iso2.CertificateInstallationRes)
    spaced = exi.encode(RESPONSE._replace(Body=RESPONSE.Body._replace(eMAID=exi.iso2.EMAID(" ID1", "DEEXAC00000001"))))
    members = {"emaid": "DEEXAC00000001", "pcid": "WEX0TEST000000001", "xsdMsgDefNamespace": str(Namespace.ISO2)}
    named = {"emaid": members["emaid"], "pcid": members["pcid"], "namespace": Namespace.ISO2, "metadata": "about it"}
    for dialect, path, data, expected in (
        (Dialect.OPNC, "/opnc/v1/ccp/signedcontractdata", message,
         {"certificateInstallationRes": b64(message), "metaData": "about it"}),
        (Dialect.OPCP, "/v1/ccp/signedContractData", message,
         {"signedContractDataXML": b64(exi.to_xml(RESPONSE)), "metadata": "about it"}),
        (Dialect.OPCP, "/v1/ccp/signedContractData", other,
         {"certificateInstallationRes": b64(other), "metadata": "about it"}),
        (Dialect.OPCP, "/v1/ccp/signedContractData", spaced,
         {"certificateInstallationRes": b64(spaced), "metadata": "about it"}),
        (Dialect.OPCP, "/v1/ccp/signedContractData", b"not EXI",
         {"certificateInstallationRes": b64(b"not EXI"), "metadata": "about it"}),
    ):  # fmt: skip
        with scripted() as server, connect(kind, server.url, token="t", dialect=dialect) as client:
            server.on(path, Reply(201))
            client.publish(data, **named)
            (received,) = server.asked(path)
            assert json.loads(received.body) == {**members, **expected}
