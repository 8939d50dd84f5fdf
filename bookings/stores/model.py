"""The vocabulary of stores: bookings, outcomes, errors and the `Store` protocol. No SQL."""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, Union

# Rows that a RowsRejected names. It only counts the others.
MAX_REASONS = 20


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


class Cancellation(NamedTuple):
    """A cancelled booking."""

    id: int
    tenant_id: str
    start_time_utc: str
    idempotency_key: str
    created_at: str
    cancelled_at: str


Record = Union[Booking, Cancellation]


class Counts(NamedTuple):
    """The number of rows of each table."""

    bookings: int
    cancellations: int


class Restored(NamedTuple):
    """The result of a restore: the rows, and the parts of the copy that they differ from."""

    counts: Counts
    uncopied: list[str]  # Columns, tables, triggers and so on that schema.sql does not have.
    rewritten: int  # Bookings whose created_at got another spelling.


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
    CANCELLED = "cancelled"


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


class RejectedByRule(Exception):
    """A rule that the operator added to the database rejects a change. The message is its text."""


class CannotOpen(Exception):
    """The database cannot be used at all. The message is one line for the operator."""


class RowsRejected(CannotOpen):
    """Rows of a copy break the rules of schema.sql. `reasons` has a line for each of the first."""

    def __init__(self, reasons: list[str], count: int) -> None:
        hidden = f", {count - len(reasons)} of them not shown" if count > len(reasons) else ""
        rows = "1 row breaks" if count == 1 else f"{count} rows break"
        super().__init__(f"{rows} the rules of schema.sql{hidden}; nothing was restored")
        self.reasons = reasons


class Store(Protocol):
    """Any thread may call any method. Raises Unavailable if the database cannot answer, and
    RejectedByRule.
    """

    def book(self, new: NewBooking) -> Decision: ...

    def list_bookings(self, query: PageQuery) -> Page:
        """Return the first bookings that match, by start time."""

    def get_booking(self, tenant_id: str, booking_id: int) -> Record | None: ...

    def cancel(self, tenant_id: str, booking_id: int) -> bool:
        """Cancel a booking. Return True if it is cancelled now, whether by this call or an earlier
        one, and False if the tenant never had it.
        """

    def ping(self) -> None:
        """Raise Unavailable unless bookings can be read and written under all rules."""

    def close(self) -> None: ...


class Reader(Protocol):
    """A read-only view of a database for the commands that run beside the server."""

    def count(self) -> Counts: ...

    def bookings(
        self,
        tenant_id: str | None,
        start_from: str,
        start_before: str,
        limit: int,
        cancelled: bool = False,
    ) -> Iterator[Record]:
        """Yield bookings, or the cancelled ones, by tenant and start time. None, "" and -1 leave a
        bound open.
        """

    def copy_to(self, path: str, progress: Callable[[int, int], None]) -> Counts:
        """Copy to a file; return what is in it. Raise CannotOpen if it is damaged.

        Calls `progress(remaining, total)` with numbers of pages if the store knows them.
        """


def current_time() -> str:
    """Return the time for `created_at`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def explain_conflict(new: NewBooking, found: Record | None) -> Decision:
    """Explain why the INSERT of `new` failed, given the booking that has its idempotency key."""
    if not found:
        return Outcome.SLOT_TAKEN, None
    if (found.tenant_id, found.start_time_utc) != (new.tenant_id, new.start_time_utc):
        return Outcome.KEY_REUSED, None
    return (Outcome.REPLAYED, found) if isinstance(found, Booking) else (Outcome.CANCELLED, None)


def explain_no_cancellation(found: Record | None) -> bool:
    """Return the result of `cancel` if no row was moved, given the booking that has the id."""
    if isinstance(found, Booking):
        raise RuntimeError("the booking was not moved to cancellations; does a trigger prevent it?")
    return found is not None
