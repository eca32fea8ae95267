"""LineWriter: lines are batched, atomic, in order, and written at once for errors."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

from ccp.server.logging import _MAX_ATOMIC_WRITE, LineWriter


class File(io.StringIO):
    """Notes each write by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)


def in_a_turn(*logged: tuple[str, str]) -> tuple[list[str], list[str]]:
    """The lines written within the iteration of the event loop in which they were logged, and all lines."""
    file = File()
    lines = LineWriter(file)

    async def test() -> list[str]:
        for level, line in logged:
            getattr(lines, level)(line)
        within = list(file.writes)
        await asyncio.sleep(0)
        return within

    return asyncio.run(test()), file.writes


def test_lines_of_one_iteration_are_one_write() -> None:
    assert in_a_turn(("info", "a"), ("warning", "b"), ("debug", "c")) == ([], ["a\nb\nc\n"])


def test_line_of_a_failure_is_written_at_once_after_earlier_lines() -> None:
    assert in_a_turn(("info", "a"), ("error", "b"), ("info", "c")) == (["a\nb\n"], ["a\nb\n", "c\n"])


def test_line_is_written_in_pieces_that_a_pipe_takes_whole_unless_it_is_longer() -> None:
    line, long = "é" * 750, "y" * (2 * _MAX_ATOMIC_WRITE)
    _, writes = in_a_turn(*[("info", each) for each in (line, line, line, long, line)])
    assert writes == [f"{line}\n{line}\n", f"{line}\n", f"{long}\n", f"{line}\n"]


def test_line_to_a_file_that_cannot_be_written_keeps_nothing_waiting() -> None:
    class Full(File):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    lines = LineWriter(Full())
    lines.error("a")
    lines._file = other = File()  # type: ignore[misc]
    lines.error("b")
    assert other.writes == ["b\n"]


def test_lines_outside_of_an_event_loop_are_written_at_once() -> None:
    file = File()
    lines = LineWriter(file)
    lines.info("a")
    lines.critical("b")
    assert file.writes == ["a\n", "b\n"]


def test_lines_of_an_ended_loop_do_not_block_the_next_one() -> None:
    file = File()
    lines = LineWriter(file)
    loop = asyncio.new_event_loop()

    async def say(line: str) -> None:
        lines.info(line)

    stopped: Any = loop.create_task(say("a"))
    stopped.add_done_callback(lambda _: loop.stop())
    loop.run_until_complete(stopped)
    loop.close()
    asyncio.run(say("b"))
    assert "".join(file.writes) == "a\nb\n"


def test_lines_of_threads_are_all_there_and_whole() -> None:
    file = File()
    lines = LineWriter(file)

    def talk(name: int) -> None:
        for number in range(500):
            lines.info(f"{name} {number}")

    threads = [threading.Thread(target=talk, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = [tuple(map(int, line.split())) for line in "".join(file.writes).splitlines()]
    assert len(entries) == 2000
    for name in range(4):
        assert [number for who, number in entries if who == name] == list(range(500))
