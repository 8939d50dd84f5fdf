"""python -m tests.bench: how fast the program is, beside what it stands on, on this machine.

The loads: `post` books new slots, `get` lists a tenant with 20 bookings; `slowdisk` is `post` where every sync of a file
takes 4 ms longer, as on a cloud volume; `cluster` is `post` on three rqlite nodes on this machine, left out where there is
no rqlited. A number behind a name is the number of connections, 16 where there is none. Each stands beside two floors,
measured in turn with it: the bare store is that without HTTP of ours, for a file in as many processes as the program has
workers and with as many threads as the load has connections, for a cluster the program's own INSERT sent straight to the
leader over as many connections; http.server is Python's own, in as many processes, answering a constant of the same size.
Then the growth: `post` and `get` on an empty table and on a large one, memory, and the time of a start.

The disk is made slow by a library loaded before the C library, where there is a C compiler on Linux. Elsewhere os.fsync
and os.fdatasync are wrapped, which slows what the program syncs, but not what SQLite itself does in a checkpoint.

Not collected by pytest: it judges nothing but that every answer was the right one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import re
import selectors
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from bookings.prove import Server
from bookings.rqlite import _EXECUTE, _of_json, create_on_cluster
from bookings.server import listen
from bookings.store import INSERT, Outcome, SQLiteStore, create_database
from bookings.workers import default_count

# For one answer, and for a process to be up: far longer than either takes, and a bound all the same.
SOON = 30.0
TENANTS = 1000
STARTS = 5
Row = Sequence[Any]  # of str, int and float
SPAWN = multiprocessing.get_context("spawn")

SLOW_DISK_IN_C = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

static int slowly(const char *name, int descriptor) {
    int (*call)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    usleep(4000);
    return call(descriptor);
}

int fsync(int descriptor) { return slowly("fsync", descriptor); }
int fdatasync(int descriptor) { return slowly("fdatasync", descriptor); }
"""
# Python runs a module of the name sitecustomize at each start.
SLOW_DISK_IN_PYTHON = """
import os, time
for name in {"fsync", "fdatasync"}.intersection(dir(os)):
    setattr(os, name, lambda descriptor, call=getattr(os, name): time.sleep(0.004) or call(descriptor))
"""

# Slots and keys are spread over the indexes as those of many clients are, in the large table as in the empty one. The
# factor is odd, so that no key comes twice within 2^32.
FILL = """WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :rows)
    INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key)
    SELECT printf('%s-%d', :tenant, i % :tenants),
        strftime('%Y-%m-%dT%H:%M:%SZ', 1767225600 + i / :tenants * 60, 'unixepoch'),
        printf('%08x-%s', (i * 2654435761) & 4294967295, :tenant) FROM n"""


def new_booking(number: int) -> tuple[str, str, str]:
    """Tenant, start time and key number `number`, in another year than those of FILL: good for 86 million."""
    second = number // TENANTS
    start = f"2027-01-01T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"
    return f"tenant-{number % TENANTS}", start, f"{number * 2654435761 & 4294967295:08x}-new"


def framed(target: str, body: str) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def post(number: int) -> bytes:
    tenant, start, key = new_booking(number)
    body = f'{{"tenant_id":"{tenant}","start_time_utc":"{start}","idempotency_key":"{key}"}}'
    return framed("/bookings", body)


def insert(number: int) -> bytes:
    """The same booking as the store on a cluster sends it to the leader."""
    values = json.dumps([*new_booking(number), "2026-11-22T16:00:00Z"])
    return framed(_EXECUTE, json.dumps([[_of_json(INSERT), values]]))


LIST = b"GET /bookings?tenant_id=small-0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
# What a client sends, and what must be in the answer.
KINDS: dict[str, tuple[Callable[[int], bytes], bytes]] = {
    "post": (post, b"HTTP/1.1 201 "),
    "get": (lambda number: LIST, b"HTTP/1.1 200 "),
    "insert": (insert, b'"rows_affected":1'),
}
PAGE = ("small-0", "", "", "", 1000)
# The same without HTTP, which says if it was done.
WORK: dict[str, Callable[[SQLiteStore, int], bool]] = {
    "post": lambda store, number: store.book(*new_booking(number))[0] is Outcome.CREATED,
    "get": lambda store, _: '"id":20' in store.bookings_of(*PAGE).array,
}


def make_store(database: str) -> SQLiteStore:
    """The store whose floor is measured."""
    return SQLiteStore(database)


def make_database(database: str, rows: int) -> None:
    """As the program makes it, with a tenant of 20 bookings and so many of others."""
    create_database(database)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
        # The rows keep the rules, and 1 GB holds what a million of them change.
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("PRAGMA cache_size = -1000000")
        for tenant, tenants, count in (("small", 1, 20), ("tenant", TENANTS, rows)):
            if count:
                db.execute(FILL, {"rows": count, "tenant": tenant, "tenants": tenants})
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Measured(NamedTuple):
    """Answers a second, half of them within p50 ms and 99 of 100 within p99, and how many were not the right one; the
    share of a processor that asking took; the bytes of an answer; all answers."""

    rate: float
    p50: float
    p99: float
    bad: int
    busy: float
    size: int
    answers: int


def drive(
    port: int, kind: str, connections: int, seconds: float, numbers: Iterator[int], at_least: int = 0
) -> Measured:
    """Keep every connection busy with one request after the other for so long, and for at least so many answers."""
    request, right = KINDS[kind]
    latencies: list[float] = []
    bad, size, waiting = 0, 0, connections
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            client: Any = stack.enter_context(socket.create_connection(("127.0.0.1", port), SOON))
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            selector.register(client, selectors.EVENT_READ)
        clients = [key.fileobj for key in selector.get_map().values()]
        began, cpu = time.perf_counter(), time.process_time()
        sent, received = dict.fromkeys(clients, began), dict.fromkeys(clients, b"")
        for client in clients:
            client.send(request(next(numbers)))  # into an empty buffer, which takes it whole
        while waiting:
            ready = selector.select(SOON)
            if not ready:
                bad += waiting
                break
            for key, _ in ready:
                client = key.fileobj
                try:
                    more = client.recv(65536)
                except OSError:
                    more = b""
                if not more:  # it was closed, and what was asked is not answered
                    selector.unregister(client)
                    bad, waiting = bad + 1, waiting - 1
                    continue
                answer = received[client] = received[client] + more
                if not is_whole(answer):
                    continue
                now, size = time.perf_counter(), len(answer)
                latencies.append(now - sent[client])
                bad += right not in answer
                if now - began < seconds or len(latencies) < at_least:
                    received[client], sent[client] = b"", now
                    with contextlib.suppress(OSError):  # of which the next recv tells
                        client.send(request(next(numbers)))
                else:
                    waiting -= 1
        took, busy = time.perf_counter() - began, time.process_time() - cpu
    p50, p99 = (1000 * percentile(latencies, part) for part in (0.50, 0.99))
    return Measured(len(latencies) / took, p50, p99, bad, busy / took, size, len(latencies))


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)] if values else 0.0


def is_whole(answer: bytes) -> bool:
    end = answer.find(b"\r\n\r\n")
    length = answer.find(b"Content-Length: ", 0, end) + len(b"Content-Length: ")
    return end >= 0 and len(answer) >= end + 4 + int(answer[length : answer.index(b"\r", length)])


@contextlib.contextmanager
def serving(database: str) -> Iterator[int]:
    """The program on this database; its port."""
    server = Server(database, "")
    try:
        server.start("0")
        yield int(server.url.rpartition(":")[2])
    finally:
        server.kill()


def together(ready: threading.Barrier) -> None:
    """Go on when the other processes are up too. Ctrl+C reaches them all, but the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ready.wait(SOON)


def bare_sqlite(database: str, kind: str, connections: int, seconds: float, workers: int) -> float:
    """How often a second the store does the work of this kind when nobody asks over HTTP."""
    count = min(workers, connections)
    shares = [range(number, connections, count) for number in range(count)]
    with SPAWN.Pool(count, together, [SPAWN.Barrier(count)]) as pool:
        tasks = [
            pool.apply_async(work_on_store, (database, kind, seconds, connections, each)) for each in shares
        ]
        return sum(task.get() for task in tasks)


def work_on_store(database: str, kind: str, seconds: float, connections: int, share: range) -> float:
    """What one of its processes does: a thread for each connection that is its share."""
    work, began = WORK[kind], time.perf_counter()

    def loop(first: int) -> int:
        for done, number in enumerate(itertools.count(first, connections)):
            if not work(store, number):
                break
            if time.perf_counter() - began >= seconds:
                return done + 1
        raise RuntimeError("the store did not do its work")

    with contextlib.closing(make_store(database)) as store, ThreadPoolExecutor(len(share)) as pool:
        return sum(pool.map(loop, share)) / (time.perf_counter() - began)


def bare_cluster(database: str, kind: str, connections: int, seconds: float, workers: int) -> float:
    """How often a second the cluster takes the INSERT when nobody stands between. Its first node leads."""
    create_on_cluster(database)
    port = int(re.split("[:,]", database)[2])
    found = drive(port, "insert", connections, seconds, itertools.count())
    if found.bad:
        raise RuntimeError("the cluster did not do its work")
    return found.rate


class Constant(BaseHTTPRequestHandler):
    """http.server at its best: HTTP/1.1, an answer in one write, and no waiting for more to send."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    answer = b""

    def do_GET(self) -> None:
        self.wfile.write(self.answer)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.wfile.write(self.answer)


def serve_constant(ready: threading.Barrier, listener: socket.socket, answer: bytes) -> None:
    Constant.answer = answer
    server = ThreadingHTTPServer(listener.getsockname(), Constant, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    listener.setblocking(False)  # as bookings.server has it; on the way to this process it was lost
    together(ready)
    server.serve_forever()


def bare_http(kind: str, connections: int, seconds: float, workers: int, size: int) -> Measured:
    """The same requests to a http.server that always answers the same, so many bytes."""
    head = KINDS[kind][1] + b"OK\r\nContent-Length: "
    length = size - len(head) - len(b"100\r\n\r\n")
    length -= len(str(length)) - 3
    answer, ready = b"%s%d\r\n\r\n%s" % (head, length, b"x" * length), SPAWN.Barrier(workers + 1)
    with listen("127.0.0.1", 0) as listener, contextlib.ExitStack() as stack:
        for _ in range(workers):
            process = SPAWN.Process(target=serve_constant, args=(ready, listener, answer), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
        ready.wait(SOON)
        return drive(listener.getsockname()[1], kind, connections, seconds, itertools.count())


@contextlib.contextmanager
def fresh(folder: str, rows: int = 0) -> Iterator[str]:
    """A database of one measurement's own."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        database = os.path.join(own, "bookings.db")
        make_database(database, rows)
        yield database


@contextlib.contextmanager
def fresh_cluster(folder: str) -> Iterator[str]:
    """The same on three nodes."""
    from tests.helpers.clusters import (  # not above: it needs pytest, and all else here only Python
        cluster,
        url,
    )

    with tempfile.TemporaryDirectory(dir=folder) as own, cluster(Path(own), 3) as nodes:
        yield url(*nodes)


def has_nodes() -> bool:
    """Whether a cluster can be started here; if not, a line says what is missing."""
    try:
        import pytest

        from tests.helpers.clusters import rqlited
    except ImportError as error:
        print(f"Left out, the load on a cluster: {error}\n")
        return False
    try:
        return bool(rqlited())
    except pytest.skip.Exception as error:
        print(f"Left out, the load on a cluster: {error}\n")
        return False


# For each load its kind, whether the disk is slow, a database of one measurement's own, and its floor without HTTP of ours.
LOADS: dict[
    str, tuple[str, bool, Callable[[str], contextlib.AbstractContextManager[str]], Callable[..., float]]
] = {
    "post": ("post", False, fresh, bare_sqlite),
    "get": ("get", False, fresh, bare_sqlite),
    "slowdisk": ("post", True, fresh, bare_sqlite),
    "cluster": ("post", False, fresh_cluster, bare_cluster),
}


def slow_disk(folder: str) -> tuple[dict[str, str], str]:
    """The environment in which a program's disk is slow, and how that is done."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform == "linux" and compiler:
        source, library = Path(folder, "slow_disk.c"), Path(folder, "slow_disk.so")
        source.write_text(SLOW_DISK_IN_C)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        return {"LD_PRELOAD": str(library)}, "in every fsync and fdatasync, by a preloaded library"
    Path(folder, "sitecustomize.py").write_text(SLOW_DISK_IN_PYTHON)
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path}, "in os.fsync and os.fdatasync, so not in SQLite's own checkpoints"


@contextlib.contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """What processes are started with meanwhile."""
    before = os.environ.copy()
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def resident(database: str) -> list[float]:
    """MiB of memory of each process that serves this database, the parent first; none where there is no ps."""
    if not shutil.which("ps"):
        return []
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,rss=,args="], stdout=subprocess.PIPE, text=True, check=False
    )
    found = [line.split(None, 2) for line in listed.stdout.splitlines() if database in line]
    return [int(rss) / 1024 for _, rss, _ in sorted(found, key=lambda each: int(each[0]))]


def main() -> int:
    """Measure it all and print the tables; the exit status, 1 if any answer was not the right one."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure the program and its floors."
    )
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 16, 64])
    for flag, default, what in (
        ("--seconds", 2.0, "for each measurement"),
        ("--rounds", 3, "of which the median counts"),
        ("--rows", 1_000_000, "in the large table"),
        ("--requests", 0, "at least, between two looks at memory"),
    ):
        parser.add_argument(flag, type=type(default), default=default, help=f"{what} (default: {default})")
    settings = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # not without cleaning up
    began = time.monotonic()

    def tell(what: str) -> None:
        line = f"{time.monotonic() - began:4.0f} s  {what}"
        print(f"\r{line:78}" if sys.stderr.isatty() else f"{line}\n", end="", file=sys.stderr, flush=True)

    try:
        with tempfile.TemporaryDirectory(prefix="bookings-bench-") as folder:
            print(
                f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.platform()}; "
                f"databases in {folder}\nMedians of {settings.rounds} rounds of {settings.seconds:g} s\n"
            )
            bad = measure_loads(settings, folder, tell) + measure_growth(settings, folder, tell)
    except KeyboardInterrupt:
        return 130
    print(f"Answers that were not the right ones: {bad}")
    return 1 if bad else 0


def measure_loads(settings: argparse.Namespace, folder: str, tell: Callable[[str], None]) -> int:
    """Print the table of the loads; how many answers were bad."""
    workers = int(os.environ.get("WORKERS") or default_count())  # as run.py has it
    slow, how = slow_disk(folder) if "slowdisk" in settings.loads else ({}, "")
    loads = [load for load in settings.loads if load != "cluster" or has_nodes()]
    if not loads:
        return 0
    cells = list(itertools.product(loads, settings.connections))
    found: dict[tuple[str, int], list[tuple[Measured, float, Measured]]] = {cell: [] for cell in cells}
    for turn, (load, connections) in itertools.product(range(settings.rounds), cells):
        kind, is_slow, new, bare_store = LOADS[load]
        step = f"round {turn + 1} of {settings.rounds}, {name(load, connections)}"
        with environment(slow if is_slow else {}):
            tell(f"{step}: the program")
            with new(folder) as database, serving(database) as port:
                program = drive(port, kind, connections, settings.seconds, itertools.count())
            tell(f"{step}: the bare store")
            with new(folder) as database:
                store = bare_store(database, kind, connections, settings.seconds, workers)
        tell(f"{step}: http.server")
        http = bare_http(kind, connections, settings.seconds, workers, program.size)
        found[load, connections].append((program, store, http))
    head = ("load", "connections", "requests/s", "p50 ms", "p99 ms", "bad")
    table: list[Row] = [(*head, "bare store/s", "ratio", "http.server/s", "ratio")]
    for (load, connections), rounds in found.items():
        programs, stores, https = zip(*rounds)
        rate, p50, p99, *_ = map(statistics.median, zip(*programs))
        bare, plain = statistics.median(stores), statistics.median(each.rate for each in https)
        figures = (rate, p50, p99, sum(each.bad for each in programs), bare, rate / bare, plain, rate / plain)
        table.append((name(load, connections), connections, *figures))
    print_table(table)
    programs, _, https = zip(*itertools.chain(*found.values()))
    most = max(https, key=lambda each: each.rate)
    print(
        f"The load generator drove http.server at {most.rate:,.0f} requests/s with {most.busy:.0%} of a processor, so "
        f"that it could do\n{most.rate / most.busy:,.0f}; beside the program it took at most "
        f"{max(each.busy for each in programs):.0%}.\n"
        + (f"The slow disk: 4 ms more {how}.\n" if how else "")
    )
    return sum(each.bad for each in programs + https)


def measure_growth(settings: argparse.Namespace, folder: str, tell: Callable[[str], None]) -> int:
    """Print what a large table costs, and what memory and a start do; how many answers were bad."""
    empties: dict[str, list[Measured]] = {kind: [] for kind in WORK}
    larges: dict[str, list[Measured]] = {kind: [] for kind in WORK}
    numbers, answers, starts = itertools.count(), 0, []
    tell(f"filling a table with {settings.rows:,} rows")
    with fresh(folder, settings.rows) as large, serving(large) as port:
        bad = sum(drive(port, kind, 1, 0.0, numbers).bad for kind in WORK)
        before = resident(large)
        for turn, kind in itertools.product(range(settings.rounds), WORK):
            tell(f"round {turn + 1} of {settings.rounds}, {kind}: an empty table and a large one")
            with fresh(folder) as database, serving(database) as other:
                empties[kind].append(drive(other, kind, 16, settings.seconds, itertools.count()))
            larges[kind].append(drive(port, kind, 16, settings.seconds, numbers))
        answers = sum(each.answers for each in itertools.chain(*larges.values()))
        for kind in itertools.cycle(WORK):
            if answers >= settings.requests:
                break
            tell(f"{answers:,} of {settings.requests:,} requests")
            more = drive(port, kind, 16, 0.0, numbers, settings.requests // 50 + 1)
            answers, bad = answers + more.answers, bad + more.bad
        after = resident(large)
    for turn in range(STARTS):
        tell(f"start {turn + 1} of {STARTS}")
        with tempfile.TemporaryDirectory(dir=folder) as new:
            began = time.perf_counter()
            with serving(os.path.join(new, "bookings.db")) as port:
                bad += drive(port, "get", 1, 0.0, numbers).bad
                starts.append(time.perf_counter() - began)
    tell("done\n" if sys.stderr.isatty() else "done")
    table: list[Row] = [("16 connections", "empty", f"{settings.rows:,} rows", "ratio")]
    for kind, what in (("post", "bookings/s"), ("get", "pages of 20/s")):
        empty, full = (statistics.median(each.rate for each in side[kind]) for side in (empties, larges))
        table.append((what, empty, full, full / empty))
    print_table(table)
    memory = ", ".join(f"{first:.1f} to {last:.1f}" for first, last in zip(before, after)) or "unknown"
    print(f"Resident memory over {answers:,} requests, MiB, of the parent and its workers: {memory}")
    print(f"First answer after python run.py: {statistics.median(starts):.2f} s, the median of {STARTS}")
    return bad + sum(each.bad for side in (empties, larges) for each in itertools.chain(*side.values()))


def name(load: str, connections: int) -> str:
    return load if connections == 16 else f"{load}{connections}"


def print_table(table: Sequence[Row]) -> None:
    lines = [[shown(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *others in lines:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    print(flush=True)


def shown(cell: Any) -> str:
    """A count or a large figure whole, any other with two decimals."""
    return (
        cell if isinstance(cell, str) else f"{cell:,.{2 if isinstance(cell, float) and cell < 100 else 0}f}"
    )


if __name__ == "__main__":
    sys.exit(main())
