"""Checks of TLS: the certificate files of the server, what the running server presents, and the public URL."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from ccp.errors import Unavailable
from ccp.server.diagnosis.configuration import is_loopback
from ccp.server.diagnosis.context import PROBE_TIMEOUT, Context
from ccp.server.diagnosis.finding import CheckResult
from ccp.server.external.outbound import OutboundError

EXPIRES_SOON: Final = timedelta(days=30)
_TIME: Final = "%Y-%m-%d %H:%M UTC"
_MIN_RSA_BITS: Final = 2048
_MIN_EC_BITS: Final = 224
_SYSTEM_CAS: Final = tuple(
    map(Path, ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"))
)


async def check_server_tls(context: Context, result: CheckResult) -> None:
    """The files of the server's certificate, and what a server on this machine presents."""
    settings = context.settings
    if settings.tls_cert is None or settings.tls_key is None:
        result.note("the pool serves plain HTTP (tls_cert is not set)")
        return
    cert, key = settings.tls_cert, settings.tls_key
    chain = await context.blocking(_load, cert, key, result)
    if not chain:
        return
    leaf, names = chain[0], names_of(chain[0])
    result.note(f"{cert}: {len(chain)} certificate(s), valid until {leaf.not_valid_after_utc:{_TIME}}")
    result.note(f"names: {', '.join(names) or 'none'}")
    _check_validity(leaf, context.clock(), result)
    for certificate in chain:
        if problem := _weakness(certificate):
            result.add("tls.weak", f"{_name(certificate)}: {problem}.", subject="tls_cert")
    _check_order(chain, await context.blocking(_known_cas, settings.tls_client_ca), result)
    host = urlsplit(settings.base_url or "").hostname
    if host and not is_for(names, host):
        message = f"The certificate is for {', '.join(names) or 'no name'}, and not for {host}, the host of base_url."
        result.add("tls.wrong-name", message, subject="tls_cert")
    await _compare_with_running(context, leaf, result)


def _load(cert: Path, key: Path, result: CheckResult) -> list[x509.Certificate]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
        return x509.load_pem_x509_certificates(cert.read_bytes())
    except (OSError, ValueError) as exc:  # SSLError is an OSError.
        reason = _reason(exc)
        result.add("tls.unusable", f"{cert} and {key} cannot be used together: {reason}.", subject="tls_cert")
        return []


def _reason(exc: OSError | ValueError) -> str:
    if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
        return "the key is not the one of the certificate"
    if isinstance(exc, FileNotFoundError):
        return "a file does not exist"
    return (isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) and exc.strerror) or "not a usable PEM file"


def _check_validity(leaf: x509.Certificate, now: datetime, result: CheckResult) -> None:
    if leaf.not_valid_after_utc < now:
        message = f"The certificate expired on {leaf.not_valid_after_utc:{_TIME}}."
        result.add("tls.expired", message, subject="tls_cert")
    elif leaf.not_valid_before_utc > now:
        message = f"The certificate is not valid before {leaf.not_valid_before_utc:{_TIME}}."
        result.add("tls.not-yet-valid", message, subject="tls_cert")
    elif leaf.not_valid_after_utc - now < EXPIRES_SOON:
        message = f"The certificate expires on {leaf.not_valid_after_utc:{_TIME}}."
        result.add("tls.expires-soon", message, subject="tls_cert")


def _weakness(certificate: x509.Certificate) -> str | None:
    try:
        key, algorithm = certificate.public_key(), certificate.signature_hash_algorithm
    except (ValueError, UnsupportedAlgorithm):
        return "its key or signature algorithm is not supported"
    if isinstance(key, RSAPublicKey) and key.key_size < _MIN_RSA_BITS:
        return f"an RSA key of {key.key_size} bits"
    if isinstance(key, EllipticCurvePublicKey) and key.key_size < _MIN_EC_BITS:
        return f"an elliptic curve key of {key.key_size} bits"
    if isinstance(algorithm, hashes.SHA1 | hashes.MD5) and certificate.issuer != certificate.subject:
        return f"a signature with {algorithm.name}"
    return None


def _check_order(chain: list[x509.Certificate], known: list[x509.Certificate], result: CheckResult) -> None:
    for child, issuer in pairwise(chain):
        if not _issued(child, issuer):
            message = f"{_name(issuer)} follows {_name(child)} in tls_cert, but did not issue it."
            result.add("tls.chain-order", message, subject="tls_cert")
            return
    last = chain[-1]
    if last.issuer != last.subject and not any(_issued(last, ca) for ca in known):
        message = f"{_name(last)} was issued by {_common_name(last.issuer)}, which does not follow in tls_cert."
        result.add("tls.chain-incomplete", message, subject="tls_cert")


def _issued(child: x509.Certificate, issuer: x509.Certificate) -> bool:
    if child.issuer != issuer.subject:
        return False
    try:
        child.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _known_cas(client_ca: Path | None) -> list[x509.Certificate]:
    """The CAs of the system, and those of client certificates, which partners of a private CA have."""
    found: list[x509.Certificate] = []
    bundle = next((path for path in _SYSTEM_CAS if path.exists()), None)
    for path in filter(None, (client_ca, bundle)):
        try:
            found += x509.load_pem_x509_certificates(path.read_bytes())
        except (OSError, ValueError):
            continue
    return found


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """DNS names and addresses of the extension SubjectAltName, in lower case."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    dns = [name.lower() for name in names.get_values_for_type(x509.DNSName)]
    return (*dns, *map(str, names.get_values_for_type(x509.IPAddress)))


def is_for(names: Sequence[str], host: str) -> bool:
    """Whether a client that connects to a host accepts a certificate with these names. Source: RFC 9525 clause 6.3."""
    host = host.lower().rstrip(".")
    parent = host.partition(".")[2]
    return any(name == host or (name.startswith("*.") and name[2:] == parent) for name in names)


async def _compare_with_running(context: Context, leaf: x509.Certificate, result: CheckResult) -> None:
    """Connect to the server on this machine, if there is one."""
    host = own_address(context.settings.host)
    try:
        presented = await context.blocking(presented_certificate, host, context.settings.port)
    except OSError:
        return  # No server runs, or it requires a client certificate and has closed the connection.
    if presented is not None and presented.fingerprint(hashes.SHA256()) != leaf.fingerprint(hashes.SHA256()):
        message = (
            f"The server at {host}:{context.settings.port} presents a certificate that is valid until "
            f"{presented.not_valid_after_utc:{_TIME}}, not the one in tls_cert."
        )
        result.add("tls.not-reloaded", message, subject="tls_cert")


def own_address(host: str) -> str:
    """The address at which a server on this machine that listens on `host` can be called."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return "127.0.0.1" if address.version == 4 else "::1"
    return host


def presented_certificate(
    host: str, port: int, context: ssl.SSLContext | None = None, timeout: float = PROBE_TIMEOUT
) -> x509.Certificate | None:
    """The certificate that a server presents. context: None to accept any. Raises OSError (SSLError too)."""
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, port), timeout) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der) if der else None


def _name(certificate: x509.Certificate) -> str:
    return _common_name(certificate.subject)


def _common_name(name: x509.Name) -> str:
    found = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    text = str(found[0].value) if found else name.rfc4514_string()
    return f'"{text[:64]}"'


async def check_public_url(context: Context, result: CheckResult) -> None:
    """The public URL answers, and its certificate is accepted with the CAs of this machine."""
    base = context.settings.base_url
    if base is None:
        result.note("base_url is not set")
        return
    parts = urlsplit(base)
    host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme == "https":
        try:
            found = await context.blocking(presented_certificate, host, port, ssl.create_default_context())
        except ssl.SSLCertVerificationError as exc:
            result.add("public-url.tls", f"{host}:{port}: {exc.verify_message}.", subject="base_url")
            return
        except ssl.SSLError as exc:
            reason = (exc.reason or str(exc)).replace("_", " ").lower()
            result.add("public-url.tls", f"{host}:{port}: {reason}.", subject="base_url")
            return
        except (OSError, Unavailable) as exc:  # Unavailable: the name was not resolved in time.
            result.add("public-url.unreachable", f"{host}:{port}: {_network_reason(exc)}.", subject="base_url")
            return
        if found is not None:
            result.note(f"certificate of {host}: valid until {found.not_valid_after_utc:{_TIME}}")
            if found.not_valid_after_utc - context.clock() < EXPIRES_SOON:
                message = f"The certificate of {host} expires on {found.not_valid_after_utc:{_TIME}}."
                result.add("public-url.expires-soon", message, subject="base_url")
    try:
        response = await context.probe(f"{base}/health/live", configured=True)
    except OutboundError as exc:
        # With plain HTTP on loopback the check of the running server says what there is to say.
        if is_loopback(host):
            result.note(f"{base}: no pool answers")
        else:
            result.add("public-url.unreachable", str(exc), subject="base_url")
        return
    result.note(f"GET {base}/health/live: {response.status}")


def _network_reason(exc: OSError | Unavailable) -> str:
    if isinstance(exc, socket.gaierror):
        return "the name cannot be resolved"
    if isinstance(exc, TimeoutError | Unavailable):
        return "no answer in time"
    return exc.strerror or "no connection"
