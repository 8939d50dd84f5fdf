"""The parts of `bookings.prove`. Each returns what it expected and what happened."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bookings.process import ServerProcess
from bookings.stores import find_database

THREADS = 32
SLOTS = 25
KILLS = 3
# Bookings acknowledged before each kill, and the longest time to wait for them.
BOOKINGS_PER_KILL = 50
LOAD_SECONDS = 10.0
# Longest wait for one response. A server that waits for its database responds earlier.
RESPONSE_SECONDS = 30.0

Response = tuple[int, Any]  # The status and the JSON body; status 0 without a response.


class Servers(NamedTuple):
    """The servers to test. `processes` are those that this command started."""

    urls: Sequence[str]
    database: str = ""
    processes: Sequence[ServerProcess] = ()


class Request(NamedTuple):
    """A request; a POST has the fields of a booking."""

    method: str
    target: str
    fields: Mapping[str, str] = {}


def post(tenant: str, start: int | str, key: str = "") -> Request:
    """Return a request to book, with a new key unless one is given.

    A number as `start` is a slot, in seconds after midnight.
    """
    if isinstance(start, int):
        start = time.strftime("2026-01-01T%H:%M:%SZ", time.gmtime(start))
    values = (tenant, start, key or str(uuid.uuid4()))
    names = ("tenant_id", "start_time_utc", "idempotency_key")
    return Request("POST", "/bookings", dict(zip(names, values)))


def target(tenant: str, response: Response) -> str:
    """Return the target of the booking in a response, or of an unknown one if it failed."""
    status, booking = response
    return f"/bookings/{booking['id'] if status == 201 else 0}?tenant_id={tenant}"


def send(url: str, request: Request) -> Response:
    """Send one request on a new connection."""
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        with contextlib.closing(connect(parts.netloc, timeout=RESPONSE_SECONDS)) as connection:
            body = json.dumps(request.fields) if request.fields else None
            headers = {"Content-Type": "application/json"}
            connection.request(request.method, request.target, body, headers)
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if content else None
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None


def retry_until_answered(url: str, request: Request, interrupted: threading.Event) -> Response:
    """Repeat a request as a client does that gets no response."""
    deadline = time.monotonic() + RESPONSE_SECONDS
    while True:
        response = send(url, request)
        if response[0] not in (0, 503) or time.monotonic() > deadline or interrupted.wait(0.02):
            return response


def send_at_once(requests: Sequence[Request], urls: Sequence[str]) -> list[Response]:
    """Send requests at the same moment, spread over the servers."""
    barrier = threading.Barrier(len(requests))

    def wait_and_send(url: str, request: Request) -> Response:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(RESPONSE_SECONDS)
        return send(url, request)

    with ThreadPoolExecutor(len(requests)) as pool:
        try:
            return list(pool.map(wait_and_send, cycle(urls), requests))
        finally:
            barrier.abort()  # After Ctrl+C, threads must not wait for threads that never start.


def list_bookings(url: str, tenant: str) -> list[Any]:
    return send(url, Request("GET", f"/bookings?tenant_id={tenant}"))[1] or []


def count(responses: Iterable[Response]) -> str:
    """Return how often each status occurred, like `201 x1, 409 x5`."""
    counter = Counter(status for status, _ in responses)
    return ", ".join(f"{status or 'none'} x{n}" for status, n in sorted(counter.items()))


def race(servers: Servers, tenant: str) -> tuple[str, str]:
    """many threads race for the same slots, and each winner repeats its request"""

    def contend(thread: int) -> list[tuple[Request, Response]]:
        url = servers.urls[thread % len(servers.urls)]
        requests = [post(tenant, slot) for slot in range(SLOTS)]
        return [(request, send(url, request)) for request in requests]

    with ThreadPoolExecutor(THREADS) as pool:
        pairs = [pair for pairs in pool.map(contend, range(THREADS)) for pair in pairs]
    won = [(request, booking) for request, (status, booking) in pairs if status == 201]
    replays = sum(send(servers.urls[-1], request) == (200, booking) for request, booking in won)
    slots = len({request.fields["start_time_utc"] for request, _ in won})
    return (
        f"201 x{SLOTS}, 409 x{(THREADS - 1) * SLOTS}; {SLOTS} slots; {SLOTS} identical replays",
        f"{count(r for _, r in pairs)}; {slots} slots; {replays} identical replays",
    )


def one_request(servers: Servers, tenant: str) -> tuple[str, str]:
    """one request is sent 50 times at once"""
    responses = send_at_once([post(tenant, 0)] * 50, servers.urls)
    bodies = len({json.dumps(body) for _, body in responses})
    listed = len(list_bookings(servers.urls[0], tenant))
    return (
        "200 x49, 201 x1; 1 body; 1 listed",
        f"{count(responses)}; {bodies} body; {listed} listed",
    )


def spellings(servers: Servers, tenant: str) -> tuple[str, str]:
    """one instant is sent in five spellings at once"""
    times = ("T10:00:00Z", "T10:00:00.000Z", "t10:00:00z", "T10:00:00+00:00", "T10:00:00.0-00:00")
    requests = [post(tenant, f"2026-01-01{text}") for text in times]
    return "201 x1, 409 x4", count(send_at_once(requests, servers.urls))


def reused_key(servers: Servers, tenant: str) -> tuple[str, str]:
    """a used key comes with another slot and from another tenant, who also asks for the booking"""
    url, stranger, first = servers.urls[0], f"{tenant}-b", post(tenant, 0)
    key = first.fields["idempotency_key"]
    get = Request("GET", target(stranger, send(url, first)))
    others = [post(tenant, 1, key), post(stranger, 0, key), get]
    return "404 x1, 422 x2", count(send(url, other) for other in others)


def cancellation(servers: Servers, tenant: str) -> tuple[str, str]:
    """20 clients cancel a booking, its POST is late, 5 race for the slot, its DELETE is late"""
    url, original = servers.urls[0], post(tenant, 0)
    cancel = Request("DELETE", target(tenant, send(url, original)))
    cancelled = send_at_once([cancel] * 20, servers.urls)
    retried = send_at_once([original] * 2, servers.urls)
    raced = send_at_once([post(tenant, 0) for _ in range(5)], servers.urls)
    again = [send(url, cancel) for url in servers.urls]
    listed: list[Response] = [(201, booking) for booking in list_bookings(url, tenant)]
    new = sum(each in raced and target(tenant, each) != cancel.target for each in listed)
    statuses = "; ".join(map(count, (cancelled, retried, raced, again)))
    return (
        f"204 x20; 410 x2; 201 x1, 409 x4; 204 x{len(again)}; 1 listed, 1 with a new id",
        f"{statuses}; {len(listed)} listed, {new} with a new id",
    )


def by_hand(servers: Servers, tenant: str) -> tuple[str, str]:
    """sqlite3 inserts a taken slot, a second spelling, a used key and a free slot"""
    booked = post(tenant, 0)
    send(servers.urls[0], booked)
    insert = (
        "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) "
        "VALUES (:tenant_id, :start_time_utc, :idempotency_key)"
    )
    spelling, used_key = "2026-01-01 00:00:00Z", booked.fields["idempotency_key"]
    rows = [post(tenant, 0), post(tenant, spelling), post(tenant, 1, used_key), post(tenant, 2)]
    results = []
    with contextlib.closing(sqlite3.connect(servers.database, isolation_level=None)) as db:
        for row in rows:
            try:
                db.execute(insert, row.fields)
                results.append("inserted")
            except sqlite3.Error as error:
                results.append(str(error).partition(" constraint")[0])
    status, _ = send(servers.urls[0], post(tenant, 2))
    return "UNIQUE, CHECK, UNIQUE, inserted; then 409", f"{', '.join(results)}; then {status}"


def kills(servers: Servers, tenant: str) -> tuple[str, str]:
    """the servers are killed three times under load, and clients repeat unanswered requests"""
    pairs: list[tuple[str, Response]] = []  # The key of each request, and the response.
    stop, interrupted = threading.Event(), threading.Event()

    def load(thread: int) -> None:
        url = servers.urls[thread % len(servers.urls)]
        for slot in range(thread * 3600, (thread + 1) * 3600):
            request = post(tenant, slot)
            response = retry_until_answered(url, request, interrupted)
            pairs.append((request.fields["idempotency_key"], response))
            if stop.is_set():
                return

    with ThreadPoolExecutor(8) as pool:
        try:
            loads = pool.map(load, range(8))
            for _ in range(KILLS):
                enough, deadline = len(pairs) + BOOKINGS_PER_KILL, time.monotonic() + LOAD_SECONDS
                while len(pairs) < enough and time.monotonic() < deadline:
                    time.sleep(0.01)
                for process in servers.processes:
                    process.kill()
                for process in servers.processes:
                    process.start()
        except BaseException:  # Ctrl+C: the servers may not come back.
            interrupted.set()
            raise
        finally:
            stop.set()
        list(loads)  # Raises what a thread raised.
    with find_database(servers.database).read() as reader:
        rows = reader.bookings(tenant, "", "", -1)
        stored = {row.idempotency_key: row._asdict() for row in rows}
    booked = [(key, booking) for key, (status, booking) in pairs if status in (200, 201)]
    failed = len(pairs) - len(booked)
    lost = sum(stored.get(key) != booking for key, booking in booked)
    least = KILLS * BOOKINGS_PER_KILL
    total = f"{least} or more" if len(pairs) >= least else str(len(pairs))
    return (
        f"{least} or more requests, 0 failed, 0 acknowledged bookings lost",
        f"{total} requests, {failed} failed, {lost} acknowledged bookings lost",
    )


# A part passes if the two texts are equal. PARTS need nothing but a URL.
Part = Callable[[Servers, str], "tuple[str, str]"]
PARTS: Sequence[Part] = (race, one_request, spellings, reused_key, cancellation)
