"""A process that streams an audit trail until it is killed: DATABASE, then settings as JSON. One of several workers."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ccp.server.audit.stream import AuditStream
from ccp.server.audit.stream_receivers import receiver_of
from ccp.server.external.outbound import OutboundClient
from ccp.server.metrics import Metrics
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.runtime.clock import utc_now
from ccp.server.settings import Settings
from ccp.server.storage import connect
from tests.databases import sql

LEASE = 3.0  # Longer than a busy machine stops a process for, so that only a kill makes a seam.
INTERVAL = 0.02
PER_LANE = 2


async def stream(database: str, settings: dict[str, Any], ended: asyncio.Event) -> None:
    config = Settings(database=database, **settings)
    store, outbound, background = connect(database, 4), OutboundClient(), BackgroundTasks()
    await store.open()
    assert config.audit_stream is not None
    streaming = AuditStream(
        store, receiver_of(config, outbound), config.audit_stream, utc_now, Metrics(),
        lease=LEASE, interval=INTERVAL, per_lane=PER_LANE,
    )  # fmt: skip
    background.add(streaming.task())
    try:
        await ended.wait()
    finally:
        await background.close()
        await streaming.close()
        await outbound.close()
        await store.close()


@contextmanager
def in_this_process(url: str, **settings: Any) -> Iterator[None]:
    """The same in a thread, which ends in order."""
    loop, ended = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(stream(url, settings, ended)))
    thread.start()
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
        loop.close()


def confirmed(url: str) -> int:
    return int(sql(url, "select coalesce(sum(number), 0) from audit_stream_position")[0][0])


if __name__ == "__main__":
    asyncio.run(stream(sys.argv[1], json.loads(sys.argv[2]), asyncio.Event()))
