"""The two faces of the client: blocking and not. They do the I/O of a conversation and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

import httpcore

from ccp.client.errors import ClientError, MalformedAnswerError, NoAnswerError
from ccp.client.model import Credentials, Limits
from ccp.client.operations import CALLS, Answer, Call, Calls, Dialect
from ccp.client.session import Authorise, Conversation, Exchange, Pause, Step, Steps
from ccp.errors import ConfigurationError
from ccp.schemas.common import Routing

P = ParamSpec("P")
T = TypeVar("T")

_KEEPALIVE: Final = 15.0


@dataclass(frozen=True, slots=True)
class TLS:
    """ca_file: CAs of the pool's certificate, PEM; the system's if not given. certificate, key: the client's own, PEM.

    verify: False takes any certificate: laboratories only.
    """

    ca_file: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    password: str | None = field(default=None, repr=False)
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Raises ConfigurationError."""
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
            if self.certificate is not None:
                context.load_cert_chain(str(self.certificate), self.key and str(self.key), self.password)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigurationError(f"The TLS certificates cannot be used: {exc}.") from exc
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def _blocking(
    build: Callable[Concatenate[Calls, P], Call[T]],
) -> Callable[Concatenate[Client, P], T]:
    """A method of the blocking face: what the operation of that name is for."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call: Call[T] = getattr(self._calls, build.__name__)(*args, **kwargs)
        return self._run(self._conversation.call(call))

    functools.update_wrapper(method, build)
    return method


def _awaitable(
    build: Callable[Concatenate[Calls, P], Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The same to be awaited."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call: Call[T] = getattr(self._calls, build.__name__)(*args, **kwargs)
        return await self._run(self._conversation.call(call))

    functools.update_wrapper(method, build)
    return method


class _Face:
    def __init__(
        self,
        base_url: str,
        *,
        credentials: Credentials | None = None,
        token: str | None = None,
        dialect: Dialect = Dialect.OPNC,
        routing: Routing = Routing(),
        limits: Limits = Limits(),
        tls: TLS | ssl.SSLContext = TLS(),
        proxy: str | None = None,
    ) -> None:
        """base_url: what comes before `/opnc/v1/ccp` or `/v1/ccp`.

        credentials: to get access tokens with; or token: one that somebody else renews. proxy: address of an HTTP
        proxy. Raises ConfigurationError.
        """
        access = credentials if credentials is not None else token
        if access is None or (credentials is not None and token is not None):
            raise ConfigurationError("A client needs either credentials or a token.")
        if isinstance(access, str) and not (access.isascii() and access.isprintable() and access and " " not in access):
            raise ConfigurationError("The token is not one that can be sent.")
        routing.headers()  # Raises FieldError at once.
        self._calls = CALLS[dialect](routing)
        self._limits = limits
        self._conversation = Conversation(
            base_url, access, limits, clock=time.monotonic, wall_clock=time.time, chance=random.random
        )
        urls = (base_url, proxy, None if credentials is None else credentials.token_url)
        options: dict[str, Any] = {
            # Reading the system's CAs takes a while, and who calls over plain HTTP has no use for them.
            "ssl_context": None if tls == TLS() and not _needs_tls(urls) else _context(tls),
            "max_connections": limits.connections,
            "keepalive_expiry": _KEEPALIVE,
            "retries": 0,
        }
        if proxy is not None:
            options["proxy"] = httpcore.Proxy(proxy)
        self._open(options)

    def _open(self, options: dict[str, Any]) -> None:
        raise NotImplementedError

    def _answer(self, response: httpcore.Response, body: bytes) -> Answer:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise MalformedAnswerError("The answer is compressed, which was not asked for.", status=response.status)
        return Answer(response.status, headers, body)

    def _too_large(self, response: httpcore.Response) -> MalformedAnswerError:
        return MalformedAnswerError(
            f"The answer is larger than {self._limits.octets} octets.", status=response.status
        )  # fmt: skip


# Before anything was sent; everything else may have come after the pool had the request.
_UNSENT: Final = (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.PoolTimeout, httpcore.ProxyError)


@contextlib.contextmanager
def _translated(exchange: Exchange) -> Iterator[None]:
    """What the transport raises, as an error of ours."""
    host = urlsplit(exchange.url).hostname
    try:
        yield
    except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol, UnicodeError) as exc:
        raise ConfigurationError(f"A request to {host} cannot be written.") from exc
    except httpcore.TimeoutException as exc:
        unknown = not isinstance(exc, _UNSENT)
        raise NoAnswerError(f"{host} did not answer in time.", outcome_unknown=unknown) from exc
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, ssl.SSLError, OSError) as exc:
        unknown = not isinstance(exc, (*_UNSENT, ssl.SSLCertVerificationError))
        what = "closed the connection without an answer" if unknown else "cannot be reached"
        raise NoAnswerError(f"{host} {what}.", outcome_unknown=unknown) from exc


class Client(_Face):
    """A pool's operations, blocking. One client may be shared by threads; close it when done, or use `with`.

    Its time limits hold for everything but the look-up of the host's name, which is the system's.
    """

    def _open(self, options: dict[str, Any]) -> None:
        self._asking = threading.Lock()
        self._timed = _TimedBackend()
        self._pool = httpcore.ConnectionPool(network_backend=self._timed, **options)

    deliver = _blocking(Calls.deliver)
    publish = _blocking(Calls.publish)
    examine = _blocking(Calls.examine)
    contracts_of_emaid = _blocking(Calls.contracts_of_emaid)
    contracts_of_pcid = _blocking(Calls.contracts_of_pcid)
    signed_contracts = _blocking(Calls.signed_contracts)
    withdraw = _blocking(Calls.withdraw)
    set_default = _blocking(Calls.set_default)

    def close(self) -> None:
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    outcome = self._do(step)
                except ClientError as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(outcome)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _do(self, step: Step) -> Any:
        match step:
            case Exchange():
                return self._exchange(step)
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case Authorise(stale, deadline):
                if not self._asking.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    raise NoAnswerError("There was no access token in time.", outcome_unknown=False)
                try:
                    return self._run(self._conversation.token(stale, deadline))
                finally:
                    self._asking.release()

    def _exchange(self, exchange: Exchange) -> Answer:
        left = max(0.0, exchange.deadline - time.monotonic())
        extensions = {"timeout": {"pool": left}}
        with (
            _translated(exchange),
            self._timed.until(exchange.deadline),
            self._pool.stream(
                exchange.method,
                exchange.url,
                headers=_headers(exchange),
                content=exchange.content,
                extensions=extensions,
            ) as response,
        ):
            body = bytearray()
            for chunk in response.iter_stream():
                body += chunk
                if len(body) > self._limits.octets:
                    raise self._too_large(response)
            return self._answer(response, bytes(body))


class AsyncClient(_Face):
    """The same to be awaited. It belongs to the event loop in which it is first used."""

    def __init__(
        self, base_url: str, *, network_backend: httpcore.AsyncNetworkBackend | None = None, **options: Any
    ) -> None:
        """network_backend: makes the connections, where the standard one is not enough. options: as of `Client`."""
        self._network_backend = network_backend
        super().__init__(base_url, **options)

    def _open(self, options: dict[str, Any]) -> None:
        self._asking = asyncio.Lock()
        self._pool = httpcore.AsyncConnectionPool(network_backend=self._network_backend, **options)

    deliver = _awaitable(Calls.deliver)
    publish = _awaitable(Calls.publish)
    examine = _awaitable(Calls.examine)
    contracts_of_emaid = _awaitable(Calls.contracts_of_emaid)
    contracts_of_pcid = _awaitable(Calls.contracts_of_pcid)
    signed_contracts = _awaitable(Calls.signed_contracts)
    withdraw = _awaitable(Calls.withdraw)
    set_default = _awaitable(Calls.set_default)

    async def close(self) -> None:
        await self._pool.aclose()

    async def close_expired(self) -> None:
        """Close connections that have been idle for too long, or that the server has closed.

        They are closed when the next request is sent, too; this is for a client that sends none for a while.
        """
        for connection in self._pool.connections:
            if connection.is_idle() and connection.has_expired():
                await connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    outcome = await self._do(step)
                except ClientError as exc:
                    step = steps.throw(exc)
                else:
                    step = steps.send(outcome)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _do(self, step: Step) -> Any:
        match step:
            case Exchange():
                return await self._exchange(step)
            case Pause(seconds):
                await asyncio.sleep(seconds)
                return None
            case Authorise(stale, deadline):
                try:
                    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                        await self._asking.acquire()
                except TimeoutError as exc:
                    raise NoAnswerError("There was no access token in time.", outcome_unknown=False) from exc
                try:
                    return await self._run(self._conversation.token(stale, deadline))
                finally:
                    self._asking.release()

    async def _exchange(self, exchange: Exchange) -> Answer:
        sending = False

        async def note(event: str, info: Any) -> None:
            nonlocal sending
            sending = sending or event.endswith("send_request_headers.started")

        try:
            # The time limit is the outermost: its own error is one of the operating system's kind.
            async with asyncio.timeout(max(0.0, exchange.deadline - time.monotonic())):
                with _translated(exchange):
                    async with self._pool.stream(
                        exchange.method,
                        exchange.url,
                        headers=_headers(exchange),
                        content=exchange.content,
                        extensions={"trace": note},
                    ) as response:
                        body = bytearray()
                        async for chunk in response.aiter_stream():
                            body += chunk
                            if len(body) > self._limits.octets:
                                raise self._too_large(response)
                        return self._answer(response, bytes(body))
        except TimeoutError as exc:
            host = urlsplit(exchange.url).hostname
            raise NoAnswerError(f"{host} did not answer in time.", outcome_unknown=sending) from exc


def _needs_tls(urls: Iterable[str | None]) -> bool:
    return any(url is not None and url.lower().startswith("https:") for url in urls)


def _context(tls: TLS | ssl.SSLContext) -> ssl.SSLContext:
    return tls.context() if isinstance(tls, TLS) else tls


def _headers(exchange: Exchange) -> list[tuple[str, str]]:
    sent = {"Host": urlsplit(exchange.url).netloc, **exchange.headers}
    if exchange.content or exchange.method in ("POST", "PUT"):
        sent["Content-Length"] = str(len(exchange.content))
    return list(sent.items())


class _TimedBackend(httpcore.NetworkBackend):
    """Sockets that know until when: a time limit for each read would let a slow server go on for ever."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()
        self._local = threading.local()

    @contextlib.contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """For this thread, while the block lasts. deadline: by the monotonic clock."""
        self._local.deadline = deadline
        try:
            yield
        finally:
            del self._local.deadline

    def left(self) -> float | None:
        """Seconds; None outside of an exchange, where connections are only closed."""
        deadline = getattr(self._local, "deadline", None)
        if deadline is None:
            return None
        left: float = deadline - time.monotonic()
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        left = self.left()
        if left is not None and left <= 0:
            raise httpcore.ConnectTimeout("deadline")
        return _TimedStream(self, self._backend.connect_tcp(host, port, left, local_address, socket_options))


class _TimedStream(httpcore.NetworkStream):
    def __init__(self, backend: _TimedBackend, stream: httpcore.NetworkStream) -> None:
        self._backend = backend
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._backend.left()
        if left is not None and left <= 0:
            raise httpcore.ReadTimeout("deadline")
        return self._stream.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        left = self._backend.left()
        if left is not None and left <= 0:
            raise httpcore.WriteTimeout("deadline")
        self._stream.write(buffer, left)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._backend.left()
        if left is not None and left <= 0:
            raise httpcore.ConnectTimeout("deadline")
        return _TimedStream(self._backend, self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
