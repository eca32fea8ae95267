"""Supervisor of worker processes on one port: starts them, replaces those that end or hang, stops them all.

The parent imports the application and opens nothing; workers are forked from it, so that each of them is ready after
what it alone has to do, and they share the memory of the imported modules (docs/decisions/0020). Where fork is not
safe (not on Linux, or the parent has threads) they are spawned, and each imports everything itself.

- The parent binds the port, and each worker listens and accepts when its application has started. So a client
  cannot connect before the first worker is ready, and no client waits for the others.
- The first worker starts alone, then the others, one less than there are processors at a time.
- A worker that ends is replaced at once. Workers that end again and again are replaced after a delay, which doubles up
  to 30 seconds.
- A worker tells that it lives once a second, by a thread. One that has not for `timeout_worker_healthcheck` seconds is
  killed and replaced.
- A worker whose parent has gone stops as at SIGTERM, and lets go of the port.
- SIGTERM and SIGINT stop the workers. SIGHUP replaces all of them, each when its successor is ready. SIGTTIN starts one
  more, SIGTTOU stops one.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import structlog
from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE

_log = structlog.get_logger("ccp.workers")

_HEARTBEAT_SECONDS: Final = 1.0
_ROUND_SECONDS: Final = 0.5
_START_SECONDS: Final = 60.0
"""Until the first heartbeat of a new process. A spawned one imports the application before it."""
_STABLE_SECONDS: Final = 5.0
_FIRST_DELAY: Final = 0.5
_MAX_DELAY: Final = 30.0
_MAX_DELAY_OF_READY: Final = 2.0

_STOPPING: Final = ("SIGINT", "SIGTERM", "SIGBREAK")
_IGNORED: Final = ("SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH")
_SIGNALS: Final = tuple(
    getattr(signal, name) for name in (*_STOPPING, "SIGHUP", "SIGTTIN", "SIGTTOU", *_IGNORED) if hasattr(signal, name)
)


class RestartDelay:
    """How long to wait until a worker that has ended is replaced.

    Not at all where it has served for some seconds. Else the delay doubles each time: a start costs processor time that
    the other workers need, and one that has failed will fail again. Where workers become ready and then end soon, it
    stays short, since they serve meanwhile.
    """

    def __init__(self) -> None:
        self._count = 0

    def after_end(self, *, ready: bool, age: float) -> float:
        """Seconds to wait. ready: whether the worker ever was. age: seconds since its start."""
        if ready and age >= _STABLE_SECONDS:
            self._count = 0
            return 0.0
        self._count = min(self._count + 1, 16)
        delay: float = _FIRST_DELAY * 2 ** (self._count - 1)
        return min(_MAX_DELAY_OF_READY if ready else _MAX_DELAY, delay)


class Worker:
    """A worker process, seen from its parent. Times are of the monotonic clock."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        """Start one. Raises OSError."""
        context: Any = multiprocessing.get_context("fork" if fork_is_safe() else "spawn")
        self.heartbeats: Connection
        self.heartbeats, sending = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(config, sockets, sending, os.getpid()), name="worker")
        try:
            with _signals_blocked():
                self.process.start()
        except BaseException:
            self.heartbeats.close()
            raise
        finally:
            sending.close()
        self.started_at = time.monotonic()
        self.heard_at = self.started_at + _START_SECONDS
        self.ready = False
        self.outdated = False
        """To be replaced."""
        self.stopping = False

    @property
    def pid(self) -> int:
        pid: int = self.process.pid
        return pid

    def events(self) -> tuple[Any, Any]:
        """What becomes readable when it has ended, or told something."""
        return self.process.sentinel, self.heartbeats

    def listen(self) -> None:
        """Take the heartbeats that have come."""
        with contextlib.suppress(EOFError, OSError):
            while self.heartbeats.poll():
                self.ready = self.heartbeats.recv_bytes() == _READY or self.ready
                self.heard_at = time.monotonic()

    def stop(self) -> None:
        self.stopping = True
        if self.process.exitcode is None:
            self.process.terminate()

    def forget(self) -> None:
        self.process.join()
        self.heartbeats.close()


class Supervisor:
    """Runs workers until a signal comes."""

    def __init__(
        self,
        config: Config,
        sockets: list[socket.socket],
        *,
        prepare: Callable[[], None] = lambda: None,
        ended: Callable[[int], None] = lambda pid: None,
    ) -> None:
        """sockets: bound and not listening. prepare: imports what workers share. ended: told the process id of each
        worker that has ended.
        """
        self._config = config
        self._sockets = sockets
        self._prepare = prepare
        self._ended = ended
        self._count = config.workers
        self._timeout = float(config.timeout_worker_healthcheck)
        self._workers: list[Worker] = []
        self._delay = RestartDelay()
        self._not_before = 0.0
        self._served = False
        self._signals: list[int] = []
        self._status: int | None = None
        """The exit status, when this process is to stop."""
        self._round_ended = time.monotonic()

    def run(self) -> int:
        """Returns the exit status: that of a failed start where the first worker could not start, else 0."""
        with self._waking() as woken:
            try:
                if fork_is_safe():
                    self._prepare()
                    gc.collect()
                    gc.freeze()  # So that a worker's collector does not write to what it shares with the others.
                self._obey()
                while self._status is None:
                    self._start_missing(time.monotonic())
                    self._hand_over()
                    self._round(woken)
            finally:
                self._let_go()
                while self._workers:
                    self._round(woken)
        return self._status

    def _round(self, woken: socket.socket) -> None:
        """Wait until something happens, half a second at most, and take it over."""
        until_start = self._not_before - time.monotonic()
        timeout = min(_ROUND_SECONDS, until_start) if until_start > 0 else _ROUND_SECONDS
        wait([woken, *(each for worker in self._workers for each in worker.events())], timeout)
        _drain(woken)
        self._excuse()
        for worker in self._workers:
            was_ready = worker.ready
            worker.listen()
            if worker.ready and not was_ready:
                self._served = True
                _log.info("worker ready", pid=worker.pid, after_seconds=round(worker.heard_at - worker.started_at, 2))
        self._remove_ended()
        self._kill_hung()
        self._obey()

    # Starting, replacing.

    def _start_missing(self, now: float) -> None:
        while now >= self._not_before and self._wanted():
            try:
                self._workers.append(Worker(self._config, self._sockets))
            except OSError as exc:
                delay = self._delay.after_end(ready=False, age=0.0)
                self._not_before = now + delay
                _log.error("worker not started", reason=exc.strerror or str(exc), retry_after_seconds=delay)

    def _wanted(self) -> bool:
        starting = sum(not worker.ready for worker in self._workers if not worker.stopping)
        at_once = max(1, (os.cpu_count() or 1) - 1) if self._served else 1
        return sum(not worker.outdated for worker in self._workers) < self._count and starting < at_once

    def _hand_over(self) -> None:
        """Stop workers that are outdated or too many, as far as enough others are ready."""
        outdated = [worker for worker in self._workers if worker.outdated and not worker.stopping]
        ready = sum(worker.ready for worker in self._workers if not worker.outdated)
        for worker in outdated[: max(0, ready + len(outdated) - self._count)]:
            worker.stop()

    def _remove_ended(self) -> None:
        for worker in [each for each in self._workers if each.process.exitcode is not None]:
            self._workers.remove(worker)
            worker.forget()
            self._ended(worker.pid)
            if not worker.stopping:
                self._unexpected(worker)

    def _unexpected(self, worker: Worker) -> None:
        """A worker that was not stopped has ended."""
        status: int = worker.process.exitcode
        if status > 0 and not self._served:
            self._status = STARTUP_FAILURE  # It would fail in the same way again: settings, certificate, schema.
            return
        now = time.monotonic()
        age = now - worker.started_at
        delay = self._delay.after_end(ready=worker.ready, age=age)
        self._not_before = now + delay
        _log.error(
            "worker ended", pid=worker.pid, exit_status=status, age_seconds=round(age, 1), replaced_after_seconds=delay
        )
        outdated = [each for each in self._workers if each.outdated and not each.stopping]
        if outdated and not worker.ready and not worker.outdated:
            for each in outdated:
                each.outdated = False
            _log.error("workers not replaced", reason="The first of the new workers did not start.")

    def _excuse(self) -> None:
        """Where this process itself was held up, for instance by a suspended machine, its workers were too."""
        now = time.monotonic()
        late = now - self._round_ended - _HEARTBEAT_SECONDS
        if late > 0:
            for worker in self._workers:
                worker.heard_at += late
        self._round_ended = now

    def _kill_hung(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if (silent := now - worker.heard_at) > self._timeout:
                _log.error("worker does not respond", pid=worker.pid, seconds=round(silent, 1))
                worker.process.kill()
                worker.heard_at = now

    # Signals.

    def _obey(self) -> None:
        while self._signals:
            name = signal.Signals(self._signals.pop(0)).name
            if name in _STOPPING:
                self._status = self._status or 0
            elif name == "SIGHUP":
                for worker in self._workers:
                    worker.outdated = True
            elif name == "SIGTTIN":
                self._count += 1
            elif name == "SIGTTOU" and self._count > 1:
                self._count -= 1
                fresh = [worker for worker in self._workers if not worker.outdated]
                if len(fresh) > self._count:
                    fresh[-1].outdated = True
                    fresh[-1].stop()

    @contextmanager
    def _waking(self) -> Iterator[socket.socket]:
        """A socket that can be read from when a signal has come. Restores what was there before."""
        woken, waking = socket.socketpair()
        with woken, waking:
            woken.setblocking(False)
            waking.setblocking(False)
            before = {
                each: signal.signal(each, lambda number, frame: self._signals.append(number)) for each in _SIGNALS
            }
            descriptor = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
            try:
                yield woken
            finally:
                signal.set_wakeup_fd(descriptor)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _let_go(self) -> None:
        """Stop the workers, and close the listening sockets.

        Each worker closes its own copy when it has drained. The parent's copy would outlive them, and the kernel would
        accept connections on it that no worker ever answers.
        """
        for worker in self._workers:
            worker.stop()
        for listening in self._sockets:
            listening.close()


def fork_is_safe() -> bool:
    """Whether a child may be forked: locks that another thread holds would stay locked in it for ever."""
    if sys.platform != "linux":
        return False
    return threading.active_count() == 1 and len(os.listdir("/proc/self/task")) == 1


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A signal that comes before a new process has its own handlers waits until then."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _drain(woken: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while woken.recv(4096):
            pass


# --- In a worker -----------------------------------------------------------------------------------------------------

_STARTING: Final = b"0"
_READY: Final = b"1"


class _Server(Server):
    """uvicorn's server, which says when it accepts connections."""

    def __init__(self, config: Config, heartbeats: Connection) -> None:
        super().__init__(config)
        self._heartbeats = heartbeats

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.beat()

    def beat(self) -> None:
        with contextlib.suppress(OSError):
            self._heartbeats.send_bytes(_READY if self.started else _STARTING)


def _work(config: Config, sockets: list[socket.socket], heartbeats: Connection, parent: int) -> None:
    _default_signals()
    config.configure_logging()
    server = _Server(config, heartbeats)
    threading.Thread(target=_live, args=(server, parent), name="heartbeat", daemon=True).start()
    server.run(sockets)


def _live(server: _Server, parent: int) -> None:
    """Tell once a second that this process lives, and end it when its parent has gone."""
    while sys.platform == "win32" or os.getppid() == parent:
        server.beat()
        time.sleep(_HEARTBEAT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _default_signals() -> None:
    """Handlers of the parent are not for a worker; uvicorn sets its own when it runs."""
    signal.set_wakeup_fd(-1)
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # It is the parent that replaces workers.
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
