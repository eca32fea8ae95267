"""EST pass-through: what becomes of the answers of the EST server."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from ccp.errors import ChainError
from ccp.testing.pki import PKI
from ccp.x509.certificates import Certificate
from ccp.x509.certs_only import encode_certs_only, read_certs_only
from tests.scripted_server import Received, Reply, nowhere
from tests.server.http.api.answers import sentences
from tests.server.http.est.requests import EVSE, certificates, enrol, signing_request
from tests.server.http.est.server import ESTServer, certs_only, est_server, http_date
from tests.world import AT, Pool, start

EC_KEY = bytes.fromhex("2a8648ce3d0201")


@pytest.fixture(scope="module")
def est() -> Iterator[ESTServer]:
    with est_server() as running:
        yield running


@pytest.fixture(scope="module")
def station_pool(pkis: dict[str, PKI], est: ESTServer) -> Iterator[Pool]:
    with start(pkis, **est.settings()) as running:
        yield running


def outcomes(pool: Pool) -> list[str]:
    """The outcomes of the last enrolment in the audit trail."""
    rows = pool.sql(
        "select outcome from audit where actor = 'cpo' and action like 'certificate.%' order by number desc limit 2"
    )
    return [row[0] for row in reversed(rows)]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "120"}, "120"),
        ({"Retry-After": "0"}, "1"),
        ({"Retry-After": "999999999"}, "86400"),
        ({"Retry-After": "soon"}, "60"),
        ({}, "60"),
        ({"Date": http_date(AT), "Retry-After": http_date(AT + timedelta(minutes=5))}, "300"),
    ],
)
def test_enrolment_that_is_pending_is_202_with_the_time_to_wait(
    station_pool: Pool, est: ESTServer, headers: dict[str, str], seconds: str
) -> None:
    est.answer = lambda seen: Reply(202, b"<p>please wait</p>", headers)
    answer = enrol(station_pool, signing_request())
    assert answer.headers["retry-after"] == seconds
    assert sentences(answer, 202) == [
        f"The EST server has not issued the certificate yet; send the same request again in {seconds} seconds."
    ]
    assert outcomes(station_pool) == ["ok", "pending"]


@pytest.mark.parametrize(
    ("reply", "status", "expected", "outcome"),
    [
        (
            Reply(400, b"Common name is taken.\r\n", {"Content-Type": "text/plain"}),
            400,
            "The EST server refuses the request (status 400): Common name is taken.",
            "est_refused",
        ),
        (
            Reply(400, b"<html><b>No</b></html>", {"Content-Type": "text/html"}),
            400,
            "The EST server refuses the request (status 400).",
            "est_refused",
        ),
        (
            Reply(422, b"<b>No</b>", {"Content-Type": "text/plain"}),
            400,
            "The EST server refuses the request (status 422).",
            "est_refused",
        ),
        (Reply(404), 404, "The EST server does not have this operation for the CA cpo.", "not_found"),
        (Reply(403), 502, "The EST server does not accept the credentials of this pool.", "upstream"),
        (Reply(429), 503, "The EST server cannot answer now; try again later.", "unavailable"),
        (
            Reply(503, headers={"Retry-After": "7"}),
            503,
            "The EST server cannot answer now; try again later.",
            "unavailable",
        ),
        (Reply(302, headers={"Location": "/login"}), 502, "The EST server answered with status 302.", "upstream"),
        (Reply(500, b"<html>stack trace</html>"), 502, "The EST server answered with status 500.", "upstream"),
        (Reply(204), 502, "The EST server answered with status 204.", "upstream"),
    ],
)
def test_est_refusal_becomes_a_sentence_without_its_page(
    station_pool: Pool, est: ESTServer, reply: Reply, status: int, expected: str, outcome: str
) -> None:
    reply.headers["X-Internal"] = "host-7"
    est.answer = lambda seen: reply
    answer = enrol(station_pool, signing_request())
    assert sentences(answer, status) == [expected]
    assert "x-internal" not in answer.headers
    assert "location" not in answer.headers
    assert outcomes(station_pool) == ["ok", outcome]
    if status == 503:
        assert answer.headers["retry-after"] == reply.headers.get("Retry-After", "5")


def _signed(ca_certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bytes:
    builder = pkcs7.PKCS7SignatureBuilder().set_data(b"hello").add_signer(ca_certificate, key, hashes.SHA256())
    return builder.sign(Encoding.DER, [pkcs7.PKCS7Options.Binary])


@pytest.mark.parametrize(
    "kind", ["signed", "certificate", "empty", "truncated", "trailing", "html", "nothing", "depth", "no_certificate"]
)
def test_est_answer_that_is_not_certificates_only_is_not_passed_on(
    station_pool: Pool, est: ESTServer, kind: str
) -> None:
    def answer(seen: object) -> Reply:
        issued = est.ca.issue(est.last_request)
        message = pkcs7.serialize_certificates([issued], Encoding.DER)
        bodies = {
            "signed": _signed(est.ca.issuer, est.ca.key),
            "certificate": issued.public_bytes(Encoding.DER),
            "empty": pkcs7.serialize_certificates([issued], Encoding.DER)[:0],
            "truncated": message[:-20],
            "trailing": message + b"\x05\x00",
            "html": b"<html>Sign in</html>",
            "nothing": b"0\0",
            "depth": b"\x30\x80" * 5_000,
            "no_certificate": bytes.fromhex("302306092a864886f70d010702a0163014020101310030"
                                            "0b06092a864886f70d0107013100"),
        }  # fmt: skip
        body = bodies[kind] if kind == "html" else base64.encodebytes(bodies[kind])
        return Reply(200, body, {"Content-Type": "application/pkcs7-mime"})

    est.answer = answer
    found = enrol(station_pool, signing_request())
    assert sentences(found, 502) == ["The EST server's answer is not a PKCS#7 message of certificates only."]
    assert outcomes(station_pool) == ["ok", "upstream"]


def test_est_answer_for_another_key_is_not_passed_on(station_pool: Pool, est: ESTServer) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    est.answer = lambda seen: certs_only(est.ca.issue(est.last_request, other), est.ca.issuer)
    answer = enrol(station_pool, signing_request())
    assert sentences(answer, 502) == ["The EST server's answer has no certificate for the key of the request."]


def test_est_answer_with_its_chain_has_the_issued_certificate_first(station_pool: Pool, est: ESTServer) -> None:
    est.answer = lambda seen: certs_only(est.ca.root, est.ca.issuer, est.ca.issue(est.last_request))
    request = signing_request()
    found = certificates(enrol(station_pool, request))
    assert found[0].public_key() == request.public_key()
    assert set(found[1:]) == {est.ca.root, est.ca.issuer}


def test_est_answer_beyond_its_limit_is_not_read(station_pool: Pool, est: ESTServer) -> None:
    est.answer = lambda seen: Reply(200, b"M" * 200_000, {"Content-Type": "application/pkcs7-mime"})
    answer = enrol(station_pool, signing_request())
    assert sentences(answer, 502) == ["The EST server does not answer now."]


def test_est_server_that_does_not_answer_is_502(pkis: dict[str, PKI]) -> None:
    with start(pkis, est_url=nowhere(), est_token="t") as running:
        answer = enrol(running, signing_request())
        assert sentences(answer, 502) == ["The EST server does not answer now."]
        assert outcomes(running) == ["ok", "upstream"]


def test_est_token_is_renewed_once_after_a_refusal(station_pool: Pool, est: ESTServer) -> None:
    est.answer = None
    assert certificates(enrol(station_pool, signing_request()))
    before = est.tokens_issued
    est.token = "the-next-token"
    assert certificates(enrol(station_pool, signing_request()))
    assert est.tokens_issued == before + 1


def test_est_credentials_that_are_refused_are_502(pkis: dict[str, PKI], est: ESTServer) -> None:
    with start(pkis, est_url=est.url, est_token="another-token") as running:
        answer = enrol(running, signing_request())
        assert sentences(answer, 502) == ["The EST server does not accept the credentials of this pool."]
        assert "www-authenticate" not in answer.headers


def test_est_refusal_that_repeats_the_credentials_shows_no_secret(station_pool: Pool, est: ESTServer) -> None:
    def echo(seen: Received) -> Reply:
        return Reply(400, f"Refused: {seen.headers['authorization']}".encode(), {"Content-Type": "text/plain"})

    est.answer = echo
    answer = enrol(station_pool, signing_request())
    assert sentences(answer, 400) == ["The EST server refuses the request (status 400): Refused: Bearer (token)."]


def test_est_answer_with_a_ca_of_an_unknown_key_type_is_passed_on(station_pool: Pool, est: ESTServer) -> None:
    def answer(seen: Received) -> Reply:
        issued = est.ca.issue(est.last_request).public_bytes(Encoding.DER)
        # The object identifier of elliptic curve keys becomes one that is not assigned.
        unknown = est.ca.root.public_bytes(Encoding.DER).replace(EC_KEY, EC_KEY[:-1] + b"\x7f")
        message = encode_certs_only(Certificate.load(each) for each in (unknown, issued))
        return Reply(200, base64.b64encode(message), {"Content-Type": "application/pkcs7-mime"})

    est.answer = answer
    found = enrol(station_pool, signing_request())
    assert found.status_code == 200, found.text
    first, second = read_certs_only(base64.b64decode(found.content))
    assert first.subject_cn == EVSE
    with pytest.raises(ChainError):
        _ = second.public_key
