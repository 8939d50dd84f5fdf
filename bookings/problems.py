"""Every refusal that this program makes: one table of type, status and title.

A refusal is a `Problem`: raised wherever it is found, worded once, by `api`. This module knows no HTTP beyond the
numbers of its statuses, and nothing of bookings beyond the names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One row of the table: the HTTP status, and the title that is the same each time it occurs."""

    status: int
    title: str


KINDS: Mapping[str, Kind] = {
    "malformed-request": Kind(400, "The request is not well-formed HTTP"),
    "malformed-json": Kind(400, "The body is not the JSON object that a booking needs"),
    "invalid-fields": Kind(400, "Fields are missing, malformed or in disagreement"),
    "no-such-path": Kind(404, "There is nothing at this path"),
    "no-such-booking": Kind(404, "This tenant has no such booking"),
    "method-not-allowed": Kind(405, "This path does not take this method"),
    "too-slow": Kind(408, "The request took too long to arrive"),
    "slot-taken": Kind(409, "The slot is taken"),
    "length-required": Kind(411, "The body has no Content-Length"),
    "body-too-large": Kind(413, "The body is too large"),
    "target-too-long": Kind(414, "The request line is too long"),
    "not-json": Kind(415, "The body is not declared as JSON"),
    "expectation-failed": Kind(417, "The expectation cannot be met"),
    "key-reused": Kind(422, "The idempotency key was used for another booking"),
    "headers-too-large": Kind(431, "The headers are too long or too many"),
    "internal-error": Kind(500, "The program failed"),
    "transfer-encoding": Kind(501, "Transfer codings are not supported"),
    "database-busy": Kind(503, "The database is busy"),
    "database-unavailable": Kind(503, "The database cannot be reached"),
    "http-version": Kind(505, "This version of HTTP is not supported"),
    "database-full": Kind(507, "The disk is full"),
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
