"""Every problem type that a response can have (RFC 9457): one table row each.

A rejected request raises `Problem` where the fault is found; `api` turns it into a response.
This module knows nothing about sockets, SQL or routes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class ProblemType(NamedTuple):
    """One row of the table. `explanation` says why the request was rejected and what to do.

    The response to a `retryable` problem carries Retry-After: the same request may succeed later.
    """

    status: int
    title: str
    explanation: str
    retryable: bool = False


PROBLEM_TYPES: Mapping[str, ProblemType] = {
    "malformed-request": ProblemType(
        400,
        "The request is not well-formed HTTP",
        "The request line, a header, the length or a chunk breaks the grammar of RFC 9112. The "
        "server closed the connection if it could not tell where the request ends. Use an HTTP "
        "client, and check any proxy that rewrites requests.",
    ),
    "malformed-json": ProblemType(
        400,
        "The body is not a valid JSON object",
        "The body is not JSON in UTF-8 (RFC 8259), is not an object, repeats a member or is nested "
        'too deeply. Send an object like {"tenant_id": "acme", "start_time_utc": '
        '"2026-01-01T10:00:00Z", "idempotency_key": "4f7c1a52-6d0e-4b8f-9a55-0d1c2e3f4a5b"}.',
    ),
    "invalid-fields": ProblemType(
        400,
        "Fields are missing, malformed or contradictory",
        "The errors member lists everything that is wrong. A value that is sent in two places "
        "must be the same in both. Fix the fields listed in errors and send the request again. "
        "The idempotency key was not used.",
    ),
    "no-such-path": ProblemType(
        404,
        "The path does not exist",
        "Paths are compared exactly: a trailing slash or a percent-encoded letter makes a "
        "different path. GET / lists the paths.",
    ),
    "no-such-booking": ProblemType(
        404,
        "This tenant has no such booking",
        "The booking does not exist, or it belongs to another tenant. The response is the same in "
        "both cases, so that it reveals nothing about other tenants. GET /bookings lists the "
        "tenant's bookings.",
    ),
    "method-not-allowed": ProblemType(
        405,
        "The path does not support this method",
        "Bookings can be created, read and cancelled. Send one of the methods listed in the Allow "
        "header.",
    ),
    "too-slow": ProblemType(
        408,
        "The request took too long to arrive",
        "A request that arrives slowly occupies a thread, so the server closed the connection. "
        "Send the whole request at once on a new connection. The idempotency key makes this safe.",
    ),
    "slot-taken": ProblemType(
        409,
        "The slot is taken",
        "The tenant already has a booking at this start time under another idempotency key, and "
        "the database rejected a second one. Choose another start time. The key was not used.",
    ),
    "rejected-by-rule": ProblemType(
        409,
        "A rule of the operator rejects the request",
        "The operator of this service added a rule to the database, such as opening hours, and "
        "detail has its text. Nothing was changed, and the key of a new booking was not used. "
        "Change the request so that it follows the rule.",
    ),
    "booking-cancelled": ProblemType(
        410,
        "The booking was cancelled",
        "The booking was cancelled, which is final and freed its slot. Its idempotency key can no "
        "longer book, so that a late retry does not bring the booking back. To book the slot "
        "again, send a new key.",
    ),
    "length-required": ProblemType(
        411,
        "The request has no Content-Length",
        "Without a length the server cannot tell where the body ends, so it closed the "
        "connection. Send Content-Length, the number of bytes in the body, or Transfer-Encoding: "
        "chunked.",
    ),
    "body-too-large": ProblemType(
        413,
        "The body is too large",
        "A booking needs a few hundred bytes. The server closed the connection without reading "
        "the whole body. Send the three fields of a booking and little else, in few chunks.",
    ),
    "target-too-long": ProblemType(
        414,
        "The request line is too long",
        "No path or query of this service comes near the limit. Look for a parameter that was "
        "filled in by mistake.",
    ),
    "not-json": ProblemType(
        415,
        "The body is not declared as JSON",
        "Only application/json is accepted. A browser does not let a page of another site send it "
        "without a preflight, which this service never grants. Send the header Content-Type: "
        "application/json.",
    ),
    "content-encoding": ProblemType(
        415,
        "The content coding is not supported",
        "The server does not decompress bodies: a booking is small, and a compressed body can be "
        "of any size. Send the body uncompressed, without Content-Encoding.",
    ),
    "expectation-failed": ProblemType(
        417,
        "The expectation is not supported",
        "The Expect header asks for something other than 100-continue. Remove the header.",
    ),
    "unknown-host": ProblemType(
        421,
        "The Host header names another server",
        "A web page can point a name of its own at this machine and read the responses as if they "
        "came from its own site (DNS rebinding). A server on a loopback address therefore accepts "
        "only localhost, IP addresses and names without a dot. Use one of these, also in the Host "
        "header that a proxy sends, or start the server with --allowed-hosts.",
    ),
    "key-reused": ProblemType(
        422,
        "The idempotency key was used for another booking",
        "An idempotency key belongs to one request forever, and this one came with another start "
        "time or from another tenant. Send a new key for a new booking. To retry, repeat the first "
        "request exactly.",
    ),
    "headers-too-large": ProblemType(
        431,
        "The header section is too large",
        "The server limits the number and the size of headers, and closed the connection. Send "
        "fewer headers. Cookies of another service on the same host are a common cause.",
    ),
    "internal-error": ProblemType(
        500,
        "The server failed",
        "This is a fault in the server, not in the request, and a booking may have been created or "
        "cancelled. Send the same request again, which is safe. Report request_id, "
        "which identifies the entry in the server's log.",
    ),
    "transfer-encoding": ProblemType(
        501,
        "The transfer coding is not supported",
        "The only transfer coding that the server decodes is chunked, without another one before "
        "or after it. It closed the connection, because it cannot tell where the body ends. Send "
        "Transfer-Encoding: chunked alone, or Content-Length.",
    ),
    "database-busy": ProblemType(
        503,
        "The database is busy",
        "Another program held the write lock for longer than a request waits. Nothing was changed. "
        "Send the same request again after Retry-After seconds.",
        retryable=True,
    ),
    "database-unavailable": ProblemType(
        503,
        "The database cannot be reached",
        "The database file cannot be read or written, or the cluster does not answer in time. The "
        "server's log names the cause. A booking may have been created or cancelled. Send the same "
        "request again after Retry-After seconds, which is safe.",
        retryable=True,
    ),
    "shutting-down": ProblemType(
        503,
        "The server is shutting down",
        "The request did not arrive completely before the shutdown. Nothing was changed. Send the "
        "same request again after Retry-After seconds, on a new connection.",
        retryable=True,
    ),
    "http-version": ProblemType(
        505,
        "The HTTP version is not supported",
        "The server supports HTTP/1.1 and HTTP/1.0. Use one of them, or a proxy that does.",
    ),
    "database-full": ProblemType(
        507,
        "The disk is full",
        "The disk has no space for a change. Nothing was changed, and bookings can still be "
        "read. Free some disk space, then send the same request again.",
        retryable=True,
    ),
}


class FieldError(NamedTuple):
    """One field that is wrong, and what to send instead."""

    field: str
    detail: str


class Problem(Exception):
    """A rejected request.

    `type` is a name in PROBLEM_TYPES, `detail` describes this occurrence, `errors` lists the
    fields at fault, and `headers` are added to the response.
    """

    def __init__(
        self,
        type: str,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(detail)
        self.type = type
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = tuple(headers)
