"""Ids in logs: what stands for an EMAID or a PCID, so that one vehicle can be followed and nobody is named."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from typing import Final

from ccp.errors import FieldError
from ccp.ids import EMAID, PCID, masked
from ccp.server.settings import LogIdentifiers, Settings
from ccp.server.storage import Store
from ccp.server.storage.queries import secrets as queries

_NAME: Final = "log_key"


class Pseudonyms:
    """All workers have the same key: the setting, or else one that the first of them makes and the database keeps."""

    def __init__(self, config: Settings) -> None:
        self.mode: LogIdentifiers = config.log_identifiers
        self._keyed = (
            _keyed(config.log_pseudonym_key.get_secret_value()) if config.log_pseudonym_key is not None else None
        )

    async def open(self, store: Store) -> None:
        """Raises Unavailable, ConfigurationError."""
        if self._keyed is None:
            kept = await store.read(queries.find(_NAME))
            if kept is None:
                kept = await store.write(queries.ensure(_NAME, secrets.token_hex(32)))
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
        if canonical is None or self.mode is LogIdentifiers.OWNER:
            return None
        return str(canonical) if self.mode is LogIdentifiers.CLEAR else self.of(canonical)

    def hide_ids(self, text: str) -> str:
        """A text from outside, with every id in it replaced by its pseudonym, in whatever way it is written there.

        For what is stored regardless of the settings. Words that might be ids count as ids.
        """
        return _replace_ids(text, self.of)

    def shown_text(self, text: str | None) -> str | None:
        """What a log event says of a text from outside that may be or hold an id, such as an unknown client id."""
        if text is None or self.mode is LogIdentifiers.CLEAR:
            return text
        return _replace_ids(text, _owner) if self.mode is LogIdentifiers.OWNER else self.hide_ids(text)


def _owner(canonical: EMAID | PCID) -> str:
    return f"{canonical.provider if isinstance(canonical, EMAID) else canonical.wmi}…"


_SEPARATOR: Final = r"[-*./:_\s\u2010-\u2015\u2212]"
"""What people, and the programs they copy from, write between the parts of an EMAID: DIN SPEC 91286 has asterisks,
word processors dashes of their own."""
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
            return "".join(_CANDIDATE.sub(replace, word) for word in words)  # An id behind other words.
        compact = _SEPARATORS.sub("", written)
        if compact != written and not re.search(r"\d", compact):
            return written  # Words of a name.
        for kind in (PCID, EMAID):  # Where the two overlap their canonical forms are the same.
            try:
                return stand_in(kind.parse(compact))
            except FieldError:
                continue
        return masked(written)

    return _CANDIDATE.sub(replace, text)


def _keyed(key: str) -> hmac.HMAC:
    """To be copied for each id: setting it up takes longer than an id."""
    return hmac.new(key.encode(), digestmod="sha256")
