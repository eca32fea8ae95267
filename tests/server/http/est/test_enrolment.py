"""EST pass-through: forms of the request, checks before it is sent, and what is recorded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey

from ccp.ids import Namespace
from ccp.testing.pki import PKI
from tests.server.http.api.answers import sentences
from tests.server.http.est.requests import ENROL, EVSE, certificates, der, enrol, post, signing_request
from tests.server.http.est.server import ESTServer, est_server
from tests.world import Pool, start


@pytest.fixture(scope="module")
def est() -> Iterator[ESTServer]:
    with est_server() as running:
        yield running


@pytest.fixture(scope="module")
def station_pool(pkis: dict[str, PKI], est: ESTServer) -> Iterator[Pool]:
    with start(pkis, **est.settings(), est_labels={"cpo": "cpo", "pnc-cpo": "", "old": "v1-cpo"}) as running:
        yield running


@pytest.fixture(autouse=True)
def issuing(est: ESTServer) -> None:
    est.answer = None
    est.seen.clear()


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/.well-known/cpo/simpleenroll", "/.well-known/est/cpo/simpleenroll"),
        ("/.WELL-KNOWN/CPO/SimpleEnroll", "/.well-known/est/cpo/simpleenroll"),
        ("/.well-known/cpo/simpleenroll/ISO15118-20", "/.well-known/est/cpo/simpleenroll/ISO15118-20"),
        ("/cpo/simpleenroll/ISO15118-2", "/.well-known/est/cpo/simpleenroll/ISO15118-2"),
        ("/.well-known/est/cpo/simpleenroll/ISO15118-2", "/.well-known/est/cpo/simpleenroll/ISO15118-2"),
        ("/.well-known/est/simpleenroll", "/.well-known/est/cpo/simpleenroll"),
        ("/.well-known/est/pnc-cpo/simpleenroll", "/.well-known/est/simpleenroll"),
        ("/.well-known/old/simplereenroll", "/.well-known/est/v1-cpo/simplereenroll"),
        (
            f"/.well-known/cpo/simpleenroll?xsdMsgDefNamespace={Namespace.ISO20}",
            "/.well-known/est/cpo/simpleenroll/ISO15118-20",
        ),
    ],
)
def test_enrolment_path_selects_operation_ca_and_edition(
    station_pool: Pool, est: ESTServer, path: str, sent: str
) -> None:
    request = signing_request()
    issued = certificates(enrol(station_pool, request, path))
    assert [one.public_key() for one in issued] == [request.public_key()]
    assert [(seen.method, seen.target) for seen in est.seen] == [("POST", sent)]
    assert est.last_request == request
    assert est.seen[0].headers["content-type"] == "application/pkcs10"
    assert est.seen[0].headers["content-transfer-encoding"] == "base64"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/.well-known/cpo/cacerts", "/.well-known/est/cpo/cacerts"),
        ("/cpo/cacerts/ISO15118-2", "/.well-known/est/cpo/cacerts/ISO15118-2"),
        ("/cpo/cacerts/ISO15118-20/secp521r1/", "/.well-known/est/cpo/cacerts/ISO15118-20/secp521r1"),
        ("/.well-known/est/cpo/cacerts/ISO15118-20/ed448", "/.well-known/est/cpo/cacerts/ISO15118-20/ed448"),
    ],
)
def test_ca_certificates_path_selects_ca_edition_and_algorithm(
    station_pool: Pool, est: ESTServer, path: str, sent: str
) -> None:
    headers = {
        "Authorization": f"Bearer {station_pool.token('cpo')}",
        "Content-Transfer-Encoding": "application/pkcs10",
    }
    answer = station_pool.http.get(path, headers=headers)
    assert set(certificates(answer)) == {est.ca.issuer, est.ca.root}
    assert [seen.path for seen in est.seen] == [sent]


@pytest.mark.parametrize("path", ["/.well-known", "/.well-known/est", "/base"])
def test_est_url_with_a_path_is_extended_by_label_and_operation(
    pkis: dict[str, PKI], est: ESTServer, path: str
) -> None:
    with start(pkis, **est.settings(path)) as running:
        enrol(running, signing_request())
    assert [seen.path for seen in est.seen] == [f"{path}/cpo/simpleenroll"]


def test_est_server_of_opnc_gets_domain_and_edition_as_parameters(pkis: dict[str, PKI], est: ESTServer) -> None:
    with start(pkis, **est.settings("/opnc/v1/pki"), est_dialect="opnc") as running:
        certificates(enrol(running, signing_request(), "/.well-known/cpo/simpleenroll/ISO15118-20"))
    assert est.seen[0].target == "/opnc/v1/pki/est/simpleenroll?caDomain=cpo&iso15118Version=ISO15118-20"


def _wrapped(request: bytes) -> bytes:
    text = base64.b64encode(request)
    return b"\r\n".join(text[start : start + 13] for start in range(0, len(text), 13)) + b"\r\n \t"


def _pem(request: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE REQUEST-----\n%s-----END CERTIFICATE REQUEST-----\n" % base64.encodebytes(request)


@pytest.mark.parametrize(
    "form",
    [base64.b64encode, _wrapped, _pem, lambda data: base64.b64encode(_pem(data)), lambda data: data],
    ids=["base64", "wrapped", "pem", "base64_of_pem", "der"],
)
@pytest.mark.parametrize("kind", ["application/pkcs10", "application/pkcs10; charset=utf-8", None])
def test_enrolment_takes_the_forms_that_back_ends_send(station_pool: Pool, est: ESTServer, form, kind) -> None:  # type: ignore[no-untyped-def]
    request = signing_request()
    answer = post(station_pool, form(der(request)), kind=kind)
    assert len(certificates(answer)) == 1
    assert est.last_request == request


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP521R1()), Ed448PrivateKey.generate()], ids=type)
def test_enrolment_takes_the_other_keys_of_iso15118(station_pool: Pool, key: object) -> None:
    request = signing_request(key=key)
    assert certificates(enrol(station_pool, request))[0].public_key() == request.public_key()


def _with_wrong_signature() -> bytes:
    request = der(signing_request())
    return request[:-1] + bytes([request[-1] ^ 1])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "The body is empty; it must be a certificate signing request in Base64."),
        (b"{}", "The body is not a certificate signing request in Base64."),
        (b"AAAA", "The body is not a certificate signing request in Base64."),
        (b"M" * 16_000, "The body is not a certificate signing request (PKCS#10)."),
        (
            _with_wrong_signature(),
            "The signature of the certificate signing request is wrong: it was not made by its key.",
        ),
        (
            der(signing_request()) + b"\0",
            "The body is not a certificate signing request (PKCS#10): 1 bytes follow its end.",
        ),
        (
            der(signing_request(key=rsa.generate_private_key(65537, 2048))),
            "The key of the certificate signing request is not one of ISO 15118: secp256r1, secp521r1 or Ed448.",
        ),
        (
            der(signing_request("station 1")),
            "The common name of the certificate signing request must be one EVSE id, such as DE*ABC*E123.",
        ),
        (
            der(signing_request(None)),
            "The common name of the certificate signing request must be one EVSE id, such as DE*ABC*E123.",
        ),
    ],
)
def test_enrolment_refuses_other_requests_before_they_are_sent(
    station_pool: Pool, est: ESTServer, body: bytes, expected: str
) -> None:
    answer = post(station_pool, body)
    assert sentences(answer, 400) == [expected]
    assert est.seen == []


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/.well-known/mo/simpleenroll", 404, "This pool passes on requests for the CAs cpo, old, pnc-cpo only."),
        ("/.well-known/cpo/simpleenroll/ISO15118-3", 400, "iso-version : must be one of ISO15118-2, ISO15118-20"),
        (f"{ENROL}?xsdmsgdefnamespace=x", 400, "xsdmsgdefnamespace: did you mean xsdMsgDefNamespace?"),
        (
            f"/cpo/simpleenroll/ISO15118-2?xsdMsgDefNamespace={Namespace.ISO20}",
            400,
            "xsdMsgDefNamespace : means ISO15118-20, but the path names ISO15118-2",
        ),
        ("/cpo/simpleenroll/ISO15118-2/secp256r1", 404, "There is nothing at this path."),
        (
            "/.well-known/est/cpo%2F..%2Fmo/simpleenroll",
            404,
            "This pool passes on requests for the CAs cpo, old, pnc-cpo only.",
        ),
        ("/.well-known/cpo/simpleenrollment", 404, "There is nothing at this path."),
    ],
)
def test_enrolment_refuses_other_paths(
    station_pool: Pool, est: ESTServer, path: str, status: int, expected: str
) -> None:
    answer = enrol(station_pool, signing_request(), path)
    assert sentences(answer, status) == [expected]
    assert est.seen == []


def test_enrolment_body_beyond_its_limit_or_of_another_type_is_refused(station_pool: Pool, est: ESTServer) -> None:
    assert post(station_pool, b"M" * 16_385).status_code == 413
    assert post(station_pool, b"{}", kind="application/json").status_code == 415
    assert est.seen == []


@pytest.mark.parametrize("caller", ["emsp", "oem", "cps", "peer"])
def test_enrolment_is_for_operators_only(station_pool: Pool, est: ESTServer, caller: str) -> None:
    assert enrol(station_pool, signing_request(), caller=caller).status_code == 403
    bearer = {"Authorization": f"Bearer {station_pool.token(caller)}"}
    assert station_pool.http.get("/.well-known/cpo/cacerts", headers=bearer).status_code == 403
    assert post(station_pool, b"", caller=None).status_code == 401
    assert est.seen == []


def test_enrolment_for_another_operators_evse_is_refused(station_pool: Pool, est: ESTServer) -> None:
    answer = enrol(station_pool, signing_request("NL*EXC*E0001"))
    assert sentences(answer, 403) == ["The operator id NLEXC of the EVSE is not registered for the caller."]
    assert est.seen == []


def test_enrolment_of_any_subject_can_be_allowed(pkis: dict[str, PKI], est: ESTServer) -> None:
    with start(pkis, **est.settings(), est_subjects="any") as running:
        assert certificates(enrol(running, signing_request("station 1")))


def test_est_without_a_server_is_refused_with_a_sentence(pool: Pool) -> None:
    answer = enrol(pool, signing_request())
    assert sentences(answer, 404) == [
        "This pool passes no certificate requests on, because no EST server is configured (est_url)."
    ]
    bearer = {"Authorization": f"Bearer {pool.token('cpo')}"}
    assert pool.http.get("/.well-known/cpo/cacerts", headers=bearer).status_code == 404


def test_enrolment_is_recorded_with_request_subject_and_outcome(station_pool: Pool) -> None:
    request = signing_request("DE*EXC*EAUDIT")
    issued = certificates(enrol(station_pool, request))[0]
    digest = hashlib.sha256(der(request)).hexdigest()
    rows = station_pool.sql(
        "select actor, action, outcome, subject from audit where subject like ? order by lane, number", f"%{digest}%"
    )
    common = {"ca": "cpo", "csr_sha256": digest, "operation": "SimpleEnroll", "subject": "CN=DE*EXC*EAUDIT"}
    assert [row[:3] for row in rows] == [
        ("cpo", "certificate.requested", "ok"),
        ("cpo", "certificate.issued", "ok"),
    ]
    fingerprint = hashlib.sha256(issued.public_bytes(serialization.Encoding.DER)).hexdigest()
    assert [json.loads(row[3]) for row in rows] == [
        common,
        {
            **common,
            "fingerprint": fingerprint,
            "serial": f"{issued.serial_number:x}",
            "issuer": "CN=Station Sub CA",
        },
    ]


def test_enrolment_that_cannot_be_recorded_is_not_sent(station_pool: Pool, est: ESTServer) -> None:
    station_pool.sql("create trigger no_audit before insert on audit begin select raise(abort, 'disk full'); end")
    try:
        assert enrol(station_pool, signing_request()).status_code >= 500
    finally:
        station_pool.sql("drop trigger no_audit")
    assert est.seen == []


def test_enrolment_subject_of_evse_without_separators_is_taken(station_pool: Pool) -> None:
    for name in ("DEEXCE0001", "de*exc*E0001", EVSE):
        assert certificates(enrol(station_pool, signing_request(name)))
