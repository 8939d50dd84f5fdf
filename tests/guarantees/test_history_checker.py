"""The history checker finds the defect in hand-made histories, and agrees with an exhaustive search
for an order on random small ones.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from tests.helpers.histories import Book, Booking, Call, Cancel, Get, List, Request, violations

NINE, TEN = "2026-01-01T09:00:00Z", "2026-01-01T10:00:00Z"
A = Booking(1, "acme", TEN, "a", "2026-11-22T16:00:00Z")
B = Booking(2, "acme", TEN, "b", "2026-11-22T16:00:00Z")
EARLY = Booking(3, "acme", NINE, "early", "2026-11-22T16:00:00Z")
ZOO = Booking(4, "zoo", TEN, "z", "2026-11-22T16:00:00Z")


def body_of(booking: Booking) -> bytes:
    return json.dumps(booking._asdict()).encode()


def book(
    began: float, ended: float, wanted: Booking, status: int | None, shown: Any = None, **other: str
) -> Call:
    """Return a call that requests `wanted`, with the fields in `other` replaced.

    Its response shows `shown`, by default `wanted` if the status is 200 or 201.
    """
    document = shown or (wanted if status in (200, 201) else None)
    body = b"" if status is None else json.dumps(document._asdict() if document else {}).encode()
    return Call(0, began, ended, wanted.request._replace(**other), status, body)


def listed(began: float, ended: float, *shown: Booking, tenant: str = "acme") -> Call:
    body = json.dumps([each._asdict() for each in shown]).encode()
    return Call(0, began, ended, List(tenant), 200, body)


def cancel(
    began: float, ended: float, wanted: Booking, status: int | None = 204, tenant: str = "acme"
) -> Call:
    body = b"{}" if status not in (None, 204) else b""
    return Call(0, began, ended, Cancel(tenant, wanted.id), status, body)


def get(began: float, ended: float, wanted: Booking, status: int, tenant: str = "acme") -> Call:
    body = body_of(wanted) if status == 200 else b"{}"
    return Call(0, began, ended, Get(tenant, wanted.id), status, body)


def busy(began: float, ended: float, wanted: Booking) -> Call:
    return book(began, ended, wanted, 503)._replace(body=b'{"type": "/problems/database-busy"}')


LINEARIZABLE: dict[str, tuple[list[Call], list[Booking]]] = {
    "nothing": ([], []),
    "winner, its retry and a loser": (
        [book(1, 2, A, 201), book(3, 4, A, 200), book(3, 4, B, 409)],
        [A],
    ),
    "loser and retry begin before the winner and end during it": (
        [book(2, 9, A, 201), book(1, 3, A, 200), book(1, 3, B, 409)],
        [A],
    ),
    "loser ends at the clock tick at which the winner begins": (
        [book(2, 3, A, 201), book(1, 2, B, 409)],
        [A],
    ),
    "winner without response": ([book(1, 2, A, None), book(3, 4, A, 200)], [A]),
    "winner without response is created later": (
        [book(1, 2, A, None), listed(3, 4), book(5, 6, B, 409), listed(7, 8, A)],
        [A],
    ),
    "winner visible in the rows alone": ([book(1, 2, A, None)], [A]),
    "no response and no booking": ([book(1, 2, A, None), book(3, 4, B, 201)], [B]),
    "first attempt without effect, second creates": (
        [book(1, 2, A, None), book(3, 4, A, 201)],
        [A],
    ),
    "booking exists after 500": ([book(1, 2, A, 500), book(3, 4, A, 200)], [A]),
    "booking exists after 503": ([book(1, 2, A, 503), book(3, 4, A, 200)], [A]),
    "no booking after database-busy, next attempt creates": (
        [busy(1, 2, A), book(3, 4, A, 201)],
        [A],
    ),
    "key reused for another slot and by another tenant": (
        [book(1, 2, A, 201), book(3, 4, A, 422, start=NINE), book(3, 4, A, 422, tenant="zoo")],
        [A],
    ),
    "key loses a slot, wins another and is then reused": (
        [book(1, 2, A, 201), book(3, 4, EARLY, 409, start=TEN), book(5, 6, EARLY, 201)]
        + [book(7, 8, EARLY, 422, start=TEN)],
        [A, EARLY],
    ),
    "tenants are independent": (
        [book(1, 2, A, 201), book(1, 2, ZOO, 201), listed(3, 4, ZOO, tenant="zoo")],
        [A, ZOO],
    ),
    "list during the creation, with or without the booking": (
        [book(1, 9, A, 201), listed(2, 3), listed(4, 5, A)],
        [A],
    ),
    "concurrent list begins later and shows less": (
        [book(1, 9, A, 201), listed(2, 8, A), listed(3, 7)],
        [A],
    ),
    "lists in order": (
        [book(1, 2, A, 201), book(3, 4, EARLY, 201), listed(5, 6, EARLY, A)],
        [EARLY, A],
    ),
    "list without response": ([Call(0, 1, 2, List("acme"), None, b""), listed(3, 4)], []),
}


@pytest.mark.parametrize("name", LINEARIZABLE)
def test_checker_accepts_linearizable_history(name: str) -> None:
    assert violations(*LINEARIZABLE[name]) == []


def assert_names(line: str, words: tuple[object, ...]) -> None:
    """Assert that the line contains the words in this order."""
    assert re.search(".*".join(re.escape(str(word)) for word in words), line), line


DEFECTIVE: dict[str, tuple[list[Call], list[Booking], tuple[object, ...]]] = {
    "two winners of a slot": (
        [book(1, 2, A, 201), book(1, 2, B, 201)],
        [A, B],
        ("two bookings for one",),
    ),
    "two winners, one row": (
        [book(1, 2, A, 201), book(1, 2, B, 201)],
        [A],
        ("two bookings for one",),
    ),
    "one request with 201 twice": (
        [book(1, 2, A, 201), book(1, 2, A, 201)],
        [A],
        ("created twice",),
    ),
    "key with two bookings": (
        [book(1, 2, A, 201), book(3, 4, EARLY._replace(idempotency_key="a"), 201)],
        [A, EARLY._replace(idempotency_key="a")],
        ("two bookings for one",),
    ),
    "id of two bookings": (
        [book(1, 2, A, 201), book(3, 4, EARLY._replace(id=1), 201)],
        [A, EARLY._replace(id=1)],
        ("two bookings for one",),
    ),
    "no request got 201": ([book(1, 2, A, 200)], [A], ("none with 201",)),
    "booking exists after database-busy alone": ([busy(1, 2, A)], [A], ("none with 201",)),
    "row without request": ([book(1, 2, B, None)], [A], ("never requested",)),
    "listed booking without request": ([listed(1, 2, A)], [A], ("never requested",)),
    "201 for a booking without row": ([book(1, 2, A, 201)], [], ("is not in the database",)),
    "row differs from its response": (
        [book(1, 2, A, 201)],
        [A._replace(created_at="2026-11-22T16:00:01Z")],
        ("two bookings for one",),
    ),
    "replay shows another time": (
        [book(1, 2, A, 201), book(3, 4, A, 200, A._replace(created_at="2026-11-22T16:00:01Z"))],
        [A],
        ("two bookings for one",),
    ),
    "replay in other bytes": (
        [book(1, 2, A, 201), book(3, 4, A, 200)._replace(body=book(3, 4, A, 200).body + b"\n")],
        [A],
        ("not byte for byte",),
    ),
    "201 shows another request's booking": (
        [book(1, 2, A, 201), book(3, 4, ZOO, 201, A)],
        [A],
        ("shows another booking",),
    ),
    "200 shows another request's booking": (
        [book(1, 2, A, 201), book(3, 4, A, 200, A, tenant="zoo")],
        [A],
        ("shows another booking",),
    ),
    "200 before the winner began": (
        [book(3, 4, A, 201), book(1, 2, A, 200)],
        [A],
        ("200", "has", A),
    ),
    "200 before the winner without response began": (
        [book(3, 4, A, None), book(1, 2, A, 200)],
        [A],
        ("200", "has", A),
    ),
    "409 before the winner began": (
        [book(3, 4, A, 201), book(1, 2, B, 409)],
        [A],
        ("409", "has", A),
    ),
    "409 before the winner with 500 began": (
        [book(3, 4, A, 500), book(1, 2, B, 409)],
        [A],
        ("409", "has", A),
    ),
    "409 for a free slot": ([book(1, 2, A, 409)], [], ("that is free",)),
    "409 because of the request's own booking": (
        [book(1, 2, A, 201), book(3, 4, A, 409)],
        [A],
        ("because of its own booking",),
    ),
    "409 because of the request's own booking without response": (
        [book(1, 2, A, None), book(3, 4, A, 409)],
        [A],
        ("because of its own booking",),
    ),
    "409 although the key was used before": (
        [book(1, 2, A, 201), book(1, 2, EARLY, 201), book(3, 4, EARLY, 409, start=TEN)],
        [A, EARLY],
        ("409", "does not have", EARLY),
    ),
    "422 for an unused key": ([book(1, 2, A, 422)], [], ("no other use",)),
    "422 because of the request's own booking": (
        [book(1, 2, A, 201), book(3, 4, A, 422)],
        [A],
        ("no other use",),
    ),
    "422 before the key was used": (
        [book(3, 4, A, 201), book(1, 2, A, 422, start=NINE)],
        [A],
        ("422", "has", A),
    ),
    "201 after a list with the booking": (
        [book(1, 2, A, None), listed(3, 4, A), book(5, 6, A, 201)],
        [A],
        ("List", "has", A),
    ),
    "list without an acknowledged booking": (
        [book(1, 2, A, 201), listed(3, 4)],
        [A],
        ("List", "does not have", A),
    ),
    "list without a replayed booking": (
        [book(1, 2, A, None), book(3, 4, A, 200), listed(5, 6)],
        [A],
        ("List", "does not have", A, "200", "has", A),
    ),
    "list without a booking that caused 409": (
        [book(1, 2, A, None), book(3, 4, B, 409), listed(5, 6)],
        [A],
        ("List", "does not have", A, "409", "has", A),
    ),
    "list with a booking that had not begun": (
        [book(3, 4, A, 201), listed(1, 2, A)],
        [A],
        ("List", "has", A),
    ),
    "booking vanishes between two lists": (
        [book(1, 9, A, 201), listed(2, 3, A), listed(4, 5)],
        [A],
        ("List", "does not have", A, "List", "has", A),
    ),
    "list with the later booking but not the earlier one": (
        [book(2, 3, A, 201), book(4, 5, EARLY, 201), listed(1, 6, EARLY)],
        [A, EARLY],
        ("List", "has", EARLY, "does not have", A),
    ),
    "two lists, each with a booking that the other lacks": (
        [book(1, 9, A, 201), book(1, 9, EARLY, 201), listed(1, 9, A), listed(1, 9, EARLY)],
        [A, EARLY],
        ("in a circle",),
    ),
    "list of another tenant's bookings": (
        [book(1, 2, ZOO, 201), listed(3, 4, ZOO)],
        [ZOO],
        ("another tenant's",),
    ),
    "list not in order": (
        [book(1, 2, A, 201), book(1, 2, EARLY, 201), listed(3, 4, A, EARLY)],
        [A, EARLY],
        ("not in order",),
    ),
    "list with a booking twice": ([book(1, 2, A, 201), listed(3, 4, A, A)], [A], ("not in order",)),
    "status outside the contract": ([book(1, 2, A, 404)], [], ("not a specified response",)),
    "truncated booking": (
        [book(1, 2, A, None), book(3, 4, A, 200)._replace(body=b'{"id": 1')],
        [A],
        ("not a specified response",),
    ),
    "list with an incomplete booking": (
        [Call(0, 1, 2, List("acme"), 200, b'[{"id": 1}]')],
        [],
        ("not a specified response",),
    ),
}


@pytest.mark.parametrize("name", DEFECTIVE)
def test_checker_names_the_defect(name: str) -> None:
    history, rows, named = DEFECTIVE[name]
    (line,) = violations(history, rows)
    assert_names(line, named)


@pytest.mark.parametrize(
    ("history", "rows", "named"),
    [
        ([book(1, 2, A, 200), book(1, 2, B, 409), listed(3, 4, A)], [A], None),
        ([book(1, 9, A, 200), listed(2, 3), listed(4, 5, A)], [A], None),
        ([book(3, 4, A, 200), book(1, 2, B, 409)], [A], ("409", "has", A)),
        ([book(1, 2, A, 200), listed(3, 4)], [A], ("List", "does not have", A, "200", "has", A)),
        ([book(1, 2, A, 201), book(3, 4, A, 201)], [A], ("created twice",)),
        ([busy(1, 2, A), book(3, 4, B, 409)], [A], ("none with 201",)),
    ],
)
def test_checker_allows_200_without_201_if_statements_are_repeated(
    history: list[Call], rows: list[Booking], named: tuple[object, ...] | None
) -> None:
    found = violations(history, rows, resent=True)
    assert len(found) == bool(named), found
    if named:
        assert_names(found[0], named)


# --- Cancelling

# Each history with the bookings and the cancelled bookings at its end.
LINEARIZABLE_CANCELLING: dict[str, tuple[list[Call], list[Booking], list[Booking]]] = {
    "cancelled twice, the slot is booked anew in between": (
        [book(1, 2, A, 201), cancel(3, 4, A), book(5, 6, B, 201), cancel(7, 8, A)]
        + [listed(9, 10, B)],
        [B],
        [A],
    ),
    "original POST races with its DELETE": (
        [book(1, 2, A, 201), cancel(3, 6, A), book(3, 6, A, 200), book(3, 6, A, 410)],
        [],
        [A],
    ),
    "late requests of the cancelled booking": (
        [book(1, 2, A, 201), cancel(3, 4, A), get(5, 6, A, 410), book(5, 6, A, 410)]
        + [book(5, 6, A, 422, start=NINE), listed(5, 6)],
        [],
        [A],
    ),
    "cancellation without response has no effect": (
        [book(1, 2, A, 201), cancel(3, 4, A, None), get(5, 6, A, 200), book(7, 8, B, 409)],
        [A],
        [],
    ),
    "cancellation without response takes effect later": (
        [book(1, 2, A, 201), cancel(3, 4, A, None), get(5, 6, A, 200), book(7, 8, B, 201)],
        [B],
        [A],
    ),
    "cancellation with 503, then again": (
        [book(1, 2, A, 201), cancel(3, 4, A, 503), listed(5, 6, A), cancel(7, 8, A)],
        [],
        [A],
    ),
    "loser during the DELETE and the next booking": (
        [
            book(1, 2, A, 201),
            cancel(3, 4, A),
            book(5, 9, B, 201),
            book(3, 9, EARLY, 409, start=TEN),
        ],
        [B],
        [A],
    ),
    "list between the DELETE and the next booking": (
        [book(1, 2, A, 201), cancel(3, 9, A), listed(4, 5), book(3, 9, B, 201), listed(7, 8, B)],
        [B],
        [A],
    ),
    "unknown id and another tenant's": (
        [cancel(1, 2, A, 404), book(3, 4, A, 201), cancel(5, 6, A, 404, tenant="zoo")],
        [A],
        [],
    ),
}


@pytest.mark.parametrize("name", LINEARIZABLE_CANCELLING)
def test_checker_accepts_linearizable_cancelling(name: str) -> None:
    assert violations(*LINEARIZABLE_CANCELLING[name]) == []


CANCELLED_A = [book(1, 2, A, 201), cancel(3, 4, A)]
# What follows CANCELLED_A, the bookings and the cancelled bookings at the end, and the finding.
DEFECTIVE_CANCELLING: dict[
    str, tuple[list[Call], list[Booking], list[Booking], tuple[object, ...]]
] = {
    "201 for the key of a cancelled booking": (
        [book(5, 6, A, 201, A._replace(id=2))],
        [A._replace(id=2)],
        [A],
        ("two bookings for one slot, key or id",),
    ),
    "201 for the cancelled booking itself": ([book(5, 6, A, 201)], [], [A], ("created twice",)),
    "200 after the cancellation": (
        [book(5, 6, A, 200)],
        [],
        [A],
        ("200", "precedes the cancellation", A, "precedes", "204"),
    ),
    "409 after the cancellation": ([book(5, 6, B, 409)], [], [A], ("409", "precedes", A)),
    "409 between two bookings of the slot": (
        [book(5, 6, EARLY, 409, start=TEN), book(7, 8, B, 201)],
        [B],
        [A],
        ("no moment fits", "409", "has", A, "or", "409", "has", B),
    ),
    "410 before the cancellation began": ([book(1, 2, A, 410)], [], [A], ("precedes", "410")),
    "410 for a booking that is there": (
        [book(5, 6, B, 201), book(7, 8, B, 410)],
        [B],
        [A],
        ("410", "was not cancelled"),
    ),
    "410 for the key of another request": (
        [book(5, 6, A, 410, start=NINE)],
        [],
        [A],
        ("410", "was not cancelled"),
    ),
    "two live bookings of a slot": (
        [book(5, 6, B, 201), book(5, 6, EARLY._replace(start_time_utc=TEN), 201)],
        [B, EARLY._replace(start_time_utc=TEN)],
        [A],
        ("two bookings for one slot, key or id",),
    ),
    "next booking before the cancellation began": (
        [book(1, 2, B, 201)],
        [B],
        [A],
        ("the cancellation of", A, "precedes", B),
    ),
    "cancelled booking in a later list": (
        [listed(5, 6, A)],
        [],
        [A],
        ("List", "precedes the cancellation", A),
    ),
    "cancelled booking returns to a list": (
        [book(5, 9, B, 201), listed(6, 7, B), listed(7.5, 8, A)],
        [B],
        [A],
        ("List", "precedes the cancellation", A),
    ),
    "list without the next booking": (
        [book(5, 6, B, 201), listed(7, 8)],
        [B],
        [A],
        ("no moment fits", "List", "does not have", B),
    ),
    "booking can be read after the 204": (
        [get(5, 6, A, 200)],
        [],
        [A],
        ("Get", "precedes the cancellation", A),
    ),
    "GET finds nothing after the 201": ([get(2.5, 3, A, 404)], [], [A], ("does not have", A)),
    "GET returns another booking": (
        [book(5, 6, B, 201), get(7, 8, B, 200)._replace(request=Get("acme", 1))],
        [B],
        [A],
        ("shows another booking", B),
    ),
    "DELETE finds nothing after the 204": ([cancel(5, 6, A, 404)], [], [A], ("404", A)),
    "204 for another tenant": ([cancel(5, 6, A, tenant="zoo")], [], [A], ("not cancelled",)),
    "204 for an id that was never given": ([cancel(5, 6, B)], [], [A], ("not cancelled",)),
    "204 and the booking remains": (
        [book(5, 6, B, 201), cancel(7, 8, B)],
        [B],
        [A],
        ("names a booking that was not cancelled", B),
    ),
    "204 and the booking is in both tables": ([], [A], [A], ("is in both tables",)),
    "204 and the booking is in no table": (
        [book(5, 6, B, 201), cancel(7, 8, B)],
        [],
        [A],
        ("is not in the database",),
    ),
    "cancelled without a request": (
        [book(5, 6, B, 201), get(7, 8, B, 410)],
        [],
        [A, B],
        ("the cancellation of", B, "was not requested"),
    ),
    "cancelled by a DELETE that got 404": (
        [cancel(0, 1, B, 404), book(5, 6, B, 201)],
        [],
        [A, B],
        ("the cancellation of", B, "was not requested"),
    ),
    "DELETE of the old id hits the next booking": (
        [book(5, 6, B, 201), cancel(7, 8, A), listed(9, 10)],
        [],
        [A, B],
        ("the cancellation of", B, "was not requested"),
    ),
    "id reused": (
        [book(5, 6, B, 201, B._replace(id=1))],
        [B._replace(id=1)],
        [A],
        ("two bookings for one slot, key or id",),
    ),
    "id lower than an earlier one": (
        [book(5, 6, EARLY, 201), book(7, 8, B, 201)],
        [EARLY, B],
        [A],
        (B, "precedes", EARLY),
    ),
    "two lists that contradict each other in the choice of a 409": (
        [book(5, 9, B, 201), book(5, 9, EARLY, 409, start=TEN), book(9.5, 10, B, 200)]
        + [book(9.5, 10, EARLY, 201), listed(6, 7, EARLY)],
        [B, EARLY],
        [A],
        (EARLY,),
    ),
}


@pytest.mark.parametrize("name", DEFECTIVE_CANCELLING)
def test_checker_names_the_defect_in_cancelling(name: str) -> None:
    history, rows, cancelled, named = DEFECTIVE_CANCELLING[name]
    assert violations(CANCELLED_A, [], [A]) == []
    assert_names(" / ".join(violations([*CANCELLED_A, *history], rows, cancelled)), named)


def test_checker_allows_410_to_the_creator_if_statements_are_repeated() -> None:
    """Another client cancelled the booking before the statement was repeated."""
    history = [book(1, 9, A, 410), cancel(3, 4, A)]
    assert violations(history, [], [A], resent=True) == []
    (line,) = violations(history, [], [A])
    assert_names(line, ("none with 201",))


# --- Comparison with an exhaustive search

HISTORIES = 2000
WANTED = [A, B, EARLY, EARLY._replace(idempotency_key="a")]
# Bookings in the order of their ids, each with whether it was cancelled.
State = tuple[tuple[Booking, bool], ...]


def serve(request: Request, state: State) -> tuple[int, bytes, State]:
    """Return status and body of the response in this state, and the next state: the contract."""
    live = [booking for booking, cancelled in state if not cancelled]
    if isinstance(request, List):
        shown = sorted(live, key=lambda booking: booking.start_time_utc)
        return 200, listed(0, 0, *shown).body, state
    if isinstance(request, Book):
        found = [each for each in state if each[0].idempotency_key == request.key]
        if found and found[0][0].request != request:
            return 422, b"{}", state
        if not found and any(booking.slot == request[:2] for booking in live):
            return 409, b"{}", state
        if not found:
            new = Booking(len(state) + 1, *request, A.created_at)
            return 201, body_of(new), (*state, (new, False))
    else:
        found = [each for each in state if (each[0].tenant_id, each[0].id) == request]
        if not found:
            return 404, b"{}", state
    ((booking, cancelled),) = found
    if isinstance(request, Cancel):
        return 204, b"", tuple((each, gone or each == booking) for each, gone in state)
    return (410, b"{}", state) if cancelled else (200, body_of(booking), state)


def is_explained(calls: Sequence[Call], state: State, end: State, resent: bool) -> bool:
    """Return whether one order explains all responses. Calls without one may have no effect."""
    if state == end and all(call.status is None for call in calls):
        return True
    for call in calls:
        if all(other.status is None or other.ended >= call.began for other in calls):
            status, body, after = serve(call.request, state)
            rest = [other for other in calls if other is not call]
            if (
                call.status in (None, status)
                and call.body in (b"", body)
                and is_explained(rest, after, end, resent)
            ):
                return True
            # The statement is repeated later during the same call.
            again = resent and status == 201 and call.status in (200, 410)
            if again and is_explained(calls, after, end, resent):
                return True
    return False


def random_history(chance: random.Random, resent: bool) -> tuple[list[Call], State]:
    """Return the history of one order, often with one response or its times changed."""
    history: list[Call] = []
    state: State = ()
    for moment in range(2, 2 + chance.randrange(2, 9)):
        request: Request = chance.choice([List("acme"), *(booking.request for booking in WANTED)])
        if chance.random() < 0.5:
            request = chance.choice((Cancel, Cancel, Get))("acme", chance.randrange(1, 4))
        status, body, after = serve(request, state)
        if resent and status == 201 and chance.random() < 0.5:
            status = 200
        lost = chance.random() < 0.2
        state = state if lost and chance.random() < 0.5 else after
        times = (moment - chance.randrange(3), moment + 0.5 + chance.randrange(3))
        history.append(Call(0, *times, request, None if lost else status, b"" if lost else body))
    at = chance.randrange(len(history))
    call = history[at]
    other = tuple((each, chance.random() < 0.5) for each, _ in state[: chance.randrange(9)])
    if chance.random() < 0.4:
        later = chance.randrange(-4, 5)
        history[at] = call._replace(began=call.began + later, ended=call.ended + later)
    elif chance.random() < 0.7 and call.status is not None:
        status, body, _ = serve(call.request, other)
        history[at] = call._replace(status=status, body=body)
    return history, other if chance.random() < 0.1 else state


@pytest.mark.parametrize("resent", [False, True])
def test_checker_agrees_with_exhaustive_search(resent: bool) -> None:
    chance = random.Random(1)
    verdicts: Counter[bool] = Counter()
    for _ in range(HISTORIES):
        history, end = random_history(chance, resent)
        verdict = is_explained(history, (), end, resent)
        rows, cancelled = ([each for each, gone in end if gone == of] for of in (False, True))
        found = violations(history, rows, cancelled, resent)
        assert (found == []) == verdict, ([str(call) for call in history], end, found)
        verdicts[verdict] += 1
    assert min(verdicts.values()) > HISTORIES / 8
