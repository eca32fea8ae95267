"""A worker process of an import: it checks lines as a PUT does, and writes nothing.

It has a pool of its own: settings, trust anchors (refreshed every second, as in a server), revocation status from the
database, and a cache of issuers. Missing revocation status is fetched by the process that started the worker, for all
workers together, so no responder is queried twice.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import orjson
import structlog
from pydantic import StrictBool

from ccp.errors import CCPError, Unavailable
from ccp.ids import EMAID
from ccp.schemas.error_messages import error_messages
from ccp.schemas.json_bodies import read_body
from ccp.schemas.publication import SignedContractDataOrXML
from ccp.server import logging
from ccp.server.bulk.messages import (
    AcceptedLine,
    Batch,
    BatchResult,
    Channel,
    EvidenceRequest,
    EvidenceResult,
    RejectedLine,
    WorkerConfig,
)
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
from ccp.server.trust.revocation import RevocationService
from ccp.server.trust.revocation_fetcher import IssuerPair
from ccp.x509.certificates import Certificate
from ccp.x509.revocation_evidence import CertificateKey

_log = structlog.get_logger("ccp.server.bulk")

_NICENESS: Final = 10  # On a machine that also serves, checks of an import use what vehicles' requests leave.


class ImportedLine(SignedContractDataOrXML):
    """A line of an import: a body of PUT in either dialect, and a member that an export adds."""

    defaultContract: StrictBool | None = None


class RemoteEvidence(RevocationService):
    """Evaluates stored revocation status; missing status is fetched by the process that started this one."""

    _channel: Channel
    _requests: dict[int, asyncio.Future[dict[CertificateKey, Unavailable]]]

    def connect(self, channel: Channel) -> None:
        """Use this channel for requests. Call it before anything else."""
        self._channel = channel
        self._requests = {}

    async def fetch_missing(
        self,
        missing: Iterable[IssuerPair],
        at: datetime,
        *,
        watch: bool = True,
        timeout: float = 0.0,  # noqa: ASYNC109
        caller: str = "",
        max_asked: int = sys.maxsize,
    ) -> dict[CertificateKey, Unavailable]:
        """Have the status of certificates fetched. Returns the failures."""
        number = len(self._requests)
        result: asyncio.Future[dict[CertificateKey, Unavailable]] = asyncio.get_running_loop().create_future()
        self._requests[number] = result
        pairs = tuple((certificate.der, issuer.der) for certificate, issuer in missing)
        await self._channel.send(EvidenceRequest(number, at, pairs))
        return await result

    def complete(self, result: EvidenceResult) -> None:
        """Take the result of a request from the channel."""
        self._requests[result.number].set_result(result.failures)


def pairs_of(request: EvidenceRequest) -> list[IssuerPair]:
    """The certificates of a request, each with its issuer's."""
    return [(Certificate.load(certificate), Certificate.load(issuer)) for certificate, issuer in request.pairs]


def start(config: WorkerConfig) -> tuple[Any, socket.socket]:
    """Start a worker process. Returns the process and this side's end of its socket pair."""
    ours, its = socket.socketpair()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # Imports take a second; the fork server makes them once.
    process = context.Process(target=_run, args=(its, config), daemon=True)
    process.start()
    its.close()
    return process, ours


def _run(end: socket.socket, config: WorkerConfig) -> None:
    if sys.platform != "win32":
        os.nice(_NICENESS)
    # The terminal sends SIGINT to all processes; this one is stopped by the process that started it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    failed = False
    try:
        asyncio.run(_work(end, config))
    except* (KeyboardInterrupt, ConnectionError):
        pass  # The process that started this one has ended.
    except* Exception:
        _log.exception("import worker failed")
        failed = True
    if failed:
        sys.exit(1)


async def _work(end: socket.socket, worker: WorkerConfig) -> None:
    """Check batches until the channel is closed."""
    config = Settings(**worker.settings)
    logging.configure(config)
    channel = await Channel.over(end)
    store = connect(config.database, limits=COMMANDS, secrets_key_file=config.secrets_key_file)
    trust = TrustStore(store)
    outbound = OutboundClient(config.egress_allow_networks)
    revocation = RemoteEvidence(store, outbound, config, utc_now)
    revocation.connect(channel)
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
        # A batch without a result ends the worker, and that ends the import. Otherwise the import would wait for ever.
        async with asyncio.TaskGroup() as group:
            tasks: set[asyncio.Task[None]] = set()
            while (message := await channel.receive()) is not None:
                if isinstance(message, EvidenceResult):
                    revocation.complete(message)
                else:
                    task = group.create_task(_check_batch(pool, worker.caller, config.max_body, message, channel))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            for task in tasks:
                task.cancel()
    finally:
        channel.close()
        await background.close()
        await outbound.close()
        await store.close()


async def _check_batch(pool: Pool, caller: Caller, max_bytes: int, batch: Batch, channel: Channel) -> None:
    """Check the lines of a batch concurrently and send the result."""
    check = partial(check_line, pool, caller, max_bytes)
    times = (batch.now + timedelta(microseconds=place) for place in range(len(batch.lines)))
    outcomes = await asyncio.gather(*map(check, batch.lines, times))
    await channel.send(BatchResult(batch.number, tuple(outcomes)))


async def check_line(
    pool: Pool, caller: Caller, max_bytes: int, line: bytes | None, now: datetime
) -> AcceptedLine | RejectedLine:
    """Check one line as a PUT with this body would. line: JSON; None if it is longer than `max_bytes`."""
    if line is None:
        return RejectedLine(None, (f"The body is larger than {max_bytes} bytes.",), False)
    try:
        body = read_body(ImportedLine, line)
        validated = await pool.publication.validate(
            caller,
            emaid=body.emaid,
            pcid=body.pcid,
            namespace=body.xsdMsgDefNamespace,
            message=body.message,
            root=body.cpsV2GRootCertificateFingerprint,
            metadata=body.metaData,
            now=now,
        )
    except CCPError as exc:
        return RejectedLine(_claimed_emaid(line), error_messages(exc), isinstance(exc, Unavailable))
    except Exception:
        # A defect of the pool. PUT would answer 500; the other lines are not affected.
        _log.exception("line not checked")
        return RejectedLine(_claimed_emaid(line), ("Something went wrong here; the log says what.",), False)
    return AcceptedLine(validated.contract, body.defaultContract, validated.warnings)


def _claimed_emaid(line: bytes) -> str | None:
    """The EMAID that a rejected line names, for the report; None if it names no valid one."""
    try:
        return EMAID.parse(orjson.loads(line)["emaid"])
    except (ValueError, KeyError, TypeError, CCPError):
        return None
