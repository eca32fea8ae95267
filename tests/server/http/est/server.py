"""A small EST server on loopback, with a real CA: RFC 7030 with bearer tokens, as operators of PKIs run it.

with est_server() as est:
    with start(pkis, **est.settings()) as pool: …
    est.seen[-1].body                      # what the pool sent
    est.answer = lambda seen: Reply(503)   # instead of issuing
"""

from __future__ import annotations

import base64
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from tests.world import AT

CLIENT_ID, CLIENT_SECRET, TOKEN = "pool-at-est", "secret-at-the-est-server", "token-of-the-est-server"


@dataclass
class Seen:
    """A request. headers: names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Reply:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


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


@dataclass
class ESTServer:
    """answer: None for a server that issues certificates to clients with its current token."""

    url: str
    ca: CA = field(default_factory=CA)
    seen: list[Seen] = field(default_factory=list)
    answer: Callable[[Seen], Reply] | None = None
    token: str = TOKEN
    tokens_issued: int = 0

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
        return x509.load_der_x509_csr(base64.b64decode(self.seen[-1].body))

    def reply(self, seen: Seen) -> Reply:
        if seen.path == "/oauth/token":
            form = parse_qs(seen.body.decode())
            if form.get("client_id") != [CLIENT_ID] or form.get("client_secret") != [CLIENT_SECRET]:
                return Reply(401)
            self.tokens_issued += 1
            granted = b'{"access_token": "%s", "token_type": "Bearer", "expires_in": 3600}' % self.token.encode()
            return Reply(200, granted, {"Content-Type": "application/json"})
        self.seen.append(seen)
        if seen.headers.get("authorization") != f"Bearer {self.token}":
            return Reply(401, b"<html>Who are you?</html>", {"Content-Type": "text/html", "WWW-Authenticate": "Basic"})
        if self.answer is not None:
            return self.answer(seen)
        parts = seen.path.partition("?")[0].removeprefix("/.well-known").removeprefix("/est").split("/")
        if "cacerts" in parts and seen.method == "GET":
            return certs_only(self.ca.issuer, self.ca.root)
        if {"simpleenroll", "simplereenroll"} & set(parts) and seen.method == "POST":
            request = x509.load_der_x509_csr(base64.b64decode(seen.body))
            assert request.is_signature_valid
            return certs_only(self.ca.issue(request))
        return Reply(404, b"<html>Nothing here.</html>", {"Content-Type": "text/html"})


@contextmanager
def est_server() -> Iterator[ESTServer]:
    """Run an EST server for a block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def _any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            reply = server.reply(Seen(self.command, self.path, headers, body))
            with contextlib.suppress(OSError):
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)

        do_GET = do_POST = _any

        def log_message(self, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    listening = Server(("127.0.0.1", 0), Handler)
    server = ESTServer(f"http://127.0.0.1:{listening.server_port}")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join(5)


def http_date(moment: datetime) -> str:
    return moment.strftime("%a, %d %b %Y %H:%M:%S GMT")
