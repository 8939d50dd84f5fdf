"""What every store shares: bookings, outcomes, errors and the `Store` protocol.

This module contains no SQL. It is all that `api` knows about stores.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol


class NewBooking(NamedTuple):
    """The fields that a client chooses. Two requests with the same fields are the same request."""

    tenant_id: str
    start_time_utc: str
    idempotency_key: str


class Booking(NamedTuple):
    """One row of the table. INSERT, SELECT and JSON are generated from these column names."""

    id: int
    tenant_id: str
    start_time_utc: str
    idempotency_key: str
    created_at: str


class Page(NamedTuple):
    """Part of a tenant's bookings: a JSON array, the start time of the last booking in it, and
    whether more bookings follow.
    """

    array: str
    last_start: str | None
    more: bool


class Outcome(enum.Enum):
    """What became of a request to book."""

    CREATED = "created"
    REPLAYED = "replayed"
    KEY_REUSED = "key reused"
    SLOT_TAKEN = "slot taken"


# A booking accompanies CREATED and REPLAYED only.
Decision = tuple[Outcome, "Booking | None"]


class FailureReason(enum.Enum):
    """Why the database could not answer."""

    BUSY = "busy"
    FULL = "full"
    UNREACHABLE = "unreachable"


class Unavailable(Exception):
    """The database could not answer. `__cause__` is the error of SQLite or of the system."""

    def __init__(self, reason: FailureReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class CannotOpen(Exception):
    """The database cannot be used at all. The message is one line for the operator."""


class Store(Protocol):
    """Bookings in a database. Any thread may call any method.

    A method raises Unavailable if the database cannot answer.
    """

    def book(self, new: NewBooking) -> Decision: ...

    def list_bookings(
        self, tenant_id: str, start_from: str, start_before: str, after: str, limit: int
    ) -> Page:
        """Return the tenant's first `limit` bookings in order of start time. "" is no bound."""

    def get_booking(self, tenant_id: str, booking_id: int) -> Booking | None: ...

    def ping(self) -> None:
        """Raise Unavailable unless bookings can be read and written."""

    def close(self) -> None: ...


class Reader(Protocol):
    """A read-only view of a database for the commands that run beside the server."""

    def count(self) -> int:
        """Return the number of bookings."""

    def bookings(
        self, tenant_id: str | None, start_from: str, start_before: str, limit: int
    ) -> Iterator[Booking]:
        """Yield bookings in order of tenant and start time. None, "" and -1 are no bounds."""

    def copy_to(self, path: str, progress: Callable[[int, int], None]) -> int:
        """Copy the database to a file and return the number of bookings in the copy.

        Calls `progress(remaining, total)` with numbers of pages if the store knows them. Raises
        CannotOpen if the copy is damaged or incomplete.
        """


def current_time() -> str:
    """Return the time for `created_at`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def explain_conflict(new: NewBooking, found: Booking | None) -> Decision:
    """Explain why the INSERT of `new` failed, given the booking that has its idempotency key."""
    if not found:
        return Outcome.SLOT_TAKEN, None
    if (found.tenant_id, found.start_time_utc) == (new.tenant_id, new.start_time_utc):
        return Outcome.REPLAYED, found
    return Outcome.KEY_REUSED, None
