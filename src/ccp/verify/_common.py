"""What the verification of requests and responses shares."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, TypeVar

from ccp import exi
from ccp.errors import EXIError
from ccp.ids import Namespace
from ccp.verify.message_signatures import SignatureEvidence
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import TrustAnchors, VerifiedChain
from ccp.x509.profiles import Profile

PROFILES: Final = {Namespace.ISO2: Profile.ISO2, Namespace.ISO20: Profile.ISO20}
CONSTRUCTION_TOKEN: Final = object()
T = TypeVar("T")


def require_token(token: object) -> None:
    """Raise TypeError unless the caller holds the construction token of this package."""
    if token is not CONSTRUCTION_TOKEN:
        raise TypeError("Only the checking functions of this package create verified messages.")


def parse(data: bytes, namespace: Namespace | None, *, use_cache: bool) -> exi.ParsedMessage:
    """Decode a message of one edition, or of either for None.

    use_cache: see `exi.parse`. Raises EXIError, also for the other edition.
    """
    parsed = exi.parse(data, use_cache=use_cache)
    if namespace is not None and exi.namespace_of(parsed.message) != namespace:
        raise EXIError(f"a message of {exi.namespace_of(parsed.message)}, not of {namespace}")
    return parsed


def load_intermediates(anchors: TrustAnchors, ders: Collection[bytes]) -> list[Certificate]:
    """Read the sub-CA certificates of a message. Raises ChainError."""
    return [anchors.load_intermediate(der) for der in ders]


def unwrap(result: T | None) -> T:
    """The result of an earlier check that this one needs."""
    assert result is not None, "a check runs only if the results that it needs exist"
    return result


def describe_certificate(certificate: Certificate) -> tuple[str, ...]:
    """Evidence line: name and fingerprint."""
    return (f"{certificate.subject_dn} (SHA-256 {certificate.fingerprint})",)


def describe_chain(chain: VerifiedChain) -> tuple[str, ...]:
    """Evidence lines: name, validity and fingerprint of each certificate."""
    return tuple(
        f"{certificate.display_name} valid {certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}, "
        f"SHA-256 {certificate.fingerprint}"
        for certificate in chain.certificates
    )


def describe_signature(signature: SignatureEvidence) -> tuple[str, ...]:
    """Evidence lines: method and grammar, then each covered element."""
    return (
        f"{signature.method}, SignedInfo under the {signature.grammar} grammar",
        *(f"digest of {element.name} (Id {element.id}), {element.digest}" for element in signature.elements),
    )


def as_lines(text: str) -> tuple[str, ...]:
    """Evidence lines of a text."""
    return tuple(str(text).splitlines())
