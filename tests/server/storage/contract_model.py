"""Stateful property test of the contract queries against a model in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ccp.errors import NotFound
from ccp.ids import EMAID, PCID, Fingerprint, Namespace
from ccp.server.domain.default_contracts import Default, default_after_publication
from ccp.server.storage import connect
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import contracts
from ccp.server.storage.queries.contracts import Published
from tests.server.storage.made import AT, OTHER_ROOT, ROOT, broken_invariants, sql, variant

PCIDS = [PCID(f"WEX0MODEL0000000{number}") for number in range(3)]
EMAIDS = [EMAID(f"{provider}M0000000{number}") for provider in ("DEEXA", "NLEXB") for number in range(3)]
pcids, emaids = st.sampled_from(PCIDS), st.sampled_from(EMAIDS)
namespaces, roots = st.sampled_from(Namespace), st.sampled_from([ROOT, OTHER_ROOT])


class Changes(RuleBasedStateMachine):
    """The store, compared with a dictionary of variants, the defaults and the events."""

    new: Callable[[], str]
    look: bool

    @initialize()
    def start(self) -> None:
        self.url = type(self).new()
        self.loop = asyncio.Runner()
        self.store = connect(self.url)
        self.loop.run(self.store.open())
        self.variants: dict[tuple[EMAID, Namespace, Fingerprint], tuple[PCID, bytes]] = {}
        self.defaults: dict[PCID, Default] = defaultdict(Default)
        self.events: dict[PCID, list[tuple[str, EMAID]]] = defaultdict(list)
        self.count = 0

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.loop.run(self.store.close())
            self.loop.close()

    def write(self, change: Query[Any]) -> Any:
        return self.loop.run(self.store.write(change))

    def place(self, emaid: EMAID) -> PCID | None:
        return next((pcid for (other, _, _), (pcid, _) in self.variants.items() if other == emaid), None)

    def held(self, pcid: PCID, *editions: Namespace) -> set[EMAID]:
        """The vehicle's contracts, of all editions or of some."""
        return {
            emaid
            for (emaid, namespace, _), (place, _) in self.variants.items()
            if place == pcid and namespace in (editions or Namespace)
        }

    def contested(self, pcid: PCID) -> set[EMAID]:
        """The contracts of other providers beside a default that the OEM has not chosen."""
        default = self.defaults[pcid]
        if default.emaid is None or (default.chosen and default.emaid.provider == default.provider):
            return set()
        return {emaid for emaid in self.held(pcid) if emaid.provider != default.emaid.provider}

    def undeliverable(self, pcid: PCID) -> set[EMAID]:
        """Of these, those that an ISO 15118-2 vehicle does not get: all, unless there is only one of its edition."""
        of_edition = self.held(pcid, Namespace.ISO2)
        is_only_one = len(of_edition) == 1 and self.defaults[pcid].emaid not in of_edition
        return set() if is_only_one else self.contested(pcid) & of_edition

    def forget(self, emaid: EMAID) -> None:
        pcid = self.place(emaid)
        assert pcid is not None
        self.variants = {key: value for key, value in self.variants.items() if key[0] != emaid}
        if self.defaults[pcid].emaid == emaid:
            self.defaults[pcid] = replace(self.defaults[pcid], emaid=None)
        self.events[pcid].append(("oem.contract.deleted", emaid))

    @rule(emaid=emaids, pcid=pcids, namespace=namespaces, root=roots)
    def publish(self, emaid: EMAID, pcid: PCID, namespace: Namespace, root: Fingerprint) -> None:
        self.count += 1
        response = str(self.count).encode()
        published = self.write(
            contracts.publish(variant(emaid, pcid, namespace=namespace, root_fingerprint=root, response=response), AT)
        )
        before = self.place(emaid)
        if before not in (None, pcid):
            self.forget(emaid)
        created = self.place(emaid) is None
        replaced = (emaid, namespace, root) in self.variants
        others = self.held(pcid) - {emaid}
        contested, undeliverable = self.contested(pcid), self.undeliverable(pcid)
        self.defaults[pcid] = default_after_publication(self.defaults[pcid], emaid, first=created and not others)
        self.variants[emaid, namespace, root] = (pcid, response)
        self.events[pcid].append(("oem.contract.created" if created else "oem.contract.updated", emaid))
        fresh = self.contested(pcid) - contested
        if {other.provider for other in fresh} - {other.provider for other in contested}:
            self.events[pcid].append(("oem.vehicle.contested", emaid if emaid in fresh else min(fresh)))
        for other in sorted(self.undeliverable(pcid) - undeliverable):
            self.events[pcid].append(("emsp.contract.undeliverable", other))
        assert published == Published(created, before if before != pcid else None, replaced)

    @rule(emaid=emaids)
    def withdraw(self, emaid: EMAID) -> None:
        pcid = self.place(emaid)
        try:
            assert self.write(contracts.withdraw(emaid, AT)).pcid == pcid
        except NotFound:
            assert pcid is None
        else:
            self.forget(emaid)

    @rule(emaid=emaids, pcid=pcids)
    def set_default(self, emaid: EMAID, pcid: PCID) -> None:
        try:
            self.write(contracts.set_default(emaid, pcid, AT))
        except NotFound:
            assert self.place(emaid) != pcid
        else:
            assert self.place(emaid) == pcid
            self.defaults[pcid] = Default(emaid, emaid.provider, chosen=True)

    @precondition(lambda self: self.variants)
    @rule(data=st.data())
    def make_a_contract_of_the_vehicle_its_default(self, data: st.DataObject) -> None:
        emaid = data.draw(st.sampled_from(sorted({key[0] for key in self.variants})))
        pcid = self.place(emaid)
        assert pcid is not None
        self.set_default(emaid, pcid)

    @invariant()
    def the_store_equals_the_model(self) -> None:
        if not hasattr(self, "store"):
            return
        for pcid in PCIDS:
            expected = {
                (emaid, namespace, root, response, self.defaults[pcid].emaid == emaid)
                for (emaid, namespace, root), (place, response) in self.variants.items()
                if place == pcid
            }
            assert self.shown(contracts.by_vehicle(pcid)) == expected
        for emaid in EMAIDS:
            found = self.shown(contracts.by_emaid(emaid))
            assert {row[:4] for row in found} == {
                (*key, response) for key, (_, response) in self.variants.items() if key[0] == emaid
            }

    @invariant()
    def every_change_wrote_its_events_in_order(self) -> None:
        if not hasattr(self, "store"):
            return
        written = defaultdict(list)
        for pcid, kind, emaid in sql(self.url, "select pcid, kind, emaid from outbox order by pcid, rev"):
            written[pcid].append((kind, emaid))
        assert written == {pcid: events for pcid, events in self.events.items() if events}

    @invariant()
    def no_invariant_is_broken(self) -> None:
        if hasattr(self, "store") and self.look:
            assert broken_invariants(self.url) == []
            remembered = {pcid: (default.provider, default.chosen) for pcid, default in self.defaults.items()}
            rows = sql(self.url, "select pcid, default_provider, default_chosen from vehicle")
            found = {pcid: (provider, bool(chosen)) for pcid, provider, chosen in rows}
            assert found == {pcid: remembered.get(pcid, (None, False)) for pcid in found}

    def shown(self, query: Query[Any]) -> set[tuple[Any, ...]]:
        found = self.loop.run(self.store.read(query))
        rows = {(c.emaid, c.namespace, c.root_fingerprint, c.response, c.is_default) for c in found}
        assert len(rows) == len(found)
        return rows


def check_against_model(new: Callable[[], str], examples: int, *, invariants: bool = True) -> None:
    """Run random sequences of writes on new databases. invariants: check them after each step; not on Citus."""
    case = type("Machine", (Changes,), {"new": staticmethod(new), "look": invariants}).TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    case().runTest()
