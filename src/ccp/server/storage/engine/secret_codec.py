"""Encryption of the secrets in the database: AES-256-GCM under keys from a file, the storage keys.

    secrets = SecretCodec.from_file(path)
    place = Place("peer", "secret", "DEABC")
    stored = secrets.encrypt(secrets.newest, place, "the secret")       # ccp-secret:1:0a1b…:…
    secrets.decrypt(place, stored)

A stored value names its key, so values under several keys can be read at the same time. The associated data of a value
are the table, column and row that it belongs to: a value that was copied to another place is refused. A text without
the marker is a secret in clear text.

The file has one key a line, 32 random bytes in Base64 (`openssl rand -base64 32`), the newest first; empty lines and
lines that begin with # do not count. It is read again when a value names an unknown key, so that a running process
follows a file that was extended.

Format: docs/decisions/0033-secrets-encrypted-at-rest.md. Source: NIST SP 800-38D.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ccp.errors import ConfigurationError, Unavailable
from ccp.server.runtime import start_files
from ccp.server.runtime.secret_files import SecretFileError, read_secret_file

_log = structlog.get_logger("ccp.server.storage")

CLEAR: Final = "none"
"""Stands for a key id where secrets are stored in clear text."""

_MARKER: Final = "ccp-secret:"
_ENCRYPTED: Final = f"{_MARKER}1:"
_ESCAPED: Final = f"{_MARKER}clear:"
"""Precedes a clear text that begins with the marker itself, which another system may have chosen."""

_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16
_MAX_KEYS: Final = 16
_DOMAIN: Final = b"opnc-ccp secret 1"
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)


class Place(NamedTuple):
    """Where a secret is stored. row: primary key of the row."""

    table: str
    column: str
    row: str


class MissingStorageKey(ConfigurationError):
    """A process lacks a key that the database uses."""


class UnreadableSecret(Unavailable):
    """A secret in the database cannot be decrypted."""


class DamagedSecret(UnreadableSecret):
    """A value was changed, or copied from another place. The secrets of other rows are not affected."""


def read_keys(path: Path) -> dict[str, AESGCM]:
    """Return the keys of a file by key id, the newest first. Raises ConfigurationError, which never quotes the file."""
    try:
        lines = read_secret_file(path).splitlines()
    except SecretFileError as exc:
        raise ConfigurationError(f"secrets_key_file: {path} {exc}.") from None
    keys: dict[str, AESGCM] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != _KEY_BYTES:
            raise ConfigurationError(
                f"secrets_key_file: line {number} of {path} is not a key of {_KEY_BYTES} bytes in Base64; "
                f"`openssl rand -base64 {_KEY_BYTES}` makes one."
            )
        if len(set(key)) < _KEY_BYTES // 4:  # Of random keys, one in 10^20.
            raise ConfigurationError(f"secrets_key_file: the key in line {number} of {path} is not random.")
        keys[key_id_of(key)] = AESGCM(key)
    if not keys:
        raise ConfigurationError(f"secrets_key_file: {path} has no key.")
    if len(keys) > _MAX_KEYS:
        raise ConfigurationError(f"secrets_key_file: {path} has more than {_MAX_KEYS} keys.")
    return keys


def key_id_of(key: bytes) -> str:
    """The id of a key: 16 hexadecimal digits of a hash, which say nothing about the key."""
    return hashlib.sha256(b"opnc-ccp storage key\0" + key).hexdigest()[:16]


class SecretCodec:
    """Encrypts and decrypts the secrets of one database. Threads may share it."""

    def __init__(self, path: Path | None = None, *, may_lack_keys: bool = False) -> None:
        """path: of the file with the keys; None for none. Raises ConfigurationError.

        may_lack_keys: whether a database may be opened that uses other keys. Their secrets cannot be read.
        """
        self._path = path
        self._may_lack_keys = may_lack_keys
        self._read: start_files.FileState | None = None
        self._keys: dict[str, AESGCM] = {}
        self._foreign: frozenset[str] = frozenset()
        if path is not None:
            self._read = start_files.state_of(path)
            self._keys = read_keys(path)

    @property
    def newest(self) -> str:
        """Id of the newest key; `CLEAR` without keys."""
        return next(iter(self._keys), CLEAR)

    def encrypt(self, key_id: str, place: Place, secret: str) -> str:
        """Return a secret as it is stored. key_id: `CLEAR` for clear text. Raises UnreadableSecret for an unknown key.

        The nonce is random: at most 2^32 values may be encrypted under one key.
        """
        if key_id == CLEAR:
            return f"{_ESCAPED}{secret}" if secret.startswith(_MARKER) else secret
        key = self._key(key_id)
        if key is None:
            raise UnreadableSecret(f"No secret can be stored: {self.missing(key_id)}")
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + key.encrypt(nonce, secret.encode(), _associated(key_id, place))
        return f"{_ENCRYPTED}{key_id}:{base64.b64encode(sealed).decode()}"

    def decrypt(self, place: Place, stored: str) -> str:
        """Return the secret of a stored value. Raises UnreadableSecret; DamagedSecret for a fault of this value."""
        if not stored.startswith(_MARKER):
            return stored
        if stored.startswith(_ESCAPED):
            return stored.removeprefix(_ESCAPED)
        key_id = key_of(stored)
        key = None if key_id in self._foreign else self._key(key_id)
        if key is None and key_id not in self._foreign and _KEY_ID.fullmatch(key_id):
            raise UnreadableSecret(f"{_described(place)} cannot be read: {self.missing(key_id)}")
        try:
            if key is None:
                raise ValueError("no key id")
            sealed = base64.b64decode(stored.removeprefix(_ENCRYPTED).partition(":")[2], validate=True)
            if len(sealed) < _NONCE_BYTES + _TAG_BYTES:
                raise ValueError("too short")
            clear = key.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _associated(key_id, place))
            return clear.decode()
        except (InvalidTag, ValueError) as exc:
            sentence = f"{_described(place)} cannot be decrypted: its value was changed, or copied from another place."
            if key_id in self._foreign:
                sentence += f" It names the storage key {key_id}, which this database does not use."
            _report(sentence)
            raise DamagedSecret(sentence) from exc

    def lacking(self, values: Iterable[object]) -> frozenset[str]:
        """Ids of the keys that stored values name and this process lacks. Other values do not count."""
        stored = (each for each in values if isinstance(each, str) and each.startswith(_ENCRYPTED))
        named = {key_id for key_id in map(key_of, stored) if _KEY_ID.fullmatch(key_id)}
        return frozenset(key_id for key_id in named if self._key(key_id) is None)

    def without(self, foreign: frozenset[str]) -> SecretCodec:
        """A codec for which values under these keys are damaged: the database does not use the keys."""
        other = copy(self)
        other._foreign = foreign
        return other

    def has(self, key_id: str) -> bool:
        """Whether a database that uses a key may be opened; always for clear text."""
        return key_id == CLEAR or self._may_lack_keys or self._key(key_id) is not None

    def missing(self, key_id: str) -> str:
        """A sentence about a key that the file lacks."""
        if self._path is None:
            return (
                f"the database's secrets are encrypted with the storage key {key_id}, but secrets_key_file is not set."
            )
        return (
            f"the database's secrets are encrypted with the storage key {key_id}, which is not in {self._path} "
            "(secrets_key_file)."
        )

    def _key(self, key_id: str) -> AESGCM | None:
        if (
            key_id not in self._keys
            and self._path is not None
            and (state := start_files.state_of(self._path)) != self._read
        ):
            try:
                self._keys, self._read = read_keys(self._path), state
            except ConfigurationError:
                return None  # It is being replaced, or was replaced by something else: the known keys stay.
        return self._keys.get(key_id)


def key_of(stored: str) -> str:
    """The id of the key of a stored value; `CLEAR` for a clear text."""
    if not stored.startswith(_MARKER) or stored.startswith(_ESCAPED):
        return CLEAR
    return stored.removeprefix(_ENCRYPTED).partition(":")[0][:64]


def _associated(key_id: str, place: Place) -> bytes:
    # The row comes last, because it is the only part that may contain the separator.
    return b"\0".join([_DOMAIN, key_id.encode(), place.table.encode(), place.column.encode(), place.row.encode()])


def _described(place: Place) -> str:
    return f"The {place.column} of {place.table} {place.row[:64]} in the database"


@lru_cache(1024)  # Once for each secret.
def _report(sentence: str) -> None:
    _log.error("secret unreadable", reason=sentence)
