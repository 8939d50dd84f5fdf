"""Opens SQLite connections, and says what their errors mean."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

from bookings.stores.model import FailureReason, RejectedByRule, Unavailable
from bookings.stores.sql import operator_rule

# Longest wait for another writer before a request fails as busy. Most HTTP clients give up after
# 10 s; a commit takes milliseconds.
BUSY_SECONDS = 5.0
# Longest wait of a read for the cache that reads share. Without a limit, reads from a slow disk
# would not overlap: with 64 clients and 2 ms for each page, 116 lists/s instead of 980.
SHARING_SECONDS = 0.01

# SQLite's messages for SQLITE_BUSY and SQLITE_FULL; Python 3.9 and 3.10 expose no error code.
FAILURE_REASONS = {
    "database is locked": FailureReason.BUSY,
    "database or disk is full": FailureReason.FULL,
}


def connect(uri: str) -> sqlite3.Connection:
    """Open a connection in autocommit mode that waits BUSY_SECONDS for locks."""
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    # No rule rejects text that is not UTF-8. Such a row must not make a tenant's list fail.
    db.text_factory = _decode_leniently
    return db


@contextmanager
def connect_to_read(
    uri: str, sharing_uri: str, lock: threading.Lock
) -> Iterator[sqlite3.Connection]:
    """Yield a connection that shares a cache if it can have the lock soon, and has its own if not.

    Connections that share a cache must not overlap. Fetch every row: since Python 3.11 a statement
    that is not finished keeps its snapshot while a cursor exists, also after `close`.
    """
    shares_cache = lock.acquire(timeout=SHARING_SECONDS)
    try:
        with closing(connect(sharing_uri if shares_cache else uri)) as db:
            yield db
    finally:
        if shares_cache:
            lock.release()


def set_busy_timeout(db: sqlite3.Connection, seconds: float) -> None:
    db.execute(f"PRAGMA busy_timeout = {int(1000 * max(0.0, seconds))}")


def failure_reason(error: Exception) -> FailureReason:
    return FAILURE_REASONS.get(str(error), FailureReason.UNREACHABLE)


def is_busy(error: Exception) -> bool:
    """Return whether a statement failed because another program holds a lock."""
    return failure_reason(error) is FailureReason.BUSY


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise Unavailable for errors of SQLite and the system, but not for faults of this program.

    Raise RejectedByRule if a rule of the operator rejected a change.
    """
    try:
        yield
    except sqlite3.IntegrityError as error:
        rule = operator_rule(str(error))
        if rule:
            raise RejectedByRule(rule) from None
        raise
    except sqlite3.ProgrammingError:
        raise
    except (sqlite3.DatabaseError, OSError) as error:
        raise Unavailable(failure_reason(error)) from error


def _decode_leniently(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
