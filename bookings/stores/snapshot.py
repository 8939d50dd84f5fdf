"""Read-only access to a SQLite database for the commands that run beside the server."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from bookings.stores import sql
from bookings.stores.connections import connect, set_busy_timeout
from bookings.stores.files import DatabaseFiles, startup_errors
from bookings.stores.model import Booking, Cancellation, CannotOpen, Counts, Record
from bookings.stores.schema import COLUMNS, verify_columns

# Pages that SQLite copies between two reports of progress.
_COPY_PAGES = 1000


class Snapshot:
    """The bookings at one moment."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        """Raise CannotOpen unless there is a table of bookings. Its rules do not matter."""
        self._db = db
        self.has_cancellations = verify_columns(db.execute(COLUMNS).fetchall(), path)

    def count(self) -> Counts:
        return Counts(*self._db.execute(sql.count_query(self.has_cancellations)).fetchone())

    def bookings(
        self,
        tenant_id: str | None,
        start_from: str,
        start_before: str,
        limit: int,
        cancelled: bool = False,
    ) -> Iterator[Record]:
        if cancelled and not self.has_cancellations:
            return iter(())
        query, values = sql.list_query(cancelled, tenant_id, start_from, start_before, limit)
        record = Cancellation if cancelled else Booking
        return (record(*row) for row in self._db.execute(query, values))

    def copy_to(self, path: str, progress: Callable[[int, int], None]) -> Counts:
        """Copy with SQLite's online backup, which does not block writers."""
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            try:
                self._db.backup(
                    copy,
                    pages=_COPY_PAGES,
                    progress=lambda _, remaining, total: progress(remaining, total),
                )
            except sqlite3.DatabaseError as error:
                raise CannotOpen(f"the copy failed: {error}") from error
        return verify_copy(path, self.count())


def verify_copy(path: str, at_least: Counts) -> Counts:
    """Return what is in the copy. Raise CannotOpen if it is damaged or has fewer rows than
    `at_least`. Cancelling moves rows, so only the sum never shrinks.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as copy:
        try:
            # Without a WAL the copy is one file and can be read from a read-only directory.
            copy.execute("PRAGMA journal_mode = DELETE")
            found = copy.execute("PRAGMA integrity_check").fetchone()[0]
            count = Snapshot(copy, path).count()
        except sqlite3.DatabaseError as error:
            raise CannotOpen(f"the copy is damaged: {error}") from error
    if found != "ok":
        raise CannotOpen(f"the copy is damaged: {' '.join(found.split())[:200]}")
    if sum(count) < sum(at_least):
        raise CannotOpen(f"the copy is incomplete: {sum(count)} of {sum(at_least)} rows; repeat it")
    return count


@contextmanager
def read_snapshot(path: str) -> Iterator[Snapshot]:
    """Yield the bookings at this moment. Raise CannotOpen."""
    with open_read_only(path) as db:
        yield Snapshot(db, path)


@contextmanager
def open_read_only(path: str) -> Iterator[sqlite3.Connection]:
    """Yield a connection that reads the database as it is at this moment. Raise CannotOpen."""
    files = DatabaseFiles(path)
    path = files.path
    with startup_errors(path):
        if not os.path.exists(path):
            raise CannotOpen(f"there is no database at {path}; --database names another")
        files.verify_readable()
        files.verify_wal()
        # Reading a WAL database creates a WAL, and a read-only connection cannot delete it. A
        # process that can write deletes it below. Any other process does not create one: without a
        # WAL, no server is writing and the file can be read as immutable.
        writable = os.access(os.path.dirname(files.wal), os.W_OK) and os.access(path, os.W_OK)
        has_others = any(os.path.exists(file) for file in (files.wal, files.journal))
        mode = "mode=ro" if writable or has_others else "mode=ro&immutable=1"
        try:
            with closing(connect(files.uri(mode))) as db:
                _begin_read(db, files)
                yield db
        finally:
            with suppress(OSError):  # A server that shut down has deleted the WAL.
                if writable and not os.path.getsize(files.wal):
                    _delete_empty_wal(files)


def _begin_read(db: sqlite3.Connection, files: DatabaseFiles) -> None:
    """Begin a transaction and read, which is when SQLite opens the WAL or finds a journal."""
    try:
        db.execute("BEGIN")
        db.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        if "readonly" in str(error) and os.path.exists(files.journal):
            raise CannotOpen(
                f"{files.journal} was left by a program that was killed while it wrote to "
                f"{files.path}; read the database once with an SQLite client, which undoes that"
            ) from error
        raise


def _delete_empty_wal(files: DatabaseFiles) -> None:
    """Close a writable connection: SQLite deletes the WAL if that is the last one."""
    with suppress(sqlite3.Error), closing(connect(files.uri("mode=rw"))) as db:
        set_busy_timeout(db, 0)
        db.execute(sql.PING).fetchone()
