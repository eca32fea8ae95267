"""Thousands of requests that are nearly right, or nothing at all: the server stays up, answers no 500, keeps nothing.

`CCP_TEST_REQUESTS` sets their number, `CCP_TEST_SEED` what they are.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccp.server.http import protocol
from ccp.server.http.middleware import tracing
from ccp.server.http.routes.opnc import BASE
from ccp.testing.pki import PKI
from tests.world import AT, SESSION, Pool, post_body, start

REQUESTS = int(os.environ.get("CCP_TEST_REQUESTS", "5000"))
SEED = int(os.environ.get("CCP_TEST_SEED", "15118"))
AT_ONCE = 256
WAIT = 60.0
"""Seconds for an answer or the end of the connection, one of which has to come: what was cut off is refused in time."""

PIECES = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00", b"\xff", b" ", b"\t", b":", b"%00", b"%2f", b"%", b"/../", b"//", b"?",
    b"#", b"{", b"[" * 300, b"}", b'"', b"\\u0000", b"\\ud800", b"null", b"1e999", b"-0", b"9" * 400, b"A" * 5000,
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n",
    b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"Authorization: Bearer a.b.c\r\n", b"Authorization: Basic \xff\r\n",
    b"X-Forwarded-For: 1.2.3.4, invalid\r\n", b"Host: b\r\n", b"0\r\n\r\n", b"HTTP/1.0",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "é".encode(), "\N{RIGHT-TO-LEFT OVERRIDE}".encode(),
    b"OPNC-from-party-type: cpo\r\n", b"alwaysReturnEXI: \xff\r\n",
)  # fmt: skip


@pytest.fixture(scope="module")
def target(pkis: dict[str, PKI]) -> Iterator[Pool]:
    with start({name: pkis[name] for name in ("iso2", "iso20")}, rate_limit_per_party=0, read_timeout=1) as running:
        yield running


def valid(pool: Pool) -> list[bytes]:
    """A good request of every kind."""
    found = []

    def add(
        method: str, path: str, party: str | None, body: bytes = b"", more: str = "", chunked: bool = False
    ) -> None:
        head = f"{method} {path} HTTP/1.1\r\nHost: pool\r\n{more}"
        if party is not None:
            head += f"Authorization: Bearer {pool.token(party)}\r\n"
        if chunked:
            half = len(body) // 2
            body = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in (body[:half], body[half:], b""))
            head += "Transfer-Encoding: chunked\r\n"
        elif body:
            head += f"Content-Length: {len(body)}\r\n"
        found.append(head.encode() + b"\r\n" + body)

    for edition in ("iso2", "iso20"):
        car = pool.car(edition)
        contract = pool.publish(car)
        put = json.dumps(pool.contract(car).body).encode()
        post = json.dumps(post_body(car.request(SESSION, AT), str(car.namespace))).encode()
        emaid, pcid = contract.emaid, car.pcid
        add("PUT", f"{BASE}/signedcontractdata", "cps", put)
        add("PUT", f"{BASE}/signedcontractdata?dryRun=true", "cps", put, chunked=True)
        add("POST", f"{BASE}/signedcontractdata", "cpo", post, "alwaysReturnEXI: true\r\nbroadcast: false\r\n")
        add("POST", f"{BASE}/signedcontractdata", "cpo", post, chunked=True)
        add("GET", f"{BASE}/contractData/emaid/{emaid}?xsdMsgDefNamespace={car.namespace}", "emsp")
        add("GET", f"{BASE}/contractData/pcid/{pcid}?xsdMsgDefNamespace={car.namespace}", "oem")
        add(
            "GET",
            f"{BASE}/signedcontractdata/{emaid}/{pcid}?sessionID=0011",
            "oem",
            more="OPNC-from-party-type: oem\r\n",
        )
        add("POST", f"{BASE}/signedcontractdata/{emaid}/{pcid}/setdefault", "oem")
        add("DELETE", f"{BASE}/signedcontractdata/{emaid}", "emsp", more="X-Skip-Revocation: true\r\n")
    form = f"grant_type=client_credentials&client_id=cps&client_secret={pool.world.member('cps').secret}".encode()
    add("POST", "/oauth/token", None, form, "Content-Type: application/x-www-form-urlencoded\r\n")
    add("POST", "/oauth/token", None, b'{"grant_type": "client_credentials"}', "Content-Type: application/json\r\n")
    add("POST", f"{BASE}/events/pcp", None, b'{"eventType": "emsp.prov.cert.deleted"}', "payload-signature: 00\r\n")
    for path in ("/health", "/openapi.json", "/.well-known/jwks.json", "/admin/v1/parties"):
        add("GET", path, "everything")
    return found


def mutated(chance: random.Random, samples: list[bytes]) -> bytes:
    """One of the samples with up to six changes, most of them in its head; one in twenty is noise."""
    if chance.random() < 0.05:
        return chance.randbytes(chance.randrange(1, 2000))
    data = bytearray(chance.choice(samples))
    for _ in range(chance.randrange(7)):
        end = max(1, data.find(b"\r\n\r\n")) if chance.random() < 0.6 else len(data)
        at = chance.randrange(end)
        match chance.randrange(8):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                del data[at : at + chance.randrange(1, 40)]
            case 3 | 4:
                data[at:at] = chance.choice(PIECES)
            case 5:
                data[at:at] = data[at : at + chance.randrange(1, 200)]
            case 6:
                lines = bytes(data).split(b"\r\n")
                chance.shuffle(lines)
                data = bytearray(b"\r\n".join(lines)) if chance.random() < 0.2 else data
            case 7:
                other = chance.choice(samples)
                data[at:] = other[chance.randrange(len(other)) :]
        if not data:
            return b"\r\n"
    return bytes(data)


async def send_all(port: int, requests: list[bytes]) -> Counter[int]:
    """Each on a connection of its own. Returns how often each status was answered; 0 for no answer."""
    seen: Counter[int] = Counter()
    waiting = iter(requests)

    async def work() -> None:
        for data in waiting:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            got = b""
            try:
                writer.write(data)
                async with asyncio.timeout(WAIT):
                    while part := await reader.read(65_536):
                        got += part
                        if b"\r\n\r\n" in got:
                            break
            except (TimeoutError, ConnectionError):
                pass
            finally:
                writer.transport.abort()
            status = re.match(rb"HTTP/1\.1 (\d{3}) ", got)
            assert status or not got, got[:100]
            seen[int(status[1]) if status else 0] += 1

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return seen


class OnlyBad:
    """A logger that keeps what must not be, and counts the rest."""

    def __init__(self) -> None:
        self.count = 0
        self.bad: list[dict[str, Any]] = []

    def info(self, event: str, **members: Any) -> None:
        self.count += 1
        if members.get("outcome") == "crashed" or "exc_info" in members:
            self.bad.append(members)

    warning = info

    def is_enabled_for(self, level: int) -> bool:
        return True

    def error(self, event: str, **members: Any) -> None:
        self.bad.append({"event": event, **members})


def resident() -> int:
    """Mebibytes of memory of this process, in which the server runs."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def sockets() -> int:
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            found += os.readlink(link).startswith("socket:")
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is looked up in /proc")
def test_request_of_any_kind_does_not_bring_the_server_down(target: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = OnlyBad()
    monkeypatch.setattr(tracing, "_log", logger)
    monkeypatch.setattr(protocol, "_log", logger)
    chance = random.Random(SEED)
    samples = valid(target)
    port = int(target.base_url.rsplit(":", 1)[1])
    # Once through, so that what is made at first use is there.
    asyncio.run(send_all(port, [mutated(chance, samples) for _ in range(500)]))
    logger.bad.clear()
    before, open_before = resident(), sockets()

    seen = asyncio.run(send_all(port, [mutated(chance, samples) for _ in range(REQUESTS)]))

    assert sum(seen.values()) == REQUESTS
    assert target.http.get("/health").json() == {"status": "ok"}
    target.publish(target.car())
    # A few may come while the worker has more to do than it can in time: 503 is the answer then.
    assert not [status for status in seen if status >= 500 and status not in (501, 503, 505)], seen
    assert seen[503] < REQUESTS / 50, seen
    assert len({status for status in seen if 400 <= status < 500}) >= 5, "the requests reach many checks"
    assert seen[200] + seen[201] > REQUESTS / 50, "some are still good"
    deadline = time.monotonic() + 30
    while sockets() > open_before + 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert sockets() <= open_before + 2, "connections are kept"
    assert logger.count > REQUESTS / 2, "the log does not report the rejected requests"
    assert not logger.bad, logger.bad[0]
    assert resident() - before < 64
