"""Signed tokens (JWS, JWT) and key sets (JWK): parsing and verification with joserfc. Pure.

Parsing gives an `UnverifiedToken`; only `verify` makes a `VerifiedToken`. The caller has to check issuer, audience and
validity.
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

# Refuse an ID token, a logout token or a DPoP proof of the same issuer. Many issuers type access tokens as plain JWT.
_TYPES: Final = frozenset({"jwt", "at+jwt", "application/at+jwt"})
_RSA_BITS: Final = range(
    2048, 8193
)  # Shorter keys are too weak; longer ones are not in use and make each verification expensive.
_MAX_KEYS: Final = 100  # In a key set; issuers publish two or three.


class TokenError(Exception):
    """The token is not valid. The log contains the name of the subclass as the reason."""


class MalformedToken(TokenError):
    """The token cannot be parsed, or is not an access token."""


class UnknownIssuer(TokenError):
    """The issuer is not trusted."""


class UnknownKey(TokenError):
    """No key of the issuer fits the token."""


class UnknownCaller(TokenError):
    """The caller is not registered, is disabled or is denied."""


class InvalidAlgorithm(TokenError):
    """The signature algorithm is not allowed."""


class InvalidSignature(TokenError):
    """The signature does not verify."""


class InvalidAudience(TokenError):
    """The token is for another audience."""


class InvalidTime(TokenError):
    """The token has expired, is not valid yet, or has malformed times."""


class InvalidClaim(TokenError):
    """A claim is missing or malformed."""


class CertificateMismatch(TokenError):
    """The token is bound to another client certificate."""


class _Registry(JWSRegistry):
    """Size limits, and no algorithms but those that are allowed explicitly."""

    max_header_length = 4096
    max_payload_length = 16_384

    def __init__(self, algorithms: Collection[str] = ()) -> None:
        # Unknown header parameters are ignored unless they are critical. Source: RFC 7515 clause 4.
        super().__init__(algorithms=algorithms, strict_check_header=False)

    def get_alg(self, name: str) -> Any:
        if self.allowed is None or name not in self.allowed:
            raise UnsupportedAlgorithmError("not allowed")
        return self.algorithms[name]


_READING: Final = _Registry()


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """The content of a token before verification. algorithm, kid: of its header."""

    algorithm: str
    kid: str | None
    claims: Mapping[str, Any]
    _signed: CompactSignature = field(repr=False)

    @property
    def issuer(self) -> str | None:
        """The claimed issuer, which selects the keys for verification."""
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) else None


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A token whose signature was verified with one of the issuer's keys."""

    kid: str | None
    claims: Mapping[str, Any]


def parse_compact(token: str) -> UnverifiedToken:
    """Parse a token in compact serialisation. Raises MalformedToken.

    Keys in the header, or references to keys (`jwk`, `jku`, `x5c`, `x5u`), are ignored.
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
    # No critical extension is supported, and RFC 7797 clause 7 excludes unencoded payloads for JWTs.
    if "crit" in header or "b64" in header:
        raise MalformedToken
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or not isinstance(kid, str | None) or not isinstance(kind, str):
        raise MalformedToken
    if kind.lower() not in _TYPES:
        raise MalformedToken
    return UnverifiedToken(algorithm, kid, claims, signed)


def verify(token: UnverifiedToken, keys: Iterable[PublicKey], algorithms: Collection[str]) -> VerifiedToken:
    """Verify the signature with the key that the token names; without a `kid`, with the only key that fits.

    keys: of the token's issuer only. Raises InvalidAlgorithm, UnknownKey, InvalidSignature.
    """
    if token.algorithm not in algorithms or token.algorithm not in ALGORITHMS:
        raise InvalidAlgorithm
    fitting = [key for key in keys if token.kid in (None, key.kid) and _fits(key, token.algorithm)]
    if not fitting or (token.kid is None and len(fitting) > 1):
        raise UnknownKey
    registry = _Registry((token.algorithm,))
    try:
        verified = any(jws.validate_compact(token._signed, key, registry=registry) for key in fitting)
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        raise InvalidSignature from exc
    if not verified:
        raise InvalidSignature
    return VerifiedToken(fitting[0].kid, token.claims)


def _fits(key: PublicKey, algorithm: str) -> bool:
    """Whether key type, curve, `use`, `alg` and `key_ops` permit verification with the key."""
    try:
        JWSRegistry.algorithms[algorithm].check_key(key)
        key.check_key_op("verify")
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        return False
    return True


def parse_jwk_set(document: bytes) -> tuple[tuple[PublicKey, ...], list[str]]:
    """The keys of a JWK set that can verify signatures, and for each other key the reason why it cannot.

    An unusable key does not invalidate the set (RFC 7517 clause 5). JSON that is not a JWK set has no keys. Raises
    ValueError for a document that is not JSON.
    """
    found = orjson.loads(document)
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        return (), ["not a JWK set"]
    if len(found["keys"]) > _MAX_KEYS:
        raise ValueError(f"more than {_MAX_KEYS} keys")
    keys: list[PublicKey] = []
    unusable: list[str] = []
    for number, member in enumerate(found["keys"], 1):
        try:
            keys.append(_parse_jwk(member))
        except ValueError as exc:
            unusable.append(f"key {number}: {exc}")
    return tuple(keys), unusable


def _parse_jwk(member: Any) -> PublicKey:
    """Parse a key. Raises ValueError with the reason why it cannot be used."""
    if not isinstance(member, dict) or member.get("kty") not in ("EC", "OKP", "RSA"):
        raise ValueError("not a public key of a supported type")
    if member.get("use", "sig") != "sig":
        raise ValueError("not for signatures")
    if "d" in member:
        raise ValueError("a published private key")
    problem = f"an RSA key of less than {_RSA_BITS.start} or more than {_RSA_BITS.stop - 1} bits"
    # By the length of its Base64, before any arithmetic.
    if member["kty"] == "RSA" and len(str(member.get("n"))) not in range(_RSA_BITS.start // 6, _RSA_BITS.stop // 6 + 2):
        raise ValueError(problem)
    try:
        key = JWKRegistry.import_key(member)
        public = key.public_key
    except BaseException as exc:
        if not is_parse_error(exc):
            raise
        raise ValueError("malformed") from exc
    assert isinstance(key, PublicKey), "import_key returns only these types"
    if isinstance(public, RSAPublicKey) and public.key_size not in _RSA_BITS:
        raise ValueError(problem)
    return key
