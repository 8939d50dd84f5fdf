"""A power cut or `kill -9` loses no booking that a response has acknowledged.

The server syncs the WAL after the commit and before the response; strace shows the order. Each
check of a trace is also run on a server without the sync, and must fail there.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import random
import re
import select
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bookings.stores import sqlite, write_queue
from bookings.stores.model import NewBooking, Outcome
from bookings.stores.sqlite import SQLiteStore, create_database
from tests.helpers.processes import serving
from tests.helpers.servers import SOON, Server, assert_problem, at_once, patched, until
from tests.helpers.storage import CONTROLLED_SYNC
from tests.helpers.values import MEMBERS, slot_at

FIRST = ("acme", "2026-01-01T10:00:00Z", "k1")
SECOND = ("acme", "2026-01-02T10:00:00Z", "k2")
JSON = {"Content-Type": "application/json"}
# Patches for `patched()`.
NO_SYNC = "from bookings.stores import sqlite; sqlite.fdatasync = lambda descriptor: None\n"
# About one checkpoint per 25 bookings, so that a short test has several.
FREQUENT_CHECKPOINTS = "from bookings.stores import sqlite; sqlite.CHECKPOINT_PAGES = 100\n"
# The status of a POST that follows FIRST, and the booking that it asks for.
OUTCOMES = {
    201: SECOND,
    200: FIRST,
    409: (*FIRST[:2], "other"),
    422: (*SECOND[:2], "k1"),
}


def slot_on(day: int) -> str:
    return f"2026-01-{day:02}T10:00:00Z"


def fields_of(booking: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(MEMBERS, booking))


@cache
def strace_command() -> tuple[str, ...]:
    """Return the strace command, or nothing if strace is missing or not permitted."""
    command = ("strace", "-D", "-f", "--seccomp-bpf", "-q", "-y", "-xx", "-s", "8192")
    if not shutil.which("strace"):
        return ()
    tried = subprocess.run([*command, "-o", os.devnull, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


@contextlib.contextmanager
def serving_traced(base: Path, patch: str, calls: str) -> Iterator[Server]:
    """Run a server after executing `patch`. strace records the calls in the file `trace`."""
    if not strace_command():
        pytest.skip("strace is missing or not permitted")
    strace = [*strace_command(), "-o", str(base / "trace"), "-e", f"trace={calls}"]
    command = [*strace, sys.executable, str(patched(base, patch))]
    program = base / "traced.py"
    program.write_text(f"import os, sys\nos.execvp('strace', {command!r} + sys.argv[1:])\n")
    with contextlib.closing(Server(base, "--workers=2", program=program)) as started:
        yield started


# --- Order of system calls, from a trace


@dataclass(frozen=True)
class Call:
    """A system call. `began` and `ended` are line numbers of the trace, which is chronological.

    `data` is the text argument and `number` the last number: the offset of a write, or a size.
    """

    thread: str
    name: str
    file: str
    data: bytes
    number: int
    result: int
    began: int
    ended: int

    @property
    def is_sync(self) -> bool:
        return self.name in ("fdatasync", "fsync") and self.result == 0


LINE = re.compile(r"([0-9]+) +(?:<\.\.\. \w+ resumed>)?(.*?)( <unfinished \.\.\.>)?")
CALL = re.compile(r'(\w+)\((?:[0-9]+<([^>]*)>)?(?:, )?(?:"([^"]*)")?(.*)\) += (-?[0-9]+).*')
LAST_NUMBER = re.compile(r".*?([0-9]+)")


def unhex(hexadecimal: str | None) -> bytes:
    return bytes.fromhex((hexadecimal or "").replace("\\x", ""))


def calls_of(server: Server) -> list[Call]:
    """Shut the server down and return its system calls, ordered by their end."""
    log = server.log.with_name("trace")
    # strace pads short numbers with spaces.
    end = re.compile(rf"^{server.process.pid} +\+\+\+ exited with 0 \+\+\+$", re.MULTILINE)
    assert server.stop() == 0
    until(lambda: end.search(log.read_text()[-2000:]))
    calls: list[Call] = []
    pending: dict[str, tuple[int, str]] = {}
    for place, line in enumerate(log.read_text().splitlines()):
        match = LINE.fullmatch(line)
        assert match, line
        thread, text, unfinished = match.groups()
        began, begun = pending.pop(thread, (place, ""))
        if unfinished:
            pending[thread] = (place, text)
            continue
        call = CALL.fullmatch(begun + text)
        if call:
            name, path, data, numbers, result = call.groups()
            number = LAST_NUMBER.fullmatch(numbers)
            # The only argument of unlink is the path.
            file = unhex(path or data).decode().rpartition("/")[2]
            last_number = int(number[1]) if number else 0
            ended = (int(result), began, place)
            calls.append(Call(thread, name, file, unhex(data), last_number, *ended))
    return calls


def responses_in(calls: Iterable[Call]) -> Iterator[tuple[Call, int, str, Any]]:
    """Yield (call, status, request id, body) of each response."""
    for call in calls:
        if call.name == "sendto" and call.data.startswith(b"HTTP/1.1 "):
            head, _, body = call.data.partition(b"\r\n\r\n")
            found = re.search(rb"X-Request-ID: (\S+)", head)
            assert found
            yield call, int(head[9:12]), found[1].decode(), json.loads(body)


def unsynced_responses(calls: list[Call]) -> list[str]:
    """Return the responses that were sent before the necessary sync of the WAL.

    Requests that compete for one booking have ids with the same start, up to the dot.
    """
    files = ("bookings.db", "bookings.db-wal")
    responses = list(responses_in(calls))
    committed: dict[str, int] = {}
    for sent, status, name, _ in responses:
        if status == 201:
            committed[name.partition(".")[0]] = max(
                c.ended
                for c in calls
                if (c.thread, c.name, c.file) == (sent.thread, "pwrite64", files[1])
                and c.ended < sent.began
            )
    found = []
    for sent, status, name, _ in responses:
        own = [c for c in calls if c.thread == sent.thread and c.ended < sent.began]
        accesses = [c for c in own if c.name in ("pwrite64", "pread64") and c.file in files]
        accessed = max((c.ended for c in accesses), default=0)
        synced = max((c.began for c in own if c.is_sync and c.file == files[1]), default=-1)
        if synced < accessed or synced < committed[name.partition(".")[0]]:
            found.append(f"{name}: {status}")
    return found


@pytest.mark.parametrize(
    ("patch", "sound"), [("", True), (NO_SYNC, False)], ids=["unchanged", "without sync"]
)
def test_wal_is_synced_between_commit_and_response(tmp_path: Path, patch: str, sound: bool) -> None:
    """Holds for every outcome: a loser syncs too, as the winner may not have synced yet."""
    with serving_traced(tmp_path, patch, "pwrite64,pread64,fdatasync,fsync,sendto") as server:

        def ask(number: int, day: int) -> int:
            # Two requests have the same key; the last one uses the first key for another slot.
            key, start = (f"{day}/0", 20 + day) if number == 8 else (f"{day}/{number // 2}", day)
            request_id = f"{day}.{number}"
            return server.book("acme", slot_on(start), key, X_Request_ID=request_id).status

        seen: list[int] = []
        for day in range(1, 6):
            # One request first, so that its key exists when the last one reuses it.
            seen.append(ask(0, day))
            seen += at_once(8, lambda number, day=day: ask(number + 1, day))
        for day in range(6, 11):
            seen += at_once(8, lambda number, day=day: ask(number, day))
        rows = server.rows()
        calls = calls_of(server)
    assert [seen.count(status) for status in (201, 200, 409, 422)] == [10, 10, 60, 5]
    assert [row[1] for row in rows] == [slot_on(day) for day in range(1, 11)]
    assert sorted(status for _, status, _, _ in responses_in(calls)) == sorted(seen)
    late = unsynced_responses(calls)
    if sound:
        assert late == []
    else:
        assert {name[-3:] for name in late} == {"201", "200", "409", "422"}


# --- Power cut


class Disk:
    """Files after a power cut: everything that was synced, and a random part of the rest."""

    def __init__(self) -> None:
        self.synced: dict[str, bytearray] = {}
        self._pending: dict[str, list[Call]] = {}

    def follow(self, call: Call) -> None:
        if call.name == "unlink":
            self.synced.pop(call.file, None)
            self._pending.pop(call.file, None)
        elif call.name in ("pwrite64", "ftruncate"):
            self._pending.setdefault(call.file, []).append(call)
        elif call.is_sync and call.file in self._pending:
            image = self.synced.setdefault(call.file, bytearray())
            pending = self._pending[call.file]
            # A write that had not ended when the sync began may not be part of it.
            for each in pending:
                if each.ended < call.began:
                    apply_write(image, each)
            self._pending[call.file] = [each for each in pending if each.ended > call.began]

    def leave(self, folder: Path, chance: random.Random, part: float) -> Path:
        """Write the database and its WAL into the folder, with `part` of the writes not synced."""
        for file in ("bookings.db", "bookings.db-wal"):
            image = bytearray(self.synced.get(file, b""))
            for each in self._pending.get(file, ()):
                if chance.random() < part:
                    apply_write(image, each)
            (folder / file).write_bytes(image)
        return folder / "bookings.db"


def apply_write(image: bytearray, call: Call) -> None:
    if call.name == "ftruncate":
        del image[call.number :]
        image.extend(bytes(call.number - len(image)))
    else:
        image.extend(bytes(max(0, call.number - len(image))))
        image[call.number : call.number + len(call.data)] = call.data


def replay_power_cuts(calls: list[Call], folder: Path) -> tuple[int, int, int]:
    """Cut the power at each response.

    Return the numbers of acknowledged bookings, of power cuts that lost one, and of checkpoints
    that synced the database.
    """
    disk, chance, acknowledged, lacking, checkpoints = Disk(), random.Random(5), {}, 0, 0
    bookings = {call: body for call, status, _, body in responses_in(calls) if status in (200, 201)}
    # A response counts from its begin, a write from its end.
    for call in sorted(calls, key=lambda call: call.began if call in bookings else call.ended):
        if call not in bookings:
            disk.follow(call)
            checkpoints += call.is_sync and call.file == "bookings.db"
            continue
        acknowledged[bookings[call]["id"]] = tuple(bookings[call].values())
        image = disk.leave(folder, chance, chance.choice((0.0, 0.0, 0.5, 0.9)))
        with contextlib.closing(sqlite3.connect(image)) as db:
            try:
                rows = {row[0]: row for row in db.execute("SELECT * FROM bookings")}
                sound = db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            except sqlite3.DatabaseError:
                rows, sound = {}, False
        lacking += not sound or any(rows.get(number) != row for number, row in acknowledged.items())
    return len(acknowledged), lacking, checkpoints


@pytest.mark.parametrize(
    ("patch", "sound"), [("", True), (NO_SYNC, False)], ids=["unchanged", "without sync"]
)
def test_power_cut_loses_no_acknowledged_booking(tmp_path: Path, patch: str, sound: bool) -> None:
    threads, each = 8, 20
    calls_to_trace = "pwrite64,fdatasync,fsync,ftruncate,unlink,sendto"
    with serving_traced(tmp_path, FREQUENT_CHECKPOINTS + patch, calls_to_trace) as server:

        def load(number: int) -> list[int]:
            seen = []
            for day in range(1, each + 1):
                # Every fifth booking is sent twice.
                for _ in range(2 if day % 5 == 0 else 1):
                    response = server.book(f"t{number}", slot_on(day), f"{number}/{day}")
                    seen.append(response.status)
            return seen

        seen = [status for some in at_once(threads, load) for status in some]
        assert (seen.count(201), seen.count(200)) == (threads * each, threads * each // 5)
        assert len(server.rows()) == threads * each
        calls = calls_of(server)
    folder = tmp_path / "image"
    folder.mkdir()
    acknowledged, lacking, checkpoints = replay_power_cuts(calls, folder)
    assert acknowledged == threads * each
    assert checkpoints > 3
    assert lacking == 0 if sound else lacking > acknowledged / 2


# --- Order of events, from a replaced sync


@pytest.mark.parametrize("status", OUTCOMES)
def test_sync_follows_decision_and_blocks_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    path = tmp_path / "bookings.db"
    create_database(str(path))
    with contextlib.closing(SQLiteStore(str(path))) as store:
        assert store.book(NewBooking(*FIRST))[0] is Outcome.CREATED
        rows = [FIRST, SECOND] if status == 201 else [FIRST]
        synced: list[str] = []

        def sync(descriptor: int) -> None:
            assert os.path.samestat(os.fstat(descriptor), os.stat(f"{path}-wal"))
            writer = sqlite3.connect(path, timeout=0, isolation_level=None)
            with contextlib.closing(writer):
                found = writer.execute(
                    "SELECT tenant_id, start_time_utc, idempotency_key FROM bookings ORDER BY id"
                )
                assert found.fetchall() == rows
                writer.execute("BEGIN IMMEDIATE")
                writer.execute("ROLLBACK")
            if fcntl := write_queue.fcntl:
                with open(f"{path}-wal", "rb") as wal:
                    fcntl.flock(wal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            synced.append("synced")

        monkeypatch.setattr(sqlite, "fdatasync", sync)
        outcome, _ = store.book(NewBooking(*OUTCOMES[status]))
        expected = {
            201: Outcome.CREATED,
            200: Outcome.REPLAYED,
            409: Outcome.SLOT_TAKEN,
            422: Outcome.KEY_REUSED,
        }
        assert outcome is expected[status]
        assert synced == ["synced"]


def test_response_waits_for_sync(tmp_path: Path) -> None:
    with serving(tmp_path, patch=CONTROLLED_SYNC) as server, contextlib.ExitStack() as stack:
        first = server.book(*FIRST)
        assert first.status == 201
        syncs, hold = tmp_path / "syncs", tmp_path / "hold"
        before = len(syncs.read_text().splitlines())
        hold.touch()
        clients = {}
        # Send each request after the one before it has reached its sync.
        for count, (status, booking) in enumerate(OUTCOMES.items(), 1):
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
            stack.callback(client.close)
            client.request("POST", "/bookings", json.dumps(fields_of(booking)), JSON)
            clients[status] = client
            decided = before + count
            until(lambda size=2 * decided: syncs.stat().st_size == size)  # type: ignore[misc]
        # Readers see the booking and other writers do not wait, but no response has been sent.
        assert server.rows() == [FIRST, SECOND]
        server.insert([("acme", slot_on(3), "k3")])
        sockets: list[socket.socket] = [client.sock for client in clients.values()]
        assert select.select(sockets, [], [], 0.3)[0] == []
        hold.unlink()
        assert [client.getresponse().status for client in clients.values()] == list(clients)
        assert len(server.rows()) == 3
        assert server.log.read_text() == ""


def test_failed_sync_is_no_success(tmp_path: Path) -> None:
    with serving(tmp_path, patch=CONTROLLED_SYNC) as server:
        first = server.book(*FIRST)
        assert first.status == 201
        fail = tmp_path / "fail"
        fail.touch()
        for booking in OUTCOMES.values():
            response = server.book(*booking)
            assert_problem(response, 503, "database-unavailable")
            assert response.headers["Retry-After"]
        # Reads need no sync, and no row is incomplete.
        assert server.call("GET", "/bookings?tenant_id=acme").status == 200
        assert server.rows()[0] == FIRST
        log = server.log.read_text()
        assert log.count(os.strerror(errno.EIO)) == len(OUTCOMES)
        assert "Traceback" not in log
        fail.unlink()
        again = server.book(*SECOND)
        assert again.status in (200, 201)
        replay = server.book(*FIRST)
        assert (replay.status, replay.body) == (200, first.body)
        for status in (409, 422):
            assert server.book(*OUTCOMES[status]).status == status
        assert server.rows() == [FIRST, SECOND]
        assert server.log.read_text() == log


# --- kill -9


class RetryingClient:
    """Books one slot after the other. A request without a response is sent to the next server."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: dict[int, Any] = {}
        self.replayed = 0
        self._next = 0

    def ask(self, connection: http.client.HTTPConnection, number: int) -> None:
        body = fields_of((self.name, slot_at(60 * number), f"{self.name}/{number}"))
        connection.request("POST", "/bookings", json.dumps(body), JSON)
        response = connection.getresponse()
        booking = json.loads(response.read())
        assert response.status in (200, 201), booking
        assert {name: booking[name] for name in body} == body
        assert self.acknowledged.setdefault(number, booking) == booking
        self.replayed += response.status == 200

    def work(self, port: int, stop: threading.Event) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
        ended = contextlib.suppress(OSError, http.client.HTTPException)
        with contextlib.closing(connection), ended:
            while not stop.is_set():
                self.ask(connection, self._next)
                self._next += 1


def test_killed_server_loses_no_acknowledged_booking(tmp_path: Path) -> None:
    """The server and its workers are killed 20 times, at moments drawn with a fixed seed."""
    rounds, chance = 20, random.Random(9)
    clients = [RetryingClient(f"t{number}") for number in range(6)]
    progress = []
    for _ in range(rounds):
        with contextlib.closing(Server(tmp_path, "--workers=2")) as server:
            with contextlib.closing(sqlite3.connect(server.database)) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            stop, before = threading.Event(), sum(len(client.acknowledged) for client in clients)
            wanted = before + chance.randint(20, 120)
            moment = chance.random() * 0.02

            def work(
                number: int,
                server: Server = server,
                stop: threading.Event = stop,
                wanted: int = wanted,
                moment: float = moment,
            ) -> str:
                try:
                    if number < len(clients):
                        clients[number].work(server.port, stop)
                    else:
                        until(lambda: sum(len(client.acknowledged) for client in clients) >= wanted)
                        stop.wait(moment)
                        server.close()
                except AssertionError as error:
                    return str(error) or "failed"
                finally:
                    stop.set()
                return ""

            # The clients still work when the server is killed; only that ends them.
            assert at_once(len(clients) + 1, work) == [""] * (len(clients) + 1)
        progress.append(sum(len(client.acknowledged) for client in clients) - before)
    assert min(progress) >= 20
    with contextlib.closing(Server(tmp_path, "--workers=2")) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
        with contextlib.closing(connection):
            for client in clients:
                client.ask(connection, client._next)
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            names = [column[1] for column in db.execute("PRAGMA table_info(bookings)")]
            rows = [dict(zip(names, row)) for row in db.execute("SELECT * FROM bookings")]
        acknowledged = {
            booking["id"]: booking for client in clients for booking in client.acknowledged.values()
        }
        assert {row["id"]: row for row in rows} == acknowledged
        assert len({(row["tenant_id"], row["start_time_utc"]) for row in rows}) == len(rows)
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
