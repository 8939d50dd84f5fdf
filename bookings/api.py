"""Routes: a request and a store in, a response out.

`respond` raises Problem for a request that it rejects; `problem_response` turns any Problem into
a response. This module knows nothing about sockets or SQL.

References in Location, Link and the index are relative to the target of the request, so that they
also lead to the right place behind a proxy that strips a prefix from the path. The type of a
problem identifies it and must not depend on the target (RFC 9457, section 3.1.1), so it is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from re import Match, Pattern
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from bookings import __version__, fields
from bookings.problems import PROBLEM_TYPES, FieldError, Problem
from bookings.stores.model import (
    Cancellation,
    FailureReason,
    NewBooking,
    Outcome,
    PageQuery,
    RejectedByRule,
    Store,
    Unavailable,
)

# Seconds in Retry-After: longer than any commit, short enough for a client that obeys it.
_RETRY_AFTER = "1"

# Longest text of an operator's rule in a response, in characters.
_MAX_RULE = 500

_JSON = ("Content-Type", "application/json")
_PROBLEM_JSON = ("Content-Type", "application/problem+json")

# The headers that announce a body.
_FRAMING = frozenset(("content-length", "transfer-encoding"))

# origin-form or absolute-form (RFC 9112, section 3.2). A server must accept the second for any
# host.
_AUTHORITY = r"(?:[^/?#@]*@)?(?:\[[0-9A-Fa-f:.]+\]|[^]/?#@:[]+)(?::[0-9]*)?"
_TARGET = re.compile(
    rf"(?:(?=/)|[Hh][Tt][Tt][Pp][Ss]?://{_AUTHORITY})(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?"
)


class Request(NamedTuple):
    """A well-formed request: the target as sent, the headers as `fields` takes them, the body."""

    method: str
    target: str
    headers: fields.Headers
    body: bytes


class Response(NamedTuple):
    """A response without the headers that every response has. `close` ends the connection."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    close: bool = False


class Route(NamedTuple):
    """A handler, and the query parameters that it accepts."""

    handler: Callable[[Request, fields.Query, Match[str], Store], Response]
    parameters: Sequence[str] = ()


def respond(request: Request, store: Store) -> Response:
    """Return the response to a request. Raise Problem if the request is rejected."""
    if request.method == "POST" and not _FRAMING.intersection(request.headers):
        raise Problem("length-required", "Send Content-Length, the number of bytes in the body.")
    if (request.method, request.target) == ("OPTIONS", "*"):
        return _options(request, [m for _, routes in _ROUTES for m in _methods(routes)])
    target = _TARGET.fullmatch(request.target)
    if not target:
        raise Problem("malformed-request", "The target is not a path; send one like /bookings.")
    for path, routes in _ROUTES:
        match = path.fullmatch(target["path"] or "/")
        if match:
            route = routes.get("GET" if request.method == "HEAD" else request.method)
            if not route:
                return _options(request, _methods(routes))
            query = fields.parse_query(target["query"] or "", route.parameters)
            try:
                return route.handler(request, query, match, store)
            except Unavailable as error:
                raise Problem(*_UNAVAILABLE[error.reason]) from error.__cause__
            except RejectedByRule as error:
                text = str(error)[:_MAX_RULE]
                detail = f"The operator of this service rejects this: {text}"
                raise Problem("rejected-by-rule", detail) from None
    raise Problem("no-such-path", "Send the request to /bookings or to a path that GET / lists.")


def problem_response(problem: Problem, request_id: str | None = None) -> Response:
    """Return the response for a Problem. `request_id` is included if the log has more about it."""
    problem_type = PROBLEM_TYPES[problem.type]
    document: dict[str, Any] = {
        "type": f"/problems/{problem.type}",
        "title": problem_type.title,
        "status": problem_type.status,
        "detail": problem.detail,
        "errors": [error._asdict() for error in problem.errors],
    }
    if request_id:
        document["request_id"] = request_id
    retry = [("Retry-After", _RETRY_AFTER)] if problem_type.retryable else []
    headers = [_PROBLEM_JSON, *problem.headers, *retry]
    # A body without a length may follow; it must not be parsed as a request.
    close = problem.type == "length-required"
    return Response(problem_type.status, headers, _encode(document), close)


def _book(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    new = NewBooking(**fields.booking_request(request.headers, query, request.body))
    outcome, booking = store.book(new)
    if not booking:
        raise Problem(*_CONFLICTS[outcome])
    if outcome is Outcome.CREATED:
        return _json(booking._asdict(), 201, [("Location", f"bookings/{booking.id}")])
    return _json(booking._asdict(), 200, [("Idempotent-Replayed", "true")])


def _list(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    asked = fields.page_request(request.headers, query)
    page = store.list_bookings(PageQuery(*asked))
    headers = [_JSON]
    if page.more:
        # Instants are sent in their one spelling, which bounds the length of the target.
        following = {
            "tenant_id": asked.tenant_id,
            "from": asked.start_from,
            "to": asked.start_before,
            "limit": query.parameters.get("limit", ""),
            "after": page.last_start,
        }
        given = {name: value for name, value in following.items() if value}
        target = f"bookings?{urlencode(given, safe=':', quote_via=quote)}"
        headers.append(("Link", f'<{target}>; rel="next"'))
    return Response(200, headers, page.array.encode() + b"\n")


def _get(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    found = store.get_booking(fields.tenant(request.headers, query), int(match["id"]))
    if not found:
        raise Problem(*_NO_SUCH_BOOKING)
    if isinstance(found, Cancellation):
        raise Problem("booking-cancelled", "This booking was cancelled.")
    return _json(found._asdict())


def _cancel(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    if not store.cancel(fields.tenant(request.headers, query), int(match["id"])):
        raise Problem(*_NO_SUCH_BOOKING)
    return Response(204, [], b"")


def _index(store: Store) -> Response:
    paths = ("bookings", "live", "ready", "openapi.json", "problems")
    links = {path.partition(".")[0]: path for path in paths}
    return _json({"service": "bookings", "links": links})


def _live(store: Store) -> Response:
    return _json({"status": "live"})


def _ready(store: Store) -> Response:
    store.ping()
    return _json({"status": "ready"})


def _openapi(store: Store) -> Response:
    document = Path(__file__).with_name("openapi.json").read_bytes()
    return Response(200, [_JSON], document.replace(b"{version}", __version__.encode()))


def _problems(store: Store) -> Response:
    return _json([_problem_type(name) for name in PROBLEM_TYPES])


def _problem(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    fields.reject_errors(query.errors)
    return _json(_problem_type(match["name"]))


def _problem_type(name: str) -> dict[str, Any]:
    return {"type": f"/problems/{name}", **PROBLEM_TYPES[name]._asdict()}


def _options(request: Request, methods: Iterable[str]) -> Response:
    """Answer OPTIONS with the methods of a path, and reject a method that is not one of them."""
    allow = ("Allow", ", ".join(sorted(set(methods))))
    if request.method != "OPTIONS":
        raise Problem("method-not-allowed", f"Send one of {allow[1]}.", headers=[allow])
    return Response(204, [allow], b"")


def _methods(routes: Mapping[str, Route]) -> Sequence[str]:
    return [*routes, *(["HEAD"] if "GET" in routes else []), "OPTIONS"]


def _fixed(page: Callable[[Store], Response]) -> Mapping[str, Route]:
    """Return the routes of a path that is only read and takes no parameters."""

    def handler(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
        fields.reject_errors(query.errors)
        return page(store)

    return {"GET": Route(handler)}


# An id has at most 16 digits (schema.sql), so every id that matches fits into 64 bits.
_ROUTES: Sequence[tuple[Pattern[str], Mapping[str, Route]]] = (
    (re.compile(r"/bookings"), {"GET": Route(_list, fields.PAGE_PARAMETERS), "POST": Route(_book)}),
    (
        re.compile(r"/bookings/(?P<id>[1-9][0-9]{0,15})"),
        {"GET": Route(_get, ["tenant_id"]), "DELETE": Route(_cancel, ["tenant_id"])},
    ),
    (re.compile(r"/"), _fixed(_index)),
    (re.compile(r"/live"), _fixed(_live)),
    (re.compile(r"/ready"), _fixed(_ready)),
    (re.compile(r"/openapi\.json"), _fixed(_openapi)),
    (re.compile(r"/problems"), _fixed(_problems)),
    (re.compile(rf"/problems/(?P<name>{'|'.join(PROBLEM_TYPES)})"), {"GET": Route(_problem)}),
)

_NO_SUCH_BOOKING = (
    "no-such-booking",
    "This tenant has no booking with this id; GET /bookings lists its bookings.",
)

_CONFLICTS = {
    Outcome.SLOT_TAKEN: (
        "slot-taken",
        (
            "This tenant already has a booking at this start time under another idempotency key; "
            "choose another start time."
        ),
        [FieldError("start_time_utc", "is taken")],
    ),
    Outcome.KEY_REUSED: (
        "key-reused",
        (
            "This idempotency key was used for another tenant or start time; send a new key for a "
            "new booking."
        ),
        [FieldError("idempotency_key", "was used for another booking")],
    ),
    Outcome.CANCELLED: (
        "booking-cancelled",
        "The booking with this idempotency key was cancelled; send a new key for a new booking.",
        [FieldError("idempotency_key", "was used for a booking that was cancelled")],
    ),
}

_UNAVAILABLE = {
    FailureReason.BUSY: (
        "database-busy",
        "Another program holds the write lock. Nothing was changed; send the request again.",
    ),
    FailureReason.FULL: (
        "database-full",
        "The disk is full. Nothing was changed; free some disk space and send the request again.",
    ),
    FailureReason.UNREACHABLE: (
        "database-unavailable",
        "The database cannot be reached; send the same request again.",
    ),
}


def _json(document: Any, status: int = 200, headers: Sequence[tuple[str, str]] = ()) -> Response:
    return Response(status, [_JSON, *headers], _encode(document))


def _encode(document: Any) -> bytes:
    """Encode as UTF-8 JSON with a line break at the end, for people who read it in a terminal."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    # Only a problem can repeat a lone surrogate; backslashreplace writes it as a JSON escape.
    return text.encode("utf-8", "backslashreplace") + b"\n"
