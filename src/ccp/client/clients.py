"""The clients: synchronous and asynchronous drivers of a `Session`, which do its I/O over httpcore."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Final, ParamSpec, Self, TypeVar
from urllib.parse import urlsplit

import httpcore

from ccp.client.calls import Call
from ccp.client.errors import ClientError, MalformedResponseError, NoResponseError
from ccp.client.model import Credentials, RetryPolicy, Timeouts
from ccp.client.opcp import OPCPOperations
from ccp.client.operations import Dialect, Operations
from ccp.client.opnc import OPNCOperations
from ccp.client.responses import HttpResponse
from ccp.client.session import Action, Authorize, Exchange, ProtocolFlow, Session, Sleep
from ccp.client.timed_backend import TimedBackend
from ccp.client.tls_probe import speaks_tls, speaks_tls_async
from ccp.client.transport_errors import Progress, is_plain_http, no_response, timed_out, tls_required, wants_tls
from ccp.errors import ConfigurationError
from ccp.schemas.common import Routing

P = ParamSpec("P")
T = TypeVar("T")

OPERATIONS: Final[Mapping[Dialect, type[Operations]]] = {Dialect.OPNC: OPNCOperations, Dialect.OPCP: OPCPOperations}

_KEEPALIVE: Final = 15.0  # Seconds.
_MAX_RESPONSE_BYTES: Final = 4_194_304


@dataclass(frozen=True, slots=True)
class TLS:
    """Certificates of the connection, as PEM files.

    ca_file: CAs that the pool's certificate is verified against; the system's by default. certificate, key, password:
    for mutual TLS. verify: False accepts any certificate, for test environments only.
    """

    ca_file: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    password: str | None = field(default=None, repr=False)
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Build the context. Raises ConfigurationError."""
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
    build: Callable[Concatenate[Operations, P], Call[T]],
) -> Callable[Concatenate[Client, P], T]:
    """Turn a request builder into a method of `Client`."""

    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call: Call[T] = getattr(self._operations, build.__name__)(*args, **kwargs)
        return self._run(self._session.call(call))

    functools.update_wrapper(method, build)
    return method


def _awaitable(
    build: Callable[Concatenate[Operations, P], Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Turn a request builder into a method of `AsyncClient`."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        call: Call[T] = getattr(self._operations, build.__name__)(*args, **kwargs)
        return await self._run(self._session.call(call))

    functools.update_wrapper(method, build)
    return method


class BaseClient:
    """What both clients share: the configuration."""

    def __init__(
        self,
        base_url: str,
        *,
        credentials: Credentials | None = None,
        token: str | None = None,
        dialect: Dialect = Dialect.OPNC,
        routing: Routing = Routing(),
        timeouts: Timeouts = Timeouts(),
        retry: RetryPolicy = RetryPolicy(),
        max_response_bytes: int = _MAX_RESPONSE_BYTES,
        max_connections: int = 100,
        tls: TLS | ssl.SSLContext = TLS(),
        proxy: str | None = None,
    ) -> None:
        """Raises ConfigurationError.

        base_url: what precedes `/opnc/v1/ccp` or `/v1/ccp`. credentials: for access tokens, which the client fetches
        and renews; or token: an access token that the application renews. max_connections: open at a time; further
        requests wait for one. proxy: URL of an HTTP proxy.
        """
        access = credentials if credentials is not None else token
        if access is None or (credentials is not None and token is not None):
            raise ConfigurationError("A client needs either credentials or a token.")
        if isinstance(access, str) and not (access.isascii() and access.isprintable() and access and " " not in access):
            raise ConfigurationError("The token contains characters that a header cannot carry.")
        self._operations = OPERATIONS[dialect](routing)
        self._max_response_bytes = max_response_bytes
        self._session = Session(
            base_url, access, timeouts, retry, clock=time.monotonic, wall_clock=time.time, random=random.random
        )
        self._may_probe_tls = True  # Until there is a response, or a port was probed.
        self._proxy = proxy
        urls = (base_url, proxy, None if credentials is None else credentials.token_url)
        options: dict[str, Any] = {
            # Loading the system's CAs takes time, which a client of plain HTTP saves.
            "ssl_context": None if tls == TLS() and not _needs_tls(urls) else _context(tls),
            "max_connections": max_connections,
            "keepalive_expiry": _KEEPALIVE,
            "retries": 0,
        }
        if proxy is not None:
            options["proxy"] = httpcore.Proxy(proxy)
        self._open(options)

    def _open(self, options: dict[str, Any]) -> None:
        raise NotImplementedError

    def _checked(self, exchange: Exchange, response: HttpResponse) -> HttpResponse:
        """Return a response, unless it says that the port is for HTTPS. Raises TLSRequiredError."""
        if wants_tls(exchange.url, response):
            raise tls_required(exchange.url)
        self._may_probe_tls = False
        return response

    def _may_speak_tls(self, exchange: Exchange, failure: NoResponseError) -> bool:
        """Whether to find out if a server that closes connections without a response speaks TLS. True at most once."""
        if not self._may_probe_tls or type(failure) is not NoResponseError or not failure.outcome_unknown:
            return False
        if self._proxy is not None or not is_plain_http(exchange.url):
            return False
        self._may_probe_tls = False
        return True

    def _response(self, response: httpcore.Response, body: bytes) -> HttpResponse:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise MalformedResponseError(
                "The response is compressed, which the request does not allow.", status=response.status
            )
        return HttpResponse(response.status, headers, body)

    def _too_large(self, response: httpcore.Response) -> MalformedResponseError:
        return MalformedResponseError(
            f"The response is larger than {self._max_response_bytes} bytes.", status=response.status
        )


@contextlib.contextmanager
def _translate_errors(exchange: Exchange, progress: Progress) -> Iterator[None]:
    """Convert the transport's errors into the client's."""
    try:
        yield
    except (httpcore.LocalProtocolError, httpcore.UnsupportedProtocol, UnicodeError) as exc:
        raise ConfigurationError(f"The request to {urlsplit(exchange.url).hostname} cannot be sent.") from exc
    except (
        httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, OSError,
    ) as exc:  # fmt: skip
        raise no_response(progress.url, exc, progress.step) from exc


class Client(BaseClient):
    """Synchronous client of a pool. Threads may share one client; close it, or use it in a `with` statement.

    The time limits cover everything except the resolution of the host name, which the operating system limits.
    """

    def _open(self, options: dict[str, Any]) -> None:
        self._token_lock = threading.Lock()
        self._timed = TimedBackend()
        self._pool = httpcore.ConnectionPool(network_backend=self._timed, **options)

    deliver = _blocking(Operations.deliver)
    get_15118_ev_certificate = _blocking(Operations.get_15118_ev_certificate)
    publish = _blocking(Operations.publish)
    dry_run = _blocking(Operations.dry_run)
    contracts_of_emaid = _blocking(Operations.contracts_of_emaid)
    contracts_of_pcid = _blocking(Operations.contracts_of_pcid)
    signed_contracts = _blocking(Operations.signed_contracts)
    withdraw = _blocking(Operations.withdraw)
    set_default = _blocking(Operations.set_default)
    list_webhooks = _blocking(Operations.list_webhooks)
    create_webhook = _blocking(Operations.create_webhook)
    get_webhook = _blocking(Operations.get_webhook)
    change_webhook = _blocking(Operations.change_webhook)
    remove_webhook = _blocking(Operations.remove_webhook)
    rotate_webhook_secret = _blocking(Operations.rotate_webhook_secret)
    ping_webhook = _blocking(Operations.ping_webhook)
    roots = _blocking(Operations.roots)
    root = _blocking(Operations.root)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, flow: ProtocolFlow[T]) -> T:
        try:
            action = next(flow)
            while True:
                try:
                    outcome = self._do(action)
                except ClientError as exc:
                    action = flow.throw(exc)
                else:
                    action = flow.send(outcome)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _do(self, action: Action) -> Any:
        match action:
            case Exchange():
                return self._exchange(action)
            case Sleep(delay):
                time.sleep(delay)
                return None
            case Authorize(rejected, deadline):
                if not self._token_lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                    raise NoResponseError("No access token was obtained in time.", outcome_unknown=False)
                try:
                    return self._run(self._session.access_token(rejected, deadline))
                finally:
                    self._token_lock.release()

    def _exchange(self, exchange: Exchange) -> HttpResponse:
        try:
            return self._checked(exchange, self._send(exchange))
        except NoResponseError as exc:
            if not self._may_speak_tls(exchange, exc):
                raise
            if not speaks_tls(exchange.url, max(0.0, exchange.deadline - time.monotonic())):
                raise
            raise tls_required(exchange.url) from exc

    def _send(self, exchange: Exchange) -> HttpResponse:
        progress = Progress(exchange.url, self._proxy)
        left = max(0.0, exchange.deadline - time.monotonic())
        extensions: dict[str, Any] = {"timeout": {"pool": left}, "trace": progress.trace}
        with (
            _translate_errors(exchange, progress),
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
                if len(body) > self._max_response_bytes:
                    raise self._too_large(response)
            return self._response(response, bytes(body))


class AsyncClient(BaseClient):
    """Asynchronous client of a pool. It belongs to the event loop of its first call."""

    def __init__(
        self,
        base_url: str,
        *,
        network_backend: httpcore.AsyncNetworkBackend | None = None,
        request_headers: Callable[[], Mapping[str, str]] = dict,
        **options: Any,
    ) -> None:
        """network_backend: opens the connections instead of httpcore's own. request_headers: returns further headers,
        such as those of W3C Trace Context; called for each request. options: as for `Client`.
        """
        self._network_backend = network_backend
        self._request_headers = request_headers
        super().__init__(base_url, **options)

    def _open(self, options: dict[str, Any]) -> None:
        self._token_lock = asyncio.Lock()
        self._pool = httpcore.AsyncConnectionPool(network_backend=self._network_backend, **options)

    deliver = _awaitable(Operations.deliver)
    get_15118_ev_certificate = _awaitable(Operations.get_15118_ev_certificate)
    publish = _awaitable(Operations.publish)
    dry_run = _awaitable(Operations.dry_run)
    contracts_of_emaid = _awaitable(Operations.contracts_of_emaid)
    contracts_of_pcid = _awaitable(Operations.contracts_of_pcid)
    signed_contracts = _awaitable(Operations.signed_contracts)
    withdraw = _awaitable(Operations.withdraw)
    set_default = _awaitable(Operations.set_default)
    list_webhooks = _awaitable(Operations.list_webhooks)
    create_webhook = _awaitable(Operations.create_webhook)
    get_webhook = _awaitable(Operations.get_webhook)
    change_webhook = _awaitable(Operations.change_webhook)
    remove_webhook = _awaitable(Operations.remove_webhook)
    rotate_webhook_secret = _awaitable(Operations.rotate_webhook_secret)
    ping_webhook = _awaitable(Operations.ping_webhook)
    roots = _awaitable(Operations.roots)
    root = _awaitable(Operations.root)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def close_expired(self) -> None:
        """Close connections that have been idle for too long, or that the server has closed.

        The next request closes them too; call this for a client that sends none for a while.
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

    async def _run(self, flow: ProtocolFlow[T]) -> T:
        try:
            action = next(flow)
            while True:
                try:
                    outcome = await self._do(action)
                except ClientError as exc:
                    action = flow.throw(exc)
                else:
                    action = flow.send(outcome)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _do(self, action: Action) -> Any:
        match action:
            case Exchange():
                return await self._exchange(action)
            case Sleep(delay):
                await asyncio.sleep(delay)
                return None
            case Authorize(rejected, deadline):
                try:
                    async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                        await self._token_lock.acquire()
                except TimeoutError as exc:
                    raise NoResponseError("No access token was obtained in time.", outcome_unknown=False) from exc
                try:
                    return await self._run(self._session.access_token(rejected, deadline))
                finally:
                    self._token_lock.release()

    async def _exchange(self, exchange: Exchange) -> HttpResponse:
        try:
            return self._checked(exchange, await self._send(exchange))
        except NoResponseError as exc:
            if self._network_backend is not None or not self._may_speak_tls(exchange, exc):
                raise
            if not await speaks_tls_async(exchange.url, max(0.0, exchange.deadline - time.monotonic())):
                raise
            raise tls_required(exchange.url) from exc

    async def _send(self, exchange: Exchange) -> HttpResponse:
        progress = Progress(exchange.url, self._proxy)
        try:
            # The timeout is outermost: inside, its TimeoutError would be translated as an OSError.
            async with asyncio.timeout(max(0.0, exchange.deadline - time.monotonic())):
                with _translate_errors(exchange, progress):
                    async with self._pool.stream(
                        exchange.method,
                        exchange.url,
                        headers=[*_headers(exchange), *self._request_headers().items()],
                        content=exchange.content,
                        extensions={"trace": progress.trace_async},
                    ) as response:
                        body = bytearray()
                        async for chunk in response.aiter_stream():
                            body += chunk
                            if len(body) > self._max_response_bytes:
                                raise self._too_large(response)
                        return self._response(response, bytes(body))
        except TimeoutError as exc:
            raise timed_out(progress.url, progress.step) from exc


def _needs_tls(urls: Iterable[str | None]) -> bool:
    return any(url is not None and url.lower().startswith("https:") for url in urls)


def _context(tls: TLS | ssl.SSLContext) -> ssl.SSLContext:
    return tls.context() if isinstance(tls, TLS) else tls


def _headers(exchange: Exchange) -> list[tuple[str, str]]:
    sent = {"Host": urlsplit(exchange.url).netloc, **exchange.headers}
    if exchange.content or exchange.method in ("POST", "PUT"):
        sent["Content-Length"] = str(len(exchange.content))
    return list(sent.items())
