"""Signature algorithms of access tokens."""

from __future__ import annotations

from typing import Final

ALGORITHMS: Final = (
    "ES256", "ES384", "ES512", "EdDSA", "Ed25519", "Ed448", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
)  # fmt: skip
"""Algorithms that the settings may allow: asymmetric ones. Source: RFC 7518 clause 3.1, RFC 8037, RFC 9864."""
