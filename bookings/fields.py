"""Validates what a client sends: headers, query and body become values, or a Problem.

A response to a bad request names everything that is wrong at once. A value that is sent in
several places must be the same in each. This module knows nothing about sockets, routes or SQL.

Headers map lower-case names to the values in the order sent, decoded as UTF-8 with
`surrogateescape`: bytes that are not UTF-8 become lone surrogates, which no field accepts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import parse_qsl

from bookings import strict_json, values
from bookings.problems import FieldError, Problem

Headers = Mapping[str, Sequence[str]]
Validator = Callable[[object], str]

# One page is about 200 KB: a single request can fetch it without delaying others for long.
MAX_PAGE = 1000
PAGE_PARAMETERS = ("tenant_id", "from", "to", "after", "limit")
# More than twice what any request needs; each excess parameter adds a sentence to the response.
MAX_PARAMETERS = 16

# A string of a structured field (RFC 9651, section 3.3.3), the form that the Idempotency-Key
# draft prescribes.
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\])*)"')
# `surrogateescape` decodes a byte that is not UTF-8 to one of these.
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_LIMIT = re.compile(r"[1-9][0-9]{0,3}")
_PAIR = re.compile("[^=]+=")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")

_MISSING = {
    "tenant_id": "is missing; send it in the X-Tenant-ID header, or in the body of a POST or the "
    "query of a GET or DELETE",
    "start_time_utc": "is missing; send it in the body, like 2026-01-01T10:00:00Z",
    "idempotency_key": "is missing; send a UUID of your own, new for each booking, in the body "
    "or in Idempotency-Key",
}


class Source(NamedTuple):
    """One place where a value was sent, the validator for that place, and the value."""

    place: str
    validate: Validator
    value: object


class Query(NamedTuple):
    """The parameters of a query, and what is wrong with it."""

    parameters: Mapping[str, str]
    errors: Sequence[FieldError]


class PageRequest(NamedTuple):
    """A valid `GET /bookings`. A bound that was not sent is ""."""

    tenant_id: str
    start_from: str
    start_before: str
    after: str
    limit: int


def booking_request(headers: Headers, query: Query, body: bytes) -> dict[str, str]:
    """Return the fields of the booking that a POST asks for. Raise Problem 400 or 415."""
    media_types = [
        v.partition(";")[0].strip(" \t").lower() for v in headers.get("content-type", ())
    ]
    if media_types != ["application/json"]:
        raise Problem(
            "not-json",
            "Send the header Content-Type: application/json.",
            headers=[("Accept", "application/json")],
        )
    codings = ",".join(headers.get("content-encoding", ())).lower().split(",")
    if any(coding.strip(" \t") not in ("", "identity") for coding in codings):
        raise Problem(
            "content-encoding",
            "Send the body uncompressed, without Content-Encoding.",
            headers=[("Accept-Encoding", "identity")],
        )
    try:
        members = strict_json.parse_object(body)
    except (TypeError, ValueError) as error:
        detail = str(error)
        body_error = FieldError("body", detail)
        raise Problem(
            "malformed-json", f"The body cannot be read: {detail}.", [body_error]
        ) from None
    sources = {
        "tenant_id": [
            *_from_members(members, "tenant_id", "the body", values.text),
            *_from_header(headers, "X-Tenant-ID", values.text),
        ],
        "start_time_utc": _from_members(members, "start_time_utc", "the body", values.instant),
        "idempotency_key": [
            *_from_members(members, "idempotency_key", "the body", values.text),
            *_from_header(headers, "Idempotency-Key", _bare_or_quoted),
        ],
    }
    errors = list(query.errors)
    fields = {name: _agree(name, sources[name], errors) for name in sources}
    reject_errors(errors)
    return fields


def tenant(headers: Headers, query: Query) -> str:
    """Return the tenant that a GET or DELETE is for. Raise Problem 400."""
    errors = list(query.errors)
    tenant_id = _tenant(headers, query, errors)
    reject_errors(errors)
    return tenant_id


def page_request(headers: Headers, query: Query) -> PageRequest:
    """Return the page of bookings that a GET asks for. Raise Problem 400."""
    errors = list(query.errors)
    tenant_id = _tenant(headers, query, errors)
    bounds = dict.fromkeys(("from", "to", "after"), "")
    for name in bounds:
        sources = _from_members(query.parameters, name, "the query", values.instant)
        if sources:
            bounds[name] = _agree(name, sources, errors)
    limit = query.parameters.get("limit", str(MAX_PAGE))
    if not _LIMIT.fullmatch(limit) or int(limit) > MAX_PAGE:
        detail = f"in the query is not a page length; send a number from 1 to {MAX_PAGE}"
        errors.append(FieldError("limit", detail))
    reject_errors(errors)
    return PageRequest(tenant_id, bounds["from"], bounds["to"], bounds["after"], int(limit))


def parse_query(raw: str, known: Sequence[str]) -> Query:
    """Parse a query. Every parameter must be known and sent once: if a misspelled filter were
    ignored, the response would contain everything. Empty pairs, as in `a=1&`, are ignored.
    """
    given = list(filter(None, raw.split("&")))
    if len(given) > MAX_PARAMETERS:
        detail = f"has {len(given)} parameters; send at most {MAX_PARAMETERS}"
        reject_errors([FieldError("query", detail)])
    raw = "&".join(given)
    try:
        for pair in given:
            if not _PAIR.match(pair):
                raise ValueError(f"{strict_json.shorten(pair)!r} has no name or no =")
        if _BAD_PERCENT.search(raw):
            raise ValueError("a % is not followed by two hexadecimal digits; send it as %25")
        pairs = _parse_pairs(raw) if raw else []
    except ValueError as error:
        detail = f"is not of the form name=value&name=value in percent-encoded UTF-8: {error}"
        reject_errors([FieldError("query", detail)])
    names = [name for name, _ in pairs]
    accepted = f"accepts {', '.join(known)}" if known else "accepts no parameters"
    errors = [
        FieldError(strict_json.shorten(name), f"is unknown; this request {accepted}")
        for name in names
        if name not in known
    ]
    errors += [
        FieldError(name, "is given twice; send it once") for name in known if names.count(name) > 1
    ]
    return Query(dict(pairs), errors)


def reject_errors(errors: Sequence[FieldError]) -> None:
    """Raise Problem 400 if there are errors."""
    if errors:
        detail = "; ".join(f"{error.field} {error.detail}" for error in errors)
        raise Problem("invalid-fields", f"{detail}.", errors)


def _parse_pairs(raw: str) -> list[tuple[str, str]]:
    return parse_qsl(raw, keep_blank_values=True, strict_parsing=True, errors="strict")


def _tenant(headers: Headers, query: Query, errors: list[FieldError]) -> str:
    sources = [
        *_from_members(query.parameters, "tenant_id", "the query", values.text),
        *_from_header(headers, "X-Tenant-ID", values.text),
    ]
    return _agree("tenant_id", sources, errors)


def _from_members(
    members: Mapping[str, object], name: str, place: str, validate: Validator
) -> list[Source]:
    """Return the value of a member, if it is given. `null` means that it is not."""
    value = members.get(name)
    return [] if value is None else [Source(place, validate, value)]


def _from_header(headers: Headers, name: str, validate: Validator) -> Iterable[Source]:
    def validate_header(value: object) -> str:
        if _NOT_UTF8.search(str(value)):
            raise ValueError("is not in UTF-8; encode it, or send it in the body or the query")
        return validate(value)

    return [Source(f"the {name} header", validate_header, v) for v in headers.get(name.lower(), ())]


def _agree(field: str, sources: Sequence[Source], errors: list[FieldError]) -> str:
    """Return the one valid value that all sources carry, or add to `errors` and return ""."""
    found = set()
    for place, validate, value in sources:
        try:
            found.add(validate(value))
        except (TypeError, ValueError) as error:
            errors.append(FieldError(field, f"in {place} {error}"))
            found.add("")
    if not sources:
        errors.append(FieldError(field, _MISSING[field]))
    elif len(found) > 1 and "" not in found:
        places = " and ".join(source.place for source in sources)
        errors.append(FieldError(field, f"differs between {places}; send one value"))
    return found.pop() if len(found) == 1 else ""


def _bare_or_quoted(value: object) -> str:
    """Validate an idempotency key as the header carries it: most clients send it bare, the draft
    quotes it.
    """
    if isinstance(value, str) and value.startswith('"'):
        match = _QUOTED.fullmatch(value)
        if not match:
            raise ValueError(
                'starts with a double quote but is not one string like "key"; send the key bare'
            )
        value = re.sub(r"\\(.)", r"\1", match[1])
    return values.text(value)
