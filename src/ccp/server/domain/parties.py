"""Who may call: parties, their roles, and the ids they own. Pure."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from ccp.errors import FieldError, MismatchError
from ccp.ids import WMI, OperatorId, ProviderId
from ccp.server.domain.confusable_names import confusable_reason

CLIENT_ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What stands in a URL and in HTTP Basic as it is; `.` and `..` are no client ids, since clients resolve them."""
NAME_LENGTH: Final = 100
"""Characters. Long enough for a company's full legal name, short enough for a line of a table."""

_CLIENT_ID: Final = re.compile(CLIENT_ID_PATTERN[1:-1])


class PartyRole(StrEnum):
    """What a party is to the pool. One organisation may hold several."""

    EMSP = "emsp"
    CPO = "cpo"
    OEM = "oem"
    CPS = "cps"
    CCP = "ccp"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Party:
    """A registered organisation and the ids it answers for.

    provider_ids: of an eMSP its own; of a CPS those it signs for, unless it does so for all_providers.
    """

    client_id: str
    name: str
    roles: frozenset[PartyRole]
    provider_ids: frozenset[ProviderId] = frozenset()
    all_providers: bool = False
    wmis: frozenset[WMI] = frozenset()
    operator_ids: frozenset[OperatorId] = frozenset()
    enabled: bool = True

    def members(self) -> dict[str, Any]:
        """As the command line and the admin API show it."""
        return {
            "client_id": self.client_id,
            "name": self.name,
            "roles": sorted(self.roles),
            "provider_ids": sorted(self.provider_ids),
            "all_providers": self.all_providers,
            "wmis": sorted(self.wmis),
            "operator_ids": sorted(self.operator_ids),
            "enabled": self.enabled,
        }

    def without_roles(self, roles: Iterable[PartyRole]) -> Party:
        """Without the roles, and without the ids that no other role of it uses."""
        left = replace(self, roles=self.roles - set(roles))
        unused = {field: type(getattr(left, field))() for field, _ in _stray(left)}
        return replace(left, **unused)


@dataclass(frozen=True, slots=True)
class Caller:
    """A party in one of its requests.

    trace_id: of the request, empty for a command. address: where it came from, as far as the edge knows. kid: of the
    pool's own key that signed the caller's token; None for a caller of another issuer, and for a command.
    """

    party: Party
    trace_id: str = ""
    address: str | None = None
    kid: str | None = None

    def standing(self, check: Callable[[Party], None]) -> Standing | None:
        """What has to hold still when the caller's change commits; None for a caller that is in no register.

        check: raises where the party, with what it is registered for by then, may not do it. The party as it is here
        has passed it.
        """
        if self.kid is None:
            return None
        # What the token was limited to, or the party did not have when it called, it does not gain meanwhile.
        roles = self.party.roles
        return Standing(self.party, self.kid, lambda now: check(replace(now, roles=now.roles & roles)))


@dataclass(frozen=True, slots=True)
class Standing:
    """A registered caller, the key that signed its token, and what it has to be allowed; see
    `ccp.server.storage.queries.caller_standing`.

    party: for which `check` was made already. check: raises where another state of the party may not do it.
    """

    party: Party
    kid: str
    check: Callable[[Party], None]

    @property
    def client_id(self) -> str:
        return self.party.client_id


TOKEN_NOT_VALID: Final = "The access token is not valid (any more)."  # noqa: S105  a sentence
"""What a caller reads whose token names no enabled party, or was signed by no valid key."""


# --- From what is given to a party -----------------------------------------------------------------------------------


def create_party(given: Mapping[str, Any]) -> Party:
    """A new party from its fields as they are given, see `parsed`.

    A client id is made from the name where none is given. Raises FieldError, MismatchError.
    """
    fields = parse_fields(given)
    if "client_id" not in fields:
        fields["client_id"] = derive_client_id(fields["name"])
    party = Party(**fields)
    check_party(party)
    return party


def parse_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values for the fields of a Party, by their names. What is given: texts, lists of texts for ids.

    Raises FieldError naming everything that is wrong.
    """
    fields: dict[str, Any] = {}
    problems: list[str] = []
    for name, value in given.items():
        try:
            fields[name] = _READ[name](value)
        except FieldError as exc:
            problems += exc.messages
    if problems:
        raise FieldError(*dict.fromkeys(problems))
    return fields


def parse_name(text: str) -> str:
    """A name for people: printable, so that it cannot write to a terminal or turn its direction, and not easily taken
    for another one. Raises FieldError.
    """
    name = " ".join(filter(None, unicodedata.normalize("NFC", text).split(" ")))
    if not name.isprintable() or not any(map(str.isalnum, name)) or len(name) > NAME_LENGTH:
        raise FieldError(f"name : must be at most {NAME_LENGTH} printable characters, and a letter or digit among them")
    if (problem := confusable_reason(name)) is not None:
        raise FieldError(f"name : {problem}, so it could be taken for another one")
    return name


_NO_PARTY: Final = frozenset({"pool", "pcp", "cli", "unknown", "several"})


def parse_client_id(text: str) -> str:
    """Raises FieldError."""
    if not _CLIENT_ID.fullmatch(text):
        raise FieldError(f'client_id : must match "{CLIENT_ID_PATTERN}"')
    if text.lower() in _NO_PARTY:
        raise FieldError(f"client_id : {text} is a name of the audit trail for what no party did")
    return text


def derive_client_id(name: str) -> str:
    """A client id that tells whose it is. Raises FieldError when nothing of the name can stand in one."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    text = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:64].rstrip("-")
    if not text:
        raise FieldError("client_id : must be given, since the name has no letter a to z and no digit to make it from")
    return f"party-{text}" if text in _NO_PARTY else text


def _reader(kind: type[ProviderId] | type[OperatorId] | type[WMI], word: str) -> Callable[[Iterable[str]], Any]:
    """Reads a list of ids, and names each that is none."""

    def read(texts: Iterable[str]) -> frozenset[Any]:
        found: set[Any] = set()
        problems: list[str] = []
        for text in texts:
            try:
                # As JSON, shortened: whatever was typed, the sentence can be printed.
                found.add(kind.parse(text, f"{word} {json.dumps(text[:20])}"))
            except FieldError as exc:
                problems += exc.messages
        if problems:
            raise FieldError(*problems)
        return frozenset(found)

    return read


_READ: Final[Mapping[str, Callable[[Any], Any]]] = {
    "client_id": parse_client_id,
    "name": parse_name,
    "roles": frozenset,
    "provider_ids": _reader(ProviderId, "provider id"),
    "all_providers": bool,
    "wmis": _reader(WMI, "WMI"),
    "operator_ids": _reader(OperatorId, "operator id"),
}


# --- Rules of one party ----------------------------------------------------------------------------------------------


def check_party(party: Party) -> None:
    """Refuse a party whose roles could do nothing, or could do more than was said.

    A disabled party may lack ids: that is how they are freed for another. A CPO needs none, since one may forward for
    many operators. Raises MismatchError naming everything that is wrong.
    """
    problems = [sentence for _, sentence in _stray(party)]
    if party.enabled:
        problems += _lacking(party)
    if problems:
        raise MismatchError(*problems)


def _lacking(party: Party) -> list[str]:
    problems: list[str] = []
    if not party.roles:
        problems.append("A party needs a role.")
    if PartyRole.EMSP in party.roles and not party.provider_ids:
        problems.append("An eMSP needs a provider id.")
    if PartyRole.OEM in party.roles and not party.wmis:
        problems.append("An OEM needs a WMI.")
    if PartyRole.CPS in party.roles and not (party.provider_ids or party.all_providers):
        problems.append("A CPS needs the provider ids that it signs for, or all providers.")
    return problems


def _stray(party: Party) -> list[tuple[str, str]]:
    """Fields that no role of the party uses, and what to say of each."""
    users: tuple[tuple[str, set[PartyRole], str], ...] = (
        ("provider_ids", {PartyRole.EMSP, PartyRole.CPS}, "Provider ids are for an eMSP or a CPS."),
        ("all_providers", {PartyRole.CPS}, "All providers are for a CPS."),
        ("wmis", {PartyRole.OEM}, "WMIs are for an OEM."),
        ("operator_ids", {PartyRole.CPO}, "Operator ids are for a CPO."),
    )
    return [(field, said) for field, roles, said in users if getattr(party, field) and not roles & party.roles]


# --- Rules among parties ---------------------------------------------------------------------------------------------


OWNED_PROVIDER: Final = "provider id"
OWNED_WMI: Final = "WMI"
"""Kinds of ids that are one party's alone."""


def owned_ids(party: Party) -> list[tuple[str, str]]:
    """The ids that are the party's alone, by kind, in order. A CPS works for providers without owning them."""
    found: list[tuple[str, str]] = []
    if PartyRole.EMSP in party.roles:
        found += [(OWNED_PROVIDER, value) for value in sorted(party.provider_ids)]
    if PartyRole.OEM in party.roles:
        found += [(OWNED_WMI, value) for value in sorted(party.wmis)]
    return sorted(found)


def fold_name(name: str) -> str:
    """A name or client id as it is compared: without regard to case, width and other ways to write the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def find_by_name(known: Iterable[Party], name_or_client_id: str) -> Party | None:
    """The party that is meant: by its exact client id or name, else without regard to case if that is one party."""
    known = list(known)
    wanted = fold_name(name_or_client_id)
    for found in (
        [party for party in known if party.client_id == name_or_client_id],
        [party for party in known if party.name == name_or_client_id],
        [party for party in known if wanted in (fold_name(party.name), fold_name(party.client_id))],
    ):
        if len(found) == 1:
            return found[0]
    return None
