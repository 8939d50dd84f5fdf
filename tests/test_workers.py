"""What several processes on one socket keep of what one promises, and what they add: one that dies is replaced, a signal
to any of them stops or replaces cleanly, none is left behind, and no line that they wait in decides who gets a slot.

Workers are told apart by stopping all others (SIGSTOP): whatever is answered then, the one that is left has answered.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bookings.workers import SAME_SECONDS
from tests.helpers.processes import (
    alive,
    requires_fork,
    run_and_fail,
    running_processes,
    serving,
    workers_of,
)
from tests.helpers.servers import (
    KILL,
    ROOT,
    SOON,
    Response,
    Server,
    assert_problem,
    at_once,
    patched,
    until,
)

# A stop that waits for nobody takes no longer than this; one that sat out its drain would take 8 s.
AT_ONCE = 2.0
SLOT = "2026-01-{:02}T10:00:00Z"


def _refused(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=SOON).close()
    except OSError as error:
        return error.errno in (errno.ECONNREFUSED, errno.ECONNRESET)
    return False


@contextlib.contextmanager
def _only(worker: int, workers: set[int]) -> Iterator[None]:
    """All workers but this one stand still."""
    others = workers - {worker}
    try:
        for other in others:
            os.kill(other, signal.SIGSTOP)
        until(lambda: all(running_processes()[other][1].startswith("T") for other in others))
        yield
    finally:
        for other in others:
            os.kill(other, signal.SIGCONT)


def _send_head(server: Server, day: int) -> tuple[socket.socket, bytes]:
    """A booking whose head has arrived, so that it is in flight, and the body that is still to be sent."""
    body = json.dumps(
        {"tenant_id": "acme", "start_time_utc": SLOT.format(day), "idempotency_key": f"held {day}"}
    ).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
    head = "POST /bookings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return connection, body


@contextlib.contextmanager
def _in_flight(server: Server, workers: set[int]) -> Iterator[list[tuple[socket.socket, bytes]]]:
    """A booking in flight in each worker."""
    with contextlib.ExitStack() as stack:
        held = []
        for day, worker in enumerate(sorted(workers), 1):
            with _only(worker, workers):
                held.append(_send_head(server, day))
            stack.enter_context(held[-1][0])
        yield held


def _finish(held: tuple[socket.socket, bytes]) -> bytes:
    connection, body = held
    connection.sendall(body)
    with connection.makefile("rb") as answer:
        return answer.read()


def _signal(server: Server, number: int, to: str) -> None:
    (os.killpg if to == "group" else os.kill)(server.process.pid, number)


def _ends(server: Server, seconds: float) -> int:
    return server.process.wait(seconds)


@requires_fork
def test_a_stop_leaves_one_file_whichever_worker_closes_it_last(tmp_path: Path) -> None:
    # Just started, workers look at the clock in step and close together: without the parent, every third stop left a log.
    for number in range(10):
        base = tmp_path / str(number)
        base.mkdir()
        with contextlib.closing(Server(base, "--workers", "2")) as server:
            assert server.stop() == 0
            assert sorted(os.listdir(base)) == ["bookings.db", "server.log"]


# --- How many


@pytest.mark.parametrize("how", ["flag", "environment"])
@pytest.mark.parametrize(
    "value",
    ["0", "-1", "+2", "1.5", "two", "1_0", " 2", "2 ", "٢", "²", "0x2", "1000", "9" * 5000],
    ids=lambda value: value[:5],
)
def test_a_number_of_workers_that_is_none(tmp_path: Path, how: str, value: str) -> None:
    database = tmp_path / "bookings.db"
    flag = [f"--workers={value}"] if how == "flag" else []
    environment = {**os.environ, **({"WORKERS": value} if how == "environment" else {}), "PYTHONUTF8": "1"}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--port=0", f"--database={database}", *flag],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=SOON,
        check=False,
    )
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "--workers" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not database.exists()


@requires_fork
@pytest.mark.parametrize(
    ("flags", "environment", "children"),
    [
        (["--workers=1"], {}, 0),
        ([], {"WORKERS": "1"}, 0),
        (["--workers=3"], {}, 3),
        ([], {"WORKERS": "3"}, 3),
        (["--workers=2"], {"WORKERS": "4"}, 2),
    ],
)
def test_as_many_workers_as_asked_for(
    tmp_path: Path, flags: list[str], environment: dict[str, str], children: int
) -> None:
    with serving(tmp_path, *flags, **environment) as server:
        assert len(workers_of(server)) == children
        assert server.book().status == 201
        assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]
        assert server.stop() == 0
        assert server.log.read_text() == ""


@requires_fork
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cannot choose the processors here")
@pytest.mark.parametrize("processors", [1, 2])
def test_one_worker_for_each_processor(tmp_path: Path, processors: int) -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < processors:
        pytest.skip("there are fewer processors")
    os.sched_setaffinity(0, sorted(allowed)[:processors])
    try:
        with serving(tmp_path) as server:
            # A single one serves in the first process itself.
            assert len(workers_of(server)) == (processors if processors > 1 else 0)
            assert server.book().status == 201
            assert len(server.rows()) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@requires_fork
def test_each_worker_answers(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=3") as server:
        workers = workers_of(server)
        for day, worker in enumerate(sorted(workers), 1):
            with _only(worker, workers):
                keys = ("k1", f"{day}", f"{day}", "other")
                answers = [server.book("acme", SLOT.format(day), key).status for key in keys]
            # The first key is taken in the first worker, and every other worker knows of it.
            assert answers == ([201, 409, 409, 409] if day == 1 else [422, 201, 200, 409])
        expected = [("acme", SLOT.format(1), "k1"), *(("acme", SLOT.format(day), f"{day}") for day in (2, 3))]
        assert server.rows() == expected
        assert server.log.read_text() == ""


# --- Workers that die


@requires_fork
def test_a_killed_worker_is_replaced_while_the_others_serve(tmp_path: Path) -> None:
    """Clients book all the while; what a kill left unanswered is sent again, and is never refused."""
    with serving(tmp_path, "--workers=3") as server:
        before = workers_of(server)
        stop, booked = threading.Event(), [0] * 4

        def load(number: int) -> list[tuple[str, Response]]:
            acknowledged = []
            while not stop.is_set():
                key = f"{number}/{len(acknowledged)}"
                start = f"2026-01-01T{number:02}:{len(acknowledged) // 60:02}:{len(acknowledged) % 60:02}Z"
                try:
                    answer = server.book(f"t{number}", start, key)
                except OSError:  # its worker was the one
                    continue
                assert answer.status in (200, 201), answer.body
                acknowledged.append((key, answer))
                booked[number] = len(acknowledged)
            return acknowledged

        def kill() -> list[tuple[str, Response]]:
            try:
                for worker in sorted(before):
                    goal = sum(booked) + 20
                    os.kill(worker, KILL)
                    # Two are left, and they go on at once.
                    until(lambda goal=goal: sum(booked) >= goal)
                until(lambda: len(workers_of(server)) == 3)
            finally:
                stop.set()
            return []

        done = at_once(5, lambda number: kill() if number == 4 else load(number))
        after = workers_of(server)
        assert len(after) == 3
        assert not after & before
        for worker in sorted(after):
            with _only(worker, after):
                assert server.call("GET", "/ready").status == 200
        acknowledged = [each for some in done for each in some]
        listed = {
            each["idempotency_key"]: each
            for number in range(4)
            for each in server.call("GET", f"/bookings?tenant_id=t{number}").json
        }
        assert all(listed[key] == answer.json for key, answer in acknowledged)
        # At the stop each client had at most one request more under way.
        assert len({row[:2] for row in server.rows()}) == len(server.rows()) == len(acknowledged)
        ended = f"ended with status {-int(KILL)}; starting another"
        assert [line for line in server.log.read_text().splitlines() if ended not in line] == []
        assert server.log.read_text().count(ended) == 3
        assert server.stop() == 0


@requires_fork
@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_does_not_serve_does_not_say_so(tmp_path: Path, workers: str) -> None:
    lost = """
def lost(*arguments):
    raise store.CannotOpen("the database was lost")
store.SQLiteStore.__init__ = lost
"""
    program = patched(tmp_path, lost)
    ended = subprocess.run(
        [sys.executable, str(program), "--port=0", "--database=bookings.db", f"--workers={workers}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "the database was lost\n" in ended.stderr and "Traceback" not in ended.stderr


# Every worker waits before it opens the database until the file `hold` is gone, and says so in `starting`.
_HELD_BEFORE = """
import os, time
opened = store.SQLiteStore.__init__
def held(*arguments):
    open("starting", "w").close()
    while os.path.exists("hold"):
        time.sleep(0.005)
    opened(*arguments)
store.SQLiteStore.__init__ = held
"""


@requires_fork
def test_a_log_that_goes_before_the_workers_come(tmp_path: Path) -> None:
    """As when another server ends, or makes the same database, while this one starts."""
    (tmp_path / "hold").touch()
    with contextlib.closing(sqlite3.connect(tmp_path / "bookings.db")) as other:
        other.executescript(f"PRAGMA journal_mode = WAL; {(ROOT / 'schema.sql').read_text(encoding='utf-8')}")
        with ThreadPoolExecutor(1) as pool:
            started = pool.submit(Server, tmp_path, "--workers=2", program=patched(tmp_path, _HELD_BEFORE))
            until((tmp_path / "starting").exists)
            other.close()
            assert not (tmp_path / "bookings.db-wal").exists()
            (tmp_path / "hold").unlink()
            server = started.result(SOON)
    with contextlib.closing(server):
        assert server.book().status == 201
        assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]
        assert server.log.read_text() == ""


@requires_fork
def test_workers_that_die_at_once_again_and_again(tmp_path: Path) -> None:
    """The database has vanished: none is made in its place, and the server ends by itself."""
    with serving(tmp_path, "--workers=2") as server:
        assert server.book().status == 201
        workers = workers_of(server)
        moved = tmp_path / "moved"
        moved.mkdir()
        for path in tmp_path.glob("bookings.db*"):
            path.rename(moved / path.name)
        for worker in workers:
            os.kill(worker, KILL)
        assert _ends(server, SOON) == 1
        lines = server.log.read_text().splitlines()
        assert sum(line.endswith("workers die as soon as they start; giving up") for line in lines) == 1
        assert f"{server.database}: unable to open database file" in "".join(lines)
        assert "Traceback" not in "".join(lines)
        # One line of the cause and one of the start for each try, and not thousands.
        assert len(lines) < 50
        with pytest.raises(ProcessLookupError):  # there is nobody in the group
            os.killpg(server.process.pid, 0)
        assert _refused(server)
        assert not server.database.exists()
        server.database = moved / "bookings.db"
        assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]


@requires_fork
def test_a_terminated_worker_answers_what_it_has_and_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2") as server:
        workers = workers_of(server)
        told, other = sorted(workers)
        with _only(told, workers):
            held = _send_head(server, 1)
        with held[0]:
            os.kill(told, signal.SIGTERM)
            # While it waits for the rest of its request, it takes no other.
            answers = [server.book("acme", SLOT.format(day), f"k{day}") for day in range(2, 12)]
            assert {answer.status for answer in answers} == {201}
            assert _finish(held).startswith(b"HTTP/1.1 201 ")
        until(lambda: told not in workers_of(server) and len(workers_of(server)) == 2)
        assert other in workers_of(server)
        assert len(server.rows()) == 11
        assert "ended with status 0; starting another" in server.log.read_text()
        assert server.stop() == 0


@requires_fork
def test_ctrl_c_to_a_worker_alone_is_not_for_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2") as server:
        workers = workers_of(server)
        for worker in workers:
            os.kill(worker, signal.SIGINT)
        assert {server.book(start=SLOT.format(day), key=f"{day}").status for day in range(1, 9)} == {201}
        assert workers_of(server) == workers
        assert len(server.rows()) == 8
        assert server.log.read_text() == ""


# --- Stopping


@requires_fork
@pytest.mark.parametrize("to", ["parent", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("count", [1, 3])
def test_a_stop_with_nothing_in_flight(tmp_path: Path, count: int, number: int, to: str) -> None:
    with serving(tmp_path, f"--workers={count}") as server:
        workers = workers_of(server)
        assert server.book().status == 201
        with contextlib.ExitStack() as stack:
            idle = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=SOON))
                for _ in range(6)
            ]
            for connection in idle:
                connection.sendall(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            _signal(server, number, to)
            assert _ends(server, AT_ONCE) == 0
            assert [connection.recv(1) for connection in idle] == [b""] * 6
        assert not alive(workers)
        assert _refused(server)
        assert server.log.read_text() == ""
        assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]


@requires_fork
@pytest.mark.parametrize("to", ["parent", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stop_answers_what_is_in_flight_in_any_worker(tmp_path: Path, number: int, to: str) -> None:
    with serving(tmp_path, "--workers=3") as server:
        workers = workers_of(server)
        with _in_flight(server, workers) as held:
            _signal(server, number, to)
            until(lambda: _refused(server))
            assert server.process.poll() is None
            answers = [_finish(each) for each in held]
        for answer in answers:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 201 ")
            assert b"\r\nConnection: close" in head
            assert json.loads(body)["tenant_id"] == "acme"
        assert _ends(server, AT_ONCE) == 0
        assert not alive(workers)
        assert server.log.read_text() == ""
        assert sorted(server.rows()) == [("acme", SLOT.format(day), f"held {day}") for day in (1, 2, 3)]


@requires_fork
@pytest.mark.parametrize("to", ["parent", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_second_signal_ends_it_now(tmp_path: Path, number: int, to: str) -> None:
    with serving(tmp_path, "--workers=3") as server:
        workers = workers_of(server)
        with _in_flight(server, workers) as held:
            _signal(server, number, to)
            until(lambda: _refused(server))
            assert alive(workers) == workers
            time.sleep(SAME_SECONDS)
            _signal(server, number, to)
            # Whether it dies of the signal or sees its workers die of theirs first, is a race.
            assert _ends(server, AT_ONCE) in (-number, 1)
            until(lambda: not alive(workers), AT_ONCE)
            for connection, _ in held:
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        assert server.rows() == []
        assert "Traceback" not in server.log.read_text()


# After so many processes there is no room for another, as with `ulimit -u`.
_NO_MORE = """
import errno, os
real, left = os.fork, [%d]
def fork():
    left[0] -= 1
    if left[0] < 0:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()
os.fork = fork
"""


@requires_fork
@pytest.mark.parametrize("room", [0, 1])
def test_no_room_for_so_many_processes(tmp_path: Path, room: int) -> None:
    program = str(patched(tmp_path, _NO_MORE % room))
    line = run_and_fail(tmp_path, sys.executable, program, "--port=0", "--workers=3", "--database=x.db")
    assert line == f"run.py: cannot start: {os.strerror(errno.EAGAIN)}\n"
    assert not [name for name in os.listdir(tmp_path) if name.startswith("x.db-")]


@requires_fork
def test_no_room_for_another_in_the_place_of_a_worker(tmp_path: Path) -> None:
    """The others go on, and the last one takes the server with it."""
    with serving(tmp_path, "--workers=2", patch=_NO_MORE % 2) as server:
        first, second = sorted(workers_of(server))
        os.kill(first, KILL)
        until(lambda: "cannot start another" in server.log.read_text())
        assert server.book().status == 201
        os.kill(second, KILL)
        assert _ends(server, AT_ONCE) == 1
        assert "Traceback" not in server.log.read_text()
        assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]


@requires_fork
@pytest.mark.parametrize("count", [1, 2])
def test_a_terminal_that_closes_stops_it(tmp_path: Path, count: int) -> None:
    """However often it says so, as its shell does, too: what is in flight is answered, and no log stays behind."""
    with serving(tmp_path, f"--workers={count}") as server:
        workers = workers_of(server)
        with _in_flight(server, workers or {server.process.pid}) as held:
            _signal(server, signal.SIGHUP, "group")
            until(lambda: _refused(server))
            _signal(server, signal.SIGHUP, "group")
            answers = [_finish(each) for each in held]
        assert [answer.split(b" ")[1] for answer in answers] == [b"201"] * count
        assert _ends(server, AT_ONCE) == 0
        assert not alive(workers)
        assert not Path(f"{server.database}-wal").exists()
        assert len(server.rows()) == count


@requires_fork
@pytest.mark.parametrize("count", [1, 3])
def test_a_stop_that_is_sent_twice_is_one(tmp_path: Path, count: int) -> None:
    """As timeout sends it, to the process and to its group."""
    with serving(tmp_path, f"--workers={count}") as server:
        with _in_flight(server, workers_of(server) or {server.process.pid}) as held:
            for _ in range(2):
                _signal(server, signal.SIGTERM, "parent")
                time.sleep(0.001)  # else the system may make one of them
            until(lambda: _refused(server))
            answers = [_finish(each) for each in held]
        assert [answer.split(b" ")[1] for answer in answers] == [b"201"] * count
        assert _ends(server, AT_ONCE) == 0
        assert len(server.rows()) == count


@requires_fork
@pytest.mark.parametrize("count", [1, 2])
def test_without_a_terminal_it_stays(tmp_path: Path, count: int) -> None:
    """As nohup has it."""
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = Server(tmp_path, f"--workers={count}")
    finally:
        signal.signal(signal.SIGHUP, was)
    with contextlib.closing(server):
        _signal(server, signal.SIGHUP, "group")
        assert server.book().status == 201
        assert server.stop() == 0
        assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]


# Between the line that says it serves and its readiness for signals, there would be a moment; this makes it long.
_SLOW_TO_LISTEN = """
import signal, time
real = signal.signal
def slow(*arguments):
    time.sleep(0.1)
    return real(*arguments)
signal.signal = slow
"""


@requires_fork
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("count", [1, 3])
def test_a_stop_as_soon_as_it_says_that_it_serves(tmp_path: Path, count: int, number: int) -> None:
    with serving(tmp_path, f"--workers={count}", patch=_SLOW_TO_LISTEN) as server:
        _signal(server, number, "group")
        assert _ends(server, SOON) == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(server.process.pid, 0)
        assert server.log.read_text() == ""


# A worker that starts while the file `hold` is there says so in `starting`, and goes on when `hold` is gone.
_HELD_BACK = """
import os, time
check = store._check_table
def checked(*arguments):
    if os.path.exists("hold"):
        open("starting", "w").close()
    while os.path.exists("hold"):
        time.sleep(0.005)
    check(*arguments)
store._check_table = checked
"""


@requires_fork
@pytest.mark.parametrize("to", ["parent", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("others", ["stopping", "gone"])
def test_a_stop_while_a_worker_is_being_replaced(tmp_path: Path, number: int, to: str, others: str) -> None:
    with serving(tmp_path, "--workers=2", patch=_HELD_BACK) as server:
        assert server.book().status == 201
        hold = tmp_path / "hold"
        hold.touch()
        os.kill(min(workers_of(server)), KILL)
        until((tmp_path / "starting").exists)
        workers = workers_of(server)
        _signal(server, number, to)
        if others == "gone":  # and with the last of them the log of the start
            until(lambda: len(alive(workers)) == 1)
        hold.unlink()
        assert _ends(server, AT_ONCE) == 0, server.log.read_text()
        assert not alive(workers)
        assert _refused(server)
        assert server.log.read_text().count("\n") == 1
        assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]


@requires_fork
def test_no_worker_outlives_its_parent(tmp_path: Path) -> None:
    """Not even when it is killed without a warning; what is in flight then is answered all the same."""
    with serving(tmp_path, "--workers=3") as server:
        workers = workers_of(server)
        busy = min(workers)
        with _only(busy, workers):
            held = _send_head(server, 1)
        with held[0]:
            os.kill(server.process.pid, KILL)
            assert _ends(server, SOON) == -KILL
            until(lambda: alive(workers) == {busy}, AT_ONCE)
            until(lambda: _refused(server), AT_ONCE)
            assert _finish(held).startswith(b"HTTP/1.1 201 ")
        until(lambda: not alive(workers), AT_ONCE)
        assert server.rows() == [("acme", SLOT.format(1), "held 1")]
        assert server.log.read_text() == ""


# --- Who gets a slot


@requires_fork
@pytest.mark.parametrize("patch", ["", "store.fcntl = None"], ids=["in line", "with no line"])
def test_threads_race_through_workers(tmp_path: Path, patch: str) -> None:
    """Each asks for each slot with a key of its own, then again; the line that they wait in changes no outcome."""
    days, threads = range(1, 9), 32
    with serving(tmp_path, "--workers=4", patch=patch) as server:

        def ask(number: int) -> list[tuple[int, str, list[Response]]]:
            asked = []
            for day in days:
                key = f"{day}/{number}"
                asked.append((day, key, [server.book("acme", SLOT.format(day), key) for _ in range(2)]))
            return asked

        asked = [each for some in at_once(threads, ask) for each in some]
        assert len(asked) == threads * len(days)
        won = {day: (key, answers) for day, key, answers in asked if answers[0].status == 201}
        assert Counter(answers[0].status for _, _, answers in asked) == {
            201: len(days),
            409: (threads - 1) * len(days),
        }
        assert sorted(won) == list(days)
        for day, key, answers in asked:
            if won[day][0] != key:
                for answer in answers:
                    assert_problem(answer, 409, "slot-taken", "start_time_utc")
            else:
                assert (answers[1].status, answers[1].body) == (200, answers[0].body)
                assert answers[1].headers["Idempotent-Replayed"] == "true"
        assert sorted(server.rows()) == sorted(
            ("acme", SLOT.format(day), key) for day, (key, _) in won.items()
        )
        other = server.book("other", SLOT.format(1), won[1][0])
        assert_problem(other, 422, "key-reused", "idempotency_key")
        assert len(server.rows()) == len(days)
        assert server.log.read_text() == ""


# --- What is not of their making


@requires_fork
def test_a_child_that_the_parent_did_not_start_is_buried_and_no_more(tmp_path: Path) -> None:
    """As process 1 of a container, it inherits those that others leave."""
    child = "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', ''])"
    with serving(tmp_path, "--workers=2", patch=child) as server:
        until(lambda: len(workers_of(server)) == 2)
        assert server.book().status == 201
        assert server.process.poll() is None
        assert server.stop() == 0
        assert server.log.read_text() == ""
        assert len(server.rows()) == 1


@requires_fork
def test_a_worker_that_stands_still_holds_a_stop_no_longer_than_its_bound(tmp_path: Path) -> None:
    bound = "from bookings import workers\nworkers.STOP_SECONDS = 0.5"
    with serving(tmp_path, "--workers=2", patch=bound) as server:
        assert server.book().status == 201
        workers = workers_of(server)
        stopped = min(workers)
        os.kill(stopped, signal.SIGSTOP)
        until(lambda: running_processes()[stopped][1].startswith("T"))
        server.process.send_signal(signal.SIGTERM)
        assert _ends(server, AT_ONCE) == 1
        until(lambda: not alive(workers))
        assert len(server.rows()) == 1


@requires_fork
def test_a_stop_without_a_standard_error(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2", patch="import os\nos.close(2)\nsys.stderr = None") as server:
        assert server.book().status == 201
        assert server.stop() == 0
        assert len(server.rows()) == 1
