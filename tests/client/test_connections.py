"""Failures of the connection: which one it is, with host and port, for both clients over real sockets."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ccp.client import (
    TLS,
    ClientCertificateError,
    Credentials,
    ExpiredCertificateError,
    NameMismatchError,
    NameResolutionError,
    NoResponseError,
    PlainHTTPError,
    RefusedConnectionError,
    RetryPolicy,
    TimedOutError,
    Timeouts,
    TLSError,
    TLSRequiredError,
    UntrustedCertificateError,
)
from tests.client.either import KINDS, connect
from tests.scripted_server import DROP, HANG, Reply, granted, json_reply, nowhere, scripted
from tests.world import AT, Pool

pytestmark = pytest.mark.parametrize("kind", KINDS)

EMAID = "DEEXAC00000001"
CONTRACTS = f"/opnc/v1/ccp/contractData/emaid/{EMAID}"
NOTHING = json_reply({"contractDataCollection": []})
NGINX = b"<html><body><center>The plain HTTP request was sent to HTTPS port</center></body></html>"
ALERT = b"\x15\x03\x03\x00\x02\x02\x46"
# A permanent failure is not retried: the test would take this long.
SLOW_RETRY = RetryPolicy(max_retries=1, backoff=8)
QUICK_RETRY = RetryPolicy(max_retries=1, backoff=0.01)


def failure(kind: str, url: str, expected: type[NoResponseError], **options: object) -> NoResponseError:
    """The error of a call, which is exactly of this class and names host and port of the URL."""
    began = time.monotonic()
    options = {"token": "t", "retry": SLOW_RETRY if expected.permanent else QUICK_RETRY, **options}
    with connect(kind, url, **options) as client, pytest.raises(NoResponseError) as caught:
        client.contracts_of_emaid(EMAID)
    assert time.monotonic() - began < 3
    error = caught.value
    assert type(error) is expected
    host, _, port = url.rpartition("//")[2].rpartition(":")
    assert (error.host, error.port) == (host, int(port))
    assert host in str(error)
    return error


class Files:
    """Makes server certificates as PEM files, each its own CA."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0

    def make(self, *hosts: str, begins: timedelta = -timedelta(days=1), ends: timedelta = timedelta(days=1)) -> Path:
        """A file with certificate and key. begins, ends: from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pool")])
        names = [x509.IPAddress(ipaddress.ip_address(h)) if h[0].isdigit() else x509.DNSName(h) for h in hosts]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(AT + begins)
            .not_valid_after(AT + ends)
            .add_extension(x509.SubjectAlternativeName(names), False)
            .add_extension(x509.BasicConstraints(True, None), True)
            .sign(key, hashes.SHA256())
        )
        self.count += 1
        path = self.folder / f"{self.count}.pem"
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        path.write_bytes(certificate.public_bytes(pem) + key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        return path


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def serving(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@contextmanager
def raw_server(script: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that runs a script for every connection. Returns host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    accepted, _ = listening.accept()
                except OSError:
                    return
                with accepted:
                    script(accepted)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


# --- Certificates of the server --------------------------------------------------------------------------------------


def test_connection_with_an_untrusted_ca_is_named(kind: str, files: Files) -> None:
    own, other = files.make("127.0.0.1"), files.make("127.0.0.1")
    with scripted(serving(own)) as server:
        for tls in (TLS(), TLS(ca_file=other)):
            error = failure(kind, server.url, UntrustedCertificateError, tls=tls)
            assert "is not trusted (self" in str(error)
            assert isinstance(error, TLSError)
            assert not error.outcome_unknown
        server.on(CONTRACTS, NOTHING)
        with connect(kind, server.url, token="t", tls=TLS(ca_file=own)) as client:
            assert client.contracts_of_emaid(EMAID) == ()
        assert len(server.received) == 1


def test_connection_with_an_expired_certificate_is_named(kind: str, files: Files) -> None:
    hour = timedelta(hours=1)
    for times, sentence in (
        ({"ends": -hour}, "has expired"),
        ({"begins": hour}, "is not valid yet"),
    ):
        certificate = files.make("127.0.0.1", **times)
        with scripted(serving(certificate)) as server:
            error = failure(kind, server.url, ExpiredCertificateError, tls=TLS(ca_file=certificate))
            assert sentence in str(error)


def test_certificate_for_another_name_is_named(kind: str, files: Files) -> None:
    certificate = files.make("pool.example")
    with scripted(serving(certificate)) as server:
        for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
            error = failure(kind, url, NameMismatchError, tls=TLS(ca_file=certificate))
            assert "is for another name" in str(error)
        assert not server.received


def test_connection_with_a_refused_client_certificate_is_named(kind: str, files: Files) -> None:
    certificate, accepted = files.make("127.0.0.1"), files.make("client.example")
    context = serving(certificate)
    # In TLS 1.3 the handshake is complete for the client before the server refuses its certificate.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(accepted)
    context.verify_mode = ssl.CERT_REQUIRED
    with scripted(context) as server:
        error = failure(kind, server.url, ClientCertificateError, tls=TLS(certificate, files.make("other.example")))
        assert "does not accept the client's certificate" in str(error)
        assert not error.outcome_unknown
        assert "HANDSHAKE_FAILURE" in str(failure(kind, server.url, TLSError, tls=TLS(ca_file=certificate)))
        server.on(CONTRACTS, NOTHING)
        with connect(kind, server.url, token="t", tls=TLS(certificate, accepted)) as client:
            assert client.contracts_of_emaid(EMAID) == ()


# --- TLS on one side alone -------------------------------------------------------------------------------------------


def test_https_to_a_port_of_plain_http_is_named(kind: str, pool: Pool) -> None:
    error = failure(kind, pool.base_url.replace("http:", "https:"), PlainHTTPError)
    assert "may speak plain HTTP" in str(error)
    assert not error.outcome_unknown

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    with raw_server(answer) as place:
        failure(kind, f"https://{place}", PlainHTTPError)


def test_https_to_a_silent_port_or_one_that_closes_is_named(kind: str) -> None:
    with raw_server(lambda connection: None) as place:
        error = failure(kind, f"https://{place}", TLSError)
        assert "during the TLS handshake" in str(error) or "The TLS handshake with" in str(error)
        assert not error.outcome_unknown
    with raw_server(lambda connection: time.sleep(0.4)) as place:  # Longer than the time limits below.
        error = failure(kind, f"https://{place}", TimedOutError, timeouts=Timeouts(request=0.2, total=0.2))
        assert "did not complete the TLS handshake in time" in str(error)
        assert not error.outcome_unknown


def test_connection_of_plain_http_to_a_port_of_https_is_named(kind: str, files: Files) -> None:
    with scripted(serving(files.make("127.0.0.1"))) as server:
        error = failure(kind, server.url.replace("https:", "http:"), TLSRequiredError)
        assert str(error).endswith("speaks TLS; use https.")
        assert not error.outcome_unknown


@pytest.mark.parametrize("closing", [b"", ALERT], ids=["closes", "alert"])
def test_connection_of_plain_http_to_a_port_that_closes_or_alerts_is_named(kind: str, closing: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        start = connection.recv(65536)
        connection.sendall(ALERT if start.startswith(b"\x16\x03") else closing)

    with raw_server(answer) as place:
        failure(kind, f"http://{place}", TLSRequiredError)


def test_connection_of_plain_http_to_a_server_that_says_so_is_named(kind: str) -> None:
    with scripted() as server:
        server.on(CONTRACTS, Reply(400, NGINX, {"Content-Type": "text/html"}))
        failure(kind, server.url, TLSRequiredError)


def test_server_of_plain_http_that_drops_connections_is_not_taken_for_tls(kind: str) -> None:
    with scripted() as server:
        server.on(CONTRACTS, DROP)
        error = failure(kind, server.url, NoResponseError)
        assert "closed the connection without a response" in str(error)
        assert error.outcome_unknown
        assert len(server.asked(CONTRACTS)) == 2


# --- Names, ports and times ------------------------------------------------------------------------------------------


def test_name_that_is_not_found_is_named(kind: str) -> None:
    for scheme in ("http", "https"):
        error = failure(kind, f"{scheme}://no-such-host.invalid:8443", NameResolutionError)
        assert str(error).startswith("The name no-such-host.invalid ")
        assert not error.outcome_unknown


def test_connection_that_is_refused_is_named(kind: str) -> None:
    url = nowhere()
    for each in (url, url.replace("http:", "https:"), url.replace("127.0.0.1", "localhost")):
        error = failure(kind, each, RefusedConnectionError)
        assert str(error).endswith("refuses the connection.")
        assert not error.outcome_unknown


def test_connection_that_a_proxy_refuses_names_the_proxy(kind: str) -> None:
    proxy = nowhere()
    for scheme in ("http", "https"):
        with (
            connect(kind, f"{scheme}://pool.example", token="t", proxy=proxy, retry=QUICK_RETRY) as client,
            pytest.raises(RefusedConnectionError) as caught,
        ):
            client.contracts_of_emaid(EMAID)
        assert f"http://{caught.value.host}:{caught.value.port}" == proxy
        assert str(caught.value).startswith(proxy.removeprefix("http://"))


def test_failure_after_an_attempt_of_unknown_outcome_is_of_unknown_outcome(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept_once() -> None:
            accepted, _ = listening.accept()
            listening.close()
            with accepted:
                accepted.recv(65536)

        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        threading.Thread(target=accept_once, daemon=True).start()
        assert failure(kind, url, RefusedConnectionError).outcome_unknown


def test_response_that_takes_too_long_is_named(kind: str) -> None:
    with scripted() as server:
        server.on(CONTRACTS, HANG)
        error = failure(kind, server.url, TimedOutError, timeouts=Timeouts(request=0.2, total=0.3))
        assert "did not respond in time" in str(error)
        assert error.outcome_unknown


def test_connection_that_takes_too_long_is_named(kind: str) -> None:
    # A full backlog: the system answers no further connection.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        filling = [socket.socket() for _ in range(4)]
        for each in filling:
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        error = failure(kind, url, TimedOutError, timeouts=Timeouts(request=0.2, total=0.2))
        for each in filling:
            each.close()
    assert "No connection to" in str(error)
    assert not error.outcome_unknown


def test_failure_of_the_token_endpoint_names_its_host(kind: str) -> None:
    gone = nowhere()
    with scripted() as server:
        server.on(CONTRACTS, NOTHING)
        with (
            connect(kind, server.url, credentials=Credentials("id", "secret", token_url=f"{gone}/token")) as client,
            pytest.raises(RefusedConnectionError) as caught,
        ):
            client.contracts_of_emaid(EMAID)
        assert f"http://{caught.value.host}:{caught.value.port}" == gone
        server.on("/oauth/token", granted("a-token"))
        with connect(kind, server.url, credentials=Credentials("id", "secret")) as client:
            assert client.contracts_of_emaid(EMAID) == ()
