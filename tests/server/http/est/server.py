"""A small EST server on loopback, with a real CA: RFC 7030 with bearer tokens, as operators of PKIs run it.

with est_server() as est:
    with start(pkis, **est.settings()) as pool: …
    est.seen[-1].body                      # what the pool sent
    est.answer = lambda seen: Reply(503)   # instead of issuing
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from tests.scripted_server import Received, Reply, Scripted, granted, run
from tests.world import AT

CLIENT_ID, CLIENT_SECRET, TOKEN = "pool-at-est", "secret-at-the-est-server", "token-of-the-est-server"


class CA:
    """A root and an issuing CA."""

    def __init__(self) -> None:
        self.root_key, self.key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        self.root = self._sign("Station Root CA", self.root_key.public_key(), "Station Root CA", self.root_key, 1)
        self.issuer = self._sign("Station Sub CA", self.key.public_key(), "Station Root CA", self.root_key, 0)

    def issue(self, request: x509.CertificateSigningRequest, key: Any = None) -> x509.Certificate:
        """key: another than that of the request."""
        return self._sign(request.subject, key or request.public_key(), "Station Sub CA", self.key, None)

    def _sign(
        self,
        subject: str | x509.Name,
        key: Any,
        issuer: str,
        issuer_key: ec.EllipticCurvePrivateKey,
        length: int | None,
    ) -> x509.Certificate:
        """length: path length of a CA; None for an end entity."""
        return (
            x509.CertificateBuilder()
            .issuer_name(_name(issuer))
            .subject_name(subject if isinstance(subject, x509.Name) else _name(subject))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(AT - timedelta(hours=1))
            .not_valid_after(AT + timedelta(days=90))
            .add_extension(x509.BasicConstraints(length is not None, length), critical=True)
            .sign(issuer_key, hashes.SHA256())
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def certs_only(*certificates: x509.Certificate) -> Reply:
    encoded = base64.encodebytes(pkcs7.serialize_certificates(list(certificates), Encoding.DER))
    kind = "application/pkcs7-mime; smime-type=certs-only"
    return Reply(200, encoded, {"Content-Type": kind, "Content-Transfer-Encoding": "base64", "X-Internal": "host-7"})


class ESTServer(Scripted):
    """answer: None for a server that issues certificates to clients with its current token."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.ca = CA()
        self.seen: list[Received] = []
        self.answer: Callable[[Received], Reply] | None = None
        self.token = TOKEN
        self.tokens_issued = 0
        self.on("/oauth/token", self._token)
        self.on("/*", self._est)

    def settings(self, path: str = "") -> dict[str, Any]:
        """The settings of a pool that uses this server."""
        return {
            "est_url": self.url + path,
            "est_token_url": f"{self.url}/oauth/token",
            "est_client_id": CLIENT_ID,
            "est_client_secret": CLIENT_SECRET,
        }

    @property
    def last_request(self) -> x509.CertificateSigningRequest:
        return self.read(self.seen[-1])

    def _token(self, request: Received) -> Reply:
        form = parse_qs(request.body.decode())
        if form.get("client_id") != [CLIENT_ID] or form.get("client_secret") != [CLIENT_SECRET]:
            return Reply(401)
        self.tokens_issued += 1
        return granted(self.token)

    def _est(self, request: Received) -> Reply:
        self.seen.append(request)
        if request.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, b"<html>Who are you?</html>", {"Content-Type": "text/html", "WWW-Authenticate": "Basic"})
        if self.answer is not None:
            return self.answer(request)
        parts = request.path.removeprefix("/.well-known").removeprefix("/est").split("/")
        if "cacerts" in parts and request.method == "GET":
            return certs_only(self.ca.issuer, self.ca.root)
        if {"simpleenroll", "simplereenroll"} & set(parts) and request.method == "POST":
            return certs_only(self.ca.issue(self.read(request)))
        return Reply(404, b"<html>Nothing here.</html>", {"Content-Type": "text/html"})

    @staticmethod
    def read(request: Received) -> x509.CertificateSigningRequest:
        found = x509.load_der_x509_csr(base64.b64decode(request.body))
        assert found.is_signature_valid
        return found


@contextmanager
def est_server() -> Iterator[ESTServer]:
    """Run an EST server for a block."""
    with run(ESTServer) as server:
        yield server


def http_date(moment: datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")
