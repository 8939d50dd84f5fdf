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
from collections.abc import Callable, Iterable, Iterator, Sequence
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


class Get(NamedTuple):
    """A GET of one booking."""

    tenant: str
    id: int


class Cancel(NamedTuple):
    """A DELETE of a booking."""

    tenant: str
    id: int


Request = Union[Book, List, Get, Cancel]


class Call(NamedTuple):
    """One request to the server on `port`, and its response. All times are of one monotonic clock.

    Without a response the status is None, and the body is the error, or empty if the client closed.
    """

    client: int
    began: float
    ended: float
    request: Request
    status: int | None
    body: bytes
    port: int = 0

    def __str__(self) -> str:
        request = " ".join((type(self.request).__name__, *map(str, self.request)))
        times = f"{self.began:.6f} to {self.ended:.6f}"
        return f"[{request}: {self.status} to client {self.client}, {times}]"

    @property
    def is_uncertain(self) -> bool:
        """Whether the server may have done what was requested, then or later, without saying so."""
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


class End(NamedTuple):
    """The cancellation of a booking."""

    booking: Booking

    def __str__(self) -> str:
        return f"the cancellation of {self.booking}"


# --- The checker

# A booking is created once, and cancelled at most once. So each response boils down to facts of
# the form "this happened before that", where this and that are a creation, a cancellation or the
# moment, between request and response, at which the call saw the bookings. A history is
# linearizable if every creation and cancellation has one moment that satisfies all facts.
#
# A response may leave a choice. A slot that is missing in a list had not been booked yet, or its
# last booking had been cancelled and the next one was not there yet. A 409 leaves open which of
# the slot's bookings was in the way. One alternative of each choice must agree with all facts.

# The responses of the contract, and the bookings in each: one, several or none.
_BOOKINGS_IN: dict[tuple[type, int | None], Callable[[Any], list[Booking]]] = {
    **dict.fromkeys([(Book, 201), (Book, 200), (Get, 200)], lambda shown: [Booking(**shown)]),
    (List, 200): lambda shown: [Booking(**each) for each in shown],
    **dict.fromkeys([(Book, each) for each in (409, 410, 422, 500, 503, 507)], lambda shown: []),
    **dict.fromkeys([(List, status) for status in (500, 503)], lambda shown: []),
    **dict.fromkeys([(Get, status) for status in (404, 410, 500, 503)], lambda shown: []),
    **dict.fromkeys([(Cancel, status) for status in (204, 404, 500, 503, 507)], lambda shown: []),
}

# The creation of a booking, its cancellation, or a call. Each happened at one moment.
_Event = Union[Booking, End, Call]
# Pairs of events; the first happened before the second.
_Facts = list[tuple[_Event, _Event]]
# Alternatives. The facts of at least one of them are true.
_Choice = list[_Facts]
# The earliest and the latest moment of each event.
_Spans = dict[_Event, tuple[float, float]]


def violations(
    history: Iterable[Call],
    rows: Iterable[Sequence[Any]],
    cancelled: Iterable[Sequence[Any]] = (),
    resent: bool = False,
) -> list[str]:
    """Return a line for each violation of the contract; none for a linearizable history.

    `rows` and `cancelled` are the five columns of each booking at the end, and of each cancelled
    one, in any order. Both tables were empty at the start. With `resent`, the server repeats an
    INSERT by itself when its database does not respond, as on a cluster. The request that created
    the booking may then get 200, or 410 if it was cancelled in between, and none get 201.
    """
    found: list[str] = []
    answered: list[tuple[Call, list[Booking]]] = []
    # The type is part of the key, because a Get equals a Cancel with the same fields.
    sent: dict[tuple[type, Request], list[Call]] = defaultdict(list)
    for call in history:
        sent[type(call.request), call.request].append(call)
        if call.status is not None:
            try:
                bookings_in = _BOOKINGS_IN[type(call.request), call.status]
                shown_in = None if call.status == 204 else json.loads(call.body)
                answered.append((call, bookings_in(shown_in)))
            except (KeyError, TypeError, ValueError):
                found.append(f"{call} is not a specified response: {call.body!r}")
    stored = {Booking(*row) for row in rows}
    ends = {booking: End(booking) for booking in (Booking(*row) for row in cancelled)}
    found += [f"{booking} is in both tables" for booking in ends if booking in stored]
    # Each booking and its first source.
    shown: dict[Booking, object] = dict.fromkeys([*stored, *ends], "the database")
    for call, bookings in answered:
        for booking in bookings:
            shown.setdefault(booking, call)
    state = _State({}, {}, {}, ends)
    facts: _Facts = [*ends.items()]
    # In the order of their creation. Of two with the same id, the stored one counts.
    for booking in sorted(shown, key=lambda each: (each.id, each not in stored)):
        in_slot = state.by_slot.setdefault(booking.slot, [])
        # Without an End, the previous booking of the slot is still there.
        previous = in_slot[-1] if in_slot and in_slot[-1] not in ends else booking
        firsts = (
            previous,
            state.by_key.setdefault(booking.idempotency_key, booking),
            state.by_id.setdefault(booking.id, booking),
        )
        for other in {*firsts} - {booking}:
            both = f"{other} in {shown[other]}, {booking} in {shown[booking]}"
            found.append(f"two bookings for one slot, key or id: {both}")
        if in_slot and in_slot[-1] in ends:
            facts.append((ends[in_slot[-1]], booking))
        if previous is booking:
            in_slot.append(booking)
    # An id is higher than all before it.
    facts += _pairs(sorted(state.by_id.values()))
    for booking in [each for in_slot in state.by_slot.values() for each in in_slot]:
        if booking not in stored and booking not in ends:
            found.append(f"{booking}, shown by {shown[booking]}, is not in the database")
    spans: _Spans = {
        booking: _creation_span(booking, sent[Book, booking.request], resent, found)
        for booking in shown
    }
    for booking, end in ends.items():
        spans[end] = _cancellation_span(
            end, sent[Cancel, Cancel(booking.tenant_id, booking.id)], found
        )
    choices: list[_Choice] = []
    first_response: dict[Booking, Call] = {}
    for call, bookings in answered:
        spans[call] = call.began, call.ended
        facts_of = _FACTS_OF[type(call.request)]
        for alternatives in facts_of(call, call.request, bookings, state, found):
            if len(alternatives) == 1:
                facts += alternatives[0]
            else:
                choices.append(alternatives)
        if bookings and not isinstance(call.request, List):
            first = first_response.setdefault(bookings[0], call)
            if first.body != call.body:
                found.append(f"{call} is not byte for byte the response of {first}")
    return found + _order_violations(facts, choices, spans)


class _State(NamedTuple):
    """The bookings that responses and rows show, and how each cancelled one ended."""

    by_slot: dict[tuple[str, str], list[Booking]]  # In the order of their creation.
    by_key: dict[str, Booking]
    by_id: dict[int, Booking]
    ends: dict[Booking, End]

    def present(self, booking: Booking, call: Call) -> _Facts:
        """Return the facts which say that the call met this booking."""
        return [(booking, call), *([(call, self.ends[booking])] if booking in self.ends else [])]

    def absent(self, in_slot: Sequence[Booking], call: Call) -> _Choice:
        """Return the alternatives for a call that met none of a slot's bookings."""
        gaps: list[tuple[Booking | None, Booking | None]] = [*_pairs([None, *in_slot, None])]
        return [
            [
                *([(self.ends[last], call)] if last else []),
                *([(call, following)] if following else []),
            ]
            for last, following in gaps
            if not last or last in self.ends
        ]


def _pairs(values: Sequence[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(values, values[1:])


def _creation_span(
    booking: Booking, sent: Sequence[Call], resent: bool, found: list[str]
) -> tuple[float, float]:
    """Return the earliest and the latest moment at which the booking can have been created.

    That is during the call with 201, or else any time after the first uncertain call began. A 200
    is one of the facts and limits the span later.
    """
    created = [call for call in sent if call.status == 201]
    began = [
        call.began for call in sent if call.is_uncertain or (resent and call.status in (200, 410))
    ]
    if not sent:
        found.append(f"{booking} was never requested")
    elif not created and not began:
        found.append(f"{booking} was created, but all its requests got responses, none with 201")
    for again in created[1:]:
        found.append(f"{booking} was created twice: {created[0]} and {again}")
    if created:
        return created[0].began, created[0].ended
    return min(began, default=-math.inf), math.inf


def _cancellation_span(end: End, sent: Sequence[Call], found: list[str]) -> tuple[float, float]:
    """Return the earliest and the latest moment at which the booking can have been cancelled.

    That is any time after the first call that may have done it began. Each 204 is one of the facts
    and limits the span later.
    """
    began = [call.began for call in sent if call.is_uncertain or call.status == 204]
    if not began:
        found.append(f"{end} was not requested, or its requests got responses, none with 204")
    return min(began, default=-math.inf), math.inf


def _facts_of_book(
    call: Call, request: Book, bookings: Sequence[Booking], state: _State, found: list[str]
) -> Iterator[_Choice]:
    key_user = state.by_key.get(request.key)
    is_own = key_user is not None and key_user.request == request
    if bookings:
        if bookings[0].request != request:
            found.append(f"{call} shows another booking: {bookings[0]}")
        # The call with 201 is the creation itself, see _creation_span.
        elif call.status == 200:
            yield [state.present(bookings[0], call)]
    elif call.status == 409:
        in_slot = state.by_slot.get((request.tenant, request.start), [])
        others = [booking for booking in in_slot if booking.request != request]
        if not in_slot:
            found.append(f"{call} was rejected for a slot that is free")
        elif not others:
            found.append(f"{call} was rejected because of its own booking: {in_slot[0]}")
        else:
            yield [state.present(booking, call) for booking in others]
            # A used key takes precedence: with it, the response would have been 200, 410 or 422.
            if key_user:
                yield [[(call, key_user)]]
    elif call.status == 410:
        if not key_user or not is_own or key_user not in state.ends:
            found.append(f"{call} was rejected for a booking that was not cancelled")
        else:
            yield [[(state.ends[key_user], call)]]
    elif call.status == 422:
        if not key_user or is_own:
            found.append(f"{call} was rejected for a key that has no other use")
        else:
            yield [[(key_user, call)]]


def _facts_of_list(
    call: Call, request: List, bookings: Sequence[Booking], state: _State, found: list[str]
) -> Iterator[_Choice]:
    if call.status != 200:
        return
    starts = [booking.start_time_utc for booking in bookings]
    if starts != sorted(set(starts)):
        found.append(f"{call} is not in order: {starts}")
    for booking in bookings:
        if booking.tenant_id != request.tenant:
            found.append(f"{call} shows another tenant's booking: {booking}")
        yield [state.present(booking, call)]
    listed = {booking.slot for booking in bookings}
    for slot, in_slot in state.by_slot.items():
        if slot[0] == request.tenant and slot not in listed:
            yield state.absent(in_slot, call)


def _facts_of_one(
    call: Call, request: Get | Cancel, bookings: Sequence[Booking], state: _State, found: list[str]
) -> Iterator[_Choice]:
    wanted = state.by_id.get(request.id)
    if wanted and wanted.tenant_id != request.tenant:
        wanted = None
    if bookings:
        if bookings[0] != wanted:
            found.append(f"{call} shows another booking: {bookings[0]}")
        else:
            yield [state.present(wanted, call)]
    elif call.status == 404 and wanted:
        yield [[(call, wanted)]]
    elif call.status in (204, 410):
        if wanted not in state.ends:
            found.append(f"{call} names a booking that was not cancelled: {wanted}")
        else:
            # The first 204 is the cancellation itself, and the others follow it.
            yield [[(state.ends[wanted], call)]]


_FACTS_OF: dict[type, Callable[..., Iterator[_Choice]]] = {
    Book: _facts_of_book,
    List: _facts_of_list,
    Get: _facts_of_one,
    Cancel: _facts_of_one,
}


def _order_violations(facts: _Facts, choices: list[_Choice], spans: _Spans) -> list[str]:
    """Return why no moments within the spans satisfy the facts and one alternative per choice."""
    undecided = choices
    while True:
        # A fact that the spans imply cannot be part of a contradiction.
        facts = [(one, two) for one, two in facts if spans[one][1] >= spans[two][0]]
        found, spans = _narrow(facts, spans)
        if found:
            return found
        choices, undecided = undecided, []
        known = len(facts)
        for choice in choices:
            possible = [
                alternative
                for alternative in choice
                if all(spans[one][0] <= spans[two][1] for one, two in alternative)
            ]
            if not possible:
                return [f"no moment fits: {' or '.join(map(_words_of, choice))}"]
            if len(possible) == 1:
                facts += possible[0]
            elif not any(
                all(spans[one][1] < spans[two][0] for one, two in alternative)
                for alternative in possible
            ):
                undecided.append(possible)
        if len(facts) == known:
            break
    for part, (first, *others) in _independent_parts(facts, undecided):
        # The moments of a part do not depend on the other parts.
        failures = []
        for alternative in first:
            failure = _order_violations([*part, *alternative], others, spans)
            if not failure:
                break
            failures += failure
        else:
            return [f"no choice works: {' or '.join(failures)}"]
    return []


def _narrow(facts: _Facts, spans: _Spans) -> tuple[list[str], _Spans]:
    """Find cycles, and events that ended before an event that precedes them could begin.

    If there are none, return what the facts leave of the spans.
    """
    before: dict[_Event, list[_Event]] = defaultdict(list)
    for first, second in facts:
        before[second].append(first)
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as error:
        circle = error.args[1]
        return [f"contradictory facts, in a circle: {_words_of([*_pairs(circle)])}"], spans
    found = []
    earliest: dict[_Event, tuple[float, list[_Event]]] = {}
    for event in order:
        began, ended = spans[event]
        # The earliest moment, and the chain of preceding events that determines it.
        moment, chain = max(
            (earliest[first] for first in before.get(event, ())),
            key=lambda each: each[0],
            default=(began, []),
        )
        moment, chain = (moment, [*chain, event]) if moment > began else (began, [event])
        if moment > ended:
            late = _words_of([*_pairs(chain)])
            found.append(f"out of order, by {moment - ended:.6f} s: {late}")
            moment, chain = ended, [event]
        earliest[event] = moment, chain
    narrowed = {**spans, **{event: (earliest[event][0], spans[event][1]) for event in order}}
    for event in reversed(order):
        for first in before.get(event, ()):
            began, ended = narrowed[first]
            narrowed[first] = began, min(ended, narrowed[event][1])
    return found, narrowed


def _independent_parts(
    facts: _Facts, choices: Sequence[_Choice]
) -> Iterable[tuple[_Facts, list[_Choice]]]:
    """Group the choices that share events, also through facts, and yield them with these facts."""
    leaders: dict[_Event, _Event] = {}

    def leader(event: _Event) -> _Event:
        while leaders.setdefault(event, event) is not event:
            event = leaders[event]
        return event

    for joined in [*([fact] for fact in facts), *(sum(choice, []) for choice in choices)]:
        first = leader(joined[0][0])
        for event in {event for fact in joined for event in fact}:
            leaders[leader(event)] = first
    parts: dict[_Event, tuple[_Facts, list[_Choice]]] = defaultdict(lambda: ([], []))
    for fact in facts:
        parts[leader(fact[0])][0].append(fact)
    for choice in choices:
        parts[leader(choice[0][0][0])][1].append(choice)
    return [part for part in parts.values() if part[1]]


def _words_of(facts: _Facts) -> str:
    return "; ".join(
        f"{second} has {first}"
        if isinstance(first, Booking) and isinstance(second, Call)
        else f"{first} does not have {second}"
        if isinstance(first, Call) and isinstance(second, Booking)
        else f"{first} precedes {second}"
        for first, second in facts
    )


# --- The clients

# Small numbers, so that clients compete: fewer slots per round than clients, and more keys than
# slots, so that some requests lose the slot and others reuse a key.
TENANTS = ("acme", "zoo")
SLOTS = 2
KEYS = 6
CALLS = 4
# Share of requests about a booking that the client has seen. The last ones of all clients are often
# the same, so that a DELETE competes with others, with retries of the POST and with reads.
ABOUT_SEEN = 0.45
SEEN = 4
# Share of writes whose client closes the connection before the response.
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
    turn = number
    seen: list[Booking] = []
    following: Request | None = None
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
                request = following or _choose(chance, this, seen)
                deadline = time.monotonic() + SECONDS
                while True:
                    is_write = isinstance(request, (Book, Cancel))
                    hang_up = is_write and chance.random() < HANG_UP
                    call = send(number, servers[turn % len(servers)], request, hang_up)
                    turn += 1
                    record(call)
                    if call.status not in (None, 500, 503):
                        break
                    assert time.monotonic() < deadline, f"{call}: undecided for {SECONDS} s"
                    time.sleep(chance.random() * PAUSE)
                if call.status in (200, 201):
                    shown = _BOOKINGS_IN[type(request), call.status](json.loads(call.body))
                    seen = [*seen, *shown[-SLOTS:]][-SEEN:]
                following = _check_of(chance, call, seen)


def _check_of(chance: random.Random, call: Call, seen: Sequence[Booking]) -> Request | None:
    """Return a request that shows whether the next server knows what this call did, if anything."""
    tenant = call.request.tenant
    if call.status == 201:
        return List(tenant)
    if call.status == 204:
        cancelled = [each for each in seen if each.id == call.request.id]
        return chance.choice((List(tenant), Get(*call.request), *(b.request for b in cancelled)))
    return None


def _choose(chance: random.Random, this: int, seen: Sequence[Booking]) -> Request:
    """Choose a request of this round or, sometimes, of an earlier one."""
    tenant = chance.choice(TENANTS)
    if chance.random() < 0.1:
        return List(tenant)
    if seen and chance.random() < ABOUT_SEEN:
        booking = chance.choice(seen)
        # Some ids belong to the other tenant, and some are not given yet.
        owner = chance.choice((*[booking.tenant_id] * 9, tenant))
        one = owner, booking.id + chance.choice((*[0] * 9, 1))
        return chance.choice((*[Cancel(*one)] * 4, Get(*one), booking.request))
    then = chance.choice((this, this, this, this, chance.randrange(this + 1)))
    slot = SLOTS * then + chance.randrange(SLOTS)
    key = f"{chance.choice((then, then, then, this))}/{chance.randrange(KEYS)}"
    return Book(tenant, f"2026-01-01T{slot // 60:02}:{slot % 60:02}:00Z", key)


def send(
    number: int, server: http.client.HTTPConnection, request: Request, hang_up: bool = False
) -> Call:
    """Send the request once and return the call. With `hang_up`, close before the response."""
    one = f"/{request.id}" if isinstance(request, (Get, Cancel)) else ""
    method, target, body = "GET", f"/bookings{one}?tenant_id={quote(request.tenant)}", None
    if isinstance(request, Cancel):
        method = "DELETE"
    elif isinstance(request, Book):
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
