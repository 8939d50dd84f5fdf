"""What a client may send: headers, a query and a body to checked values, or a problem that says what to send instead.

The rules: all that is wrong is said at once; a value sent in several places must be the same in each; one instant has
one spelling. `schema.sql` refuses the same values by CHECK. This module knows no socket, no route and no SQL.

Headers arrive as a mapping from lower-case name to the values in the order sent, decoded as UTF-8 with
`surrogateescape`: bytes that are no UTF-8 become lone surrogates, which no field accepts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl

from bookings.problems import FieldError, Problem

Headers = Mapping[str, Sequence[str]]
# What a value goes through: the value itself comes back, or TypeError or ValueError says what is wrong with it.
Check = Callable[[object], str]
# Somewhere that a value was sent: how to call it, the check it has to pass there, and the value.
Place = tuple[str, Check, object]

# Enough for any name or UUID that people use, and small enough for an index entry to stay on its page.
MAX_CHARACTERS = 255
# A page of this length is some 200 KB: one request, and no long wait for the ones behind it.
MAX_PAGE = 1000
PAGE_PARAMETERS = ("tenant_id", "from", "to", "after", "limit")
# No request takes half as many; each one too many is answered with a sentence.
MAX_PARAMETERS = 16
# A booking is flat. What unknown members nest is bounded here, since Python versions differ in where they give up.
MAX_DEPTH = 64

_TEXT = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*")
_INSTANT = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})[Tt](?P<time>[0-9]{2}:[0-9]{2}:[0-9]{2})"
    r"(?:\.(?P<fraction>[0-9]+))?(?P<offset>[Zz]|(?P<sign>[+-])(?P<hours>[0-9]{2}):(?P<minutes>[0-9]{2}))?"
)
# A structured field's string (RFC 9651, section 3.3.3), as the Idempotency-Key draft spells its value.
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
# An unterminated string runs to the end of the text, so that the search stays linear.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_JSON_TYPES = {type(None): "null", bool: "a boolean", float: "a number", list: "an array", dict: "an object"}


@dataclass(frozen=True)
class BookingRequest:
    """A checked `POST /bookings`: what makes two requests the same."""

    tenant_id: str
    start_time_utc: str
    idempotency_key: str


@dataclass(frozen=True)
class Query:
    """A query's parameters, and what is wrong with it."""

    values: Mapping[str, str]
    errors: tuple[FieldError, ...]


@dataclass(frozen=True)
class PageRequest:
    """A checked `GET /bookings`: which of a tenant's bookings; "" where a bound is not given."""

    tenant_id: str
    at_least: str
    before: str
    after: str
    limit: int


def booking_request(headers: Headers, query: Query, body: bytes) -> BookingRequest:
    """The booking that a POST asks for; Problem 400 or 415 with all that is wrong."""
    media_types = [value.partition(";")[0].strip(" \t").lower() for value in headers.get("content-type", ())]
    if media_types != ["application/json"]:
        raise Problem(
            "not-json",
            "Send the header Content-Type: application/json.",
            headers=[("Accept", "application/json")],
        )
    members = _members(body)
    errors = list(query.errors)
    tenant_id = _agreed("tenant_id", _tenant_places(headers, members, "the body"), errors)
    start_places = _member_places(members, "start_time_utc", "the body", instant)
    start_time_utc = _agreed("start_time_utc", start_places, errors)
    key_places = _member_places(members, "idempotency_key", "the body", text)
    key_places += _header_places(headers, "Idempotency-Key", _bare_or_quoted)
    idempotency_key = _agreed("idempotency_key", key_places, errors)
    refuse(errors)
    return BookingRequest(tenant_id, start_time_utc, idempotency_key)


def tenant(headers: Headers, query: Query) -> str:
    """The tenant that a GET speaks for; Problem 400 with all that is wrong."""
    errors = list(query.errors)
    tenant_id = _agreed("tenant_id", _tenant_places(headers, query.values, "the query"), errors)
    refuse(errors)
    return tenant_id


def page_request(headers: Headers, query: Query) -> PageRequest:
    """The bookings that a GET asks for; Problem 400 with all that is wrong."""
    errors = list(query.errors)
    tenant_id = _agreed("tenant_id", _tenant_places(headers, query.values, "the query"), errors)
    bounds = dict.fromkeys(("from", "to", "after"), "")
    for name in bounds:
        if name in query.values:
            bounds[name] = _agreed(name, _member_places(query.values, name, "the query", instant), errors)
    limit = query.values.get("limit", str(MAX_PAGE))
    if not _LIMIT.fullmatch(limit) or int(limit) > MAX_PAGE:
        errors.append(
            FieldError("limit", f"in the query is not a page's length; send a number from 1 to {MAX_PAGE}")
        )
    refuse(errors)
    return PageRequest(tenant_id, bounds["from"], bounds["to"], bounds["after"], int(limit))


def parse_query(raw: str, known: Sequence[str]) -> Query:
    """The parameters of a query, each known and given once, since a misspelt filter must not show everything."""
    try:
        if _BAD_PERCENT.search(raw):
            raise ValueError("a % is not followed by two hexadecimal digits; send a literal one as %25")
        pairs = (
            parse_qsl(
                raw,
                keep_blank_values=True,
                strict_parsing=True,
                errors="strict",
                max_num_fields=MAX_PARAMETERS,
            )
            if raw
            else []
        )
    except ValueError as error:
        detail = f"is not of the form name=value&name=value in percent-encoded UTF-8: {error}"
        refuse([FieldError("query", detail)])
    names = [name for name, _ in pairs]
    takes = f"this request takes {', '.join(known)}" if known else "this request takes no parameters"
    errors = [FieldError(_shown(name), f"is unknown; {takes}") for name in names if name not in known]
    errors += [FieldError(name, "is given twice; send it once") for name in known if names.count(name) > 1]
    return Query(dict(pairs), tuple(errors))


def text(value: object) -> str:
    """A tenant or a key: a string of 1 to 255 characters; TypeError or ValueError says what is wrong."""
    if not isinstance(value, str):
        raise TypeError(f"must be a string, not {_JSON_TYPES[type(value)]}")
    if not 1 <= len(value) <= MAX_CHARACTERS:
        raise ValueError(f"has {len(value)} characters; send 1 to {MAX_CHARACTERS}")
    if not _TEXT.fullmatch(value):
        raise ValueError("has a control character or a character that is not valid Unicode; send it without")
    if value != value.strip():
        raise ValueError("has white space at an end; send it without")
    return value


def instant(value: object) -> str:
    """An RFC 3339 instant in UTC, in its one spelling 2026-01-01T10:00:00Z.

    TypeError or ValueError says what to send instead.
    """
    if not isinstance(value, str):
        raise TypeError(f"must be a string like 2026-01-01T10:00:00Z, not {_JSON_TYPES[type(value)]}")
    match = _INSTANT.fullmatch(value)
    if not match:
        raise ValueError("is not an instant; send it like 2026-01-01T10:00:00Z")
    canonical = f"{match['date']}T{match['time']}Z"
    try:
        when = datetime(*map(int, re.findall("[0-9]+", canonical)))  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(
            f"is not in the calendar: {error}; years go from 0001 to 9999, hours to 23, seconds to 59"
        ) from None
    if match["fraction"] and match["fraction"].strip("0"):
        raise ValueError(
            "has a fraction of a second; slots start on whole seconds, like 2026-01-01T10:00:00Z"
        )
    if not match["offset"]:
        raise ValueError(f"has no offset; if it is in UTC, send {canonical}")
    if match["sign"]:
        offset = timedelta(hours=int(match["hours"]), minutes=int(match["minutes"]))
        if match["minutes"] > "59" or match["hours"] > "23":
            raise ValueError("has an offset that does not exist; send it in UTC, like 2026-01-01T10:00:00Z")
        if offset:
            raise ValueError(f"is not in UTC; {_utc_equivalent(when, offset, match['sign'])}")
    return canonical


def _utc_equivalent(when: datetime, offset: timedelta, sign: str) -> str:
    try:
        utc = when - offset if sign == "+" else when + offset
    except OverflowError:
        return "its UTC equivalent is outside the years 0001 to 9999"
    return f"its UTC equivalent is {utc.isoformat()}Z"


def _agreed(field: str, places: Sequence[Place], errors: list[FieldError]) -> str:
    """The one checked value found in `places`; otherwise "", with what is wrong added to `errors`."""
    values = set()
    for where, check, value in places:
        try:
            values.add(check(value))
        except (TypeError, ValueError) as error:
            errors.append(FieldError(field, f"in {where} {error}"))
            values.add("")
    if not places:
        errors.append(FieldError(field, _MISSING[field]))
    elif len(values) > 1 and "" not in values:
        where = " and ".join(where for where, _, _ in places)
        errors.append(FieldError(field, f"differs between {where}; send one value"))
    return values.pop() if len(values) == 1 else ""


_MISSING = {
    "tenant_id": "is missing; send it in the X-Tenant-ID header, or in the body of a POST or the query of a GET",
    "start_time_utc": "is missing; send it in the body, like 2026-01-01T10:00:00Z",
    "idempotency_key": "is missing; send a value of your own, new for each booking, in the body or in Idempotency-Key",
}


def _member_places(members: Mapping[str, object], name: str, where: str, check: Check) -> list[Place]:
    return [(where, check, members[name])] if name in members else []


def _header_places(headers: Headers, name: str, check: Check) -> list[Place]:
    return [(f"the {name} header", check, value) for value in headers.get(name.lower(), ())]


def _tenant_places(headers: Headers, members: Mapping[str, object], where: str) -> list[Place]:
    return _member_places(members, "tenant_id", where, text) + _header_places(headers, "X-Tenant-ID", text)


def _bare_or_quoted(value: object) -> str:
    """A key as a header carries it (RFC 9651, section 3.3.3, quotes a string; most clients do not)."""
    if isinstance(value, str) and value.startswith('"'):
        match = _QUOTED.fullmatch(value)
        if not match:
            raise ValueError(
                'begins with a double quote, but is not one string like "key"; send the key bare'
            )
        value = re.sub(r"\\(.)", r"\1", match[1])
    return text(value)


def _members(body: bytes) -> dict[str, Any]:
    """The members of the JSON object (RFC 8259) in `body`."""
    try:
        source = body.decode("utf-8")
        if source.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark; send it without")
        if source.count("[") + source.count("{") > MAX_DEPTH:
            _refuse_depth(source)
        members = _DECODER.decode(source)
        if not isinstance(members, dict):
            raise TypeError(
                'it is no object; send {"tenant_id": ..., "start_time_utc": ..., "idempotency_key": ...}'
            )
    except UnicodeDecodeError as error:
        detail = f"it is not UTF-8 at byte {error.start}"
    except (TypeError, ValueError) as error:
        detail = str(error)
    else:
        return members
    raise Problem("malformed-json", f"The body cannot be read: {detail}.", [FieldError("body", detail)])


def _refuse_depth(source: str) -> None:
    depth = 0
    for token in _STRING_OR_BRACKET.findall(source):
        depth += (token in "[{") - (token in "]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has the member {_shown(twice)} twice")
    return members


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# No member that counts is a number, and float, unlike int, takes any number of digits (int refuses 4301).
_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_int=float)


def _shown(name: str) -> str:
    """A client's own word, short enough to repeat to it."""
    return name if len(name) <= 40 else f"{name[:40]}..."


def refuse(errors: Sequence[FieldError]) -> None:
    """Problem 400 if anything is wrong."""
    if errors:
        detail = "; ".join(f"{error.field} {error.detail}" for error in errors)
        raise Problem("invalid-fields", f"{detail}.", errors)
