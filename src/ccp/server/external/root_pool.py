"""Client of a Root Certificate Pool: OPNC GetRootCertificates, or getAllRootCerts of OPCP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ccp.errors import ChainError, UpstreamError
from ccp.server.external.service_client import ServiceClient, get_member, parse_certificate, parse_json
from ccp.server.settings.services import Dialect
from ccp.x509.certificates import Certificate
from ccp.x509.profiles import AnchorRole

_TIMEOUT: Final = 30.0  # No request waits for it, and some pools assemble the list on request.
_MAX_BYTES: Final = 1_048_576  # Some 500 roots; the whole ecosystem has fewer than a hundred.
_ROLES: Final = {"V2G": AnchorRole.V2G, "EMSP": AnchorRole.EMSP, "MO": AnchorRole.EMSP, "OEM": AnchorRole.OEM}
_IGNORED_TYPES: Final = frozenset({"PE"})  # Private environments: the pool verifies no chain that ends in such a root.


@dataclass(frozen=True, slots=True)
class ListedRoot:
    """A certificate that the Root Certificate Pool lists, with the roles that it names for it. Not verified."""

    certificate: Certificate
    roles: frozenset[AnchorRole]


@dataclass(frozen=True, slots=True)
class RootList:
    """The root certificates that a pool lists.

    source: URL of the pool. unusable: a sentence for each entry that cannot be used. complete: every entry could be
    parsed as a certificate, so a certificate that is missing here is not in the pool.
    """

    source: str
    roots: tuple[ListedRoot, ...]
    unusable: tuple[str, ...]
    complete: bool


class RootCertificatePool(ServiceClient):
    """OPNC GetRootCertificates, or getAllRootCerts of OPCP, which another pool of this kind answers too."""

    name = "Root Certificate Pool"

    async def list_roots(self) -> RootList:
        """Fetch the root certificates of every role. Raises UpstreamError.

        The types in an entry decide its roles; for an entry without types, the role of the query that returned it. A
        pool that ignores the filter returns every root for every query. So an entry without types that is returned for
        all three roles is not used. OPCP needs one query, because there every entry has a type.
        """
        roles: Iterable[AnchorRole | None] = (None,) if self._is_opcp else AnchorRole
        listed = {role: await self._fetch(path) for role, path in zip(roles, self.paths, strict=True)}
        if not any(listed.values()):
            # A wrong URL answers 404 too. It must not look like a pool that has withdrawn every root.
            raise UpstreamError("The Root Certificate Pool lists no root certificate at all; nothing was changed.")
        # Parsing thousands of certificates takes long: a thread keeps the event loop free.
        return await self._parsing.run(self._parse, listed)

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the queries: one for each role, in OPCP one for all of them."""
        if self._is_opcp:
            return ("/v1/root/rootCerts",)
        return tuple(f"/rootcertificates?pkiType={role.value}" for role in AnchorRole)

    @property
    def _is_opcp(self) -> bool:
        return self._connection.settings.dialect is Dialect.OPCP

    def _parse(self, listed: Mapping[AnchorRole | None, Sequence[object]]) -> RootList:
        named_roles: dict[Certificate, set[AnchorRole]] = {}
        queried_roles: dict[Certificate, set[AnchorRole]] = {}
        unusable: dict[str, None] = {}
        complete = True
        for role, entries in listed.items():
            for entry in entries:
                try:
                    certificate = parse_certificate(_unwrap_entry(entry).get("caCertificate"))
                except ChainError as exc:
                    unusable[f"An entry ({_entry_name(entry)}) holds no certificate: {exc}"] = None
                    complete = False
                    continue
                types = _types(_unwrap_entry(entry))
                queried_roles.setdefault(certificate, set()).update(AnchorRole if role is None else {role})
                for name in types:
                    if name not in _ROLES and name not in _IGNORED_TYPES:
                        unusable[
                            f"Certificate {certificate.display_name} is for {name!r}, which is not known here."
                        ] = None
                if types:
                    named = {_ROLES[name] for name in types if name in _ROLES}
                    named_roles.setdefault(certificate, set()).update(named)
        roots = []
        for certificate, roles in queried_roles.items():
            if certificate not in named_roles and len(roles) == len(AnchorRole):
                unusable[f"The pool does not say what certificate {certificate.display_name} is for."] = None
                roles = set()
            roots.append(ListedRoot(certificate, frozenset(named_roles.get(certificate, roles))))
        return RootList(self.url, tuple(roots), tuple(unusable), complete)

    async def _fetch(self, path: str) -> Sequence[object]:
        response = await self._call("GET", path, timeout=_TIMEOUT, max_bytes=_MAX_BYTES)
        if response.status == 404 and not self._is_opcp:
            # The published answer for an empty list. OPCP has no such answer.
            return ()
        if response.status != 200:
            raise UpstreamError(f"The Root Certificate Pool answered {response.status}; nothing was changed.")
        found = await self._parsing.run(parse_json, response, self.name)
        if isinstance(found, dict):
            found = get_member(found, "rootCertificateCollection")
        if isinstance(found, dict):
            found = get_member(found, "rootCertificates")
        if not isinstance(found, list):
            raise UpstreamError("The Root Certificate Pool's answer has no rootCertificateCollection.")
        return found


def _unwrap_entry(entry: object) -> Mapping[str, Any]:
    """The members of an entry, which may be wrapped in another object."""
    if not isinstance(entry, dict):
        return {}
    if "caCertificate" not in entry:
        for name in ("rootCertificate", "roootCertificate"):  # The second is the published spelling.
            if isinstance(entry.get(name), dict):
                inner: Mapping[str, Any] = entry[name]
                return inner
    return entry


def _types(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The root types of an entry, in upper case."""
    types: list[str] = []
    for name in ("rootTypeList", "rootType"):
        value = entry.get(name)
        types += [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
    return tuple(dict.fromkeys(item.strip().upper()[:40] for item in types))


def _entry_name(entry: object) -> str:
    members = _unwrap_entry(entry)
    for name in ("commonName", "rootCertificateId", "fingerprint"):
        if isinstance(members.get(name), str):
            return "".join(c if c.isprintable() else "?" for c in members[name][:64])
    return "without a name"
