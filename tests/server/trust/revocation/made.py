"""PKIs whose certificates name status URLs, their chains, and a service with a real store and real HTTP."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ccp.server.external.outbound import OutboundClient
from ccp.server.settings import Settings
from ccp.server.storage import Store, connect
from ccp.server.trust.revocation import RevocationService
from ccp.testing.pki import PKI, Algorithm, Credential, StatusURLs
from ccp.testing.revocation import sign_crl, sign_ocsp_response
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import VerifiedChain
from ccp.x509.profiles import Profile, Usage
from tests.databases import fresh, with_schema
from tests.scripted_server import Reply, Scripted

ALGORITHMS: tuple[Algorithm, ...] = ("P-256", "P-521", "Ed448")
AT = datetime.now(UTC).replace(microsecond=0)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LOOPBACK = ("127.0.0.0/8",)
_NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Branch:
    """The eMSP's part of a PKI: what a contract's chain goes through."""

    pki: PKI
    root: Credential
    sub1: Credential
    sub2: Credential

    def contract(self) -> Credential:
        return self.pki.contract(f"DESIMC{next(_NUMBERS):08d}", now=AT)

    def chain(self, contract: Certificate, at: datetime = AT) -> VerifiedChain:
        offered = [self.sub2.certificate, self.sub1.certificate]
        return self.pki.anchors().verify(contract, offered, usage=Usage.CONTRACT, now=at, profile=Profile.ISO20)


def branch(algorithm: Algorithm = "P-256", addresses: Mapping[str, StatusURLs] | None = None) -> Branch:
    """addresses: by the issuing CA, "root", "sub1" or "sub2"."""
    names = {"eMSP Root CA SIM": "root", "eMSP Sub1 CA SIM": "sub1", "eMSP Sub2 CA SIM": "sub2"}
    pki = PKI.generate(
        AT, algorithm=algorithm, status_urls=lambda name: (addresses or {}).get(names.get(name, ""), StatusURLs())
    )
    return Branch(pki, pki.emsp_root, pki.emsp_sub1, pki.emsp_sub2)


def without_addresses(credential: Credential) -> Credential:
    return replace(credential, status_urls=StatusURLs())


def answer(certificate: Certificate, issuer: Credential, **more: Any) -> bytes:
    """A response that was made a minute ago and holds for an hour."""
    times = {"this_update": AT - timedelta(minutes=1), "next_update": AT + HOUR}
    return sign_ocsp_response(certificate, issuer, **{**times, **more})


def ocsp_response(
    issuer: Credential,
    leaf: Certificate,
    signer: Any,
    certificates: list[x509.Certificate],
    *,
    by_key: bool = False,
    responder: x509.Certificate,
) -> bytes:
    """A good answer for a leaf of an issuer, with these certificates in it. by_key: names the responder by its key."""
    builder = ocsp.OCSPResponseBuilder().add_response(
        leaf.x509, issuer.certificate.x509, hashes.SHA1(), ocsp.OCSPCertStatus.GOOD, AT, AT + HOUR, None, None
    )
    kind = ocsp.OCSPResponderEncoding.HASH if by_key else ocsp.OCSPResponderEncoding.NAME
    builder = builder.responder_id(kind, responder).certificates(certificates)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def unused(der: bytes, signature: bytes) -> bytes:
    """Claim one unused bit for a signature whose last bit is zero."""
    at = der.index(signature) - 1
    return der[:at] + b"\1" + der[at + 1 :]


def crl(issuer: Credential, *revoked: Certificate, **more: Any) -> bytes:
    """A list that was made a minute ago and holds for a day."""
    times = {"this_update": AT - timedelta(minutes=1), "next_update": AT + DAY}
    return sign_crl(issuer, {one.serial_number: AT - DAY for one in revoked}, **{**times, **more})


def serve_crl(server: Scripted, path: str, der: bytes, etag: str = '"1"') -> str:
    """A server that knows conditional requests."""

    def answering(request: Any) -> Reply:
        if request.headers.get("if-none-match") == etag:
            return Reply(status=304, headers={"ETag": etag})
        return Reply(body=der, headers={"ETag": etag})

    server.on(path, answering)
    return server.url + path


@dataclass
class Bench:
    service: RevocationService
    store: Store


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Bench]:
    """A service with a new database. options: settings; loopback may be called unless they say otherwise."""
    with tempfile.TemporaryDirectory(prefix="ccp-test-") as folder:
        values = {"database": fresh(Path(folder)), "egress_allow_networks": LOOPBACK, **options}
        settings = Settings(**values)
        with_schema(settings.database)
        store = connect(settings.database)
        await store.open()
        outbound = OutboundClient(settings.egress_allow_networks)
        service = RevocationService(store, outbound, settings, lambda: AT, jitter=lambda: 0.5)
        try:
            yield Bench(service, store)
        finally:
            await service.close()
            await outbound.close()
            await store.close()


@asynccontextmanager
async def beside(bench: Bench, chance: float = 0.5, **options: Any) -> AsyncIterator[RevocationService]:
    """Another service on the same database, as after a restart with other settings. chance: what spreads its times."""
    outbound = OutboundClient(options.get("egress_allow_networks", ()))
    service = RevocationService(bench.store, outbound, Settings(**options), lambda: AT, jitter=lambda: chance)
    try:
        yield service
    finally:
        await service.close()
        await outbound.close()


def run(test: Callable[[Bench], Coroutine[Any, Any, None]], **options: Any) -> None:
    """Run a test with a service of its own, bounded."""

    async def whole() -> None:
        async with asyncio.timeout(20), opened(**options) as bench:
            await test(bench)

    asyncio.run(whole())
