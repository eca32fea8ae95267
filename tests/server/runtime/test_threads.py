"""Every thread and process that the code starts, and what becomes of callers when it dies, hangs or cannot be started.

The threads of the SQLite engine are tested in tests/server/storage/test_sqlite_threads.py.
"""

from __future__ import annotations

import ast
import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccp.errors import Unavailable
from ccp.server.external.resolver import ResolutionError, Resolver
from ccp.server.runtime.blocking_calls import BlockingCalls

SOURCES = Path(__file__).parents[3] / "src" / "ccp"
STARTERS = (
    *("Thread", "to_thread", "run_in_executor", "ThreadPoolExecutor", "ProcessPoolExecutor", "Process"),
    *("create_subprocess_exec", "create_subprocess_shell"),
)

PLACES = {
    "server/runtime/threads.py": "supervised: callers get Unavailable, it is started again, readiness fails meanwhile",
    "server/runtime/blocking_calls.py": (
        "a time limit for callers; a function that does not return keeps a thread of its kind alone"
    ),
    "server/external/resolver.py": "a time limit for callers; whatever ends a lookup frees its place",
    "server/declaration/applying.py": "ccp apply: each comparison of a secret ends by itself; all are waited for",
    "server/bulk/input_reader.py": "ccp import: an error of the reader ends the import",
    "server/bulk/worker_pool.py": "ccp import: joins of worker processes have a time limit",
    "server/bulk/import_worker.py": "ccp import: a worker process that ends, ends the import with a sentence",
    "cli/supervisor.py": "worker processes are watched by heartbeats, killed when these end, and replaced",
    "server/http/documentation_build.py": (
        "a time limit; its end without a result is logged, and /docs says so; it is ended with its worker"
    ),
    "server/storage/engine/schema.py": (
        "commands and start: the caller waits for a loop of its own, whose connections have time limits"
    ),
    "server/sandbox/local_pool.py": "the simulator: its start has a time limit, and nothing else depends on it",
}


def starters() -> set[str]:
    found = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in STARTERS:
                    found.add(str(path.relative_to(SOURCES)))
    return found


def test_threads_and_processes_document_their_end_at_every_start() -> None:
    assert starters() == set(PLACES)


# --- Blocking calls --------------------------------------------------------------------------------------------------


def run(test: Callable[[], Any]) -> Any:
    async def whole() -> Any:
        async with asyncio.timeout(30):
            return await test()

    return asyncio.run(whole())


def test_blocking_calls_return_and_raise_like_the_function() -> None:
    async def test() -> None:
        calls = BlockingCalls("work", max_threads=1, timeout=20)
        assert await calls.run(divmod, 7, 2) == (3, 1)
        for error in (ValueError("for the test"), TimeoutError("its own"), Unavailable("Away.")):
            with pytest.raises(type(error)) as caught:
                await calls.run(raising, error)
            assert caught.value is error

    run(test)


def raising(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), StopIteration(), MemoryError()])
def test_thread_that_dies_answers_its_caller_and_frees_its_place(error: BaseException) -> None:
    async def test() -> None:
        calls = BlockingCalls("work", max_threads=1, timeout=20)
        for _ in range(3):
            with pytest.raises((RuntimeError, MemoryError)):
                await calls.run(raising, error)
        assert await calls.run(int, "7") == 7

    run(test)


def test_blocking_calls_isolate_kinds_of_hanging_functions() -> None:
    async def test() -> None:
        go_on = threading.Event()
        hanging = BlockingCalls("reading", max_threads=2, timeout=0.3)
        other = BlockingCalls("hashing", max_threads=1, timeout=20)
        waiting = [asyncio.ensure_future(hanging.run(go_on.wait, 30)) for _ in range(6)]
        await asyncio.sleep(0)
        assert await other.run(int, "7") == 7
        for each in await asyncio.gather(*waiting, return_exceptions=True):
            assert str(each) == "The reading takes longer than 0.3 seconds; try again."
            assert isinstance(each, Unavailable)
        assert sum(thread.name == "reading" for thread in threading.enumerate()) == 2, "their number is bounded"
        go_on.set()
        deadline = time.monotonic() + 20
        while any(thread.name == "reading" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
        assert await hanging.run(int, "7") == 7

    run(test)


def test_process_does_not_wait_for_a_function_that_hangs() -> None:
    """As `asyncio.run` would for the threads of `asyncio.to_thread`."""

    async def test() -> None:
        calls = BlockingCalls("reading", max_threads=1, timeout=0.05)
        with pytest.raises(Unavailable):
            await calls.run(time.sleep, 5)

    began = time.monotonic()
    run(test)
    assert time.monotonic() - began < 5


def test_blocking_calls_raise_unavailable_without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def test() -> None:
        calls = BlockingCalls("work", max_threads=1, timeout=20)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            for _ in range(3):
                with pytest.raises(Unavailable, match="cannot work now"):
                    await calls.run(int, "7")
        assert await calls.run(int, "7") == 7

    run(test)


def test_blocking_calls_free_the_place_of_an_ended_lookup() -> None:
    def lookup(host: str) -> list[str]:
        if host.startswith("bad"):
            raise SystemExit
        return ["192.0.2.1"]

    async def test() -> None:
        resolver = Resolver(lookup, max_threads=1, timeout=20)
        for number in range(3):
            with pytest.raises(ResolutionError):
                await resolver.resolve(f"bad{number}.example")
        assert len(await resolver.resolve("good.example")) == 1

    run(test)
