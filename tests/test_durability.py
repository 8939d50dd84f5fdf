"""An answer tells of nothing that a power cut could undo, and `kill -9` loses nothing acknowledged.

The write-ahead log is synced after the commit and before the answer, whatever the answer is, and a sync that
fails is no success. The order is read from a trace of the system calls where there is strace, and from a
replaced sync everywhere. From the trace the files are also rebuilt as a power cut would have left them. Each
judge of a trace is shown a program without the sync, which it must condemn.
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

from bookings import store
from bookings.store import Outcome, SQLiteStore
from tests.helpers.servers import SOON, Server, assert_problem, at_once, patched, until
from tests.helpers.storage import CONTROLLED_SYNC

SLOT = "2026-01-{:02}T10:00:00Z"
NO_SYNC = "store._sync = lambda descriptor: None"
# Each outcome of a POST after the first booking: status, and what the request differs in.
OUTCOMES = {201: (2, "k2"), 200: (1, "k1"), 409: (1, "other"), 422: (2, "k1")}


@cache
def _tracer() -> tuple[str, ...]:
    """strace with what it needs here, or nothing where it is not there or not allowed."""
    command = ("strace", "-D", "-f", "--seccomp-bpf", "-q", "-y", "-xx", "-s", "8192")
    if not shutil.which("strace"):
        return ()
    tried = subprocess.run([*command, "-o", os.devnull, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


@contextlib.contextmanager
def _serving(base: Path, *flags: str, patch: str = "", trace: str = "") -> Iterator[Server]:
    """A server whose `store` is changed by `patch` before it starts, with a log of the calls in `trace`."""
    program = patched(base, patch)
    if trace:
        if not _tracer():
            pytest.skip("there is no strace, or it may not trace")
        command = [
            *_tracer(),
            "-o",
            str(base / "trace"),
            "-e",
            f"trace={trace}",
            sys.executable,
            str(program),
        ]
        program = base / "traced.py"
        program.write_text(f"import os, sys\nos.execvp('strace', {command!r} + sys.argv[1:])\n")
    with contextlib.closing(Server(base, *flags, program=program)) as started:
        yield started


# --- The order, from a trace


@dataclass(frozen=True)
class Call:
    """A system call; `began` and `ended` are places in the trace, which is in the order of what happened."""

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


_LINE = re.compile(r"([0-9]+) +(?:<\.\.\. \w+ resumed>)?(.*?)( <unfinished \.\.\.>)?")
_CALL = re.compile(r'(\w+)\((?:[0-9]+<([^>]*)>)?(?:, )?(?:"([^"]*)")?(.*)\) += (-?[0-9]+).*')
_LAST_NUMBER = re.compile(r".*?([0-9]+)")


def _bytes(hexadecimal: str | None) -> bytes:
    return bytes.fromhex((hexadecimal or "").replace("\\x", ""))


def _traced(server: Server) -> list[Call]:
    """What a server has called until it was stopped, in the order in which the calls ended."""
    log = server.log.with_name("trace")
    # strace fills a short number up with spaces.
    end = re.compile(rf"^{server.process.pid} +\+\+\+ exited with 0 \+\+\+$", re.MULTILINE)
    assert server.stop() == 0
    until(lambda: end.search(log.read_text()[-2000:]))
    calls: list[Call] = []
    pending: dict[str, tuple[int, str]] = {}
    for place, line in enumerate(log.read_text().splitlines()):
        match = _LINE.fullmatch(line)
        assert match, line
        thread, text, unfinished = match.groups()
        began, begun = pending.pop(thread, (place, ""))
        if unfinished:
            pending[thread] = (place, text)
            continue
        call = _CALL.fullmatch(begun + text)
        if call:
            name, path, data, numbers, result = call.groups()
            number = _LAST_NUMBER.fullmatch(numbers)
            # Of unlink, the only argument is the path.
            file = _bytes(path or data).decode().rpartition("/")[2]
            calls.append(
                Call(
                    thread,
                    name,
                    file,
                    _bytes(data),
                    int(number[1]) if number else 0,
                    int(result),
                    began,
                    place,
                )
            )
    return calls


def _answers(calls: Iterable[Call]) -> Iterator[tuple[Call, int, str, Any]]:
    """(call, status, id of the request, body) of each answer."""
    for call in calls:
        if call.name == "sendto" and call.data.startswith(b"HTTP/1.1 "):
            head, _, body = call.data.partition(b"\r\n\r\n")
            found = re.search(rb"X-Request-ID: (\S+)", head)
            assert found
            yield call, int(head[9:12]), found[1].decode(), json.loads(body)


def _out_of_order(calls: list[Call]) -> list[str]:
    """Answers sent before the log was synced as their outcome asks.

    The ids of the requests that compete for one booking begin alike.
    """
    files = ("bookings.db", "bookings.db-wal")
    answers = list(_answers(calls))
    committed: dict[str, int] = {}
    for sent, status, name, _ in answers:
        if status == 201:
            writes = [c for c in calls if (c.thread, c.name, c.file) == (sent.thread, "pwrite64", files[1])]
            committed[name.partition(".")[0]] = max(c.ended for c in writes if c.ended < sent.began)
    found = []
    for sent, status, name, _ in answers:
        own = [c for c in calls if c.thread == sent.thread and c.ended < sent.began]
        looked = max(
            (c.ended for c in own if c.name in ("pwrite64", "pread64") and c.file in files), default=0
        )
        synced = max((c.began for c in own if c.is_sync and c.file == files[1]), default=-1)
        if synced < looked or synced < committed[name.partition(".")[0]]:
            found.append(f"{name}: {status}")
    return found


@pytest.mark.parametrize(
    ("patch", "sound"), [("", True), (NO_SYNC, False)], ids=["as it is", "without the sync"]
)
def test_the_log_is_synced_after_the_commit_and_before_the_answer(
    tmp_path: Path, patch: str, sound: bool
) -> None:
    """Of every outcome; those who lose sync for themselves what the winner may not have synced yet."""
    trace = "pwrite64,pread64,fdatasync,fsync,sendto"
    with _serving(tmp_path, "--workers=2", patch=patch, trace=trace) as server:

        def ask(number: int, day: int) -> int:
            # Two ask under each key, and one uses the first key for another slot.
            key, start = (f"{day}/0", 20 + day) if number == 8 else (f"{day}/{number // 2}", day)
            return server.book("acme", SLOT.format(start), key, X_Request_ID=f"{day}.{number}").status

        seen: list[int] = []
        for day in range(1, 6):
            # First, so that the key is used when another asks for it.
            seen.append(ask(0, day))
            seen += at_once(8, lambda number, day=day: ask(number + 1, day))
        for day in range(6, 11):
            seen += at_once(8, lambda number, day=day: ask(number, day))
        rows = server.rows()
        calls = _traced(server)
    assert {status: seen.count(status) for status in OUTCOMES} == {201: 10, 200: 10, 409: 60, 422: 5}
    assert [row[1] for row in rows] == [SLOT.format(day) for day in range(1, 11)]
    assert sorted(status for _, status, _, _ in _answers(calls)) == sorted(seen)
    late = _out_of_order(calls)
    if sound:
        assert late == []
    else:
        assert {name[-3:] for name in late} == {"201", "200", "409", "422"}


# --- The power cut


class Disk:
    """Files as they are after a power cut: what was synced, and by chance some of what was not."""

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
            # A write that was under way when the sync began may have missed it.
            for each in pending:
                if each.ended < call.began:
                    _apply(image, each)
            self._pending[call.file] = [each for each in pending if each.ended > call.began]

    def leave(self, folder: Path, chance: random.Random, part: float) -> Path:
        """Write the database and its log into the folder, with `part` of what nobody has synced."""
        for file in ("bookings.db", "bookings.db-wal"):
            image = bytearray(self.synced.get(file, b""))
            for each in self._pending.get(file, ()):
                if chance.random() < part:
                    _apply(image, each)
            (folder / file).write_bytes(image)
        return folder / "bookings.db"


def _apply(image: bytearray, call: Call) -> None:
    if call.name == "ftruncate":
        del image[call.number :]
        image.extend(bytes(call.number - len(image)))
    else:
        image.extend(bytes(max(0, call.number - len(image))))
        image[call.number : call.number + len(call.data)] = call.data


def _images_that_lack_bookings(calls: list[Call], folder: Path) -> tuple[int, int, int]:
    """Cut the power at each answer.

    How many bookings were answered, how often one was gone, and how often a checkpoint synced the database.
    """
    disk, chance, acknowledged, lacking, checkpoints = Disk(), random.Random(5), {}, 0, 0
    answers = {call: body for call, status, _, body in _answers(calls) if status in (200, 201)}
    # An answer counts from when it began to leave, a write from when it was done.
    for call in sorted(calls, key=lambda call: call.began if call in answers else call.ended):
        if call not in answers:
            disk.follow(call)
            checkpoints += call.is_sync and call.file == "bookings.db"
            continue
        acknowledged[answers[call]["id"]] = tuple(answers[call].values())
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
    ("patch", "sound"), [("", True), (NO_SYNC, False)], ids=["as it is", "without the sync"]
)
def test_a_power_cut_takes_no_acknowledged_booking(tmp_path: Path, patch: str, sound: bool) -> None:
    # A checkpoint after every 25th booking or so, and not after the 1000th: a short test has several.
    often = "store.CHECKPOINT_PAGES = 100\n"
    threads, each = 8, 20
    trace = "pwrite64,fdatasync,fsync,ftruncate,unlink,sendto"
    with _serving(tmp_path, "--workers=2", patch=often + patch, trace=trace) as server:

        def load(number: int) -> list[int]:
            seen = []
            for day in range(1, each + 1):
                seen += [server.book(f"t{number}", SLOT.format(day), f"{number}/{day}").status]
                if day % 5 == 0:
                    seen += [server.book(f"t{number}", SLOT.format(day), f"{number}/{day}").status]
            return seen

        seen = [status for some in at_once(threads, load) for status in some]
        assert (seen.count(201), seen.count(200)) == (threads * each, threads * each // 5)
        assert len(server.rows()) == threads * each
        calls = _traced(server)
    folder = tmp_path / "image"
    folder.mkdir()
    acknowledged, lacking, checkpoints = _images_that_lack_bookings(calls, folder)
    assert acknowledged == threads * each
    assert checkpoints > 3
    assert lacking == 0 if sound else lacking > acknowledged / 2


# --- The order, from a replaced sync


@pytest.mark.parametrize("status", OUTCOMES)
def test_a_sync_comes_after_the_decision_and_keeps_no_writer_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    path = tmp_path / "bookings.db"
    store.create_database(str(path))
    with contextlib.closing(SQLiteStore(str(path))) as opened:
        assert opened.book("acme", SLOT.format(1), "k1")[0] is Outcome.CREATED
        day, key = OUTCOMES[status]
        rows = [("acme", SLOT.format(1), "k1"), *([("acme", SLOT.format(2), "k2")] if status == 201 else [])]
        synced: list[str] = []

        def sync(descriptor: int) -> None:
            assert os.path.samestat(os.fstat(descriptor), os.stat(f"{path}-wal"))
            with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
                found = other.execute(
                    "SELECT tenant_id, start_time_utc, idempotency_key FROM bookings ORDER BY id"
                )
                assert found.fetchall() == rows
                other.execute("BEGIN IMMEDIATE")
                other.execute("ROLLBACK")
            if store.fcntl:
                with open(f"{path}-wal", "rb") as wal:
                    store.fcntl.flock(wal, store.fcntl.LOCK_EX | store.fcntl.LOCK_NB)
            synced.append("synced")

        monkeypatch.setattr(store, "_sync", sync)
        outcome, _ = opened.book("acme", SLOT.format(day), key)
        expected = {
            201: Outcome.CREATED,
            200: Outcome.REPLAYED,
            409: Outcome.SLOT_TAKEN,
            422: Outcome.KEY_REUSED,
        }
        assert outcome is expected[status]
        assert synced == ["synced"]


def test_no_answer_leaves_while_its_sync_lasts(tmp_path: Path) -> None:
    with _serving(tmp_path, patch=CONTROLLED_SYNC) as server, contextlib.ExitStack() as stack:
        first = server.book("acme", SLOT.format(1), "k1")
        assert first.status == 201
        syncs, hold = tmp_path / "syncs", tmp_path / "hold"
        before = len(syncs.read_text().splitlines())
        hold.touch()
        clients = {}
        # Each is let in when the one before it has been decided.
        for count, (status, (day, key)) in enumerate(OUTCOMES.items(), 1):
            client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
            stack.callback(client.close)
            body = {"tenant_id": "acme", "start_time_utc": SLOT.format(day), "idempotency_key": key}
            client.request("POST", "/bookings", json.dumps(body), {"Content-Type": "application/json"})
            clients[status] = client
            decided = before + count
            until(lambda size=2 * decided: syncs.stat().st_size == size)  # type: ignore[misc]
        # Readers see the booking, and no writer waits for the disk; but nobody is told of it.
        assert server.rows() == [("acme", SLOT.format(1), "k1"), ("acme", SLOT.format(2), "k2")]
        assert store.insert_by_hand(str(server.database), "acme", SLOT.format(3), "k3") == ""
        sockets: list[socket.socket] = [client.sock for client in clients.values()]
        assert select.select(sockets, [], [], 0.3)[0] == []
        hold.unlink()
        assert [client.getresponse().status for client in clients.values()] == list(clients)
        assert len(server.rows()) == 3
        assert server.log.read_text() == ""


def test_a_sync_that_fails_is_no_success(tmp_path: Path) -> None:
    with _serving(tmp_path, patch=CONTROLLED_SYNC) as server:
        first = server.book("acme", SLOT.format(1), "k1")
        assert first.status == 201
        fail = tmp_path / "fail"
        fail.touch()
        for day, key in OUTCOMES.values():
            answer = server.book("acme", SLOT.format(day), key)
            assert_problem(answer, 503, "database-unavailable")
            assert answer.headers["Retry-After"]
        # Reading asks for no sync, and nothing is half-written.
        assert server.call("GET", "/bookings?tenant_id=acme").status == 200
        assert server.rows()[0] == ("acme", SLOT.format(1), "k1")
        log = server.log.read_text()
        assert log.count(os.strerror(errno.EIO)) == len(OUTCOMES)
        assert "Traceback" not in log
        fail.unlink()
        again = server.book("acme", SLOT.format(2), "k2")
        assert again.status in (200, 201)
        replay = server.book("acme", SLOT.format(1), "k1")
        assert (replay.status, replay.body) == (200, first.body)
        assert server.book("acme", SLOT.format(1), "other").status == 409
        assert server.book("acme", SLOT.format(2), "k1").status == 422
        assert server.rows() == [("acme", SLOT.format(1), "k1"), ("acme", SLOT.format(2), "k2")]
        assert server.log.read_text() == log


# --- kill -9


class _Client:
    """Books one slot after the other, and sends again what was not answered, until it is told to stop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: dict[int, Any] = {}
        self.replayed = 0
        self._next = 0

    def ask(self, connection: http.client.HTTPConnection, number: int) -> None:
        start = f"2026-01-{number // 1440 + 1:02}T{number // 60 % 24:02}:{number % 60:02}:00Z"
        body = {"tenant_id": self.name, "start_time_utc": start, "idempotency_key": f"{self.name}/{number}"}
        connection.request("POST", "/bookings", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        assert response.status in (200, 201), answer
        assert {name: answer[name] for name in body} == body
        assert self.acknowledged.setdefault(number, answer) == answer
        self.replayed += response.status == 200

    def work(self, port: int, stop: threading.Event) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            while not stop.is_set():
                self.ask(connection, self._next)
                self._next += 1


def test_kill_9_of_all_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """At moments of a seeded chance. What had no answer is a client's first request to the next server."""
    rounds, chance = 20, random.Random(9)
    clients = [_Client(f"t{number}") for number in range(6)]
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

            # The kill comes while the clients work: only the dead server ends them.
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
        acknowledged = {answer["id"]: answer for client in clients for answer in client.acknowledged.values()}
        assert {row["id"]: row for row in rows} == acknowledged
        assert len({(row["tenant_id"], row["start_time_utc"]) for row in rows}) == len(rows)
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
