"""Sockets of the synchronous client with a deadline for the whole exchange."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore


class TimedBackend(httpcore.NetworkBackend):
    """Sockets with a deadline for the whole exchange. A timeout per read would not stop a slow server."""

    def __init__(self) -> None:
        self._backend = httpcore.SyncBackend()
        self._local = threading.local()

    @contextlib.contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Set the deadline of this thread for a block. deadline: on the monotonic clock."""
        self._local.deadline = deadline
        try:
            yield
        finally:
            del self._local.deadline

    def remaining(self) -> float | None:
        """Return the remaining seconds; None outside of an exchange, where connections are only closed."""
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
        """Connect within the deadline. The resolution of the name is limited by the operating system."""
        left = self.remaining()
        if left is not None and left <= 0:
            raise httpcore.ConnectTimeout("deadline")
        return _TimedStream(self, self._backend.connect_tcp(host, port, left, local_address, socket_options))


class _TimedStream(httpcore.NetworkStream):
    def __init__(self, backend: TimedBackend, stream: httpcore.NetworkStream) -> None:
        self._backend = backend
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._backend.remaining()
        if left is not None and left <= 0:
            raise httpcore.ReadTimeout("deadline")
        return self._stream.read(max_bytes, left)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        left = self._backend.remaining()
        if left is not None and left <= 0:
            raise httpcore.WriteTimeout("deadline")
        self._stream.write(buffer, left)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._backend.remaining()
        if left is not None and left <= 0:
            raise httpcore.ConnectTimeout("deadline")
        return _TimedStream(self._backend, self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
