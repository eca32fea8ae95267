"""Supervisor of worker processes on one port: starts them, replaces those that exit or hang, and stops them.

The parent imports the application and opens nothing. It forks the workers, which share the memory of the imported
modules and become ready after their own initialisation (docs/decisions/0020). Where fork is not safe (not on Linux, or
the parent has threads) the workers are spawned, and each imports everything itself.

- The parent binds the port. Each worker listens and accepts when its application has started: a client cannot connect
  before the first worker is ready, and no client waits for the other workers.
- The first worker starts alone, then the others, one fewer than there are processors at a time.
- A worker that exits is replaced at once. After repeated exits the replacement is delayed; the delay doubles up to 30
  seconds.
- A thread of each worker sends a heartbeat once a second. A worker without a heartbeat for
  `timeout_worker_healthcheck` seconds is killed and replaced.
- A worker whose parent has exited stops as at SIGTERM, and releases the port.
- SIGTERM and SIGINT stop the workers. At SIGHUP each of them reloads in place. SIGUSR2 replaces each of them when its
  successor is ready. SIGTTIN starts one more, SIGTTOU stops one.
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
from importlib import import_module
from multiprocessing.connection import Connection, wait
from typing import Any, Final

import structlog
from uvicorn import Config, Server
from uvicorn.config import STARTUP_FAILURE

from ccp.server.reloading import hold_signal

_log = structlog.get_logger("ccp.workers")

_HEARTBEAT_INTERVAL: Final = 1.0
_POLL_INTERVAL: Final = 0.5
_START_TIMEOUT: Final = 60.0
"""Seconds until the first heartbeat of a new process. A spawned process imports the application before it."""
_STABLE_AGE: Final = 5.0
"""A ready worker of this age, in seconds, is replaced without delay."""
_FIRST_DELAY: Final = 0.5
_MAX_DELAY: Final = 30.0
_MAX_DELAY_IF_READY: Final = 2.0

_STOPPING: Final = ("SIGINT", "SIGTERM", "SIGBREAK")
_IGNORED: Final = ("SIGQUIT", "SIGUSR1", "SIGWINCH")
_HANDLED: Final = (*_STOPPING, "SIGHUP", "SIGUSR2", "SIGTTIN", "SIGTTOU")
_SIGNALS: Final = tuple(getattr(signal, name) for name in (*_HANDLED, *_IGNORED) if hasattr(signal, name))


class RestartDelay:
    """Delay before the replacement of a worker that has exited.

    There is no delay if the worker served for some seconds. Otherwise the delay doubles each time: a start costs
    processor time that the other workers need, and a start that failed is likely to fail again. The delay stays short
    if workers become ready and then exit, because they serve in between.
    """

    def __init__(self) -> None:
        self._count = 0

    def next(self, *, ready: bool, age: float) -> float:
        """Seconds to wait. ready: whether the worker ever became ready. age: seconds since its start."""
        if ready and age >= _STABLE_AGE:
            self._count = 0
            return 0.0
        self._count = min(self._count + 1, 16)
        delay: float = _FIRST_DELAY * 2 ** (self._count - 1)
        return min(_MAX_DELAY_IF_READY if ready else _MAX_DELAY, delay)


class Hooks:
    """What the parent does for one application. None of the methods may raise, and none may start a thread."""

    def prepare(self, config: Config) -> None:
        """Import the modules that workers share: that of the application."""
        import_module(str(config.app).partition(":")[0])

    def handover(self, config: Config) -> Callable[[], None]:
        """Called before each start: change the configuration, and return what the worker calls first.

        The result can be pickled.
        """
        return _nothing

    def look(self) -> None:
        """Called at least once a second."""

    def worker_ready(self, handed: Callable[[], None]) -> None:
        """Called when a worker became ready. handed: what `handover` returned for it."""

    def start_failed(self, handed: Callable[[], None]) -> None:
        """Called when a worker exited with an error before it became ready, as `worker_ready`."""

    def worker_exited(self, pid: int) -> None:
        """Called for each worker that has exited."""

    def reload(self) -> bool:
        """Called at SIGHUP. Returns whether the workers get it too."""
        return True

    def renew(self) -> bool:
        """Called at SIGUSR2. Returns whether the workers are replaced."""
        return True


def _nothing() -> None:
    """Take over nothing."""


class Worker:
    """A worker process as the parent sees it. Times are of the monotonic clock."""

    def __init__(self, config: Config, sockets: list[socket.socket], handover: Callable[[], None]) -> None:
        """Start the process. Raises OSError."""
        context: Any = multiprocessing.get_context("fork" if fork_is_safe() else "spawn")
        self.handed = handover
        self.heartbeats: Connection
        self.heartbeats, sending = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_run_worker, args=(config, sockets, handover, sending, os.getpid()), name="worker"
        )
        try:
            with _signals_blocked():
                self.process.start()
        except BaseException:
            self.heartbeats.close()
            raise
        finally:
            sending.close()
        self.started_at = time.monotonic()
        self.last_heartbeat = self.started_at + _START_TIMEOUT
        self.ready = False
        self.outdated = False
        """Whether it is to be replaced."""
        self.stopping = False

    @property
    def pid(self) -> int:
        """Process id."""
        pid: int = self.process.pid
        return pid

    def waitables(self) -> tuple[Any, Any]:
        """Objects for `multiprocessing.connection.wait`: ready when the process has exited or sent a heartbeat."""
        return self.process.sentinel, self.heartbeats

    def receive_heartbeats(self) -> None:
        """Read the heartbeats received so far."""
        with contextlib.suppress(EOFError, OSError):
            while self.heartbeats.poll():
                self.ready = self.heartbeats.recv_bytes() == _READY or self.ready
                self.last_heartbeat = time.monotonic()

    def stop(self) -> None:
        """Send SIGTERM."""
        self.stopping = True
        if self.process.exitcode is None:
            self.process.terminate()

    def reload(self) -> None:
        """Send SIGHUP. A worker that starts holds it until it is ready."""
        if self.process.exitcode is None:
            os.kill(self.pid, signal.SIGHUP)

    def close(self) -> None:
        """Reap the process and close its pipe."""
        self.process.join()
        self.heartbeats.close()


class Supervisor:
    """Runs workers until it receives a signal to stop."""

    def __init__(self, config: Config, sockets: list[socket.socket], hooks: Hooks) -> None:
        """sockets: bound and not listening."""
        self._config = config
        self._sockets = sockets
        self._hooks = hooks
        self._count = config.workers
        self._timeout = float(config.timeout_worker_healthcheck)
        self._workers: list[Worker] = []
        self._delay = RestartDelay()
        self._not_before = 0.0
        self._served = False
        self._signals: list[int] = []
        self._status: int | None = None
        """The exit status, set when this process has to stop."""
        self._last_poll = time.monotonic()

    def run(self) -> int:
        """Return the exit status: 0, or uvicorn's status of a failed start if the first worker could not start."""
        with self._signal_wakeup() as woken:
            try:
                if fork_is_safe():
                    self._hooks.prepare(self._config)
                    gc.collect()
                    gc.freeze()  # Keeps a worker's garbage collector from writing to shared pages.
                self._handle_signals()
                while self._status is None:
                    self._start_missing(time.monotonic())
                    self._stop_outdated()
                    self._poll(woken)
            finally:
                self._stop_workers()
                while self._workers:
                    self._poll(woken)
        return self._status

    def _poll(self, woken: socket.socket) -> None:
        """Wait for an event for at most half a second, and handle it."""
        until_start = self._not_before - time.monotonic()
        timeout = min(_POLL_INTERVAL, until_start) if until_start > 0 else _POLL_INTERVAL
        wait([woken, *(item for worker in self._workers for item in worker.waitables())], timeout)
        _drain(woken)
        self._hooks.look()
        self._extend_deadlines()
        for worker in self._workers:
            was_ready = worker.ready
            worker.receive_heartbeats()
            if worker.ready and not was_ready:
                self._served = True
                self._hooks.worker_ready(worker.handed)
                _log.info(
                    "worker ready", pid=worker.pid, after_seconds=round(worker.last_heartbeat - worker.started_at, 2)
                )
        self._remove_ended()
        self._kill_hung()
        self._handle_signals()

    # Starting and replacing.

    def _start_missing(self, now: float) -> None:
        while now >= self._not_before and self._worker_missing():
            try:
                self._workers.append(Worker(self._config, self._sockets, self._hooks.handover(self._config)))
            except OSError as exc:
                delay = self._delay.next(ready=False, age=0.0)
                self._not_before = now + delay
                _log.error("worker start failed", reason=exc.strerror or str(exc), retry_after_seconds=delay)

    def _worker_missing(self) -> bool:
        """Whether one more worker has to be started, and may be started now."""
        starting = sum(not worker.ready for worker in self._workers if not worker.stopping)
        at_once = max(1, (os.cpu_count() or 1) - 1) if self._served else 1
        return sum(not worker.outdated for worker in self._workers) < self._count and starting < at_once

    def _stop_outdated(self) -> None:
        """Stop outdated workers, as far as enough others are ready."""
        outdated = [worker for worker in self._workers if worker.outdated and not worker.stopping]
        ready = sum(worker.ready for worker in self._workers if not worker.outdated)
        for worker in outdated[: max(0, ready + len(outdated) - self._count)]:
            worker.stop()

    def _remove_ended(self) -> None:
        for worker in [worker for worker in self._workers if worker.process.exitcode is not None]:
            self._workers.remove(worker)
            worker.close()
            self._hooks.worker_exited(worker.pid)
            if not worker.stopping:
                self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        """Handle the exit of a worker that was not stopped."""
        status: int = worker.process.exitcode
        if status > 0 and not self._served:
            self._status = STARTUP_FAILURE  # It would fail again: settings, certificate, schema.
            return
        if status > 0 and not worker.ready:
            self._hooks.start_failed(worker.handed)
        now = time.monotonic()
        age = now - worker.started_at
        delay = self._delay.next(ready=worker.ready, age=age)
        self._not_before = now + delay
        _log.error(
            "worker exited", pid=worker.pid, exit_status=status, age_seconds=round(age, 1), replaced_after_seconds=delay
        )
        outdated = [other for other in self._workers if other.outdated and not other.stopping]
        if outdated and not worker.ready and not worker.outdated:
            for other in outdated:
                other.outdated = False
            _log.error("worker replacement failed", reason="The first of the new workers did not start.")

    def _extend_deadlines(self) -> None:
        """Extend the heartbeat deadlines if this process was suspended, because its workers were then suspended too."""
        now = time.monotonic()
        late = now - self._last_poll - _HEARTBEAT_INTERVAL
        if late > 0:
            for worker in self._workers:
                worker.last_heartbeat += late
        self._last_poll = now

    def _kill_hung(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if (silent := now - worker.last_heartbeat) > self._timeout:
                _log.error("worker unresponsive", pid=worker.pid, seconds=round(silent, 1))
                worker.process.kill()
                worker.last_heartbeat = now

    # Signals.

    def _handle_signals(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            if number in self._signals and signal.Signals(number).name == "SIGHUP":
                continue  # The last of several reloads everything.
            name = signal.Signals(number).name
            if name in _STOPPING:
                self._status = self._status or 0
            elif name == "SIGHUP":
                if self._hooks.reload():
                    for worker in self._workers:
                        worker.reload()
            elif name == "SIGUSR2":
                if self._hooks.renew():
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
    def _signal_wakeup(self) -> Iterator[socket.socket]:
        """Install signal handlers and yield a socket that becomes readable on a signal; restore the old handlers."""
        woken, waking = socket.socketpair()
        with woken, waking:
            woken.setblocking(False)
            waking.setblocking(False)
            before = {
                number: signal.signal(number, lambda received, frame: self._signals.append(received))
                for number in _SIGNALS
            }
            descriptor = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
            if sys.platform != "win32":
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # SIGHUP was held during the start.
            try:
                yield woken
            finally:
                signal.set_wakeup_fd(descriptor)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _stop_workers(self) -> None:
        """Stop the workers and close the listening sockets.

        Each worker closes its own copy when it has drained. The parent's copy would outlive the workers, and the kernel
        would accept connections on it that no worker answers.
        """
        for worker in self._workers:
            worker.stop()
        for listening in self._sockets:
            listening.close()


def fork_is_safe() -> bool:
    """Whether a child may be forked: a lock held by another thread would stay locked in the child for ever."""
    if sys.platform != "linux":
        return False
    return threading.active_count() == 1 and len(os.listdir("/proc/self/task")) == 1


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals while a process starts, so that the child receives them after it has installed its handlers."""
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
    """uvicorn's server, which reports when it accepts connections."""

    def __init__(self, config: Config, heartbeats: Connection) -> None:
        super().__init__(config)
        self._heartbeats = heartbeats

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.send_heartbeat()

    def send_heartbeat(self) -> None:
        with contextlib.suppress(OSError):
            self._heartbeats.send_bytes(_READY if self.started else _STARTING)


def _run_worker(
    config: Config, sockets: list[socket.socket], handover: Callable[[], None], heartbeats: Connection, parent: int
) -> None:
    _reset_signals()
    handover()
    config.configure_logging()
    server = _Server(config, heartbeats)
    threading.Thread(target=_send_heartbeats, args=(server, parent), name="heartbeat", daemon=True).start()
    server.run(sockets)


def _send_heartbeats(server: _Server, parent: int) -> None:
    """Send a heartbeat once a second, and stop this process when its parent has exited."""
    while sys.platform == "win32" or os.getppid() == parent:
        server.send_heartbeat()
        time.sleep(_HEARTBEAT_INTERVAL)
    os.kill(os.getpid(), signal.SIGTERM)


def _reset_signals() -> None:
    """Remove the handlers inherited from the parent; uvicorn installs its own.

    SIGHUP stays blocked until the application handles it.
    """
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    if sys.platform != "win32":
        hold_signal()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(_SIGNALS) - {signal.SIGHUP})
