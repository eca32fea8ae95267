"""Blocking functions in threads, with separate threads and a time limit for each kind.

`asyncio.to_thread` shares six threads on two cores, has no time limit, and delays the end of the process: one file on a
hanging network file system would block every login. With `BlockingCalls`

- a function that does not return blocks only a thread of its kind;
- the caller waits at most `timeout` seconds, for a free thread and for the result;
- the threads are daemons, so the process can end without them.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from ccp.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")


class BlockingCalls:
    """A kind of blocking call. Belongs to one event loop."""

    def __init__(self, name: str, *, max_threads: int, timeout: float) -> None:
        """name: of the threads, and in errors. timeout: seconds."""
        self._name = name
        self._timeout = timeout
        self._free = asyncio.Semaphore(max_threads)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread. Raises what it raises, and Unavailable if there is no result in time."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        try:
            async with asyncio.timeout(self._timeout) as limit:
                await self._free.acquire()
                self._start(loop, result, lambda: function(*args, **kwargs))
                return await result
        except TimeoutError as exc:
            if not limit.expired():
                raise  # The function's own.
            raise Unavailable(f"The {self._name} takes longer than {self._timeout:g} seconds; try again.") from exc

    def _start(self, loop: asyncio.AbstractEventLoop, result: asyncio.Future[T], call: Callable[[], T]) -> None:
        def work() -> None:
            value: Any = None
            error: Exception | None = None
            try:
                value = call()
            except BaseException as exc:
                error = _raisable(exc)
            finally:
                with contextlib.suppress(RuntimeError):  # The loop was closed meanwhile.
                    loop.call_soon_threadsafe(self._deliver, result, value, error)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except (RuntimeError, MemoryError) as exc:  # The system cannot create a thread.
            self._free.release()
            raise Unavailable(f"The {self._name} cannot work now; try again.") from exc

    def _deliver(self, result: asyncio.Future[T], value: Any, error: Exception | None) -> None:
        self._free.release()
        if result.done():
            return  # The caller was cancelled or timed out.
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)


def _raisable(exc: BaseException) -> Exception:
    """The exception, wrapped if an event loop or a coroutine would interpret it itself."""
    if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
        return exc
    error = RuntimeError(f"a blocking call was ended by {type(exc).__name__}")
    error.__cause__ = exc
    return error
