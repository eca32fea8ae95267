"""Parties: roles, ids, names, and the rules for them. Pure."""

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
from ccp.server.domain.fields import parse_each

CLIENT_ID_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Characters that need no escaping in a URL and in HTTP Basic. Excludes `.` and `..`, which URL clients resolve."""
NAME_LENGTH: Final = 100
"""Characters. Long enough for a company's full legal name, short enough for a line of a table."""

_CLIENT_ID: Final = re.compile(CLIENT_ID_PATTERN[1:-1])


class PartyRole(StrEnum):
    """The role of a party. One organisation may have several."""

    EMSP = "emsp"
    CPO = "cpo"
    OEM = "oem"
    CPS = "cps"
    CCP = "ccp"
    ADMIN = "admin"
    METRICS = "metrics"


@dataclass(frozen=True, slots=True)
class Party:
    """An organisation with its roles and ids.

    provider_ids: of an eMSP its own; of a CPS those that it signs for, unless all_providers is set.
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
        """The JSON of the command line and of the admin API."""
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
        """The party without these roles, and without the ids that only these roles use."""
        left = replace(self, roles=self.roles - set(roles))
        unused = {field: type(getattr(left, field))() for field, _ in _unused_fields(left)}
        return replace(left, **unused)


@dataclass(frozen=True, slots=True)
class Caller:
    """The party that makes a request.

    trace_id: of the request, empty for a command. address: of the client, if known. kid: of the pool's own key that
    signed the caller's token; None for a caller of another issuer, and for a command.
    """

    party: Party
    trace_id: str = ""
    address: str | None = None
    kid: str | None = None

    def standing(self, check: Callable[[Party], None]) -> Standing | None:
        """The authorisation to check again when the caller's change commits; None for a caller that is not registered.

        check: raises if a party is not authorised for the change. `self.party` has passed it.
        """
        if self.kid is None:
            return None
        # The caller does not gain roles that its token excludes or that the party did not have when it called.
        roles = self.party.roles
        return Standing(self.party, self.kid, lambda now: check(replace(now, roles=now.roles & roles)))


@dataclass(frozen=True, slots=True)
class Standing:
    """A registered caller whose authorisation is checked again in a transaction.

    See `ccp.server.storage.queries.caller_standing`. party: the state that has passed `check`. kid: of the key that
    signed the caller's token. check: raises if another state of the party is not authorised.
    """

    party: Party
    kid: str
    check: Callable[[Party], None]

    @property
    def client_id(self) -> str:
        """The client id of the caller."""
        return self.party.client_id


TOKEN_NOT_VALID: Final = "The access token is not valid (any more)."  # noqa: S105  a sentence
"""Error sentence for a token that names no enabled party, or that no valid key has signed."""


# --- Parsing ---------------------------------------------------------------------------------------------------------


def create_party(given: Mapping[str, Any]) -> Party:
    """Make a party from its unparsed fields, see `parse_fields`.

    Without a client id, one is derived from the name. Raises FieldError, MismatchError.
    """
    fields = parse_fields(given)
    if "client_id" not in fields:
        fields["client_id"] = derive_client_id(fields["name"])
    party = Party(**fields)
    check_party(party)
    return party


def parse_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the fields of a Party, by name. given: strings, and lists of strings for ids.

    Raises FieldError with a sentence for each problem.
    """
    return parse_each(given, _PARSERS)


def parse_name(text: str) -> str:
    """Parse a display name: printable, so that it cannot control a terminal, and not confusable with another one.

    Raises FieldError.
    """
    name = " ".join(filter(None, unicodedata.normalize("NFC", text).split(" ")))
    if not name.isprintable() or not any(map(str.isalnum, name)) or len(name) > NAME_LENGTH:
        raise FieldError(f"name : must be at most {NAME_LENGTH} printable characters, and a letter or digit among them")
    if (problem := confusable_reason(name)) is not None:
        raise FieldError(f"name : {problem}, so it could be taken for another one")
    return name


_RESERVED_CLIENT_IDS: Final = frozenset({"pool", "pcp", "cli", "unknown", "several"})


def parse_client_id(text: str) -> str:
    """Parse a client id. Raises FieldError, also for names that the audit trail uses for other actors."""
    if not _CLIENT_ID.fullmatch(text):
        raise FieldError(f'client_id : must match "{CLIENT_ID_PATTERN}"')
    if text.lower() in _RESERVED_CLIENT_IDS:
        raise FieldError(f"client_id : {text} is reserved in the audit trail for actors that are not parties")
    return text


def derive_client_id(name: str) -> str:
    """Derive a client id from a name. Raises FieldError if no character of the name can be used."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode("ascii").lower()
    text = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:64].rstrip("-")
    if not text:
        raise FieldError("client_id : must be given, since the name has no letter a to z and no digit to make it from")
    return f"party-{text}" if text in _RESERVED_CLIENT_IDS else text


def check_owner_id(parsed: str, field: str) -> None:
    """Refuse an underscore: an EMAID may have one, but an owner has letters and digits. Raises FieldError.

    Source: ISO 15118-1.
    """
    if "_" in parsed:
        raise FieldError(f"{field} : must have letters and digits; an underscore is no wildcard")


def _ids_parser(kind: type[ProviderId] | type[OperatorId] | type[WMI], word: str) -> Callable[[Iterable[str]], Any]:
    """A parser of lists of ids, with an error for each malformed one."""

    def parse(texts: Iterable[str]) -> frozenset[Any]:
        found: set[Any] = set()
        problems: list[str] = []
        for text in texts:
            try:
                # Shortened and as JSON, so that the sentence is printable.
                named = f"{word} {json.dumps(text[:20])}"
                parsed = kind.parse(text, named)
                check_owner_id(parsed, named)
                found.add(parsed)
            except FieldError as exc:
                problems += exc.messages
        if problems:
            raise FieldError(*problems)
        return frozenset(found)

    return parse


_PARSERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "client_id": parse_client_id,
    "name": parse_name,
    "roles": frozenset,
    "provider_ids": _ids_parser(ProviderId, "provider id"),
    "all_providers": bool,
    "wmis": _ids_parser(WMI, "WMI"),
    "operator_ids": _ids_parser(OperatorId, "operator id"),
    "enabled": bool,
}


# --- Rules of one party ----------------------------------------------------------------------------------------------


def check_party(party: Party) -> None:
    """Check that the roles of a party and its ids fit together.

    A disabled party may have no ids; removing them frees them for another party. A CPO needs none, because it may
    forward for many operators. Raises MismatchError with a sentence for each problem.
    """
    problems = [sentence for _, sentence in _unused_fields(party)]
    if party.enabled:
        problems += _missing_fields(party)
    if problems:
        raise MismatchError(*problems)


def _missing_fields(party: Party) -> list[str]:
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


def _unused_fields(party: Party) -> list[tuple[str, str]]:
    """The fields that no role of the party uses, each with an error sentence."""
    users: tuple[tuple[str, set[PartyRole], str], ...] = (
        ("provider_ids", {PartyRole.EMSP, PartyRole.CPS}, "Provider ids are for an eMSP or a CPS."),
        ("all_providers", {PartyRole.CPS}, "All providers are for a CPS."),
        ("wmis", {PartyRole.OEM}, "WMIs are for an OEM."),
        ("operator_ids", {PartyRole.CPO}, "Operator ids are for a CPO."),
    )
    return [(field, sentence) for field, roles, sentence in users if getattr(party, field) and not roles & party.roles]


# --- Rules among parties ---------------------------------------------------------------------------------------------


OWNED_PROVIDER: Final = "provider id"
OWNED_WMI: Final = "WMI"
"""Kinds of ids that belong to one party only."""


def may_administer(party: Party | None) -> bool:
    """Whether a party may use the operator's console."""
    return party is not None and party.enabled and PartyRole.ADMIN in party.roles


def owned_ids(party: Party) -> list[tuple[str, str]]:
    """The ids that belong to this party only, by kind, sorted. A CPS signs for providers without owning their ids."""
    found: list[tuple[str, str]] = []
    if PartyRole.EMSP in party.roles:
        found += [(OWNED_PROVIDER, value) for value in sorted(party.provider_ids)]
    if PartyRole.OEM in party.roles:
        found += [(OWNED_WMI, value) for value in sorted(party.wmis)]
    return sorted(found)


def fold_name(name: str) -> str:
    """Fold a name or client id for comparison: case, width and other compatibility variants."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def find_by_name(known: Iterable[Party], name_or_client_id: str) -> Party | None:
    """The party with this client id or name: an exact match, or else the only match after folding."""
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
