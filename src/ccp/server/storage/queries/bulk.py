"""Questions of import and export."""

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
    """Publish a contract, unless it is there already just like this; then there is no change and no event.

    publishing: the change that stores it and locks the EMAID and the vehicle. Returns None where nothing was changed.
    """
    rows = yield (
        "select response, metadata, certificates, provisioning_key from contract "
        "where pcid = $1 and namespace = $2 and emaid = $3 and root_fingerprint = $4",
        (contract.pcid, contract.namespace, contract.emaid, contract.root_fingerprint),
    )
    if rows and rows[0] == _kept_of(contract):
        publishing.close()
        return None
    return (yield from publishing)


def _kept_of(contract: SignedContract) -> tuple[bytes, str | None, str | None, str | None]:
    certificates = None if contract.certificates is None else dump_refs(contract.certificates)
    return contract.response, contract.metadata, certificates, contract.provisioning_key


@dataclass(frozen=True, slots=True)
class Page:
    """The contracts of some vehicles, and the last id that was looked at; None after the last of all."""

    contracts: list[SignedContract]
    last: str | None


def list_page(after: str, limit: int, wmis: frozenset[str], prefix: str = "") -> Query[Page]:
    """Everything of the next vehicles by PCID, from one snapshot. wmis: of these makers only, of all if there is none.

    The older contract of a vehicle comes first, and of a contract the variant that was published first: who publishes
    them in this order gets the same order again. prefix: PCIDs that begin with it alone, by their index; only where
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
    """Everything of the vehicles of a provider's next contracts by EMAID; as `list_page` for all else.

    A vehicle comes once for each portion in which it has contracts of the provider.
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
    born = {variant.emaid: variant.created_at for variant in variants}
    for variant in variants:
        born[variant.emaid] = min(born[variant.emaid], variant.created_at)
    variants.sort(key=lambda v: (born[v.emaid], v.emaid, v.updated_at, v.namespace, v.root_fingerprint))
    return variants


_CHARACTERS: Final = string.digits + string.ascii_uppercase
"""Of every EMAID and PCID as it is stored, in order."""


@read_committed
def sorts_by_character() -> Query[bool]:
    """Whether texts of digits and capitals are in the order of their characters, and so those with one prefix together.

    In some languages they are not: a database with a Danish collation has AA behind Z. Tried with each pair.
    """
    pairs = [first + second for first in _CHARACTERS for second in _CHARACTERS]
    values = ", ".join(f"('{pair}')" for pair in pairs)
    rows = yield f"select column1 from (values {values}) as pair order by column1", ()  # noqa: S608  ours
    return [row[0] for row in rows] == pairs


def _beginning(column: str, prefix: str, after: str) -> tuple[str, tuple[str, str]]:
    """A condition for ids behind `after` that begin with a prefix, as a range of an index; parameters $1 and $2."""
    start = max(after, prefix)  # No id is as short as a prefix, so none is left out.
    end = _following(prefix)
    if end is None:
        return f"{column} > $1 and $2 = ''", (start, "")
    return f"{column} > $1 and {column} < $2", (start, end)


def _following(prefix: str) -> str | None:
    """The least text that is greater than all that begin with the prefix; None where there is none."""
    stem = prefix.rstrip(_CHARACTERS[-1])
    return stem[:-1] + _CHARACTERS[_CHARACTERS.index(stem[-1]) + 1] if stem else None
