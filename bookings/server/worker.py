"""One process that serves: a worker, or the only process on a system that cannot fork."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Sequence

from bookings.cpus import bind_worker
from bookings.server import request_log
from bookings.server.server import BookingServer
from bookings.server.signals import STOP_SIGNALS, handle_signals
from bookings.stores.model import Store

# How often an idle accept loop looks for a shutdown. A poll costs 20 us.
POLL_SECONDS = 0.05


def run_worker(
    listener: socket.socket,
    store: Store,
    allowed_hosts: Collection[str],
    signals: Sequence[int],
    announce: Callable[[], None],
    shutdown_pipe: int | None = None,
) -> int:
    """Serve until a signal arrives or the pipe ends. Return 0 if every request was answered."""
    server = BookingServer(listener, store, allowed_hosts)
    handle_signals(signals, lambda: threading.Thread(target=server.shutdown).start())
    if shutdown_pipe is not None:
        arguments = (shutdown_pipe, server.shutdown)
        threading.Thread(target=_call_at_end, args=arguments, daemon=True).start()
    announce()
    server.serve_forever(POLL_SECONDS)
    server.server_close()
    drained = server.drain()
    store.close()
    return 0 if drained else 1


def _call_at_end(pipe: int, function: Callable[[], None]) -> None:
    os.read(pipe, 1)
    function()


def enter_process(number: int, is_only_worker: bool) -> None:
    """Prepare a process that the supervisor has forked for worker `number`."""
    request_log.enter_worker(number)
    if not is_only_worker:
        bind_worker(number)
    signal.set_wakeup_fd(-1)
    # Ctrl+C reaches the whole group, but only the supervisor acts on it. SIGTERM is ignored until
    # there is a server to shut down.
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
