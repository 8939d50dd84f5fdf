"""One order explains whatever concurrent clients were told, through threads, processes, two servers and restarts.

First the judge itself, by histories made by hand, each with one defect, and by small ones made at random, on which it
must agree with trying every order. Then real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.histories import (
    Book,
    Booking,
    Call,
    List,
    run_in_processes,
    run_in_threads,
    violations,
)
from tests.helpers.servers import ROOT, Server, patched, until

NINE, TEN = "2026-01-01T09:00:00Z", "2026-01-01T10:00:00Z"
A = Booking(1, "acme", TEN, "a", "2026-11-22T16:00:00Z")
B = Booking(2, "acme", TEN, "b", "2026-11-22T16:00:00Z")
EARLY = Booking(3, "acme", NINE, "early", "2026-11-22T16:00:00Z")
ZOO = Booking(4, "zoo", TEN, "z", "2026-11-22T16:00:00Z")


def book(
    began: float, ended: float, wanted: Booking, status: int | None, shown: Any = None, **other: str
) -> Call:
    """The request that `wanted` is the booking of, save for `other`; 200 and 201 show it unless told otherwise."""
    document = shown or (wanted if status in (200, 201) else None)
    body = b"" if status is None else json.dumps(document._asdict() if document else {}).encode()
    return Call(0, began, ended, wanted.request._replace(**other), status, body)


def listed(began: float, ended: float, *shown: Booking, tenant: str = "acme") -> Call:
    return Call(0, began, ended, List(tenant), 200, json.dumps([each._asdict() for each in shown]).encode())


def busy(began: float, ended: float, wanted: Booking) -> Call:
    return book(began, ended, wanted, 503)._replace(body=b'{"type": "/problems/database-busy"}')


IN_ORDER: dict[str, tuple[list[Call], list[Booking]]] = {
    "nothing": ([], []),
    "a winner, its retry and a loser": (
        [book(1, 2, A, 201), book(3, 4, A, 200), book(3, 4, B, 409)],
        [A],
    ),
    "loser and retry begin before the winner and end while it runs": (
        [book(2, 9, A, 201), book(1, 3, A, 200), book(1, 3, B, 409)],
        [A],
    ),
    "a loser is told at the tick of the clock at which the winner begins": (
        [book(2, 3, A, 201), book(1, 2, B, 409)],
        [A],
    ),
    "the winner had no answer": ([book(1, 2, A, None), book(3, 4, A, 200)], [A]),
    "the winner had no answer, and came in later": (
        [book(1, 2, A, None), listed(3, 4), book(5, 6, B, 409), listed(7, 8, A)],
        [A],
    ),
    "only the rows show the winner": ([book(1, 2, A, None)], [A]),
    "no answer and no booking": ([book(1, 2, A, None), book(3, 4, B, 201)], [B]),
    "the first try did not come in, the second did": ([book(1, 2, A, None), book(3, 4, A, 201)], [A]),
    "after 500 the booking is there": ([book(1, 2, A, 500), book(3, 4, A, 200)], [A]),
    "after 503 the booking is there": ([book(1, 2, A, 503), book(3, 4, A, 200)], [A]),
    "after 503 it is not, and the next try makes it": ([busy(1, 2, A), book(3, 4, A, 201)], [A]),
    "a key of another slot, and of another tenant": (
        [book(1, 2, A, 201), book(3, 4, A, 422, start=NINE), book(3, 4, A, 422, tenant="zoo")],
        [A],
    ),
    "a key that loses a slot, wins another and is then used": (
        [book(1, 2, A, 201), book(3, 4, EARLY, 409, start=TEN), book(5, 6, EARLY, 201)]
        + [book(7, 8, EARLY, 422, start=TEN)],
        [A, EARLY],
    ),
    "tenants apart": ([book(1, 2, A, 201), book(1, 2, ZOO, 201), listed(3, 4, ZOO, tenant="zoo")], [A, ZOO]),
    "a list while the booking is made, with it or without": (
        [book(1, 9, A, 201), listed(2, 3), listed(4, 5, A)],
        [A],
    ),
    "a list that begins later and knows less, while both run": (
        [book(1, 9, A, 201), listed(2, 8, A), listed(3, 7)],
        [A],
    ),
    "lists in order": ([book(1, 2, A, 201), book(3, 4, EARLY, 201), listed(5, 6, EARLY, A)], [EARLY, A]),
    "a list without an answer": ([Call(0, 1, 2, List("acme"), None, b""), listed(3, 4)], []),
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_a_history_in_order(name: str) -> None:
    assert violations(*IN_ORDER[name]) == []


OUT_OF_ORDER: dict[str, tuple[list[Call], list[Booking], tuple[object, ...]]] = {
    "two winners of a slot": ([book(1, 2, A, 201), book(1, 2, B, 201)], [A, B], ("two bookings for one",)),
    "two winners, one row": ([book(1, 2, A, 201), book(1, 2, B, 201)], [A], ("two bookings for one",)),
    "one request created twice": ([book(1, 2, A, 201), book(1, 2, A, 201)], [A], ("created twice",)),
    "a key that books twice": (
        [book(1, 2, A, 201), book(3, 4, EARLY._replace(idempotency_key="a"), 201)],
        [A, EARLY._replace(idempotency_key="a")],
        ("two bookings for one",),
    ),
    "an id that is given twice": (
        [book(1, 2, A, 201), book(3, 4, EARLY._replace(id=1), 201)],
        [A, EARLY._replace(id=1)],
        ("two bookings for one",),
    ),
    "nobody was told 201": ([book(1, 2, A, 200)], [A], ("none with 201",)),
    "booked by who was told that nothing was": ([busy(1, 2, A)], [A], ("none with 201",)),
    "a row that nobody asked for": ([book(1, 2, B, None)], [A], ("never requested",)),
    "a listed booking that nobody asked for": ([listed(1, 2, A)], [A], ("never requested",)),
    "201 for a booking that is gone": ([book(1, 2, A, 201)], [], ("is not in the database",)),
    "a row that is not what was answered": (
        [book(1, 2, A, 201)],
        [A._replace(created_at="2026-11-22T16:00:01Z")],
        ("two bookings for one",),
    ),
    "a retry that shows another time": (
        [book(1, 2, A, 201), book(3, 4, A, 200, A._replace(created_at="2026-11-22T16:00:01Z"))],
        [A],
        ("two bookings for one",),
    ),
    "a retry in other bytes": (
        [book(1, 2, A, 201), book(3, 4, A, 200)._replace(body=book(3, 4, A, 200).body + b"\n")],
        [A],
        ("not byte for byte",),
    ),
    "201 that shows another's booking": (
        [book(1, 2, A, 201), book(3, 4, ZOO, 201, A)],
        [A],
        ("shows another booking",),
    ),
    "200 that shows another's booking": (
        [book(1, 2, A, 201), book(3, 4, A, 200, A, tenant="zoo")],
        [A],
        ("shows another booking",),
    ),
    "200 before the winner began": ([book(3, 4, A, 201), book(1, 2, A, 200)], [A], ("200", "has", A)),
    "200 before the unanswered winner began": (
        [book(3, 4, A, None), book(1, 2, A, 200)],
        [A],
        ("200", "has", A),
    ),
    "409 before the winner began": ([book(3, 4, A, 201), book(1, 2, B, 409)], [A], ("409", "has", A)),
    "409 before the unanswered winner began": (
        [book(3, 4, A, 500), book(1, 2, B, 409)],
        [A],
        ("409", "has", A),
    ),
    "409 for a slot that nobody has": ([book(1, 2, A, 409)], [], ("that is free",)),
    "409 by the client's own booking": (
        [book(1, 2, A, 201), book(3, 4, A, 409)],
        [A],
        ("because of its own booking",),
    ),
    "409 by the client's own unanswered booking": (
        [book(1, 2, A, None), book(3, 4, A, 409)],
        [A],
        ("because of its own booking",),
    ),
    "409 where the key was used before": (
        [book(1, 2, A, 201), book(1, 2, EARLY, 201), book(3, 4, EARLY, 409, start=TEN)],
        [A, EARLY],
        ("409", "does not have", EARLY),
    ),
    "422 for a key that was never used": ([book(1, 2, A, 422)], [], ("no other use",)),
    "422 for one's own booking": ([book(1, 2, A, 201), book(3, 4, A, 422)], [A], ("no other use",)),
    "422 before the key was used": (
        [book(3, 4, A, 201), book(1, 2, A, 422, start=NINE)],
        [A],
        ("422", "has", A),
    ),
    "201 after a list that has the booking": (
        [book(1, 2, A, None), listed(3, 4, A), book(5, 6, A, 201)],
        [A],
        ("List", "has", A),
    ),
    "a list without what was acknowledged": (
        [book(1, 2, A, 201), listed(3, 4)],
        [A],
        ("List", "does not have", A),
    ),
    "a list without what a retry was told of": (
        [book(1, 2, A, None), book(3, 4, A, 200), listed(5, 6)],
        [A],
        ("List", "does not have", A, "200", "has", A),
    ),
    "a list without what has refused another": (
        [book(1, 2, A, None), book(3, 4, B, 409), listed(5, 6)],
        [A],
        ("List", "does not have", A, "409", "has", A),
    ),
    "a list before the booking began": ([book(3, 4, A, 201), listed(1, 2, A)], [A], ("List", "has", A)),
    "a booking that vanishes between two lists": (
        [book(1, 9, A, 201), listed(2, 3, A), listed(4, 5)],
        [A],
        ("List", "does not have", A, "List", "has", A),
    ),
    "a list with the later booking but not the earlier": (
        [book(2, 3, A, 201), book(4, 5, EARLY, 201), listed(1, 6, EARLY)],
        [A, EARLY],
        ("List", "has", EARLY, "does not have", A),
    ),
    "two lists, each with what the other lacks": (
        [book(1, 9, A, 201), book(1, 9, EARLY, 201), listed(1, 9, A), listed(1, 9, EARLY)],
        [A, EARLY],
        ("in a circle",),
    ),
    "a list of another tenant's bookings": (
        [book(1, 2, ZOO, 201), listed(3, 4, ZOO)],
        [ZOO],
        ("another tenant's",),
    ),
    "a list in disorder": (
        [book(1, 2, A, 201), book(1, 2, EARLY, 201), listed(3, 4, A, EARLY)],
        [A, EARLY],
        ("not in order",),
    ),
    "a list with a booking twice": ([book(1, 2, A, 201), listed(3, 4, A, A)], [A], ("not in order",)),
    "a status that is none of those": ([book(1, 2, A, 404)], [], ("not a specified response",)),
    "a booking that is cut off": (
        [book(1, 2, A, None), book(3, 4, A, 200)._replace(body=b'{"id": 1')],
        [A],
        ("not a specified response",),
    ),
    "a list with a stranger thing in it": (
        [Call(0, 1, 2, List("acme"), 200, b'[{"id": 1}]')],
        [],
        ("not a specified response",),
    ),
}


@pytest.mark.parametrize("name", OUT_OF_ORDER)
def test_a_history_with_one_defect(name: str) -> None:
    history, rows, named = OUT_OF_ORDER[name]
    (line,) = violations(history, rows)
    assert re.search(".*".join(re.escape(str(words)) for words in named), line), line


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
def test_where_whoever_made_it_may_be_told_200(
    history: list[Call], rows: list[Booking], named: tuple[object, ...] | None
) -> None:
    """A server that asks its database again is forgiven that, and nothing else."""
    found = violations(history, rows, resent=True)
    assert len(found) == bool(named), found
    assert not named or re.search(".*".join(re.escape(str(words)) for words in named), found[0]), found


# --- Against trying every order

ASKED = [A, B, EARLY, EARLY._replace(id=5, idempotency_key="a")]


def serve(request: Book | List, state: frozenset[Booking]) -> tuple[int, bytes, frozenset[Booking]]:
    """What is answered in this state, and the state after it: all that the service is to do, one by one."""
    if isinstance(request, List):
        shown = sorted(state, key=lambda booking: booking.start_time_utc)
        return 200, listed(0, 0, *shown).body, state
    wanted = next(booking for booking in ASKED if booking.request == request)
    if wanted in state:
        status = 200
    elif any(booking.idempotency_key == request.key for booking in state):
        status = 422
    elif any(booking.slot == wanted.slot for booking in state):
        status = 409
    else:
        status, state = 201, state | {wanted}
    return status, book(0, 0, wanted, status).body, state


def is_explained(
    calls: Sequence[Call], state: frozenset[Booking], rows: frozenset[Booking], resent: bool
) -> bool:
    """Whether there is an order of these calls, and of those without an answer that had an effect."""
    if state == rows and all(call.status is None for call in calls):
        return True
    for call in calls:
        if all(other.status is None or other.ended >= call.began for other in calls):
            status, body, after = serve(call.request, state)
            rest = [other for other in calls if other is not call]
            statuses = (None, status, 200) if resent and status == 201 else (None, status)
            if (
                call.status in statuses
                and call.body in (b"", body)
                and is_explained(rest, after, rows, resent)
            ):
                return True
    return False


def made_up(chance: random.Random, resent: bool) -> tuple[list[Call], frozenset[Booking]]:
    """A history of one order, in which then perhaps an answer or its time was changed."""
    history: list[Call] = []
    state: frozenset[Booking] = frozenset()
    requests: list[Book | List] = [List("acme"), *(booking.request for booking in ASKED)]
    for moment in range(2, 2 + chance.randrange(2, 7)):
        request = chance.choice(requests)
        status, body, after = serve(request, state)
        if resent and status == 201 and chance.random() < 0.5:
            status = 200
        lost = chance.random() < 0.2
        state = state if lost and chance.random() < 0.5 else after
        times = (moment - chance.randrange(3), moment + 0.5 + chance.randrange(3))
        history.append(Call(0, *times, request, None if lost else status, b"" if lost else body))
    at = chance.randrange(len(history))
    call = history[at]
    if chance.random() < 0.3:
        later = chance.randrange(-4, 5)
        history[at] = call._replace(began=call.began + later, ended=call.ended + later)
    elif chance.random() < 0.5 and call.status is not None:
        status, body, _ = serve(call.request, frozenset(chance.sample(ASKED, chance.randrange(3))))
        history[at] = call._replace(status=status, body=body)
    return history, state


@pytest.mark.parametrize("resent", [False, True])
def test_the_judge_agrees_with_trying_every_order(resent: bool) -> None:
    chance = random.Random(1)
    verdicts: Counter[bool] = Counter()
    for _ in range(2000):
        history, rows = made_up(chance, resent)
        verdict = is_explained(history, frozenset(), rows, resent)
        assert (violations(history, sorted(rows), resent) == []) == verdict, [str(call) for call in history]
        verdicts[verdict] += 1
    assert min(verdicts.values()) > 300


# --- Real histories


def rows(server: Server) -> list[Any]:
    with contextlib.closing(sqlite3.connect(server.database)) as db:
        return db.execute(
            "SELECT id, tenant_id, start_time_utc, idempotency_key, created_at FROM bookings"
        ).fetchall()


def assert_in_order(history: Sequence[Call], stored: list[Any]) -> None:
    """No violation, in a history in which clients have met: there are enough answers of each kind."""
    assert violations(history, stored) == []
    counts = Counter((type(call.request), call.status) for call in history)
    won = {call.request: call for call in history if call.status == 201}
    # Those who were refused while the winner was being told, and winners who were told later or never.
    at_once = sum(
        call.status == 409 and any(call.began < other.ended and other.began < call.ended for other in winners)
        for call in history
        for winners in [[other for other in won.values() if other.request[:2] == call.request[:2]]]
    )
    assert counts[Book, 201] >= ROUNDS, counts
    assert counts[Book, 200] >= ROUNDS / 2, counts
    assert counts[Book, 409] >= ROUNDS, counts
    assert counts[Book, 422] >= ROUNDS, counts
    assert counts[List, 200] >= ROUNDS, counts
    assert len(stored) - len(won) >= ROUNDS / 20, counts
    assert at_once >= ROUNDS / 6, at_once


CLIENTS = 8
ROUNDS = 40


def test_threads_and_one_server(tmp_path: Path) -> None:
    history: list[Call] = []
    with contextlib.closing(Server(tmp_path, "--workers", "1")) as server:
        run_in_threads(CLIENTS, [server.port], ROUNDS, history.append)
        assert_in_order(history, rows(server))
        assert server.log.read_text() == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is one process where there is no fork")
def test_processes_and_two_workers(tmp_path: Path) -> None:
    with contextlib.closing(Server(tmp_path, "--workers", "2")) as server:
        history = run_in_processes(CLIENTS // 2, [server.port], 2 * ROUNDS)
        assert_in_order(history, rows(server))
        assert server.log.read_text() == ""


def test_clients_that_alternate_between_two_servers_on_one_database(tmp_path: Path) -> None:
    """One of which does not wait in line for the write lock: who is served first must not matter."""
    history: list[Call] = []
    pusher = patched(tmp_path, "store.fcntl = None")
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(contextlib.closing(Server(tmp_path, program=program)))
            for program in (ROOT / "run.py", pusher)
        ]
        run_in_threads(CLIENTS, [server.port for server in servers], ROUNDS, history.append)
        assert_in_order(history, rows(servers[0]))
        assert servers[0].log.read_text() == ""


def is_refused(server: Server) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", server.port)) != 0


def killed(server: Server) -> None:
    server.close()
    # Its workers die with it, but not at the very moment.
    until(lambda: is_refused(server))


def stopped(server: Server) -> None:
    assert server.stop() == 0


@pytest.mark.parametrize(
    "end",
    [
        killed,
        pytest.param(
            stopped, marks=pytest.mark.skipif(os.name == "nt", reason="Windows knows no orderly SIGTERM")
        ),
    ],
)
def test_through_restarts(tmp_path: Path, end: Callable[[Server], None]) -> None:
    restarts = 3
    history: list[Call] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(Server(tmp_path)))
        load = stack.enter_context(ThreadPoolExecutor(1)).submit(
            run_in_threads, CLIENTS, [server.port], ROUNDS, history.append
        )
        for restart in range(1, restarts + 1):
            # Half of the answers come before the last restart: each client gets three in a round.
            enough = restart * ROUNDS * CLIENTS / 2
            until(lambda enough=enough: sum(call.status is not None for call in history) > enough)  # type: ignore[misc]
            assert not load.done()
            end(server)
            server = Server(tmp_path, "--port", str(server.port))
            stack.enter_context(contextlib.closing(server))
        load.result()
        assert_in_order(history, rows(server))
        assert server.log.read_text() == ""
