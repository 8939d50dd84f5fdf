"""Databases made without the server, and faults in the storage below it."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from pathlib import Path
from typing import Any

from tests.helpers.tools import SCHEMA
from tests.helpers.values import SLOT

# A booking as (tenant, start, key), and the statement that inserts it.
BOOKING = ("acme", SLOT, "k1")
INSERT = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES (?, ?, ?)"

# Patch for `patched()`: a sync waits while the file `hold` exists, fails with EIO while `fail`
# exists, and appends a line to the file `syncs`.
CONTROLLED_SYNC = f"""
import os, time
from bookings.stores import sqlite
sync = sqlite.fdatasync
def controlled(descriptor):
    with open("syncs", "a") as syncs:
        syncs.write("x\\n")
    while os.path.exists("hold"):
        time.sleep(0.005)
    if os.path.exists("fail"):
        raise OSError({errno.EIO}, os.strerror({errno.EIO}))
    sync(descriptor)
sqlite.fdatasync = controlled
"""

# Patch: a worker that books with the key `stop` suspends itself at the head of the write queue, and
# with the key `lock` also while it holds SQLite's write lock. With the key `die` it kills itself.
STOP_IN_QUEUE = """
import os, signal, time
from bookings.stores import connections, sqlite
insert_or_explain = sqlite.insert_or_explain
def send_itself(number):
    os.kill(os.getpid(), number)
    time.sleep(0.1)  # Another thread may receive the signal.
def stop_then_insert(execute, new):
    if new.idempotency_key == "die":
        send_itself(signal.SIGKILL)
    if new.idempotency_key == "lock":
        execute("BEGIN IMMEDIATE", {})
    if new.idempotency_key in ("stop", "lock"):
        send_itself(signal.SIGSTOP)
    decision = insert_or_explain(execute, new)
    if new.idempotency_key == "lock":
        execute("COMMIT", {})
    return decision
sqlite.insert_or_explain = stop_then_insert
sqlite.QUEUE_TIMEOUT, connections.BUSY_SECONDS = 0.5, 1.0
"""

# Statements that make every INSERT fail with an IntegrityError that is neither a lost slot or key
# nor a rule: a 500. The log shows the name of the constraint, `closed`.
FAULT = (
    'CREATE TABLE fault (x CONSTRAINT "closed" CHECK (x))',
    "CREATE TRIGGER broken BEFORE INSERT ON bookings BEGIN INSERT INTO fault VALUES (0); END",
)


def set_aside(database: Path) -> Path:
    """Move a database away, with everything in one file, and return its new path."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    return database.rename(database.with_name("aside.db"))


def create_by_hand(path: Path, script: str = SCHEMA, journal: str = "delete") -> Path:
    """Create a database without the server, with BOOKING in it if a table accepts it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.executescript(script)
        with contextlib.suppress(sqlite3.DatabaseError):
            db.execute(INSERT, BOOKING)
    return path


def rows_in(path: Path) -> list[tuple[Any, ...]]:
    """Return (tenant, start, key) of every row, ordered by id."""
    assert path.is_file()
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(
            "SELECT tenant_id, start_time_utc, idempotency_key FROM bookings ORDER BY id"
        ).fetchall()


def all_files(folder: Path) -> dict[str, bytes]:
    """Return the contents of every file below the folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
