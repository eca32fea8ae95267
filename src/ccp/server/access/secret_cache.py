"""Cache of verified client secrets, as keyed hashes: a login with a cached secret needs no argon2.

A flood of failed logins for a client id can make the login throttle refuse every further attempt, and keep argon2 busy.
A cached secret bypasses both. Client secrets are random (256 bits), so a fast hash permits no guessing, and the key of
the hash never leaves the process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection
from typing import Final

_MAX_CLIENTS: Final = 10_000


class SecretCache:
    """For each client id, the keyed hash of a secret by the argon2 hash that it matched.

    An entry counts only while the party registry has that argon2 hash as a valid one. So a secret that was replaced or
    has expired, or that belongs to a disabled party, is not accepted.
    """

    def __init__(self) -> None:
        self._key: Final = secrets.token_bytes(32)
        self._known: dict[str, dict[str, bytes]] = {}

    def contains(self, client_id: str, secret: str) -> bool:
        """Whether the secret was verified before. `valid_hash` tells whether it is valid now."""
        return self._matching(client_id, secret) is not None

    def valid_hash(self, client_id: str, secret: str, valid_hashes: Collection[str]) -> str | None:
        """The argon2 hash of a cached secret if it is valid now, else None. Removes entries of other hashes.

        valid_hashes: the argon2 hashes of the client's valid secrets.
        """
        known = self._known.get(client_id)
        if known is None:
            return None
        for stored in known.keys() - set(valid_hashes):
            del known[stored]
        if not known:
            del self._known[client_id]
            return None
        return self._matching(client_id, secret)

    def remember(self, client_id: str, secret: str, stored: str) -> None:
        """Cache a verified secret. stored: the argon2 hash that it matches."""
        if client_id not in self._known and len(self._known) >= _MAX_CLIENTS:
            del self._known[next(iter(self._known))]
        self._known.setdefault(client_id, {})[stored] = self._hashed(client_id, secret)

    def _matching(self, client_id: str, secret: str) -> str | None:
        known = self._known.get(client_id)
        if known is None:
            return None
        hashed = self._hashed(client_id, secret)
        return next((stored for stored, other in known.items() if hmac.compare_digest(hashed, other)), None)

    def _hashed(self, client_id: str, secret: str) -> bytes:
        text = f"{len(client_id)}:{client_id}{secret}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, key=self._key, digest_size=32).digest()
