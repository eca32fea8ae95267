"""Responses and their timing do not reveal whether an id of another owner exists."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from sqlite3 import Connection
from typing import Any
from unittest.mock import patch

import httpx
import pytest

from ccp.ids import EMAID, PCID
from ccp.server.storage.engine import sqlite, sqlite_writer
from ccp.server.storage.engine.query import Query
from ccp.server.storage.engine.secret_codec import SecretCodec
from ccp.testing.pki import PKI
from tests.databases import knows_sqlite
from tests.world import ISO2, Pool, new_emaid, new_pcid, start


@pytest.fixture(scope="module")
def pool(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start(pkis, rate_limit_per_party=0, rate_limit_per_address=0) as running:
        yield running


class There:
    """Ids of one OEM and its eMSP, and ids that do not exist. All of them are foreign to `other_oem`, `other_emsp`."""

    def __init__(self, pool: Pool) -> None:
        self.car = pool.car()
        self.emaid = pool.publish(self.car).emaid
        for signer in ("other_iso2", "iso2"):
            pool.publish(self.car, self.emaid, signer=signer)
        self.withdrawn = pool.publish(self.car).emaid
        assert pool.emsp.delete(f"/signedcontractdata/{self.withdrawn}").status_code == 200


@pytest.fixture(scope="module")
def there(pool: Pool) -> There:
    return There(pool)


Ask = Callable[[], httpx.Response]


def pairs(pool: Pool, there: There) -> dict[str, tuple[Ask, Ask]]:
    """Requests of one caller, for what is there and may not be seen and for what is not there at all."""
    other_oem, other_emsp = pool.client("other_oem"), pool.client("other_emsp")
    own, nobody, nothing = new_pcid("WXB"), new_emaid(), new_pcid("WEX")
    query = {"xsdMsgDefNamespace": ISO2}

    def signed(emaid: EMAID) -> Ask:
        return lambda: other_oem.get(f"/signedcontractdata/{emaid}/{own}", params=query)

    def default(emaid: EMAID) -> Ask:
        return lambda: other_oem.post(f"/signedcontractdata/{emaid}/{own}/setdefault")

    def by_pcid(pcid: PCID) -> Ask:
        return lambda: other_oem.get(f"/contractData/pcid/{pcid}", params=query)

    def by_emaid(emaid: EMAID) -> Ask:
        return lambda: other_emsp.get(f"/contractData/emaid/{emaid}", params=query)

    def withdraw(emaid: EMAID) -> Ask:
        return lambda: other_emsp.delete(f"/signedcontractdata/{emaid}")

    def signed_foreign(emaid: EMAID, pcid: PCID) -> Ask:
        return lambda: other_oem.get(f"/signedcontractdata/{emaid}/{pcid}", params=query)

    def publish(emaid: EMAID) -> Ask:
        body = {**pool.contract(there.car, emaid).body}
        return lambda: other_emsp.put("/signedcontractdata", json=body)

    return {
        "an EMAID of another maker's car, asked for with an own one": (signed(there.emaid), signed(nobody)),
        "an EMAID of another maker's car, to be made an own one's default": (default(there.emaid), default(nobody)),
        "an EMAID that was withdrawn": (signed(there.withdrawn), signed(nobody)),
        "a foreign vehicle": (by_pcid(there.car.pcid), by_pcid(nothing)),
        "a foreign vehicle's contract": (signed_foreign(there.emaid, there.car.pcid), signed_foreign(nobody, nothing)),
        "a foreign contract": (by_emaid(there.emaid), by_emaid(nobody)),
        "a foreign contract, to be withdrawn": (withdraw(there.emaid), withdraw(nobody)),
        "a foreign contract, to be published": (publish(there.emaid), publish(nobody)),
    }


NAMES = (
    "an EMAID of another maker's car, asked for with an own one",
    "an EMAID of another maker's car, to be made an own one's default",
    "an EMAID that was withdrawn",
    "a foreign vehicle",
    "a foreign vehicle's contract",
    "a foreign contract",
    "a foreign contract, to be withdrawn",
    "a foreign contract, to be published",
)


def comparable(answer: httpx.Response) -> tuple[Any, ...]:
    """A response without its time, its trace id and the requested id."""
    members = answer.json()
    assert members.pop("traceId") == answer.headers["x-trace-id"]
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "x-trace-id")}
    sentences = str(members)
    for word in set(str(answer.request.url).replace("?", "/").split("/")) | {str(answer.request.content)}:
        if len(word) in range(14, 19):
            sentences = sentences.replace(word, "…")
    return answer.status_code, sentences, headers


@pytest.mark.parametrize("name", NAMES)
def test_contract_that_is_invisible_is_answered_like_an_absent_one(pool: Pool, there: There, name: str) -> None:
    seen, absent = (ask() for ask in pairs(pool, there)[name])
    assert seen.status_code in (400, 403, 404)
    if "published" in name:  # The sentence names the id, which stands in the body.
        assert seen.status_code == absent.status_code == 403
        assert len(seen.content) == len(absent.content)
    else:
        assert comparable(seen) == comparable(absent)


def test_enumeration_looks_at_every_pair(pool: Pool, there: There) -> None:
    assert tuple(pairs(pool, there)) == NAMES


# --- Time ------------------------------------------------------------------------------------------------------------

_ROUNDS = 60
_TRIES = 4
_PART = 0.25
_LEAST = 100e-6


def differ(one: Callable[[], object], other: Callable[[], object], rounds: int = _ROUNDS) -> bool:
    """Whether two things take a different time, by a quarter and a tenth of a millisecond at least.

    They are done in turns, so that a busy machine slows down both; the medians count, and a difference has to be seen
    in the same direction in each of several tries.
    """
    directions = set()
    for _ in range(_TRIES):
        taken: tuple[list[float], list[float]] = ([], [])
        for number in range(rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                began = time.perf_counter()
                (one, other)[which]()
                taken[which].append(time.perf_counter() - began)
        first, second = map(statistics.median, taken)
        if abs(first - second) < max(_LEAST, _PART * min(first, second)):
            return False
        directions.add(first > second)
    return len(directions) == 1


@pytest.mark.parametrize("name", NAMES)
def test_contract_that_is_invisible_takes_as_long_as_an_absent_one(pool: Pool, there: There, name: str) -> None:
    seen, absent = pairs(pool, there)[name]
    assert seen().status_code == absent().status_code != 429
    assert not differ(seen, absent)
    assert seen().status_code == absent().status_code != 429


def test_enumeration_measurement_sees_what_takes_twice_as_long(pool: Pool, there: There) -> None:
    """Otherwise the test before could not fail."""
    absent = pairs(pool, there)[NAMES[0]][1]

    def slower() -> None:
        began = time.perf_counter()
        absent()
        time.sleep(time.perf_counter() - began + 500e-6)

    # Each of its tries has to see it, and on a busy machine one of them may not.
    assert any(differ(slower, absent, rounds=15) for _ in range(4))


@contextmanager
def asked() -> Iterator[list[str]]:
    """The statements about contracts that the server's store runs meanwhile, each with how many rows it brought."""
    done: list[str] = []
    run = sqlite.run

    def spy(connection: Connection, steps: Query[Any], codec: SecretCodec | None) -> Any:
        return run(connection, listened(steps), codec)

    def listened(steps: Query[Any]) -> Query[Any]:
        try:
            statement, parameters = next(steps)
            while True:
                rows = yield statement, parameters
                if any(table in statement for table in ("contract", "emaid_claim", "vehicle")):
                    done.append(f"{len(rows)} {statement}")
                statement, parameters = steps.send(rows)
        except StopIteration as stop:
            return stop.value

    with patch.object(sqlite, "run", spy), patch.object(sqlite_writer, "run", spy):
        yield done


@knows_sqlite
@pytest.mark.parametrize("name", NAMES)
def test_database_is_asked_the_same_and_finds_as_much(pool: Pool, there: There, name: str) -> None:
    seen, absent = pairs(pool, there)[name]
    with asked() as first:
        seen()
    with asked() as second:
        absent()
    if "default" in name:  # The claim is found or not, by its key; nothing more is asked in either case.
        first, second = ([statement[2:] for statement in each] for each in (first, second))
    assert first == second
    assert len(first) == (1 if name in NAMES[:3] else 0)
