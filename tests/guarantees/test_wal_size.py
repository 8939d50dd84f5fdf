"""The WAL stays small, whoever writes into it: the store checkpoints, because SQLite does not."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookings.stores import creation, sqlite
from bookings.stores.model import NewBooking, Outcome
from bookings.stores.sqlite import SQLiteStore
from tests.helpers.values import slot_at


class GrowingDatabase:
    """A store whose syncs do nothing, for speed, and the largest size of its WAL in bytes."""

    def __init__(self, store: SQLiteStore, path: Path) -> None:
        self._store = store
        self.path = path
        self.booked = 0
        self.largest = 0

    def book(self, count: int) -> None:
        for _ in range(count):
            new = NewBooking(f"t{self.booked % 7}", slot_at(self.booked), f"key {self.booked}")
            assert self._store.book(new)[0] is Outcome.CREATED
            self.booked += 1
            self.largest = max(self.largest, self.path.with_name("x.db-wal").stat().st_size)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GrowingDatabase]:
    monkeypatch.setattr(sqlite, "fdatasync", lambda descriptor: None)
    path = tmp_path / "x.db"
    creation.create_database(str(path))
    with contextlib.closing(SQLiteStore(str(path))) as store:
        yield GrowingDatabase(store, path)


def insert(db: sqlite3.Connection, numbers: range) -> None:
    columns = "tenant_id, start_time_utc, idempotency_key"
    rows = [("by hand", slot_at(number), f"by hand {number}") for number in numbers]
    with db:
        db.executemany(f"INSERT INTO bookings ({columns}) VALUES (?, ?, ?)", rows)


def test_wal_stays_small_during_many_bookings(database: GrowingDatabase) -> None:
    database.book(3000)
    assert database.largest < 20 << 20


def test_wal_stays_small_if_ids_are_skipped(
    database: GrowingDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint depends on the number of commits, not on ids."""
    monkeypatch.setattr(sqlite, "CHECKPOINT_COMMITS", 50)
    database.book(500)
    before, database.largest = database.largest, 0
    with contextlib.closing(sqlite3.connect(database.path)) as db, db:
        row = ("by hand", slot_at(0), "by hand")
        db.execute(
            "INSERT INTO bookings (id, tenant_id, start_time_utc, idempotency_key)"
            " VALUES (1000000000007, ?, ?, ?)",
            row,
        )
    database.book(500)
    assert database.largest < 2 * before < 2 << 20


def test_wal_stays_small_if_sql_client_never_checkpoints(
    database: GrowingDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 1 << 20
    monkeypatch.setattr(sqlite, "MAX_WAL_BYTES", limit)
    with contextlib.closing(sqlite3.connect(database.path)) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0")
        for number in range(40):
            insert(db, range(200 * number, 200 * (number + 1)))
            database.book(1)
    # One transaction of the client adds less than the limit.
    assert database.largest < 2 * limit


def test_long_read_keeps_wal_large_without_slowing_bookings(
    database: GrowingDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader keeps the WAL from being truncated. No booking waits for it."""
    limit = 1 << 20
    monkeypatch.setattr(sqlite, "MAX_WAL_BYTES", limit)
    monkeypatch.setattr(sqlite, "CHECKPOINT_COMMITS", 100)
    with contextlib.closing(sqlite3.connect(database.path)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM bookings").fetchone()
        database.book(200)
        assert database.largest > limit
        began = time.monotonic()
        database.book(80)
        # Waiting for the reader each time takes twice as long.
        assert time.monotonic() - began < 80 * sqlite.QUEUE_SECONDS / 2
    database.book(100)
    database.largest = 0
    database.book(10)
    assert database.largest < limit
