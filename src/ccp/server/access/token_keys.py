"""Signing keys of access tokens: creation, rotation and revocation, with audit rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from joserfc.jwk import ECKey

from ccp.server.settings import MAX_TOKEN_LIFETIME
from ccp.server.storage import Store
from ccp.server.storage.queries import signing_keys, unknown_values
from ccp.server.storage.queries.audit import POOL, Action, Entry, with_audit
from ccp.server.storage.queries.signing_keys import TokenKey

_log = structlog.get_logger("ccp.server.access.token_keys")

KEY_ACTIVATION_DELAY: Final = timedelta(seconds=30)
"""Time between the publication of a key and its first signature. Workers reload keys every second; others may cache the
key set for as long."""
_RETIRED_AFTER: Final = timedelta(seconds=MAX_TOKEN_LIFETIME + 60)


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A stored key, parsed."""

    kid: str
    jwk: ECKey
    stored: TokenKey


def parse_keys(stored: Iterable[TokenKey]) -> Iterator[SigningKey]:
    """Parse stored keys. A key that this release cannot parse is skipped, with a warning in the log."""
    for key in stored:
        try:
            yield SigningKey(key.kid, ECKey.import_key(key.private_key, {"kid": key.kid}), key)
        except ValueError as exc:  # The base class of the library's key errors.
            unknown_values.warn("token_key.private_key", type(exc).__name__, key.kid)


def new_key(now: datetime, *, after: timedelta = timedelta(0)) -> TokenKey:
    """Generate an ES256 key that signs from `now + after`."""
    key = ECKey.generate_key("P-256", auto_kid=True)
    while str(key.kid).startswith("-"):  # The command line would parse it as an option.
        key = ECKey.generate_key("P-256", auto_kid=True)
    return TokenKey(str(key.kid), key.as_pem(private=True).decode(), now, now + after)


async def rotate(store: Store, actor: str, now: datetime, after: timedelta = KEY_ACTIVATION_DELAY) -> TokenKey:
    """Add a key that signs from `now + after`, and retire the others once their tokens have expired.

    actor: for the audit trail.
    """
    candidate = new_key(now, after=after)
    change = signing_keys.rotate(candidate, candidate.starts_at + _RETIRED_AFTER, now)
    await store.write(with_audit(change, lambda _: [_rotated(candidate, actor, now)]))
    return candidate


async def revoke(store: Store, kid: str, actor: str, now: datetime) -> TokenKey | None:
    """Revoke a key, and with it every token that it signed.

    Returns the key that was created in its place if no other was left. Raises NotFound.
    """
    candidate = new_key(now)

    def audit_entries(replaced: bool) -> list[Entry]:
        entry = Entry(now, actor, Action.KEY_REVOKED, {"kid": kid})
        return [entry, _rotated(candidate, actor, now)] if replaced else [entry]

    return candidate if await store.write(with_audit(signing_keys.revoke(kid, candidate), audit_entries)) else None


async def replace_old_keys(store: Store, lifetime: int, now: datetime) -> None:
    """Rotate keys that are older than the lifetime (seconds; 0 for never), and remove retired ones.

    Raises Unavailable.
    """
    if lifetime:
        candidate = new_key(now, after=KEY_ACTIVATION_DELAY)
        retire_at = candidate.starts_at + _RETIRED_AFTER
        change = signing_keys.rotate_old(candidate, now - timedelta(seconds=lifetime), retire_at, now)
        done = await store.write(
            with_audit(change, lambda rotated: [_rotated(candidate, POOL, now)] if rotated else [])
        )
        if done:
            _log.info("token key rotated", kid=candidate.kid, signs_from=candidate.starts_at)
    await store.write(signing_keys.remove_retired(now))


def _rotated(key: TokenKey, actor: str, now: datetime) -> Entry:
    return Entry(now, actor, Action.KEY_ROTATED, {"kid": key.kid})
