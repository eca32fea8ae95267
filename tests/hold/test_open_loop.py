"""The open-loop load generator: results for a normal, slow, silent and stopped server."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).parents[2] / "bench"))

from rig.open_loop import UNANSWERED, Stream, running

MESSAGE = b"GET / HTTP/1.1\r\nHost: pool.example\r\n\r\n"
ANSWER = b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n%b\r\nright"


@contextmanager
def server(answer: Callable[[int], bytes]) -> Iterator[int]:
    """A server with one thread per connection. answer: response to the n-th request; empty: close the connection."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=200)
    count = 0

    def serve(connection: socket.socket) -> None:
        nonlocal count
        with connection:
            while connection.recv(4096):
                count += 1
                sentence = answer(count)
                if not sentence:
                    return
                try:
                    connection.sendall(sentence)
                except OSError:
                    return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def stream(**changes: object) -> Stream:
    given: dict[str, object] = {"rate": 100, "seconds": 1, "connections": 4, "labels": (("right", b"right"),)}
    return Stream("s", (MESSAGE,), **{**given, **changes})  # type: ignore[arg-type]


def test_open_loop_counts_responses_by_status_and_label() -> None:
    with server(lambda count: ANSWER % (503 if count % 2 else 200, b"")) as port, running(port, [stream()]) as run:
        outcome = run.result()["s"]
    assert len(outcome.answers) > 40
    assert set(outcome.statuses()) == {200, 503}
    assert abs(outcome.statuses()[200] - outcome.statuses()[503]) <= 1
    assert outcome.good(within=60, label="right") == outcome.statuses()[200]
    assert outcome.share(within=60) == 1


def test_open_loop_latency_starts_at_the_due_time() -> None:
    def slow(count: int) -> bytes:
        time.sleep(0.1)
        return ANSWER % (200, b"")

    with server(slow) as port, running(port, [stream(connections=1, rate=50, patience=60)]) as run:
        outcome = run.result()["s"]
    # Fifty requests a second over one connection that carries ten: the last ones wait for all before them.
    assert outcome.percentile(0.99) > 0.1 * 0.8 * len(outcome.answers) - 1.2
    assert outcome.percentile(0.01) >= 0.1


def test_open_loop_clients_reconnect_after_giving_up() -> None:
    silent = threading.Event()

    def answer(count: int) -> bytes:
        if not silent.is_set():
            silent.wait(30)
        return ANSWER % (200, b"")

    with server(answer) as port, running(port, [stream(seconds=3, rate=20, patience=0.5)]) as run:
        time.sleep(1.5)  # The server's silence: three times the patience of a client.
        silent.set()
        outcome = run.result()["s"]
    early, late = outcome.due(end=0.8), outcome.due(start=1.6)
    assert {answer.status for answer in early} == {UNANSWERED}
    assert all(answer.latency >= 0.5 for answer in early)
    assert {answer.status for answer in late} == {200}


@pytest.mark.parametrize("says", [b"", ANSWER % (200, b"Connection: close\r\n")])
def test_open_loop_reopens_closed_connections(says: bytes) -> None:
    with server(lambda count: says) as port, running(port, [stream(open_first=False)]) as run:
        outcome = run.result()["s"]
    assert len(outcome.answers) > 40
    assert set(outcome.statuses()) == {200 if says else UNANSWERED}


def test_open_loop_counts_refused_connections() -> None:
    with server(lambda count: b"") as port:
        pass
    with running(port, [stream(seconds=0.5, open_first=False)]) as run:
        outcome = run.result()["s"]
    assert set(outcome.statuses()) == {UNANSWERED}
    assert {answer.label for answer in outcome.answers} == {"closed"}
