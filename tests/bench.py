"""python -m tests.bench: measures the server, and the upper bounds set by SQLite and http.server.

Loads: `post` books new slots, `get` lists the 20 bookings of a tenant, `slowdisk` is `post` on a
disk whose syncs take 4 ms longer, and `cluster` is `post` on three local rqlite nodes. `post64` is
`post` with 64 connections; without a number there are 16. Each load is measured in turn with two
bounds: "bare store" does the same work without HTTP, and "http.server" is Python's own server with
a constant response of the same size. Then the bench measures a large table, memory and startup.

Needs only Python; skips `cluster` without rqlited and pytest. It fails only for a wrong response.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bookings.process import ServerProcess
from bookings.settings import default_workers
from tests.helpers.floors import WORK, bare_cluster, bare_http, bare_sqlite, make_database
from tests.helpers.load import Measured, drive
from tests.helpers.slow_disk import slow_disk

RUN = Path(__file__).resolve().parent.parent / "run.py"
STARTS = 5
Row = Sequence[Any]  # Of str, int and float.


@contextlib.contextmanager
def serving(database: str) -> Iterator[int]:
    """Run the server on this database; yield its port."""
    command = [sys.executable, str(RUN), "--host=127.0.0.1", "--quiet", "--database", database]
    server = ServerProcess(command)
    try:
        if not server.url:
            raise RuntimeError("the server did not start")
        yield server.port
    finally:
        server.kill()


@contextlib.contextmanager
def fresh(folder: str, rows: int = 0) -> Iterator[str]:
    """Create a database for one measurement."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        database = os.path.join(own, "bookings.db")
        make_database(database, rows)
        yield database


@contextlib.contextmanager
def fresh_cluster(folder: str) -> Iterator[str]:
    """Start a cluster of three nodes for one measurement."""
    # Imported here because it needs pytest.
    from tests.helpers.clusters import cluster, url

    with tempfile.TemporaryDirectory(dir=folder) as own, cluster(Path(own), 3) as nodes:
        yield url(*nodes)


def has_nodes() -> bool:
    """Return whether a cluster can be started; print what is missing if not."""
    try:
        import pytest

        from tests.helpers.clusters import rqlited
    except ImportError as error:
        print(f"Skipped the load on a cluster: {error}\n")
        return False
    try:
        return bool(rqlited())
    except pytest.skip.Exception as error:
        print(f"Skipped the load on a cluster: {error}\n")
        return False


# For each load: the kind of request, whether the disk is slow, a database, and its bare store.
Databases = Callable[[str], "contextlib.AbstractContextManager[str]"]
LOADS: dict[str, tuple[str, bool, Databases, Callable[..., float]]] = {
    "post": ("post", False, fresh, bare_sqlite),
    "get": ("get", False, fresh, bare_sqlite),
    "slowdisk": ("post", True, fresh, bare_sqlite),
    "cluster": ("post", False, fresh_cluster, bare_cluster),
}


@contextlib.contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Change the environment variables of this process and of those that it starts."""
    before = os.environ.copy()
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def resident(database: str) -> list[float]:
    """Return the MiB of each process that serves this database, the supervisor first.

    Returns nothing without ps.
    """
    if not shutil.which("ps"):
        return []
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,rss=,args="], stdout=subprocess.PIPE, text=True, check=False
    )
    found = [line.split(None, 2) for line in listed.stdout.splitlines() if database in line]
    return [int(rss) / 1024 for _, rss, _ in sorted(found, key=lambda each: int(each[0]))]


def main() -> int:
    """Measure everything and print the tables. Return 1 if there was any wrong response."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure the server and its upper bounds."
    )
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--connections", nargs="+", type=int, default=[1, 16, 64])
    for flag, default, description in (
        ("--seconds", 2.0, "seconds per measurement"),
        ("--rounds", 3, "number of rounds, of which the median is printed"),
        ("--rows", 1_000_000, "rows of the large table"),
        ("--requests", 0, "least number of requests between both measurements of memory"),
    ):
        text = f"{description} (default: {default})"
        parser.add_argument(flag, type=type(default), default=default, help=text)
    settings = parser.parse_args()
    # SystemExit lets the context managers clean up.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    began = time.monotonic()

    def report(step: str) -> None:
        line = f"{time.monotonic() - began:4.0f} s  {step}"
        text = f"\r{line:78}" if sys.stderr.isatty() else f"{line}\n"
        print(text, end="", file=sys.stderr, flush=True)

    try:
        with tempfile.TemporaryDirectory(prefix="bookings-bench-") as folder:
            print(
                f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, "
                f"{platform.platform()}; databases in {folder}\n"
                f"Medians of {settings.rounds} rounds of {settings.seconds:g} s\n"
            )
            bad = measure_loads(settings, folder, report)
            bad += measure_growth(settings, folder, report)
    except KeyboardInterrupt:
        return 130
    print(f"Wrong responses: {bad}")
    return 1 if bad else 0


def measure_loads(settings: argparse.Namespace, folder: str, report: Callable[[str], None]) -> int:
    """Print the table of the loads. Return the number of wrong responses."""
    workers = int(os.environ.get("WORKERS") or default_workers())
    slow, how = slow_disk(folder) if "slowdisk" in settings.loads else ({}, "")
    loads = [load for load in settings.loads if load != "cluster" or has_nodes()]
    if not loads:
        return 0
    measurements = list(itertools.product(loads, settings.connections))
    results: dict[tuple[str, int], list[tuple[Measured, float, Measured]]]
    results = {measurement: [] for measurement in measurements}
    for turn, (load, connections) in itertools.product(range(settings.rounds), measurements):
        kind, is_slow, make_fresh, bare_store = LOADS[load]
        step = f"round {turn + 1} of {settings.rounds}, {name(load, connections)}"
        with environment(slow if is_slow else {}):
            report(f"{step}: the server")
            with make_fresh(folder) as database, serving(database) as port:
                server = drive(port, kind, connections, settings.seconds, itertools.count())
            report(f"{step}: the bare store")
            with make_fresh(folder) as database:
                store = bare_store(database, kind, connections, settings.seconds, workers)
        report(f"{step}: http.server")
        http = bare_http(kind, connections, settings.seconds, workers, server.size)
        results[load, connections].append((server, store, http))
    head = ("load", "connections", "requests/s", "p50 ms", "p99 ms", "bad")
    table: list[Row] = [(*head, "bare store/s", "ratio", "http.server/s", "ratio")]
    for (load, connections), rounds in results.items():
        servers, stores, https = zip(*rounds)
        rate, p50, p99, *_ = map(statistics.median, zip(*servers))
        bare, plain = statistics.median(stores), statistics.median(each.rate for each in https)
        bad = sum(each.bad for each in servers)
        figures = (rate, p50, p99, bad, bare, rate / bare, plain, rate / plain)
        table.append((name(load, connections), connections, *figures))
    print_table(table)
    servers, _, https = zip(*itertools.chain(*results.values()))
    fastest = max(https, key=lambda each: each.rate)
    print(
        f"The load generator sent http.server {fastest.rate:,.0f} requests/s with "
        f"{fastest.busy:.0%} of a CPU,\nso it can send {fastest.rate / fastest.busy:,.0f}; beside "
        f"the server it used at most {max(each.busy for each in servers):.0%}.\n"
        + (f"The slow disk takes 4 ms more {how}.\n" if how else "")
    )
    return sum(each.bad for each in servers + https)


def measure_growth(settings: argparse.Namespace, folder: str, report: Callable[[str], None]) -> int:
    """Print what a large table, memory and startup cost. Return the number of wrong responses."""
    empties: dict[str, list[Measured]] = {kind: [] for kind in WORK}
    larges: dict[str, list[Measured]] = {kind: [] for kind in WORK}
    numbers, starts = itertools.count(), []
    report(f"filling a table with {settings.rows:,} rows")
    with fresh(folder, settings.rows) as large, serving(large) as port:
        bad = sum(drive(port, kind, 1, 0.0, numbers).bad for kind in WORK)
        before = resident(large)
        for turn, kind in itertools.product(range(settings.rounds), WORK):
            report(f"round {turn + 1} of {settings.rounds}, {kind}: an empty table and a large one")
            with fresh(folder) as database, serving(database) as other:
                empties[kind].append(drive(other, kind, 16, settings.seconds, itertools.count()))
            larges[kind].append(drive(port, kind, 16, settings.seconds, numbers))
        responses = sum(each.responses for each in itertools.chain(*larges.values()))
        for kind in itertools.cycle(WORK):
            if responses >= settings.requests:
                break
            report(f"{responses:,} of {settings.requests:,} requests")
            more = drive(port, kind, 16, 0.0, numbers, settings.requests // 50 + 1)
            responses, bad = responses + more.responses, bad + more.bad
        after = resident(large)
    for turn in range(STARTS):
        report(f"start {turn + 1} of {STARTS}")
        with tempfile.TemporaryDirectory(dir=folder) as new:
            began = time.perf_counter()
            with serving(os.path.join(new, "bookings.db")) as port:
                bad += drive(port, "get", 1, 0.0, numbers).bad
                starts.append(time.perf_counter() - began)
    report("done\n" if sys.stderr.isatty() else "done")
    table: list[Row] = [("16 connections", "empty", f"{settings.rows:,} rows", "ratio")]
    for kind, unit in (("post", "bookings/s"), ("get", "pages of 20/s")):
        empty = statistics.median(each.rate for each in empties[kind])
        full = statistics.median(each.rate for each in larges[kind])
        table.append((unit, empty, full, full / empty))
    print_table(table)
    changes = (f"{first:.1f} to {last:.1f}" for first, last in zip(before, after))
    memory = ", ".join(changes) or "unknown"
    print(f"MiB of memory of supervisor and workers over {responses:,} requests: {memory}")
    seconds = statistics.median(starts)
    print(f"First response after python run.py: {seconds:.2f} s, the median of {STARTS}")
    both = itertools.chain(*empties.values(), *larges.values())
    return bad + sum(each.bad for each in both)


def name(load: str, connections: int) -> str:
    return load if connections == 16 else f"{load}{connections}"


def print_table(table: Sequence[Row]) -> None:
    lines = [[shown(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *others in lines:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    print(flush=True)


def shown(cell: Any) -> str:
    """Format a count, or a number from 100, without decimals, and other numbers with two."""
    if isinstance(cell, str):
        return cell
    return f"{cell:,.{2 if isinstance(cell, float) and cell < 100 else 0}f}"


if __name__ == "__main__":
    sys.exit(main())
