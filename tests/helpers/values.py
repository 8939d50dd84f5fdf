"""Values that several test modules send: instants, and texts used as tenants and keys."""

from __future__ import annotations

import itertools

SLOT = "2026-01-01T10:00:00Z"
MEMBERS = ("tenant_id", "start_time_utc", "idempotency_key")
COLUMNS = ("id", *MEMBERS, "created_at")

# A valid body for requests that are rejected for another reason, so that its key stays unused.
VALID_BODY = {
    "tenant_id": "rejected",
    "start_time_utc": "2026-05-01T10:00:00Z",
    "idempotency_key": "never used",
}

_numbers = itertools.count(1)


def fresh_name() -> str:
    """Return a tenant, key or request id that no other test uses."""
    return f"fresh-{next(_numbers)}"


def utf8(value: str) -> bytes:
    """Encode a text that may contain lone surrogates, which UTF-8 cannot represent."""
    return value.encode("utf-8", "surrogatepass")


def short_id(value: object) -> str:
    """Return a pytest id of up to 40 ASCII characters."""
    return ascii(value)[:40]


def slot_at(seconds: int) -> str:
    """Return the slot so many seconds after 2026-01-01T00:00:00Z, within January."""
    day, rest = divmod(seconds, 86400)
    return f"2026-01-{1 + day:02}T{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}Z"


NOT_AN_INSTANT = "is not an instant; send it like 2026-01-01T10:00:00Z"
NOT_IN_CALENDAR = "does not exist"
OUT_OF_RANGE = "is out of range; years go from 1970 to 9999"
OUTSIDE_AFTER_CONVERSION = "its UTC equivalent is outside the years 1970 to 9999"
BAD_OFFSET = "has an invalid offset"
SPACE_FOR_PLUS = "has a space where + may have been; in a query, send + as %2B"
NO_OFFSET = "has no offset; if it is in UTC, send 2026-01-01T10:00:00Z"
HAS_FRACTION = "has a fraction of a second; slots start on whole seconds, like 2026-01-01T10:00:00Z"
UTC_EQUIVALENT = "its UTC equivalent is "

# Spelling as sent, spelling as stored (None if it is rejected), and a part of the error's detail.
INSTANTS: list[tuple[str, str | None, str]] = [
    ("2026-01-01T10:00:00Z", SLOT, ""),
    ("2026-01-01t10:00:00z", SLOT, ""),
    ("2026-01-01T10:00:00z", SLOT, ""),
    ("2026-01-01t10:00:00Z", SLOT, ""),
    ("2026-01-01T10:00:00+00:00", SLOT, ""),
    ("2026-01-01T10:00:00-00:00", SLOT, ""),
    ("2026-01-01T10:00:00.0Z", SLOT, ""),
    ("2026-01-01T10:00:00.000Z", SLOT, ""),
    ("2026-01-01T10:00:00.000000000000Z", SLOT, ""),
    ("2026-01-01t10:00:00.000+00:00", SLOT, ""),
    ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z", ""),
    ("2000-02-29T00:00:00Z", "2000-02-29T00:00:00Z", ""),
    ("2028-02-29T23:59:59.000Z", "2028-02-29T23:59:59Z", ""),
    ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z", ""),
    ("0001-01-01T00:00:00Z", None, OUT_OF_RANGE),
    ("0999-06-30T12:34:56Z", None, OUT_OF_RANGE),
    ("1969-12-31T23:59:59Z", None, OUT_OF_RANGE),
    ("0300-02-28T23:59:59Z", None, OUT_OF_RANGE),
    ("0300-02-29T00:00:00Z", None, NOT_IN_CALENDAR),
    ("0300-03-01T00:00:00Z", None, OUT_OF_RANGE),
    ("0300-03-01T23:59:59Z", None, OUT_OF_RANGE),
    ("2026-01-01T10:00:00", None, NO_OFFSET),
    ("2026-01-01T10:00:00.000", None, NO_OFFSET),
    ("2026-01-01T10:00:00+02:00", None, UTC_EQUIVALENT + "2026-01-01T08:00:00Z"),
    ("2026-01-01T10:00:00-08:00", None, UTC_EQUIVALENT + "2026-01-01T18:00:00Z"),
    ("2026-01-01T10:00:00+05:45", None, UTC_EQUIVALENT + "2026-01-01T04:15:00Z"),
    ("2026-01-01T10:00:00-00:01", None, UTC_EQUIVALENT + "2026-01-01T10:01:00Z"),
    ("2026-01-01T00:30:00+14:00", None, UTC_EQUIVALENT + "2025-12-31T10:30:00Z"),
    ("2028-02-28T23:30:00-01:00", None, UTC_EQUIVALENT + "2028-02-29T00:30:00Z"),
    ("0001-01-01T00:00:00+00:01", None, OUT_OF_RANGE),
    ("1970-01-01T00:00:00+00:01", None, OUTSIDE_AFTER_CONVERSION),
    ("9999-12-31T23:59:59-00:01", None, OUTSIDE_AFTER_CONVERSION),
    ("2026-01-01T10:00:00+24:00", None, BAD_OFFSET),
    ("2026-01-01T10:00:00+00:60", None, BAD_OFFSET),
    ("2026-01-01T10:00:00 00:00", None, SPACE_FOR_PLUS),
    ("2026-01-01T10:00:00 02:00", None, SPACE_FOR_PLUS),
    ("2026-01-01T10:00:00.000 00:00", None, SPACE_FOR_PLUS),
    ("2026-01-01T10:00:00  00:00", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00+0000", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00+00", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00+00:00:00", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00\u221200:00", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00Z+00:00", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00Z[UTC]", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00 UTC", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00.5Z", None, HAS_FRACTION),
    ("2026-01-01T10:00:00.001Z", None, HAS_FRACTION),
    ("2026-01-01T10:00:00.0000001Z", None, HAS_FRACTION),
    ("2026-01-01T10:00:00.5+00:00", None, HAS_FRACTION),
    ("2026-01-01T10:00:00.0+02:00", None, UTC_EQUIVALENT + "2026-01-01T08:00:00Z"),
    # The error must name the fraction too: 08:00:00Z would be another instant.
    ("2026-01-01T10:00:00.5+02:00", None, "fraction"),
    ("2026-01-01T10:00:00.Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00,000Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:60Z", None, NOT_IN_CALENDAR),
    ("2016-12-31T23:59:60Z", None, NOT_IN_CALENDAR),
    ("2026-01-01T10:60:00Z", None, NOT_IN_CALENDAR),
    ("2026-01-01T24:00:00Z", None, NOT_IN_CALENDAR),
    ("2026-01-01T25:00:00Z", None, NOT_IN_CALENDAR),
    ("2026-00-01T10:00:00Z", None, NOT_IN_CALENDAR),
    ("2026-13-01T10:00:00Z", None, NOT_IN_CALENDAR),
    ("2026-01-00T10:00:00Z", None, NOT_IN_CALENDAR),
    ("2026-01-32T10:00:00Z", None, NOT_IN_CALENDAR),
    ("2026-02-29T10:00:00Z", None, NOT_IN_CALENDAR),
    ("2026-02-30T10:00:00Z", None, NOT_IN_CALENDAR),
    ("1900-02-29T10:00:00Z", None, NOT_IN_CALENDAR),
    ("2026-04-31T10:00:00Z", None, NOT_IN_CALENDAR),
    ("0000-01-01T00:00:00Z", None, NOT_IN_CALENDAR),
    ("0000-12-31T23:59:59Z", None, NOT_IN_CALENDAR),
    ("10000-01-01T00:00:00Z", None, NOT_AN_INSTANT),
    ("-0001-01-01T00:00:00Z", None, NOT_AN_INSTANT),
    ("+2026-01-01T10:00:00Z", None, NOT_AN_INSTANT),
    ("26-01-01T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-1-1T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T9:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10Z", None, NOT_AN_INSTANT),
    ("2026-01-01Z", None, NOT_AN_INSTANT),
    ("2026-01-01", None, NOT_AN_INSTANT),
    ("10:00:00Z", None, NOT_AN_INSTANT),
    ("20260101T100000Z", None, NOT_AN_INSTANT),
    ("2026-001T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-W01-4T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026W014T100000Z", None, NOT_AN_INSTANT),
    ("2026/01/01T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01 10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01_10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10.00.00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00Z\n", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00Z ", None, NOT_AN_INSTANT),
    (" 2026-01-01T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00Z\0", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00Z\0Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00\ud800Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00\uff3a", None, NOT_AN_INSTANT),
    ("2026-01-01T10\uff1a00\uff1a00Z", None, NOT_AN_INSTANT),
    ("２０２６-０１-０１T１０:００:００Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:0\uff10Z", None, NOT_AN_INSTANT),
    ("٢٠٢٦-٠١-٠١T١٠:٠٠:٠٠Z", None, NOT_AN_INSTANT),
    ("202\u0666-01-01T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-0\u0661-01T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-0\u0661T10:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T1\u0660:00:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:0\u0660:00Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00.\u0660Z", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00+0\u0660:00", None, NOT_AN_INSTANT),
    ("2026-01-01T10:00:00+00:0\u0660", None, NOT_AN_INSTANT),
    ("Thu, 01 Jan 2026 10:00:00 GMT", None, NOT_AN_INSTANT),
    ("1767261600", None, NOT_AN_INSTANT),
    ("2461041.9166666665", None, NOT_AN_INSTANT),
    ("now", None, NOT_AN_INSTANT),
    ("tomorrow at ten", None, NOT_AN_INSTANT),
    ("", None, NOT_AN_INSTANT),
]

# Valid tenants and keys. Tests use all of them on one slot and as keys, so that a test fails if two
# of them count as the same text.
TEXTS = [
    "a",
    "a" * 254,
    "a" * 255,
    "😀" * 255,
    "acme",
    "ACME",
    "caf\u00e9",
    "cafe\u0301",
    "日本語",
    "👩\u200d👩\u200d👧",
    "1",
    "01",
    "1.0",
    "1e0",
    "null",
    "a b",
    "a  b",
    "a\u3000b",
    "a\u2028b",
    # Invisible, but without Unicode's White_Space property.
    "\u200b",
    "\ufeffa",
    "a\ufeff",
    "\u180ea",
    "\u2060a",
    "\u202egnp.exe",
    # Code points next to the rejected ones.
    "!~",
    "\u00a1",
    "\ud7ff\ue000",
    "\ufffd",
    "a\ufffdb",
    "\ufffe",
    "\uffff",
    "\U00010000\U0010ffff",
    "'",
    "''",
    '"',
    '""',
    '"a"',
    "\\",
    '\\"',
    "\\u0041",
    "%",
    "%41",
    "%00",
    "_",
    "X'41'",
    "x'41'",
    "CAST(X'41' AS TEXT)",
    "a'; DROP TABLE bookings; --",
    "' OR '1'='1",
    "a');--",
    "?",
    ":tenant_id",
    "*",
    "[a-z]*",
    "]",
    "^a",
    "a&tenant_id=b",
    "a=b+c;d#e?f",
    "a, b",
    "<script>alert(1)</script>",
    '{"a": 1}',
    "../../etc/passwd",
    "${PATH} `id` $(id)",
]

BAD_LENGTH = "characters; send 1 to 255"
BAD_CHARACTER = "has a control character or invalid Unicode"
BAD_SPACE = "has white space at an end"
CONTROLS = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))]
# Unicode's White_Space without the control characters.
WHITE = (
    " \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)

REJECTED_TEXTS: list[tuple[str, str]] = [
    ("", BAD_LENGTH),
    ("a" * 256, BAD_LENGTH),
    ("😀" * 256, BAD_LENGTH),
    ("é" * 256, BAD_LENGTH),
    *((f"a{control}b", BAD_CHARACTER) for control in CONTROLS),
    ("\0", BAD_CHARACTER),
    ("a\0", BAD_CHARACTER),
    ("\0a", BAD_CHARACTER),
    ("a" * 254 + "\0", BAD_CHARACTER),
    ("a\n", BAD_CHARACTER),
    ("\ta", BAD_CHARACTER),
    ("\u0085a", BAD_CHARACTER),
    ("a\x1b[31m", BAD_CHARACTER),
    *((f"{white}a", BAD_SPACE) for white in WHITE),
    *((f"a{white}", BAD_SPACE) for white in WHITE),
    (" ", BAD_SPACE),
    ("\u3000\u00a0 ", BAD_SPACE),
    ("\ud800", BAD_CHARACTER),
    ("\udfff", BAD_CHARACTER),
    ("a\udbffb", BAD_CHARACTER),
    ("a\udc80b", BAD_CHARACTER),
    ("\udc00\ud800", BAD_CHARACTER),
    ("\ufffd\ud800", BAD_CHARACTER),
    ("\ud800\ufffd", BAD_CHARACTER),
    ("😀\ud83d", BAD_CHARACTER),
]
