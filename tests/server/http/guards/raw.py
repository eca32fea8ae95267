"""A client that sends given bytes unchanged and reads the responses; connections from a chosen source address."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ccp.errors.codes import ErrorCode
from tests.world import Pool


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def refused(self, status: int) -> str:
        """The one sentence of an error in the API's shape."""
        assert self.status == status, (self.status, self.body)
        assert self.headers["content-type"] == "application/json"
        body = self.json
        assert set(body) == {"errorMessages", "traceId"}, body
        uuid.UUID(body["traceId"])
        assert self.headers["x-trace-id"] == body["traceId"]
        assert ErrorCode(self.headers["x-error-code"]).status == status
        assert self.headers["x-content-type-options"] == "nosniff"
        assert "server" not in self.headers
        (sentence,) = body["errorMessages"]
        return str(sentence)


class Raw:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._rest = b""

    def send(self, data: bytes | str) -> None:
        self.socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def answer(self) -> Answer | None:
        """The next answer; None when the server has closed the connection."""
        while b"\r\n\r\n" not in self._rest:
            if not self._more():
                assert not self._rest, f"half an answer: {self._rest!r}"
                return None
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length:
            assert self._more(), "the answer ends before its length"
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(status), headers, body)

    def answers(self) -> list[Answer]:
        """All answers until the server closes the connection."""
        found = []
        while (answer := self.answer()) is not None:
            found.append(answer)
        return found

    def _more(self) -> bool:
        try:
            got = self.socket.recv(65_536)
        except ConnectionResetError:
            got = b""
        self._rest += got
        return bool(got)


def connect(pool: Pool | str, source: str, timeout: float = 20) -> socket.socket:
    """Connect to a pool or a base URL from a loopback address. timeout: of each operation, in seconds."""
    address = urlsplit(pool if isinstance(pool, str) else pool.base_url)
    return socket.create_connection((address.hostname, address.port), timeout=timeout, source_address=(source, 0))


@contextmanager
def connected(base_url: str, seconds: float = 40) -> Iterator[Raw]:
    address = urlsplit(base_url)
    with socket.create_connection((address.hostname, address.port), timeout=seconds) as connection:
        yield Raw(connection)


def ask(base_url: str, data: bytes | str) -> list[Answer]:
    """Send the bytes and return every response. The server must close the connection."""
    with connected(base_url) as raw:
        raw.send(data)
        return raw.answers()
