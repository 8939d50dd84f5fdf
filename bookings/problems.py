"""Every refusal that this program makes: one table of type, status and title, and of what a client should know.

A refusal is a `Problem`: raised wherever it is found, worded once, by `api`. This module knows no HTTP beyond the
numbers of its statuses, and nothing of bookings beyond the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One row of the table: the HTTP status, what happened (the same words each time), why, and what to do."""

    status: int
    title: str
    why: str
    what_to_do: str


KINDS: Mapping[str, Kind] = {
    "malformed-request": Kind(
        400,
        "The request is not well-formed HTTP",
        "The request line, a header or the length breaks the grammar of RFC 9112. Where a request ends must be certain: "
        "if it is not, the connection was closed.",
        "Send the request with an HTTP client, on a new connection. A proxy that rewrites requests may be at fault.",
    ),
    "malformed-json": Kind(
        400,
        "The body is not the JSON object that a booking needs",
        "The body is no JSON in UTF-8 (RFC 8259), is no object, names a member twice, or nests too deep.",
        'Send an object like {"tenant_id": "acme", "start_time_utc": "2026-01-01T10:00:00Z", "idempotency_key": "k1"}.',
    ),
    "invalid-fields": Kind(
        400,
        "Fields are missing, malformed or in disagreement",
        "Each field was checked before the database was asked; all that is wrong is in errors. A value that is sent in "
        "two places must be the same in both.",
        "Mend every field that errors names, and send the request again. No key was used up.",
    ),
    "no-such-path": Kind(
        404,
        "There is nothing at this path",
        "Paths are compared as they are, without a slash at the end and without percent-encoding.",
        "GET / lists what there is.",
    ),
    "no-such-booking": Kind(
        404,
        "This tenant has no such booking",
        "The booking does not exist, or is another tenant's: the answer is the same, so that nothing is learned from it.",
        "GET /bookings lists the bookings that the tenant has.",
    ),
    "method-not-allowed": Kind(
        405,
        "This path does not take this method",
        "Bookings are made and read; nothing here changes or deletes one.",
        "Send one of the methods in the Allow header.",
    ),
    "too-slow": Kind(
        408,
        "The request took too long to arrive",
        "A request that arrives drop by drop keeps a thread from others, so the connection was closed.",
        "Send the request again, in one piece. The idempotency key makes it safe.",
    ),
    "slot-taken": Kind(
        409,
        "The slot is taken",
        "The tenant already has a booking at this start time, under another idempotency key. The database refused a "
        "second one.",
        "Choose another start time. The key was not used up.",
    ),
    "length-required": Kind(
        411,
        "The body has no Content-Length",
        "Without a length it is not certain where the request ends, so the connection was closed.",
        "Send a Content-Length, the number of bytes in the body.",
    ),
    "body-too-large": Kind(
        413,
        "The body is too large",
        "A booking takes some hundred bytes; the connection was closed before the rest was read.",
        "Send the three fields of a booking and little else.",
    ),
    "target-too-long": Kind(
        414,
        "The request line is too long",
        "No path and query that this service needs comes near the limit.",
        "Look for a parameter that was filled in by mistake.",
    ),
    "not-json": Kind(
        415,
        "The body is not declared as JSON",
        "Only application/json is taken. A web page of another site cannot send it unasked, so none can book.",
        "Send the header Content-Type: application/json.",
    ),
    "expectation-failed": Kind(
        417,
        "The expectation cannot be met",
        "The Expect header asks for something other than 100-continue.",
        "Leave the Expect header out.",
    ),
    "unknown-host": Kind(
        421,
        "The server is not known by this name",
        "A web page of a stranger can point a name of its own at this machine, and read what a browser then takes for its "
        "own site (DNS rebinding). So a server that only its own machine reaches answers to localhost, addresses and names "
        "without a dot alone.",
        "Call it by localhost or its address. A proxy in front should send one of these as Host; a name of yours can be "
        "allowed with --allowed-hosts.",
    ),
    "key-reused": Kind(
        422,
        "The idempotency key was used for another booking",
        "An idempotency key names one request for ever; this one came with another start time or from another tenant.",
        "Send a new key for a new booking. To retry, repeat the first request exactly.",
    ),
    "headers-too-large": Kind(
        431,
        "The headers are too long or too many",
        "The server reads so many headers and no more; the connection was closed.",
        "Send fewer headers. Cookies of another service on the same host are a common cause.",
    ),
    "internal-error": Kind(
        500,
        "The program failed",
        "This is a fault of the program and not of the request. Whether a booking was made is not certain.",
        "Send the request again: its key makes that safe. Report request_id, under which the log tells more.",
    ),
    "transfer-encoding": Kind(
        501,
        "Transfer codings are not supported",
        "A chunked body has no length known beforehand; a booking is so small that it can have one.",
        "Send the body as it is, with its Content-Length.",
    ),
    "database-busy": Kind(
        503,
        "The database is busy",
        "Another writer held the database for longer than a request waits. Nothing was booked.",
        "Send the same request again after Retry-After seconds.",
    ),
    "database-unavailable": Kind(
        503,
        "The database cannot be reached",
        "The file cannot be read or written, or the cluster does not answer in time; the log names the cause. Whether a "
        "booking was made is not certain.",
        "Send the same request again after Retry-After seconds, which its key makes safe; tell the operator if it lasts.",
    ),
    "shutting-down": Kind(
        503,
        "The server is stopping",
        "The rest of the request had not arrived when the server stopped to wait for it. Nothing was booked.",
        "Send the same request again after Retry-After seconds, on a new connection.",
    ),
    "http-version": Kind(
        505,
        "This version of HTTP is not supported",
        "The server speaks HTTP/1.1, and HTTP/1.0 to those who ask in it.",
        "Send the request as HTTP/1.1, or through a proxy that does.",
    ),
    "database-full": Kind(
        507,
        "The disk is full",
        "There is no room for another booking. Nothing was booked; reading goes on.",
        "Free some space; then send the same request again.",
    ),
}


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field, and what to send instead."""

    field: str
    detail: str


class Problem(Exception):
    """A refusal: `kind` is a name in KINDS, `detail` says what happened this time and what to do about it.

    `errors` has one entry for each field that is at fault; `headers` go out with the answer.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status = KINDS[kind].status
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = tuple(headers)
