"""The vocabulary of stores: bookings, outcomes, errors and the `Store` protocol. No SQL."""

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


class PageQuery(NamedTuple):
    """Which of a tenant's bookings to list. "" leaves a bound open."""

    tenant_id: str
    start_from: str
    start_before: str
    after: str
    limit: int


class Page(NamedTuple):
    """Part of a tenant's bookings."""

    array: str  # JSON
    last_start: str | None
    more: bool  # Whether more bookings follow.


class Outcome(enum.Enum):
    """The result of a request to book."""

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
    """Any thread may call any method. Raises Unavailable if the database cannot answer."""

    def book(self, new: NewBooking) -> Decision: ...

    def list_bookings(self, query: PageQuery) -> Page:
        """Return the first bookings that match, by start time."""

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
        """Yield bookings by tenant and start time. None, "" and -1 leave a bound open."""

    def copy_to(self, path: str, progress: Callable[[int, int], None]) -> int:
        """Copy to a file; return the number of bookings in it. Raise CannotOpen if it is damaged.

        Calls `progress(remaining, total)` with numbers of pages if the store knows them.
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
