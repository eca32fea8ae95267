"""Many partners: the cost of thousands of registered parties and webhooks for requests and events."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import random
import re
import sqlite3
import statistics
import string
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ccp.ids import WMI, ProviderId
from ccp.server import logging, settings
from ccp.server.access.client_secrets import hash_secret, new_secret
from ccp.server.domain.parties import Party, PartyRole
from ccp.server.domain.subscriptions import Webhook
from ccp.server.storage import connect
from ccp.server.storage.engine import schema
from ccp.server.storage.engine.query import Query
from ccp.server.storage.queries import parties
from ccp.server.storage.queries import webhooks as webhook_queries
from request import token_of
from rig import processes, world
from rig.open_loop import Outcome, Stream, running
from rig.processes import Server
from rig.report import Row

AIMS: Final = (
    "Two pools with the same contracts get the same load of POST and PUT alternately. One has 65 parties and 16 "
    "webhooks, the other thousands of both, and two of its parties are edited every second. Aim: edits, fan-out and "
    "administration delay no request; no work of a request grows with the number of partners."
)
ADMIN: Final = "example-admin"
_ALPHABET: Final = string.ascii_uppercase + string.digits


@dataclass(frozen=True, slots=True)
class Plan:
    """rate_post, rate_put: requests a second. Aims, as ratios to the small pool: post_p99, put_p50 (None: only
    reported) and cpu, of the servers under load.

    lag: aim for the additional delay of the event loop, compared with the small pool, seconds.
    start: aim for the additional CPU seconds of a start. answered: aim for the share of requests and edits with the
    expected response.
    """

    parties: int
    webhooks: int
    contracts: int
    rounds: int
    seconds: float
    rate_post: float
    rate_put: float
    post_p99: float | None
    put_p50: float | None
    cpu: float
    lag: float
    start: float
    answered: float


LONG: Final = Plan(
    10_000, 2_000, 1_600, 5, 12.0, 100, 40, post_p99=1.3, put_p50=1.2, cpu=1.2, lag=0.05, start=1.5, answered=1.0
)
# Both cores may be busy with other tests, so times tell nothing. Work that grows with the parties takes processor time.
SHORT: Final = Plan(
    2_000, 400, 160, 2, 2.0, 30, 15, post_p99=None, put_p50=None, cpu=1.7, lag=2.0, start=5.0, answered=0.9
)


def run(short: bool, folder: Path) -> Iterator[Row]:
    plan = SHORT if short else LONG
    with ExitStack() as stack:
        hold = _Hold(plan, folder, stack)
        yield from hold.rows()


@dataclass
class _Pool:
    """One of the two pools. messages: by name, with its own tokens. cpu: seconds that its start took. used: seconds of
    CPU under load.

    lags: of its event loop, seconds.
    """

    database: Path
    server: Server
    admin: str
    messages: dict[str, tuple[bytes, ...]]
    cpu: float
    used: float = 0.0
    lags: list[float] = field(default_factory=list)
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)


class _Hold:
    def __init__(self, plan: Plan, folder: Path, stack: ExitStack) -> None:
        self._plan = plan
        self._folder = folder
        self._stack = stack
        self._at = datetime.now(UTC).replace(microsecond=0)
        self._world = world.build(self._at, {"iso2": plan.contracts})
        self._secret = new_secret()
        self._config = folder / "ccp.toml"
        self._config.write_text(
            f'base_url = "{world.BASE_URL}"\nevent_allow_http = true\negress_allow_networks = ["127.0.0.0/8"]\n'
        )
        self._others: list[str] = []

    def rows(self) -> Iterator[Row]:
        plan = self._plan
        answer = self._folder / "answer"
        answer.write_bytes(b"{}")
        receiver = self._stack.enter_context(processes.constant(answer, 1, self._folder / "receiver.log"))
        few, many = self._folder / "few.db", self._folder / "many.db"
        self._fill(few, many, receiver.port)
        small, large = self._serve(few), self._serve(many)
        edits = _Edits(large.server.port, large.admin, self._others)
        for _ in range(plan.rounds):
            with _watching(small.server.port, small.lags):
                self._load(small)
            with edits.going_on(), _watching(large.server.port, large.lags):
                self._load(large)
        listed = self._list_all(large, max(small.lags))
        yield from self._judged(small, large)
        yield Row(
            f"{plan.parties:,} parties, two edits a second: the longest stop of the event loop",
            f"≤ {plan.lag * 1000:.0f} ms longer than with 65 parties",
            f"{max(large.lags) * 1000:.0f} and {max(small.lags) * 1000:.0f} ms",
            max(large.lags) <= max(small.lags) + plan.lag,
            "The largest value of `ccp_loop_lag_recent_max_seconds`, asked for four times a second.",
        )
        yield Row(
            "CPU of the server under load: with many parties and edits against 65 parties without",
            f"≤ {plan.cpu:g} times",
            f"{large.used / small.used:.2f} times ({large.used:.2f} and {small.used:.2f} s)",
            large.used <= plan.cpu * small.used,
        )
        yield Row(
            "Edits that were made, of those that were sent",
            f"≥ {plan.answered:.0%}",
            f"{edits.answered} of {edits.sent}, p50 {statistics.median(edits.seconds) * 1000:.0f} ms",
            edits.answered >= plan.answered * edits.sent > 0,
        )
        yield listed
        more = large.cpu - small.cpu
        yield Row(
            "CPU that a start takes more than with 65 parties",
            f"≤ {plan.start:g} s",
            f"{more:.2f} s",
            more <= plan.start,
        )
        yield self._delivered(small, large)

    # Before.

    def _fill(self, few: Path, many: Path, receiver: int) -> None:
        url = f"sqlite:///{few}"
        schema.upgrade(url)
        config = settings.load(self._config, database=url)
        logging.configure(config.model_copy(update={"log_level": "error"}))
        asyncio.run(world.fill(config, self._world))
        makers = [f"example-oem-{letter.lower()}" for letter in world.SETS]
        hooks = [_webhook(number, maker, receiver, self._at) for number, maker in enumerate(makers)]
        admin = Party(ADMIN, "Example admin", frozenset({PartyRole.ADMIN}))

        def first() -> Query[None]:
            yield from parties.add(admin, hash_secret(self._secret), self._at)
            for hook in hooks:
                yield from webhook_queries.put(hook)
            yield "delete from outbox", ()  # Of the contracts that were there before the webhooks.

        _write(url, first())
        with closing(sqlite3.connect(few)) as source, closing(sqlite3.connect(many)) as copy:
            source.backup(copy)
        others = list(itertools.islice(_parties(), self._plan.parties - len(self._world.members) - 1))
        self._others = [party.client_id for party in others]

        def more(part: Sequence[tuple[int, Party]]) -> Query[None]:
            for number, party in part:
                yield from parties.add(party, "", self._at)
                if number < self._plan.webhooks:
                    yield from webhook_queries.put(_webhook(number, party.client_id, receiver, self._at))

        numbered = list(enumerate(others, len(hooks)))
        _write(f"sqlite:///{many}", *(more(numbered[start : start + 100]) for start in range(0, len(numbered), 100)))

    def _serve(self, database: Path) -> _Pool:
        log = self._folder / f"{database.stem}.log"
        server = self._stack.enter_context(processes.serving(self._config, f"sqlite:///{database}", 1, log))
        cpu = server.cpu()
        url = f"http://127.0.0.1:{server.port}/oauth/token"
        tokens = {
            key: token_of(url, member.party.client_id, member.secret) for key, member in self._world.members.items()
        }
        operations = world.operations(self._world, tokens)
        messages = {name: operations[name].messages for name in ("post", "put")}
        return _Pool(database, server, token_of(url, ADMIN, self._secret), messages, cpu)

    # Under load.

    def _load(self, pool: _Pool) -> None:
        plan = self._plan
        streams = [
            Stream("post", pool.messages["post"], plan.rate_post, plan.seconds, connections=64),
            Stream("put", pool.messages["put"], plan.rate_put, plan.seconds, connections=32),
        ]
        before = pool.server.cpu()
        with running(pool.server.port, streams) as load:
            for name, outcome in load.result().items():
                pool.outcomes.setdefault(name, []).append(outcome)
        _wait_for_events(pool.database)
        pool.used += pool.server.cpu() - before

    def _list_all(self, pool: _Pool, usual: float) -> Row:
        """An administrator lists all parties repeatedly during the load."""
        plan, found, lists = self._plan, 0, 0
        stream = Stream("post", pool.messages["post"], plan.rate_post, plan.seconds, connections=64)
        seen: list[float] = []
        with running(pool.server.port, [stream]) as load, _watching(pool.server.port, seen):
            while load.elapsed < plan.seconds or not lists:
                found, lists = _listed(pool.server.port, pool.admin), lists + 1
            outcome = load.result()["post"]
        share = outcome.share(within=4.0)
        lag = max(seen)
        return Row(
            f"All parties listed {lists} times by the admin API in {plan.seconds:g} s, pages of 1,000: longest stop",
            f"≤ {plan.lag * 1000:.0f} ms longer than without; {plan.answered:.0%} of cars answered",
            f"{lag * 1000:.0f} ms, POST p99 {outcome.percentile(0.99) * 1000:.0f} ms, {share:.2%} answered",
            lag <= usual + plan.lag and share >= plan.answered and found == plan.parties,
        )

    # Afterwards.

    def _judged(self, small: _Pool, large: _Pool) -> Iterator[Row]:
        plan = self._plan
        for name, share, aim, status in (("post", 0.99, plan.post_p99, 200), ("put", 0.5, plan.put_p50, 201)):
            pairs = [
                (one.percentile(share), other.percentile(share))
                for one, other in zip(small.outcomes[name], large.outcomes[name], strict=True)
            ]
            ratio = statistics.median(other / one for one, other in pairs)
            few, many = (statistics.median(each) * 1000 for each in zip(*pairs, strict=True))
            sizes = f"{plan.parties:,} parties and {plan.webhooks:,} webhooks against 65 and 16"
            yield Row(
                f"{name.upper()} p{share * 100:.0f}: {sizes}",
                "" if aim is None else f"≤ {aim:g} times",
                f"{ratio:.2f} times ({many:.1f} and {few:.1f} ms)",
                None if aim is None else ratio <= aim,
                f"Median of {plan.rounds} rounds, {plan.rate_post:g} POST and {plan.rate_put:g} PUT a second. "
                "The small pool has no edits.",
            )
            answers = [answer for pool in (small, large) for each in pool.outcomes[name] for answer in each.answers]
            good = sum(answer.status == status for answer in answers)
            yield Row(
                f"{name.upper()}: answered with {status}",
                f"≥ {plan.answered:.0%}",
                f"{good} of {len(answers)}",
                good >= plan.answered * len(answers),
            )

    def _delivered(self, *pools: _Pool) -> Row:
        wanted = sum(answer.status == 201 for pool in pools for each in pool.outcomes["put"] for answer in each.answers)
        delivered = sum(
            _one(pool.database, "select count(*) from delivery where state = 'delivered'") for pool in pools
        )
        # A PUT whose client gave up may have been stored all the same.
        return Row(
            "Events of all changes were delivered to the webhooks of the makers",
            f"≥ {wanted}, none left",
            f"{delivered}, {sum(_left(pool.database) for pool in pools)} left",
            delivered >= wanted and not any(_left(pool.database) for pool in pools),
        )


class _Edits:
    """An administrator that renames a party twice per second."""

    def __init__(self, port: int, token: str, client_ids: list[str]) -> None:
        self._port, self._token, self._ids = port, token, client_ids
        self._chance = random.Random(7)
        self.sent = self.answered = 0
        self.seconds: list[float] = []

    @contextmanager
    def going_on(self) -> Iterator[None]:
        with _repeating(self._edit, 0.5):
            yield

    def _edit(self) -> None:
        self.sent += 1
        client_id = self._chance.choice(self._ids)
        body = json.dumps({"name": f"Example {client_id} edition {self.sent}"})
        began = time.monotonic()
        status, _ = _admin(self._port, self._token, "PATCH", f"/admin/v1/parties/{client_id}", body)
        self.seconds.append(time.monotonic() - began)
        self.answered += status == 200


@contextmanager
def _watching(port: int, seen: list[float]) -> Iterator[None]:
    """Record the event loop lag that the worker reports, in seconds."""

    def look() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            found = re.search(r"^ccp_loop_lag_recent_max_seconds(?:\{[^}]*\})? (\S+)$", answer.read().decode(), re.M)
        if found is not None:
            seen.append(float(found[1]))

    with _repeating(look, 0.25):
        yield


@contextmanager
def _repeating(work: Callable[[], None], interval: float) -> Iterator[None]:
    """Repeat a call in a thread during the context; its exception is raised at the end."""
    over = threading.Event()
    failed: list[Exception] = []

    def repeat() -> None:
        due = time.monotonic()
        while not over.is_set():
            try:
                work()
            except Exception as exc:
                failed.append(exc)
                return
            due = max(due + interval, time.monotonic())
            over.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


def _admin(port: int, token: str, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with closing(connection):
        headers = {"Authorization": f"Bearer {token}", **({"Content-Type": "application/json"} if body else {})}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def _listed(port: int, token: str) -> int:
    """The number of parties on all pages of the admin API."""
    found, cursor = 0, ""
    while True:
        more = f"&cursor={cursor}" if cursor else ""
        status, body = _admin(port, token, "GET", f"/admin/v1/parties?limit=1000{more}")
        if status == 503:  # Cars go first.
            time.sleep(0.5)
            continue
        if status != 200:
            raise RuntimeError(f"The list of parties was answered with {status}.")
        page = json.loads(body)
        found += len(page["parties"])
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def _parties() -> Iterator[Party]:
    """Vehicle makers and providers alternately, each with an id that no contract of the load names."""
    for number, (a, b, c) in enumerate(itertools.product(_ALPHABET, repeat=3)):
        if a == "W":
            continue  # Those of the load.
        client_id = f"partner-{number:05d}"
        if number % 2:
            own = frozenset({ProviderId.parse(f"NL{a}{b}{c}")})
            yield Party(client_id, f"Example {client_id}", frozenset({PartyRole.EMSP}), provider_ids=own)
        else:
            wmis = frozenset({WMI.parse(f"{a}{b}{c}")})
            yield Party(client_id, f"Example {client_id}", frozenset({PartyRole.OEM}), wmis=wmis)


def _webhook(number: int, client_id: str, port: int, at: datetime) -> Webhook:
    maker = ("oem.contract.created", "oem.contract.updated", "oem.contract.deleted")
    provider = ("emsp.contract.delivered.to.oem", "emsp.prov.cert.deleted")
    return Webhook(
        f"00000000-0000-4000-8000-{number:012d}", client_id, f"http://127.0.0.1:{port}/", "", maker + provider,
        (), (), {}, "v1", True, "a secret of thirty-two characters", at, at,
    )  # fmt: skip


def _write(url: str, *changes: Query[None]) -> None:
    async def write() -> None:
        store = connect(url)
        await store.open()
        try:
            for change in changes:
                await store.write(change)
        finally:
            await store.close()

    asyncio.run(write())


def _left(database: Path) -> int:
    """The number of events that are not delivered yet."""
    waiting = _one(database, "select count(*) from delivery where state <> 'delivered'")
    return waiting + _one(database, "select count(*) from outbox")


def _wait_for_events(database: Path) -> None:
    deadline = time.monotonic() + 60
    while _left(database) and time.monotonic() < deadline:
        time.sleep(0.1)


def _one(database: Path, statement: str) -> int:
    with closing(sqlite3.connect(database, timeout=10)) as connection:
        found: int = connection.execute(statement).fetchone()[0]
        return found
