"""What reading and verifying a request and a response have in common."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, TypeVar

from ccp import exi
from ccp.errors import EXIError
from ccp.ids import Namespace
from ccp.verify.message_signatures import SignatureEvidence
from ccp.x509.certificates import Certificate
from ccp.x509.path_validation import Profile, TrustAnchors, VerifiedChain

PROFILE: Final = {Namespace.ISO2: Profile.ISO2, Namespace.ISO20: Profile.ISO20}
VERIFIED: Final = object()
T = TypeVar("T")


def only_here(token: object) -> None:
    if token is not VERIFIED:
        raise TypeError("Only the verifying functions of this package make verified messages.")


def parse(octets: bytes, namespace: Namespace, *, remember: bool) -> exi.Parsed:
    parsed = exi.parse(octets, remember=remember)
    if exi.namespace_of(parsed.message) != namespace:
        raise EXIError(f"a message of {exi.namespace_of(parsed.message)}, not of {namespace}")
    return parsed


def read_all(anchors: TrustAnchors, ders: Collection[bytes]) -> list[Certificate]:
    return [anchors.read(der) for der in ders]


def the(result: T | None) -> T:
    assert result is not None, "a check runs only when the results it needs are there"
    return result


def described(certificate: Certificate) -> tuple[str, ...]:
    return (f"{certificate.dn} (SHA-256 {certificate.fingerprint})",)


def links(chain: VerifiedChain) -> tuple[str, ...]:
    return tuple(
        f"{certificate.label} valid {certificate.not_before:%Y-%m-%d} to {certificate.not_after:%Y-%m-%d}, "
        f"SHA-256 {certificate.fingerprint}"
        for certificate in chain.certificates
    )


def covered(signature: SignatureEvidence) -> tuple[str, ...]:
    return (
        f"{signature.method}, SignedInfo under the {signature.grammar} grammar",
        *(f"digest of {part.name} (Id {part.id}), {part.digest}" for part in signature.parts),
    )


def said_so(text: str) -> tuple[str, ...]:
    return tuple(str(text).splitlines())
