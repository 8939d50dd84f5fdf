"""The store on an rqlite cluster: the same statements under the same schema.sql.

Repeating a statement whose response was lost is safe, because the idempotency key makes the second
INSERT fail and the look-up finds the booking. The store never guesses an outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bookings.stores import model, rqlite_client, sql
from bookings.stores.model import Booking, CannotOpen, NewBooking, Outcome
from bookings.stores.rqlite_client import LEVEL_STRONG, LEVEL_WEAK, Rejected, RqliteClient
from bookings.stores.schema import ENCODING, OBJECTS, schema_sql, verify_schema
from bookings.stores.snapshot import verify_copy

# Rows that a reader of the whole table fetches at once, about 200 KB.
_READ_ROWS = 1000


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
            result = self._client.execute(sql.INSERT, row, deadline)
        except Rejected as error:
            if not str(error).startswith(sql.UNIQUE_VIOLATION):
                raise
        else:
            if result.get("rows_affected") != 1:
                raise RuntimeError("the INSERT had no effect; does a trigger ignore it?")
            return Outcome.CREATED, Booking(result["last_insert_id"], **row)
        # A weak read could miss the booking and report a taken slot instead of a replay.
        found = self._client.query(LEVEL_STRONG, sql.SELECT_BY_KEY, row, deadline)
        return model.explain_conflict(new, Booking(*found[0]) if found else None)

    def list_bookings(self, query: model.PageQuery) -> model.Page:
        deadline = rqlite_client.call_deadline()

        def fetch_row(statement: str, values: sql.Values) -> object:
            # A client that received 201 must find the booking in the list.
            return self._client.query(LEVEL_STRONG, statement, values, deadline)[0]

        return sql.read_page(fetch_row, query)

    def get_booking(self, tenant_id: str, booking_id: int) -> Booking | None:
        values: sql.Values = {"id": booking_id, "tenant_id": tenant_id}
        found = self._client.query(LEVEL_STRONG, sql.SELECT_BY_ID, values)
        return Booking(*found[0]) if found else None

    def ping(self) -> None:
        # A health check only needs to know that there is a leader, and runs every few seconds.
        self._client.query(LEVEL_WEAK, sql.PING)


class RqliteReader:
    """The bookings on a cluster, for the commands that run beside the server."""

    def __init__(self, client: RqliteClient) -> None:
        self._client = client

    def count(self) -> int:
        return int(self._client.query(LEVEL_STRONG, sql.COUNT)[0][0])

    def bookings(
        self, tenant_id: str | None, start_from: str, start_before: str, limit: int
    ) -> Iterator[Booking]:
        after = ("", "")
        while limit:
            size = _READ_ROWS if limit < 0 else min(limit, _READ_ROWS)
            query, values = sql.list_query(tenant_id, start_from, start_before, size, after)
            found = [Booking(*row) for row in self._client.query(LEVEL_STRONG, query, values)]
            yield from found
            if len(found) < size:
                return
            after = (found[-1].tenant_id, found[-1].start_time_utc)
            limit = limit if limit < 0 else limit - size

    def copy_to(self, path: str, progress: Callable[[int, int], None]) -> int:
        """Download the leader's database. The nodes report no progress."""
        at_least = self.count()
        self._client.download_to(path)
        return verify_copy(path, at_least)


@contextmanager
def read_cluster(url: str) -> Iterator[RqliteReader]:
    """Yield the bookings on a cluster. Raise CannotOpen."""
    with _open_client(url) as client:
        _verify_tables(client)
        yield RqliteReader(client)


def create_tables(url: str) -> None:
    """Create the tables from schema.sql, or verify existing ones. Raise CannotOpen."""
    with _open_client(url) as client:
        client.execute(schema_sql())
        _verify_tables(client)


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


def _verify_tables(client: RqliteClient) -> None:
    """Raise CannotOpen unless the cluster has the tables of schema.sql, as the leader sees them."""
    (encoding,) = client.query(LEVEL_STRONG, ENCODING)[0]
    objects = [(name, sql) for name, sql in client.query(LEVEL_STRONG, OBJECTS)]
    verify_schema(encoding, objects, client.name)
