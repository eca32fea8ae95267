"""Client of a Provisioning Certificate Pool, OPNC or OPCP: a vehicle's certificates, with a short-lived cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ccp import verify
from ccp.errors import ChainError, FieldError, Unavailable, UpstreamError
from ccp.errors.codes import ErrorCode
from ccp.ids import PCID, Namespace
from ccp.server.external.circuit_breaker import CircuitBreaker
from ccp.server.external.outbound import HttpResponse
from ccp.server.external.service_client import ServiceClient, get_member, parse_certificate, parse_json, unwrap
from ccp.server.external.service_connection import ServiceConnection
from ccp.server.settings.services import Dialect
from ccp.x509.certificates import Certificate
from ccp.x509.parse_errors import parse_errors_as

_log = structlog.get_logger("ccp.server.external.provisioning_pool")

DELIVERY_TIMEOUT: Final = 1.0
"""Of the five seconds that a vehicle waits. Peers may need 1.5 more, and the charging station adds its own delay."""
PUBLICATION_TIMEOUT: Final = 3.0
"""A publisher waits longer than a vehicle, and a wrong key makes its contract useless."""

# Long enough for a vehicle that retries at once, and for the items of one visit. A provisioning event reaches one
# worker only, so this is also how long other workers may use a key that was replaced.
_CACHE_SECONDS: Final = 60.0
_NEGATIVE_CACHE_SECONDS: Final = 10.0  # A vehicle that was unknown a moment ago may be registered by now.
_MAX_CACHED: Final = 2_000  # Chains of about 5 kB; no worker delivers to more vehicles within a minute.
_RESET_TIMEOUT: Final = 10.0  # While the pool does not answer, vehicles do not wait for it. It does not grow.
_MAX_CHAIN_BYTES: Final = 65_536  # Three certificates of at most 800 bytes, and other members.
# OPNC, OPCP, and the name that OPCP announces as the next one.
_LEAF_NAMES: Final = ("certificate", "vehicleCertificate", "provisioningCertificate")
_ALTERNATIVE_KEY: Final = x509.ObjectIdentifier("2.5.29.72")  # ITU-T X.509 (10/2019) clause 9.8.2.


@dataclass(frozen=True, slots=True)
class ProvisioningChain:
    """A vehicle's certificates in the Provisioning Certificate Pool. The PCID was checked, the signatures were not.

    sub_cas: nearest to the vehicle first. namespace: the edition that the certificate is for.
    """

    certificate: Certificate
    sub_cas: tuple[Certificate, ...]
    namespace: Namespace

    def key_for(self, namespace: str) -> str | None:
        """The fingerprint of the vehicle's current key for that edition; None if the chain is for another edition."""
        return key_fingerprint(self.certificate) if namespace == self.namespace else None


class ProvisioningCertificatePool(ServiceClient):
    """A vehicle's certificates, cached for a minute; and whether the pool knows a vehicle.

    OPNC: GetProvisioningCertificateByPCID and LookUpVehicleByPCID. OPCP: getOEMProvCert and lookupVehicle.
    """

    name = "Provisioning Certificate Pool"

    def __init__(self, connection: ServiceConnection, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: monotonic seconds."""
        super().__init__(connection)
        self._clock = clock
        self._breaker = CircuitBreaker(clock, _RESET_TIMEOUT, _RESET_TIMEOUT)
        self._cache: dict[PCID, tuple[float, ProvisioningChain | None]] = {}

    async def get_chain(
        self,
        pcid: PCID,
        *,
        timeout: float = DELIVERY_TIMEOUT,  # noqa: ASYNC109
        fresh: bool = False,
    ) -> ProvisioningChain | None:
        """The vehicle's chain; None if the pool does not know the vehicle or does not answer. Raises nothing.

        fresh: bypass the cache. A caller that is about to refuse something because of a cached chain asks again with
        `fresh`; publication always does.
        """
        cached = self._cache.get(pcid)
        if cached is not None and self._clock() < cached[0] and not fresh:
            return cached[1]
        if not self._breaker.allow():
            return None
        try:
            return await self.fetch_chain(pcid, timeout=timeout)
        except UpstreamError as exc:
            _log_failure(exc)
            return None
        finally:
            self._breaker.release()  # A permit whose call was cancelled; no effect after an outcome.

    async def fetch_chain(self, pcid: PCID, *, timeout: float = PUBLICATION_TIMEOUT) -> ProvisioningChain | None:  # noqa: ASYNC109
        """The vehicle's chain as the pool has it now; None if the pool has none. Ignores cache and circuit breaker.

        Raises UpstreamError if the pool does not answer or its answer is invalid.
        """
        return (await self._fetch(pcid, timeout))[1]

    async def chain_for_publication(self, pcid: PCID, *, required: bool) -> ProvisioningChain | None:
        """The vehicle's chain as the pool has it now, for a contract that is about to be stored.

        required: the pool has to know the vehicle. Then it raises FieldError if the pool does not know the vehicle, and
        Unavailable if the pool does not answer or refuses to. A pool that refuses the certificates (403) may still say
        whether it knows the vehicle; the result is None then. If not required, it raises nothing and returns None if
        there is no chain.
        """
        if not required:
            return await self.get_chain(pcid, timeout=PUBLICATION_TIMEOUT, fresh=True)
        unavailable = "The Provisioning Certificate Pool cannot be asked for the vehicle now; publish again later."
        if not self._breaker.allow():
            raise Unavailable(unavailable, retry_after=self._breaker.retry_after())
        try:
            status, chain = await self._fetch(pcid, PUBLICATION_TIMEOUT)
            if status == 403:
                status = await self._look_up(pcid, PUBLICATION_TIMEOUT)
                if status == 200:
                    return None
        except UpstreamError as exc:
            _log_failure(exc)
            raise Unavailable(unavailable) from exc
        finally:
            self._breaker.release()
        if status in (404, 410):
            raise FieldError("pcid : is not known to the Provisioning Certificate Pool", code=ErrorCode.VEHICLE_UNKNOWN)
        if chain is None:
            raise Unavailable(unavailable)
        return chain

    def invalidate(self, pcid: PCID) -> None:
        """Remove a vehicle from the cache."""
        self._cache.pop(pcid, None)

    async def _fetch(self, pcid: PCID, timeout: float) -> tuple[int, ProvisioningChain | None]:  # noqa: ASYNC109
        """The HTTP status, and the chain if it is 200. Raises UpstreamError."""
        path = f"/v1/oem/provCerts/{pcid}" if self._is_opcp else f"/provisioningcertificates/{pcid}"
        response = await self._ask(path, timeout)
        chain = _parse_chain(parse_json(response, self.name), pcid) if response.status == 200 else None
        if response.status not in (200, 404, 410):
            _log.warning("provisioning pool refused request", status=response.status)
        self._store(pcid, chain)
        return response.status, chain

    async def _look_up(self, pcid: PCID, timeout: float) -> int:  # noqa: ASYNC109
        """The HTTP status: 200 if the pool knows the vehicle, 404 if not. Raises UpstreamError."""
        return (await self._ask(self.lookup_path(pcid), timeout)).status

    def lookup_path(self, pcid: str) -> str:
        """The path of the operation that says whether the pool knows a vehicle: 200 or 404."""
        return f"/v1/oem/provCerts/lookupVehicle/{pcid}" if self._is_opcp else f"/lookupvehicle/{pcid}"

    async def _ask(self, path: str, timeout: float) -> HttpResponse:  # noqa: ASYNC109
        """Send a GET, and tell the circuit breaker whether the pool answers.

        Raises UpstreamError, also for answers that no Provisioning Certificate Pool gives.
        """
        try:
            response = await self._call("GET", path, timeout=timeout, max_bytes=_MAX_CHAIN_BYTES)
            self._check_origin(response)
        except UpstreamError:
            self._breaker.record_failure()
            raise
        self._breaker.record_success()  # An unusable answer about one vehicle must not cost the others.
        return response

    @staticmethod
    def _check_origin(response: HttpResponse) -> None:
        """Refuse an answer that is not one of a Provisioning Certificate Pool. Raises UpstreamError."""
        if response.status >= 500 or response.status < 200:
            raise UpstreamError(f"The Provisioning Certificate Pool answered {response.status}.")
        if response.status in (404, 410) and response.media_type.startswith("text/"):
            # A proxy or another server. It must not look like a pool that knows no vehicle.
            raise UpstreamError("The Provisioning Certificate Pool's address answers with a page of text.")

    @property
    def _is_opcp(self) -> bool:
        return self._connection.settings.dialect is Dialect.OPCP

    def _store(self, pcid: PCID, chain: ProvisioningChain | None) -> None:
        now = self._clock()
        self._cache.pop(pcid, None)
        if len(self._cache) >= _MAX_CACHED:
            self._cache = {key: entry for key, entry in self._cache.items() if now < entry[0]}
            for key in list(self._cache)[: max(0, len(self._cache) - _MAX_CACHED + 1)]:  # The oldest come first.
                del self._cache[key]
        self._cache[pcid] = (now + (_NEGATIVE_CACHE_SECONDS if chain is None else _CACHE_SECONDS), chain)


def key_fingerprint(certificate: Certificate) -> str:
    """Fingerprint of a vehicle's key: SHA-256 over the SubjectPublicKeyInfo (DER), hexadecimal.

    A vehicle with an Ed448 key also has an X448 key, which contracts are encrypted for. Then the hash continues over
    the SubjectPublicKeyInfo of that key. Raises ChainError.
    """
    with parse_errors_as(
        lambda: ChainError(f"The public key of certificate {certificate.display_name} cannot be read.")
    ):
        digest = hashlib.sha256(certificate.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        for extension in certificate.extensions:
            if extension.oid == _ALTERNATIVE_KEY and isinstance(extension.value, x509.UnrecognizedExtension):
                digest.update(extension.value.value)
        return digest.hexdigest()


def _log_failure(exc: UpstreamError) -> None:
    _log.warning("provisioning pool request failed", reason=str(exc), cause=str(exc.__cause__ or ""))


def _parse_chain(parsed: object, pcid: PCID) -> ProvisioningChain:
    """Raises UpstreamError."""
    data = unwrap(unwrap(parsed, "OEMMessage"), "provisioningCertificate")
    members = unwrap(data, "provisioningCertificateChain")
    try:
        leaves = (get_member(members, name) for name in _LEAF_NAMES)
        certificate = parse_certificate(next((leaf for leaf in leaves if leaf is not None), None))
        sub_cas = tuple(
            parse_certificate(text)
            for name in ("subCa2Certificate", "subCa1Certificate")
            if (text := get_member(members, name)) is not None
        )
        if verify.pcid_of(certificate) != pcid:
            raise ChainError("The provisioning certificate is another vehicle's.")
        key_fingerprint(certificate)  # Raises here, not later, if the key cannot be read.
        return ProvisioningChain(certificate, sub_cas, _namespace(get_member(data, "xsdMsgDefNamespace"), certificate))
    except ChainError as exc:
        raise UpstreamError("The Provisioning Certificate Pool's answer holds no usable certificate.") from exc


def _namespace(named: object, certificate: Certificate) -> Namespace:
    """The edition that the pool names, else the only edition that supports this kind of key."""
    if isinstance(named, str):
        try:
            return Namespace.parse(named)
        except FieldError:
            pass
    key = certificate.public_key
    p256 = isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)
    return Namespace.ISO2 if p256 else Namespace.ISO20
