"""Slow clients, idle ones, a stop, and a database in trouble keep nobody waiting, cost little, and lose nothing.

Each fault is done to a server as its own process: hundreds of connections that say nothing or a byte now and then, a
signal while requests wait in the backlog, a database that is locked, full, read-only, moved, replaced or spoiled.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.clients import connect, get, post, responses, statuses
from tests.helpers.openapi import assert_documented
from tests.helpers.processes import (
    requires_fork,
    requires_proc,
    resources_used,
    serving,
    suspended,
    without_override,
    workers_of,
)
from tests.helpers.servers import (
    KILL,
    SOON,
    Response,
    Server,
    all_from,
    assert_problem,
    at_once,
    patched,
    until,
)
from tests.helpers.storage import CONTROLLED_SYNC
from tests.helpers.values import slot_at

movable = pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody move or cut a file that is open")
@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As many for this process as it may have: a client has one for each connection."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("too few descriptors are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- Slow and idle clients


@requires_proc
def test_idle_and_dripping_clients_keep_nobody_waiting(tmp_path: Path, many_descriptors: None) -> None:
    """While 500 say nothing and 200 a byte a second, requests are answered; each is cut at its deadline and gone."""
    limit = 4.0
    patch = f"from bookings import server; server.HEAD_SECONDS = server.IDLE_SECONDS = {limit}"
    with serving(tmp_path, "--workers=2", patch=patch) as server, contextlib.ExitStack() as stack:
        server.book()
        # The parent's, two of each worker, and none of that booking's any more.
        until(lambda: resources_used(server)["threads"] == 5)
        before = resources_used(server)
        silent, used = ([stack.enter_context(connect(server)) for _ in range(250)] for _ in range(2))
        for connection in used:
            connection.sendall(get())
        dripping = [stack.enter_context(connect(server)) for _ in range(200)]
        opened = time.monotonic()
        stop, took = threading.Event(), []

        def drip() -> None:
            for byte in post("late"):
                for connection in dripping:
                    with contextlib.suppress(OSError):  # it was cut
                        connection.send(bytes([byte]))
                if stop.wait(1.0):
                    return

        def ask() -> None:
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
            ) as good:
                for number in range(100):
                    booking = {"start_time_utc": slot_at(number), "idempotency_key": f"good {number}"}
                    for method, body in (("POST", json.dumps(booking)), ("GET", None)):
                        started = time.monotonic()
                        headers = {"X-Tenant-ID": "good", "Content-Type": "application/json"}
                        good.request(method, "/bookings?limit=1" if not body else "/bookings", body, headers)
                        response = good.getresponse()
                        response.read()
                        took.append(time.monotonic() - started)
                        assert response.status == (201 if body else 200)

        dripper = threading.Thread(target=drip)
        dripper.start()
        try:
            ask()
            assert time.monotonic() - opened < limit, "they were not there all the while"
            during = resources_used(server)
            for connection in used:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            for connection in dripping:
                (answer,) = responses(all_from(connection, allow_reset=True))
                assert_problem(answer, 408, "too-slow")
            assert [all_from(connection, allow_reset=True) for connection in (*silent, *used)] == [b""] * 500
            # The last of them was cut at its deadline, and not when it had no more to say; with time to tell and close.
            assert limit < time.monotonic() - opened < limit + 5
        finally:
            stop.set()
            dripper.join()
        assert sorted(took)[len(took) * 99 // 100] < 0.25
        assert during["threads"] <= before["threads"] + 701
        # A connection, and what a request that is answered has open.
        assert during["descriptors"] <= before["descriptors"] + 701 + 20
        assert during["memory"] - before["memory"] < 700 * 100_000
        until(lambda: resources_used(server)["threads"] == before["threads"])
        assert resources_used(server)["descriptors"] <= before["descriptors"] + 20
        assert len(server.rows()) == 101
        assert server.log.read_text() == ""


@requires_proc
def test_at_the_bound_newcomers_wait_and_cost_nothing(tmp_path: Path) -> None:
    """Where every place is taken by a request that is arriving; and when there is room, all are served."""
    patch = "from bookings import server; server.MAX_CONNECTIONS = 20"
    with serving(tmp_path, "--workers=1", patch=patch) as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(server)) for _ in range(20)]
        for connection in busy:
            connection.sendall(get()[:-1])
        until(lambda: resources_used(server)["threads"] == 21)
        waiting = [stack.enter_context(connect(server)) for _ in range(50)]
        for number, connection in enumerate(waiting):
            connection.sendall(post(f"w{number}", b"Connection: close"))
        before = resources_used(server)
        # So long nothing happens.
        assert select.select([*waiting, *busy], [], [], 1.5)[0] == []
        after = resources_used(server)
        assert after["seconds"] - before["seconds"] < 0.3
        assert after["threads"] == 21
        assert after["descriptors"] == before["descriptors"]
        assert server.rows() == []
        for connection in busy:
            connection.sendall(b"\n")
        for connection in waiting:
            assert statuses(all_from(connection, allow_reset=True)) == [201]
            # Until then, it would have a place still.
            connection.close()
        assert len(server.rows()) == 50
        assert resources_used(server)["threads"] <= 21
        assert server.log.read_text() == ""


@requires_proc
def test_idle_clients_without_end_make_room(tmp_path: Path, many_descriptors: None) -> None:
    """Three times as many as there may be; newcomers are served in the place of the longest idle, long before these would
    be cut."""
    patch = "from bookings import server; server.MAX_CONNECTIONS = 50"
    with serving(tmp_path, "--workers=2", patch=patch) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(300)]
        took = []
        for number in range(20):
            started = time.monotonic()
            assert server.book(start=slot_at(number), key=f"k{number}").status == 201
            took.append(time.monotonic() - started)
        # The last ones have just come; when these have settled, it is at once.
        assert sorted(took)[10] < 0.25 and max(took) < 10
        assert resources_used(server)["threads"] <= 3 + 2 * 51
        until(lambda: len(select.select(idle, [], [], 0)[0]) >= 200)
        assert len(server.rows()) == 20
        assert server.log.read_text() == ""


@requires_proc
@pytest.mark.parametrize("raised", [True, False], ids=["soft", "hard"])
def test_few_descriptors(tmp_path: Path, raised: bool) -> None:
    """A soft limit is raised; beneath a hard one there are fewer places, and none that could not be answered."""
    patch = f"""
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard if {raised} else 64))
"""
    with serving(tmp_path, "--workers=1", patch=patch) as server, contextlib.ExitStack() as stack:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
        soft, hard = re.findall(r"Max open files\s+(\S+)\s+(\S+)", limits)[0]
        assert soft == hard
        assert (soft == "64") != raised
        busy = [stack.enter_context(connect(server)) for _ in range(60)]
        # Those that have a place have just come, and keep it.
        until(lambda: resources_used(server)["threads"] == (61 if raised else 9))
        for number, connection in enumerate(busy):
            connection.sendall(post(f"k{number}", b"Connection: close"))
        for connection in busy:
            assert statuses(all_from(connection, allow_reset=True)) == [201]
            # Until then, it would have a place still.
            connection.close()
        until(lambda: resources_used(server)["threads"] == 1)
        idle = [stack.enter_context(connect(server)) for _ in range(12)]
        assert server.book(key="new").status == 201
        assert len(select.select(idle, [], [], 0)[0]) == (0 if raised else 12 - 7)
        assert len(server.rows()) == 61
        assert server.log.read_text() == ""


# --- Stopping


@requires_fork
@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_answers_what_waits_in_the_backlog(tmp_path: Path, count: int) -> None:
    with serving(tmp_path, f"--workers={count}") as server, contextlib.ExitStack() as stack:
        kept = stack.enter_context(connect(server))
        kept.sendall(get())
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
        with suspended(server):
            # The one that was idle has just asked again; the others are new, and two have nothing to say.
            kept.sendall(post("kept"))
            asking = [stack.enter_context(connect(server)) for _ in range(30)]
            for each, connection in enumerate(asking):
                connection.sendall(post(f"k{each}"))
            silent = [stack.enter_context(connect(server)) for _ in range(2)]
            os.kill(server.process.pid, signal.SIGTERM)
            started = time.monotonic()
        for connection in (*asking, kept):
            assert statuses(all_from(connection, allow_reset=True)) == [201]
        assert [all_from(connection, allow_reset=True) for connection in silent] == [b""] * 2
        assert server.process.wait(SOON) == 0
        assert time.monotonic() - started < 2
        keys = {key for _, _, key in server.rows()}
        assert keys == {"kept", *(f"k{each}" for each in range(30))} and len(server.rows()) == 31
        assert server.log.read_text() == ""


ARRIVING: dict[str, bytes] = {
    "a byte": b"P",
    "half a head": post("late")[:60],
    "no body": post("late").partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "half a body": post("late")[:-20],
}


@requires_fork
def test_a_stop_waits_for_a_stalled_request_no_longer_than_its_bound(tmp_path: Path) -> None:
    """Which is told to come again; and the exit status is 0, since nothing was left unanswered."""
    bound = 1.0
    patch = f"from bookings import server; server.ARRIVAL_SECONDS = {bound}"
    with serving(tmp_path, "--workers=2", patch=patch) as server, contextlib.ExitStack() as stack:
        stalled, dripping = stack.enter_context(connect(server)), stack.enter_context(connect(server))
        connections = [stack.enter_context(connect(server)) for _ in ARRIVING]
        connections += [stalled, dripping]
        for connection, sent in zip(connections, [*ARRIVING.values(), get() + b"G", get()[:9]]):
            connection.sendall(sent)
        assert stalled.recv(65536).startswith(b"HTTP/1.1 200 ")
        until(lambda: server.call("GET", "/live").status == 200)
        started = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while not select.select([dripping], [], [], 0.05)[0]:
                dripping.send(b"a")
        found = [responses(all_from(connection, allow_reset=True)) for connection in connections]
        for (answer,) in found:
            assert_problem(answer, 503, "shutting-down")
            assert_documented(answer, "GET", "/live")
            assert answer.headers["Connection"] == "close"
        assert server.process.wait(SOON) == 0
        assert bound <= time.monotonic() - started < bound + 3
        assert server.rows() == []
        assert server.log.read_text() == ""


@requires_proc
def test_a_stop_cuts_no_answer_off(tmp_path: Path) -> None:
    """Not even one that is half sent, to a client that takes its time to read it."""
    patch = "from bookings import server; server.ARRIVAL_SECONDS = 0.1"
    with serving(tmp_path, "--workers=1", patch=patch) as server:
        with contextlib.closing(sqlite3.connect(server.database)) as db, db:
            rows = [("slow", slot_at(number), f"{number:0255}") for number in range(1000)]
            db.executemany(
                "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES (?, ?, ?)", rows
            )
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(SOON)
            client.connect(("127.0.0.1", server.port))
            asked = 40
            client.sendall(b"GET /bookings HTTP/1.1\r\nHost: a\r\nX-Tenant-ID: slow\r\n\r\n" * asked)
            received = client.recv(65536)
            # What was asked for is more than all buffers take: it stands still in the middle of an answer.
            until(lambda: _stands_still(server))
            server.process.send_signal(signal.SIGTERM)
            until(lambda: not _listens(server))
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(0.5)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            received += all_from(client, allow_reset=True)
        assert server.process.wait(SOON) == 0
        found = responses(received)
        assert 0 < len(found) < asked
        assert [len(answer.json) for answer in found] == [1000] * len(found)
        assert [answer.headers["Connection"] for answer in found] == [None] * (len(found) - 1) + ["close"]
        assert server.log.read_text() == ""


def _stands_still(server: Server) -> bool:
    before = resources_used(server)["seconds"]
    time.sleep(0.1)
    return resources_used(server)["seconds"] == before


def _listens(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=SOON).close()
    except OSError:
        return False
    return True


# --- The database in trouble


def _timed(work: Callable[[], Response]) -> tuple[Response, float]:
    started = time.monotonic()
    return work(), time.monotonic() - started


def test_a_writer_outside_keeps_everybody_waiting_for_the_bound_and_no_longer(tmp_path: Path) -> None:
    """For three times the bound, with requests that come all the while; each waits as long, in every worker."""
    bound = 1.0
    with serving(tmp_path, "--workers=2", patch=f"store.BUSY_SECONDS = {bound}") as server:
        booked = server.book()
        posts, gets = 160, 20

        def ask(number: int) -> tuple[Response, float]:
            # Some at once, the others one after the other.
            time.sleep(3 * bound * max(0, number - 40) / posts if number < posts else (number - posts) / 10)
            if number < posts:
                return _timed(lambda: server.book("else", slot_at(number), f"e{number}"))
            return _timed(lambda: server.call("GET", "/bookings", X_Tenant_ID="acme"))

        with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as outside:
            outside.execute("BEGIN IMMEDIATE")
            found = at_once(posts + gets, ask)
            assert server.call("GET", "/ready").status == 200
            assert len(server.rows()) == 1
            outside.execute("ROLLBACK")
        answer, seconds = _timed(lambda: server.book("else", slot_at(0), "e0"))
        assert (answer.status, seconds < 1) == (201, True)
        for answer, seconds in found[:posts]:
            assert_problem(answer, 503, "database-busy")
            assert int(answer.headers["Retry-After"]) > 0
            assert bound * 0.9 < seconds
        assert max(seconds for _, seconds in found[:posts]) < bound * 2
        for answer, seconds in found[posts:]:
            assert (answer.status, answer.json) == (200, [booked.json])
        assert sorted(seconds for _, seconds in found[posts:])[gets // 2] < 0.5
        # Of the refused ones, nothing is left behind.
        assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1"), ("else", slot_at(0), "e0")]
        assert "Traceback" not in server.log.read_text()


@contextlib.contextmanager
def _load(server: Server, threads: int = 4) -> Iterator[list[tuple[str, Response]]]:
    """Clients that book while something happens to the database; every answer that they got, by its key, in order."""
    stop, done = threading.Event(), []

    def work(name: int) -> None:
        number = 0
        while not stop.is_set():
            key = f"{name}/{number}"
            done.append((key, server.book(f"t{name}", slot_at(number), key)))
            number += 1

    workers = [threading.Thread(target=work, args=(name,)) for name in range(threads)]
    for each in workers:
        each.start()
    try:
        until(lambda: len(done) >= 40)
        yield done
    finally:
        stop.set()
        for each in workers:
            each.join()


def _acknowledged(done: list[tuple[str, Response]]) -> set[str]:
    """The keys of the bookings that were made; every other answer says that the database could not be used."""
    for _, answer in done:
        if answer.status != 201:
            assert_problem(answer, 503, "database-unavailable")
            assert answer.headers["Retry-After"]
    return {key for key, answer in done if answer.status == 201}


def _keys(database: Path) -> set[str]:
    """Those that the database has, which is sound and has no slot twice."""
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute(
            "SELECT count(*) - count(DISTINCT tenant_id || start_time_utc) FROM bookings"
        ).fetchone() == (0,)
        return {key for (key,) in db.execute("SELECT idempotency_key FROM bookings")}


def _assert_refused(server: Server, cause: str) -> None:
    """Whatever needs the database is refused, and the log says why; what needs none is answered."""
    refused = [
        server.call("GET", "/ready", X_Request_ID="cause"),
        server.call("GET", "/bookings", X_Tenant_ID="t0"),
        server.call("GET", "/bookings/1", X_Tenant_ID="t0"),
        server.book("t0", "2027-01-01T00:00:00Z", "refused"),
    ]
    for answer in refused:
        assert_problem(answer, 503, "database-unavailable")
    assert server.call("GET", "/live").status == 200
    lines = [line for line in server.log.read_text().splitlines() if " cause " in line]
    assert len(lines) == 1 and cause in lines[0], lines


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """A database of bookings too, with 50 of its own, in a folder of its own."""
    folder = tmp_path / "another"
    folder.mkdir()
    with contextlib.closing(Server(folder, "--workers=1")) as server:
        at_once(50, lambda number: server.book("another", slot_at(number), f"another {number}"))
        assert server.stop() == 0
    assert len(_keys(folder / "bookings.db")) == 50
    return folder / "bookings.db"


@movable
@pytest.mark.parametrize(("log", "count"), [("left", 1), ("left", 2), ("removed", 2), ("replaced", 2)])
def test_a_database_that_is_replaced_is_neither_used_nor_spoiled(
    tmp_path: Path, another: Path, log: str, count: int
) -> None:
    """Nothing is acknowledged that is not in the file of the start, and the other stays as it was; until a restart."""
    old = tmp_path / "old.db"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, f"--workers={count}"))
        with _load(server) as done:
            if log == "replaced":
                # As it is while it is used.
                user = stack.enter_context(contextlib.closing(sqlite3.connect(another)))
                user.execute("SELECT count(*) FROM bookings").fetchone()
                assert Path(f"{another}-wal").exists()
            os.link(server.database, old)
            os.replace(another, server.database)
            for end in ("-wal", "-shm"):
                if log == "removed":
                    os.unlink(f"{server.database}{end}")
                if log == "replaced":
                    os.replace(f"{another}{end}", f"{server.database}{end}")
            until(lambda: done[-1][1].status == 503)
        _assert_refused(server, "bookings.db")
        acknowledged = _acknowledged(done)
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
    assert acknowledged <= _keys(old)
    assert _keys(server.database) == {f"another {number}" for number in range(50)}
    with contextlib.closing(Server(tmp_path)) as restarted:
        assert restarted.book("another", slot_at(0), "another 0").status == 200
        assert restarted.book("another", slot_at(99), "another 99").status == 201
        assert restarted.call("GET", "/ready").status == 200


@requires_fork
def test_a_worker_that_is_replaced_does_not_take_another_database(tmp_path: Path, another: Path) -> None:
    """Where the others hold the old one and its log, it would mix the two."""
    with serving(tmp_path, "--workers=2") as server:
        assert server.book().status == 201
        os.link(server.database, tmp_path / "old.db")
        os.replace(another, server.database)
        os.kill(min(workers_of(server)), KILL)
        assert server.process.wait(SOON) == 1
        assert "bookings.db is not the file of the start" in server.log.read_text()
    assert _keys(tmp_path / "old.db") == {"k1"}
    assert _keys(server.database) == {f"another {number}" for number in range(50)}


@movable
def test_a_database_that_is_moved_away_and_back_under_load(tmp_path: Path) -> None:
    """No empty one takes its place meanwhile, and every booking that was acknowledged is in it."""
    away = tmp_path / "away.db"
    with serving(tmp_path, "--workers=2") as server:
        with _load(server) as done:
            server.database.rename(away)
            until(lambda: done[-1][1].status == 503)
            _assert_refused(server, "unable to open database file")
            assert not server.database.exists()
            away.rename(server.database)
            before = len(done)
            until(lambda: len(done) >= before + 20 and done[-1][1].status == 201)
        assert server.call("GET", "/ready").status == 200
        # Those that were refused may have been booked: of them it is not certain.
        assert _acknowledged(done) <= _keys(server.database) <= {key for key, _ in done}
        for key, answer in done:
            name, _, number = key.partition("/")
            again = server.book(f"t{name}", slot_at(int(number)), key)
            assert again.status in (200, 201)
            assert answer.status != 201 or (again.status, again.body) == (200, answer.body)
        assert server.stop() == 0


@movable
def test_a_database_that_is_moved_away_before_the_answer(tmp_path: Path) -> None:
    """While the log is being synced: a booking is not acknowledged in a file that is not there to be found."""
    with serving(tmp_path, patch=CONTROLLED_SYNC) as server:
        assert server.book().status == 201
        syncs, hold = tmp_path / "syncs", tmp_path / "hold"
        before = syncs.stat().st_size
        hold.touch()

        def move(_: int) -> None:
            until(lambda: syncs.stat().st_size > before)
            server.database.rename(tmp_path / "away.db")
            hold.unlink()

        answer, _ = at_once(
            2, lambda number: move(number) if number else server.book(start=slot_at(1), key="k2")
        )
        assert_problem(answer, 503, "database-unavailable")
        (tmp_path / "away.db").rename(server.database)
        assert server.book(start=slot_at(1), key="k2").status == 200
        assert [key for _, _, key in server.rows()] == ["k1", "k2"]


@movable
@pytest.mark.parametrize("ends", [["-wal"], ["-wal", "-shm"]], ids=["log", "log and index"])
def test_a_log_that_is_removed(tmp_path: Path, ends: list[str]) -> None:
    """A booking in a new log would be lost at the next start. What is in the old one is in the database at the stop."""
    with serving(tmp_path, "--workers=2") as server:
        with _load(server) as done:
            for end in ends:
                os.unlink(f"{server.database}{end}")
            until(lambda: done[-1][1].status == 503)
        _assert_refused(server, "bookings.db")
        assert server.stop() == 0
        assert _acknowledged(done) <= _keys(server.database)
        assert "Traceback" not in server.log.read_text()


@movable
@requires_fork
def test_an_index_that_is_removed(tmp_path: Path) -> None:
    """SQLite's locks are in it: a worker that began with a new one would write over what the others write."""
    with serving(tmp_path, "--workers=2") as server:
        booked = [server.book(start=slot_at(number), key=f"k{number}") for number in range(9)]
        assert [answer.status for answer in booked] == [201] * 9
        os.unlink(f"{server.database}-shm")
        assert_problem(server.book(start=slot_at(9), key="k9"), 503, "database-unavailable")
        assert_problem(server.call("GET", "/ready"), 503, "database-unavailable")
        os.kill(min(workers_of(server)), KILL)
        # No other can be started in its place, and the parent gives up.
        assert server.process.wait(SOON) == 1
        assert "bookings.db-shm is not the file of the start" in server.log.read_text()
    with serving(tmp_path) as server:
        again = [server.book(start=slot_at(number), key=f"k{number}") for number in range(10)]
        assert [answer.status for answer in again] == [200] * 9 + [201]
        assert [answer.body for answer in again[:9]] == [answer.body for answer in booked]
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Once the file `now` is there, the log goes between the first look at the files and the first statement.
_REMOVED_IN_BETWEEN = """
import os
look = store._file
def looked(path):
    found = look(path)
    if os.path.exists("now"):
        os.unlink("now")
        os.unlink(path + "-wal")
    return found
store._file = looked
"""


@movable
def test_a_log_that_is_removed_in_the_middle_of_a_request(tmp_path: Path) -> None:
    """SQLite has made a new one by then, which must stay empty: the index that it has is of the old."""
    with serving(tmp_path, "--workers=1", patch=_REMOVED_IN_BETWEEN) as server:
        assert server.book().status == 201
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            # All of the log is in the database, so that a writer would begin it anew.
            assert db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
        (tmp_path / "now").touch()
        assert_problem(server.book(start=slot_at(1), key="k2"), 503, "database-unavailable")
        assert not (tmp_path / "now").exists()
        assert Path(f"{server.database}-wal").stat().st_size == 0
        assert server.stop() == 0
        assert _keys(server.database) == {"k1"}


@requires_proc
def test_a_database_that_is_made_read_only(tmp_path: Path) -> None:
    """Reading goes on; booking does not, and `/ready` says so, until it may be written again."""
    probe = tmp_path / "probe"
    probe.touch(0o444)
    command = [*without_override(probe), str(patched(tmp_path, ""))]
    program = tmp_path / "anybody.py"
    program.write_text(f"import os, sys\nos.execv({command[0]!r}, {command!r} + sys.argv[1:])\n")
    with contextlib.closing(Server(tmp_path, program=program)) as server:
        booked = server.book()
        files = list(tmp_path.glob("bookings.db*"))
        for path in files:
            path.chmod(0o444)
        for answer in (server.book(key="k2", start=slot_at(1)), server.call("GET", "/ready")):
            assert_problem(answer, 503, "database-unavailable")
        listed = server.call("GET", "/bookings", X_Tenant_ID="acme")
        assert (listed.status, listed.json) == (200, [booked.json])
        log = server.log.read_text().splitlines()
        assert len(log) == 2 and "Permission denied" in log[0] and "bookings.db may be read" in log[1]
        server.database.chmod(0o644)
        assert_problem(server.book(key="k2", start=slot_at(1)), 503, "database-unavailable")
        for path in files:
            path.chmod(0o644)
        assert server.call("GET", "/ready").status == 200
        assert server.book(key="k2", start=slot_at(1)).status == 201
        assert [key for _, _, key in server.rows()] == ["k1", "k2"]


def _cut(file: Path) -> None:
    os.truncate(file, 0)


def _overwrite(byte: bytes) -> Callable[[Path], None]:
    def overwrite(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(4096)
            opened.write(byte * (file.stat().st_size - 4096))

    return overwrite


@movable
@pytest.mark.parametrize(
    "spoil", [_cut, _overwrite(b"\0")], ids=["cut to nothing", "all after its first page"]
)
def test_a_database_that_is_spoiled_in_place(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    """There is no success from then on, and no booking that was never made."""
    with serving(tmp_path, "--workers=2") as server:
        with _load(server) as done:
            pass
        assert {answer.status for _, answer in done} == {201}
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            # So that nothing is read from the log.
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        spoil(server.database)
        again = [server.book("t0", slot_at(number), f"0/{number}") for number in range(10)]
        refused = [*again, server.call("GET", "/ready"), server.call("GET", "/bookings", X_Tenant_ID="t0")]
        for answer in refused:
            assert_problem(answer, 503, "database-unavailable")
        assert server.call("GET", "/live").status == 200
        log = server.log.read_text()
        assert log.count("\n") == len(refused)
        assert re.search("malformed|not a database|disk I/O error|no such table", log)


@requires_proc
def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """As on a disk that is full: no success, nothing half-written, and work goes on when there is room."""
    resource = pytest.importorskip("resource")
    with serving(tmp_path, "--workers=2") as server:
        with _load(server) as before:
            pass
        size = Path(f"{server.database}-wal").stat().st_size
        workers = workers_of(server)
        for worker in workers:
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
        found = at_once(16, lambda number: server.book("late", slot_at(number), f"late {number}"))
        for answer in found:
            assert answer.status in (503, 507), answer.body
            assert answer.headers["Retry-After"]
        assert server.call("GET", "/bookings", X_Tenant_ID="late").json == []
        assert _keys(server.database) == _acknowledged(before)
        for worker in workers:
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        again = at_once(16, lambda number: server.book("late", slot_at(number), f"late {number}"))
        assert [answer.status for answer in again] == [201] * 16
        assert _keys(server.database) == _acknowledged(before) | {f"late {number}" for number in range(16)}
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


def test_there_are_no_more_ids(server: Server) -> None:
    """After a row by hand with the last one. It is a fault, whose cause the log names."""
    with contextlib.closing(sqlite3.connect(server.database)) as db, db:
        db.execute(
            "INSERT INTO bookings (id, tenant_id, start_time_utc, idempotency_key) VALUES (?, 'acme', ?, 'last')",
            (2**53 - 1, slot_at(0)),
        )
    answer = server.book("acme", slot_at(1), "next")
    assert (answer.status, answer.json["type"]) == (500, "/problems/internal-error")
    assert "id is a number from 1 to 2^53 - 1" in server.log.read_text()
    assert len(server.call("GET", "/bookings", X_Tenant_ID="acme").json) == 1
    assert server.rows() == [("acme", slot_at(0), "last")]
