"""Client secrets that were verified before, as keyed hashes: a login with one of them needs no argon2.

A flood of failed logins for a client id can make the login throttle refuse every further attempt, and keep argon2 busy.
A secret that is recognised here passes both. Client secrets are random (256 bits), so a fast hash leaves nothing to
guess, and the key of the hash never leaves this process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection
from typing import Final

_MAX_CLIENTS: Final = 10_000


class SecretCache:
    """By client id, for each argon2 hash in the register the keyed hash of the secret that matched it.

    An entry counts only while the register still has that argon2 hash as valid, so a secret that was replaced, has
    expired, or is a disabled party's is not recognised.
    """

    def __init__(self) -> None:
        self._key: Final = secrets.token_bytes(32)
        self._known: dict[str, dict[str, bytes]] = {}

    def contains(self, client_id: str, secret: str) -> bool:
        """Whether the secret was valid when it was verified last; `still_valid` says whether it is now."""
        return self._matching(client_id, secret) is not None

    def still_valid(self, client_id: str, secret: str, valid_hashes: Collection[str]) -> bool:
        """Whether the secret is recognised and its argon2 hash is valid now. Entries of other hashes are removed."""
        known = self._known.get(client_id)
        if known is None:
            return False
        for stored in known.keys() - set(valid_hashes):
            del known[stored]
        if not known:
            del self._known[client_id]
            return False
        return self._matching(client_id, secret) is not None

    def remember(self, client_id: str, secret: str, stored: str) -> None:
        """stored: the argon2 hash that the secret matches."""
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
