"""A database in trouble: the server never loses a booking that it has acknowledged.

The database is locked, full, read-only, moved, replaced or damaged while requests arrive.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import (
    requires_fork,
    requires_proc,
    serving,
    without_override,
    workers_of,
)
from tests.helpers.servers import (
    KILL,
    SOON,
    Response,
    Server,
    assert_problem,
    at_once,
    patched,
    until,
)
from tests.helpers.storage import CONTROLLED_SYNC
from tests.helpers.values import SLOT, slot_at

requires_movable_files = pytest.mark.skipif(
    os.name == "nt", reason="Windows cannot move or truncate an open file"
)


def timed(work: Callable[[], Response]) -> tuple[Response, float]:
    started = time.monotonic()
    return work(), time.monotonic() - started


def test_requests_wait_until_timeout_for_external_writer(tmp_path: Path) -> None:
    """Requests keep arriving for three timeouts. Each waits for one, in every worker."""
    limit = 1.0
    patch = f"from bookings.stores import connections; connections.BUSY_SECONDS = {limit}"
    with serving(tmp_path, "--workers=2", patch=patch) as server:
        booked = server.book()
        posts, gets = 160, 20

        def ask(number: int) -> tuple[Response, float]:
            if number >= posts:
                time.sleep((number - posts) / 10)
                return timed(lambda: server.call("GET", "/bookings", X_Tenant_ID="acme"))
            # The first 40 at once, the others evenly over time.
            time.sleep(3 * limit * max(0, number - 40) / posts)
            return timed(lambda: server.book("else", slot_at(number), f"e{number}"))

        with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as external:
            external.execute("BEGIN IMMEDIATE")
            found = at_once(posts + gets, ask)
            assert server.call("GET", "/ready").status == 200
            assert len(server.rows()) == 1
            external.execute("ROLLBACK")
        response, seconds = timed(lambda: server.book("else", slot_at(0), "e0"))
        assert (response.status, seconds < 1) == (201, True)
        for response, seconds in found[:posts]:
            assert_problem(response, 503, "database-busy")
            assert int(response.headers["Retry-After"]) > 0
            assert limit * 0.9 < seconds
        assert max(seconds for _, seconds in found[:posts]) < limit * 2
        for response, _ in found[posts:]:
            assert (response.status, response.json) == (200, [booked.json])
        assert sorted(seconds for _, seconds in found[posts:])[gets // 2] < 0.5
        # The rejected requests have left nothing behind.
        assert server.rows() == [("acme", SLOT, "k1"), ("else", slot_at(0), "e0")]
        assert "Traceback" not in server.log.read_text()


@contextlib.contextmanager
def load(server: Server, threads: int = 4) -> Iterator[list[tuple[str, Response]]]:
    """Run clients that book all the time. Yield the list of (key, response), which grows."""
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


def acknowledged_keys(done: list[tuple[str, Response]]) -> set[str]:
    """Return the keys of status 201. Assert that the others are `database-unavailable`."""
    for _, response in done:
        if response.status != 201:
            assert_problem(response, 503, "database-unavailable")
            assert response.headers["Retry-After"]
    return {key for key, response in done if response.status == 201}


def keys_in(database: Path) -> set[str]:
    """Return the idempotency keys in a database. Assert that it is intact and has no slot twice."""
    with contextlib.closing(sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute(
            "SELECT count(*) - count(DISTINCT tenant_id || start_time_utc) FROM bookings"
        ).fetchone() == (0,)
        return {key for (key,) in db.execute("SELECT idempotency_key FROM bookings")}


def assert_unavailable(server: Server, cause: str) -> None:
    """Assert that only /live works, and that the request log names the cause."""
    rejected = [
        server.call("GET", "/ready", X_Request_ID="cause"),
        server.call("GET", "/bookings", X_Tenant_ID="t0"),
        server.call("GET", "/bookings/1", X_Tenant_ID="t0"),
        server.book("t0", "2027-01-01T00:00:00Z", "rejected"),
        server.cancel(1, "t0"),
    ]
    for response in rejected:
        assert_problem(response, 503, "database-unavailable")
    assert server.call("GET", "/live").status == 200
    lines = [line for line in server.log.read_text().splitlines() if " cause " in line]
    assert len(lines) == 1 and cause in lines[0], lines


@pytest.fixture
def other_database(tmp_path: Path) -> Path:
    """Create another database of this program with 50 bookings, in a folder of its own."""
    folder = tmp_path / "another"
    folder.mkdir()
    with contextlib.closing(Server(folder, "--workers=1")) as server:
        at_once(50, lambda number: server.book("another", slot_at(number), f"another {number}"))
        assert server.stop() == 0
    assert len(keys_in(folder / "bookings.db")) == 50
    return folder / "bookings.db"


@requires_movable_files
@pytest.mark.parametrize(
    ("wal", "count"), [("left", 1), ("left", 2), ("removed", 2), ("replaced", 2)]
)
def test_replaced_database_is_neither_used_nor_damaged(
    tmp_path: Path, other_database: Path, wal: str, count: int
) -> None:
    """Acknowledged bookings are in the old file. The new file is used after a restart."""
    old = tmp_path / "old.db"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, f"--workers={count}"))
        with load(server) as done:
            if wal == "replaced":
                # Another program uses the new file, so it has a WAL.
                user = stack.enter_context(contextlib.closing(sqlite3.connect(other_database)))
                user.execute("SELECT count(*) FROM bookings").fetchone()
                assert Path(f"{other_database}-wal").exists()
            os.link(server.database, old)
            os.replace(other_database, server.database)
            for end in ("-wal", "-shm"):
                if wal == "removed":
                    os.unlink(f"{server.database}{end}")
                if wal == "replaced":
                    os.replace(f"{other_database}{end}", f"{server.database}{end}")
            until(lambda: done[-1][1].status == 503)
        assert_unavailable(server, "bookings.db")
        acknowledged = acknowledged_keys(done)
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
    assert acknowledged <= keys_in(old)
    assert keys_in(server.database) == {f"another {number}" for number in range(50)}
    with contextlib.closing(Server(tmp_path)) as restarted:
        assert restarted.book("another", slot_at(0), "another 0").status == 200
        assert restarted.book("another", slot_at(99), "another 99").status == 201
        assert restarted.call("GET", "/ready").status == 200


@requires_fork
def test_replacement_worker_rejects_replaced_database(tmp_path: Path, other_database: Path) -> None:
    """The other worker holds the old file and its WAL; using both would corrupt the database."""
    with serving(tmp_path, "--workers=2") as server:
        assert server.book().status == 201
        os.link(server.database, tmp_path / "old.db")
        os.replace(other_database, server.database)
        os.kill(min(workers_of(server)), KILL)
        assert server.process.wait(SOON) == 1
        assert "bookings.db was replaced while the server was running" in server.log.read_text()
    assert keys_in(tmp_path / "old.db") == {"k1"}
    assert keys_in(server.database) == {f"another {number}" for number in range(50)}


@requires_movable_files
def test_database_moved_away_and_back_keeps_acknowledged_bookings(tmp_path: Path) -> None:
    """The server creates no empty database in its place."""
    away = tmp_path / "away.db"
    with serving(tmp_path, "--workers=2") as server:
        with load(server) as done:
            server.database.rename(away)
            until(lambda: done[-1][1].status == 503)
            assert_unavailable(server, str(server.database))
            assert not server.database.exists()
            away.rename(server.database)
            before = len(done)
            until(lambda: len(done) >= before + 20 and done[-1][1].status == 201)
        assert server.call("GET", "/ready").status == 200
        # A rejected request may have been booked all the same.
        assert acknowledged_keys(done) <= keys_in(server.database) <= {key for key, _ in done}
        for key, response in done:
            name, _, number = key.partition("/")
            again = server.book(f"t{name}", slot_at(int(number)), key)
            assert again.status in (200, 201)
            assert response.status != 201 or (again.status, again.body) == (200, response.body)
        assert server.stop() == 0


@requires_movable_files
def test_database_moved_away_during_sync_is_no_success(tmp_path: Path) -> None:
    with serving(tmp_path, patch=CONTROLLED_SYNC) as server:
        assert server.book().status == 201
        syncs, hold = tmp_path / "syncs", tmp_path / "hold"
        before = syncs.stat().st_size
        hold.touch()

        def move(_: int) -> None:
            until(lambda: syncs.stat().st_size > before)
            server.database.rename(tmp_path / "away.db")
            hold.unlink()

        response, _ = at_once(
            2, lambda number: move(number) if number else server.book(start=slot_at(1), key="k2")
        )
        assert_problem(response, 503, "database-unavailable")
        (tmp_path / "away.db").rename(server.database)
        assert server.book(start=slot_at(1), key="k2").status == 200
        assert [key for _, _, key in server.rows()] == ["k1", "k2"]


@requires_movable_files
@pytest.mark.parametrize("ends", [["-wal"], ["-wal", "-shm"]], ids=["wal", "wal and shm"])
def test_removed_wal_makes_requests_unavailable(tmp_path: Path, ends: list[str]) -> None:
    """A booking in a new WAL would be lost at the next start. The shutdown saves the old WAL."""
    with serving(tmp_path, "--workers=2") as server:
        with load(server) as done:
            for end in ends:
                os.unlink(f"{server.database}{end}")
            until(lambda: done[-1][1].status == 503)
        assert_unavailable(server, "bookings.db")
        assert server.stop() == 0
        assert acknowledged_keys(done) <= keys_in(server.database)
        assert "Traceback" not in server.log.read_text()


@requires_movable_files
@requires_fork
def test_removed_shm_makes_requests_unavailable(tmp_path: Path) -> None:
    """SQLite's locks are in -shm: a worker with a new one would overwrite the others' pages."""
    with serving(tmp_path, "--workers=2") as server:
        booked = [server.book(start=slot_at(number), key=f"k{number}") for number in range(9)]
        assert [response.status for response in booked] == [201] * 9
        os.unlink(f"{server.database}-shm")
        assert_problem(server.book(start=slot_at(9), key="k9"), 503, "database-unavailable")
        assert_problem(server.call("GET", "/ready"), 503, "database-unavailable")
        os.kill(min(workers_of(server)), KILL)
        # No replacement can start, so the supervisor gives up.
        assert server.process.wait(SOON) == 1
        assert "bookings.db-shm was replaced while the server was running" in server.log.read_text()
    with serving(tmp_path) as server:
        again = [server.book(start=slot_at(number), key=f"k{number}") for number in range(10)]
        assert [response.status for response in again] == [200] * 9 + [201]
        assert [response.body for response in again[:9]] == [response.body for response in booked]
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Once the file `now` exists, the WAL is removed between the check of the database file and the
# first statement.
WAL_REMOVED_BETWEEN_CHECKS = """
import os
from bookings.stores import files
identify = files._identity
def identify_and_remove(path):
    found = identify(path)
    if os.path.exists("now"):
        os.unlink("now")
        os.unlink(f"{path}-wal")
    return found
files._identity = identify_and_remove
"""


@requires_movable_files
def test_wal_removed_during_request_stays_empty(tmp_path: Path) -> None:
    """SQLite creates a new WAL then. It must stay empty, because -shm belongs to the old WAL."""
    with serving(tmp_path, "--workers=1", patch=WAL_REMOVED_BETWEEN_CHECKS) as server:
        assert server.book().status == 201
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            # After a full checkpoint a writer would start the WAL from its beginning.
            assert db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
        (tmp_path / "now").touch()
        assert_problem(server.book(start=slot_at(1), key="k2"), 503, "database-unavailable")
        assert not (tmp_path / "now").exists()
        assert Path(f"{server.database}-wal").stat().st_size == 0
        assert server.stop() == 0
        assert keys_in(server.database) == {"k1"}


@requires_proc
def test_read_only_database_can_be_read_and_not_booked(tmp_path: Path) -> None:
    """/ready reports it until the files are writable again."""
    probe = tmp_path / "probe"
    probe.touch(0o444)
    command = [*without_override(probe), str(patched(tmp_path, ""))]
    program = tmp_path / "without_override.py"
    program.write_text(f"import os, sys\nos.execv({command[0]!r}, {command!r} + sys.argv[1:])\n")
    with contextlib.closing(Server(tmp_path, program=program)) as server:
        booked = server.book()
        files = list(tmp_path.glob("bookings.db*"))
        for path in files:
            path.chmod(0o444)
        for response in (server.book(key="k2", start=slot_at(1)), server.call("GET", "/ready")):
            assert_problem(response, 503, "database-unavailable")
        listed = server.call("GET", "/bookings", X_Tenant_ID="acme")
        assert (listed.status, listed.json) == (200, [booked.json])
        log = server.log.read_text().splitlines()
        # A worker that has booked before has the WAL open, so SQLite reports the failure.
        assert len(log) == 2 and re.search("Permission denied|readonly database", log[0])
        assert "bookings.db: permission denied: not writable" in log[1]
        server.database.chmod(0o644)
        assert_problem(server.book(key="k2", start=slot_at(1)), 503, "database-unavailable")
        for path in files:
            path.chmod(0o644)
        assert server.call("GET", "/ready").status == 200
        assert server.book(key="k2", start=slot_at(1)).status == 201
        assert [key for _, _, key in server.rows()] == ["k1", "k2"]


def cut_to_nothing(file: Path) -> None:
    os.truncate(file, 0)


def overwrite_with(byte: bytes) -> Callable[[Path], None]:
    def overwrite(file: Path) -> None:
        with file.open("r+b") as opened:
            opened.seek(4096)
            opened.write(byte * (file.stat().st_size - 4096))

    return overwrite


@requires_movable_files
@pytest.mark.parametrize(
    "damage",
    [cut_to_nothing, overwrite_with(b"\0")],
    ids=["cut to nothing", "all but its first page"],
)
def test_damaged_database_makes_requests_unavailable(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Requests fail with 503, so that no response has a booking that was not made."""
    with serving(tmp_path, "--workers=2") as server:
        with load(server) as done:
            pass
        assert {response.status for _, response in done} == {201}
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            # After this checkpoint nothing is read from the WAL.
            assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        damage(server.database)
        again = [server.book("t0", slot_at(number), f"0/{number}") for number in range(10)]
        listed = server.call("GET", "/bookings", X_Tenant_ID="t0")
        rejected = [*again, server.call("GET", "/ready"), listed]
        for response in rejected:
            assert_problem(response, 503, "database-unavailable")
        assert server.call("GET", "/live").status == 200
        log = server.log.read_text()
        assert log.count("\n") == len(rejected)
        assert re.search("malformed|not a database|disk I/O error|no such table", log)


@requires_proc
def test_wal_that_cannot_grow_is_no_success(tmp_path: Path) -> None:
    """As on a full disk: nothing is written by halves, and bookings continue once there is room."""
    resource = pytest.importorskip("resource")
    with serving(tmp_path, "--workers=2") as server:
        with load(server) as before:
            pass
        size = Path(f"{server.database}-wal").stat().st_size
        workers = workers_of(server)
        for worker in workers:
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (size + 1000, resource.RLIM_INFINITY))
        found = at_once(16, lambda number: server.book("late", slot_at(number), f"late {number}"))
        for response in found:
            assert response.status in (503, 507), response.body
            assert response.headers["Retry-After"]
        assert server.call("GET", "/bookings", X_Tenant_ID="late").json == []
        assert keys_in(server.database) == acknowledged_keys(before)
        for worker in workers:
            resource.prlimit(worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        again = at_once(16, lambda number: server.book("late", slot_at(number), f"late {number}"))
        assert [response.status for response in again] == [201] * 16
        late = {f"late {number}" for number in range(16)}
        assert keys_in(server.database) == acknowledged_keys(before) | late
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


def test_booking_after_last_id_is_internal_error(server: Server) -> None:
    """A hand-written row has the last id. The request log names the cause."""
    columns = "id, tenant_id, start_time_utc, idempotency_key"
    last = f"{2**53 - 1}, 'acme', '{slot_at(0)}', 'last'"
    server.execute(f"INSERT INTO bookings ({columns}) VALUES ({last})")
    response = server.book("acme", slot_at(1), "next")
    assert (response.status, response.json["type"]) == (500, "/problems/internal-error")
    assert "id must be between 1 and 2^53 - 1" in server.log.read_text()
    assert len(server.call("GET", "/bookings", X_Tenant_ID="acme").json) == 1
    assert server.rows() == [("acme", slot_at(0), "last")]
