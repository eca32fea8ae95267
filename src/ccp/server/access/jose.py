"""Signed tokens (JWS, JWT) and key sets (JWK): reading and verifying, with joserfc doing the work. Pure.

Reading gives an `UnverifiedToken`, which only says what the octets said; only `verify` makes a `VerifiedToken`. Who the
issuer is, whom the token is for and how long it lasts is the caller's to check.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from joserfc import jws
from joserfc.errors import UnsupportedAlgorithmError
from joserfc.jwk import ECKey, JWKRegistry, OKPKey, RSAKey
from joserfc.jws import CompactSignature, JWSRegistry

from ccp.server.domain.token_algorithms import ALGORITHMS
from ccp.x509.parse_errors import is_parse_error

PublicKey: TypeAlias = ECKey | OKPKey | RSAKey

# An ID token, a logout token or a DPoP proof of the same issuer is no access token; many issuers write plain JWT.
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_RSA_BITS: Final = range(2048, 8193)  # Less is too weak; more makes each verification a burden, and nobody has it.
_KEYS: Final = 100  # of a set; issuers publish two or three


class TokenError(Exception):
    """A token that is not good. The class says why; the log names it."""


class MalformedToken(TokenError): ...


class UnknownIssuer(TokenError): ...


class UnknownKey(TokenError): ...


class UnknownCaller(TokenError): ...


class InvalidAlgorithm(TokenError): ...


class InvalidSignature(TokenError): ...


class InvalidAudience(TokenError): ...


class InvalidTime(TokenError): ...


class InvalidClaim(TokenError): ...


class CertificateMismatch(TokenError): ...


class _Registry(JWSRegistry):
    """The limits of what is read, and no algorithm but those that are asked for."""

    max_header_length = 4096
    max_payload_length = 16_384

    def __init__(self, algorithms: Collection[str] = ()) -> None:
        # Header parameters that nobody knows are to be ignored, unless they are critical. Source: RFC 7515 clause 4.
        super().__init__(algorithms=algorithms, strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        if self.allowed is None or name not in self.allowed:
            raise UnsupportedAlgorithmError("not allowed")
        return self.algorithms[name]


_READING: Final = _Registry()


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """What a token's octets say. algorithm, kid: of its header."""

    algorithm: str
    kid: str | None
    claims: Mapping[str, Any]
    _signed: CompactSignature = field(repr=False)

    @property
    def issuer(self) -> str | None:
        """Whom the token says it is from, which chooses the keys to verify it with."""
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) else None


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token that one of the issuer's keys has signed."""

    kid: str | None
    claims: Mapping[str, Any]


def parse_compact(token: str) -> UnverifiedToken:
    """Read a token in compact form. Raises MalformedToken.

    Where its header brings keys or says where some are (`jwk`, `jku`, `x5c`, `x5u`), nobody looks.
    """
    try:
        signed = jws.extract_compact(token.encode("ascii"), registry=_READING)
        header = signed.protected
        claims = orjson.loads(signed.payload)
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        raise MalformedToken from exc
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise MalformedToken
    # No critical extension is known here, and payloads that are not encoded are not for JWTs (RFC 7797 clause 7).
    if "crit" in header or "b64" in header:
        raise MalformedToken
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None) or not isinstance(kind, str):
        raise MalformedToken
    if kind.lower() not in _TYPES:
        raise MalformedToken
    return UnverifiedToken(algorithm, kid, claims, signed)


def verify(token: UnverifiedToken, keys: Iterable[PublicKey], algorithms: Collection[str]) -> VerifiedToken:
    """Check the signature with the key that the token names, or with the only one that could be meant if it names none.

    keys: of the token's issuer, and of nobody else. Raises InvalidAlgorithm, UnknownKey, InvalidSignature.
    """
    if token.algorithm not in algorithms or token.algorithm not in ALGORITHMS:
        raise InvalidAlgorithm
    fitting = [key for key in keys if token.kid in (None, key.kid) and _fits(key, token.algorithm)]
    if not fitting or (token.kid is None and len(fitting) > 1):
        raise UnknownKey
    registry = _Registry((token.algorithm,))
    try:
        good = any(jws.validate_compact(token._signed, key, registry=registry) for key in fitting)
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        raise InvalidSignature from exc
    if not good:
        raise InvalidSignature
    return VerifiedToken(fitting[0].kid, token.claims)


def _fits(key: PublicKey, algorithm: str) -> bool:
    """Whether key type, curve, `use`, `alg` and `key_ops` of a key allow to verify with it."""
    try:
        JWSRegistry.algorithms[algorithm].check_key(key)
        key.check_key_op("verify")
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        return False
    return True


def parse_jwk_set(document: bytes) -> tuple[tuple[PublicKey, ...], list[str]]:
    """The keys of a JWK set that can verify signatures, and why the others cannot.

    An unusable key does not invalidate the set (RFC 7517 clause 5). Other JSON than a set holds no keys. Raises
    ValueError for what is no JSON.
    """
    found = orjson.loads(document)
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        return (), ["not a JWK set"]
    if len(found["keys"]) > _KEYS:
        raise ValueError(f"more than {_KEYS} keys")
    keys: list[PublicKey] = []
    unusable: list[str] = []
    for number, member in enumerate(found["keys"], 1):
        try:
            keys.append(_parse_jwk(member))
        except ValueError as exc:
            unusable.append(f"key {number}: {exc}")
    return tuple(keys), unusable


def _parse_jwk(member: Any) -> PublicKey:
    """Raises ValueError that says why the key cannot be used."""
    if not isinstance(member, dict) or member.get("kty") not in ("EC", "OKP", "RSA"):
        raise ValueError("not a public key of a type that is known")
    if member.get("use", "sig") != "sig":
        raise ValueError("not for signatures")
    if "d" in member:
        raise ValueError("a private key that is published")
    problem = f"an RSA key of less than {_RSA_BITS.start} or more than {_RSA_BITS.stop - 1} bits"
    # Before any arithmetic is done with it, by the length of its Base64.
    if member["kty"] == "RSA" and len(str(member.get("n"))) not in range(_RSA_BITS.start // 6, _RSA_BITS.stop // 6 + 2):
        raise ValueError(problem)
    try:
        key = JWKRegistry.import_key(member)
        public = key.public_key
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        raise ValueError("malformed") from exc
    assert isinstance(key, PublicKey), "of these types alone"
    if isinstance(public, RSAPublicKey) and public.key_size not in _RSA_BITS:
        raise ValueError(problem)
    return key
