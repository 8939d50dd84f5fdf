"""The statements that both stores run, generated from the column names of `Booking`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bookings.stores.model import Booking, Cancellation, Page, PageQuery, Record

Values = Mapping[str, "str | int"]

# The columns of each table. Cancellations first: their trigger then judges restored bookings.
TABLES = {"cancellations": Cancellation._fields, "bookings": Booking._fields}
_COLUMNS = ", ".join(Booking._fields)
_INSERTED = [column for column in Booking._fields if column != "id"]

INSERT = (
    f"INSERT INTO bookings ({', '.join(_INSERTED)}) "
    f"VALUES ({', '.join(f':{column}' for column in _INSERTED)})"
)
# Both in one transaction. The second one deletes a row only if the first one has copied it.
INSERT_CANCELLATION = (
    f"INSERT INTO cancellations ({_COLUMNS}, cancelled_at) SELECT {_COLUMNS}, :cancelled_at "
    "FROM bookings WHERE id = :id AND tenant_id = :tenant_id"
)
DELETE_BOOKING = (
    "DELETE FROM bookings WHERE id = "
    "(SELECT id FROM cancellations WHERE id = :id AND tenant_id = :tenant_id)"
)
# A booking is in one of the two tables. One statement reads both of them at the same moment. If a
# SQL client brought an id or a key back, the first row counts: what was cancelled stays cancelled.
_FIND = (
    f"SELECT {_COLUMNS}, cancelled_at FROM cancellations WHERE {{0}} UNION ALL "
    f"SELECT {_COLUMNS}, NULL FROM bookings WHERE {{0}}"
)
FIND_BY_KEY = _FIND.format("idempotency_key = :idempotency_key")
FIND_BY_ID = _FIND.format("id = :id AND tenant_id = :tenant_id")
PING = "SELECT 1 FROM bookings LIMIT 1"

# SQLite reads a page from the index of UNIQUE (tenant_id, start_time_utc) without sorting, so its
# cost does not depend on the size of the table. The page is a single row of JSON because
# `sqlite3` releases the GIL once per row: with 16 clients 2,900 lists/s instead of 1,550.
PAGE = f"""
    SELECT json_group_array(json_object({", ".join(f"'{c}', {c}" for c in Booking._fields)})),
        count(*), max(start_time_utc)
    FROM (SELECT * FROM bookings
        WHERE tenant_id = :tenant_id AND start_time_utc > :lower AND start_time_utc < :upper
        ORDER BY start_time_utc LIMIT :limit)"""

# SQLite's messages when a rule of schema.sql rejects a booking because of an earlier one.
_UNIQUE = "UNIQUE constraint failed: "
CONFLICTS = (
    f"{_UNIQUE}bookings.tenant_id, bookings.start_time_utc",
    f"{_UNIQUE}bookings.idempotency_key",
    "the booking with this idempotency key was cancelled",
)
# How its messages about constraints that are not unique start.
_OTHER_CONSTRAINTS = (
    "CHECK constraint failed",
    "NOT NULL constraint failed",
    "FOREIGN KEY constraint failed",
    "datatype mismatch",
)
# The messages when the booking, or one with its key, has been cancelled before.
CANCELLATION_EXISTS = (f"{_UNIQUE}cancellations.id", f"{_UNIQUE}cancellations.idempotency_key")
FIND_TRIGGER = "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND instr(sql, :text)"


def count_query(has_cancellations: bool) -> str:
    """Return the statement that counts the rows of both tables. Old databases have only one."""
    cancellations = "(SELECT count(*) FROM cancellations)" if has_cancellations else "0"
    return f"SELECT (SELECT count(*) FROM bookings), {cancellations}"


def read_page(fetch_row: Callable[[str, Values], Any], query: PageQuery) -> Page:
    """Return one page. `fetch_row` runs a statement and returns its first row."""
    # An instant without its Z sorts just before the instant, which turns >= into >. A single
    # lower bound lets SQLite enter the index where the page starts.
    lower = max(query.after, query.start_from[:-1])
    bounds = {"tenant_id": query.tenant_id, "upper": query.start_before or "~"}
    array, count, last = fetch_row(PAGE, {**bounds, "lower": lower, "limit": query.limit})
    more = count == query.limit and fetch_row(PAGE, {**bounds, "lower": last, "limit": 1})[1] == 1
    return Page(array, last, more)


def operator_rule(message: str) -> str:
    """Return the text of the operator's rule that rejected a change, given SQLite's message.

    It is the text of RAISE in a trigger, or names the columns of a UNIQUE index. Return "" if the
    message is about another constraint, which is a fault.
    """
    if message.startswith(_UNIQUE):
        return f"{message[len(_UNIQUE) :].replace('bookings.', '')} must be unique"
    return "" if message.startswith(_OTHER_CONSTRAINTS) else message


def as_found(row: Sequence[Any] | None) -> Record | None:
    """Return what a row of FIND_BY_KEY or FIND_BY_ID stands for."""
    if not row:
        return None
    *values, cancelled_at = row
    booking = Booking(*values)
    if cancelled_at is None:
        return booking
    return Cancellation(**booking._asdict(), cancelled_at=cancelled_at)


def list_query(
    cancelled: bool,
    tenant_id: str | None,
    start_from: str,
    start_before: str,
    limit: int,
    after: tuple[str, str, int] = ("", "", 0),
) -> tuple[str, Values]:
    """Return the statement that reads bookings, or cancelled ones, by tenant and start time, and
    its values.

    `after` is the tenant, the start time and the id of the last booking that was read before.
    """
    conditions = ["(tenant_id, start_time_utc, id) > (:after_tenant, :after_start, :after_id)"]
    if tenant_id is not None:
        conditions.append("tenant_id = :tenant_id")
    if start_from:
        conditions.append("start_time_utc >= :start_from")
    if start_before:
        conditions.append("start_time_utc < :start_before")
    table = "cancellations" if cancelled else "bookings"
    statement = (
        f"SELECT {', '.join(TABLES[table])} FROM {table} WHERE {' AND '.join(conditions)} "
        "ORDER BY tenant_id, start_time_utc, id LIMIT :limit"
    )
    values: dict[str, str | int] = {
        "after_tenant": after[0],
        "after_start": after[1],
        "after_id": after[2],
        "tenant_id": tenant_id or "",
        "start_from": start_from,
        "start_before": start_before,
        "limit": limit,
    }
    return statement, values
