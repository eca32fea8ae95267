"""Reads a declaration: a TOML file with `[[party]]`, `[[peer]]` and `[[anchor]]`, and tables of external services.

Every problem of the file is found before anything is done, also in the files that it names. Secrets are never in the
file: it names a file, an environment variable, or the argon2 hash of a party's secret.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from argon2 import Type, extract_parameters
from argon2.exceptions import InvalidHashError
from pydantic import SecretStr

from ccp.errors import CCPError, ChainError, ConfigurationError, FieldError
from ccp.ids import parse_fingerprint
from ccp.schemas.suggestions import closest, quotable
from ccp.server.declaration.entries import ENTRIES, AnchorEntry, PartyEntry, PeerEntry, Problems, typed
from ccp.server.domain.parties import Party, create_party
from ccp.server.pool.peer_registry import (
    MAX_SECRET,
    check_peer,
    check_token_members,
    parse_peer_fields,
    with_secret,
)
from ccp.server.runtime.secret_files import SecretFileError, read_secret_line
from ccp.server.settings import Settings
from ccp.server.settings.services import PATHS, SERVICES, ServiceSettings
from ccp.server.storage.queries.peers import Peer
from ccp.server.trust.anchors import refusal
from ccp.verify.trust_folder import read_certificate_files
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole

MAX_FILE: Final = 4_194_304
"""Bytes of a declaration: some 20,000 parties."""
_SECRET_MEMBERS: Final = ("token", "client_secret")
_MIN_PARTY_SECRET: Final = 24  # Characters: the hash of a secret is cheap, because generated ones cannot be guessed.
# A token request computes two of these, so a hash with larger parameters would slow down every caller.
_MAX_MEMORY, _MAX_TIME, _MAX_PARALLELISM = 65_536, 4, 4  # KiB, passes, threads.


@dataclass(frozen=True, slots=True)
class DeclaredParty:
    """A party of the file. named: whether the file states the client id; otherwise it is derived from the name.

    secret, secret_hash: None if the file names none.
    """

    place: str
    party: Party
    named: bool
    secret: str | None = field(default=None, repr=False)
    secret_hash: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class DeclaredPeer:
    """A peer of the file. peer: without credentials if the file names none."""

    place: str
    peer: Peer
    has_secret: bool


@dataclass(frozen=True, slots=True)
class DeclaredAnchor:
    """A certificate of the file for one role. source: name of the file that holds it."""

    place: str
    certificate: Certificate
    role: AnchorRole
    label: str
    source: str


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a file declares. client ids, party ids, and pairs of role and fingerprint are unique."""

    parties: tuple[DeclaredParty, ...]
    peers: tuple[DeclaredPeer, ...]
    anchors: tuple[DeclaredAnchor, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing is declared."""
        return not (self.parties or self.peers or self.anchors)


def read_declaration(content: bytes, folder: Path, settings: Settings, environment: Mapping[str, str]) -> Declaration:
    """Read a declaration.

    content: of the file. folder: to which paths in it are relative. settings: of the pool, with which the tables of
    external services must agree. environment: for `secret_env`. Raises ConfigurationError with a sentence for each
    problem.
    """
    if len(content) > MAX_FILE:
        raise ConfigurationError(f"The declaration is larger than {MAX_FILE} bytes.")
    try:
        text = content.decode("utf-8")
        document = tomllib.loads(text)
    except UnicodeDecodeError as exc:
        raise ConfigurationError(f"The declaration is not UTF-8: byte {exc.start} does not belong.") from exc
    except (tomllib.TOMLDecodeError, ValueError) as exc:
        raise ConfigurationError(f"The declaration is not TOML: {exc}.") from exc
    except RecursionError as exc:
        raise ConfigurationError("The declaration is not TOML: it is nested too deeply.") from exc
    problems = Problems()
    reading = _Reading(folder, environment, problems)
    known = (*ENTRIES, *SERVICES)
    for name in document.keys() - known:
        meant = closest(name, known)
        problems.add(quotable(name), "is nothing that can be declared" + (f"; did you mean {meant}?" if meant else ""))
    for name in SERVICES:
        if name in document:
            _compare_service(name, document[name], getattr(settings, name), folder, problems)
    for place, entry in typed(document, text, problems):
        reading.take(place, entry)
    reading.refuse_duplicates()
    if problems.sentences:
        raise ConfigurationError(*dict.fromkeys(problems.sentences))
    return Declaration(tuple(reading.parties), tuple(reading.peers), tuple(reading.anchors.values()))


class _Reading:
    """Parses the values of entries."""

    def __init__(self, folder: Path, environment: Mapping[str, str], problems: Problems) -> None:
        self.parties: list[DeclaredParty] = []
        self.peers: list[DeclaredPeer] = []
        self.anchors: dict[tuple[str, str], DeclaredAnchor] = {}
        self._folder = folder
        self._environment = environment
        self._problems = problems

    def take(self, place: str, entry: PartyEntry | PeerEntry | AnchorEntry) -> None:
        """Parse an entry, or record its problems."""
        readers: dict[type[Any], Callable[[str, Any], None]] = {
            PartyEntry: self._party, PeerEntry: self._peer, AnchorEntry: self._anchor,
        }  # fmt: skip
        try:
            readers[type(entry)](place, entry)
        except CCPError as exc:
            self._problems.add(place, *exc.messages)
        except OSError as exc:
            self._problems.add(place, f"{exc.filename} cannot be read: {exc.strerror}")

    def refuse_duplicates(self) -> None:
        """Record entries that are declared twice."""
        declared = [
            *(("client id", each.party.client_id, each.place) for each in self.parties),
            *(("party id", each.peer.party_id, each.place) for each in self.peers),
        ]
        counts = Counter((kind, name.lower()) for kind, name, _ in declared)
        for kind, name, place in declared:
            if counts[kind, name.lower()] > 1:
                self._problems.add(place, f"the {kind} {name} is declared more than once")

    def _party(self, place: str, entry: PartyEntry) -> None:
        sources = ("secret_file", "secret_env", "secret_hash")
        given = entry.model_dump(exclude=set(sources))
        named = given["client_id"] is not None
        party = create_party({name: value for name, value in given.items() if value is not None})
        secret = self._secret(entry.secret_file, entry.secret_env, entry.secret_hash)
        if secret is not None and len(secret) < _MIN_PARTY_SECRET:
            raise FieldError(f"secret : must have {_MIN_PARTY_SECRET} characters or more, such as those of a generator")
        if entry.secret_hash is not None:
            _check_hash(entry.secret_hash)
        self.parties.append(DeclaredParty(place, party, named, secret, entry.secret_hash))

    def _peer(self, place: str, entry: PeerEntry) -> None:
        given = entry.model_dump(exclude={"secret_file", "secret_env"})
        given["v2g_roots"] = [parse_fingerprint(text, "v2g_roots") for text in entry.v2g_roots]
        peer = Peer(**parse_peer_fields(given))
        secret = self._secret(entry.secret_file, entry.secret_env)
        if secret is not None:
            peer = with_secret(peer, peer.client_id, secret)
            check_peer(peer)
        else:
            check_token_members(peer)
        self.peers.append(DeclaredPeer(place, peer, secret is not None))

    def _anchor(self, place: str, entry: AnchorEntry) -> None:
        if (entry.file is None) == (entry.pem is None):
            raise FieldError("one of file and pem is needed")
        expected = {parse_fingerprint(text, "fingerprints") for text in entry.fingerprints}
        found = self._certificates(entry)
        if absent := sorted(expected - {certificate.fingerprint for _, certificate in found}):
            raise FieldError(f"fingerprints : no certificate has {', '.join(absent)}")
        for source, certificate in found:
            reason = refusal(certificate)
            if reason is not None:
                raise FieldError(f"{source}: {reason}")
            if expected and certificate.fingerprint not in expected:
                raise FieldError(f"{source}: the fingerprint {certificate.fingerprint} is not among fingerprints")
            label = entry.label or certificate.subject_cn
            for role in entry.roles:
                declared = DeclaredAnchor(place, certificate, role, label, source)
                other = self.anchors.setdefault((role.value, certificate.fingerprint), declared)
                if other.label != label:
                    raise FieldError(f"{source}: is declared with another label as {other.place}")

    def _certificates(self, entry: AnchorEntry) -> list[tuple[str, Certificate]]:
        if entry.pem is not None:
            try:
                found = [("pem", certificate) for certificate in Certificate.load_pem(entry.pem.encode())]
            except ChainError as exc:
                raise FieldError(f"pem : {exc}") from exc
        else:
            path = self._folder / (entry.file or "")
            found = [(file.name, certificate) for file, certificate in read_certificate_files(path)]
        if not found:
            raise FieldError(f"there are no certificates in {entry.file or 'pem'}")
        return found

    def _secret(self, file: str | None, variable: str | None, digest: str | None = None) -> str | None:
        """The secret that an entry names; None if it names none, or a hash."""
        if sum(each is not None for each in (file, variable, digest)) > 1:
            raise FieldError("secret_file, secret_env, secret_hash : are alternatives; give one")
        if file is not None:
            try:
                secret = read_secret_line(self._folder / file)
            except SecretFileError as exc:
                raise FieldError(f"secret_file : {file} {exc}") from None
        elif variable is not None:
            secret = self._environment.get(variable, "")
        else:
            return None
        if not secret.strip() or not secret.isprintable() or len(secret) > MAX_SECRET:
            raise FieldError(
                f"secret : must be 1 to {MAX_SECRET} printable characters in {quotable(variable or file or '')}"
            )
        return secret


def _check_hash(text: str) -> None:
    try:
        found = extract_parameters(text)
    except InvalidHashError:
        raise FieldError("secret_hash : must be an argon2 hash ($argon2id$v=19$…)") from None
    if found.type is not Type.ID or found.version != 19:
        raise FieldError("secret_hash : must be an argon2id hash of version 19")
    if found.memory_cost > _MAX_MEMORY or found.time_cost > _MAX_TIME or found.parallelism > _MAX_PARALLELISM:
        raise FieldError(f"secret_hash : may have m={_MAX_MEMORY}, t={_MAX_TIME}, p={_MAX_PARALLELISM} at most")
    if found.hash_len < 16 or found.salt_len < 8:
        raise FieldError("secret_hash : is too short")


def _compare_service(
    name: str, table: object, configured: ServiceSettings | None, folder: Path, problems: Problems
) -> None:
    """Compare the table of an external service with the settings, which are not in the database."""
    place = f"[{name}]"
    if not isinstance(table, dict):
        problems.add(place, "must be a table")
    elif configured is None:
        problems.add(place, f"the settings have no {SERVICES[name]}; set it in ccp.toml, and restart the pool")
    else:
        for member, value in table.items():
            if member in _SECRET_MEMBERS:
                problems.add(place, f"{member} : a secret does not belong here; name its file in ccp.toml")
            elif member not in ServiceSettings.model_fields:
                meant = closest(member, ServiceSettings.model_fields)
                hint = f"; did you mean {meant}?" if meant else ""
                problems.add(place, f"{quotable(member)} : is no setting of an external service{hint}")
            elif not _agrees(member, value, getattr(configured, member), folder):
                problems.add(place, f"{member} : differs from the settings; change ccp.toml, and restart the pool")


def _agrees(member: str, value: object, configured: object, folder: Path) -> bool:
    if isinstance(configured, SecretStr):
        return False
    if member in PATHS:
        return isinstance(value, str) and configured is not None and _same_file(folder / value, Path(str(configured)))
    if isinstance(configured, bool):
        return value is configured
    return isinstance(value, str) and value.rstrip("/") == str(configured).rstrip("/")


def _same_file(one: Path, other: Path) -> bool:
    return Path(os.path.abspath(one)) == Path(os.path.abspath(other))
