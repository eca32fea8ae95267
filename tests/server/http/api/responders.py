"""OCSP responders on loopback, and PKIs whose certificates name them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from ccp.testing.pki import PKI, Algorithm, Credential, StatusURLs, algorithm_of
from tests.scripted_server import Received, Reply, Scripted
from tests.world import AT

LOOPBACK = ("127.0.0.0/8",)
"""For the setting egress_allow_networks: pools may call the responders."""


def path_of(ca: str) -> str:
    """The path of a CA's responder. ca: its common name."""
    return "/" + ca.replace(" ", "-")


def pki_with_responder(url: str, *cas: str, algorithm: Algorithm = "P-256") -> PKI:
    """A PKI whose certificates name a responder of their issuer. cas: issuers with a responder; default: all."""
    return PKI.generate(
        AT,
        algorithm=algorithm,
        status_urls=lambda ca: StatusURLs(ocsp=url + path_of(ca)) if ca in cas or not cas else StatusURLs(),
    )


def ocsp_response(issuer: Credential, request: bytes, *, revoked: bool = False) -> bytes:
    """A DER OCSP response for the requested certificate: status good or revoked, valid for an hour from now."""
    asked, now = ocsp.load_der_ocsp_request(request), datetime.now(UTC)
    builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
        asked.issuer_name_hash,
        asked.issuer_key_hash,
        asked.serial_number,
        asked.hash_algorithm,
        ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
        now - timedelta(minutes=1),
        now + timedelta(hours=1),
        AT - timedelta(days=1) if revoked else None,
        None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, issuer.certificate.x509)
    hashed = hashes.SHA256() if algorithm_of(issuer.key) == "P-256" else hashes.SHA512()
    return builder.sign(issuer.key, hashed).public_bytes(Encoding.DER)


@dataclass
class Responder:
    """Answers for registered CAs: status revoked for the serial numbers in `revoked`, good for all others."""

    server: Scripted
    revoked: set[int] = field(default_factory=set)

    def register(self, *cas: Credential, prefix: str = "") -> None:
        """Answer for these CAs. prefix: of their paths."""
        for ca in cas:
            self.server.on(prefix + path_of(ca.certificate.subject_cn), self._answer_for(ca))

    def _answer_for(self, ca: Credential) -> Callable[[Received], Reply]:
        def answer(request: Received) -> Reply:
            serial_number = ocsp.load_der_ocsp_request(request.body).serial_number
            return Reply(body=ocsp_response(ca, request.body, revoked=serial_number in self.revoked))

        return answer
