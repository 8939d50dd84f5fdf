"""Creates the SQLite database, or verifies an existing one."""

from __future__ import annotations

import shlex
import sqlite3
import time
from contextlib import closing

from bookings.stores import connections
from bookings.stores.files import DatabaseFiles, startup_errors
from bookings.stores.model import CannotOpen
from bookings.stores.recovery import settle
from bookings.stores.schema import ENCODING, OBJECTS, schema_statements, verify_schema


def create_database(path: str) -> None:
    """Create the database from schema.sql, or verify an existing one. Raise CannotOpen."""
    files = DatabaseFiles(path)
    path = files.path
    with startup_errors(path):
        files.verify_permissions()
        try:
            files.verify_wal()
            settle(files)
        except OSError as error:
            raise CannotOpen(f"{error.filename or path}: {error.strerror}") from error
        with closing(connections.connect(files.uri("mode=rwc"))) as db:
            # Verify before anything is written: another program's database stays as it is.
            if db.execute(OBJECTS).fetchall() or _encoding(db) != "UTF-8":
                verify_rules(db, path)
            mode = _switch_to_wal(db)
            if mode != "wal":
                raise CannotOpen(
                    f"{path}: SQLite cannot use a WAL here; its journal mode stays {mode}; "
                    "use a local disk"
                )
            # The transaction lets two servers start on one new file.
            db.execute("BEGIN IMMEDIATE")
            for statement in schema_statements():
                db.execute(statement)
            verify_rules(db, path)
            db.execute("COMMIT")


def verify_rules(db: sqlite3.Connection, path: str) -> None:
    """Raise CannotOpen unless the database has all rules of schema.sql."""
    remedy = (
        f"python -m bookings.restore {shlex.quote(path)} --database new.db makes a new database "
        "from it"
    )
    verify_schema(_encoding(db), db.execute(OBJECTS).fetchall(), path, remedy)


def _switch_to_wal(db: sqlite3.Connection) -> str:
    """Return the journal mode. SQLite does not apply its busy timeout to this statement."""
    deadline = time.monotonic() + connections.BUSY_SECONDS
    while True:
        try:
            return str(db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if not connections.is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _encoding(db: sqlite3.Connection) -> str:
    return str(db.execute(ENCODING).fetchone()[0])
