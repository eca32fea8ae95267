"""Ids of contracts and vehicles in pages: in full for an admin, as pseudonyms for a viewer.

The pseudonyms are those of the log, so that a viewer can follow a contract from a page to the log. A page has an
address for a viewer too, which must not contain the id: `handle` encrypts it there (RFC 5297, deterministic, so that
the address of a page stays the same).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from ccp.errors import FieldError, NotAuthorised, NotFound
from ccp.ids import EMAID, PCID
from ccp.server.audit.pseudonyms import Pseudonyms
from ccp.server.console.pool_keys import load_key
from ccp.server.console.texts import MAX_TEXT, cut
from ccp.server.pool.refusal_reports import parse_ids
from ccp.server.storage import Store

_KEY_NAME: Final = "console_handle_key"
_PREFIX: Final = "~"  # Of an encrypted id; no id begins with it.

Id = TypeVar("Id", EMAID, PCID)


class HandleCipher:
    """Encryption of ids in the addresses of a viewer's pages, under one key for all workers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cipher: AESSIV | None = None

    async def open(self) -> None:
        """Load the key from the database, or create it there. Raises Unavailable."""
        if self._cipher is None:
            key = await load_key(self._store, _KEY_NAME)
            self._cipher = AESSIV(hashlib.sha512(key).digest())

    def seal(self, canonical: EMAID | PCID) -> str:
        """Encrypt an id for an address."""
        assert self._cipher is not None, "open has been called"
        sealed = self._cipher.encrypt(str(canonical).encode("ascii"), [canonical.field.encode()])
        return _PREFIX + base64.urlsafe_b64encode(sealed).decode("ascii").rstrip("=")

    def unseal(self, kind: type[Id], handle: str) -> Id:
        """Decrypt an id. Raises NotFound."""
        assert self._cipher is not None, "open has been called"
        text = handle.removeprefix(_PREFIX)
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            return kind.parse(self._cipher.decrypt(sealed, [kind.field.encode()]).decode("ascii"))
        except (binascii.Error, InvalidTag, ValueError, FieldError) as exc:
            raise NotFound("There is nothing at this address.") from exc


class IdDisplay:
    """Ids as the person of a request may see them. `ids` in every template."""

    def __init__(self, pseudonyms: Pseudonyms, cipher: HandleCipher, *, in_full: bool) -> None:
        self._pseudonyms = pseudonyms
        self._cipher = cipher
        self.in_full: Final = in_full

    def show(self, canonical: EMAID | PCID) -> str:
        """The id, or its owner and its pseudonym in the log."""
        if self.in_full:
            return str(canonical)
        owner = canonical.provider if isinstance(canonical, EMAID) else canonical.wmi
        return f"{owner}…{self._pseudonyms.pseudonym(canonical)}"

    def text(self, text: str, limit: int = MAX_TEXT) -> str:
        """A text from outside, which may contain ids, such as an error sentence or the name of a certificate.

        limit: bytes of it in the page.
        """
        return cut(text if self.in_full else self._pseudonyms.replace_ids(text), limit)

    def echo(self, text: str) -> str:
        """What the person has typed, as it is repeated in the page. A viewer who types an id learns no pseudonym."""
        return cut(text if self.in_full else self._pseudonyms.mask_ids(text), 2 * MAX_TEXT)

    def handle(self, canonical: EMAID | PCID) -> str:
        """The id as a part of an address."""
        return str(canonical) if self.in_full else self._cipher.seal(canonical)

    def resolve(self, kind: type[Id], handle: str) -> Id:
        """The id of an address or of a search.

        An id in full is for an admin only. A viewer who could try ids would learn which contracts exist, and which
        pseudonym belongs to which id. Raises FieldError, NotFound, NotAuthorised.
        """
        if handle.startswith(_PREFIX):
            return self._cipher.unseal(kind, handle)
        if not self.in_full:
            raise NotAuthorised("A search by id needs the role admin; open the page from a list.")
        return kind.parse(handle)

    def candidates(self, text: str) -> list[EMAID | PCID]:
        """The ids that a text of a search or an address may be; none if it is no id.

        Raises NotFound, and NotAuthorised as `resolve`.
        """
        if text.startswith(_PREFIX):
            try:
                return [self._cipher.unseal(EMAID, text)]
            except NotFound:
                return [self._cipher.unseal(PCID, text)]
        found = parse_ids(text)
        if found and not self.in_full:
            raise NotAuthorised("A search by id needs the role admin; open the page from a list.")
        return found
