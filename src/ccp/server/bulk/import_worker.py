"""A worker process of an import: it checks lines as PUT does, and writes nothing.

It has a whole pool of its own: settings, trust anchors (taken over anew every second, as a server does), evidence from
the database, issuers that it has seen before. Only evidence that is missing is not fetched here: the process that
started it does that for all workers, so nobody is asked twice.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

import orjson
import structlog
from pydantic import StrictBool

from ccp.errors import CCPError, Unavailable
from ccp.ids import EMAID
from ccp.schemas.error_messages import error_messages
from ccp.schemas.json_bodies import read_body
from ccp.schemas.opnc import SignedContractData
from ccp.server import logging
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.parties import Caller
from ccp.server.external.outbound import OutboundClient
from ccp.server.external.services import ExternalServices
from ccp.server.pool.operations import Pool
from ccp.server.pool.peers import NoPeers
from ccp.server.runtime.background import BackgroundTasks
from ccp.server.runtime.clock import utc_now
from ccp.server.settings import Settings
from ccp.server.storage import connect
from ccp.server.storage.engine.time_limits import COMMANDS
from ccp.server.storage.queries.change_counters import ChangeCounter
from ccp.server.storage.snapshot_refresh import Snapshot, SnapshotRefresher
from ccp.server.trust.anchors import TrustStore
from ccp.server.trust.revocation import Pair, RevocationService
from ccp.x509.certificates import Certificate

_log = structlog.get_logger("ccp.server.bulk")


class ImportedLine(SignedContractData):
    """A body of PUT, and what an export says besides."""

    defaultContract: StrictBool | None = None


# --- What the processes tell each other ------------------------------------------------------------------------------


class Work(NamedTuple):
    """Lines to check. at: when; each line is a microsecond later than the one before, so that their order is kept.

    lines: None for one that is longer than a body may be.
    """

    number: int
    at: datetime
    lines: tuple[bytes | None, ...]


class Accepted(NamedTuple):
    """default: what the line says of it, None where it says nothing."""

    contract: SignedContract
    default: bool | None
    warnings: tuple[str, ...]


class Refused(NamedTuple):
    """emaid: as far as it is known. messages: as PUT tells them. again: it may be accepted another time."""

    emaid: str | None
    messages: tuple[str, ...]
    again: bool


class Done(NamedTuple):
    """What came of each line of a Work."""

    number: int
    outcomes: tuple[Accepted | Refused, ...]


class Wanted(NamedTuple):
    """Evidence for certificates: DER, each with its issuer's."""

    number: int
    at: datetime
    pairs: tuple[tuple[bytes, bytes], ...]


class Had(NamedTuple):
    """What could not be had, and why."""

    number: int
    failures: dict[tuple[str, int], Unavailable]


class Channel:
    """Messages between two processes of ours: four octets of length, then a pickle."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        return cls(*await asyncio.open_connection(sock=end))

    async def send(self, message: object) -> None:
        octets = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._writer.write(len(octets).to_bytes(4, "big") + octets)
        await self._writer.drain()

    async def receive(self) -> Any:
        """The next message, None when the other side has ended."""
        try:
            length = int.from_bytes(await self._reader.readexactly(4), "big")
            return pickle.loads(await self._reader.readexactly(length))  # noqa: S301  from a process of ours
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        self._writer.close()


# --- The worker ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is started with. settings: the effective values by name."""

    settings: dict[str, Any]
    caller: Caller


class _FetchedElsewhere(RevocationService):
    """Judges by what is stored; what is missing is asked for by the process that started this one."""

    _channel: Channel
    _asked: dict[int, asyncio.Future[dict[tuple[str, int], Unavailable]]]

    def over(self, channel: Channel) -> None:
        self._channel = channel
        self._asked = {}

    async def fetch_missing(
        self,
        missing: Iterable[Pair],
        at: datetime,
        *,
        watch: bool = True,
        timeout: float = 0.0,  # noqa: ASYNC109
        caller: str = "",
        max_asked: int = sys.maxsize,
    ) -> dict[tuple[str, int], Unavailable]:
        number = len(self._asked)
        answer: asyncio.Future[dict[tuple[str, int], Unavailable]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        pairs = tuple((certificate.der, issuer.der) for certificate, issuer in missing)
        await self._channel.send(Wanted(number, at, pairs))
        return await answer

    def had(self, answer: Had) -> None:
        self._asked[answer.number].set_result(answer.failures)


def pairs_of(wanted: Wanted) -> list[Pair]:
    return [(Certificate.load(certificate), Certificate.load(issuer)) for certificate, issuer in wanted.pairs]


def start(order: Order) -> tuple[Any, socket.socket]:
    """A worker process, and our end of the line to it."""
    ours, its = socket.socketpair()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # What takes a second to import is imported once for all workers.
    process = context.Process(target=_run, args=(its, order), daemon=True)
    process.start()
    its.close()
    return process, ours


_NICENESS = 10  # Checks of an import take what vehicles' requests leave, where both run on one machine.


def _run(end: socket.socket, order: Order) -> None:
    if sys.platform != "win32":
        os.nice(_NICENESS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The terminal tells all processes; ours is told by the other one.
    failed = False
    try:
        asyncio.run(_work(end, order))
    except* (KeyboardInterrupt, ConnectionError):
        pass  # The process that started this one has ended.
    except* Exception:
        _log.exception("import worker failed")
        failed = True
    if failed:
        sys.exit(1)


async def _work(end: socket.socket, order: Order) -> None:
    config = Settings(**order.settings)
    logging.configure(config)
    channel = await Channel.over(end)
    store = connect(config.database, limits=COMMANDS)
    trust = TrustStore(store)
    outbound = OutboundClient(config.egress_allow_networks)
    revocation = _FetchedElsewhere(store, outbound, config, utc_now)
    revocation.over(channel)
    pool = Pool(store, trust, revocation, NoPeers(), ExternalServices.from_settings(config, outbound), config)

    async def refresh_anchors() -> None:
        await trust.refresh()
        await revocation.issuers.refresh()

    refresher = SnapshotRefresher(store, Snapshot("anchors", (ChangeCounter.ANCHORS,), refresh_anchors))
    background = BackgroundTasks()
    await store.open()
    try:
        await refresher.refresh_all()
        refresher.supervise(background)
        # A chunk that comes to no result ends the worker, and that ends the import: else it would wait for ever.
        async with asyncio.TaskGroup() as group:
            tasks: set[asyncio.Task[None]] = set()
            while (message := await channel.receive()) is not None:
                if isinstance(message, Had):
                    revocation.had(message)
                else:
                    task = group.create_task(_check_all(pool, order.caller, config.max_body, message, channel))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            for task in tasks:
                task.cancel()
    finally:
        channel.close()
        await background.close()
        await outbound.close()
        await store.close()


async def _check_all(pool: Pool, caller: Caller, longest: int, work: Work, channel: Channel) -> None:
    check = partial(check_line, pool, caller, longest)
    at = (work.at + timedelta(microseconds=place) for place in range(len(work.lines)))
    outcomes = await asyncio.gather(*map(check, work.lines, at))
    await channel.send(Done(work.number, tuple(outcomes)))


async def check_line(
    pool: Pool, caller: Caller, longest: int, octets: bytes | None, at: datetime
) -> Accepted | Refused:
    """Check one line as a PUT with this body would be. longest: octets that a body may have."""
    if octets is None:
        return Refused(None, (f"The body is larger than {longest} octets.",), False)
    try:
        body = read_body(ImportedLine, octets)
        ready = await pool.publication.validate(
            caller,
            emaid=body.emaid,
            pcid=body.pcid,
            namespace=body.xsdMsgDefNamespace,
            message=body.certificateInstallationRes,
            root=body.cpsV2GRootCertificateFingerprint,
            metadata=body.metaData,
            now=at,
        )
    except CCPError as exc:
        return Refused(_emaid_said(octets), error_messages(exc), isinstance(exc, Unavailable))
    except Exception:
        # A mistake of ours; PUT would answer 500, and the other lines are no worse for it.
        _log.exception("line not checked")
        return Refused(_emaid_said(octets), ("Something went wrong here; the log says what.",), False)
    return Accepted(ready.contract, body.defaultContract, ready.warnings)


def _emaid_said(octets: bytes) -> str | None:
    """The EMAID of a line that was refused, if it names one: for the report, so that it finds its owner."""
    try:
        said = orjson.loads(octets)["emaid"]
        return EMAID.parse(said)
    except (ValueError, KeyError, TypeError, CCPError):
        return None
