"""Processes: one server in each, all on one listening socket, and a parent that keeps them alive.

A worker is told to stop by the end of a pipe that only the parent holds open. So it stops as well when the parent is
killed, and a signal sent to the whole group does not reach it twice. Nothing is shared but the socket and the pipe:
each worker opens a store of its own after the fork, since SQLite's locks do not survive one. With one worker there is
no fork. This module knows nothing of HTTP and nothing of SQL.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence

from bookings.databases import kind_of
from bookings.server import DRAIN_SECONDS, BookingServer
from bookings.store import CannotOpen, Files, Store

# A worker that dies sooner has not died of a request but of what every worker meets.
AT_ONCE_SECONDS = 1.0
# Deaths at once, one after the other, for each worker, until it is clear that another start does not help.
DEATHS_AT_ONCE = 5
# How long it may take until a worker that nobody connects to sees that it shall stop; a look costs some 20 us.
LOOK_SECONDS = 0.05
# A worker that has not ended so long after a stop is stuck, or stands still. More than it takes to drain, and less than
# the 10 s after which those who stop servers kill them all.
STOP_SECONDS = DRAIN_SECONDS + 1.0
# Who stops a process and its group, as timeout does, sends it the signal twice. A person takes longer to press Ctrl+C again.
SAME_SECONDS = 0.01
# The last one is Ctrl+Break, on Windows alone.
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
]

_logger = logging.getLogger("bookings")


def default_count() -> int:
    """One worker for each processor that this process may use; one where a process cannot fork."""
    if not hasattr(os, "fork"):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def serve(
    listener: socket.socket, database: str, allowed_hosts: Collection[str], count: int, up: Callable[[], None]
) -> int:
    """Serve with so many workers until a signal asks to stop; the exit status.

    `up` is called when they have opened the database. Raises CannotOpen where the only one cannot, and OSError where
    the system has no room for so many.
    """
    if count == 1:
        return _work(listener, kind_of(database).open(database, None), allowed_hosts, STOP_SIGNALS, None, up)
    return _Parent(listener, database, allowed_hosts).run(count, up)


def _work(
    listener: socket.socket,
    store: Store,
    allowed_hosts: Collection[str],
    signals: Sequence[int],
    parent: int | None,
    up: Callable[[], None],
) -> int:
    """Serve until a signal, or until the parent's pipe ends; 0 if every request in flight was answered."""
    server = BookingServer(listener, store, allowed_hosts)
    _on_signals(signals, lambda: threading.Thread(target=server.shutdown).start(), lambda: None)
    if parent is not None:
        threading.Thread(target=_at_the_end_of, args=(parent, server.shutdown), daemon=True).start()
    up()
    server.serve_forever(LOOK_SECONDS)
    server.server_close()
    answered = server.drain()
    store.close()
    return 0 if answered else 1


def _on_signals(signals: Sequence[int], stop: Callable[[], None], end: Callable[[], None]) -> None:
    """Call `stop` at the first of these signals; at a second one, `end`, and the process dies of it."""
    first = None
    # A terminal that has closed, of which its shell tells, too: it is never the second signal.
    hangup = getattr(signal, "SIGHUP", None)

    def handle(number: int, frame: object) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            stop()
        elif number != hangup and time.monotonic() - first >= SAME_SECONDS:
            end()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for each in signals:
        if each != hangup or signal.getsignal(each) != signal.SIG_IGN:  # as nohup has it
            signal.signal(each, handle)


def _at_the_end_of(pipe: int, stop: Callable[[], None]) -> None:
    os.read(pipe, 1)
    stop()


class _Parent:
    """Starts workers, replaces those that die, and leaves none behind."""

    def __init__(self, listener: socket.socket, database: str, allowed_hosts: Collection[str]) -> None:
        self._listener = listener
        self._database = database
        self._allowed_hosts = allowed_hosts
        # A worker that starts later must not serve another file, beside the log that the others still have. The first ones
        # take what they find: the log of another server that is starting may come and go.
        self._which: Files | None = None
        self._started: dict[int, float] = {}
        self._stopping, self._patient_since = False, 0.0
        self._pipe = os.pipe()

    def run(self, count: int, up: Callable[[], None]) -> int:
        _on_signals(STOP_SIGNALS, self._stop, self._kill)
        # A signal that came right before os.wait would be acted on when a worker ends, and not sooner; a pipe keeps it.
        awake, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        # Each worker says when it is up, and closes its end, which the system does for one that dies.
        all_up, starting = os.pipe()
        for _ in range(count):
            self._start(starting)
        os.close(starting)
        serves = False
        while os.read(all_up, 1):
            serves = True
        os.close(all_up)
        self._which = kind_of(self._database).which(self._database)
        if not serves:
            self._stop()  # each has said why it could not
        elif not self._stopping:
            up()
        failed, at_once = False, 0
        while self._started:
            worker, waited = os.waitpid(-1, os.WNOHANG)
            if not worker:
                if select.select([awake], [], [], self._patience())[0]:
                    os.read(awake, 1)
                else:  # one that hangs must not keep the others' end from being told
                    self._kill()
                    self._patient_since = time.monotonic()  # the system may hold one for longer
                continue
            if worker not in self._started:
                continue  # as process 1 of a container, one inherits what others have left
            status = os.waitstatus_to_exitcode(waited)
            lived = time.monotonic() - self._started.pop(worker)
            failed = failed or (self._stopping and status != 0)
            if self._stopping:
                continue
            at_once = at_once + 1 if lived < AT_ONCE_SECONDS else 0
            if at_once >= DEATHS_AT_ONCE * count:
                _logger.error("workers die as soon as they start; giving up")
                failed = True
                self._stop()
            else:
                _logger.error("worker %d ended with status %d; starting another", worker, status)
                try:
                    self._start()
                except OSError as error:  # the others go on
                    _logger.error("cannot start another: %s", error.strerror)
        return (
            0 if self._stopping and not failed else 1
        )  # not stopping: none is left, and there is no room for another

    def _start(self, starting: int | None = None) -> None:
        # A signal between the look and the fork would leave a worker behind, and one that a worker gets before it has
        # handlers of its own would be acted on as if it were the parent.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            if not self._stopping:
                worker = os.fork()
                if not worker:
                    self._be_a_worker(starting)
                self._started[worker] = time.monotonic()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _be_a_worker(self, starting: int | None) -> None:
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            # Ctrl+C reaches the whole group, but it is the parent's to act on; so is SIGTERM until there is a server.
            for each in STOP_SIGNALS:
                signal.signal(each, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            os.close(self._pipe[1])

            def up() -> None:
                if starting is not None:
                    os.write(starting, b".")
                    os.close(starting)

            store = kind_of(self._database).open(self._database, self._which)
            status = _work(self._listener, store, self._allowed_hosts, [signal.SIGTERM], self._pipe[0], up)
        except CannotOpen as error:
            # Those that a stop has ended took the log of the start with them: no fault where this one shall end, too.
            if select.select([self._pipe[0]], [], [], 0)[0]:
                status = 0
            else:
                _logger.error("worker %d: %s", os.getpid(), error)
        except Exception:
            _logger.exception("worker %d failed", os.getpid())
        finally:
            if sys.stderr:
                sys.stderr.flush()
            os._exit(status)

    def _kill(self) -> None:
        for worker in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def _patience(self) -> float | None:
        """For how long a stop may go on yet; None where there is none."""
        return max(0.0, self._patient_since + STOP_SECONDS - time.monotonic()) if self._stopping else None

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._patient_since = time.monotonic()
            self._listener.close()
            os.close(self._pipe[1])
