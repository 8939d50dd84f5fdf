"""The two kinds of value in a booking: text (tenant, idempotency key) and instants in UTC.

Each validator returns the value to store, or raises TypeError or ValueError whose message
continues a sentence that starts with the field's name and says what to send instead.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

# Long enough for any name or UUID, short enough that an index entry fits on a database page.
MAX_CHARACTERS = 255

_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
_INSTANT = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})[Tt](?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:\.(?P<fraction>[0-9]+))?"
    r"(?P<offset>[Zz]|(?P<sign>[+-])(?P<hours>[0-9]{2}):(?P<minutes>[0-9]{2}))?"
)
_JSON_TYPES = {bool: "a boolean", float: "a number", list: "an array"}


def text(value: object) -> str:
    """Validate a tenant or an idempotency key: a string of 1 to 255 characters."""
    if not isinstance(value, str):
        raise TypeError(f"must be a string, not {_json_type(value)}")
    if not 1 <= len(value) <= MAX_CHARACTERS:
        raise ValueError(f"has {len(value)} characters; send 1 to {MAX_CHARACTERS}")
    if not _TEXT.fullmatch(value):
        raise ValueError("has a control character or invalid Unicode; remove it")
    if value != value.strip():
        raise ValueError("has white space at an end; remove it")
    return value


def instant(value: object) -> str:
    """Validate an RFC 3339 instant in UTC; return its one spelling, 2026-01-01T10:00:00Z."""
    if not isinstance(value, str):
        raise TypeError(f"must be a string like 2026-01-01T10:00:00Z, not {_json_type(value)}")
    match = _INSTANT.fullmatch(value)
    if not match and _INSTANT.fullmatch(value.replace(" ", "+")):
        raise ValueError(
            "has a space where + may have been; in a query, send + as %2B, or UTC with Z"
        )
    if not match:
        raise ValueError("is not an instant; send it like 2026-01-01T10:00:00Z")
    canonical = f"{match['date']}T{match['time']}Z"
    try:
        local = datetime(*map(int, re.findall("[0-9]+", canonical)))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"does not exist: {error}") from None
    if local.year < 1970:
        raise ValueError("is out of range; years go from 1970 to 9999")
    if match["fraction"] and match["fraction"].strip("0"):
        raise ValueError(
            "has a fraction of a second; slots start on whole seconds, like 2026-01-01T10:00:00Z"
        )
    if not match["offset"]:
        raise ValueError(f"has no offset; if it is in UTC, send {canonical}")
    if match["sign"]:
        if match["minutes"] > "59" or match["hours"] > "23":
            raise ValueError("has an invalid offset; send it in UTC, like 2026-01-01T10:00:00Z")
        offset = timedelta(hours=int(match["hours"]), minutes=int(match["minutes"]))
        if offset:
            raise ValueError(f"is not in UTC; {_utc_equivalent(local, offset, match['sign'])}")
    return canonical


def _json_type(value: object) -> str:
    return _JSON_TYPES.get(type(value), "an object")


def _utc_equivalent(local: datetime, offset: timedelta, sign: str) -> str:
    try:
        utc = local - offset if sign == "+" else local + offset
    except OverflowError:
        utc = datetime.min
    if utc.year < 1970:
        return "its UTC equivalent is outside the years 1970 to 9999"
    return f"its UTC equivalent is {utc.isoformat()}Z"
