"""A database with many rows in every table that grows, and a record of the statements that pages of the console run."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from ccp.server.console.application import Console, Endpoint
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.postgres import PostgresStore
from ccp.server.storage.engine.query import MarkedQuery, Query, Row
from ccp.server.storage.engine.sqlite import SQLiteStore
from ccp.server.storage.engine.sqlite_connection import _dialect
from ccp.server.storage.engine.stored_secrets import CODEC
from tests.databases import aside, sql

MANY = 30_000
WEBHOOK = "webhook-1"
"""The webhook of all deliveries."""

# In every table each column of a condition has a value that all rows have in common.
ROWS = {
    "vehicle": (
        "pcid, rev, default_emaid, contested",
        "'WEX0LARGE' || (10000000 + i), 1, null, case when i % 100 = 0 then '[\"DEEXAL00000001\"]' end",
    ),
    "contract": (
        "pcid, namespace, emaid, root_fingerprint, is_default, valid_from, valid_to, created_at, updated_at, rev, "
        "root_serial, root_dn, certificate, response, certificate_issuer, certificate_serial",
        "'WEX0LARGE' || (10000000 + i), 'urn:iso:15118:2:2013:MsgDef', 'DEEXAL' || (10000000 + i), 'f', true, 1, 2, 3, "
        "4, 1, '1', 'CN=x', cast('x' as bytea), cast('x' as bytea), 'i', 's' || i",
    ),
    "emaid_claim": ("emaid, pcid", "'DEEXAL' || (10000000 + i), 'WEX0LARGE' || (10000000 + i)"),
    "outbox": (
        "pcid, rev, kind, emaid, payload, created_at, lease_until, attempts",
        "'WEX0LARGE' || (10000000 + i), 1, 'contract.created', '', '{}', i, 0, 0",
    ),
    "party": (
        "client_id, name, roles, provider_ids, all_providers, wmis, operator_ids, enabled, created_at, folded_id, "
        "folded_name, folded_of",
        "'large-' || i, 'Large ' || i, '[\"cpo\"]', '[]', false, '[]', '[]', true, i, 'large-' || i, 'large ' || i, "
        "'Large ' || i",
    ),
    "party_secret": ("client_id, created_at, hash", "'large-' || i, i, 'no hash'"),
    "webhook": (
        "id, client_id, url, description, events, wmis, provider_ids, metadata, api_version, enabled, secret, "
        "created_at, updated_at",
        "'webhook-' || i, 'large-' || i, 'https://hooks.example/', '', '[\"oem.contract.created\"]', '[]', '[]', '{}', "
        "'1', true, 'secret', 1, 1",
    ),
    "delivery": (
        "pcid, rev, part, webhook_id, event_id, kind, emaid, namespace, payload, created_at, queued_at, lease_until, "
        "attempts, state",
        "'WEX0LARGE' || (10000000 + i), 1, 0, 'webhook-1', 'event-' || i, 'oem.contract.created', "
        "'DEEXAL' || (10000000 + i), '', '{}', i, i, 1, 1, 'delivered'",
    ),
    "audit": (
        "lane, number, at, actor, action, outcome, trace_id, subject, salt, commitment, hash",
        "20 + i % 16, i, NOW - i, 'many', 'party.edited', 'ok', null, '{\"emaid\":\"DEEXAL' || i || '\"}', '', '', ''",
    ),
    "refusal": (
        "id, at, client_id, operation, dialect, status, edition, pcid, wmi, emaid, digest, code, check_name, reason, "
        "request",
        "'refusal-' || i, NOW - i, 'cpo', 'x', 'opnc', 400, 'urn:iso:15118:2:2013:MsgDef', 'WEX0LARGE10000001', 'WEX', "
        "'DEEXAL10000001', 'd', 'no-valid-contract', null, 'No.', null",
    ),
    "refusal_contract": (
        "refusal_id, emaid, provider_id, concerned, at",
        "'refusal-' || i, 'DEEXAL10000001', 'DEEXA', 1, NOW - i",
    ),
    "handed_out": (
        "pcid, client_id, request, contracts, expires_at",
        "'WEX0LARGE' || (10000000 + i), 'cpo', 'r', '[]', NOW + i",
    ),
    "evidence": ("issuer, serial, status, this_update, next_update, source", "'i', 's' || i, 'good', 1, 2, 'OCSP'"),
    "watched_certificate": (
        "issuer, serial, certificate, issuer_certificate, not_after, refresh_at",
        "'i', 's' || i, cast('x' as bytea), cast('x' as bytea), 1, 1",
    ),
    "change_log": ("topic, number, key", "'parties', 1000000 + i, 'large-' || i"),
}
_NUMBERS = "with recursive n(i) as (select 1 union all select i + 1 from n where i < {many})"


def fill(url: str, now: int, many: int = MANY) -> None:
    """Insert the rows. now: microseconds since 1970."""
    for table, (columns, values) in ROWS.items():
        values = values.replace("NOW", str(now))
        sql(url, f"insert into {table} ({columns}) {_NUMBERS.format(many=many)} select {values} from n")
    if schema.is_postgres(url):
        sql(url, "analyze")


# --- What pages ask --------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """Statements of the console's requests: operation, statement, parameters. operations: of all its routes."""

    statements: list[tuple[str, str, Row]] = field(default_factory=list)
    operations: set[str] = field(default_factory=set)
    visited: set[str] = field(default_factory=set)


@contextmanager
def recorded() -> Iterator[Recording]:
    """Record the statements of the console of pools that start in this process meanwhile."""
    recording, running = Recording(), ContextVar[str | None]("running", default=None)

    def copied(query: Query[Any], operation: str) -> Query[Any]:
        steps = iter(query)
        try:
            statement, parameters = next(steps)
            while True:
                if statement is not CODEC[0]:
                    recording.statements.append((operation, statement, parameters))
                statement, parameters = steps.send((yield statement, parameters))
        except StopIteration as end:
            return end.value

    def watched(real: Any) -> Any:
        async def run(self: Any, query: Query[Any]) -> Any:
            operation = running.get()
            if operation is None:
                return await real(self, query)
            if not isinstance(query, MarkedQuery):
                return await real(self, copied(query, operation))
            marks = {name: getattr(query, name) for name in ("read_committed", "batchable", "long_running")}
            return await real(self, MarkedQuery(lambda: copied(query, operation), query.__name__, **marks))

        return run

    call, add = Endpoint.__call__, Console._add

    async def answer(self: Endpoint, *given: Any) -> None:
        recording.visited.add(self._operation)
        token = running.set(self._operation)
        try:
            await call(self, *given)
        finally:
            running.reset(token)

    def register(self: Console, method: str, path: str, handler: Any) -> None:
        add(self, method, path, handler)
        recording.operations.add(self._routes[-1].endpoint._operation)  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Endpoint, "__call__", answer)
        patch.setattr(Console, "_add", register)
        for store in (SQLiteStore, PostgresStore):
            for name in ("read", "write"):
                patch.setattr(store, name, watched(getattr(store, name)))
        yield recording


# --- What statements cost --------------------------------------------------------------------------------------------


def rows_read(url: str, statement: str, parameters: Row) -> int:
    """The rows that PostgreSQL reads to answer a SELECT, in tables and indexes."""
    ((found,),) = aside().run(aside().fetch(url, f"explain (analyze, format json) {statement}", parameters))
    total, nodes = 0, [orjson.loads(found)[0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if "Relation Name" in node or "Index Name" in node:
            removed = sum(value for name, value in node.items() if name.startswith("Rows Removed by"))
            total += (node["Actual Rows"] + removed) * node["Actual Loops"]
    return int(total)


def steps_run(url: str, statement: str, parameters: Row) -> int:
    """The instructions of SQLite's virtual machine that a SELECT needs, to a hundred."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 100
        return 0

    with closing(sqlite3.connect(schema.sqlite_file(url))) as connection:
        connection.set_progress_handler(count, 100)
        connection.execute(_dialect(statement), parameters).fetchall()
    return steps
