"""python -m bookings.prove: tries to book a slot twice and to bring back a cancelled booking.

Starts two servers on a temporary database or on --database, or uses the running one at --url.
Each part prints what happened, and what was expected if that differs. It believes only responses
and what a separate reader finds in the database.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from bookings.process import ServerProcess
from bookings.stores import find_database
from bookings.terminal import fail, run_command

_NAME = "bookings.prove"
RUN = Path(__file__).resolve().parent.parent / "run.py"
THREADS = 32
SLOTS = 25
KILLS = 3
# Bookings acknowledged before each kill, and the longest time to wait for them.
BOOKINGS_PER_KILL = 50
LOAD_SECONDS = 10.0
# Longest wait for one response. A server that waits for its database responds earlier.
RESPONSE_SECONDS = 30.0

Response = tuple[int, Any]  # The status and the JSON body; status 0 without a response.


class Request(NamedTuple):
    """One request to book."""

    tenant_id: str
    start_time_utc: str
    idempotency_key: str


class Target(NamedTuple):
    """The servers to test. `processes` are those that this command started."""

    urls: Sequence[str]
    database: str
    processes: Sequence[ServerProcess]


def call(url: str, method: str, path: str, body: Any = None) -> Response:
    """Send one request on a new connection."""
    headers = {"Content-Type": "application/json"}
    try:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        with contextlib.closing(connect(parts.netloc, timeout=RESPONSE_SECONDS)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
            return response.status, json.loads(content) if content else None
    except (OSError, http.client.HTTPException, ValueError):
        return 0, None


def book(url: str, request: Request) -> Response:
    return call(url, "POST", "/bookings", request._asdict())


def retry_until_answered(url: str, request: Request, interrupted: threading.Event) -> Response:
    """Repeat a request as a client does that gets no response."""
    deadline = time.monotonic() + RESPONSE_SECONDS
    while True:
        response = book(url, request)
        if response[0] not in (0, 503) or time.monotonic() > deadline or interrupted.wait(0.02):
            return response


def at_once(sends: Sequence[Callable[[str], Response]], urls: Sequence[str]) -> list[Response]:
    """Send requests at the same moment, spread over the servers. Each takes the server's URL."""
    barrier = threading.Barrier(len(sends))

    def send(index: int) -> Response:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(RESPONSE_SECONDS)
        return sends[index](urls[index % len(urls)])

    with ThreadPoolExecutor(len(sends)) as pool:
        try:
            return list(pool.map(send, range(len(sends))))
        finally:
            barrier.abort()  # After Ctrl+C, threads must not wait for threads that never start.


def book_at_once(requests: Sequence[Request], urls: Sequence[str]) -> list[Response]:
    return at_once([partial(book, request=request) for request in requests], urls)


def start(slot: int) -> str:
    return f"2026-01-01T{slot // 3600:02d}:{slot // 60 % 60:02d}:{slot % 60:02d}Z"


def count(responses: Iterable[Response]) -> str:
    """Return how often each status occurred, like `201 x1, 409 x5`."""
    counter = Counter(status for status, _ in responses)
    return ", ".join(f"{status or 'none'} x{n}" for status, n in sorted(counter.items()))


# Each part returns what it expected and what happened; it passes if these are equal.
Part = Callable[[Target, str], "tuple[str, str]"]


def race(target: Target, tenant: str) -> tuple[str, str]:
    """many threads race for the same slots, and each winner repeats its request"""

    def contend(thread: int) -> list[tuple[Request, Response]]:
        url = target.urls[thread % len(target.urls)]
        mine = [Request(tenant, start(slot), f"{tenant}:{thread}:{slot}") for slot in range(SLOTS)]
        return [(request, book(url, request)) for request in mine]

    with ThreadPoolExecutor(THREADS) as pool:
        pairs = [pair for pairs in pool.map(contend, range(THREADS)) for pair in pairs]
    won = [(request, body) for request, (status, body) in pairs if status == 201]
    replays = sum(book(target.urls[-1], request) == (200, body) for request, body in won)
    slots = len({request.start_time_utc for request, _ in won})
    return (
        f"201 x{SLOTS}, 409 x{(THREADS - 1) * SLOTS}; {SLOTS} slots; {SLOTS} identical replays",
        f"{count(r for _, r in pairs)}; {slots} slots; {replays} identical replays",
    )


def one_request(target: Target, tenant: str) -> tuple[str, str]:
    """one request is sent 50 times at once"""
    responses = book_at_once([Request(tenant, start(0), f"{tenant}:one")] * 50, target.urls)
    bodies = len({json.dumps(body) for _, body in responses})
    _, listed = call(target.urls[0], "GET", f"/bookings?tenant_id={quote(tenant)}")
    return (
        "200 x49, 201 x1; 1 body; 1 listed",
        f"{count(responses)}; {bodies} body; {len(listed or [])} listed",
    )


def spellings(target: Target, tenant: str) -> tuple[str, str]:
    """one instant is sent in five spellings at once"""
    times = ("T10:00:00Z", "T10:00:00.000Z", "t10:00:00z", "T10:00:00+00:00", "T10:00:00.0-00:00")
    requests = [Request(tenant, f"2026-01-01{text}", f"{tenant}:{text}") for text in times]
    return "201 x1, 409 x4", count(book_at_once(requests, target.urls))


def reused_key(target: Target, tenant: str) -> tuple[str, str]:
    """a used key comes with another slot and from another tenant, who also asks for the booking"""
    url, key, stranger = target.urls[0], f"{tenant}:used", f"{tenant}-b"
    status, body = book(url, Request(tenant, start(0), key))
    path = f"/bookings/{body['id'] if status == 201 else 0}?tenant_id={quote(stranger)}"
    others = [Request(tenant, start(1), key), Request(stranger, start(0), key)]
    return "404 x1, 422 x2", count([*(book(url, r) for r in others), call(url, "GET", path)])


def cancellation(target: Target, tenant: str) -> tuple[str, str]:
    """20 clients cancel a booking, its POST is late, 5 race for the slot, its DELETE is late"""
    url, original = target.urls[0], Request(tenant, start(0), f"{tenant}:original")
    status, body = book(url, original)
    booking_id = body["id"] if status == 201 else 0
    path = f"/bookings/{booking_id}?tenant_id={quote(tenant)}"
    cancel = partial(call, method="DELETE", path=path)
    cancelled = at_once([cancel] * 20, target.urls)
    retried = book_at_once([original] * 2, target.urls)
    rivals = [Request(tenant, start(0), f"{tenant}:{rival}") for rival in range(5)]
    raced = book_at_once(rivals, target.urls)
    again = [cancel(url) for url in target.urls]
    _, listed = call(url, "GET", f"/bookings?tenant_id={quote(tenant)}")
    won = [body for status, body in raced if status == 201]
    is_new = bool(won) and listed == won and won[0]["id"] != booking_id
    statuses = "; ".join(map(count, (cancelled, retried, raced, again)))
    return (
        f"204 x20; 410 x2; 201 x1, 409 x4; 204 x{len(again)}; the new booking is listed",
        f"{statuses}; the new booking is {'' if is_new else 'not '}listed",
    )


def by_hand(target: Target, tenant: str) -> tuple[str, str]:
    """sqlite3 inserts a taken slot, a second spelling, a used key and a free slot"""
    book(target.urls[0], Request(tenant, start(0), f"{tenant}:api"))
    insert = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES (?, ?, ?)"
    spelling = start(0).replace("T", " ")
    rows = [(start(0), "taken"), (spelling, "spelling"), (start(1), "api"), (start(2), "free")]
    results = []
    with contextlib.closing(sqlite3.connect(target.database, isolation_level=None)) as db:
        for start_time, key in rows:
            try:
                db.execute(insert, (tenant, start_time, f"{tenant}:{key}"))
                results.append("inserted")
            except sqlite3.Error as error:
                results.append(str(error).partition(" constraint")[0])
    status, _ = book(target.urls[0], Request(tenant, start(2), f"{tenant}:late"))
    return "UNIQUE, CHECK, UNIQUE, inserted; then 409", f"{', '.join(results)}; then {status}"


def kills(target: Target, tenant: str) -> tuple[str, str]:
    """the servers are killed three times under load, and clients repeat unanswered requests"""
    results: list[tuple[Request, Response]] = []
    stop, interrupted = threading.Event(), threading.Event()

    def load(thread: int) -> None:
        url = target.urls[thread % len(target.urls)]
        for slot in range(3600):
            request = Request(f"{tenant}-{thread}", start(slot), f"{tenant}:{thread}:{slot}")
            results.append((request, retry_until_answered(url, request, interrupted)))
            if stop.is_set():
                return

    with ThreadPoolExecutor(8) as pool:
        try:
            loads = [pool.submit(load, thread) for thread in range(8)]
            for _ in range(KILLS):
                enough, deadline = len(results) + BOOKINGS_PER_KILL, time.monotonic() + LOAD_SECONDS
                while len(results) < enough and time.monotonic() < deadline:
                    time.sleep(0.01)
                for process in target.processes:
                    process.kill()
                for process in target.processes:
                    process.start()
        except BaseException:  # Ctrl+C: the servers may not come back.
            interrupted.set()
            raise
        finally:
            stop.set()
        for each in loads:
            each.result()
    stored = {}
    with find_database(target.database).read() as reader:
        for thread in range(8):
            for row in reader.bookings(f"{tenant}-{thread}", "", "", -1):
                stored[row.idempotency_key] = row._asdict()
    booked = [(r.idempotency_key, body) for r, (status, body) in results if status in (200, 201)]
    failed = len(results) - len(booked)
    lost = sum(stored.get(key) != body for key, body in booked)
    least = KILLS * BOOKINGS_PER_KILL
    total = f"{least} or more" if len(results) >= least else str(len(results))
    return (
        f"{least} or more requests, 0 failed, 0 acknowledged bookings lost",
        f"{total} requests, {failed} failed, {lost} acknowledged bookings lost",
    )


def main() -> int:
    """Run the parts that apply. Return the exit code, 1 if any part failed."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_NAME}",
        description="Try to book a slot twice and to bring back a cancelled booking.",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--url", help="test the running server at this URL, with new tenants")
    group.add_argument(
        "--database",
        help="test servers on this SQLite file or rqlite cluster, with new tenants (default: a "
        "temporary file)",
    )
    options = parser.parse_args()
    if "" in (options.url, options.database):  # As from an unset variable.
        parser.error("--url and --database need a value")
    parts: list[Part] = [race, one_request, spellings, reused_key, cancellation]
    if options.url:
        return run_parts(Target([options.url.rstrip("/")], "", []), parts)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bookings-prove-"))
        database = options.database or os.path.join(folder, "bookings.db")
        command = [sys.executable, str(RUN), "--host=127.0.0.1", "--quiet", "--database", database]
        processes = []
        for _ in range(2):
            processes.append(ServerProcess(command))
            stack.callback(processes[-1].kill)
        if os.path.exists(database):  # A cluster has no file.
            parts.append(by_hand)
        urls = [process.url for process in processes]
        return run_parts(Target(urls, database, processes), [*parts, kills])


def run_parts(target: Target, parts: Sequence[Part]) -> int:
    for url in target.urls:
        if call(url, "GET", "/live")[0] != 200:
            return fail(_NAME, f"no bookings server answers at {url or 'its port'}")
    if not target.processes:
        print("Not tested without control of the server: INSERT by hand, kills.")
    elif by_hand not in parts:
        print("Not tested on a cluster: INSERT by hand.")
    passed = True
    for number, part in enumerate(parts, 1):
        started = time.monotonic()
        expected, happened = part(target, f"prove-{uuid.uuid4().hex[:12]}")
        passed = passed and happened == expected
        verdict = "ok" if happened == expected else f"FAIL, expected {expected}"
        seconds = time.monotonic() - started
        line = f"[{number}/{len(parts)}] {seconds:4.1f} s  {part.__doc__}: {happened}: {verdict}"
        print(line, flush=True)
    print("PROVED: no slot was booked twice." if passed else "FAILED: see above.", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(run_command(_NAME, main))
