"""Whether a port speaks TLS, for the error of a client that sent plain HTTP to it.

Most servers close such a connection without a response, as they do for other reasons. One ClientHello tells them apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Final

from ccp.client.transport_errors import TLS_RECORDS, place_of

_TIMEOUT: Final = 1.0  # Seconds. A server that speaks TLS answers a ClientHello at once.
_RECORD: Final = 2  # Bytes that tell a record of TLS.


def speaks_tls(url: str, timeout: float) -> bool:
    """Whether the server of a URL answers a ClientHello with TLS. timeout: in seconds, at most one second is taken."""
    host, port, _ = place_of(url)
    with contextlib.suppress(OSError), socket.create_connection((host, port), min(timeout, _TIMEOUT)) as connection:
        connection.sendall(_client_hello(host))
        return _is_tls(connection.recv(_RECORD, socket.MSG_WAITALL))
    return False


async def speaks_tls_async(url: str, timeout: float) -> bool:  # noqa: ASYNC109
    """As `speaks_tls`, on the event loop."""
    host, port, _ = place_of(url)
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        async with asyncio.timeout(min(timeout, _TIMEOUT)):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_client_hello(host))
                return _is_tls(await reader.readexactly(_RECORD))
            finally:
                writer.close()
    return False


def _is_tls(start: bytes) -> bool:
    return start in TLS_RECORDS


def _client_hello(host: str) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = context.wrap_bio(incoming, outgoing, server_hostname=host)
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()
