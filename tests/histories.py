"""What concurrent clients were told, and whether one order of all of it explains every answer.

`in_threads` and `in_processes` send clients that book and list the same few slots under the same few keys, and record
each request with its answer. `violations` judges such a history, whatever server answered: it knows no SQL.

Bookings are made and never changed or removed. So each answer comes down to facts of two kinds, this booking was there
and that one was not yet, true at some moment between the request and its answer. A history is in order if every
booking can be given one moment of its making that agrees with all the facts, which is what linearizable means here.
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
    """The request for a booking. Two that are equal are one request, sent again."""

    tenant: str
    start: str
    key: str


class List(NamedTuple):
    """The request for a tenant's bookings."""

    tenant: str


class Call(NamedTuple):
    """A request that was sent once, to the server on this port. Both times are of one clock.

    The status is None where no answer came; the body then says why not, unless it was the client that hung up.
    """

    client: int
    began: float
    ended: float
    request: Book | List
    status: int | None
    body: bytes
    port: int = 0

    def __str__(self) -> str:
        asked = " ".join((type(self.request).__name__, *self.request))
        return f"[{asked}: {self.status} to client {self.client}, {self.began:.6f} to {self.ended:.6f}]"

    @property
    def is_uncertain(self) -> bool:
        """Whether a booking may have been made, at once or later, though the answer does not say so."""
        return self.status in (None, 500) or (self.status == 503 and b"/database-busy" not in self.body)


class Booking(NamedTuple):
    """A booking as every answer and every row shows it."""

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


# --- The judge

# What may be answered: one booking, several, or none.
_SHOWN: dict[tuple[type, int | None], Callable[[Any], list[Booking]]] = {
    **dict.fromkeys([(Book, 201), (Book, 200)], lambda document: [Booking(**document)]),
    (List, 200): lambda document: [Booking(**each) for each in document],
    **dict.fromkeys([(Book, status) for status in (409, 422, 500, 503, 507)], lambda document: []),
    **dict.fromkeys([(List, status) for status in (500, 503)], lambda document: []),
}

# A booking's making or a call, each of which happened at one moment.
_Event = Union[Booking, Call]  # noqa: UP007 - before Python 3.10 it is evaluated in vain
# Pairs of events, the first of which came first.
_Facts = list[tuple[_Event, _Event]]


def violations(history: Iterable[Call], rows: Iterable[Sequence[Any]], resent: bool = False) -> list[str]:
    """All that should not have happened, a line for each; none for a history that is in order.

    `rows` are the five columns of each booking at the end, in an order of their own. The database was empty at first.
    With `resent`, a server that has had no answer from its database asks again by itself, as on a cluster: whoever made
    the booking may be told 200, as if it had been there before, and no client was told 201.
    """
    found: list[str] = []
    answered: list[tuple[Call, list[Booking]]] = []
    sent: dict[Book, list[Call]] = defaultdict(list)
    for call in history:
        if isinstance(call.request, Book):
            sent[call.request].append(call)
        if call.status is not None:
            try:
                answered.append((call, _SHOWN[type(call.request), call.status](json.loads(call.body))))
            except (KeyError, TypeError, ValueError):
                found.append(f"{call} is no answer that is promised: {call.body!r}")
    stored = {Booking(*row) for row in rows}
    # Each booking with whoever was the first to show it. Where two claim one slot, the stored one is taken to hold it.
    shown: dict[Booking, object] = dict.fromkeys(stored, "the database")
    for call, bookings in answered:
        for booking in bookings:
            shown.setdefault(booking, call)
    by_slot: dict[tuple[str, str], Booking] = {}
    by_key: dict[str, Booking] = {}
    by_id: dict[int, Booking] = {}
    for booking, where in shown.items():
        firsts = (
            by_slot.setdefault(booking.slot, booking),
            by_key.setdefault(booking.idempotency_key, booking),
            by_id.setdefault(booking.id, booking),
        )
        for other in {*firsts} - {booking}:
            both = f"{other} in {shown[other]}, {booking} in {where}"
            found.append(f"two bookings for one slot, key or id: {both}")
    for booking in by_slot.values():
        if booking not in stored:
            found.append(f"{booking}, shown by {shown[booking]}, is not in the database")
    made = {booking: _made(booking, sent[booking.request], resent, found) for booking in shown}
    facts: _Facts = []
    first_told: dict[Booking, Call] = {}
    for call, bookings in answered:
        if isinstance(call.request, List):
            facts += _told_by_list(call, bookings, by_slot, found)
        else:
            facts += _told_by_booking(call, call.request, bookings, by_slot, by_key, found)
            first = first_told.setdefault(bookings[0], call) if bookings else call
            if first.body != call.body:
                found.append(f"{call} is not byte for byte what {first} was")
    return found + _disorder(facts, made)


def _made(booking: Booking, sent: Sequence[Call], resent: bool, found: list[str]) -> tuple[float, float]:
    """Between which moments it was made: while the request ran that was told so, or else any time after the first
    request whose answer does not say. That the booking was there before a 200 is one of the facts."""
    created = [call for call in sent if call.status == 201]
    began = [call.began for call in sent if call.is_uncertain or (resent and call.status == 200)]
    if not sent:
        found.append(f"{booking} was never asked for")
    elif not created and not began:
        found.append(f"{booking} was made, but all who asked for it were answered, and none with 201")
    for again in created[1:]:
        found.append(f"{booking} was created twice: {created[0]} and {again}")
    if created:
        return created[0].began, created[0].ended
    return min(began, default=-math.inf), math.inf


def _told_by_booking(
    call: Call,
    request: Book,
    bookings: Sequence[Booking],
    by_slot: dict[tuple[str, str], Booking],
    by_key: dict[str, Booking],
    found: list[str],
) -> _Facts:
    holder, user = by_slot.get((request.tenant, request.start)), by_key.get(request.key)
    if bookings:
        if bookings[0].request != request:
            found.append(f"{call} shows another booking: {bookings[0]}")
        # The call that was told 201 is the making itself, see _made.
        elif call.status == 200 and holder:
            return [(holder, call)]
    elif call.status == 409:
        if not holder:
            found.append(f"{call} was refused for a slot that nobody has")
        elif holder.request == request:
            found.append(f"{call} was refused by its own booking: {holder}")
        else:
            # The key comes before the slot: had it been used already, this would have been 422.
            return [(holder, call), *([(call, user)] if user else [])]
    elif call.status == 422:
        if not user or user.request == request:
            found.append(f"{call} was refused for a key that has no other use")
        else:
            return [(user, call)]
    return []


def _told_by_list(
    call: Call, bookings: Sequence[Booking], by_slot: dict[tuple[str, str], Booking], found: list[str]
) -> _Facts:
    if call.status != 200:
        return []
    starts = [booking.start_time_utc for booking in bookings]
    if starts != sorted(set(starts)):
        found.append(f"{call} is not in order: {starts}")
    for booking in bookings:
        if booking.tenant_id != call.request.tenant:
            found.append(f"{call} shows another tenant's booking: {booking}")
    there = {booking.slot for booking in bookings}
    return [
        (booking, call) if slot in there else (call, booking)
        for slot, booking in by_slot.items()
        if slot[0] == call.request.tenant
    ]


def _disorder(facts: _Facts, made: dict[Booking, tuple[float, float]]) -> list[str]:
    """What cannot have a moment of its own: it was over before that could begin which came first."""
    before: dict[_Event, list[_Event]] = {booking: [] for booking in made}
    for first, second in facts:
        before.setdefault(second, []).append(first)
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        return [f"each before the next, in a circle: {_chain(error.args[1])}"]
    found = []
    earliest: dict[_Event, tuple[float, list[_Event]]] = {}
    for event in order:
        began, ended = (event.began, event.ended) if isinstance(event, Call) else made[event]
        # With the chain of events that it had to wait for.
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
        for first, second in zip(events, events[1:])  # noqa: RUF007 - Python 3.9 has no pairwise
    )


# --- The clients

# Few, so that clients meet: fewer slots than clients in each round, and more keys than slots, so that of those who lose
# some lose to another key and some by their own.
TENANTS = ("acme", "zoo")
SLOTS = 2
KEYS = 6
CALLS = 3
# How often a client hangs up once its booking is sent, to have an answer that is lost for certain.
HANG_UP = 0.1
# For an answer, and for all clients to come to the next round. A server that restarts needs a second.
SECONDS = 20.0
# Between two tries, at most: as soon as it can be, or some time after the first has been decided.
PAUSE = 0.02


def attend(number: int, ports: Sequence[int], rounds: int, gate: Any, record: Callable[[Call], None]) -> None:
    """One client: in each round it asks for something, through one server after the other, until it is answered."""
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
                # Whoever has won looks at once whether the booking is there for the next server too.
                request = List(won.tenant) if won else _choose(chance, this)
                deadline = time.monotonic() + SECONDS
                while True:
                    hang_up = isinstance(request, Book) and chance.random() < HANG_UP
                    call = send(number, servers[turn % len(servers)], request, hang_up)
                    turn += 1
                    record(call)
                    if call.status not in (None, 500, 503):
                        break
                    assert time.monotonic() < deadline, f"{call} and no answer since {SECONDS} s"
                    time.sleep(chance.random() * PAUSE)
                won = request if call.status == 201 else None


def _choose(chance: random.Random, this: int) -> Book | List:
    """Something of this round or, once in a while, of one long ago."""
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
    """What becomes of this client's request, sent once."""
    method, target, body = "GET", f"/bookings?tenant_id={quote(request.tenant)}", None
    if isinstance(request, Book):
        document = {"start_time_utc": request.start, "idempotency_key": request.key}
        method, target, body = "POST", "/bookings", json.dumps({"tenant_id": request.tenant, **document})
    status, answer, began = None, b"", time.monotonic()
    try:
        server.request(method, target, body, {"Content-Type": "application/json"} if body else {})
        if hang_up:
            server.close()
        else:
            response = server.getresponse()
            status, answer = response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        status, answer = None, repr(error).encode()
        server.close()  # the next request connects anew
    return Call(number, began, time.monotonic(), request, status, answer, server.port)


def in_threads(clients: int, ports: Sequence[int], rounds: int, record: Callable[[Call], None]) -> None:
    """So many clients in threads of this process; `record` gets each call when it has ended."""
    gate = threading.Barrier(clients)
    with ThreadPoolExecutor(clients) as pool:
        for client in [pool.submit(attend, each, ports, rounds, gate, record) for each in range(clients)]:
            client.result()


def in_processes(clients: int, ports: Sequence[int], rounds: int) -> list[Call]:
    """So many clients, each in a process of its own; all their calls."""
    # Spawned on every system, since a fork would carry over the threads of other tests.
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(clients), context.Queue()
    processes = [
        context.Process(target=_process, args=(each, ports, rounds, gate, results), daemon=True)
        for each in range(clients)
    ]
    for process in processes:
        process.start()
    history = [call for _ in processes for call in results.get(timeout=2 * SECONDS)]
    for process in processes:
        process.join(SECONDS)
    return history


def _process(number: int, ports: Sequence[int], rounds: int, gate: Any, results: Any) -> None:
    history: list[Call] = []
    attend(number, ports, rounds, gate, history.append)
    results.put(history)
