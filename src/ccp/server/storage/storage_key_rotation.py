"""Change of the key that encrypts the secrets in the database, in short transactions while workers run.

An interrupted run is simply repeated: the database knows the current key, and values of older keys stay readable.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ccp.errors import ConfigurationError
from ccp.server.settings import Settings
from ccp.server.storage import Store, connect
from ccp.server.storage.engine import schema, stored_secrets
from ccp.server.storage.engine.secret_codec import CLEAR, UnreadableSecret
from ccp.server.storage.engine.stored_secrets import SECRET_COLUMNS
from ccp.server.storage.engine.time_limits import COMMANDS
from ccp.server.storage.queries import storage_keys
from ccp.server.storage.queries.audit import Action, Entry, with_audit

MAX_REMEMBERED: Final = 200
"""Former values that are remembered to search the files for them."""


@dataclass(frozen=True, slots=True)
class StorageKeyRotation:
    """before, after: key ids, or "none" for clear text. changed: number of secrets by column, discarded ones included.

    discarded: table, column and row of secrets that could not be decrypted, as "peer.secret pool-b".
    former: former stored values; None if some are unknown, because there are too many or an earlier run replaced them.
    """

    before: str
    after: str
    changed: dict[str, int]
    discarded: tuple[str, ...]
    former: tuple[str, ...] | None

    @property
    def total(self) -> int:
        """Number of secrets that were stored anew."""
        return sum(self.changed.values())


async def rotate(
    store: Store, actor: str, now: datetime, *, clear_text: bool = False, discard: bool = False
) -> StorageKeyRotation:
    """Encrypt every secret in the database with the newest key.

    clear_text: decrypt them instead. discard: replace secrets that cannot be decrypted. Raises ConfigurationError
    without keys; UnreadableSecret for a value that cannot be decrypted; Conflict if another rotation overtakes this
    one.
    """
    target = CLEAR if clear_text else await store.read(storage_keys.newest_key())
    if target == CLEAR and not clear_text:
        raise ConfigurationError("secrets_key_file is not set, so there is no key to encrypt secrets with.")
    resumed = bool((await store.read(stored_secrets.state())).old)
    before = await store.write(
        with_audit(
            storage_keys.select_key(target),
            lambda before: [] if before == target else [
                Entry(now, actor, Action.STORAGE_KEY_SELECTED, {"before": before, "after": target})
            ],
        )
    )  # fmt: skip
    former: list[str] = []
    discarded: list[str] = []
    changed: dict[str, int] = {}
    for column in SECRET_COLUMNS:
        last: str | None = ""
        while last is not None:
            try:
                portion = await store.write(storage_keys.reencrypt(column, last, target, discard=discard))
            except UnreadableSecret as exc:
                raise UnreadableSecret(
                    f"{exc} `ccp keys rotate-storage --discard-unreadable` lists all such secrets and goes on without "
                    "them."
                ) from exc
            last = portion.last
            discarded += [f"{column.table}.{column.column} {row}" for row in portion.discarded]
            former += portion.replaced[: MAX_REMEMBERED + 1 - len(former)]
            if portion.replaced:
                name = f"{column.table}.{column.column}"
                changed[name] = changed.get(name, 0) + len(portion.replaced)
    subject: dict[str, Any] = {"key": target, "secrets": sum(changed.values())}
    if discarded:
        subject |= {"discarded": discarded[:MAX_REMEMBERED], "discarded_count": len(discarded)}
    finished = Entry(now, actor, Action.STORAGE_KEY_ROTATED, subject)
    await store.write(with_audit(storage_keys.forget_old_keys(target), lambda _: [finished]))
    known = not resumed and len(former) <= MAX_REMEMBERED
    return StorageKeyRotation(before, target, changed, tuple(discarded), tuple(former) if known else None)


def start_warnings(config: Settings) -> list[str]:
    """Sentences about secrets that are not stored as the settings ask for. Blocks, also within an event loop.

    Raises ConfigurationError without the keys of the database.
    """

    async def read() -> list[str]:
        store = connect(config.database, 2, COMMANDS, config.secrets_key_file)
        await store.open()
        try:
            return await store.read(storage_keys.warnings())
        finally:
            await store.close()

    return schema.finish(read())
