"""From a request and the store to a response: the routes, and the status of each outcome.

`answer` raises a Problem for what it refuses, and `refusal` words any Problem, those of the server included, as
`application/problem+json` (RFC 9457). This module knows no socket and no SQL.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from re import Match, Pattern
from typing import Any

from bookings import fields
from bookings.problems import KINDS, FieldError, Problem
from bookings.store import Outcome, SQLiteStore, Trouble, Unavailable


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


def answer(request: Request, store: SQLiteStore) -> Response:
    """The response to a request; raises Problem for a refusal."""
    if request.target == "*":
        return _options(request, [method for _, handlers in _ROUTES for method in _methods(handlers)])
    target = _TARGET.fullmatch(request.target)
    if not target:
        raise Problem("malformed-request", "The target is not a path; send one like /bookings.")
    for path, handlers in _ROUTES:
        match = path.fullmatch(target["path"] or "/")
        if match:
            handler = handlers.get("GET" if request.method == "HEAD" else request.method)
            if not handler:
                return _options(request, _methods(handlers))
            try:
                return handler(request, target["query"] or "", match, store)
            except Unavailable as error:
                kind, detail = _TROUBLES[error.trouble]
                raise Problem(kind, detail, headers=[("Retry-After", _RETRY_SECONDS)]) from error
    raise Problem(
        "no-such-path", "Send the request to /bookings, or to /bookings/ followed by a booking's id."
    )


def refusal(problem: Problem, request_id: str | None = None) -> Response:
    """A Problem as its response; the request's id is given where the reader may look for it in the log."""
    kind = KINDS[problem.kind]
    document: dict[str, Any] = {
        "type": f"/problems/{problem.kind}",
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "errors": [vars(error) for error in problem.errors],
    }
    if request_id:
        document["request_id"] = request_id
    return _json(kind.status, document, problem.headers, "application/problem+json")


def _book(request: Request, query: str, match: Match[str], store: SQLiteStore) -> Response:
    fields.query(query, known=())
    asked = fields.booking_request(request.headers, request.body)
    outcome, booking = store.book(asked.tenant_id, asked.start_time_utc, asked.idempotency_key)
    if outcome is Outcome.CREATED and booking:
        return _json(201, vars(booking), [("Location", f"/bookings/{booking.id}")])
    if outcome is Outcome.REPLAYED and booking:
        return _json(200, vars(booking), [("Idempotent-Replayed", "true")])
    kind, error, detail = _LOST[outcome]
    raise Problem(kind, detail, [error])


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


def _list(request: Request, query: str, match: Match[str], store: SQLiteStore) -> Response:
    tenant_id = fields.tenant(request.headers, fields.query(query, known=("tenant_id",)))
    return _json(200, [vars(booking) for booking in store.bookings_of(tenant_id)])


def _show(request: Request, query: str, match: Match[str], store: SQLiteStore) -> Response:
    tenant_id = fields.tenant(request.headers, fields.query(query, known=("tenant_id",)))
    booking = store.booking_of(tenant_id, int(match["id"]))
    if not booking:
        raise Problem(
            "no-such-booking", "This tenant has no booking with this id; GET /bookings lists those it has."
        )
    return _json(200, vars(booking))


def _options(request: Request, methods: Sequence[str]) -> Response:
    """What may be done here: as the answer to OPTIONS, and as the refusal of a method that may not."""
    allow = ("Allow", ", ".join(sorted(set(methods))))
    if request.method != "OPTIONS":
        raise Problem("method-not-allowed", f"Send one of {allow[1]}.", headers=[allow])
    return Response(204, (allow,), b"")


Handler = Callable[[Request, str, Match[str], SQLiteStore], Response]


def _methods(handlers: Mapping[str, Handler]) -> Sequence[str]:
    return [*handlers, *(["HEAD"] if "GET" in handlers else []), "OPTIONS"]


# An id has at most 16 digits (schema.sql), so that every number that matches fits SQLite's 64 bits.
_ROUTES: Sequence[tuple[Pattern[str], Mapping[str, Handler]]] = (
    (re.compile(r"/bookings"), {"GET": _list, "POST": _book}),
    (re.compile(r"/bookings/(?P<id>[1-9][0-9]{0,15})"), {"GET": _show}),
)

# origin-form or absolute-form (RFC 9112, section 3.2): every server must take the second, whatever host it names.
_TARGET = re.compile(r"(?:(?=/)|[Hh][Tt][Tt][Pp][Ss]?://[^/?#]+)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?")

# A second is longer than any commit, and short enough that a client which obeys is not kept waiting.
_RETRY_SECONDS = "1"

_TROUBLES = {
    Trouble.BUSY: (
        "database-busy",
        "Another writer holds the database. Nothing was booked; send the request again.",
    ),
    Trouble.FULL: (
        "database-full",
        "There is no room for another booking. Nothing was booked; free some disk space.",
    ),
    Trouble.UNREACHABLE: ("database-unavailable", "The database cannot be reached; send the request again."),
}


def _json(
    status: int, document: Any, headers: Sequence[tuple[str, str]] = (), media_type: str = "application/json"
) -> Response:
    """A document as its response, ending in a line break for those who read it in a terminal."""
    # A lone surrogate, which only a refusal can repeat, leaves as the JSON escape that backslashreplace spells.
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
    return Response(status, (("Content-Type", media_type), *headers), body + b"\n")
