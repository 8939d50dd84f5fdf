"""Worker processes and their supervisor: numbers, replacement, shutdown, and races for a slot.

A test picks the worker that serves it by suspending all others (SIGSTOP).
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

from bookings.server.signals import SAME_SIGNAL_SECONDS
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
from tests.helpers.tools import SCHEMA

# Longest time in seconds for a shutdown that has nothing to wait for; one that waits takes 8 s.
AT_ONCE = 2.0
ROW = ("acme", "2026-01-01T10:00:00Z", "k1")

signals = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name
)
receivers = pytest.mark.parametrize("receiver", ["process", "group"])


def _slot(day: int) -> str:
    return f"2026-01-{day:02}T10:00:00Z"


def _refuses_connections(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=SOON).close()
    except OSError as error:
        return error.errno in (errno.ECONNREFUSED, errno.ECONNRESET)
    return False


@contextlib.contextmanager
def _only(worker: int, workers: set[int]) -> Iterator[None]:
    """Suspend all workers but this one."""
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
    """Send the head of a booking and wait until a worker has read it; return the body to send."""
    body = json.dumps(
        {"tenant_id": "acme", "start_time_utc": _slot(day), "idempotency_key": f"held {day}"}
    ).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
    head = "POST /bookings HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    more = f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(f"{head}{more}".encode())
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return connection, body


@contextlib.contextmanager
def _in_progress(server: Server, workers: set[int]) -> Iterator[list[tuple[socket.socket, bytes]]]:
    """Start a booking in each worker."""
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
    with connection.makefile("rb") as response:
        return response.read()


def _signal(server: Server, number: int, receiver: str) -> None:
    (os.killpg if receiver == "group" else os.kill)(server.process.pid, number)


# --- Number of workers


@pytest.mark.parametrize("how", ["flag", "environment"])
@pytest.mark.parametrize(
    "value",
    ["0", "-1", "+2", "1.5", "two", "1_0", " 2", "2 ", "٢", "²", "0x2", "1000", "9" * 5000],
    ids=lambda value: value[:5],
)
def test_workers_setting_rejects_value(tmp_path: Path, how: str, value: str) -> None:
    database = tmp_path / "bookings.db"
    flag = [f"--workers={value}"] if how == "flag" else []
    variable = {"WORKERS": value} if how == "environment" else {}
    ended = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "--port=0", f"--database={database}", *flag],
        env={**os.environ, **variable, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=SOON,
        check=False,
    )
    assert ended.returncode != 0
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert ("--workers" if how == "flag" else "WORKERS") in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not database.exists()


@requires_fork
@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (["--workers=1"], {}, 1),
        ([], {"WORKERS": "1"}, 1),
        (["--workers=3"], {}, 3),
        ([], {"WORKERS": "3"}, 3),
        (["--workers=2"], {"WORKERS": "4"}, 2),
    ],
)
def test_workers_setting_gives_number_of_workers(
    tmp_path: Path, flags: list[str], environment: dict[str, str], expected: int
) -> None:
    with serving(tmp_path, *flags, **environment) as server:
        assert len(workers_of(server)) == expected
        assert server.book().status == 201
        assert server.rows() == [ROW]
        assert server.stop() == 0
        assert server.log.read_text() == ""


@requires_fork
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot choose CPUs")
@pytest.mark.parametrize("cpus", [1, 2])
def test_workers_default_to_one_per_cpu(tmp_path: Path, cpus: int) -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < cpus:
        pytest.skip("there are fewer CPUs")
    os.sched_setaffinity(0, sorted(allowed)[:cpus])
    try:
        with serving(tmp_path) as server:
            assert len(workers_of(server)) == cpus
            assert server.book().status == 201
            assert len(server.rows()) == 1
    finally:
        os.sched_setaffinity(0, allowed)


@requires_fork
def test_workers_all_serve_from_one_database(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=3") as server:
        workers = workers_of(server)
        for day, worker in enumerate(sorted(workers), 1):
            with _only(worker, workers):
                keys = ("k1", f"{day}", f"{day}", "other")
                statuses = [server.book("acme", _slot(day), key).status for key in keys]
            # The first worker books with k1, and every other worker finds that booking.
            assert statuses == ([201, 409, 409, 409] if day == 1 else [422, 201, 200, 409])
        others = [("acme", _slot(day), f"{day}") for day in (2, 3)]
        assert server.rows() == [ROW, *others]
        assert server.log.read_text() == ""


# --- Replacement


@requires_fork
def test_worker_killed_is_replaced_while_others_serve(tmp_path: Path) -> None:
    """Clients repeat requests without a response, and the server never rejects one."""
    with serving(tmp_path, "--workers=3") as server:
        before = workers_of(server)
        stop, booked = threading.Event(), [0] * 4

        def load(number: int) -> list[tuple[str, Response]]:
            acknowledged = []
            while not stop.is_set():
                count = len(acknowledged)
                key = f"{number}/{count}"
                start = f"2026-01-01T{number:02}:{count // 60:02}:{count % 60:02}Z"
                try:
                    response = server.book(f"t{number}", start, key)
                except OSError:  # The worker was killed.
                    continue
                assert response.status in (200, 201), response.body
                acknowledged.append((key, response))
                booked[number] = len(acknowledged)
            return acknowledged

        def kill() -> list[tuple[str, Response]]:
            try:
                for worker in sorted(before):
                    goal = sum(booked) + 20
                    os.kill(worker, KILL)
                    # The two other workers continue to serve.
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
            booking["idempotency_key"]: booking
            for number in range(4)
            for booking in server.call("GET", f"/bookings?tenant_id=t{number}").json
        }
        assert all(listed[key] == response.json for key, response in acknowledged)
        assert len({row[:2] for row in server.rows()}) == len(server.rows()) == len(acknowledged)
        replaced = f"exited with status {-int(KILL)}; starting another"
        lines = server.log.read_text().splitlines()
        assert [replaced in line for line in lines] == [True] * 3, lines
        assert server.stop() == 0


@requires_fork
@pytest.mark.parametrize("workers", ["1", "2"])
def test_startup_line_is_not_printed_if_workers_cannot_open_database(
    tmp_path: Path, workers: str
) -> None:
    patch = """
from bookings.stores import sqlite
def lose(*arguments):
    raise sqlite.CannotOpen("the database was lost")
sqlite.SQLiteStore.__init__ = lose
"""
    program = str(patched(tmp_path, patch))
    flags = ("--port=0", "--database=bookings.db", f"--workers={workers}")
    ended = subprocess.run(
        [sys.executable, program, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "the database was lost\n" in ended.stderr and "Traceback" not in ended.stderr


# A worker creates the file `starting` and waits while the file `hold` exists before it opens the
# database.
_HOLD_BEFORE_OPENING = """
import os, time
from bookings.stores import sqlite
open_store = sqlite.SQLiteStore.__init__
def held(*arguments):
    open("starting", "w").close()
    while os.path.exists("hold"):
        time.sleep(0.005)
    open_store(*arguments)
sqlite.SQLiteStore.__init__ = held
"""


@requires_fork
def test_workers_start_although_wal_is_deleted_meanwhile(tmp_path: Path) -> None:
    """Another server that shuts down, or creates the same database, deletes the WAL."""
    (tmp_path / "hold").touch()
    with contextlib.closing(sqlite3.connect(tmp_path / "bookings.db")) as other:
        other.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA}")
        with ThreadPoolExecutor(1) as pool:
            program = patched(tmp_path, _HOLD_BEFORE_OPENING)
            started = pool.submit(Server, tmp_path, "--workers=2", program=program)
            until((tmp_path / "starting").exists)
            other.close()
            assert not (tmp_path / "bookings.db-wal").exists()
            (tmp_path / "hold").unlink()
            server = started.result(SOON)
    with contextlib.closing(server):
        assert server.book().status == 201
        assert server.rows() == [ROW]
        assert server.log.read_text() == ""


@requires_fork
def test_supervisor_gives_up_if_workers_keep_failing_at_startup(tmp_path: Path) -> None:
    """The database was moved away. The server exits and creates no other."""
    with serving(tmp_path, "--workers=2") as server:
        assert server.book().status == 201
        workers = workers_of(server)
        moved = tmp_path / "moved"
        moved.mkdir()
        for path in tmp_path.glob("bookings.db*"):
            path.rename(moved / path.name)
        for worker in workers:
            os.kill(worker, KILL)
        assert server.process.wait(SOON) == 1
        lines = server.log.read_text().splitlines()
        assert sum("giving up" in line for line in lines) == 1
        assert f"{server.database}: unable to open database file" in "".join(lines)
        assert "Traceback" not in "".join(lines)
        # Each attempt logs its cause and its restart, and the number of attempts is limited.
        assert len(lines) < 50
        with pytest.raises(ProcessLookupError):  # No process is left in the group.
            os.killpg(server.process.pid, 0)
        assert _refuses_connections(server)
        assert not server.database.exists()
        server.database = moved / "bookings.db"
        assert server.rows() == [ROW]


@requires_fork
def test_worker_terminated_finishes_its_request_and_is_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2") as server:
        workers = workers_of(server)
        terminated, other = sorted(workers)
        with _only(terminated, workers):
            held = _send_head(server, 1)
        with held[0]:
            os.kill(terminated, signal.SIGTERM)
            # While it waits for the rest of its request, it accepts no other.
            responses = [server.book("acme", _slot(day), f"k{day}") for day in range(2, 12)]
            assert {response.status for response in responses} == {201}
            assert _finish(held).startswith(b"HTTP/1.1 201 ")
        until(lambda: terminated not in workers_of(server) and len(workers_of(server)) == 2)
        assert other in workers_of(server)
        assert len(server.rows()) == 11
        assert "exited with status 0; starting another" in server.log.read_text()
        assert server.stop() == 0


@requires_fork
def test_worker_ignores_ctrl_c(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2") as server:
        workers = workers_of(server)
        for worker in workers:
            os.kill(worker, signal.SIGINT)
        responses = [server.book(start=_slot(day), key=f"{day}") for day in range(1, 9)]
        assert {response.status for response in responses} == {201}
        assert workers_of(server) == workers
        assert len(server.rows()) == 8
        assert server.log.read_text() == ""


# --- Shutdown


@requires_fork
def test_shutdown_deletes_wal_whichever_worker_closes_last(tmp_path: Path) -> None:
    # Workers that have just started notice the shutdown almost at the same moment. Before they
    # waited for each other, every third shutdown left a WAL behind.
    for number in range(10):
        base = tmp_path / str(number)
        base.mkdir()
        with contextlib.closing(Server(base, "--workers", "2")) as server:
            assert server.stop() == 0
            assert sorted(os.listdir(base)) == ["bookings.db", "server.log"]


@requires_fork
@receivers
@signals
@pytest.mark.parametrize("count", [1, 3])
def test_shutdown_ends_idle_connections_at_once(
    tmp_path: Path, count: int, number: int, receiver: str
) -> None:
    with serving(tmp_path, f"--workers={count}") as server:
        workers = workers_of(server)
        assert server.book().status == 201
        with contextlib.ExitStack() as stack:
            address = ("127.0.0.1", server.port)
            idle = [
                stack.enter_context(socket.create_connection(address, timeout=SOON))
                for _ in range(6)
            ]
            for connection in idle:
                connection.sendall(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            _signal(server, number, receiver)
            assert server.process.wait(AT_ONCE) == 0
            assert [connection.recv(1) for connection in idle] == [b""] * 6
        assert not alive(workers)
        assert _refuses_connections(server)
        assert server.log.read_text() == ""
        assert server.rows() == [ROW]


@requires_fork
@receivers
@signals
def test_shutdown_finishes_requests_of_all_workers(
    tmp_path: Path, number: int, receiver: str
) -> None:
    with serving(tmp_path, "--workers=3") as server:
        workers = workers_of(server)
        with _in_progress(server, workers) as held:
            _signal(server, number, receiver)
            until(lambda: _refuses_connections(server))
            assert server.process.poll() is None
            responses = [_finish(each) for each in held]
        for response in responses:
            head, _, body = response.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 201 ")
            assert b"\r\nConnection: close" in head
            assert json.loads(body)["tenant_id"] == "acme"
        assert server.process.wait(AT_ONCE) == 0
        assert not alive(workers)
        assert server.log.read_text() == ""
        expected = [("acme", _slot(day), f"held {day}") for day in (1, 2, 3)]
        assert sorted(server.rows()) == expected


@requires_fork
@receivers
@signals
def test_second_signal_kills_server_at_once(tmp_path: Path, number: int, receiver: str) -> None:
    with serving(tmp_path, "--workers=3") as server:
        workers = workers_of(server)
        with _in_progress(server, workers) as held:
            _signal(server, number, receiver)
            until(lambda: _refuses_connections(server))
            assert alive(workers) == workers
            time.sleep(SAME_SIGNAL_SECONDS)
            _signal(server, number, receiver)
            # The supervisor dies of the signal, or exits because its workers died first.
            assert server.process.wait(AT_ONCE) in (-number, 1)
            until(lambda: not alive(workers), AT_ONCE)
            for connection, _ in held:
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        assert server.rows() == []
        assert "Traceback" not in server.log.read_text()


# Patch: fork fails after this many processes, as with `ulimit -u`.
_LIMIT_FORKS = """
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
@pytest.mark.parametrize("limit", [0, 1])
def test_startup_fails_if_process_limit_is_reached(tmp_path: Path, limit: int) -> None:
    program = str(patched(tmp_path, _LIMIT_FORKS % limit))
    flags = ("--port=0", "--workers=3", "--database=x.db")
    # Python 3.12 warns of a fork beside the thread of the log, but only if the main module forks.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", program]
    line = run_and_fail(tmp_path, *command, *flags)
    assert line == f"run.py: cannot start: {os.strerror(errno.EAGAIN)}\n"
    assert not [name for name in os.listdir(tmp_path) if name.startswith("x.db-")]


@requires_fork
def test_server_runs_until_last_worker_dies_if_none_can_be_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2", patch=_LIMIT_FORKS % 2) as server:
        first, second = sorted(workers_of(server))
        os.kill(first, KILL)
        until(lambda: "cannot start another" in server.log.read_text())
        assert server.book().status == 201
        os.kill(second, KILL)
        assert server.process.wait(AT_ONCE) == 1
        assert "Traceback" not in server.log.read_text()
        assert server.rows() == [ROW]


@requires_fork
@pytest.mark.parametrize("count", [1, 2])
def test_shutdown_by_hangup_is_clean_even_if_sent_twice(tmp_path: Path, count: int) -> None:
    """The terminal sends SIGHUP when it closes, and so does its shell."""
    with serving(tmp_path, f"--workers={count}") as server:
        workers = workers_of(server)
        with _in_progress(server, workers) as held:
            _signal(server, signal.SIGHUP, "group")
            until(lambda: _refuses_connections(server))
            _signal(server, signal.SIGHUP, "group")
            responses = [_finish(each) for each in held]
        assert [response.split(b" ")[1] for response in responses] == [b"201"] * count
        assert server.process.wait(AT_ONCE) == 0
        assert not alive(workers)
        assert not Path(f"{server.database}-wal").exists()
        assert len(server.rows()) == count


@requires_fork
@pytest.mark.parametrize("count", [1, 3])
def test_signal_sent_twice_at_once_counts_as_one(tmp_path: Path, count: int) -> None:
    """`timeout` signals both the process and its group."""
    with serving(tmp_path, f"--workers={count}") as server:
        with _in_progress(server, workers_of(server)) as held:
            for _ in range(2):
                _signal(server, signal.SIGTERM, "process")
                time.sleep(0.001)  # Otherwise the kernel may merge both signals.
            until(lambda: _refuses_connections(server))
            responses = [_finish(each) for each in held]
        assert [response.split(b" ")[1] for response in responses] == [b"201"] * count
        assert server.process.wait(AT_ONCE) == 0
        assert len(server.rows()) == count


@requires_fork
@pytest.mark.parametrize("count", [1, 2])
def test_server_ignores_hangup_under_nohup(tmp_path: Path, count: int) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = Server(tmp_path, f"--workers={count}")
    finally:
        signal.signal(signal.SIGHUP, previous)
    with contextlib.closing(server):
        _signal(server, signal.SIGHUP, "group")
        assert server.book().status == 201
        assert server.stop() == 0
        assert server.rows() == [ROW]


@requires_fork
def test_server_ignores_signals_of_log_rotation(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2") as server:
        workers = workers_of(server)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            _signal(server, number, "group")
        assert server.book().status == 201
        assert workers_of(server) == workers
        assert server.stop() == 0
        assert server.log.read_text() == ""


# Patch: widens the time between the startup line and the signal handlers, if there is any.
_SLOW_SIGNALS = """
import signal, time
real = signal.signal
def slow(*arguments):
    time.sleep(0.1)
    return real(*arguments)
signal.signal = slow
"""


@requires_fork
@signals
@pytest.mark.parametrize("count", [1, 3])
def test_shutdown_right_after_startup_line_is_clean(
    tmp_path: Path, count: int, number: int
) -> None:
    with serving(tmp_path, f"--workers={count}", patch=_SLOW_SIGNALS) as server:
        _signal(server, number, "group")
        assert server.process.wait(SOON) == 0
        with pytest.raises(ProcessLookupError):
            os.killpg(server.process.pid, 0)
        assert server.log.read_text() == ""


# Patch: a worker that starts while the file `hold` exists creates the file `starting` and waits
# until `hold` is deleted.
_HOLD_WHILE_OPENING = """
import os, time
from bookings.stores import sqlite
verify_rules = sqlite.verify_rules
def held(*arguments):
    if os.path.exists("hold"):
        open("starting", "w").close()
    while os.path.exists("hold"):
        time.sleep(0.005)
    verify_rules(*arguments)
sqlite.verify_rules = held
"""


@requires_fork
@receivers
@signals
@pytest.mark.parametrize("others", ["shutting down", "exited"])
def test_shutdown_while_worker_is_replaced_is_clean(
    tmp_path: Path, number: int, receiver: str, others: str
) -> None:
    with serving(tmp_path, "--workers=2", patch=_HOLD_WHILE_OPENING) as server:
        assert server.book().status == 201
        hold = tmp_path / "hold"
        hold.touch()
        os.kill(min(workers_of(server)), KILL)
        until((tmp_path / "starting").exists)
        workers = workers_of(server)
        _signal(server, number, receiver)
        if others == "exited":  # The last one deletes the WAL.
            until(lambda: len(alive(workers)) == 1)
        hold.unlink()
        assert server.process.wait(AT_ONCE) == 0, server.log.read_text()
        assert not alive(workers)
        assert _refuses_connections(server)
        assert server.log.read_text().count("\n") == 1
        assert server.rows() == [ROW]


@requires_fork
def test_workers_finish_requests_and_exit_if_supervisor_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=3") as server:
        workers = workers_of(server)
        busy = min(workers)
        with _only(busy, workers):
            held = _send_head(server, 1)
        with held[0]:
            os.kill(server.process.pid, KILL)
            assert server.process.wait(SOON) == -KILL
            until(lambda: alive(workers) == {busy}, AT_ONCE)
            until(lambda: _refuses_connections(server), AT_ONCE)
            assert _finish(held).startswith(b"HTTP/1.1 201 ")
        until(lambda: not alive(workers), AT_ONCE)
        assert server.rows() == [("acme", _slot(1), "held 1")]
        assert server.log.read_text() == ""


# --- Races


@requires_fork
@pytest.mark.parametrize(
    "patch",
    [
        "",
        (
            "from bookings.stores import write_queue\n"
            "write_queue.WriteQueue.enter = lambda self, timeout: False"
        ),
    ],
    ids=["write queue", "no write queue"],
)
def test_race_of_threads_through_workers_has_one_winner_per_slot(
    tmp_path: Path, patch: str
) -> None:
    """Each thread sends each booking twice. The write queue must not influence any outcome."""
    days, threads = range(1, 9), 32
    with serving(tmp_path, "--workers=4", patch=patch) as server:

        def race(number: int) -> list[tuple[int, str, list[Response]]]:
            sent = []
            for day in days:
                key = f"{day}/{number}"
                responses = [server.book("acme", _slot(day), key) for _ in range(2)]
                sent.append((day, key, responses))
            return sent

        sent = [each for some in at_once(threads, race) for each in some]
        assert len(sent) == threads * len(days)
        won = {day: (key, both) for day, key, both in sent if both[0].status == 201}
        first_statuses = Counter(both[0].status for _, _, both in sent)
        assert first_statuses == {201: len(days), 409: (threads - 1) * len(days)}
        assert sorted(won) == list(days)
        for day, key, (first, second) in sent:
            if won[day][0] != key:
                assert_problem(first, 409, "slot-taken", "start_time_utc")
                assert_problem(second, 409, "slot-taken", "start_time_utc")
            else:
                assert (second.status, second.body) == (200, first.body)
                assert second.headers["Idempotent-Replayed"] == "true"
        expected = sorted(("acme", _slot(day), key) for day, (key, _) in won.items())
        assert sorted(server.rows()) == expected
        other = server.book("other", _slot(1), won[1][0])
        assert_problem(other, 422, "key-reused", "idempotency_key")
        assert len(server.rows()) == len(days)
        assert server.log.read_text() == ""


# --- Unusual environments


@requires_fork
def test_supervisor_reaps_children_that_it_did_not_start(tmp_path: Path) -> None:
    """Process 1 of a container inherits orphans."""
    child = "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', ''])"
    with serving(tmp_path, "--workers=2", patch=child) as server:
        until(lambda: len(workers_of(server)) == 2)
        assert server.book().status == 201
        assert server.process.poll() is None
        assert server.stop() == 0
        assert server.log.read_text() == ""
        assert len(server.rows()) == 1


@requires_fork
def test_shutdown_kills_suspended_worker_after_timeout(tmp_path: Path) -> None:
    patch = "from bookings.server import workers\nworkers.STOP_TIMEOUT = 0.5"
    with serving(tmp_path, "--workers=2", patch=patch) as server:
        assert server.book().status == 201
        workers = workers_of(server)
        suspended = min(workers)
        os.kill(suspended, signal.SIGSTOP)
        until(lambda: running_processes()[suspended][1].startswith("T"))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(AT_ONCE) == 1
        until(lambda: not alive(workers))
        assert len(server.rows()) == 1


@requires_fork
def test_shutdown_works_without_standard_error(tmp_path: Path) -> None:
    patch = "import os\nos.close(2)\nsys.stderr = None"
    with serving(tmp_path, "--workers=2", patch=patch) as server:
        assert server.book().status == 201
        assert server.stop() == 0
        assert len(server.rows()) == 1
