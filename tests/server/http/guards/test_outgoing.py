"""What goes out of a connection goes out once a turn of the event loop, in its order, and before its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from ccp.server.http.write_batching import BufferedTransport, WriteBatcher

LARGE = b"x" * 70_000


class Wire:
    """A transport that records its calls."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.written.append("closed")
        self.closing = True

    def write_eof(self) -> None:
        self.written.append("no more")

    def is_closing(self) -> bool:
        return self.closing

    def get_extra_info(self, name: str) -> str:
        return f"the {name}"


def in_a_turn(work: Callable[[BufferedTransport, BufferedTransport], None]) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the calls of both transports before the end of the loop iteration, then all calls of each."""
    writing = WriteBatcher()
    one, other = Wire(), Wire()

    async def test() -> list[Any]:
        work(*(BufferedTransport(cast(asyncio.Transport, wire), writing) for wire in (one, other)))
        within = [*one.written, *other.written]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return within

    return asyncio.run(test()), one.written, other.written


def test_buffered_transport_writes_head_body_and_next_response_once() -> None:
    def work(one: BufferedTransport, other: BufferedTransport) -> None:
        for data in (b"head", b"body", b"next"):
            one.write(data)
        other.write(b"other")

    assert in_a_turn(work) == ([], [b"headbodynext"], [b"other"])


def test_buffered_transport_flushes_before_close() -> None:
    def work(one: BufferedTransport, other: BufferedTransport) -> None:
        one.write(b"answer")
        one.close()
        other.write(b"answer")
        other.write_eof()

    _, one, other = in_a_turn(work)
    assert (one, other) == ([b"answer", "closed"], [b"answer", "no more"])


def test_buffered_transport_writes_large_data_at_once() -> None:
    def work(one: BufferedTransport, other: BufferedTransport) -> None:
        one.write(b"head")
        one.write(LARGE)
        one.write(b"rest")

    assert in_a_turn(work) == ([b"head" + LARGE], [b"head" + LARGE, b"rest"], [])


def test_buffered_transport_drops_data_of_a_closed_connection() -> None:
    def work(one: BufferedTransport, other: BufferedTransport) -> None:
        one.write(b"answer")
        cast(Wire, one._transport).closing = True

    assert in_a_turn(work) == ([], [], [])


def test_buffered_transport_delegates_other_attributes() -> None:
    def work(one: BufferedTransport, other: BufferedTransport) -> None:
        assert one.get_extra_info("peername") == "the peername"
        assert not one.is_closing()

    in_a_turn(work)
