"""Worker processes that share one listening socket, and the supervisor that keeps them alive.

Only the supervisor holds the write end of the shutdown pipe. Its end tells the workers to shut
down, also when the supervisor is killed, and cannot arrive twice as a signal to the process group
does. Each worker opens its own store after the fork: SQLite's locks do not survive one. A system
that cannot fork has no supervisor, and one process serves.

A worker whose sync fails ends at once. The supervisor then kills the others, settles the files
while no connection is open, and starts new workers.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NoReturn

from bookings.server import unix_socket
from bookings.server.server import DRAIN_SECONDS
from bookings.server.signals import STOP_SIGNALS, handle_signals, wake_up_on_signals
from bookings.server.worker import enter_process, run_worker
from bookings.stores import Database
from bookings.stores.files import Identities
from bookings.stores.model import CannotOpen
from bookings.stores.shared import SharedState

# A worker that exits within this time failed at startup.
STARTUP_SECONDS = 1.0
# Consecutive failures at startup, per worker, after which the supervisor gives up.
MAX_STARTUP_FAILURES = 5
# How long the supervisor waits for workers before it kills them: longer than they drain, and
# shorter than the 10 s after which Docker kills all of them.
STOP_TIMEOUT = DRAIN_SECONDS + 1.0
# How often the supervisor tries to settle the files of a disk that fails, and how often it says so.
SETTLE_SECONDS = 0.2
REPORT_SECONDS = 60.0
# Shortest time between two restarts from the disk. A disk that accepts what settling writes may
# still fail every booking; two workers whose clients retried restarted 75 times per second.
RESTART_SECONDS = 1.0
# How long a restart waits for another program to close the database: a reader such as a backup, or
# a second server, whose sync fails as well and which restarts, too.
OTHERS_SECONDS = 2.0

_logger = logging.getLogger("bookings")


def serve(
    listener: socket.socket,
    database: Database,
    allowed_hosts: Collection[str],
    count: int,
    announce: Callable[[], None],
) -> int:
    """Serve with `count` workers until a signal arrives. Return the exit code.

    `announce` is called once the workers have opened the database. Raises OSError if the system
    has no room for that many processes.
    """
    if not hasattr(os, "fork"):
        store = database.open_store(None, SharedState())
        return run_worker(listener, store, allowed_hosts, STOP_SIGNALS, announce)
    return Supervisor(listener, database, allowed_hosts, count).run(announce)


class Supervisor:
    """Starts workers, replaces those that die, and leaves none behind."""

    def __init__(
        self,
        listener: socket.socket,
        database: Database,
        allowed_hosts: Collection[str],
        count: int,
    ) -> None:
        self._listener = listener
        self._database = database
        self._allowed_hosts = allowed_hosts
        self._count = count
        # A replacement must serve the same files as the first workers. The first ones accept any
        # files, because another server that starts may create and delete the WAL meanwhile.
        self._identities: Identities | None = None
        self._shared = SharedState()
        # Reports a write-back error that the kernel reported to a worker just before it was killed.
        self._wal: int | None = None
        # By process id, the number of each worker and when it was started.
        self._workers: dict[int, tuple[int, float]] = {}
        self._shutting_down, self._stop_deadline = False, 0.0
        self._failed = False
        self._startup_failures = 0
        self._next_restart = 0.0
        self._shutdown_pipe = os.pipe()

    def run(self, announce: Callable[[], None]) -> int:
        handle_signals(STOP_SIGNALS, self._shut_down, self._kill_workers)
        wakeup = wake_up_on_signals()
        if not self._start_workers():
            self._shut_down()  # Each worker has logged why it failed.
        elif not self._shutting_down:
            announce()
        while self._workers:
            worker, status = os.waitpid(-1, os.WNOHANG)
            if not worker:
                self._wait_for_signal(wakeup)
            # Process 1 of a container also inherits children that it did not start.
            elif worker in self._workers:
                self._reap_worker(worker, os.waitstatus_to_exitcode(status))
        # Without a shutdown, the last worker died and could not be replaced.
        return 0 if self._shutting_down and not self._failed else 1

    def _start_workers(self) -> bool:
        """Start all workers, and wait until each is ready or dead. Return whether any is ready."""
        # Each worker writes one byte when it is ready and closes its end, as its death does.
        read_end, write_end = os.pipe()
        with open(read_end, "rb") as ready:
            try:
                for number in range(self._count):
                    self._spawn_worker(number, write_end)
            finally:
                os.close(write_end)
            any_ready = bool(ready.read())
        if any_ready:
            self._identities = self._database.identify()
            with suppress(FileNotFoundError):  # It has just been moved away.
                self._wal = self._database.open_wal()
        return any_ready

    def _wait_for_signal(self, wakeup: int) -> None:
        """Wait for any signal. During a shutdown, kill the workers after STOP_TIMEOUT."""
        timeout = None
        if self._shutting_down:
            timeout = max(0.0, self._stop_deadline - time.monotonic())
        if select.select([wakeup], [], [], timeout)[0]:
            os.read(wakeup, 1)
        else:
            self._kill_workers()
            # The system may take time to end a process that waits for a disk.
            self._stop_deadline = time.monotonic() + STOP_TIMEOUT

    def _reap_worker(self, worker: int, status: int) -> None:
        """Note the end of a worker, and start another one unless the server is shutting down."""
        number, started = self._workers.pop(worker)
        self._shared.queue.repair()
        if self._shutting_down:
            self._failed = self._failed or status != 0
            return
        if self._shared.sync_failed or self._sync_fails():
            self._restart_from_disk()
            return
        failed_at_startup = time.monotonic() - started < STARTUP_SECONDS
        self._startup_failures = self._startup_failures + 1 if failed_at_startup else 0
        if self._startup_failures >= MAX_STARTUP_FAILURES * self._count:
            _logger.error("workers keep failing at startup; giving up")
            self._failed = True
            self._shut_down()
            return
        _logger.error("worker %d exited with status %d; starting another", worker, status)
        try:
            self._spawn_worker(number)
        except OSError as error:  # The other workers continue.
            _logger.error("cannot start another worker: %s", error.strerror)

    def _sync_fails(self) -> bool:
        """Return whether write-back of the WAL failed. The kernel reports that to each descriptor
        once, so a worker that is killed during a sync takes the error with it.
        """
        try:
            if self._wal is not None:
                os.fsync(self._wal)
        except OSError as error:
            _logger.error("a sync failed; all workers restart from the disk: %s", error)
            return True
        return False

    def _restart_from_disk(self) -> None:
        """Replace all workers after a failed sync, as soon as the disk accepts writes again."""
        if self._wal is not None:
            os.close(self._wal)
            self._wal = None
        next_report, failures = 0.0, 0
        others_deadline = time.monotonic() + OTHERS_SECONDS
        while not self._shutting_down and failures < MAX_STARTUP_FAILURES:
            self._kill_workers()
            for worker in list(self._workers):
                os.waitpid(worker, 0)
                del self._workers[worker]
            try:
                now = time.monotonic()
                if now >= self._next_restart and self._settle(now >= others_deadline):
                    self._shared.reset()
                    # While no worker ran, another program may have closed the database and deleted
                    # the WAL.
                    name = self._database.name
                    identities = self._identities or {}
                    self._identities = {p: i for p, i in identities.items() if p == name}
                    if self._start_workers():
                        self._next_restart = now + RESTART_SECONDS
                        return
                    failures += 1
            except OSError as error:
                if error.errno == errno.EROFS:
                    _logger.error("the file system is read-only now; repair it, then restart")
                    break
                if time.monotonic() >= next_report:
                    _logger.error("waiting for the disk: %s", error)
                    next_report = time.monotonic() + REPORT_SECONDS
            self._close_waiting_connections()
            time.sleep(SETTLE_SECONDS)
        if not self._shutting_down:
            self._failed = True
            self._shut_down()

    def _settle(self, is_last_try: bool) -> bool:
        """Return whether workers may start. Raise OSError if the disk fails."""
        if self._database.settle():
            return True
        if is_last_try:
            _logger.error("another program has the database open; its WAL is not verified")
        return is_last_try

    def _close_waiting_connections(self) -> None:
        """Let clients retry elsewhere or later instead of waiting for a disk that fails."""
        with suppress(OSError):  # The backlog is empty, or a shutdown has closed the listener.
            while True:
                self._listener.accept()[0].close()

    def _spawn_worker(self, number: int, ready: int | None = None) -> None:
        # Blocked, because a signal between the test and the fork would leave a worker behind, and
        # a signal to a new worker would run the supervisor's handler in it.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if not self._shutting_down:
                worker = os.fork()
                if not worker:
                    self._run_child(number, ready)
                self._workers[worker] = number, time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _run_child(self, number: int, ready: int | None) -> NoReturn:
        """Run a worker in the forked process, and exit."""
        status = 1
        try:
            enter_process(number, is_only_worker=self._count == 1)
            shutdown_pipe, write_end = self._shutdown_pipe
            os.close(write_end)

            def report_ready() -> None:
                if ready is not None:
                    os.write(ready, b".")
                    os.close(ready)

            status = run_worker(
                self._listener,
                self._database.open_store(self._identities, self._shared),
                self._allowed_hosts,
                [signal.SIGTERM],
                report_ready,
                shutdown_pipe,
            )
        except CannotOpen as error:
            # During a shutdown this is not a failure: the other workers have deleted the WAL.
            if select.select([self._shutdown_pipe[0]], [], [], 0)[0]:
                status = 0
            else:
                _logger.error("worker %d: %s", os.getpid(), error)
        except Exception:
            _logger.exception("worker %d failed", os.getpid())
        finally:
            if sys.stderr:
                sys.stderr.flush()
            os._exit(status)

    def _kill_workers(self) -> None:
        for worker in self._workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def _shut_down(self) -> None:
        if not self._shutting_down:
            self._shutting_down = True
            self._stop_deadline = time.monotonic() + STOP_TIMEOUT
            unix_socket.close(self._listener)
            os.close(self._shutdown_pipe[1])
