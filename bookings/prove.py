"""python -m bookings.prove: the guarantee, shown to someone who doubts it.

Starts the real server on a temporary database, or on the one that --database names, or takes a running one by --url,
and does what must not lead to a double booking: races processes and threads, repeats keys, spells one instant in
several ways, inserts by hand, kills the server in the middle. Each part says what was expected and what happened; the
exit status is 1 if any failed.

It is a client: it believes only what comes over HTTP, and what another reader finds in the file.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from bookings.databases import kind_of

RUN = Path(__file__).resolve().parent.parent / "run.py"
PROCESSES = 4
THREADS = 8
SLOTS = 25
# For one answer. A server that waits for its database answers before it.
ANSWER_SECONDS = 30.0
# For fifty bookings between two kills; a slower machine is killed with fewer, and the part fails.
LOAD_SECONDS = 10.0
# What ends it before its time.
ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ask(NamedTuple):
    """One request to book."""

    tenant: str
    start: str
    key: str


class Answer(NamedTuple):
    """Its status and the JSON in its body; status 0 where no answer came."""

    status: int
    body: Any


class Result(NamedTuple):
    """A row of the table at the end."""

    tried: str
    expected: str
    happened: str
    passed: bool


class Server:
    """The server that is tried: one on a file of its own once it is started, or somebody's at `url`."""

    def __init__(self, database: str, url: str) -> None:
        self.database = database
        self.url = url.rstrip("/")
        self._process: subprocess.Popen[str] | None = None

    def start(self, port: str) -> None:
        command = [
            sys.executable,
            str(RUN),
            f"--port={port}",
            "--host=127.0.0.1",
            f"--database={self.database}",
            "--quiet",
        ]
        with uninterrupted():
            # In a group of its own, so that it can be killed whole.
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, start_new_session=True
            )
        assert self._process.stdout
        found = re.search(r"http://127\.0\.0\.1:[0-9]+", self._process.stdout.readline())
        if not found:
            raise SystemExit("bookings.prove: the server did not start")
        self.url = found[0]

    def kill(self) -> None:
        """End it without a warning, its workers too."""
        if self._process:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait()
            assert self._process.stdout
            self._process.stdout.close()
            self._process = None

    def restart(self) -> None:
        self.start(self.url.rpartition(":")[2])


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Signals wait until the end: Ctrl+C must not come between the start of a process and the note that is kept of it."""
    came: list[int] = []
    heeded = [number for number in ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


_kept = threading.local()


def connect(url: str) -> http.client.HTTPConnection:
    """For the server at this URL; raises ValueError or http.client.InvalidURL where it is none."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.netloc, timeout=ANSWER_SECONDS)


def call(url: str, method: str, target: str, body: Any = None) -> Answer:
    """One request, on a connection that each thread keeps."""
    connection = getattr(_kept, "connection", None)
    if connection is None or _kept.url != url:
        connection, _kept.url = connect(url), url
        _kept.connection = connection
    try:
        connection.request(
            method, target, None if body is None else json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        return Answer(response.status, json.loads(response.read()))
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()
        return Answer(0, None)


def book(url: str, ask: Ask) -> Answer:
    body = {"tenant_id": ask.tenant, "start_time_utc": ask.start, "idempotency_key": ask.key}
    return call(url, "POST", "/bookings", body)


def insist(url: str, ask: Ask) -> Answer:
    """What a client does that got no answer: send the same request until there is one."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while True:
        answer = book(url, ask)
        if answer.status not in (0, 503) or time.monotonic() > deadline:
            return answer
        time.sleep(0.05)


def race(url: str, asks: Sequence[Ask]) -> list[Answer]:
    """All of these at once, a thread for each; the answers in the order of the requests."""
    barrier = threading.Barrier(len(asks))

    def one(ask: Ask) -> Answer:
        call(url, "GET", "/live")  # connected before the start
        barrier.wait(ANSWER_SECONDS)
        return book(url, ask)

    with ThreadPoolExecutor(len(asks)) as pool:
        try:
            return list(pool.map(one, asks))
        finally:
            barrier.abort()  # after Ctrl+C, those that have been started wait for others in vain


def contend(url: str, tenant: str, process: int) -> list[tuple[Ask, Answer]]:
    """What one of the racing processes does: its threads go through the same slots, each with keys of its own."""

    def one(thread: int) -> list[tuple[Ask, Answer]]:
        asks = [Ask(tenant, start(slot), key(tenant, process, thread, slot)) for slot in range(SLOTS)]
        return [(ask, book(url, ask)) for ask in asks]

    with ThreadPoolExecutor(THREADS) as pool:
        return [pair for pairs in pool.map(one, range(THREADS)) for pair in pairs]


def start(slot: int) -> str:
    return f"2026-01-01T{slot // 3600:02d}:{slot // 60 % 60:02d}:{slot % 60:02d}Z"


def key(*parts: object) -> str:
    return ":".join(map(str, parts))


def statuses(answers: Iterable[Answer]) -> str:
    """How often each status came: `201 x1, 409 x5`."""
    counted = Counter(answer.status for answer in answers)
    return ", ".join(f"{status or 'none'} x{count}" for status, count in sorted(counted.items()))


def prove_race(server: Server, tenant: str) -> Result:
    # Ctrl+C reaches every process of the group; what follows from it is the first one's to do.
    with ProcessPoolExecutor(
        PROCESSES, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        # A pool that is interrupted while it starts its processes waits for them for ever.
        with uninterrupted():
            runs = [pool.submit(contend, server.url, tenant, process) for process in range(PROCESSES)]
        pairs = [pair for run in runs for pair in run.result()]
    won = [(ask, answer) for ask, answer in pairs if answer.status == 201]
    again = [(answer, book(server.url, ask)) for ask, answer in won]
    lost = PROCESSES * THREADS * SLOTS - SLOTS
    identical = sum(second == Answer(200, first.body) for first, second in again)
    passed = (
        sorted(ask.start for ask, _ in won) == [start(slot) for slot in range(SLOTS)]
        and sum(answer.status == 409 for _, answer in pairs) == lost
        and identical == SLOTS
    )
    return Result(
        f"{PROCESSES} processes x {THREADS} threads race for {SLOTS} slots; winners ask again",
        f"201 x{SLOTS}, 409 x{lost}; again: 200, identical x{SLOTS}",
        f"{statuses(answer for _, answer in pairs)}; again: 200, identical x{identical}",
        passed,
    )


def prove_one_key(server: Server, tenant: str) -> Result:
    answers = race(server.url, [Ask(tenant, start(0), key(tenant, "one"))] * 50)
    bodies = {json.dumps(answer.body) for answer in answers}
    listed = call(server.url, "GET", f"/bookings?tenant_id={quote(tenant)}").body
    rows = len(listed) if isinstance(listed, list) else 0
    return Result(
        "one request sent 50 times at once",
        "200 x49, 201 x1; 1 body; 1 listed",
        f"{statuses(answers)}; {len(bodies)} body; {rows} listed",
        Counter(answer.status for answer in answers) == {201: 1, 200: 49} and len(bodies) == rows == 1,
    )


def prove_spellings(server: Server, tenant: str) -> Result:
    spellings = ("T10:00:00Z", "T10:00:00.000Z", "t10:00:00z", "T10:00:00+00:00", "T10:00:00.0-00:00")
    asks = [Ask(tenant, "2026-01-01" + spelling, key(tenant, spelling)) for spelling in spellings]
    answers = race(server.url, asks)
    return Result(
        f"{len(asks)} spellings of one instant at once",
        f"201 x1, 409 x{len(asks) - 1}",
        statuses(answers),
        Counter(answer.status for answer in answers) == {201: 1, 409: len(asks) - 1},
    )


def prove_other_use(server: Server, tenant: str) -> Result:
    first = book(server.url, Ask(tenant, start(0), key(tenant, "used")))
    slot, stranger = (
        Ask(tenant, start(1), key(tenant, "used")),
        Ask(tenant + "-b", start(0), key(tenant, "used")),
    )
    answers = [book(server.url, slot), book(server.url, stranger)]
    booking_id = first.body["id"] if first.status == 201 else 0
    shown = call(server.url, "GET", f"/bookings/{booking_id}?tenant_id={quote(stranger.tenant)}")
    return Result(
        "a used key for another slot, by another tenant; its id by another tenant",
        "422 x2; 404",
        f"{statuses(answers)}; {shown.status}",
        [answer.status for answer in answers] == [422, 422] and shown.status == 404,
    )


def prove_by_hand(server: Server, tenant: str) -> Result:
    book(server.url, Ask(tenant, start(0), key(tenant, "api")))
    tries = (
        (start(0), "twice"),
        (start(0).replace("T", " "), "spelled"),
        (start(1), "api"),
        (start(2), "free"),
    )
    insert = kind_of(server.database).insert_by_hand
    said = [insert(server.database, tenant, when, key(tenant, name)) for when, name in tries]
    after = book(server.url, Ask(tenant, start(2), key(tenant, "late")))
    words = [text.partition(" constraint")[0] if text else "inserted" for text in said]
    expected = ["UNIQUE", "CHECK", "UNIQUE", "inserted"]
    return Result(
        "INSERT by hand: a taken slot, a second spelling, a used key, a free slot; the last again over HTTP",
        f"{', '.join(expected)}; 409",
        f"{', '.join(words)}; {after.status}",
        words == expected and after.status == 409,
    )


def prove_kill(server: Server, tenant: str) -> Result:
    """Kill the server under load, three times; then every request that got no answer is sent again."""
    acknowledged: list[tuple[Ask, Any]] = []
    unanswered: list[Ask] = []
    stop = threading.Event()

    def load(thread: int) -> None:
        number = 0
        while not stop.is_set() and number < 3600:
            ask = Ask(f"{tenant}-{thread}", start(number), key(tenant, thread, number))
            answer = book(server.url, ask)
            if answer.status in (200, 201):
                acknowledged.append((ask, answer.body))
                number += 1
            else:
                unanswered.append(ask)
                number += answer.status == 0
                stop.wait(0.02)

    with ThreadPoolExecutor(THREADS) as pool:
        try:
            loads = [pool.submit(load, thread) for thread in range(THREADS)]
            for _ in range(3):
                before = len(acknowledged)
                deadline = time.monotonic() + LOAD_SECONDS
                while len(acknowledged) < before + 50 and time.monotonic() < deadline:
                    time.sleep(0.01)
                server.kill()
                server.restart()
        finally:
            stop.set()
        for each in loads:
            each.result()
    repeated = [insist(server.url, ask) for ask in unanswered]
    tenants = {ask.tenant for ask, _ in acknowledged}
    with kind_of(server.database).reading(server.database) as reader:
        rows = {
            row.idempotency_key: vars(row) for each in tenants for row in reader.bookings(each, "", "", -1)
        }
    lost = sum(rows.get(ask.key) != body for ask, body in acknowledged)
    wrong = sum(answer.status not in (200, 201) for answer in repeated)
    return Result(
        "the server killed 3 times in mid-load; what got no answer is sent again",
        "0 acknowledged bookings lost; every repeat 200 or 201",
        f"{lost} of {len(acknowledged)} lost; repeats: {statuses(repeated) or 'none needed'}",
        lost == 0 and wrong == 0 and len(acknowledged) >= 150,
    )


PARTS: Sequence[Callable[[Server, str], Result]] = (
    prove_race,
    prove_one_key,
    prove_spellings,
    prove_other_use,
)
PARTS_WITH_A_FILE: Sequence[Callable[[Server, str], Result]] = (prove_by_hand, prove_kill)


def main() -> int:
    """Try it all and print the table; the exit status, 1 if any part failed."""
    parser = argparse.ArgumentParser(
        prog="python -m bookings.prove", description="Try to book a slot twice, in every way there is."
    )
    tried = parser.add_mutually_exclusive_group()
    tried.add_argument(
        "--url", help="a running server to try, like http://localhost:3000; tenants of its own are used"
    )
    tried.add_argument(
        "--database",
        help="try a server on this file, or on an rqlite cluster like http://host:4001,host:4001, rather than on a "
        "temporary file; tenants of its own are used",
    )
    settings = parser.parse_args()
    url = settings.url
    # As in bookings.backup: else a signal would leave the server and its folder.
    for number in ENDING:
        if number != signal.SIGINT and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="bookings-prove-") as folder:
        own = os.path.join(folder, "bookings.db")
        server = Server(own if settings.database is None else settings.database, url or "")
        try:
            if url is None:
                server.start("0")
            results = try_all(server, (*PARTS, *PARTS_WITH_A_FILE) if url is None else PARTS)
            passed = all(result.passed for result in results)
            print_results(results)
            if url is not None:
                print("Not tried on a server that is not ours: INSERT by hand, and killing it.")
            print("PROVED: no slot was booked twice." if passed else "FAILED: see above.", flush=True)
        except KeyboardInterrupt:
            return 130
        except OSError as error:
            # It cannot be printed, perhaps; Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(error, BrokenPipeError):  # else nobody reads on
                print(f"bookings.prove: {error}", file=sys.stderr)
            return 1
        finally:
            server.kill()
    return 0 if passed else 1


def try_all(server: Server, parts: Sequence[Callable[[Server, str], Result]]) -> list[Result]:
    try:
        answers = call(server.url, "GET", "/live").status == 200
    except (ValueError, http.client.InvalidURL):
        answers = False
    if not answers:
        raise SystemExit(f"bookings.prove: no bookings server answers at {server.url}")
    results = []
    for number, part in enumerate(parts, 1):
        began = time.monotonic()
        result = part(server, f"prove-{uuid.uuid4().hex[:12]}")
        took = time.monotonic() - began
        print(f"[{number}/{len(parts)}] {took:4.1f} s  {result.tried}: {verdict(result)}", flush=True)
        results.append(result)
    return results


def print_results(results: Sequence[Result]) -> None:
    """The table: what was tried, what was expected, what happened, and the verdict, in 100 columns."""
    widths = (38, 24, 24, 4)
    rule = tuple("-" * columns for columns in widths)
    for row in (
        ("tried", "expected", "happened", ""),
        *((*result[:3], verdict(result)) for result in results),
    ):
        wrapped = [textwrap.wrap(cell, columns) for cell, columns in zip(row, widths)]
        print("  ".join(rule))
        for line in itertools.zip_longest(*wrapped, fillvalue=""):
            print("  ".join(cell.ljust(columns) for cell, columns in zip(line, widths)).rstrip())
    print("  ".join(rule))


def verdict(result: Result) -> str:
    return "ok" if result.passed else "FAIL"


if __name__ == "__main__":
    sys.exit(main())
