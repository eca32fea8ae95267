"""Lightweight peer pools: each answers from a table, after a delay, on its own port. One process serves all of them.

    with running([Peer(), Peer(delay=0.05), Peer(hangs=True)], nothing) as peers:
        peers.ports                                    # one for each
    peers.asked()                                      # requests so far, for each

A peer answers a request in its table with the body there, and any other request with `nothing`. Keys are the Base64
texts of messages in the JSON of requests.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop

_KEEP_ALIVE: Final = 75.0


@dataclass(frozen=True, slots=True)
class Peer:
    """delay: seconds before each response. hangs: reads and never answers. contracts: response body by request."""

    delay: float = 0.0
    hangs: bool = False
    contracts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peers:
    process: subprocess.Popen[bytes]
    ports: tuple[int, ...]

    def asked(self) -> list[int]:
        """Number of requests that each peer has read."""
        return [asked for asked, _ in self._figures()]

    def connections(self) -> list[int]:
        """Number of connections that each peer has accepted."""
        return [accepted for _, accepted in self._figures()]

    def _figures(self) -> list[tuple[int, int]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        return list(map(tuple, orjson.loads(self.process.stdout.readline())))


@contextmanager
def running(peers: Sequence[Peer], nothing: bytes) -> Iterator[Peers]:
    """nothing: the body of a negative answer."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "rig.fake_peers"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickled = pickle.dumps((tuple(peers), nothing))
            process.stdin.write(len(pickled).to_bytes(8, "big") + pickled)
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise RuntimeError("The peers did not start; their own message stands above.")
            yield Peers(process, tuple(orjson.loads(line)))
        finally:
            process.kill()


class _Server:
    """One peer."""

    def __init__(self, peer: Peer, nothing: bytes) -> None:
        self.peer = peer
        self.nothing = _http(nothing)
        self.contracts = {name.encode(): _http(body) for name, body in peer.contracts.items()}
        self.asked = 0
        self.accepted = 0


class _Connection(asyncio.Protocol):
    def __init__(self, server: _Server) -> None:
        self._server = server
        self._buffer = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._server.accepted += 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower() + b"\r\n"
        length = int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0] or 0)
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        server = self._server
        server.asked += 1
        if server.peer.hangs:
            return
        message = body.partition(b'"certificateInstallationReq":"')[2].partition(b'"')[0]
        answer = server.contracts.get(message, server.nothing)
        if server.peer.delay:
            asyncio.get_running_loop().call_later(server.peer.delay, self._transport.write, answer)
        else:
            self._transport.write(answer)


def _http(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _serve() -> None:
    length = int.from_bytes(sys.stdin.buffer.read(8), "big")
    peers, nothing = pickle.loads(sys.stdin.buffer.read(length))
    loop = asyncio.get_running_loop()
    servers = [_Server(peer, nothing) for peer in peers]
    ports = []
    for server in servers:
        listening = await loop.create_server(lambda server=server: _Connection(server), "127.0.0.1", 0, backlog=1000)
        ports.append(listening.sockets[0].getsockname()[1])
    print(orjson.dumps(ports).decode(), flush=True)
    while await loop.run_in_executor(None, sys.stdin.buffer.readline):
        print(orjson.dumps([[server.asked, server.accepted] for server in servers]).decode(), flush=True)


if __name__ == "__main__":
    uvloop.run(_serve())
