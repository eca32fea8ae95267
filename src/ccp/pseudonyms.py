"""Ids in logs: what stands for an EMAID or a PCID, so that one vehicle can be followed and nobody is named."""

from __future__ import annotations

import hmac
import secrets
from typing import Final

from ccp.ids import EMAID, PCID
from ccp.settings import LogIds, Settings
from ccp.store import Store
from ccp.store import secrets as questions

_NAME: Final = "log_key"


class Pseudonyms:
    """All workers have the same key: the setting, or else one that the first of them makes and the database keeps."""

    def __init__(self, config: Settings) -> None:
        self.mode: LogIds = config.log_ids
        self._keyed = _keyed(config.log_key.get_secret_value()) if config.log_key is not None else None

    async def open(self, store: Store) -> None:
        """Raises Unavailable, ConfigurationError."""
        if self._keyed is None:
            kept = await store.read(questions.find(_NAME))
            if kept is None:
                kept = await store.write(questions.ensure(_NAME, secrets.token_hex(32)))
            self._keyed = _keyed(kept)

    def of(self, canonical: EMAID | PCID) -> str:
        """The first sixteen hexadecimal digits of HMAC-SHA256 over the canonical id: 64 bits tell vehicles apart."""
        if self._keyed is None:
            raise RuntimeError("open comes first")
        mac = self._keyed.copy()
        mac.update(canonical.encode())
        return mac.hexdigest()[:16]

    def shown(self, canonical: EMAID | PCID | None) -> str | None:
        """What a log event says of an id; None where the settings leave it out."""
        if canonical is None or self.mode is LogIds.OWNER:
            return None
        return str(canonical) if self.mode is LogIds.CLEAR else self.of(canonical)


def _keyed(key: str) -> hmac.HMAC:
    """To be copied for each id: setting it up takes longer than an id."""
    return hmac.new(key.encode(), digestmod="sha256")
