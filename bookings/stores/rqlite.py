"""The store on an rqlite cluster: the same statements under the same schema.sql.

Repeating a statement whose response was lost is safe, because the idempotency key makes the second
INSERT fail and the look-up finds the booking. The store never guesses an outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bookings.stores import model, rqlite_client, sql
from bookings.stores.model import (
    Booking,
    Cancellation,
    CannotOpen,
    Counts,
    FailureReason,
    NewBooking,
    Outcome,
    Record,
    RejectedByRule,
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
READ_ROWS = 1000


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
            found = self._find(sql.FIND_BY_KEY, row, deadline)
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
                if str(error) not in sql.CANCELLATION_EXISTS:
                    self._raise_if_rule(error, deadline)
                    raise
            found = self._find(sql.FIND_BY_ID, values, deadline)
            if not isinstance(found, Booking):
                break
        return model.explain_no_cancellation(found)

    def list_bookings(self, query: model.PageQuery) -> model.Page:
        deadline = rqlite_client.call_deadline()

        def fetch_row(statement: str, values: sql.Values) -> object:
            # A client that received 201 must find the booking in the list.
            return self._client.query(LEVEL_STRONG, statement, values, deadline)[0]

        return sql.read_page(fetch_row, query)

    def get_booking(self, tenant_id: str, booking_id: int) -> Record | None:
        values: sql.Values = {"id": booking_id, "tenant_id": tenant_id}
        return self._find(sql.FIND_BY_ID, values, rqlite_client.call_deadline())

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

    def _find(self, statement: str, values: sql.Values, deadline: float) -> Record | None:
        # A weak read could miss a booking and report a taken slot instead of a replay.
        rows = self._client.query(LEVEL_STRONG, statement, values, deadline)
        return sql.as_found(rows[0] if rows else None)


class RqliteReader:
    """The bookings on a cluster, for the commands that run beside the server."""

    def __init__(self, client: RqliteClient) -> None:
        """Raise CannotOpen unless there is a table of bookings. Its rules do not matter."""
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
    ) -> Iterator[Record]:
        if cancelled and not self._has_cancellations:
            return
        record = Cancellation if cancelled else Booking
        bounds = (cancelled, tenant_id, start_from, start_before)
        after = ("", "", 0)
        while limit:
            size = READ_ROWS if limit < 0 else min(limit, READ_ROWS)
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
    with open_client(url) as client:
        yield RqliteReader(client)


def create_tables(url: str) -> None:
    """Create the tables from schema.sql, or verify existing ones. Raise CannotOpen."""
    with open_client(url) as client:
        # Verify an existing schema as it is: adding a dropped rule would not undo what it missed.
        if not client.query(LEVEL_STRONG, OBJECTS):
            client.execute([(statement, None) for statement in schema_statements()])
        _verify_rules(client)


@contextmanager
def open_client(url: str) -> Iterator[RqliteClient]:
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
        "new.db make a new database from it"
    )
    verify_schema(encoding, objects, client.name, remedy)
