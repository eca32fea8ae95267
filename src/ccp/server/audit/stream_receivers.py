"""Receivers of the audit trail's stream: a file, a syslog receiver, a webhook.

Each `send` returns when the receiver has the rows, and raises `StreamError` otherwise; then all of them are sent again.
File and syslog block, so they run in a thread of their own, one call at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hmac
import json
import os
import select
import socket
import ssl
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from ccp.errors import CCPError, Unavailable
from ccp.schemas.timestamps import rfc3339
from ccp.server.audit.export import FORMAT
from ccp.server.external.client_tls import ClientTLS
from ccp.server.external.outbound import OutboundClient, OutboundError
from ccp.server.runtime.blocking_calls import BlockingCalls
from ccp.server.runtime.private_files import fsync_path, refusal
from ccp.server.settings import Settings
from ccp.server.settings.audit import syslog_address
from ccp.server.storage.queries.audit import AuditRow

SEND_TIMEOUT: Final = 8.0
_MAX_TAIL: Final = 1 << 20  # Bytes of a file's last, torn line. No line is longer.
_MAX_RESPONSE_BYTES: Final = 16_384


class StreamError(CCPError):
    """The receiver has not confirmed the rows. The message is for the operator."""

    outcome = "audit_stream"


class Receiver(Protocol):
    """A receiver of rows."""

    async def send(self, rows: Sequence[AuditRow]) -> None:
        """Send rows and wait until the receiver has them. Raises StreamError."""

    async def close(self) -> None:
        """Release what keeps other processes out. A later `send` takes it again."""


def receiver_of(config: Settings, outbound: OutboundClient) -> Receiver:
    """The receiver that the settings name."""
    tls = ClientTLS(config.audit_stream_ca, config.audit_stream_tls_cert, config.audit_stream_tls_key)
    if config.audit_stream == "file" and config.audit_stream_file is not None:
        return FileReceiver(config.audit_stream_file)
    if config.audit_stream == "syslog" and config.audit_stream_syslog is not None:
        return SyslogReceiver(config.audit_stream_syslog, tls)
    assert config.audit_stream_url is not None, "checked with the settings"
    assert config.audit_stream_secret is not None, "checked with the settings"
    secret = config.audit_stream_secret.get_secret_value()
    return WebhookReceiver(config.audit_stream_url, secret, tls, outbound)


def line_of(row: AuditRow) -> str:
    """The row as JSON in ASCII, with the members of `ccp audit export`."""
    return json.dumps(row.members(), separators=(",", ":"))


class FileReceiver:
    """Appends JSON lines to a file, and flushes it to disk.

    The file is opened anew when its name leads to another one (rotation). A lock on it keeps other processes out. Rows
    that were written while the file was renamed are written to its successor too. A line that a crash has torn is cut
    off; it was not confirmed.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._calls: Final = BlockingCalls("writing of the audit stream", max_threads=1, timeout=SEND_TIMEOUT)
        self._descriptor: int | None = None

    async def send(self, rows: Sequence[AuditRow]) -> None:
        """See `Receiver.send`."""
        data = "".join(f"{line_of(row)}\n" for row in rows).encode()
        try:
            await self._calls.run(self._append, data)
        except OSError as exc:
            raise StreamError(f"{self._path} cannot be written: {exc.strerror or exc}.") from exc
        except Unavailable as exc:
            raise StreamError(str(exc)) from exc

    async def close(self) -> None:
        """See `Receiver.close`."""
        with contextlib.suppress(OSError, Unavailable):
            await self._calls.run(self._close)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _append(self, data: bytes) -> None:
        while True:
            descriptor = self._opened()
            size = os.fstat(descriptor).st_size
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
            if self._is_current(descriptor):
                return

    def _opened(self) -> int:
        if self._descriptor is not None:
            if self._is_current(self._descriptor):
                return self._descriptor
            self._close()
        if (reason := refusal(self._path)) is not None:
            raise OSError(errno.EINVAL, reason)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._path, flags, 0o600)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise OSError(exc.errno, "another process writes it") from exc
            _cut_torn_line(descriptor)
            fsync_path(self._path.parent)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return descriptor

    def _is_current(self, descriptor: int) -> bool:
        try:
            named = self._path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(named, os.fstat(descriptor))


def _cut_torn_line(descriptor: int) -> None:
    """Cut off what follows the last newline."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - _MAX_TAIL)
    tail = os.pread(descriptor, size - start, start)
    if not tail or tail.endswith(b"\n"):
        return
    end = tail.rfind(b"\n")
    if end < 0 and start:
        raise OSError(errno.EINVAL, "it does not end with a line of the stream")
    os.ftruncate(descriptor, start + end + 1)


_HANDSHAKE_WAIT: Final = 1.0  # Seconds.


class SyslogReceiver:
    """Sends RFC 5424 messages with the length before each (RFC 6587 clause 3.4.1; over TLS RFC 5425).

    Syslog has no acknowledgement. So every batch has a connection of its own: this side closes its direction, and waits
    until the receiver closes the other one. A receiver that ends with data it has not read resets the connection
    instead. So the end of the stream shows that the receiver has read everything.
    """

    def __init__(self, address: str, tls: ClientTLS) -> None:
        """address: see `ccp.server.settings.audit.syslog_address`."""
        self._address: Final = address
        self._scheme, self._host, self._port = syslog_address(address)
        self._tls: Final = tls
        self._calls: Final = BlockingCalls("sending of the audit stream", max_threads=1, timeout=SEND_TIMEOUT + 1)

    async def send(self, rows: Sequence[AuditRow]) -> None:
        """See `Receiver.send`."""
        data = b"".join(b"%d %s" % (len(message), message) for message in map(syslog_message, rows))
        try:
            await self._calls.run(self._deliver, data)
        except TimeoutError as exc:
            raise StreamError(f"{self._address} did not take the rows within {SEND_TIMEOUT:g} seconds.") from exc
        except OSError as exc:
            raise StreamError(f"{self._address} did not take the rows: {exc.strerror or exc}.") from exc
        except Unavailable as exc:
            raise StreamError(str(exc)) from exc

    async def close(self) -> None:
        """See `Receiver.close`: no connection outlives a batch."""

    def _deliver(self, data: bytes) -> None:
        deadline = time.monotonic() + SEND_TIMEOUT
        with self._connected() as plain:
            if self._scheme == "tls":
                with self._tls.context().wrap_socket(plain, server_hostname=self._host) as connection:
                    _check_handshake(connection, deadline)
                    _send(connection, data, deadline)
                    _finish_tls(connection, deadline)
            else:
                _send(plain, data, deadline)
                plain.shutdown(socket.SHUT_WR)
                _read_to_end(plain, deadline)

    def _connected(self) -> socket.socket:
        if self._scheme != "unix":
            return socket.create_connection((self._host, self._port), timeout=SEND_TIMEOUT)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(SEND_TIMEOUT)
        try:
            connection.connect(self._host)
        except OSError as exc:
            connection.close()
            if exc.errno == errno.EPROTOTYPE:
                raise OSError(exc.errno, "it is a datagram socket, which cannot confirm anything") from exc
            raise
        return connection


def _left(deadline: float) -> float:
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


def _check_handshake(connection: ssl.SSLSocket, deadline: float) -> None:
    """Wait for what a TLS 1.3 server sends after it has verified the client's certificate. Raises OSError.

    The client's part of the handshake ends before. Then a server sends an alert if it refuses the client, and otherwise
    session tickets, as most do. Without this, an alert that arrives at the end would look like an orderly end. A server
    that sends neither is waited for `_HANDSHAKE_WAIT` seconds. Source: RFC 8446 clauses 4.4.4 and 4.6.1.
    """
    if connection.version() != "TLSv1.3":
        return
    if not connection.pending():
        select.select([connection], [], [], min(_left(deadline), _HANDSHAKE_WAIT))
    connection.settimeout(0)
    try:
        if not connection.recv(1):
            raise ConnectionResetError(errno.ECONNRESET, "it closed the connection before the first row")
    except ssl.SSLWantReadError:
        return  # Tickets, or nothing yet.


def _send(connection: socket.socket, data: bytes, deadline: float) -> None:
    connection.settimeout(_left(deadline))
    connection.sendall(data)


def _read_to_end(connection: socket.socket, deadline: float) -> None:
    """Read until the other side has closed. Raises ConnectionResetError if it has not read everything."""
    while True:
        connection.settimeout(_left(deadline))
        if not connection.recv(4096):
            return


def _finish_tls(connection: ssl.SSLSocket, deadline: float) -> None:
    """End the TLS connection, and wait for the receiver's end: its close_notify, or the end of its TCP stream.

    An alert, such as one about the client certificate, raises.
    """
    connection.settimeout(_left(deadline))
    try:
        connection.unwrap()  # The receiver answers it after it has read all records before.
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        return  # It closed after it had read everything; unread data would have reset the connection.
    except OSError as exc:
        if type(exc) is OSError and exc.errno == 0:  # The same, as OpenSSL reports an end without close_notify.
            return
        raise


_FACILITY: Final = 13 << 3  # "log audit", RFC 5424 clause 6.2.1.
_INFORMATIONAL: Final = 6
_NOTICE: Final = 5
_MAX_MSGID: Final = 32


def syslog_message(row: AuditRow) -> bytes:
    """A row as an RFC 5424 message: MSGID is the action, MSG the JSON of the row. Refusals have the severity notice."""
    severity = _INFORMATIONAL if row.outcome == "ok" else _NOTICE
    name = "".join(letter for letter in row.action if "!" <= letter <= "~")[:_MAX_MSGID] or "-"
    host = "".join(letter for letter in socket.gethostname() if "!" <= letter <= "~")[:255] or "-"
    head = f"<{_FACILITY | severity}>1 {rfc3339(row.when)} {host} opnc-ccp {os.getpid()} {name} - "
    return f"{head}{line_of(row)}".encode()


class WebhookReceiver:
    """Posts rows as JSON, signed with HMAC-SHA256 over the body. A 2xx confirms them; redirects are not followed."""

    def __init__(self, url: str, secret: str, tls: ClientTLS, outbound: OutboundClient) -> None:
        self._url: Final = url
        self._secret: Final = secret
        self._tls: Final = tls
        self._outbound: Final = outbound

    async def send(self, rows: Sequence[AuditRow]) -> None:
        """See `Receiver.send`."""
        body = b'{"format":"%s","rows":[%s]}' % (FORMAT.encode(), b",".join(line_of(row).encode() for row in rows))
        signature = hmac.digest(self._secret.encode(), body, "sha256").hex()
        headers = {"Content-Type": "application/json", "X-Operator-Signature": f"sha256={signature}"}
        try:
            response = await self._outbound.request(
                "POST", self._url, block_private=False, headers=headers, content=body, timeout=SEND_TIMEOUT,
                max_bytes=_MAX_RESPONSE_BYTES, truncate=True, tls=self._tls,
            )  # fmt: skip
        except OutboundError as exc:
            raise StreamError(str(exc)) from exc
        if not 200 <= response.status < 300:
            raise StreamError(f"The webhook answered {response.status}.")

    async def close(self) -> None:
        """See `Receiver.close`: the outbound client belongs to the pool."""
