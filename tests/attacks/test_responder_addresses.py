"""Responders that accept only GET, and status URLs that are malformed or cannot be called."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import unquote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from ccp.testing.pki import PKI, Credential, StatusURLs
from tests.scripted_server import Received, Reply, Scripted, scripted
from tests.server.http.api.answers import sentences
from tests.server.http.api.responders import LOOPBACK, ocsp_response
from tests.world import AT, Pool, start

SUB2 = "eMSP Sub2 CA SIM"
HOUR = timedelta(hours=1)
NEVER_CALLED = [
    *("ldap", "credentials", "nonsense", "no host", "backslash"),
    *("empty label", "root", "long label", "long name"),
]
NEVER = "names only addresses that cannot be called (http and https without credentials can)"


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted() as running:
        yield running


@dataclass(frozen=True)
class Several(StatusURLs):
    urls: tuple[str, ...] = ()

    def extensions(self) -> tuple[tuple[x509.ExtensionType, bool], ...]:
        method = AuthorityInformationAccessOID.OCSP
        access = [x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for url in self.urls]
        return ((x509.AuthorityInformationAccess(access), False),)


def naming(*urls: str) -> PKI:
    """A PKI whose contracts name these addresses of responders."""
    return PKI.generate(AT, status_urls=lambda ca: Several(urls=urls) if ca == SUB2 else StatusURLs())


@pytest.fixture(scope="module")
def pool(server: Scripted) -> Iterator[Pool]:
    """PKIs by what their contracts name."""
    addresses = {
        "405": server.url + "/405", "501": server.url + "/501/", "400": server.url + "/400",
        "broken": server.url + "/broken", "blanks": f" \t{server.url}/blanks\r\n", "ldap": "ldap://ca.example/cn=crl",
        "credentials": server.url.replace("http://", "http://user:secret@") + "/x", "nonsense": "http://what a host/",
        "no host": "http:///ocsp", "backslash": "http://a.example\\@b.example/", "iso2": server.url + "/plain",
        "changed": server.url + "/changed", "empty label": "http://ocsp..example/", "root": "http://./",
        "long label": f"http://{64 * 'a'}.example/", "long name": f"http://{'.'.join(4 * [63 * 'a'])}/",
    }  # fmt: skip
    bad = ("ldap://ca.example/x", "http://user:secret@ca.example/", "not an address", "ftp://x")
    pkis = {name: naming(url) for name, url in addresses.items()}
    pkis["mixed"] = naming(*bad, f" {server.url}/mixed ")
    with start(pkis, egress_allow_networks=LOOPBACK) as running:
        yield running


def get_only(server: Scripted, path: str, issuer: Credential, refusal: Reply) -> None:
    """A responder below a path that refuses POST like this and answers GET as RFC 6960 appendix A.1 has it."""

    def answering(request: Received) -> Reply:
        if request.method != "GET":
            return refusal
        encoded = request.path.removeprefix(path + "/")
        assert "/" not in encoded
        return Reply(body=ocsp_response(issuer, base64.b64decode(unquote(encoded), validate=True)))

    server.on(path + "*", answering)


@pytest.mark.parametrize(
    ("kind", "refusal"), [("405", Reply(status=405)), ("501", Reply(status=501)), ("400", Reply(400, b"<html>"))]
)
def test_ocsp_falls_back_to_get(pool: Pool, server: Scripted, kind: str, refusal: Reply) -> None:
    get_only(server, "/" + kind, pool.pki(kind).emsp_sub2, refusal)
    pool.publish(pool.car(), signer=kind)
    seen = [request.method for request in server.received if request.path.startswith("/" + kind)]
    assert seen == ["POST", "GET"]
    # The responder is known by now: one request for the next contract.
    pool.publish(pool.car(), signer=kind)
    seen = [request.method for request in server.received if request.path.startswith("/" + kind)]
    assert seen == ["POST", "GET", "GET"]


def test_ocsp_returns_to_post_if_get_is_refused(pool: Pool, server: Scripted) -> None:
    issuer = pool.pki("changed").emsp_sub2
    get_only(server, "/changed", issuer, Reply(status=405))
    pool.publish(pool.car(), signer="changed")

    def post_only(request: Received) -> Reply:
        return Reply(body=ocsp_response(issuer, request.body)) if request.method == "POST" else Reply(status=405)

    server.on("/changed*", post_only)
    for _ in range(2):
        pool.publish(pool.car(), signer="changed")
    seen = [request.method for request in server.received if request.path.startswith("/changed")]
    assert seen == ["POST", "GET", "GET", "POST", "POST"]


def test_ocsp_response_with_status_400_does_not_cause_get(pool: Pool, server: Scripted) -> None:
    malformed = ocsp.OCSPResponseBuilder.build_unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
    server.on("/broken*", Reply(400, malformed.public_bytes(Encoding.DER)))
    answer = pool.put(pool.contract(pool.car(), signer="broken"))
    assert "answered with the HTTP status 400" in sentences(answer, 503)[0]
    assert [request.method for request in server.received if request.path.startswith("/broken")] == ["POST"]


def test_status_urls_are_trimmed(pool: Pool, server: Scripted) -> None:
    issuer = pool.pki("blanks").emsp_sub2
    server.on("/blanks*", lambda request: Reply(body=ocsp_response(issuer, request.body)))
    pool.publish(pool.car(), signer="blanks")
    assert server.count("/blanks") == 1


@pytest.mark.parametrize("kind", NEVER_CALLED)
def test_status_urls_that_are_uncallable_are_refused_permanently(pool: Pool, server: Scripted, kind: str) -> None:
    before = len(server.received)
    contract = pool.contract(pool.car(), signer=kind)
    answer = pool.put(contract)
    (statement,) = sentences(answer, 400)
    assert NEVER in statement
    assert "Retry-After" not in answer.headers
    report = pool.cps.put("/signedcontractdata", json=contract.body, params={"dryRun": "true"}).json()
    assert not report["passed"]
    assert any(NEVER in check["reason"] for check in report["checks"] if check["verdict"] == "failed")
    assert (pool.stored(contract.emaid), len(server.received)) == (0, before)


def test_status_urls_that_are_uncallable_are_refused_by_policy_require(server: Scripted) -> None:
    with start({"iso2": naming("ldap://ca.example/cn=crl")}, revocation="require") as pool:
        answer = pool.put(pool.contract(pool.car()))
        assert any(NEVER in sentence for sentence in sentences(answer, 400))
        assert "Retry-After" not in answer.headers


def test_status_url_that_is_callable_is_enough(pool: Pool, server: Scripted) -> None:
    issuer = pool.pki("mixed").emsp_sub2
    server.on("/mixed*", lambda request: Reply(body=ocsp_response(issuer, request.body)))
    pool.publish(pool.car(), signer="mixed")
    assert server.count("/mixed") == 1
