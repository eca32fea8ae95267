"""Questions of import and export."""

from __future__ import annotations

from dataclasses import dataclass

from ccp.contracts import SignedContract
from ccp.ids import PCID
from ccp.pki.evidence import dump_keys
from ccp.store.contracts import Published, by_vehicle
from ccp.store.steps import Steps


def take_over(contract: SignedContract, publishing: Steps[Published]) -> Steps[Published | None]:
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
    certificates = None if contract.certificates is None else dump_keys(contract.certificates)
    return contract.response, contract.metadata, certificates, contract.provisioning_key


@dataclass(frozen=True, slots=True)
class Page:
    """The contracts of some vehicles, and the last of these vehicles; None after the last of all."""

    contracts: list[SignedContract]
    last: PCID | None


def page(after: str, limit: int, wmis: frozenset[str]) -> Steps[Page]:
    """Everything of the next vehicles by PCID, from one snapshot. wmis: of these makers only, of all if there is none.

    The older contract of a vehicle comes first, and of a contract the variant that was published first: who publishes
    them in this order gets the same order again.
    """
    rows = yield "select pcid from vehicle where pcid > $1 order by pcid limit $2", (after, limit)
    contracts: list[SignedContract] = []
    for (pcid,) in rows:
        if wmis and PCID(pcid).wmi not in wmis:
            continue
        variants = yield from by_vehicle(PCID(pcid))
        born = {variant.emaid: variant.created_at for variant in variants}
        for variant in variants:
            born[variant.emaid] = min(born[variant.emaid], variant.created_at)
        variants.sort(key=lambda v: (born[v.emaid], v.emaid, v.updated_at, v.namespace, v.root_fingerprint))
        contracts += variants
    return Page(contracts, PCID(rows[-1][0]) if len(rows) == limit else None)
