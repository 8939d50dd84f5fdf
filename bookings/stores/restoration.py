"""Makes a new database from a copy: the rules of schema.sql judge every row again.

The copy may have been made under other rules: a backup, the database of an older version, or the
one of another program with the same columns.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from itertools import chain, groupby, islice
from typing import Any

from bookings.stores.connections import connect
from bookings.stores.files import DatabaseFiles, absolute_path, startup_errors
from bookings.stores.model import (
    MAX_REASONS,
    Booking,
    CannotOpen,
    Restored,
    RowsRejected,
)
from bookings.stores.new_file import new_file
from bookings.stores.schema import OBJECTS, expected_objects, schema_statements
from bookings.stores.snapshot import Snapshot, open_read_only, verify_copy
from bookings.stores.sql import TABLES

Progress = Callable[[int, int], None]
Row = Sequence[Any]

# Rows of one transaction, and between two reports of progress.
_CHUNK_ROWS = 5000

# The largest id of a booking that schema.sql allows.
_MAX_ID = 2**53 - 1
_CREATED_AT = Booking._fields.index("created_at")
# Other spellings of an instant in UTC: SQLite's CURRENT_TIMESTAMP, and JavaScript's toISOString().
_OTHER_INSTANT = re.compile(
    rb"([0-9]{4}-[0-9]{2}-[0-9]{2})(?: |T(?=.*Z))([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?Z?"
)
# SQLite's message for the text "now" in a CHECK constraint, which is not an IntegrityError.
_NOT_DETERMINISTIC = "non-deterministic use"


class Text(bytes):
    """A text as its bytes, which need not be UTF-8. `bytes` alone is a blob."""


def restore_file(path: str, copy: str, progress: Progress) -> Restored:
    """Make a database at `path`, which must not exist. It is complete or does not exist.

    Raises RowsRejected or CannotOpen.
    """
    path = absolute_path(path)
    with startup_errors(path):
        _verify_absent(path)
        DatabaseFiles(path).verify_permissions()
        with new_file(path, False, "name another file") as partial:
            with closing(connect(DatabaseFiles(partial).uri("mode=rw"))) as db:
                restored = _fill(db, path, copy, progress)
            verify_copy(partial, restored.counts)
            # As private as the copy, but writable, unlike a copy in an archive.
            os.chmod(partial, stat.S_IMODE(os.stat(copy).st_mode) | stat.S_IRUSR | stat.S_IWUSR)
            _verify_absent(path)
    return restored


@contextmanager
def temporary_database(copy: str) -> Iterator[tuple[sqlite3.Connection, Restored]]:
    """Yield a database with the rows of a copy in a file that SQLite deletes. Raise RowsRejected or
    CannotOpen.
    """
    name = "a temporary database"
    with _errors_of(name), closing(connect("")) as db:
        yield db, _fill(db, name, copy, lambda remaining, total: None)


def _fill(db: sqlite3.Connection, name: str, copy: str, progress: Progress) -> Restored:
    """Create the tables in an empty database with this name, and insert the rows of a copy.

    If this raises, the database must not be used: it is neither synced nor complete.
    """
    with open_read_only(copy) as source:
        snapshot = Snapshot(source, copy)
        counts = snapshot.count()
        uncopied = _list_uncopied(source, snapshot.has_cancellations)
        sequence = _read_sequence(source)
        source.text_factory = Text
        tables = list(TABLES) if snapshot.has_cancellations else ["bookings"]
        rows = chain.from_iterable(_read_rows(source, table, copy) for table in tables)
        with _errors_of(name):
            # Memory stays flat, because each transaction is small.
            db.executescript("PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF")
            for statement in schema_statements():
                db.execute(statement)
            rewritten = _insert(db, rows, sum(counts), progress)
            found = Snapshot(db, name).count()
            if found != counts:  # SQLite counts the rows of an index.
                raise CannotOpen(
                    f"{copy} is damaged: it has {sum(counts)} or {sum(found)} rows, depending on "
                    "where they are counted"
                )
            highest = f"SELECT max({sequence}, {', '.join(map(_highest_id, TABLES))})"
            (last_id,) = db.execute(highest).fetchone()
            if last_id >= _MAX_ID:
                raise CannotOpen(
                    f"{copy}: the last used id is {last_id}, so no id is left for new bookings; "
                    "correct bookings, cancellations or sqlite_sequence in a copy of this file"
                )
            db.execute("DELETE FROM sqlite_sequence")
            db.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('bookings', ?)", (last_id,))
    return Restored(counts, uncopied, rewritten)


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Raise CannotOpen, naming this database, for errors of SQLite."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise CannotOpen(f"{name}: {error}") from error


def _verify_absent(path: str) -> None:
    found = [f"{path}{end}" for end in ("", "-wal", "-shm", "-journal")]
    found = [file for file in found if os.path.lexists(file)]
    if found:
        raise CannotOpen(
            f"{' and '.join(found)} must not exist: this makes a new database; move old files away "
            "or name another file"
        )


def _list_uncopied(source: sqlite3.Connection, has_cancellations: bool) -> list[str]:
    """Return what is in the copy but not in schema.sql, like "column note"."""
    uncopied = []
    for table, columns in TABLES.items():
        if table == "bookings" or has_cancellations:
            # Unlike table_info, table_xinfo has the generated columns.
            found = source.execute(f"SELECT name FROM pragma_table_xinfo('{table}')")
            uncopied += [f"column {name}" for (name,) in found if name.lower() not in columns]
    # A view named bookings is read like the table.
    copied = {*expected_objects(), "view bookings"}
    if not has_cancellations:
        copied.remove("table cancellations")
    return uncopied + [name for name, _ in source.execute(OBJECTS) if name not in copied]


def _read_sequence(source: sqlite3.Connection) -> int:
    """Return the largest id that AUTOINCREMENT remembers, 0 without it."""
    if not source.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
        return 0
    (sequence,) = source.execute(
        "SELECT max(CAST(seq AS INTEGER)) FROM sqlite_sequence WHERE lower(name) = 'bookings'"
    ).fetchone()
    return sequence or 0


def _highest_id(table: str) -> str:
    return f"(SELECT ifnull(max(id), 0) FROM {table})"


def _read_rows(source: sqlite3.Connection, table: str, copy: str) -> Iterator[tuple[str, Row]]:
    """Yield the name of the table and a row. Raise CannotOpen if the copy is damaged."""
    with _errors_of(copy):
        for row in source.execute(f"SELECT {', '.join(TABLES[table])} FROM {table}"):
            yield table, row


def _insert(
    db: sqlite3.Connection, rows: Iterator[tuple[str, Row]], total: int, progress: Progress
) -> int:
    """Insert all rows; return how many got another spelling of created_at. Raise RowsRejected."""
    rejected: list[str] = []
    count = rewritten = done = 0
    for chunk in iter(lambda: list(islice(rows, _CHUNK_ROWS)), []):
        converted = [(table, _convert(row)) for table, row in chunk]
        rewritten += sum(old is not new for (_, old), (_, new) in zip(chunk, converted))
        db.execute("BEGIN")
        try:
            for statement, group in groupby(converted, key=_insert_statement):
                db.executemany(statement, (row for _, row in group))
            db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            db.execute("ROLLBACK")
            _raise_unless_rejected(error)
            reasons = [*_insert_one_by_one(db, converted)]
            count += len(reasons)
            rejected += reasons[: MAX_REASONS - len(rejected)]
        done += len(chunk)
        progress(total - done, total)
    if count:
        raise RowsRejected(rejected, count)
    return rewritten


def _insert_one_by_one(db: sqlite3.Connection, rows: Iterable[tuple[str, Row]]) -> Iterator[str]:
    """Yield the reason of each row that is rejected."""
    db.execute("BEGIN")
    for table, row in rows:
        try:
            db.execute(_insert_statement((table, row)), row)
        except sqlite3.DatabaseError as error:
            _raise_unless_rejected(error)
            name = row[0].decode("utf-8", "replace") if isinstance(row[0], bytes) else row[0]
            yield f"{table}, id {name!a:.80}: {error}"
    db.execute("COMMIT")


def _raise_unless_rejected(error: sqlite3.DatabaseError) -> None:
    if not isinstance(error, sqlite3.IntegrityError) and _NOT_DETERMINISTIC not in str(error):
        raise error


def _convert(row: Row) -> Row:
    """Write created_at as schema.sql wants it, if it has another spelling of an instant in UTC."""
    created_at = row[_CREATED_AT]
    match = isinstance(created_at, Text) and _OTHER_INSTANT.fullmatch(created_at)
    if not match:
        return row
    instant = Text(b"%bT%bZ" % match.groups())
    if instant == created_at:
        return row
    return (*row[:_CREATED_AT], instant, *row[_CREATED_AT + 1 :])


def _insert_statement(table_and_row: tuple[str, Row]) -> str:
    table, row = table_and_row
    return _insert_statement_for(table, tuple(isinstance(value, Text) for value in row))


@cache
def _insert_statement_for(table: str, are_texts: tuple[bool, ...]) -> str:
    values = ["CAST(? AS TEXT)" if is_text else "?" for is_text in are_texts]
    # SQLite would give a row without an id a new one. Any text is rejected.
    values[0] = f"ifnull({values[0]}, '')"
    return f"INSERT INTO {table} ({', '.join(TABLES[table])}) VALUES ({', '.join(values)})"
