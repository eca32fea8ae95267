"""Client of a Certificate Provisioning Service (CPS): OPNC GetCpsCertificates, or getAllCpsSigners of OPCP.

The pool needs nothing from a CPS to work. `ccp neighbour test` reads its certificates, because a publication is refused
unless their chain ends in a V2G root that this pool trusts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from ccp.errors import ChainError, FieldError, UpstreamError
from ccp.ids import Namespace
from ccp.server.external.outbound import HttpResponse
from ccp.server.external.service_client import ServiceClient, get_member, parse_certificate, parse_json, unwrap
from ccp.server.settings.services import Dialect
from ccp.x509.certificates import Certificate

_TIMEOUT: Final = 10.0
_MAX_BYTES: Final = 1_048_576
_MAX_CHAINS: Final = 100
_LISTS: Final = ("cpsCertificateDataCollection", "cpsCertificates")
_LEAVES: Final = ("certificate", "cpsCertificate")
_SUB_CAS: Final = ("subCa2Certificate", "subCa1Certificate", "cpsCa2Certificate", "cpsCa1Certificate")


@dataclass(frozen=True, slots=True)
class SignerChain:
    """A certificate that a CPS signs with, and its sub-CAs, nearest first. Not verified."""

    certificate: Certificate
    sub_cas: tuple[Certificate, ...]
    namespace: Namespace


class CertificateProvisioningService(ServiceClient):
    """The certificates of a CPS."""

    name = "Certificate Provisioning Service"

    @property
    def path(self) -> str:
        """The path of the operation that lists the certificates."""
        return "/cps/signer" if self._connection.settings.dialect is Dialect.OPCP else "/cpsCertificates"

    async def request_chains(self) -> HttpResponse:
        """The response of the service, whatever its status. Raises UpstreamError."""
        return await self._call("GET", self.path, timeout=_TIMEOUT, max_bytes=_MAX_BYTES)


def parse_chains(response: HttpResponse) -> list[SignerChain]:
    """Parse the list of certificates of a CPS. Raises UpstreamError."""
    parsed = parse_json(response, CertificateProvisioningService.name)
    found = next((value for name in _LISTS if (value := get_member(parsed, name)) is not None), parsed)
    if not isinstance(found, list):
        raise UpstreamError("The answer has no list of certificates.")
    try:
        return list(map(_chain, found[:_MAX_CHAINS]))
    except (ChainError, FieldError) as exc:
        raise UpstreamError(f"The list of certificates has an entry that cannot be read: {exc}") from exc


def _chain(entry: object) -> SignerChain:
    members = unwrap(entry, "cpsCertificateChain")
    leaf = next(_present(members, _LEAVES), None)
    sub_cas = tuple(parse_certificate(text) for text in _present(members, _SUB_CAS))
    named = get_member(entry, "xsdMsgDefNamespace")
    namespace = Namespace.parse(named) if isinstance(named, str) else Namespace.ISO2
    return SignerChain(parse_certificate(leaf), sub_cas, namespace)


def _present(members: object, names: tuple[str, ...]) -> Iterator[Any]:
    return (value for name in names if (value := get_member(members, name)))
