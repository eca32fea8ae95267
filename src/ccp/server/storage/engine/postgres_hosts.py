"""Connecting to the hosts of a PostgreSQL URL, with a time limit for each host.

A URL may name several hosts, one of which is the current primary: `postgresql://USER@HOST1:PORT1,HOST2:PORT2/NAME`.
Attempts start one after the other with a short delay, as in RFC 8305 (Happy Eyeballs), so a silent host delays a
connection by no more than that delay. The host that accepted is tried first the next time.

With several hosts the default is `target_session_attrs=read-write`: a standby, and a primary that was demoted or made
read-only, are not used.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg

from ccp.server.storage.engine import postgres_tls

if TYPE_CHECKING:
    _Base: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    _Base = asyncpg.Connection

HEAD_START: Final = 0.25
"""Seconds before the next host is tried too: more than a reachable server takes to answer."""
COMMAND_TIMEOUT: Final = 65.0
"""Seconds for a statement with which a command inspects the server or the schema."""
_DEFAULT_PORT: Final = 5432
_READ_WRITE: Final = "read-write"

# A dead host is detected after 15 seconds by keepalives, or after 5 seconds without an acknowledgement of sent data.
# The kernel acknowledges data, so a busy server keeps its connections.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 6), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 5000))

Host: TypeAlias = tuple[str, int]


class Connection(_Base):
    """A connection with TCP keepalives, which keeps the server's last warning.

    warning: the last warning since it was set to None.
    """

    def __init__(self, protocol: Any, transport: Any, *more: Any) -> None:
        super().__init__(protocol, transport, *more)
        self.warning: str | None = None
        self.add_log_listener(_keep_warning)
        raw_socket = transport.get_extra_info("socket")
        if raw_socket is not None and raw_socket.family != socket.AF_UNIX:
            raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE:
                if hasattr(socket, name):
                    raw_socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    @property
    def read_only(self) -> bool:
        """Whether the server is a standby or read-only by default, by its last answer."""
        settings = self.get_settings()
        return "on" in (
            getattr(settings, "default_transaction_read_only", "off"),
            getattr(settings, "in_hot_standby", "off"),
        )


def _keep_warning(connection: Any, message: Any) -> None:
    if (message.severity_en or message.severity) == "WARNING":
        connection.warning = message.message


class Hosts:
    """The hosts of a database URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._hosts: list[Host | None] = list(_several_hosts(url)) or [None]
        self._attributes: str | None = None
        if len(self._hosts) > 1 and _option(url, "target_session_attrs", "PGTARGETSESSIONATTRS") is None:
            self._attributes = _READ_WRITE

    @property
    def writable_only(self) -> bool:
        """Whether a server that has become read-only must not be used."""
        return (self._attributes or _option(self._url, "target_session_attrs", "PGTARGETSESSIONATTRS")) == _READ_WRITE

    async def connect(
        self, host_timeout: float, *, prepare: bool, statement_timeout: float | None = None
    ) -> Connection:
        """Connect to the first suitable host. host_timeout: seconds for each host.

        prepare: keep named prepared statements on the connection. statement_timeout: seconds; None if the caller has
        its own deadline. Raises asyncpg's errors and TimeoutError.
        """
        connect = partial(self._connect, host_timeout=host_timeout, prepare=prepare, command_timeout=statement_timeout)
        if len(self._hosts) == 1:
            return await connect(self._hosts[0])
        waiting = list(self._hosts)
        tasks: dict[asyncio.Task[Connection], Host | None] = {}
        failures: list[BaseException] = []
        try:
            while waiting or tasks:
                if waiting:
                    host = waiting.pop(0)
                    tasks[asyncio.create_task(connect(host))] = host
                done, _ = await asyncio.wait(
                    tasks, timeout=HEAD_START if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    exc = task.exception()
                    if exc is None:
                        host = tasks.pop(task)
                        self._hosts.sort(key=lambda other: other != host)
                        return task.result()
                    del tasks[task]
                    failures.append(exc)
        finally:
            for task in tasks:
                task.cancel()
                task.add_done_callback(_discard)
        raise min(failures, key=_rank)

    async def _connect(
        self, host: Host | None, *, host_timeout: float, prepare: bool, command_timeout: float | None
    ) -> Connection:
        more: dict[str, Any] = postgres_tls.options(self._url)
        if host is not None:
            more |= {"host": host[0], "port": host[1]}
        if self._attributes is not None:
            more |= {"target_session_attrs": self._attributes}
        connection: Connection = await asyncpg.connect(
            self._url,
            timeout=host_timeout,
            command_timeout=command_timeout,
            statement_cache_size=1000 if prepare else 0,
            max_cached_statement_lifetime=0,
            server_settings={"application_name": "opnc-ccp"},
            connection_class=Connection,
            **more,
        )
        return connection


def _rank(failure: BaseException) -> int:
    """Rank of a failure, lowest for the most informative one."""
    if isinstance(failure, asyncpg.TargetServerAttributeNotMatched):
        return 1
    if isinstance(failure, asyncpg.PostgresError | asyncpg.InterfaceError | ValueError):
        return 0
    return 2 if isinstance(failure, TimeoutError) else 3


def _discard(task: asyncio.Task[Connection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().terminate()


def _option(url: str, parameter: str, variable: str) -> str | None:
    values = parse_qs(urlsplit(url).query).get(parameter)
    return values[-1] if values else os.environ.get(variable)


def _several_hosts(url: str) -> Sequence[Host]:
    """The hosts that a URL or the environment names, if there are several."""
    named = urlsplit(url).netloc.rpartition("@")[2] or _option(url, "host", "PGHOST") or ""
    if "," not in named:
        return ()
    ports = [int(port) for port in (_option(url, "port", "PGPORT") or "").split(",") if port.isdecimal()]
    hosts = []
    for place, text in enumerate(named.split(",")):
        default = ports[place] if len(ports) > 1 and place < len(ports) else (ports or [_DEFAULT_PORT])[0]
        name, port = _host_and_port(text)
        hosts.append((unquote(name), port or default))
    return hosts


def _host_and_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):  # IPv6
        name, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        name, _, port = text.partition(":")
    return name, int(port) if port.isdecimal() else None
