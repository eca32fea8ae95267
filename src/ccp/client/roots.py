"""The roots that a pool trusts, under `/v1/root/rootCerts`. The same in both dialects.

Source: OPCP 1.0, Root Certificate Pool.
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from ccp.client.model import Root
from ccp.client.responses import HttpResponse, limited, malformed, parse, parse_certificate
from ccp.client.untrusted_text import MAX_DN
from ccp.errors import ChainError, FieldError
from ccp.ids import Fingerprint
from ccp.schemas.opcp import ReceivedRootCertificate, ReceivedRootCertificates, ReceivedRootResponse
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import ROOT_TYPES, AnchorRole

PATH: Final = "/v1/root/rootCerts"
_ROLES: Final = {name: role for role, name in ROOT_TYPES.items()}


def root_type(role: AnchorRole | None) -> str | None:
    """The value of the query parameter rootType."""
    return None if role is None else ROOT_TYPES[role]


def path_of(root_id: UUID | str) -> str:
    """The path of one root. Raises FieldError for an id that is no UUID."""
    try:
        return f"{PATH}/{UUID(str(root_id))}"
    except ValueError:
        raise FieldError("root_id : must be a UUID") from None


def parse_roots(response: HttpResponse) -> tuple[Root, ...]:
    """Read a list of roots. Raises MalformedResponseError."""
    found = parse(ReceivedRootCertificates, response).RootCertificateCollection.rootCertificates
    return tuple(_root(item, response) for item in found)


def parse_root(response: HttpResponse) -> Root:
    """Read one root. Raises MalformedResponseError."""
    return _root(parse(ReceivedRootResponse, response).RootResponse, response)


def _root(item: ReceivedRootCertificate, response: HttpResponse) -> Root:
    der = parse_certificate(item.caCertificate, response)
    try:
        certificate = Certificate.load(der)
        name, begins, ends = certificate.subject_dn, certificate.not_before, certificate.not_after
    except ChainError as exc:
        raise malformed("A root in the response cannot be read.", response) from exc
    return Root(
        limited(item.rootCertificateId, MAX_DN) or "",
        _ROLES.get(item.rootType or ""),
        certificate.der,
        Fingerprint(certificate.fingerprint),
        limited(name, MAX_DN) or "",
        begins,
        ends,
    )
