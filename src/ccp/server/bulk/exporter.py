"""Export contracts as JSON Lines, in the format of a PUT body, which an import reads."""

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
"""Vehicles that one query reads; each has a handful of contracts."""


@dataclass(frozen=True, slots=True)
class ExportFilter:
    """Selects contracts. An empty set matches everything."""

    providers: frozenset[ProviderId] = field(default_factory=frozenset)
    wmis: frozenset[WMI] = field(default_factory=frozenset)
    namespaces: frozenset[Namespace] = field(default_factory=frozenset)

    def matches(self, contract: SignedContract) -> bool:
        """Whether provider and namespace of a contract match. WMIs are matched by the query."""
        return (not self.providers or contract.emaid.provider in self.providers) and (
            not self.namespaces or contract.namespace in self.namespaces
        )


async def lines(store: Store, wanted: ExportFilter) -> AsyncIterator[bytes]:
    """One line for each variant, ordered by PCID. Each vehicle is read in one snapshot.

    If the filter has providers, lines are ordered by EMAID, and a vehicle comes with the first of its contracts: this
    order allows an index, so contracts of other providers are not read.
    """
    async for contract in _contracts(store, wanted):
        if wanted.matches(contract):
            yield printable_json_bytes(orjson.dumps(members(contract), option=orjson.OPT_APPEND_NEWLINE))


async def _contracts(store: Store, wanted: ExportFilter) -> AsyncIterator[SignedContract]:
    """Contracts of vehicles that may match, each once. Some of them do not match."""
    wmis = frozenset(map(str, wanted.wmis))
    several: set[PCID] = set()  # Vehicles with several matching contracts: the index finds them more than once.
    async for contracts in _portions(store, wanted, wmis):
        for pcid, group in groupby(contracts, lambda contract: contract.pcid):
            found = list(group)
            if wanted.providers and len({contract.emaid for contract in found if wanted.matches(contract)}) > 1:
                if pcid in several:
                    continue
                several.add(pcid)
            for contract in found:
                yield contract


async def _portions(store: Store, wanted: ExportFilter, wmis: frozenset[str]) -> AsyncIterator[list[SignedContract]]:
    """Contracts of vehicles that may match, by an index if one supports the filter."""
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
    """A PUT body, and `defaultContract`, which an import uses and PUT ignores."""
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


async def export(store: Store, target: str, wanted: ExportFilter) -> int:
    """Write the matching contracts to a file (gzip if its name ends in .gz), or to standard output for "-".

    The file appears complete and durable when this returns, not before. Its mode is 0600; a symbolic link of that name
    is replaced, not followed. Returns the number of lines.
    """
    if target == "-":
        return await _write(sys.stdout.buffer, store, wanted)
    path = Path(target)
    with replace_private(path) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                return await _write(packed, store, wanted)
        return await _write(file, store, wanted)


async def _write(file: IO[bytes] | gzip.GzipFile, store: Store, wanted: ExportFilter) -> int:
    count = 0
    async for line in lines(store, wanted):
        file.write(line)
        count += 1
    file.flush()
    return count
