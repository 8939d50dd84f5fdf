"""Accepts connections, bounds their number, and shuts down without losing a response.

`http.server` provides the accept loop and a thread per connection.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Collection, Iterable
from http.server import ThreadingHTTPServer
from typing import Any

from bookings.server import unix_socket
from bookings.server.connection import Connection, Shared
from bookings.server.hosts import HostPolicy
from bookings.stores.model import Store

try:
    import resource
except ImportError:  # Windows has no limit on file descriptors.
    resource = None  # type: ignore[assignment]

# Maximum number of simultaneous connections. A thread takes about 50 KiB. Beyond the limit, the
# connection that has been idle longest is closed for a new one; if none is idle, new ones wait in
# the backlog.
MAX_CONNECTIONS = 1000
# A connection that has been idle for less is not closed for a new one, because a request may be
# on its way; a lost packet is sent again after 1 s (RFC 6298).
SETTLED_SECONDS = 1.0
# File descriptors of one connection: its socket, and during a request the database, its WAL and
# the WAL again for the sync. A thread without a descriptor could not respond, so a low limit on
# descriptors lowers the number of connections.
DESCRIPTORS_PER_CONNECTION = 4
# Other descriptors: standard streams, listening socket, pipes, idle connection. Twice the 16 seen.
OTHER_DESCRIPTORS = 32
BACKLOG = 1024
# How long a request that has started may take to arrive completely once the server shuts down. A
# packet that was lost twice is sent again within 3 s (RFC 6298).
ARRIVAL_SECONDS = 3.0
# How long a shutdown waits for responses, ARRIVAL_SECONDS included: the rest is BUSY_SECONDS of
# the store. Docker kills a process 10 s after SIGTERM.
DRAIN_SECONDS = 8.0

_OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_logger = logging.getLogger("bookings")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raise OSError, or UnicodeError if `host` cannot be a name.

    `host` may be unix:PATH instead of a name or an address.
    """
    is_path = host.startswith(unix_socket.PREFIX)
    path = host[len(unix_socket.PREFIX) :]
    listener = unix_socket.bind(path, BACKLOG) if is_path else _bind(host, port)
    # All workers wake up for one connection; only the first finds it.
    listener.setblocking(False)
    return listener


def _bind(host: str, port: int) -> socket.socket:
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # If a name such as localhost has addresses of both families, use the IPv4 one. Clients that try
    # IPv6 first fall back to it, and others never try IPv6.
    addresses.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, kind, protocol, _, address = addresses[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":  # On Windows the option lets two servers share a port.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


class BookingServer(ThreadingHTTPServer):
    """Serves connections until `shutdown`.

    Afterwards `server_close` ends idle connections and accepts the backlog, and `drain` waits for
    requests in progress.
    """

    def __init__(
        self, listener: socket.socket, store: Store, allowed_hosts: Collection[str] = ()
    ) -> None:
        address = listener.getsockname()
        super().__init__(address, Connection, bind_and_activate=False)  # type: ignore[arg-type]
        self.socket.close()
        self.socket = listener
        self._shared = Shared(store, HostPolicy(allowed_hosts, _host(address)))
        self._free_connections = threading.Semaphore(_max_connections())
        self._connections: set[socket.socket] = set()
        self._connection_ended = threading.Condition()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection. An OSError makes the accept loop try again."""
        if not self._free_connections.acquire(blocking=False):
            self._close_longest_idle()
            if not self._free_connections.acquire(timeout=0.5):
                raise OSError("too many connections")
        try:
            return super().get_request()
        except OSError as error:
            self._free_connections.release()
            if error.errno in _OUT_OF_DESCRIPTORS:
                # The connection stays in the backlog; without a pause the loop would spin.
                time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connection_ended:
            self._connections.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # No thread could be started.
            self._end_connection(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end_connection(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        client = _host(client_address) or "unix"
        Connection(request, client, self._shared).serve()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _logger.exception("the connection of %s failed", _host(client_address) or "unix")

    def server_close(self) -> None:
        """End idle connections, then accept the backlog, which closing the listener would reset."""
        self._shared.shutting_down = True
        stop_reading(self._shared.idle)
        # OSError: the backlog is empty. RuntimeError: no thread can be started.
        with contextlib.suppress(OSError, RuntimeError):
            for _ in range(BACKLOG):
                self.process_request(*self.get_request())
        super().server_close()

    def drain(self) -> bool:
        """Wait for requests in progress. Return False if DRAIN_SECONDS were not enough."""
        deadline = time.monotonic() + DRAIN_SECONDS
        with self._connection_ended:
            if not self._connection_ended.wait_for(self._is_drained, ARRIVAL_SECONDS):
                stop_reading(self._connections)
            return self._connection_ended.wait_for(self._is_drained, deadline - time.monotonic())

    def _is_drained(self) -> bool:
        return not self._connections

    def _close_longest_idle(self) -> None:
        settled = time.monotonic() - SETTLED_SECONDS
        oldest = list(self._shared.idle.items())[:1]
        stop_reading(connection for connection, since in oldest if since < settled)

    def _end_connection(self, request: Any) -> None:
        self._free_connections.release()
        with self._connection_ended:
            self._connections.discard(request)
            self._connection_ended.notify_all()


def _host(address: Any) -> str | None:
    """Return the host of a socket's address, or None if the socket has a path instead."""
    return str(address[0]) if isinstance(address, tuple) else None


def stop_reading(connections: Iterable[socket.socket]) -> None:
    """Stop waiting for more bytes on these connections; received requests are still served."""
    for connection in list(connections):
        with contextlib.suppress(OSError):  # The client has just left.
            connection.shutdown(socket.SHUT_RD)


def _max_connections() -> int:
    """Raise the limit on file descriptors as far as allowed; return how many connections fit."""
    if not resource:
        return MAX_CONNECTIONS
    limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS reports a higher hard limit than it grants.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
        limit = hard_limit
    if limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (limit - OTHER_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION))
