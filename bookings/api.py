"""From a request and the store to a response: the routes, and the status of each outcome.

`answer` raises a Problem for what it refuses, and `refusal` words any Problem, those of the server included, as
`application/problem+json` (RFC 9457). This module knows no socket and no SQL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import Match, Pattern
from typing import Any
from urllib.parse import quote, urlencode

from bookings import fields
from bookings.problems import KINDS, FieldError, Problem
from bookings.store import Outcome, Store, Trouble, Unavailable


@dataclass(frozen=True)
class Request:
    """A well-framed request: the target as it was sent, the headers as `fields` takes them, the whole body."""

    method: str
    target: str
    headers: fields.Headers
    body: bytes


@dataclass(frozen=True)
class Response:
    """A status, the headers that are its own, and the body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def answer(request: Request, store: Store) -> Response:
    """The response to a request; raises Problem for a refusal."""
    if (request.method, request.target) == ("OPTIONS", "*"):
        return _options(request, [method for _, handlers in _ROUTES for method in _methods(handlers)])
    target = _TARGET.fullmatch(request.target)
    if not target:
        raise Problem("malformed-request", "The target is not a path; send one like /bookings.")
    for path, handlers in _ROUTES:
        match = path.fullmatch(target["path"] or "/")
        if match:
            handler, known = handlers.get("GET" if request.method == "HEAD" else request.method, (None, ()))
            if not handler:
                return _options(request, _methods(handlers))
            query = fields.parse_query(target["query"] or "", known)
            try:
                return handler(request, query, match, store)
            except Unavailable as error:
                kind, detail = _TROUBLES[error.trouble]
                raise Problem(kind, detail) from error.__cause__
    raise Problem("no-such-path", "Send the request to /bookings, or to what GET / lists.")


def refusal(problem: Problem, request_id: str | None = None) -> Response:
    """A Problem as its response; the request's id is given where the reader may look for it in the log."""
    document: dict[str, Any] = {
        "type": f"/problems/{problem.kind}",
        "title": KINDS[problem.kind].title,
        "status": problem.status,
        "detail": problem.detail,
        "errors": [vars(error) for error in problem.errors],
    }
    if request_id:
        document["request_id"] = request_id
    headers = [*problem.headers, *([("Retry-After", _RETRY_SECONDS)] if problem.status in _PASSING else [])]
    return _json(problem.status, document, headers, ("Content-Type", "application/problem+json"))


def _book(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    asked = fields.booking_request(request.headers, query, request.body)
    outcome, booking = store.book(asked.tenant_id, asked.start_time_utc, asked.idempotency_key)
    if not booking:
        kind, error, detail = _LOST[outcome]
        raise Problem(kind, detail, [error])
    if outcome is Outcome.CREATED:
        return _json(201, vars(booking), [("Location", f"/bookings/{booking.id}")])
    return _json(200, vars(booking), [("Idempotent-Replayed", "true")])


_LOST = {
    Outcome.SLOT_TAKEN: (
        "slot-taken",
        FieldError("start_time_utc", "is taken"),
        "This tenant already has a booking at this start time, under another idempotency key; choose another slot.",
    ),
    Outcome.KEY_REUSED: (
        "key-reused",
        FieldError("idempotency_key", "is used"),
        "This idempotency key was used for another tenant or start time; send a new key for a new booking.",
    ),
}


def _list(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    asked = fields.page_request(request.headers, query)
    page = store.bookings_of(asked.tenant_id, asked.at_least, asked.before, asked.after, asked.limit)
    headers = []
    if page.more:
        # The instants in their one spelling: a fraction of many zeros could make a target that is too long to be taken.
        following = {
            "tenant_id": asked.tenant_id,
            "from": asked.at_least,
            "to": asked.before,
            "limit": query.values.get("limit", ""),
            "after": page.last_start,
        }
        given = {name: value for name, value in following.items() if value}
        target = f"/bookings?{urlencode(given, safe=':', quote_via=quote)}"
        headers.append(("Link", f'<{target}>; rel="next"'))
    return Response(200, (_JSON, *headers), page.array.encode() + b"\n")


def _show(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    booking = store.booking_of(fields.tenant(request.headers, query), int(match["id"]))
    if not booking:
        raise Problem(
            "no-such-booking", "This tenant has no booking with this id; GET /bookings lists those it has."
        )
    return _json(200, vars(booking))


def _index(store: Store) -> Response:
    paths = ("/bookings", "/live", "/ready", "/openapi.json", "/problems")
    return _json(200, {"service": "bookings", "links": {path[1:].partition(".")[0]: path for path in paths}})


def _live(store: Store) -> Response:
    return _json(200, {"status": "live"})


def _ready(store: Store) -> Response:
    store.ping()
    return _json(200, {"status": "ready"})


def _openapi(store: Store) -> Response:
    document = Path(__file__).with_name("openapi.json").read_bytes()
    return Response(200, (_JSON,), document)


def _problems(store: Store) -> Response:
    return _json(200, [_explanation(name) for name in KINDS])


def _problem(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
    fields.refuse(query.errors)
    return _json(200, _explanation(match["name"]))


def _explanation(name: str) -> dict[str, Any]:
    return {"type": f"/problems/{name}", **vars(KINDS[name])}


def _options(request: Request, methods: Iterable[str]) -> Response:
    """What may be done here: as the answer to OPTIONS, and as the refusal of a method that may not."""
    allow = ("Allow", ", ".join(sorted(set(methods))))
    if request.method != "OPTIONS":
        raise Problem("method-not-allowed", f"Send one of {allow[1]}.", headers=[allow])
    return Response(204, (allow,), b"")


Handler = Callable[[Request, fields.Query, Match[str], Store], Response]
# For each method, its handler and the query parameters that it takes.
Handlers = Mapping[str, tuple[Handler, Sequence[str]]]


def _methods(handlers: Handlers) -> Sequence[str]:
    return [*handlers, *(["HEAD"] if "GET" in handlers else []), "OPTIONS"]


def _fixed(page: Callable[[Store], Response]) -> Handlers:
    """The handlers of a path that is only read, and answers everybody alike."""

    def handler(request: Request, query: fields.Query, match: Match[str], store: Store) -> Response:
        fields.refuse(query.errors)
        return page(store)

    return {"GET": (handler, ())}


# An id has at most 16 digits (schema.sql), so that every number that matches fits SQLite's 64 bits.
_ROUTES: Sequence[tuple[Pattern[str], Handlers]] = (
    (re.compile(r"/bookings"), {"GET": (_list, fields.PAGE_PARAMETERS), "POST": (_book, ())}),
    (re.compile(r"/bookings/(?P<id>[1-9][0-9]{0,15})"), {"GET": (_show, ("tenant_id",))}),
    (re.compile(r"/"), _fixed(_index)),
    (re.compile(r"/live"), _fixed(_live)),
    (re.compile(r"/ready"), _fixed(_ready)),
    (re.compile(r"/openapi\.json"), _fixed(_openapi)),
    (re.compile(r"/problems"), _fixed(_problems)),
    (re.compile(rf"/problems/(?P<name>{'|'.join(KINDS)})"), {"GET": (_problem, ())}),
)

# origin-form or absolute-form (RFC 9112, section 3.2): every server must take the second, whatever host it names.
_TARGET = re.compile(r"(?:(?=/)|[Hh][Tt][Tt][Pp][Ss]?://[^/?#]+)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?")

# What passes, be it a writer, a full disk or a server that is stopped to be started again. A second is longer than any
# commit, and short enough that a client which obeys is not kept waiting.
_PASSING = (503, 507)
_RETRY_SECONDS = "1"

_JSON = ("Content-Type", "application/json")

_TROUBLES = {
    Trouble.BUSY: (
        "database-busy",
        "Another writer holds the database. Nothing was booked; send the request again.",
    ),
    Trouble.FULL: (
        "database-full",
        "There is no room for another booking. Nothing was booked; free some disk space.",
    ),
    Trouble.UNREACHABLE: (
        "database-unavailable",
        "The database cannot be reached; send the same request again.",
    ),
}


def _json(
    status: int, document: Any, headers: Sequence[tuple[str, str]] = (), media_type: tuple[str, str] = _JSON
) -> Response:
    """A document as its response, ending in a line break for those who read it in a terminal."""
    # A lone surrogate, which only a refusal can repeat, leaves as the JSON escape that backslashreplace spells.
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return Response(status, (media_type, *headers), body + b"\n")
