"""The SQLite store: a busy, moved or full database, faults in it, and the cost of a page."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bookings.stores import connections, creation, sql, sqlite
from bookings.stores.model import NewBooking, PageQuery
from tests.helpers.openapi import assert_documented
from tests.helpers.servers import SOON, Response, Server, assert_problem, at_once, patched
from tests.helpers.storage import BOOKING, FAULT, INSERT
from tests.helpers.tools import SCHEMA, posix_only
from tests.helpers.values import SLOT, slot_at

# --- A database that cannot be used


def assert_unavailable(response: Response, problem_type: str) -> None:
    assert_problem(response, 503, problem_type)
    assert int(response.headers["Retry-After"]) > 0


def test_write_waits_for_busy_database_and_then_is_503(server: Server) -> None:
    booked = server.book("acme", "2026-01-01T10:00:00Z", "k0")
    before = server.rows()

    def ask(number: int) -> tuple[Response, float]:
        started = time.monotonic()
        if number < 4:
            response = server.book("acme", f"2026-01-02T1{number}:00:00Z", f"k{number + 1}")
        elif number == 4:
            response = server.cancel(booked.json["id"])
        else:
            response = server.call("GET", "/bookings", X_Tenant_ID="acme")
        return response, time.monotonic() - started

    with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        *rejected, (listed, list_seconds) = at_once(6, ask)
        for response, seconds in rejected:
            assert_unavailable(response, "database-busy")
            # Concurrent requests wait together, not one after another.
            assert connections.BUSY_SECONDS * 0.9 < seconds < connections.BUSY_SECONDS * 1.9
        assert (listed.status, listed.json) == (200, [booked.json])
        assert list_seconds < connections.BUSY_SECONDS * 0.5
        assert (server.rows(), server.rows("cancellations")) == (before, [])
        waited: list[Response] = []
        waiting = threading.Thread(target=lambda: waited.append(ask(0)[0]))
        waiting.start()
        waiting.join(connections.BUSY_SECONDS / 20)
        assert waiting.is_alive()
        holder.execute("ROLLBACK")
        waiting.join(SOON)
    # The request that was waiting is booked. The rejected requests did not use their keys.
    assert waited[0].status == 201
    assert [ask(number)[0].status for number in range(5)] == [200, 201, 201, 201, 204]
    assert (len(server.rows()), server.rows("cancellations")) == (4, before)


def test_finished_request_is_repeated_while_database_is_busy(tmp_path: Path) -> None:
    patch = "from bookings.stores import connections; connections.BUSY_SECONDS = 1.0"
    program = patched(tmp_path, patch)
    with contextlib.closing(Server(tmp_path, program=program)) as server:
        made = server.book("acme", SLOT, "k1")
        cancelled = server.book("acme", "2026-01-01T11:00:00Z", "k2").location
        target = f"{cancelled}?tenant_id=acme"
        assert server.call("DELETE", target).status == 204
        before = server.rows()
        requests: list[Callable[[], Response]] = [
            lambda: server.book("acme", SLOT, "k1"),
            lambda: server.call("DELETE", target),
            lambda: server.book("acme", "2026-01-01T11:00:00Z", "k2"),
            lambda: server.book("acme", "2026-01-01T12:00:00Z", "k1"),
            lambda: server.book("acme", SLOT, "k3"),
            lambda: server.call("DELETE", f"{made.location}?tenant_id=acme"),
        ]
        with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            replayed, again, gone, reused, *busy = at_once(
                len(requests), lambda number: requests[number]()
            )
            # The lock may be free at any time of the wait, so it is not cut short.
            assert 0.9 < time.monotonic() - started < 1.9
        assert (replayed.status, replayed.body) == (200, made.body)
        assert replayed.headers["Idempotent-Replayed"] == "true"
        assert again.status == 204
        assert_problem(gone, 410, "booking-cancelled", "idempotency_key")
        assert_problem(reused, 422, "key-reused", "idempotency_key")
        for response in busy:
            assert_unavailable(response, "database-busy")
        assert server.rows() == before


@posix_only
def test_database_moved_away_is_503_until_it_returns(server: Server) -> None:
    booked = server.book("acme")
    aside = server.database.with_name("aside.db")
    server.database.rename(aside)
    files = sorted(os.listdir(aside.parent))
    for _ in range(2):
        for response in (
            server.book("acme", key="k2"),
            server.book("acme", "2026-01-02T10:00:00Z", "k2"),
            server.call("GET", "/bookings", X_Tenant_ID="acme"),
            server.call("GET", booked.location, X_Tenant_ID="acme"),
            server.cancel(booked.json["id"]),
        ):
            assert_unavailable(response, "database-unavailable")
    assert sorted(os.listdir(aside.parent)) == files
    aside.rename(server.database)
    assert server.book("acme").body == booked.body
    assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
    assert len(server.rows()) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, which needs root on Linux."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk_is_507_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    database = small_disk / "bookings.db"
    with contextlib.closing(Server(tmp_path, "--database", str(database))) as server:
        server.database = database
        booked = server.book("acme")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        for _ in range(2):
            full = server.book("acme", "2026-01-02T10:00:00Z", "k2")
            assert_problem(full, 507, "database-full")
            assert_documented(full, "POST", "/bookings")
            full = server.cancel(booked.json["id"])
            assert_problem(full, 507, "database-full")
            assert_documented(full, "DELETE", "/bookings/{id}")
        listed = server.call("GET", "/bookings", X_Tenant_ID="acme")
        assert (listed.status, listed.json) == (200, [booked.json])
        assert (len(server.rows()), server.rows("cancellations")) == (1, [])
        filler.unlink()
        assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
        assert server.cancel(booked.json["id"]).status == 204
        assert (len(server.rows()), len(server.rows("cancellations"))) == (1, 1)


def test_unexpected_error_is_500_and_is_logged(server: Server) -> None:
    booked = server.book("acme")
    # An IntegrityError that is neither a conflict nor a rule of the operator.
    server.execute(*FAULT)
    response = server.book("acme", "2026-01-02T10:00:00Z", "k2")
    problem = response.json
    assert response.status == 500
    assert response.headers["Content-Type"] == "application/problem+json"
    assert set(problem) == {"type", "title", "status", "detail", "errors", "request_id"}
    assert problem["type"] == "/problems/internal-error"
    assert (problem["status"], problem["errors"]) == (500, [])
    assert problem["title"] and len(problem["request_id"]) >= 8
    hidden = ["Traceback", "sqlite", "SQL", "INSERT", "Integrity", "closed", "k2", "acme", ".py"]
    assert not [word for word in hidden if word in response.body.decode()]
    log = server.log.read_text()
    assert [line for line in log.splitlines() if problem["request_id"] in line]
    assert "IntegrityError: CHECK constraint failed: closed" in log
    again = server.book("acme", "2026-01-02T10:00:00Z", "k2")
    assert again.json["request_id"] != problem["request_id"]
    assert server.call("GET", "/bookings", X_Tenant_ID="acme").json == [booked.json]
    assert len(server.rows()) == 1
    server.execute("DROP TRIGGER broken")
    assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
    assert len(server.rows()) == 2


def test_booking_made_right_after_cancellation_is_not_found(tmp_path: Path) -> None:
    """The look-up must not see it: a booking that was not moved would be an error."""
    path = str(tmp_path / "bookings.db")
    creation.create_database(path)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(sqlite.SQLiteStore(path)))
        client = sqlite3.connect(path, isolation_level=None)
        stack.enter_context(contextlib.closing(client))
        execute = stack.enter_context(store.writing())

        def execute_and_book(statement: str, values: sql.Values) -> sqlite3.Cursor:
            cursor = execute(statement, values)
            if statement == "COMMIT":
                client.execute(INSERT, BOOKING)
            return cursor

        assert not sqlite.cancel_or_explain(execute_and_book, "acme", 1)
        assert client.execute("SELECT id, tenant_id FROM bookings").fetchall() == [(1, "acme")]


# --- Reads share a cache


def test_read_sees_what_was_booked_before_it_started(tmp_path: Path) -> None:
    """Also while other reads are in progress all the time. This cannot fail on a system whose
    SQLite was built without shared caches.
    """
    path = tmp_path / "bookings.db"
    creation.create_database(str(path))
    stop = threading.Event()
    with contextlib.closing(sqlite.SQLiteStore(str(path))) as store:
        for number in range(500):
            store.book(NewBooking("full", slot_at(number), f"f{number}"))

        def read_until_stopped() -> None:
            while not stop.is_set():
                store.list_bookings(PageQuery("full", "", "", "", 1000))

        readers = [threading.Thread(target=read_until_stopped) for _ in range(4)]
        for reader in readers:
            reader.start()
        try:
            for number in range(100):
                _, booking = store.book(NewBooking("acme", slot_at(number), f"k{number}"))
                assert booking
                assert store.get_booking("acme", booking.id) == booking
                page = store.list_bookings(PageQuery("acme", "", "", "", 1000))
                assert len(json.loads(page.array)) == number + 1
        finally:
            stop.set()
            for reader in readers:
                reader.join()


def test_read_beside_one_that_does_not_end_sees_what_was_booked(tmp_path: Path) -> None:
    """The first read keeps its snapshot, as one that waits for the disk does."""
    path = tmp_path / "bookings.db"
    creation.create_database(str(path))
    with contextlib.closing(sqlite.SQLiteStore(str(path))) as store, store.reading() as db:
        db.execute("BEGIN")
        assert db.execute("SELECT count(*) FROM bookings").fetchone() == (0,)
        _, booking = store.book(NewBooking("acme", "2026-01-01T10:00:00Z", "k1"))
        assert booking
        assert store.get_booking("acme", booking.id) == booking
        assert len(json.loads(store.list_bookings(PageQuery("acme", "", "", "", 9)).array)) == 1
        store.ping()
        assert db.execute("SELECT count(*) FROM bookings").fetchone() == (0,)
    assert not Path(f"{path}-wal").exists()


# --- The cost of a page


def create_table(path: Path, count: int) -> sqlite3.Connection:
    """Create a table of `count` bookings: tenants a and z have a third each, many others one."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(SCHEMA)
    # The rows satisfy the rules. Verifying that would take most of the time.
    db.executescript("PRAGMA ignore_check_constraints = ON; PRAGMA synchronous = OFF; BEGIN")
    db.execute(
        """INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key)
        WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?)
        SELECT CASE n % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' || n ELSE 'z' END,
            strftime('%Y-%m-%dT%H:%M:%SZ', 1767225600 + n * 60, 'unixepoch'), 'k' || n FROM n""",
        (count,),
    )
    db.execute("COMMIT")
    return db


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Databases with 1,000 and with 300,000 bookings."""
    paths = []
    for count in (1_000, 300_000):
        paths.append(tmp_path_factory.mktemp("table") / "bookings.db")
        with contextlib.closing(create_table(paths[-1], count)) as db:
            assert db.execute("SELECT count(*) FROM bookings").fetchone() == (count,)
    return paths


def test_page_is_one_index_search_without_scan_or_sort(tables: list[Path]) -> None:
    for path in tables:
        with contextlib.closing(sqlite3.connect(path)) as db:
            indexes = {
                tuple(column for _, _, column in db.execute(f"PRAGMA index_info({name})")): name
                for _, name, unique, *_ in db.execute("PRAGMA index_list(bookings)")
                if unique
            }
            index = indexes["tenant_id", "start_time_utc"]
            search = (
                f"SEARCH( TABLE)? bookings USING INDEX {index} "
                r"\(tenant_id=\? AND start_time_utc>\? AND start_time_utc<\?\)"
            )
            # Without statistics, as the program creates the table, and with those of ANALYZE.
            for statement in ("SELECT 1", "ANALYZE"):
                db.execute(statement)
                values = {"tenant_id": "a", "lower": "", "upper": "~", "limit": 101}
                plan = db.execute(f"EXPLAIN QUERY PLAN {sql.PAGE}", values).fetchall()
                details = [row[-1] for row in plan]
                found = [detail for detail in details if "bookings" in detail]
                assert len(found) == 1 and re.fullmatch(search, found[0]), details
                assert not any("TEMP B-TREE" in detail for detail in details)
                # Only the rows of the page are scanned, to aggregate them into one.
                allowed = re.compile(r"SCAN (SUBQUERY [0-9]+|\(subquery-[0-9]+\))")
                scans = [detail for detail in details if detail.startswith("SCAN")]
                assert all(allowed.fullmatch(scan) for scan in scans), details
            db.execute("DROP TABLE sqlite_stat1")


# Bounds of a page within the bookings that a tenant has in both tables.
EARLY, LATE = "2026-01-01T00:30:00Z", "2026-01-01T08:00:00Z"
# Replaced with a start time near the end of tenant a's bookings, deep in the large table.
END = "end"


@pytest.mark.parametrize(
    ("tenant", "start_from", "start_before", "after", "found"),
    [
        ("a", "", "", "", 100),
        ("z", "", "", "", 100),
        ("a", EARLY, "", "", 100),
        ("a", "", "", LATE, 100),
        ("a", EARLY, "9999-01-01T00:00:00Z", LATE, 100),
        ("a", LATE, EARLY, "", 0),
        ("a", END, "", "", 100),
        ("a", "", "", END, 100),
        ("a", EARLY, "9999-01-01T00:00:00Z", END, 100),
        ("b1", "", "", "", 1),
        ("nobody", "", "", "", 0),
        ("zz", "", "", "", 0),
    ],
)
def test_cost_of_page_does_not_depend_on_size_of_table(
    tables: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tenant: str,
    start_from: str,
    start_before: str,
    after: str,
    found: int,
) -> None:
    # Count the steps of SQLite's virtual machine. Unlike times, they do not vary.
    real = connections.connect
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    def counted(uri: str) -> sqlite3.Connection:
        db = real(uri)
        db.set_progress_handler(step, 1)
        return db

    monkeypatch.setattr(connections, "connect", counted)
    costs = []
    for path in tables:
        with contextlib.closing(sqlite3.connect(path)) as db:
            (end,) = db.execute(
                "SELECT start_time_utc FROM bookings WHERE tenant_id = 'a' "
                "ORDER BY start_time_utc DESC LIMIT 1 OFFSET 150"
            ).fetchone()
        bounds = (end if bound == END else bound for bound in (start_from, start_before, after))
        creation.create_database(str(path))
        with contextlib.closing(sqlite.SQLiteStore(str(path))) as store:
            steps = 0
            page = store.list_bookings(PageQuery(tenant, *bounds, limit=100))
            costs.append(steps)
            assert len(json.loads(page.array)) == found
            assert page.more == (found == 100)
    assert costs[0] == costs[1]
    # A constant part and a few steps for each row of the page.
    assert 0 < costs[0] < 200 + 50 * (found + 1)
