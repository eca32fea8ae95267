"""Contracts as lines, in the shape that PUT and an import take."""

from __future__ import annotations

import gzip
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final

import orjson

from ccp.ids import PCID, WMI, Namespace, ProviderId
from ccp.schemas.common import encode_base64
from ccp.schemas.opnc import distinguished_name
from ccp.server.domain.contracts import SignedContract
from ccp.server.runtime.private_files import replace_private
from ccp.server.runtime.terminal_text import printable_json_bytes
from ccp.server.storage import Store
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries.bulk import Page, list_page, list_page_of_provider, sorts_by_character

_VEHICLES: Final = 100
"""Of one snapshot; a handful of contracts each."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Each kind that is empty lets everything pass."""

    providers: frozenset[ProviderId] = field(default_factory=frozenset)
    wmis: frozenset[WMI] = field(default_factory=frozenset)
    namespaces: frozenset[Namespace] = field(default_factory=frozenset)

    def passes(self, contract: SignedContract) -> bool:
        return (not self.providers or contract.emaid.provider in self.providers) and (
            not self.namespaces or contract.namespace in self.namespaces
        )


async def lines(store: Store, wanted: Filter) -> AsyncIterator[bytes]:
    """A line for each variant, vehicles in the order of their PCIDs. Each vehicle is seen as it is at one moment.

    Where providers are wanted, in the order of their EMAIDs, and a vehicle with the first contract of it: so an index
    finds them, and the others are not read.
    """
    async for contract in _contracts(store, wanted):
        if wanted.passes(contract):
            yield printable_json_bytes(orjson.dumps(members(contract), option=orjson.OPT_APPEND_NEWLINE))


async def _contracts(store: Store, wanted: Filter) -> AsyncIterator[SignedContract]:
    """All that are wanted, and some more."""
    wmis = frozenset(map(str, wanted.wmis))
    several: set[PCID] = set()  # Vehicles with several contracts that are wanted: each of these finds them.
    async for contracts in _portions(store, wanted, wmis):
        for pcid, group in groupby(contracts, lambda contract: contract.pcid):
            found = list(group)
            if wanted.providers and len({contract.emaid for contract in found if wanted.passes(contract)}) > 1:
                if pcid in several:
                    continue
                several.add(pcid)
            for contract in found:
                yield contract


async def _portions(store: Store, wanted: Filter, wmis: frozenset[str]) -> AsyncIterator[list[SignedContract]]:
    """Contracts of vehicles that may be wanted, by an index as far as there is one."""
    queries: list[Callable[[str], Query[Page]]]
    if not (wanted.providers or wmis) or not await store.read(sorts_by_character()):
        queries = [partial(list_page, limit=_VEHICLES, wmis=wmis)]
    elif wanted.providers:
        providers = sorted(wanted.providers)
        queries = [partial(list_page_of_provider, provider, limit=_VEHICLES, wmis=wmis) for provider in providers]
    else:
        queries = [partial(list_page, limit=_VEHICLES, wmis=wmis, prefix=wmi) for wmi in sorted(wmis)]
    for query in queries:
        after: str | None = ""
        while after is not None:
            found = await store.read(query(after))
            yield found.contracts
            after = found.last


def members(contract: SignedContract) -> dict[str, Any]:
    """A body of PUT, and whether the contract is its vehicle's default, which PUT passes over and an import heeds."""
    found: dict[str, Any] = {
        "emaid": str(contract.emaid),
        "pcid": str(contract.pcid),
        "xsdMsgDefNamespace": contract.namespace.value,
        "cpsV2GRootCertificateFingerprint": str(contract.root_fingerprint),
    }
    if (name := distinguished_name(contract.root_dn)) is not None:
        found["cpsRootDistinguishedName"] = name
    if contract.metadata is not None:
        found["metaData"] = contract.metadata
    found["defaultContract"] = contract.is_default
    found["certificateInstallationRes"] = encode_base64(contract.response)
    return found


async def export(store: Store, target: str, wanted: Filter) -> int:
    """Write everything that is wanted to a file (compressed where its name ends in .gz), or to standard output for "-".

    A file is there, with its whole content and on disk, when this returns, and not before. Its mode is 0600, and a link
    of that name is replaced, not followed. Returns the lines written.
    """
    if target == "-":
        return await _write(sys.stdout.buffer, store, wanted)
    path = Path(target)
    with replace_private(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                return await _write(packed, store, wanted)
        return await _write(file, store, wanted)


async def _write(file: IO[bytes] | gzip.GzipFile, store: Store, wanted: Filter) -> int:
    count = 0
    async for line in lines(store, wanted):
        file.write(line)
        count += 1
    file.flush()
    return count
