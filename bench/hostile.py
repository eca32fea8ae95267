"""Waiting times of other callers while servers of partners send endless responses.

    python bench/hostile.py [--seconds 6] [--limit 50]

A real `ccp serve` with one worker. First, twenty webhooks of one vehicle maker point to a hostile server while
contracts are published. Then there are six concurrent publications whose certificates name that server as OCSP
responder and CRL address. Meanwhile a health probe and another vehicle send two hundred requests per second. The
hostile server runs at the lowest priority, because in production it runs on another machine. The first row is the
same load without it. The exit status is 1 if the longest wait is above the limit (milliseconds).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import orjson

sys.path.insert(1, str(Path(__file__).parents[1]))

from tests.attacks.hostile import BEHAVIOURS, SLOW
from tests.server.events.receiver import webhook

from ccp.ids import EMAID, PCID
from ccp.server import logging, settings
from ccp.server.app import build_services
from ccp.server.domain.parties import PartyRole
from ccp.server.sandbox.setup import publish_body
from ccp.server.storage.engine import schema
from ccp.server.storage.queries import webhooks as webhook_queries
from ccp.testing.partners import Car
from ccp.testing.pki import PKI, StatusURLs
from request import token_of
from rig import processes, world

ROOT: Final = Path(__file__).parents[1]
WEBHOOKS: Final = 20


@contextmanager
def hostile_server() -> Iterator[str]:
    command = ["nice", "-n", "19", sys.executable, "-m", "tests.attacks.hostile"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.communicate()


class Pool:
    """A running pool, its contracts and its callers."""

    def __init__(self, folder: Path, hostile: str, stack: ExitStack) -> None:
        at = datetime.now(UTC).replace(microsecond=0)
        config = folder / "ccp.toml"
        config.write_text(
            f'base_url = "{world.BASE_URL}"\nevent_allow_http = true\n'
            'egress_allow_networks = ["127.0.0.0/8"]\nevent_timeout = 2\n'
        )
        self.database = f"sqlite:///{folder / 'ccp.db'}"
        schema.upgrade(self.database)
        self.settings = settings.load(config, database=self.database)
        logging.configure(self.settings.model_copy(update={"log_level": "error"}))
        self.world = world.build(at, {"iso2": 64})
        self.evil = {}
        for kind in (*BEHAVIOURS, *SLOW):
            named = StatusURLs(ocsp=f"{hostile}/{kind}", crl=f"{hostile}/{kind}")
            pki = PKI.generate(
                at, status_urls=lambda ca, named=named: named if ca == "eMSP Sub2 CA SIM" else StatusURLs()
            )
            self.world.fleets[f"evil {kind}"] = world.Fleet(pki, (), ())
            car = Car.generate(pki, PCID("WXA0EVIL000000001"), at)
            bodies = [publish_body(pki, EMAID(f"DEEXAE{number:08d}"), car, at) for number in range(6)]
            self.evil[kind] = [orjson.dumps(body) for body in bodies]
        asyncio.run(world.fill(self.settings, self.world))
        server = stack.enter_context(processes.serving(config, self.database, 1, folder / "server.log"))
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30)
        self.tokens = {}
        for role in (PartyRole.CPO, PartyRole.CPS):
            member = self.world.members[role, "A"]
            url = f"{self.http.base_url}/oauth/token"
            self.tokens[role] = token_of(url, member.party.client_id, member.secret)

    def webhooks(self, urls: list[str]) -> None:
        """The webhooks of the car maker that get the events of all published contracts."""
        maker = self.world.members[PartyRole.OEM, "A"].party.client_id

        async def change() -> None:
            built = build_services(self.settings)
            await built.open()
            for hook in await built.store.read(webhook_queries.list_by_party(maker)):
                await built.store.write(webhook_queries.remove(hook.id))
            for url in urls:
                await built.store.write(webhook_queries.put(webhook(url, maker)))
            await built.close()

        asyncio.run(change())
        time.sleep(1.5)  # Until the worker has looked for changes.

    def publish(self, body: bytes) -> int:
        with httpx.Client(base_url=self.http.base_url, timeout=30) as http:
            headers = {"Authorization": f"Bearer {self.tokens[PartyRole.CPS]}"}
            return http.put(f"{world.PATH}/signedcontractdata", content=body, headers=headers).status_code

    def waits(self, seconds: float, work: Callable[[], None]) -> list[float]:
        """Waiting times of a probe and another vehicle, in milliseconds, while threads repeat the work."""
        ends = time.monotonic() + seconds
        headers = {"Authorization": f"Bearer {self.tokens[PartyRole.CPO]}"}
        car = next(contract for contract in self.world.fleets["iso2"].contracts if contract.letter == "B").request

        def again() -> None:
            while time.monotonic() < ends:
                work()

        threads = [threading.Thread(target=again) for _ in range(6)]
        for thread in threads:
            thread.start()
        found = []
        while time.monotonic() < ends:
            began = time.perf_counter()
            if len(found) % 2:
                answer = self.http.get("/health/live")
            else:
                answer = self.http.post(f"{world.PATH}/signedcontractdata", content=car, headers=headers)
            found.append(1000 * (time.perf_counter() - began))
            assert answer.status_code == 200, answer.text
            time.sleep(max(0.0, 0.005 - (time.perf_counter() - began)))
        for thread in threads:
            thread.join()
        return found


def main() -> int:
    options = argparse.ArgumentParser(description="How long other callers wait while partners' servers are hostile.")
    options.add_argument("--seconds", type=float, default=6)
    options.add_argument("--limit", type=float, default=50)
    given = options.parse_args()
    worst = 0.0

    def row(what: str, found: list[float], counts: bool = True) -> None:
        nonlocal worst
        found.sort()
        worst = max(worst, found[-1]) if counts else worst
        middle, late = found[len(found) // 2], found[len(found) * 99 // 100]
        print(f"{what:34}{len(found):8}{middle:8.1f}{late:8.1f}{found[-1]:8.1f}", flush=True)

    with tempfile.TemporaryDirectory(prefix="ccp-bench-") as name, ExitStack() as stack:
        url = stack.enter_context(hostile_server())
        pool = Pool(Path(name), url, stack)
        own = [c for c in pool.world.fleets["iso2"].contracts if c.letter == "A"]
        turn = iter(range(1_000_000_000))

        def publish() -> None:
            assert pool.publish(orjson.dumps(own[next(turn) % len(own)].publication)) == 201
            time.sleep(0.2)

        print(f"{'milliseconds':34}{'asked':>8}{'p50':>8}{'p99':>8}{'worst':>8}")
        pool.waits(2, publish)
        row("publications alone", pool.waits(given.seconds, publish), counts=False)
        for kind in (*BEHAVIOURS, *SLOW):
            pool.webhooks([f"{url}/{kind}/{number}" for number in range(WEBHOOKS)])
            row(f"{WEBHOOKS} webhooks, {kind}", pool.waits(given.seconds, publish))
        pool.webhooks([])
        for kind, bodies in pool.evil.items():

            def refused(bodies: list[bytes] = bodies) -> None:
                status = pool.publish(bodies[next(turn) % len(bodies)])
                assert status == 503, status
                time.sleep(0.2)

            row(f"6 publications, OCSP and CRL, {kind}", pool.waits(given.seconds, refused))
    print(f"worst {worst:.1f} ms, limit {given.limit:g} ms, load of the machine {os.getloadavg()[0]:.1f}")
    return int(worst > given.limit)


if __name__ == "__main__":
    sys.exit(main())
