"""Upper bounds for `tests.bench`: SQLite without HTTP, a cluster without a server, HTTP alone."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import re
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from bookings.server.server import listen
from bookings.stores.creation import create_database
from bookings.stores.model import Outcome, PageQuery
from bookings.stores.rqlite import create_tables
from bookings.stores.sqlite import SQLiteStore
from tests.helpers.load import KINDS, RESPONSE_SECONDS, TENANTS, Measured, drive, new_booking

SPAWN = multiprocessing.get_context("spawn")

# Keys and slots are spread over the indexes as in `new_booking`, but in the year before.
FILL = """WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :rows)
    INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key)
    SELECT printf('%s-%d', :tenant, i % :tenants),
        strftime('%Y-%m-%dT%H:%M:%SZ', 1767225600 + i / :tenants * 60, 'unixepoch'),
        printf('%08x-%s', (i * 2654435761) & 4294967295, :tenant) FROM n"""
PAGE = PageQuery("small-0", "", "", "", 1000)
# The work of each kind of request without HTTP. Each function returns whether it succeeded.
WORK: dict[str, Callable[[SQLiteStore, int], bool]] = {
    "post": lambda store, number: store.book(new_booking(number))[0] is Outcome.CREATED,
    "get": lambda store, _: '"id":20' in store.list_bookings(PAGE).array,
}


def make_database(database: str, rows: int) -> None:
    """Create a database with 20 bookings of the tenant `small-0` and `rows` of others."""
    create_database(database)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
        # The rows satisfy the CHECKs. 1 GB holds all pages that a million rows change.
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("PRAGMA cache_size = -1000000")
        for tenant, tenants, count in (("small", 1, 20), ("tenant", TENANTS, rows)):
            if count:
                db.execute(FILL, {"rows": count, "tenant": tenant, "tenants": tenants})
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def bare_sqlite(database: str, kind: str, connections: int, seconds: float, workers: int) -> float:
    """Return how often per second the store does this work, with a thread per connection."""
    count = min(workers, connections)
    shares = [range(number, connections, count) for number in range(count)]
    with SPAWN.Pool(count, start_together, [SPAWN.Barrier(count)]) as pool:
        tasks = [
            pool.apply_async(work_on_store, (database, kind, seconds, connections, share))
            for share in shares
        ]
        return sum(task.get() for task in tasks)


def start_together(ready: threading.Barrier) -> None:
    """Wait until the other processes have started. Only the first process acts on Ctrl+C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready.wait(RESPONSE_SECONDS)


def work_on_store(
    database: str, kind: str, seconds: float, connections: int, share: range
) -> float:
    """Work with a thread for each connection in `share`; return the rate per second."""
    work, began = WORK[kind], time.perf_counter()

    def loop(first: int) -> int:
        for done, number in enumerate(itertools.count(first, connections)):
            if not work(store, number):
                break
            if time.perf_counter() - began >= seconds:
                return done + 1
        raise RuntimeError("the store returned a wrong result")

    with contextlib.closing(SQLiteStore(database)) as store, ThreadPoolExecutor(len(share)) as pool:
        return sum(pool.map(loop, share)) / (time.perf_counter() - began)


def bare_cluster(database: str, kind: str, connections: int, seconds: float, workers: int) -> float:
    """Return how many INSERTs per second the cluster executes. Its first node must be the leader.

    The other parameters are those of `bare_sqlite`.
    """
    create_tables(database)
    port = int(re.split("[:,]", database)[2])
    measured = drive(port, "insert", connections, seconds, itertools.count())
    if measured.bad:
        raise RuntimeError("the cluster returned a wrong result")
    return measured.rate


class ConstantHandler(BaseHTTPRequestHandler):
    """The fastest that `http.server` can be: one constant response, written in one piece."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    response = b""

    def do_GET(self) -> None:
        self.wfile.write(self.response)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(self.response)


def serve_constant(ready: threading.Barrier, listener: socket.socket, response: bytes) -> None:
    ConstantHandler.response = response
    server = ThreadingHTTPServer(listener.getsockname(), ConstantHandler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    listener.setblocking(False)  # As `listen` does; a new process does not inherit it.
    start_together(ready)
    server.serve_forever()


def bare_http(kind: str, connections: int, seconds: float, workers: int, size: int) -> Measured:
    """Drive `http.server`, which sends a constant response of `size` bytes."""
    head = KINDS[kind][1] + b"OK\r\nContent-Length: "
    length = size - len(head) - len(b"100\r\n\r\n")
    length -= len(str(length)) - 3
    response = b"%s%d\r\n\r\n%s" % (head, length, b"x" * length)
    ready = SPAWN.Barrier(workers + 1)
    with listen("127.0.0.1", 0) as listener, contextlib.ExitStack() as stack:
        for _ in range(workers):
            arguments = (ready, listener, response)
            process = SPAWN.Process(target=serve_constant, args=arguments, daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
        ready.wait(RESPONSE_SECONDS)
        port = listener.getsockname()[1]
        return drive(port, kind, connections, seconds, itertools.count())
