"""The thread that reads the input of an import some chunks ahead."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ccp.errors import ConfigurationError
from ccp.server.bulk.checkpoint import Checkpoint
from ccp.server.bulk.lines import Chunk, InputSource

_CHUNKS_AHEAD: Final = 4


class InputReader:
    """Reads chunks in a thread. It is a daemon thread, because a read of standard input may block for ever."""

    def __init__(
        self,
        source: InputSource,
        max_line_bytes: int,
        checkpoint: Checkpoint | None,
        checkpoint_file: Path | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """checkpoint: of the run that is resumed. checkpoint_file: for the error message."""
        self._source = source
        self._max_line_bytes = max_line_bytes
        self._checkpoint = checkpoint
        self._checkpoint_file = checkpoint_file
        self._loop = loop
        self._queue: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        self._space = threading.Semaphore(_CHUNKS_AHEAD)
        self._stopped = False
        threading.Thread(target=self._read, name="import-reader", daemon=True).start()

    async def next(self) -> Chunk | None:
        """The next chunk, None at the end. Raises ConfigurationError."""
        item = await self._queue.get()
        self._space.release()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """End the thread after the chunk that it is reading."""
        self._stopped = True
        self._space.release()

    def _read(self) -> None:
        try:
            for chunk in self._remaining():
                self._space.acquire()
                if self._stopped:
                    return
                self._put(chunk)
            self._put(None)
        except BaseException as exc:
            self._put(exc)

    def _put(self, item: Chunk | BaseException | None) -> None:
        if not self._stopped:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    def _remaining(self) -> Iterable[Chunk]:
        """The chunks after the checkpoint. The boundaries of chunks depend on the input only."""
        resume_at = self._checkpoint.offset if self._checkpoint else None
        skipped = 0
        for chunk in self._source.chunks(self._max_line_bytes):
            if resume_at is None:
                yield chunk
                continue
            skipped += len(chunk.lines)
            if chunk.end.lines >= resume_at.lines:
                counted = sum(self._checkpoint.counts.values()) if self._checkpoint else 0
                if chunk.end != resume_at or counted != skipped:
                    break
                resume_at = None
        if resume_at is not None:
            raise ConfigurationError(
                f"The checkpoint is of another input than {self._source.name}: its first {resume_at.lines} lines are "
                f"not those that were imported. Delete {self._checkpoint_file} to start from the beginning."
            )
