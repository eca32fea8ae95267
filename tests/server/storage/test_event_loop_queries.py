"""Queries that the SQLite engine runs in the event loop are bounded: each uses an index, or is marked as long.

Requests wait for these queries. Every query that the server runs is listed in `QUERIES` with an example; add new ones.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from ccp.ids import EMAID, PCID, Namespace
from ccp.server.domain.default_contracts import VehicleRules
from ccp.server.domain.parties import Party
from ccp.server.storage.engine.query import MarkedQuery, Query
from ccp.server.storage.queries import (
    audit,
    change_counters,
    contract_notices,
    contract_portions,
    contracts,
    deliveries,
    delivery_queue,
    due_deliveries,
    erasure,
    handed_out,
    parties,
    purging,
    refusals,
    request_counts,
    revocation,
    secrets,
    statistics,
    status_addresses,
    subscribers,
    vehicle_lock,
    vehicles,
    webhook_health,
    webhooks,
)
from ccp.server.storage.queries.change_counters import ChangeCounter
from ccp.x509.revocation_evidence import CertificateRef
from ccp.x509.revocation_policy import RevocationPolicy
from tests.server.storage.made import AT, new_database, variant, write
from tests.server.storage.plans import asked, plan

SOURCES = Path(contracts.__file__).parents[2]
COMMANDS = ("sandbox", "bulk", "declaration")
"""Modules of processes that answer no requests."""

E, P = EMAID("DEEXAE00000001"), PCID("WEX0LOOP000000001")
LONG = "long"
SMALL = "of a table that the operator fills, or of one row"

QUERIES: dict[str, Any] = {
    "_schema_revision": SMALL,
    "audit_stream.is_free": LONG,
    "audit_stream.pending": LONG,
    "anchors.list_all": SMALL,
    "signing_keys.list_all": SMALL,
    "peers queries.list_all": SMALL,
    "peers.list_all": SMALL,
    "peers.get": SMALL,
    "status_addresses.list_crl_urls": SMALL,
    "status_addresses.list_watched_samples": status_addresses.list_watched_samples(2),
    "webhook_health.list_troubled": webhook_health.list_troubled(AT, 2),
    "event_sources queries.list_all": SMALL,
    "issuer_certificates.list_all": SMALL,
    "change_counters.read_all": SMALL,
    "change_counters.log_entries": change_counters.log_entries(ChangeCounter.PARTIES, 1, 200),
    "queries.list_changed": subscribers.list_changed(ChangeCounter.PARTIES, 1, 2),
    "queries.list_page": subscribers.list_page("", 200),
    "parties.list_page": parties.list_page("", 200),
    "parties.list_changed": parties.list_changed(1, 2),
    "parties.get_by_name": parties.get_by_name("Example"),
    "parties.list_secret_hashes": parties.list_secret_hashes("example", AT),
    "party_registry query": parties.list_secrets("example", AT),
    "webhooks query": webhooks.list_by_party("example"),
    "webhooks.find": webhooks.find("example"),
    "owned": webhooks.find("example"),
    "_find": webhooks.find("example"),
    "outbox.has_new_events": "the first row that it meets",
    "due_deliveries.due_webhooks": due_deliveries.due_webhooks(AT),
    "due_deliveries.due_webhooks_page": due_deliveries.due_webhooks_page(AT, ""),
    "deliveries.backlog": LONG,
    "delivery_queue.scheduled_beyond": LONG,
    "find_vehicle": contracts.find_vehicle(E),
    "delivery query": contracts.for_delivery(P, Namespace.ISO2),
    "vehicles.list_bindings": vehicles.list_bindings(P),
    "queries.by_emaid": contracts.by_emaid(E),
    "queries.by_vehicle": contracts.by_vehicle(P),
    "queries.by_vehicle_and_emaid": contracts.by_vehicle_and_emaid(P, E),
    "purging_queries.purge_reason": purging.purge_reason(E, AT),
    "queries.expiring": LONG,
    "contracts.check_publication": contracts.check_publication(E, P, AT, AT, VehicleRules()),
    "evidence.load": revocation.load([CertificateRef("issuer", 1, None)], RevocationPolicy()),
    "queries.load": revocation.load([CertificateRef("issuer", 1, ("http://crl.example/",))], RevocationPolicy()),
    "queries.find_crl": revocation.find_crl("issuer", "http://crl.example/"),
    "check_standing": SMALL,
    "audit.latest_naming": LONG,
    "deliveries.of_vehicle": LONG,
    "vehicle_lock.find_state": vehicle_lock.find_state(P),
    "vehicle_lock.list_contested": vehicle_lock.list_contested(P, 100),
    "console_sessions.find": SMALL,
    "audit.search": LONG,
    "audit.time_of_row": audit.time_of_row(AT, AT, 50_000),
    "statistics.load_all": SMALL,
    "queries.count_outside_shards": audit.count_outside_shards(),
    "queries.chain_head": audit.chain_head(3),
    "queries.page": audit.page(3, 0, 500),
    "deliveries.list_page": LONG,
    "subscribers.list_page": subscribers.list_page("", 50),
    "subscriptions.list_all": SMALL,
    "webhooks.list_by_party": webhooks.list_by_party("example"),
    "console_sessions.list_all": SMALL,
    "secret_queries.find": secrets.find("example"),
    "queries.find": secrets.find("example"),
    "erasure.list_watched": LONG,
    "audit.rows_naming_in_shard": LONG,
    "audit.shard_lengths": SMALL,
    "queries.expired": LONG,
    "contract_portions.revoked": LONG,
    "queries.idle_vehicles": LONG,
    "queries.load_all": SMALL,
    "queries.expiry_forecast": LONG,
    "queries.unexpired_contracts": LONG,
    "queries.all_contracts": LONG,
    "queries.revoked_contracts": LONG,
    "queries.contracts_without_evidence": LONG,
    "queries.vehicles_by_state": LONG,
    "queries.evidence_counts": LONG,
    "queries.longest_backlogs": LONG,
    "queries.callers": LONG,
    "refusals.search": LONG,
    "refusals.search_page": LONG,
    "handed_out.of_vehicle": handed_out.of_vehicle(P, 20),
    "refusals query": LONG,
    "of_contracts": LONG,
    "request_counts.read": LONG,
    "storage_keys.newest_key": SMALL,
    "stored_secrets.state": SMALL,
    "storage_keys.list_unreadable": "of a command and of an examination that an admin starts",
    "storage_keys.warnings": "of a command and of the start, before requests are served",
    "traced_store query": "of the caller of a store with spans, which is listed where it calls",
}
LONG_ONES = (
    deliveries.backlog(),
    deliveries.backlog_by_webhook(),
    delivery_queue.scheduled_beyond(AT),
    deliveries.list_page("example"),
    audit.rows_naming_in_shard(E, 1, 0, 1),
    erasure.list_watched(("", "")),
    purging.expired(AT),
    contract_notices.expiring((30, 7), AT),
    contract_portions.revoked(),
    purging.idle_vehicles(AT),
    status_addresses.list_crl_urls(2),
    status_addresses.list_watched_samples(2),
    webhook_health.list_troubled(AT, 2),
    audit.search(audit.Filter(ids=(E,)), 100),
    statistics.expiry_forecast(AT, (7,)),
    statistics.unexpired_contracts(AT),
    statistics.all_contracts(),
    statistics.revoked_contracts(AT),
    statistics.contracts_without_evidence(RevocationPolicy(), AT),
    statistics.vehicles_by_state(),
    statistics.evidence_counts(AT),
    statistics.longest_backlogs(),
    refusals.callers(),
    refusals.search(refusals.RefusalFilter(), 50),
    refusals.search_page(refusals.RefusalFilter(), 50),
    refusals.search_of_vehicles(["WEX"], "oem", refusals.RefusalFilter(), 50),
    refusals.search_of_contracts(["DEEXA"], refusals.RefusalFilter(), 50),
    request_counts.read(AT, AT),
)
LARGE = (
    "contract", "vehicle", "emaid_claim", "evidence", "watched_certificate", "outbox", "delivery", "audit", "party",
    "webhook", "change_log",
)  # fmt: skip


def reads() -> dict[str, str]:
    """The queries that the server passes to `store.read`, by name, with their place."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        place = path.relative_to(SOURCES)
        if place.parts[0] in COMMANDS or str(place) in COMMANDS:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read"):
                continue
            if "store" in ast.unparse(node.func.value):
                asks = node.args[0]
                name = ast.unparse(asks.func if isinstance(asks, ast.Call) else asks)
                alone = name in ("query", "queries.list_all")
                found[f"{place.stem} {name}" if alone else name] = f"{place}:{node.lineno}"
    return found


def test_event_loop_queries_are_all_listed() -> None:
    found = reads()
    assert {name: where for name, where in found.items() if name not in QUERIES} == {}
    assert {name for name in QUERIES if name not in found} == set()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = new_database(tmp_path_factory.mktemp("plans"))
    write(made, contracts.publish(variant(E, P), AT), parties.add(Party("example", "Example", frozenset()), "x", AT))
    return made


@pytest.mark.parametrize("name", [name for name, each in QUERIES.items() if not isinstance(each, str)])
def test_event_loop_query_uses_an_index(url: str, name: str) -> None:
    for statement, parameters in asked(url, QUERIES[name]):
        explained = plan(url, statement, parameters)
        read_whole = re.findall(rf"SCAN (?:{'|'.join(LARGE)})\b.*", explained)
        # A partial index of the few rows that a previous release has written.
        assert [line for line in read_whole if "party_not_folded" not in line] == [], statement


@pytest.mark.parametrize("query", LONG_ONES, ids=lambda query: query.__name__)
def test_event_loop_queries_that_are_long_are_marked(query: Query[Any]) -> None:
    assert isinstance(query, MarkedQuery)
    assert query.long_running
