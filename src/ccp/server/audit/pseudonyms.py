"""Pseudonyms of EMAIDs and PCIDs in logs: keyed hashes, by which one contract or vehicle can be followed."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from typing import Final

from ccp.errors import FieldError
from ccp.ids import EMAID, PCID, mask_ids
from ccp.server.settings import LogIdentifiers, Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import secrets as queries

_NAME: Final = "log_key"
"""Name of the key in the database's table of secrets."""


class Pseudonyms:
    """Pseudonyms under one key for all workers: the setting, or a key that the first worker stores in the database."""

    def __init__(self, config: Settings) -> None:
        self.mode: LogIdentifiers = config.log_identifiers
        key = config.log_pseudonym_key
        self._keyed = None if key is None else _keyed(key.get_secret_value())

    async def open(self, store: Store) -> None:
        """Load the key from the database, or create it there. Raises Unavailable, ConfigurationError."""
        if self._keyed is None:
            stored = await store.read(queries.find(_NAME))
            if stored is None:
                stored = await store.write(queries.ensure(_NAME, secrets.token_hex(32)))
            self._keyed = _keyed(stored)

    def pseudonym(self, canonical: EMAID | PCID) -> str:
        """The first 16 hexadecimal digits of HMAC-SHA256 over the canonical id; 64 bits distinguish all vehicles."""
        if self._keyed is None:
            raise RuntimeError("Pseudonyms.open has not been called")
        mac = self._keyed.copy()
        mac.update(canonical.encode())
        return mac.hexdigest()[:16]

    def pseudonymise(self, canonical: EMAID | PCID | None) -> str | None:
        """An id as a log event contains it, by the setting `log_identifiers`; None where it is omitted."""
        if canonical is None or self.mode is LogIdentifiers.OWNER:
            return None
        return str(canonical) if self.mode is LogIdentifiers.CLEAR else self.pseudonym(canonical)

    def replace_ids(self, text: str) -> str:
        """Replace every id in a text from outside by its pseudonym, in whatever way it is written there.

        For text that is stored regardless of the settings. Words that may be ids are replaced too.
        """
        return _replace_ids(text, self.pseudonym)

    @staticmethod
    def mask_ids(text: str) -> str:
        """Replace every id in a text by its owner: for a text that is repeated to a person who may have made it up.

        A pseudonym there would tell which one belongs to an id.
        """
        return _replace_ids(text, _owner)

    def pseudonymise_text(self, text: str | None) -> str | None:
        """A text from outside as a log event contains it, such as an unknown client id, which may contain an id."""
        if text is None or self.mode is LogIdentifiers.CLEAR:
            return text
        return self.mask_ids(text) if self.mode is LogIdentifiers.OWNER else self.replace_ids(text)


def _owner(canonical: EMAID | PCID) -> str:
    return f"{canonical.provider if isinstance(canonical, EMAID) else canonical.wmi}…"


_SEPARATOR: Final = r"[-*./:_\s\u2010-\u2015\u2212]"
"""Separators in use between the parts of an EMAID: DIN SPEC 91286 has asterisks, word processors insert dashes."""
_CANDIDATE: Final = re.compile(
    rf"(?<!\w)[A-Za-z]{{2}}{_SEPARATOR}{{0,2}}[A-Za-z0-9]{{3}}{_SEPARATOR}{{0,2}}[A-Za-z0-9]{{9,28}}"
    rf"(?:{_SEPARATOR}{{0,2}}[A-Za-z0-9])?(?!\w)|\w{{14,}}"
)
"""An EMAID with separators, or any long word."""
_SHORTEST: Final = 14  # Characters of an EMAID; a PCID has 17.
_SEPARATORS: Final = re.compile(_SEPARATOR)
_BETWEEN_WORDS: Final = re.compile(r"([\s:/]+)")


def _replace_ids(text: str, stand_in: Callable[[EMAID | PCID], str]) -> str:
    def replace(found: re.Match[str]) -> str:
        written = found[0]
        words = _BETWEEN_WORDS.split(written)
        if len(words) > 1 and any(len(word) >= _SHORTEST for word in words):
            return "".join(_CANDIDATE.sub(replace, word) for word in words)  # An id that follows other words.
        compact = _SEPARATORS.sub("", written)
        if compact != written and not re.search(r"\d", compact):
            return written  # Words of a name.
        for kind in (PCID, EMAID):  # For a text that is both, the canonical forms are the same.
            try:
                return stand_in(kind.parse(compact))
            except FieldError:
                continue
        return mask_ids(written)

    return _CANDIDATE.sub(replace, text)


def _keyed(key: str) -> hmac.HMAC:
    """A keyed HMAC to copy for each id: the key set-up takes longer than hashing an id."""
    return hmac.new(key.encode(), digestmod="sha256")
