"""The store on an rqlite cluster: the same statements under the same schema.sql.

Repeating a statement whose response was lost is safe, because the idempotency key makes the second
INSERT fail and the look-up finds the booking. The store never guesses an outcome.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bookings.stores import model, restoration, rqlite_client, sql
from bookings.stores.model import (
    Booking,
    Cancellation,
    CannotOpen,
    Counts,
    FailureReason,
    NewBooking,
    Outcome,
    RejectedByRule,
    Restored,
    RowsRejected,
    Unavailable,
)
from bookings.stores.rqlite_client import LEVEL_STRONG, LEVEL_WEAK, Rejected, RqliteClient
from bookings.stores.schema import (
    COLUMNS,
    ENCODING,
    OBJECTS,
    schema_statements,
    verify_columns,
    verify_schema,
)
from bookings.stores.snapshot import verify_copy

# Rows that a reader of the whole table fetches at once, about 200 KB.
_READ_ROWS = 1000

_ELEMENT = "json_extract(value, '$[{}]')"
# Safe to repeat: rows that are there already are left alone.
_INSERT_PAGE = {
    table: f"INSERT INTO {table} ({', '.join(columns)}) "
    f"SELECT {', '.join(map(_ELEMENT.format, range(len(columns))))} "
    f"FROM json_each(:rows) WHERE {_ELEMENT.format(0)} NOT IN (SELECT id FROM {table})"
    for table, columns in restoration.TABLES.items()
}
# An id that was used is not used again.
_RAISE_SEQUENCE = (
    "INSERT INTO sqlite_sequence (name) SELECT 'bookings' EXCEPT SELECT name FROM sqlite_sequence",
    "UPDATE sqlite_sequence SET seq = max(ifnull(seq, 0), :seq) WHERE name = 'bookings'",
)
# A NUL, at which SQLite's JSON functions end, and a byte that is not UTF-8.
_UNSENDABLE = re.compile("[\0\udc80-\udcff]")


class RqliteStore:
    """Bookings on a cluster, prepared by `create_tables`.

    Any number of servers may use the same cluster. Raises CannotOpen for a bad URL.
    """

    def __init__(self, url: str) -> None:
        self._client = RqliteClient(url)

    def close(self) -> None:
        self._client.close()

    def book(self, new: NewBooking) -> model.Decision:
        """Book the slot. A majority of the nodes has everything that the result reports on disk."""
        deadline = rqlite_client.call_deadline()
        # The column's default would give each node its own time.
        row = {**new._asdict(), "created_at": model.current_time()}
        try:
            (result,) = self._client.execute([(sql.INSERT, row)], deadline)
        except Rejected as error:
            # A weak read could miss the booking and report a taken slot instead of a replay.
            rows = self._client.query(LEVEL_STRONG, sql.FIND_BY_KEY, row, deadline)
            found = sql.as_found(rows[0] if rows else None)
            if not found and str(error) not in sql.CONFLICTS:
                self._raise_if_rule(error, deadline)
                raise
            return model.explain_conflict(new, found)
        if result.get("rows_affected") != 1:
            raise RuntimeError("the INSERT had no effect; does a trigger ignore it?")
        return Outcome.CREATED, Booking(result["last_insert_id"], **row)

    def cancel(self, tenant_id: str, booking_id: int) -> bool:
        """Cancel the booking. A majority of the nodes has everything that the result reports on
        disk.
        """
        deadline = rqlite_client.call_deadline()
        values: sql.Values = {
            "id": booking_id,
            "tenant_id": tenant_id,
            "cancelled_at": model.current_time(),
        }
        # rqlite cannot roll back because a DELETE had no effect. If a trigger ignores it, copying
        # the row once more violates the primary key, which rolls back everything.
        statements = [sql.INSERT_CANCELLATION, sql.DELETE_BOOKING, sql.INSERT_CANCELLATION]
        # A booking that is made between the statements and the look-up is moved the second time.
        for _ in range(2):
            try:
                results = self._client.execute([(each, values) for each in statements], deadline)
                # rqlite leaves rows_affected out if it is 0.
                if results[0].get("rows_affected") == 1:
                    return True
            except Rejected as error:
                if not str(error).startswith(sql.CANCELLATION_EXISTS):
                    self._raise_if_rule(error, deadline)
                    raise
            found = self._find(booking_id, tenant_id, deadline)
            if not isinstance(found, Booking):
                break
        return model.explain_no_cancellation(found)

    def list_bookings(self, query: model.PageQuery) -> model.Page:
        deadline = rqlite_client.call_deadline()

        def fetch_row(statement: str, values: sql.Values) -> object:
            # A client that received 201 must find the booking in the list.
            return self._client.query(LEVEL_STRONG, statement, values, deadline)[0]

        return sql.read_page(fetch_row, query)

    def get_booking(self, tenant_id: str, booking_id: int) -> Booking | Cancellation | None:
        return self._find(booking_id, tenant_id, rqlite_client.call_deadline())

    def ping(self) -> None:
        # A health check only needs to know that there is a leader, and runs every few seconds.
        try:
            _verify_rules(self._client, LEVEL_WEAK)
        except CannotOpen as error:
            raise Unavailable(FailureReason.UNREACHABLE) from error

    def _raise_if_rule(self, error: Rejected, deadline: float) -> None:
        """Raise RejectedByRule if a rule of the operator caused the error."""
        message = str(error)
        rule = sql.operator_rule(message)
        # rqlite reports faults such as "no such table" in the same way as the text of a trigger.
        values: sql.Values = {"text": message.replace("'", "''")}
        if rule and (
            rule != message or self._client.query(LEVEL_STRONG, sql.FIND_TRIGGER, values, deadline)
        ):
            raise RejectedByRule(rule) from None

    def _find(
        self, booking_id: int, tenant_id: str, deadline: float
    ) -> Booking | Cancellation | None:
        values: sql.Values = {"id": booking_id, "tenant_id": tenant_id}
        found = self._client.query(LEVEL_STRONG, sql.FIND_BY_ID, values, deadline)
        return sql.as_found(found[0] if found else None)


class RqliteReader:
    """The bookings on a cluster, for the commands that run beside the server."""

    def __init__(self, client: RqliteClient) -> None:
        """Raise CannotOpen unless there is a table of bookings, under whatever rules."""
        self._client = client
        columns = [(table, name) for table, name in client.query(LEVEL_STRONG, COLUMNS)]
        self._has_cancellations = verify_columns(columns, client.name)

    def count(self) -> Counts:
        query = sql.count_query(self._has_cancellations)
        return Counts(*self._client.query(LEVEL_STRONG, query)[0])

    def bookings(
        self,
        tenant_id: str | None,
        start_from: str,
        start_before: str,
        limit: int,
        cancelled: bool = False,
    ) -> Iterator[Booking | Cancellation]:
        if cancelled and not self._has_cancellations:
            return
        record = Cancellation if cancelled else Booking
        bounds = (cancelled, tenant_id, start_from, start_before)
        after = ("", "", 0)
        while limit:
            size = _READ_ROWS if limit < 0 else min(limit, _READ_ROWS)
            query, values = sql.list_query(*bounds, size, after)
            found = [record(*row) for row in self._client.query(LEVEL_STRONG, query, values)]
            yield from found
            if len(found) < size:
                return
            after = (found[-1].tenant_id, found[-1].start_time_utc, found[-1].id)
            limit = limit if limit < 0 else limit - size

    def copy_to(self, path: str, progress: Callable[[int, int], None]) -> Counts:
        """Download the leader's database. The nodes report no progress."""
        at_least = self.count()
        self._client.download_to(path)
        return verify_copy(path, at_least)


@contextmanager
def read_cluster(url: str) -> Iterator[RqliteReader]:
    """Yield the bookings on a cluster. Raise CannotOpen."""
    with _open_client(url) as client:
        yield RqliteReader(client)


def create_tables(url: str) -> None:
    """Create the tables from schema.sql, or verify existing ones. Raise CannotOpen."""
    with _open_client(url) as client:
        # Verify an existing schema as it is: adding a dropped rule would not undo what it missed.
        if not client.query(LEVEL_STRONG, OBJECTS):
            client.execute([(statement, None) for statement in schema_statements()])
        _verify_rules(client)


def restore_cluster(url: str, copy: str, progress: Callable[[int, int], None]) -> Restored:
    """Send the rows of a copy, after a temporary database has judged them.

    An interrupted restore can be repeated. Raises RowsRejected, or CannotOpen if the cluster has
    rows that the copy does not have.
    """
    with restoration.temporary_database(copy) as (db, restored):
        _verify_sendable(db)
        create_tables(url)
        with _open_client(url) as client:
            _count_restored(client, db)
            total = remaining = sum(restored.counts)
            for table in restoration.TABLES:
                for page in _read_pages(db, table):
                    rows = json.dumps(page, ensure_ascii=False)
                    client.execute([(_INSERT_PAGE[table], {"rows": rows})])
                    remaining -= len(page)
                    progress(remaining, total)
            (sequence,) = db.execute("SELECT seq FROM sqlite_sequence").fetchone()
            client.execute([(statement, {"seq": sequence}) for statement in _RAISE_SEQUENCE])
            found = _count_restored(client, db)
            if found != total:
                raise CannotOpen(f"{client.name} has {found} of {total} rows; restore again")
    return restored


def _verify_sendable(db: sqlite3.Connection) -> None:
    """Raise RowsRejected if rows have text that JSON or SQLite's JSON functions cannot carry."""
    reasons = [
        f"{table}, id {row[0]}: a cluster cannot store text that has a NUL or is not UTF-8"
        for table in restoration.TABLES
        for page in _read_pages(db, table)
        for row in page
        if not all(isinstance(text, str) and not _UNSENDABLE.search(text) for text in row[1:])
    ]
    if reasons:
        raise RowsRejected(reasons[: model.MAX_REASONS], len(reasons))


def _read_pages(db: sqlite3.Connection, table: str) -> Iterator[list[Any]]:
    """Yield the rows in pages. Bytes that are not UTF-8 become lone surrogates."""
    db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    rows = db.execute(f"SELECT {', '.join(restoration.TABLES[table])} FROM {table} ORDER BY id")
    return iter(lambda: rows.fetchmany(_READ_ROWS), [])


def _count_restored(client: RqliteClient, db: sqlite3.Connection) -> int:
    """Return how many rows the cluster has. Raise CannotOpen unless `db` has the same ones."""
    count = 0
    for table, columns in restoration.TABLES.items():
        select = f"SELECT {', '.join(columns)} FROM {table} WHERE id > :after"
        after = 0
        while True:
            values: sql.Values = {"after": after, "limit": _READ_ROWS}
            page = client.query(LEVEL_STRONG, f"{select} ORDER BY id LIMIT :limit", values)
            if not page:
                break
            bounds: sql.Values = {"after": after, "last": page[-1][0]}
            expected = set(db.execute(f"{select} AND id <= :last", bounds))
            other = [row[0] for row in page if tuple(row) not in expected]
            if other:
                raise CannotOpen(
                    f"{client.name} has other {table}, such as id {other[0]}; restore the copy "
                    "into a new cluster"
                )
            count += len(page)
            after = page[-1][0]
    return count


@contextmanager
def _open_client(url: str) -> Iterator[RqliteClient]:
    """Yield a client. Raise CannotOpen, with the cause in one line, if the cluster fails."""
    client = RqliteClient(url)
    try:
        yield client
    except Rejected as error:
        raise CannotOpen(f"{client.name}: {error}") from error
    except model.Unavailable as error:
        raise CannotOpen(f"{client.name} does not answer; last error: {error.__cause__}") from error
    finally:
        client.close()


def _verify_rules(client: RqliteClient, level: str = LEVEL_STRONG) -> None:
    """Raise CannotOpen unless the cluster has all rules of schema.sql, as the leader sees them."""
    (encoding,) = client.query(level, ENCODING)[0]
    objects = [(name, sql) for name, sql in client.query(level, OBJECTS)]
    remedy = (
        "python -m bookings.backup copy.db and then python -m bookings.restore copy.db --database "
        "new.db make a new database of it"
    )
    verify_schema(encoding, objects, client.name, remedy)
