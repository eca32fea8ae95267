"""Blocking functions in threads, each kind with threads of its own and a time limit.

`asyncio.to_thread` has six threads for everything on two cores, no time limit, and a process that ends waits for them:
one file on a network file system that hangs would keep every login from its thread. Here

- a function that does not return keeps a thread of its own kind alone;
- its caller waits for `timeout` seconds at most, for a free thread or for the result;
- a process that ends does not wait: the threads are daemons.
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
    """Belongs to one event loop."""

    def __init__(self, name: str, *, max_threads: int, timeout: float) -> None:
        """name: of the threads. timeout: seconds."""
        self._name = name
        self._timeout = timeout
        self._free = asyncio.Semaphore(max_threads)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread. Raises what it raises, and Unavailable where there is no result in time."""
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
                    loop.call_soon_threadsafe(self._landed, result, value, error)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except (RuntimeError, MemoryError) as exc:  # The system has no thread left.
            self._free.release()
            raise Unavailable(f"The {self._name} cannot work now; try again.") from exc

    def _landed(self, result: asyncio.Future[T], value: Any, error: Exception | None) -> None:
        self._free.release()
        if result.done():
            return  # Its caller has gone.
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)


def _raisable(exc: BaseException) -> Exception:
    """As it is, but for what an event loop or a coroutine would take for its own."""
    if isinstance(exc, Exception) and not isinstance(exc, StopIteration):
        return exc
    error = RuntimeError(f"a blocking call was ended by {type(exc).__name__}")
    error.__cause__ = exc
    return error
