"""Pages of the console at a million contracts, refusals and audit rows: time until the first byte, and bytes of a page.

    python bench/console.py [--size 1000000] [--engines sqlite postgresql] [--rounds 20] [--folder DIR] [--write]

The contracts are made as in `million.py`. Refusals, audit rows and counters are rows of the real schema with random
callers, vehicles, codes and times. Each round opens every page once with other ids, over one connection to a real
server with one worker. The exit status is 1 if an aim is missed.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import random
import re
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import asyncpg
import uvloop
from rich.console import Console
from rich.markdown import Markdown

sys.path.insert(1, str(Path(__file__).parents[1]))

from ccp.errors.codes import ErrorCode
from ccp.server import logging, settings
from ccp.server.access.client_secrets import new_secret
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.sandbox.setup import Member
from ccp.server.settings import Settings
from ccp.server.storage.engine import schema
from rig import processes, report, world
from rig.report import Aim
from rig.rows import Made, Templates, fill_postgres, fill_sqlite

console = Console(width=130)
TEMPLATES: Final = 200
CALLERS: Final = 200
RARE: Final = "overloaded"
DAY: Final = 86_400
LIMIT_MS: Final = 100.0
LIMIT_KB: Final = 100.0
_BATCH: Final = 10_000
_FIRST: Final = 10**9  # Number of the first audit row, above those of really made ones.
ENGINES: Final = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
Row = tuple[Any, ...]


@dataclass(slots=True)
class Page:
    """A page. seconds: until the first byte, one for each round. size: bytes of the largest answer."""

    name: str
    seconds: list[float] = field(default_factory=list)
    size: int = 0

    @property
    def median(self) -> float:
        """Milliseconds."""
        return 1e3 * statistics.median(self.seconds)


def trace_id(number: int) -> str:
    return f"{number * 2_654_435_761 % 2**32:08x}-0000-4000-8000-{number:012x}"


def refusals(size: int, now: int) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Rows of `refusal`, each with its row of `refusal_contract`, in the order of their times."""
    chance = random.Random(1)
    codes = [code.value for code in ErrorCode if code.value != RARE]
    for number in range(size):
        made = Made.of(chance.randrange(size))
        at = now - 29 * DAY * 10**6 * (size - number) // size
        code = RARE if number % 100_000 == 7 else codes[chance.randrange(len(codes)) % 12]
        edition = "urn:iso:15118:2:2013:MsgDef" if number % 3 else "urn:iso:std:iso:15118:-20:CommonMessages"
        dialect = "opcp" if number % 100_000 == 9 else "opnc"
        yield (
            (
                trace_id(number), at, f"cpo-{chance.randrange(CALLERS)}", "Deliver", dialect, 200, edition, made.pcid,
                made.pcid[:3], None, f"{chance.getrandbits(256):064x}", code, "signature of the vehicle",
                "The contract certificate has expired at 2026-01-01 00:00:00 UTC; the pool does not deliver it.", None,
            ),
            (trace_id(number), made.emaid, made.emaid[:5], 1, at),
        )  # fmt: skip


def audit_rows(size: int, now: int) -> Iterator[tuple[Any, ...]]:
    chance = random.Random(2)
    for number in range(size):
        made = Made.of(chance.randrange(size))
        at = now - 29 * DAY * 10**6 * (size - number) // size
        subject = f'{{"emaid":"{made.emaid}","pcid":"{made.pcid}"}}'
        yield (
            number % 16, _FIRST + number, at, f"cps-{number % CALLERS}", "contract.published", "ok", trace_id(number),
            subject, "", "", "",
        )  # fmt: skip


def batches(size: int) -> Iterator[tuple[str, list[Row]]]:
    """Rows of the tables that pages read besides contracts, each with the name of its table."""
    now = int(time.time() * 1e6)
    pairs = refusals(size, now)
    while batch := list(itertools.islice(pairs, _BATCH)):
        yield "refusal", [refusal for refusal, _ in batch]
        yield "refusal_contract", [contract for _, contract in batch]
    rows = audit_rows(size, now)
    while batch := list(itertools.islice(rows, _BATCH)):
        yield "audit", batch
    hour = now // 10**6 // 3600 * 3600
    yield (
        "request_count",
        [
            (hour - 3600 * back, dialect, "Deliver", code, 7)
            for back in range(1, 35 * 24)
            for dialect in ("opnc", "opcp", "ocpp")
            for code in ("", *list(ErrorCode)[:30])
        ],
    )


def load_sqlite(url: str, size: int) -> None:
    with closing(sqlite3.connect(schema.sqlite_file(url), isolation_level=None)) as connection:
        connection.execute("pragma cache_size = -2000000")
        connection.execute("pragma synchronous = off")
        connection.execute("begin")
        for table, rows in batches(size):
            connection.executemany(f"insert into {table} values ({', '.join('?' * len(rows[0]))})", rows)
        connection.execute("update audit_head set number = ?", (_FIRST + size,))  # Pages read back from the head.
        connection.execute("commit")
        connection.execute("pragma wal_checkpoint(truncate)")


async def load_postgres(url: str, size: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        for table, rows in batches(size):
            await connection.copy_records_to_table(table, records=rows)
        await connection.execute("update audit_head set number = $1", _FIRST + size)
        await connection.execute("vacuum analyze")
        await connection.execute("checkpoint")
    finally:
        await connection.close()


class Visitor:
    """A person who is logged in, over one connection."""

    def __init__(self, port: int, member: Member) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"User-Agent": "bench", "Origin": f"http://127.0.0.1:{port}"}
        form = urlencode({"client_id": member.party.client_id, "client_secret": member.secret})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        self._connection.request("POST", "/console/login", form, {**self._headers, **kind})
        answer = self._connection.getresponse()
        answer.read()
        cookie = re.match(r"[^;]+", answer.headers.get("set-cookie", ""))
        if answer.status != 303 or cookie is None:
            raise RuntimeError(f"The log-in failed: {answer.status}")
        self._headers["Cookie"] = cookie[0]

    def open(self, page: Page, path: str) -> str:
        """Open a page and note its time and size. Returns the page."""
        began = time.perf_counter()
        self._connection.request("GET", f"/console{path}", headers=self._headers)
        answer = self._connection.getresponse()
        first = answer.read(1)
        page.seconds.append(time.perf_counter() - began)
        body = first + answer.read()
        page.size = max(page.size, len(body))
        if answer.status != 200 and not (answer.status == 404 and path.startswith("/why")):  # Without a refusal.
            raise RuntimeError(f"{path}: {answer.status}")
        return body.decode()


def paths(size: int, chance: random.Random) -> list[tuple[str, str]]:
    """Each page with its address, for ids at random."""
    made, number = Made.of(chance.randrange(TEMPLATES, size)), chance.randrange(size)
    middle = int(time.time() * 1e6) - 15 * DAY * 10**6
    return [
        ("Overview", "/overview"),
        ("Contested vehicles", "/contested"),
        ("Vehicle", f"/vehicles/{made.pcid}"),
        ("Contract", f"/contracts/{made.emaid}"),
        ("Why, by trace id", f"/why?q={trace_id(number)}"),
        ("Why, by PCID", f"/why?q={Made.of(number).pcid}"),
        ("Why, by EMAID", f"/why?q={Made.of(number).emaid}"),
        ("Refusals", "/refusals"),
        ("Refusals, in the middle", f"/refusals?after={middle}."),
        ("Refusals, of a frequent code", f"/refusals?code={next(iter(ErrorCode)).value}"),
        ("Refusals, of a rare code", f"/refusals?code={RARE}"),
        ("Refusals, of a caller", f"/refusals?caller=cpo-{chance.randrange(CALLERS)}"),
        ("Refusals, of a rare protocol", "/refusals?dialect=opcp"),
        ("Refusals, of a contract", f"/refusals?id={made.emaid}"),
        ("Parties", "/parties"),
        ("Webhooks", "/webhooks"),
        ("Peers and services", "/partners"),
        ("Trust anchors", "/anchors"),
        ("Audit trail, 24 hours", "/audit"),
        ("Audit trail, an actor in 31 days", f"/audit?days=31&actor={quote(f'cps-{chance.randrange(CALLERS)}')}"),
        ("Health", "/health"),
        ("Sessions", "/sessions"),
    ]


def measured(port: int, member: Member, size: int, rounds: int) -> list[Page]:
    """Open every page once in each round; a first round does not count."""
    visitor, pages = Visitor(port, member), {}
    for number in range(-1, rounds):
        for name, path in paths(size, random.Random(number)):
            page = pages.setdefault(name, Page(name))
            visitor.open(page, path)
            if number < 0:
                page.seconds.clear()
    return list(pages.values())


def load(path: Path, url: str) -> Settings:
    config = settings.load(path, database=url, log_level="error")
    logging.configure(config)
    return config


class Run:
    """Databases of a size in a folder, and what the pages take on them."""

    def __init__(self, folder: Path, size: int, rounds: int) -> None:
        self._folder, self._size, self._rounds = folder, size, rounds
        self._config = folder / "ccp.toml"
        self._config.write_text(f'base_url = "{world.BASE_URL}"\nconsole = true\n', encoding="utf-8")
        self._world = world.build(datetime.now(UTC).replace(microsecond=0), {"iso2": TEMPLATES})
        self._person = Member(Party("example-admin", "Example admin", frozenset({PartyRole.ADMIN})), new_secret())
        self._world.members[PartyRole.ADMIN, "A"] = self._person

    def sqlite(self) -> list[Page]:
        url = self._with_templates("console")
        fill_sqlite(url, Templates(url), self._size)
        load_sqlite(url, self._size)
        return self._measured(url)

    def postgres(self) -> list[Page] | None:
        """None without PostgreSQL."""
        from tests import databases

        if databases.binaries() is None:
            return None
        # A server for a million contracts, as an operator would give it: a quarter of the memory at most.
        server = databases.Server(durable=True, shared_buffers="1GB", max_wal_size="8GB")
        try:
            server.start()
            url, templates = server.database(), Templates(self._with_templates("templates"))
            uvloop.run(world.fill(load(self._config, url), self._world))
            uvloop.run(fill_postgres(url, templates, self._size))
            uvloop.run(load_postgres(url, self._size))
            return self._measured(url)
        finally:
            server.close()

    def _with_templates(self, name: str) -> str:
        url = f"sqlite:///{self._folder / name}.db"
        schema.upgrade(url)
        uvloop.run(world.fill(load(self._config, url), self._world))
        return url

    def _measured(self, url: str) -> list[Page]:
        with processes.serving(self._config, url, 1, self._folder / "server.log") as server:
            return measured(server.port, self._person, self._size, self._rounds)


def judged(found: Mapping[str, list[Page]]) -> list[Aim]:
    aims = []
    for engine, pages in found.items():
        slowest, largest = max(pages, key=lambda page: page.median), max(pages, key=lambda page: page.size)
        name = f"first byte on {engine}, median of the slowest page ({slowest.name})"
        aims.append(Aim(name, LIMIT_MS, slowest.median, " ms", True))
        aims.append(Aim(f"largest page on {engine} ({largest.name})", LIMIT_KB, largest.size / 1e3, " KB", True))
    return aims


def rows_of(found: Mapping[str, list[Page]]) -> Iterator[list[str]]:
    for pages in zip(*found.values(), strict=True):
        times = (f"{page.median:.1f} / {1e3 * max(page.seconds):.1f}" for page in pages)
        yield [pages[0].name, *times, f"{max(page.size for page in pages) / 1e3:.1f}"]


def main() -> int:
    options = argparse.ArgumentParser(description="Pages of the console at a million contracts.")
    options.add_argument("--size", type=int, default=1_000_000, help="contracts, refusals and audit rows")
    options.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=list(ENGINES))
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--folder", type=Path, help="where the SQLite database is made")
    options.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    given = options.parse_args()
    processes.end_in_order()
    busy = report.Busy()
    found: dict[str, list[Page]] = {}
    with tempfile.TemporaryDirectory(prefix="ccp-bench-", dir=given.folder) as name:
        run = Run(Path(name), given.size, given.rounds)
        if "sqlite" in given.engines:
            found[ENGINES["sqlite"]] = run.sqlite()
        if "postgresql" in given.engines and (pages := run.postgres()) is not None:
            found[ENGINES["postgresql"]] = pages
    console.print(f"{given.size:,} contracts, refusals and audit rows", highlight=False)
    aims = judged(found)
    columns = ("page", *(f"{engine}, first byte: median / slowest ms" for engine in found), "KB")
    text = "\n\n".join(
        (
            report.table(("aim", "limit", "measured", "judged"), (aim.row() for aim in aims)),
            report.table(columns, rows_of(found)),
            report.machine(busy),
        )
    )
    console.print(Markdown(text))
    if given.write:
        report.write("console", text)
    return 1 if any(aim.met is False for aim in aims) else 0


if __name__ == "__main__":
    sys.exit(main())
