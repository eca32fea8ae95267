"""Client secrets: generation, hashing and verification."""

from __future__ import annotations

import secrets
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

# A generated secret has 256 bits of entropy. The hash has to make a stolen table worthless, not to slow down guessing,
# so the smallest parameters that RFC 9106 permits suffice and keep token requests cheap.
_HASHER: Final = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# A well-formed hash that no secret matches; comparing with it takes as long as with a real one. It consists of zeros,
# because hashing a random secret would cost every start 40 ms and 19 MiB.
DUMMY_HASH: Final = f"$argon2id$v=19$m={_HASHER.memory_cost},t={_HASHER.time_cost},p=1${'A' * 22}${'A' * 43}"
"""Compared with when a client has fewer hashes than the maximum."""
_MAX_SECRETS: Final = 2  # Valid secrets of a party, during a rotation.


def new_secret() -> str:
    """A client secret of 256 bits, URL-safe."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> str:
    """The argon2id hash of a secret, as stored in the database. Takes some 20 ms."""
    return _HASHER.hash(secret)


def matching_hash(hashes: list[str], secret: str) -> str | None:
    """The hash that a secret matches; None if there is none.

    hashes: the client's, newest first. Without a match the function takes the time of two comparisons in every case:
    for an unknown client, for a client with one secret, and during a rotation.
    """
    for stored in hashes:
        if _matches(stored, secret):
            return stored
    for _ in range(_MAX_SECRETS - len(hashes)):
        _matches(DUMMY_HASH, secret)
    return None


def _matches(stored: str, secret: str) -> bool:
    try:
        return _HASHER.verify(stored, secret)
    except (Argon2Error, InvalidHashError):
        return False
