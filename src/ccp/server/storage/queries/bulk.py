"""Queries for bulk import and export."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Final

from ccp.ids import PCID
from ccp.server.domain.contracts import SignedContract
from ccp.server.storage.engine.query import Query, read_committed
from ccp.server.storage.queries.certificate_refs import dump_refs
from ccp.server.storage.queries.contracts import Published, by_vehicle


def import_contract(contract: SignedContract, publishing: Query[Published]) -> Query[Published | None]:
    """Publish a contract, unless an identical one is stored; then nothing changes and there is no event.

    publishing: the query that stores it, with the locks. Returns None if nothing was changed.
    """
    rows = yield (
        "select response, metadata, certificates, provisioning_key from contract "
        "where pcid = $1 and namespace = $2 and emaid = $3 and root_fingerprint = $4",
        (contract.pcid, contract.namespace, contract.emaid, contract.root_fingerprint),
    )
    if rows and rows[0] == _stored_columns(contract):
        publishing.close()
        return None
    return (yield from publishing)


def _stored_columns(contract: SignedContract) -> tuple[bytes, str | None, str | None, str | None]:
    certificates = None if contract.certificates is None else dump_refs(contract.certificates)
    return contract.response, contract.metadata, certificates, contract.provisioning_key


@dataclass(frozen=True, slots=True)
class Page:
    """Contracts of some vehicles. last: the last id that was examined; None after the last page."""

    contracts: list[SignedContract]
    last: str | None


def list_page(after: str, limit: int, wmis: frozenset[str], prefix: str = "") -> Query[Page]:
    """All contracts of the next vehicles by PCID, from one snapshot. wmis: only of these manufacturers; empty: of all.

    A vehicle's contracts are in order of age, and a contract's variants in order of publication, so that publishing
    them in this order reproduces it. prefix: only PCIDs that begin with it, by an index range; requires that
    `sorts_by_character` is true.
    """
    condition, parameters = _beginning("pcid", prefix, after)
    rows = yield f"select pcid from vehicle where {condition} order by pcid limit $3", (*parameters, limit)  # noqa: S608
    contracts: list[SignedContract] = []
    for (pcid,) in rows:
        if not wmis or PCID(pcid).wmi in wmis:
            contracts += yield from _in_order(PCID(pcid))
    return Page(contracts, rows[-1][0] if len(rows) == limit else None)


def list_page_of_provider(prefix: str, after: str, limit: int, wmis: frozenset[str]) -> Query[Page]:
    """As `list_page`, for the vehicles of a provider's next contracts by EMAID.

    A vehicle is repeated on each page on which it has contracts of the provider.
    """
    condition, parameters = _beginning("emaid", prefix, after)
    select = f"select emaid, pcid from emaid_claim where {condition} order by emaid limit $3"  # noqa: S608
    rows = yield select, (*parameters, limit)
    contracts: list[SignedContract] = []
    for pcid in dict.fromkeys(pcid for _, pcid in rows):
        if not wmis or PCID(pcid).wmi in wmis:
            contracts += yield from _in_order(PCID(pcid))
    return Page(contracts, rows[-1][0] if len(rows) == limit else None)


def _in_order(pcid: PCID) -> Query[list[SignedContract]]:
    variants = yield from by_vehicle(pcid)
    created = {variant.emaid: variant.created_at for variant in variants}
    for variant in variants:
        created[variant.emaid] = min(created[variant.emaid], variant.created_at)
    variants.sort(key=lambda v: (created[v.emaid], v.emaid, v.updated_at, v.namespace, v.root_fingerprint))
    return variants


_CHARACTERS: Final = string.digits + string.ascii_uppercase
"""The characters of stored EMAIDs and PCIDs, in order."""


@read_committed
def sorts_by_character() -> Query[bool]:
    """Whether the database sorts texts of digits and capitals by character, so that one prefix is one index range.

    Some collations do not: a Danish one sorts AA behind Z. Every pair of characters is tested.
    """
    pairs = [first + second for first in _CHARACTERS for second in _CHARACTERS]
    values = ", ".join(f"('{pair}')" for pair in pairs)
    rows = yield f"select column1 from (values {values}) as pair order by column1", ()  # noqa: S608  constants
    return [row[0] for row in rows] == pairs


def _beginning(column: str, prefix: str, after: str) -> tuple[str, tuple[str, str]]:
    """A condition for ids above `after` that begin with a prefix, as an index range; parameters $1 and $2."""
    start = max(after, prefix)  # Every id is longer than a prefix, so none is skipped.
    end = _following(prefix)
    if end is None:
        return f"{column} > $1 and $2 = ''", (start, "")
    return f"{column} > $1 and {column} < $2", (start, end)


def _following(prefix: str) -> str | None:
    """The smallest text above all texts with the prefix; None if there is none."""
    stem = prefix.rstrip(_CHARACTERS[-1])
    return stem[:-1] + _CHARACTERS[_CHARACTERS.index(stem[-1]) + 1] if stem else None
