"""Messages between an import and its worker processes, and the channel that carries them."""

from __future__ import annotations

import asyncio
import pickle
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from ccp.errors import Unavailable
from ccp.server.domain.contracts import SignedContract
from ccp.server.domain.parties import Caller
from ccp.x509.revocation_evidence import CertificateKey


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """The configuration of a worker process. settings: the effective values by name. caller: who publishes."""

    settings: dict[str, Any]
    caller: Caller


class Batch(NamedTuple):
    """Lines to check.

    now: the time of the first line; each later line counts as one microsecond later, which keeps their order. lines:
    None for a line that is longer than `max_body`.
    """

    number: int
    now: datetime
    lines: tuple[bytes | None, ...]


class AcceptedLine(NamedTuple):
    """A line with a valid contract. default: the member defaultContract of the line, None if it has none."""

    contract: SignedContract
    default: bool | None
    warnings: tuple[str, ...]


class RejectedLine(NamedTuple):
    """A line that was refused.

    emaid: None if the line names no valid one. messages: the sentences that a PUT would return. retryable: whether the
    cause is temporary.
    """

    emaid: str | None
    messages: tuple[str, ...]
    retryable: bool


class BatchResult(NamedTuple):
    """The outcome of each line of a batch, in order."""

    number: int
    outcomes: tuple[AcceptedLine | RejectedLine, ...]


class EvidenceRequest(NamedTuple):
    """A worker asks the import to fetch revocation status. pairs: DER of each certificate and of its issuer."""

    number: int
    now: datetime
    pairs: tuple[tuple[bytes, bytes], ...]


class EvidenceResult(NamedTuple):
    """The answer to an EvidenceRequest. failures: errors by certificate (issuer and serial number).

    Status that was fetched is in the database.
    """

    number: int
    failures: dict[CertificateKey, Unavailable]


class Channel:
    """Carries messages between two processes of this program: four bytes of length (big endian), then a pickle."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        """The channel over one end of a socket pair."""
        return cls(*await asyncio.open_connection(sock=end))

    async def send(self, message: object) -> None:
        """Raises ConnectionError."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._writer.write(len(data).to_bytes(4, "big") + data)
        await self._writer.drain()

    async def receive(self) -> Any:
        """The next message. Returns None if the other process has ended."""
        try:
            length = int.from_bytes(await self._reader.readexactly(4), "big")
            return pickle.loads(await self._reader.readexactly(length))  # noqa: S301  from a process of this program
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        """Close this end; the other process receives None."""
        self._writer.close()
