"""Clients that record a history of concurrent calls, and a checker of its linearizability.

`violations` knows only the contract, not the server. Its model is explained above it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import multiprocessing
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from graphlib import CycleError, TopologicalSorter
from typing import Any, NamedTuple, Union
from urllib.parse import quote


class Book(NamedTuple):
    """A POST of a booking. An equal one is the same request, sent again."""

    tenant: str
    start: str
    key: str


class List(NamedTuple):
    """A GET of a tenant's bookings."""

    tenant: str


class Call(NamedTuple):
    """One request to the server on `port`, and its response. All times are of one monotonic clock.

    Without a response the status is None, and the body is the error, or empty if the client closed.
    """

    client: int
    began: float
    ended: float
    request: Book | List
    status: int | None
    body: bytes
    port: int = 0

    def __str__(self) -> str:
        request = " ".join((type(self.request).__name__, *self.request))
        times = f"{self.began:.6f} to {self.ended:.6f}"
        return f"[{request}: {self.status} to client {self.client}, {times}]"

    @property
    def is_uncertain(self) -> bool:
        """Whether the server may have created the booking, then or later, without saying so."""
        if self.status == 503:
            return b"/database-busy" not in self.body
        return self.status in (None, 500)


class Booking(NamedTuple):
    """A booking as responses and rows show it."""

    id: int
    tenant_id: str
    start_time_utc: str
    idempotency_key: str
    created_at: str

    def __str__(self) -> str:
        return f"[{' '.join(map(str, self))}]"

    @property
    def slot(self) -> tuple[str, str]:
        return self.tenant_id, self.start_time_utc

    @property
    def request(self) -> Book:
        return Book(*self.slot, self.idempotency_key)


# --- The checker

# Bookings are only created, never changed or deleted. So each response boils down to facts of the
# form "this booking existed" or "this booking did not exist yet", true at some moment between
# request and response. A history is linearizable if every booking has one moment of creation that
# satisfies all facts.

# The responses of the contract, and the bookings in each: one, several or none.
_BOOKINGS_IN: dict[tuple[type, int | None], Callable[[Any], list[Booking]]] = {
    **dict.fromkeys([(Book, 201), (Book, 200)], lambda document: [Booking(**document)]),
    (List, 200): lambda document: [Booking(**each) for each in document],
    **dict.fromkeys([(Book, each) for each in (409, 422, 500, 503, 507)], lambda document: []),
    **dict.fromkeys([(List, status) for status in (500, 503)], lambda document: []),
}

# The creation of a booking, or a call. Each happened at one moment.
_Event = Union[Booking, Call]
# Pairs of events; the first happened before the second.
_Facts = list[tuple[_Event, _Event]]


def violations(
    history: Iterable[Call], rows: Iterable[Sequence[Any]], resent: bool = False
) -> list[str]:
    """Return a line for each violation of the contract; none for a linearizable history.

    `rows` are the five columns of each booking at the end, in any order. The table was empty at the
    start. With `resent`, the server repeats an INSERT by itself when its database does not respond,
    as on a cluster. The request that created the booking may then get 200, and none get 201.
    """
    found: list[str] = []
    answered: list[tuple[Call, list[Booking]]] = []
    sent: dict[Book, list[Call]] = defaultdict(list)
    for call in history:
        if isinstance(call.request, Book):
            sent[call.request].append(call)
        if call.status is not None:
            try:
                bookings_in = _BOOKINGS_IN[type(call.request), call.status]
                answered.append((call, bookings_in(json.loads(call.body))))
            except (KeyError, TypeError, ValueError):
                found.append(f"{call} is not a specified response: {call.body!r}")
    stored = {Booking(*row) for row in rows}
    # Each booking and its first source. If two bookings claim a slot, the stored one counts.
    shown: dict[Booking, object] = dict.fromkeys(stored, "the database")
    for call, bookings in answered:
        for booking in bookings:
            shown.setdefault(booking, call)
    by_slot: dict[tuple[str, str], Booking] = {}
    by_key: dict[str, Booking] = {}
    by_id: dict[int, Booking] = {}
    for booking, source in shown.items():
        firsts = (
            by_slot.setdefault(booking.slot, booking),
            by_key.setdefault(booking.idempotency_key, booking),
            by_id.setdefault(booking.id, booking),
        )
        for other in {*firsts} - {booking}:
            both = f"{other} in {shown[other]}, {booking} in {source}"
            found.append(f"two bookings for one slot, key or id: {both}")
    for booking in by_slot.values():
        if booking not in stored:
            found.append(f"{booking}, shown by {shown[booking]}, is not in the database")
    created = {
        booking: _creation_span(booking, sent[booking.request], resent, found) for booking in shown
    }
    facts: _Facts = []
    first_response: dict[Booking, Call] = {}
    for call, bookings in answered:
        if isinstance(call.request, List):
            facts += _facts_of_list(call, bookings, by_slot, found)
        else:
            facts += _facts_of_book(call, call.request, bookings, by_slot, by_key, found)
            first = first_response.setdefault(bookings[0], call) if bookings else call
            if first.body != call.body:
                found.append(f"{call} is not byte for byte the response of {first}")
    return found + _order_violations(facts, created)


def _creation_span(
    booking: Booking, sent: Sequence[Call], resent: bool, found: list[str]
) -> tuple[float, float]:
    """Return the earliest and the latest moment at which the booking can have been created.

    That is during the call with 201, or else any time after the first uncertain call began. A 200
    is one of the facts and limits the span later.
    """
    created = [call for call in sent if call.status == 201]
    began = [call.began for call in sent if call.is_uncertain or (resent and call.status == 200)]
    if not sent:
        found.append(f"{booking} was never requested")
    elif not created and not began:
        found.append(f"{booking} was created, but all its requests got responses, none with 201")
    for again in created[1:]:
        found.append(f"{booking} was created twice: {created[0]} and {again}")
    if created:
        return created[0].began, created[0].ended
    return min(began, default=-math.inf), math.inf


def _facts_of_book(
    call: Call,
    request: Book,
    bookings: Sequence[Booking],
    by_slot: dict[tuple[str, str], Booking],
    by_key: dict[str, Booking],
    found: list[str],
) -> _Facts:
    holder = by_slot.get((request.tenant, request.start))
    key_user = by_key.get(request.key)
    if bookings:
        if bookings[0].request != request:
            found.append(f"{call} shows another booking: {bookings[0]}")
        # The call with 201 is the creation itself, see _creation_span.
        elif call.status == 200 and holder:
            return [(holder, call)]
    elif call.status == 409:
        if not holder:
            found.append(f"{call} was rejected for a slot that is free")
        elif holder.request == request:
            found.append(f"{call} was rejected because of its own booking: {holder}")
        else:
            # A used key takes precedence: with it, the response would have been 422.
            return [(holder, call), *([(call, key_user)] if key_user else [])]
    elif call.status == 422:
        if not key_user or key_user.request == request:
            found.append(f"{call} was rejected for a key that has no other use")
        else:
            return [(key_user, call)]
    return []


def _facts_of_list(
    call: Call,
    bookings: Sequence[Booking],
    by_slot: dict[tuple[str, str], Booking],
    found: list[str],
) -> _Facts:
    if call.status != 200:
        return []
    starts = [booking.start_time_utc for booking in bookings]
    if starts != sorted(set(starts)):
        found.append(f"{call} is not in order: {starts}")
    for booking in bookings:
        if booking.tenant_id != call.request.tenant:
            found.append(f"{call} shows another tenant's booking: {booking}")
    listed = {booking.slot for booking in bookings}
    return [
        (booking, call) if slot in listed else (call, booking)
        for slot, booking in by_slot.items()
        if slot[0] == call.request.tenant
    ]


def _order_violations(facts: _Facts, created: dict[Booking, tuple[float, float]]) -> list[str]:
    """Find cycles, and events that ended before an event that precedes them could begin."""
    before: dict[_Event, list[_Event]] = {booking: [] for booking in created}
    for first, second in facts:
        before.setdefault(second, []).append(first)
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        return [f"contradictory facts, in a circle: {_chain(error.args[1])}"]
    found = []
    earliest: dict[_Event, tuple[float, list[_Event]]] = {}
    for event in order:
        began, ended = (event.began, event.ended) if isinstance(event, Call) else created[event]
        # The earliest moment, and the chain of preceding events that determines it.
        moment, chain = max(
            (earliest[first] for first in before.get(event, ())),
            key=lambda each: each[0],
            default=(began, []),
        )
        moment, chain = (moment, [*chain, event]) if moment > began else (began, [event])
        if moment > ended:
            found.append(f"out of order, by {moment - ended:.6f} s: {_chain(chain)}")
            moment, chain = ended, [event]
        earliest[event] = moment, chain
    return found


def _chain(events: Sequence[_Event]) -> str:
    return "; ".join(
        f"{second} has {first}" if isinstance(first, Booking) else f"{first} does not have {second}"
        for first, second in zip(events, events[1:])
    )


# --- The clients

# Small numbers, so that clients compete: fewer slots per round than clients, and more keys than
# slots, so that some requests lose the slot and others reuse a key.
TENANTS = ("acme", "zoo")
SLOTS = 2
KEYS = 6
CALLS = 3
# Share of bookings whose client closes the connection before the response.
HANG_UP = 0.1
# Timeout for a final response, and for all clients to reach the next round.
SECONDS = 20.0
# Longest pause between two attempts. It is random, so that some retries meet the first attempt.
PAUSE = 0.02


def run_client(
    number: int, ports: Sequence[int], rounds: int, gate: Any, record: Callable[[Call], None]
) -> None:
    """Send CALLS requests per round, each to one server after another until it is decided."""
    chance = random.Random(number)
    turn, won = number, None
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(
                contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS))
            )
            for port in ports
        ]
        for this in range(rounds):
            gate.wait(SECONDS)
            for _ in range(CALLS):
                # After a 201, check that the next server lists the booking.
                request = List(won.tenant) if won else _choose(chance, this)
                deadline = time.monotonic() + SECONDS
                while True:
                    hang_up = isinstance(request, Book) and chance.random() < HANG_UP
                    call = send(number, servers[turn % len(servers)], request, hang_up)
                    turn += 1
                    record(call)
                    if call.status not in (None, 500, 503):
                        break
                    assert time.monotonic() < deadline, f"{call}: undecided for {SECONDS} s"
                    time.sleep(chance.random() * PAUSE)
                won = request if call.status == 201 else None


def _choose(chance: random.Random, this: int) -> Book | List:
    """Choose a request of this round or, sometimes, of an earlier one."""
    tenant = chance.choice(TENANTS)
    if chance.random() < 0.1:
        return List(tenant)
    then = chance.choice((this, this, this, this, chance.randrange(this + 1)))
    slot = SLOTS * then + chance.randrange(SLOTS)
    key = f"{chance.choice((then, then, then, this))}/{chance.randrange(KEYS)}"
    return Book(tenant, f"2026-01-01T{slot // 60:02}:{slot % 60:02}:00Z", key)


def send(
    number: int, server: http.client.HTTPConnection, request: Book | List, hang_up: bool = False
) -> Call:
    """Send the request once and return the call. With `hang_up`, close before the response."""
    method, target, body = "GET", f"/bookings?tenant_id={quote(request.tenant)}", None
    if isinstance(request, Book):
        document = {"start_time_utc": request.start, "idempotency_key": request.key}
        method, target, body = (
            "POST",
            "/bookings",
            json.dumps({"tenant_id": request.tenant, **document}),
        )
    status, content, began = None, b"", time.monotonic()
    try:
        server.request(method, target, body, {"Content-Type": "application/json"} if body else {})
        if hang_up:
            server.close()
        else:
            response = server.getresponse()
            status, content = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        status, content = None, repr(error).encode()
        server.close()  # the next request reconnects
    return Call(number, began, time.monotonic(), request, status, content, server.port)


def run_in_threads(
    clients: int, ports: Sequence[int], rounds: int, record: Callable[[Call], None]
) -> None:
    """Run clients in threads of this process; `record` gets each call when it has ended."""
    gate = threading.Barrier(clients)
    with ThreadPoolExecutor(clients) as pool:
        for client in [
            pool.submit(run_client, each, ports, rounds, gate, record) for each in range(clients)
        ]:
            client.result()


def run_in_processes(clients: int, ports: Sequence[int], rounds: int) -> list[Call]:
    """Run each client in a process of its own; return all their calls."""
    # Not fork: it would copy this process while other tests have threads.
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(clients), context.Queue()
    processes = [
        context.Process(target=_run_process, args=(each, ports, rounds, gate, results), daemon=True)
        for each in range(clients)
    ]
    for process in processes:
        process.start()
    history = [call for _ in processes for call in results.get(timeout=2 * SECONDS)]
    for process in processes:
        process.join(SECONDS)
    return history


def _run_process(number: int, ports: Sequence[int], rounds: int, gate: Any, results: Any) -> None:
    history: list[Call] = []
    run_client(number, ports, rounds, gate, history.append)
    results.put(history)
