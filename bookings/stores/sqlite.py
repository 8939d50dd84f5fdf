"""The SQLite store: a fresh connection for each call, and a sync before each response.

Arguments have been validated before; schema.sql applies its rules all the same.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from bookings.stores import connections, model, sql
from bookings.stores.creation import verify_rules
from bookings.stores.decisions import Execute, cancel_or_explain, insert_or_explain
from bookings.stores.files import DatabaseFiles, Identities, startup_errors
from bookings.stores.model import (
    CannotOpen,
    FailureReason,
    NewBooking,
    Record,
    Unavailable,
)
from bookings.stores.shared import SharedState

# Longest time a request may hold the write queue while it waits for SQLite's lock. If another
# program holds the lock longer, the request leaves the queue and waits on busy_timeout, so that
# waits overlap instead of adding up: in the queue, 200 requests took up to 2.3 times BUSY_SECONDS.
QUEUE_SECONDS = 0.05
# Longest wait in the write queue. A worker that hangs at its head must not stop every other one.
# 1,000 waiting requests take a quarter of this.
QUEUE_TIMEOUT = 2.0
# Longest wait at shutdown for other workers that close the database; each takes milliseconds.
CLOSE_SECONDS = 1.0
# Commits of all workers between two checkpoints, about 4,000 pages of the WAL. A checkpoint syncs
# three times while all writers wait; compared with SQLite's default of 1,000 pages, 16 clients on
# a disk with a 4 ms sync made 1.14 times as many bookings.
CHECKPOINT_COMMITS = 1000
# A WAL of this size in bytes is truncated. Only writes of other programs make it grow beyond 16 MB.
MAX_WAL_BYTES = 64 << 20

fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


class SQLiteStore:
    """Bookings in one SQLite file in WAL mode, created by `create_database`.

    Any number of threads and processes may use the same file. The workers of a server
    share `shared`. Raises CannotOpen if the database cannot be used or is not the one that
    `identities` describe.
    """

    def __init__(
        self, path: str, identities: Identities | None = None, shared: SharedState | None = None
    ) -> None:
        self._files = DatabaseFiles(path)
        self._shared = shared or SharedState()
        # The size of the WAL after an attempt to truncate it.
        self._kept_bytes = 0
        self._uri = self._files.uri("mode=rw")
        # Connections for reading share the parsed schema and a cache of pages. SQLite drops either
        # if the database has changed. With 16 clients, 10,142 lists/s instead of 6,491.
        self._read_uri = self._files.uri("mode=rw&cache=shared")
        # They also share a snapshot while their transactions overlap, and an old one lacks new
        # bookings. So only one of them reads at a time.
        self._read_lock = threading.Lock()
        self._wal_descriptors: list[int] = []
        self._sentinel_lock = threading.Lock()
        path = self._files.path
        with startup_errors(path):
            # No request uses this connection. While it is open, closing another one does not
            # checkpoint and delete the WAL, which cost most of an INSERT (1,187 us instead of 417).
            # It also keeps the cache that reads share.
            self._idle_connection = connections.connect(self._read_uri)
            try:
                self._files.expect(identities or self._files.identify())
                self._files.verify(path)
                verify_rules(self._idle_connection, path)
                # The statement above opened the WAL.
                self._files.expect({**self._files.identify(), **(identities or {})})
                self._files.verify()
                self._files.sync_directory()
                # Reports write-back errors of every checkpoint. It stays open as long as a
                # connection: closing any descriptor of a file drops the process's locks on it.
                self._database = os.open(path, os.O_RDWR)
                # Reports write-back errors of the WAL that happened before a request opened it.
                self._sentinel = self._files.open_wal()
            except (OSError, CannotOpen) as error:
                self._idle_connection.close()
                raise CannotOpen(str(error)) from error

    def close(self) -> None:
        # A checkpoint that a power cut interrupts cannot be repaired from a WAL with a hole.
        self._shared.leave_if_sync_failed()
        # SQLite cannot checkpoint beside a read that shares its cache. The next server can.
        if not self._read_lock.acquire(timeout=CLOSE_SECONDS):
            return
        with closing(self._idle_connection) as db, suppress(sqlite3.Error):
            # The last connection to close checkpoints the WAL and deletes it. Of two that close at
            # the same moment neither is the last: without the queue, 14 of 30 shutdowns of two
            # workers left a WAL behind.
            in_queue = self._shared.queue.enter(CLOSE_SECONDS)
            self._shared.leave_if_sync_failed()
            mode = "PASSIVE"
            try:
                self._files.verify(self._files.path, self._files.wal)
            except OSError:
                # SQLite keeps the WAL if its database was moved. The bookings in the WAL belong
                # to that database; beside another one, SQLite would replay them into it.
                mode = "TRUNCATE"
            self._checkpoint(db, mode)
            db.close()
            if in_queue:
                self._shared.queue.leave()
        os.close(self._database)
        os.close(self._sentinel)
        # A late request opens a new descriptor instead of using a closed one.
        while self._wal_descriptors:
            os.close(self._wal_descriptors.pop())

    def book(self, new: NewBooking) -> model.Decision:
        """Book the slot. Everything that the result reports is on the disk."""
        with self.writing() as execute:
            return insert_or_explain(execute, new)

    def list_bookings(self, query: model.PageQuery) -> model.Page:
        with self.reading() as db:
            return sql.read_page(lambda *statement: db.execute(*statement).fetchone(), query)

    def get_booking(self, tenant_id: str, booking_id: int) -> Record | None:
        with self.reading() as db:
            values: sql.Values = {"id": booking_id, "tenant_id": tenant_id}
            return sql.as_found(db.execute(sql.FIND_BY_ID, values).fetchone())

    def cancel(self, tenant_id: str, booking_id: int) -> bool:
        """Cancel the booking. Everything that the result reports is on the disk."""
        with self.writing() as execute:
            return cancel_or_explain(execute, tenant_id, booking_id)

    def ping(self) -> None:
        with self.reading() as db:
            db.execute(sql.PING).fetchone()
            if not os.access(self._files.path, os.W_OK):
                raise PermissionError(f"{self._files.path}: permission denied: not writable")
            try:
                verify_rules(db, self._files.path)
            except CannotOpen as error:
                raise Unavailable(FailureReason.UNREACHABLE) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield a read connection. Raise if the database files were replaced since startup."""
        connection = connections.connect_to_read(self._uri, self._read_uri, self._read_lock)
        with connections.translate_errors(), connection as db:
            self._files.verify(self._files.path)
            try:
                yield db
            finally:  # A replaced WAL may also be why a statement failed.
                self._files.verify(self._files.wal, self._files.shm)
            # The restart may drop a booking whose sync failed.
            self._raise_if_sync_failed()

    @contextmanager
    def writing(self) -> Iterator[Execute]:
        """Yield a function that executes statements of one write, in autocommit mode.

        When the block ends, everything it committed or read is on the disk.
        """
        started = time.monotonic()
        with connections.translate_errors(), self._wal_descriptor() as wal:
            with closing(self._connect_to_write()) as db:
                in_queue = self._shared.queue.enter(QUEUE_TIMEOUT)
                connections.set_busy_timeout(db, started + QUEUE_SECONDS - time.monotonic())

                def execute(statement: str, values: sql.Values) -> sqlite3.Cursor:
                    nonlocal in_queue
                    if in_queue:
                        try:
                            return db.execute(statement, values)
                        except sqlite3.OperationalError as error:
                            if not connections.is_busy(error):
                                raise
                            self._shared.queue.leave()
                            in_queue = False
                    # All statements together wait no longer than this.
                    remaining = started + connections.BUSY_SECONDS - time.monotonic()
                    connections.set_busy_timeout(db, remaining)
                    return db.execute(statement, values)

                try:
                    yield execute
                    if db.total_changes:
                        self._checkpoint_if_due(db, wal)
                except sqlite3.OperationalError as error:
                    self._abandon_if_sync_failed(error, wal)
                    raise
                finally:
                    if in_queue:
                        self._shared.queue.leave()
            # Sync also after a conflict: the booking that caused it was committed by a request
            # that may not have synced yet. No lock is held here, so concurrent requests share the
            # wait for the disk.
            self._sync(wal)
            # If the files were moved away meanwhile, the booking cannot be found.
            self._files.verify()

    @contextmanager
    def _wal_descriptor(self) -> Iterator[int]:
        """Yield a descriptor of the WAL that no other request uses, and keep it open afterwards.

        The kernel reports a failed write-back to each descriptor that was open at the time. A new
        descriptor would miss a failure that another thread is just about to announce, so the
        sentinel is synced as well.
        """
        is_new = False
        try:
            wal = self._wal_descriptors.pop()
        except IndexError:
            wal, is_new = self._files.open_wal(), True
        try:
            yield wal
            if is_new:
                self._sync_sentinel()
        except sqlite3.IntegrityError:
            # A booking that is not on the disk yet may be why a rule of the operator rejects.
            self._sync_sentinel()
            raise
        finally:
            self._wal_descriptors.append(wal)

    def _connect_to_write(self) -> sqlite3.Connection:
        db = connections.connect(self._uri)
        try:
            self._files.verify(self._files.path)
            # NORMAL leaves syncing the WAL to us. FULL would sync it while holding the write lock:
            # 107 bookings/s instead of 2,233 with 16 clients and a 4 ms sync. Automatic
            # checkpoints are off because SQLite ignores their failed syncs.
            db.executescript("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0")
            self._files.verify(self._files.wal, self._files.shm)
        except BaseException:
            db.close()
            raise
        return db

    def _sync(self, wal: int) -> None:
        """Make the WAL durable. Raise OSError if any worker failed to do so."""
        try:
            fdatasync(wal)
        except OSError as error:
            self._shared.abandon(error)
        # A descriptor opened after the failure does not report it.
        self._raise_if_sync_failed()

    def _raise_if_sync_failed(self) -> None:
        if self._shared.sync_failed:
            raise OSError("a sync failed in another worker; the server restarts from the disk")

    def _abandon_if_sync_failed(self, error: sqlite3.OperationalError, wal: int) -> None:
        """SQLite syncs the WAL itself when it starts to overwrite it."""
        # Python 3.9 and 3.10 do not name the error; there our sync reports it as well.
        if getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_FSYNC":
            self._shared.abandon(error)
        if str(error) == "disk I/O error":
            self._sync(wal)

    def _sync_sentinel(self) -> None:
        # Under a lock, because the kernel reports an error to a descriptor only once.
        with self._sentinel_lock:
            self._sync(self._sentinel)

    def _checkpoint_if_due(self, db: sqlite3.Connection, wal: int) -> None:
        size = os.fstat(wal).st_size
        too_large = size > MAX_WAL_BYTES
        # A long read, such as a backup, keeps the WAL from being truncated. Waiting for it at every
        # booking left 19 bookings/s of 2,120.
        grown = size > self._kept_bytes + MAX_WAL_BYTES
        if self._shared.count_commit() >= CHECKPOINT_COMMITS or grown:
            # A checkpoint must not copy pages from behind a hole in the WAL.
            self._sync_sentinel()
            self._shared.reset_commits()
            self._checkpoint(db, "TRUNCATE" if too_large else "PASSIVE")
            self._kept_bytes = os.fstat(wal).st_size if too_large else 0

    def _checkpoint(self, db: sqlite3.Connection, mode: str) -> None:
        """Copy the WAL into the database, and abandon the process if a sync fails."""
        try:
            db.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
            # SQLite does not sync a checkpoint that readers kept from completing.
            os.fsync(self._database)
        except (sqlite3.OperationalError, OSError) as error:
            # A busy or full database lost nothing: the WAL has it all, and a later one succeeds.
            if connections.failure_reason(error) is FailureReason.UNREACHABLE:
                self._shared.abandon(error)
