"""How a booking or a cancellation is decided: the write comes first, and a look-up explains it.

Nothing here infers from a lock, a clock or an earlier SELECT who gets a slot.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from bookings.stores import connections, model, sql
from bookings.stores.model import Booking, Cancellation, NewBooking, Outcome

# Executes a statement of one write, in autocommit mode.
Execute = Callable[[str, sql.Values], sqlite3.Cursor]


def insert_or_explain(execute: Execute, new: NewBooking) -> model.Decision:
    """Insert first. Only if the INSERT fails, look up why. The look-up never decides."""
    row = {**new._asdict(), "created_at": model.current_time()}
    try:
        cursor = execute(sql.INSERT, row)
    except sqlite3.DatabaseError as error:
        if not isinstance(error, sqlite3.IntegrityError) and not connections.is_busy(error):
            raise
        # The message names only one of several violated rules, so the cause is looked up. A
        # repeated request needs no write lock, and no rule of the operator applies to it: the
        # booking that has its key explains it.
        found = sql.as_found(execute(sql.FIND_BY_KEY, row).fetchone())
        if not found and str(error) not in sql.CONFLICTS:
            raise
        return model.explain_conflict(new, found)
    if cursor.rowcount != 1 or cursor.lastrowid is None:
        raise RuntimeError("the INSERT had no effect; does a trigger ignore it?")
    return Outcome.CREATED, Booking(cursor.lastrowid, **row)


def cancel_or_explain(execute: Execute, tenant_id: str, booking_id: int) -> bool:
    """Move the row first. Only if no row was moved, look up why."""
    values: sql.Values = {
        "id": booking_id,
        "tenant_id": tenant_id,
        "cancelled_at": model.current_time(),
    }
    # If anything fails before COMMIT, closing the connection rolls back.
    try:
        execute("BEGIN IMMEDIATE", {})
    except sqlite3.OperationalError as error:
        # A repeated cancellation needs no write lock.
        if connections.is_busy(error) and isinstance(
            sql.as_found(execute(sql.FIND_BY_ID, values).fetchone()), Cancellation
        ):
            return True
        raise
    try:
        moved = execute(sql.INSERT_CANCELLATION, values).rowcount
    except sqlite3.IntegrityError as error:
        if str(error) not in sql.CANCELLATION_EXISTS:
            raise
        moved = 0
    if moved and execute(sql.DELETE_BOOKING, values).rowcount != 1:
        raise RuntimeError("the DELETE had no effect; does a trigger ignore it?")
    # In the same transaction, because the booking may be made right after it.
    found = None if moved else sql.as_found(execute(sql.FIND_BY_ID, values).fetchone())
    execute("COMMIT", {})
    return bool(moved) or model.explain_no_cancellation(found)
