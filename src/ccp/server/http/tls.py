"""TLS: the context, and an acceptor that counts a connection before its handshake.

An event loop calls `connection_made` after the TLS handshake. Until then a client costs a file descriptor and some
60 KiB, and no limit applies to it. So this module accepts the sockets itself and counts them before the handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias, cast

import structlog
from cryptography import x509
from uvicorn import Config

from ccp.server.http.listeners import open_listeners
from ccp.server.runtime import start_files

if TYPE_CHECKING or sys.platform == "win32":
    from asyncio import SelectorEventLoop as BaseLoop
else:
    from uvloop import Loop as BaseLoop

_log = structlog.get_logger("ccp.request")

HANDSHAKE_TIMEOUT: Final = 10.0
SHUTDOWN_TIMEOUT: Final = 2.0
_ACCEPTS_AT_ONCE: Final = 16  # Few enough that workers share a burst, and that the event loop does other work.
_RETRY_DELAY: Final = 0.5


class AcceptedProtocol(Protocol):
    """An asyncio protocol that learns of its connection before the TLS handshake."""

    def accepted(self, accepted: socket.socket, address: str | None) -> None:
        """Called when the handshake begins. Shutting the socket down ends it."""

    def handshake_failed(self) -> None:
        """Called when the handshake failed. `connection_made` will not be called."""


class ServedCertificate(NamedTuple):
    """The certificate that a server presents. file: its name, without the folder."""

    file: str
    not_after: datetime


class Loop(BaseLoop):
    """uvicorn's event loop with the acceptor for TLS, and several listeners without TLS.

    certificate: that of new TLS connections; None without TLS.
    """

    certificate: ServedCertificate | None = None

    _acceptor: Acceptor | None = None
    _named_early: TLSFiles | None = None

    def reload_tls(self, files: TLSFiles) -> None:
        """Load the TLS files for new connections, now or when the server begins to listen. Nothing without TLS."""
        if self._acceptor is not None:
            self._acceptor.reload(files)
        else:
            self._named_early = files

    async def create_server(self, protocol_factory: Any, *args: Any, **options: Any) -> Any:
        context = options.pop("ssl", None)
        backlog = options.get("backlog", 100)
        if context is None:
            create = super().create_server
            first = await create(protocol_factory, *args, **options)
            if sys.platform == "win32":
                return first
            return await open_listeners(first, lambda copy: create(protocol_factory, sock=copy, backlog=backlog))
        given: socket.socket | None = options.get("sock")
        if given is not None:
            listening = [given]
        else:  # The event loop binds, because it can resolve a host name.
            bound = await super().create_server(protocol_factory, *args, **options, start_serving=False)
            listening = [socket.socket(fileno=os.dup(socket_.fileno())) for socket_ in bound.sockets]
            bound.close()
        acceptor = Acceptor(self, protocol_factory, context, listening)
        if self._named_early is not None:
            acceptor.reload(self._named_early)
        acceptor.start(backlog)
        self._acceptor = acceptor
        return acceptor


class Acceptor:
    """Accepts TLS connections: the part of `asyncio.Server` that uvicorn uses."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], AcceptedProtocol],
        context: ssl.SSLContext,
        listening: list[socket.socket],
    ) -> None:
        self.sockets: Final = listening
        self._loop: Final = loop
        self._protocol_factory: Final = protocol_factory
        self._context = context
        self._handshakes: dict[asyncio.Task[None], socket.socket] = {}
        self._watcher = CertificateWatcher(loop, context, self._use) if isinstance(context, FileContext) else None
        self._closed = False
        self._use(context)

    def start(self, backlog: int) -> None:
        """Start to listen."""
        for listening in self.sockets:
            listening.setblocking(False)
            listening.listen(backlog)
            self._listen(listening)
        if self._watcher is not None:
            self._watcher.start()

    def reload(self, files: TLSFiles) -> None:
        """Load the files of a `FileContext` now. Connections in use keep their certificate."""
        if self._watcher is not None:
            self._watcher.reload(files)

    def _use(self, context: ssl.SSLContext) -> None:
        """Use a context for new connections."""
        self._context = context
        if isinstance(self._loop, Loop) and isinstance(context, FileContext):
            self._loop.certificate = ServedCertificate(context.files.certificate.name, context.not_after)

    def _listen(self, listening: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                accepted, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return  # Another worker accepted it, or the client disconnected.
            except OSError as exc:
                # No file descriptor or memory is left. The connection stays in the backlog, so the loop would spin.
                _log.warning("connection not accepted", reason=exc.strerror)
                self._loop.remove_reader(listening)
                self._loop.call_later(_RETRY_DELAY, self._listen, listening)
                return
            accepted.setblocking(False)
            address = str(peer[0]) if isinstance(peer, tuple) else None
            protocol = self._protocol_factory()
            protocol.accepted(accepted, address)
            task = self._loop.create_task(self._secure(protocol, accepted))
            self._handshakes[task] = accepted
            task.add_done_callback(self._handshakes.pop)

    async def _secure(self, protocol: AcceptedProtocol, accepted: socket.socket) -> None:
        done = False
        try:
            await self._loop.connect_accepted_socket(
                lambda: cast(asyncio.Protocol, protocol),
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT,
            )
            done = True
        except OSError:
            pass  # The client disconnected, was too slow, or did not agree on TLS parameters.
        finally:
            if not done:
                protocol.handshake_failed()

    def close(self) -> None:
        """Stop accepting, and end the handshakes in progress."""
        if self._closed:
            return
        self._closed = True
        if self._watcher is not None:
            self._watcher.stop()
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            listening.close()
        for accepted in self._handshakes.values():
            shut_down(accepted)

    async def wait_closed(self) -> None:
        """Wait until all handshakes have ended."""
        if self._handshakes:
            await asyncio.wait(self._handshakes)


def shut_down(accepted: socket.socket) -> None:
    """End a connection that has no transport yet: its reader gets the end of the stream."""
    with contextlib.suppress(OSError):
        accepted.shutdown(socket.SHUT_RDWR)


class TLSFiles(NamedTuple):
    """The PEM files of a TLS context. client_ca: CAs of client certificates."""

    certificate: Path
    key: Path | None
    client_ca: Path | None


FileStates: TypeAlias = tuple[start_files.FileState | None, ...]


def state_of(files: TLSFiles) -> FileStates:
    """Identity, size and time of each file; None for one that cannot be read. Symbolic links are followed."""
    return tuple(start_files.state_of(path) for path in files if path is not None)


class FileContext(ssl.SSLContext):
    """A TLS context that knows its files, and how to make its successor from these or others.

    state: of the files before they were read, see `state_of`.
    """

    files: TLSFiles
    state: FileStates
    not_after: datetime
    successor: Callable[[TLSFiles], FileContext]
    """Returns a new context with files as they are now. Raises OSError."""


def usable_certificate(certificate: Path, key: Path | None) -> x509.Certificate:
    """Return the server's certificate of two PEM files that can be used now.

    Raises OSError for files that cannot be read, are not PEM, or do not belong together; ValueError for an encrypted
    key, and for a certificate that cannot be parsed, has expired, or is not valid yet.
    """
    _load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
    leaf = x509.load_pem_x509_certificate(start_files.read(certificate))
    now = datetime.now(UTC)
    if leaf.not_valid_after_utc < now:
        raise ValueError(f"the certificate expired on {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if leaf.not_valid_before_utc > now:
        raise ValueError(f"the certificate is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC")
    return leaf


def _load_pair(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    with ExitStack() as files:
        key_file = None if key is None else files.enter_context(start_files.file_for_openssl(key))
        context.load_cert_chain(files.enter_context(start_files.file_for_openssl(certificate)), key_file, _no_password)


def _no_password() -> str:
    """Asked for the password of an encrypted key, which OpenSSL would otherwise ask for on the terminal, and wait."""
    raise ValueError("the private key is encrypted; the server needs one without a password")


def failure_of(exc: OSError | ValueError) -> str:
    """Why TLS files cannot be used, as the end of a sentence without its full stop."""
    return (isinstance(exc, OSError) and exc.strerror) or str(exc)


class CertificateWatcher:
    """Makes a new TLS context when the files have changed, in each worker, without dropping a connection.

    Files cannot be replaced at the same instant, so a change counts when the files have stayed the same for one
    interval. Unusable files are logged once, and the context in use stays as it is.
    """

    INTERVAL: ClassVar[float] = 2.0
    """Seconds between two looks at the files."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: FileContext, use: Callable[[FileContext], None]
    ) -> None:
        """use: called with each new context."""
        self._loop: Final = loop
        self._context = context
        self._files = context.files
        self._use: Final = use
        self._tried = self._seen = context.state  # The files may have changed since the context was made.
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._timer = self._loop.call_later(self.INTERVAL, self._look)

    def stop(self) -> None:
        """Stop to watch."""
        if self._timer is not None:
            self._timer.cancel()

    def reload(self, files: TLSFiles) -> None:
        """Load the files now. Unusable ones are watched from now on too; the context in use stays as it is."""
        self._files = files
        self._tried = self._seen = state_of(files)
        self._renew()

    def _look(self) -> None:
        self.start()
        state = state_of(self._files)
        if state == self._seen and state != self._tried:
            self._tried = state
            self._renew()
        self._seen = state

    def _renew(self) -> None:
        file = str(self._files.certificate)
        try:
            leaf = usable_certificate(self._files.certificate, self._files.key)
            self._context = self._context.successor(self._files)
        except (OSError, ValueError) as exc:
            _log.error("tls certificate not reloaded", file=file, reason=failure_of(exc))
            return
        self._use(self._context)
        _log.info("tls certificate reloaded", file=file, valid_until=str(leaf.not_valid_after_utc))


def tls_context(config: Config, default: object) -> FileContext:
    """Return the TLS context: TLS 1.2 or 1.3; in 1.2 only cipher suites with forward secrecy and AEAD.

    Source: RFC 9325 clauses 3.1 and 4.2; BSI TR-02102-2 for the same choice.
    """
    if config.ssl_certfile is None:
        raise RuntimeError("the server has no certificate")
    key, client_ca = (Path(name) if name else None for name in (config.ssl_keyfile, config.ssl_ca_certs))
    return _file_context(TLSFiles(Path(config.ssl_certfile), key, client_ca), ssl.VerifyMode(config.ssl_cert_reqs))


def _file_context(files: TLSFiles, verify_mode: ssl.VerifyMode) -> FileContext:
    context = FileContext(ssl.PROTOCOL_TLS_SERVER)
    context.files, context.state = files, state_of(files)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # TLS 1.3 has its own list, which is secure.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    context.verify_mode = verify_mode
    if files.client_ca is not None:
        with start_files.file_for_openssl(files.client_ca) as name:
            context.load_verify_locations(name)
    _load_pair(context, files.certificate, files.key)
    context.successor = partial(_file_context, verify_mode=verify_mode)
    context.not_after = x509.load_pem_x509_certificate(start_files.read(files.certificate)).not_valid_after_utc
    return context
