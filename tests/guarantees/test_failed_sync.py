"""After a failed sync the server acknowledges nothing until it has restarted from the disk.

The simulation reads the system calls of a server whose syncs fail, and rebuilds the files that a
power cut would leave at each response. Linux drops the pages of a failed sync, so the images lack
them. Builds without one part of the protection must lose bookings; otherwise the simulation shows
nothing.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bookings.server.workers import MAX_STARTUP_FAILURES
from bookings.stores import creation, recovery, sqlite
from bookings.stores.files import DatabaseFiles
from bookings.stores.model import NewBooking, PageQuery, Unavailable
from bookings.stores.shared import SharedState
from tests.helpers.processes import (
    alive,
    children_in_state,
    requires_fork,
    serving,
    workers_of,
)
from tests.helpers.servers import SOON, Response, Server, at_once, until
from tests.helpers.storage import CONTROLLED_SYNC, STOP_IN_QUEUE
from tests.helpers.traces import (
    FILES,
    cancel_request_id,
    replay_power_cuts,
    stop_and_read_trace,
    traced_server,
)
from tests.helpers.values import MEMBERS, slot_at

# Longest time in seconds until the server serves again after the disk has recovered.
RESTART_SECONDS = 3.0
worker_counts = pytest.mark.parametrize("workers", [1, 2], ids=["1 worker", "2 workers"])

# --- Power cuts after a failed sync

# Several checkpoints and restarts in a short test, and writes that are short enough for the trace.
SMALL = """
from bookings.server import workers
from bookings.stores import recovery, sqlite
workers.RESTART_SECONDS = 0.0
sqlite.CHECKPOINT_COMMITS = 20
recovery._COPY_BYTES = 4096
"""
# A build that responds 503 after a failed sync and continues to serve.
NO_RESTART = """
from bookings.stores import shared
def respond_only(self, error):
    raise OSError(str(error))
shared.SharedState.abandon = respond_only
"""
CALLS = "pwrite64,fdatasync,fsync,ftruncate,unlink,sendto"


def load_until_acknowledged(server: Server, client: int, count: int) -> int:
    """Book `count` slots, one after the other, and cancel every second one.

    Return how often the server did not acknowledge.
    """
    refused = 0
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)

    def send(method: str, target: str, body: str | None, headers: dict[str, str]) -> bytes:
        nonlocal refused
        while True:
            try:
                connection.request(method, target, body, headers)
                response = connection.getresponse()
                content = response.read()
                if response.status in (200, 201, 204):
                    return content
                assert response.status == 503
            except (OSError, http.client.HTTPException):  # The worker has exited.
                connection.close()
            refused += 1

    with contextlib.closing(connection):
        for number in range(count):
            body = dict(zip(MEMBERS, (f"t{client}", slot_at(number), f"{client}/{number}")))
            headers = {"Content-Type": "application/json"}
            booked = json.loads(send("POST", "/bookings", json.dumps(body), headers))
            if number % 2 == 0:
                target = f"/bookings/{booked['id']}?tenant_id=t{client}"
                send("DELETE", target, None, {"X-Request-ID": cancel_request_id(booked["id"])})
    return refused


@pytest.mark.parametrize(
    ("workers", "clients", "fault"),
    # Which sync of each thread fails. That of a single client must be a sync of the WAL.
    [(1, 1, "error=EIO:when=30"), (1, 4, "error=ENOSPC:when=15"), (2, 4, "error=EIO:when=15")],
    ids=["1 worker, 1 client", "1 worker, 4 clients, full disk", "2 workers, 4 clients"],
)
@pytest.mark.parametrize(
    ("patch", "safe"), [("", True), (NO_RESTART, False)], ids=["as it is", "without the restart"]
)
def test_power_cut_after_failed_sync_loses_nothing_acknowledged(
    tmp_path: Path, workers: int, clients: int, fault: str, patch: str, safe: bool
) -> None:
    bookings = 65 if clients == 1 else 25
    flags = ("--workers", str(workers))
    inject = [f"fdatasync:{fault}"]
    with traced_server(tmp_path, *flags, patch=SMALL + patch, trace=CALLS, inject=inject) as server:
        refused = at_once(clients, lambda client: load_until_acknowledged(server, client, bookings))
        folder = tmp_path / "image"
        folder.mkdir()
        cuts = replay_power_cuts(stop_and_read_trace(server), folder)
    assert sum(refused) > 0
    # Less those that Linux would not have let the server acknowledge; see Disk.
    assert cuts.acknowledged > 0.75 * clients * bookings
    assert cuts.checkpoints > 2
    assert cuts.cancelled > 0.75 * clients * bookings / 2
    if safe:
        assert (cuts.lossy, cuts.revived) == (0, 0)
    else:
        assert cuts.lossy > 0 and cuts.revived > 0


def test_sync_that_succeeds_after_another_failed_acknowledges_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers learn of the failure from the flag, because the kernel tells each only once."""
    path, shared = str(tmp_path / "bookings.db"), SharedState()
    creation.create_database(path)
    with contextlib.ExitStack() as stack:
        first, second = (sqlite.SQLiteStore(path, shared=shared) for _ in range(2))
        stack.callback(second.close)
        stack.callback(first.close)
        stack.callback(shared.reset)
        first.book(NewBooking("acme", slot_at(0), "k0"))
        with monkeypatch.context() as patched:

            def fail(descriptor: int) -> None:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            def leave(status: int) -> None:
                raise SystemExit(status)

            patched.setattr(sqlite, "fdatasync", fail)
            patched.setattr(os, "_exit", leave)
            with pytest.raises(SystemExit):
                first.book(NewBooking("acme", slot_at(1), "k1"))
        for number in (1, 2):
            with pytest.raises(Unavailable):
                second.book(NewBooking("acme", slot_at(number), f"k{number}"))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.book(NewBooking("acme", slot_at(1), "k1")),
        lambda store: store.book(NewBooking("acme", slot_at(0), "k0")),
        lambda store: store.book(NewBooking("acme", slot_at(0), "other")),
        lambda store: store.book(NewBooking("acme", slot_at(1), "k0")),
        lambda store: store.book(NewBooking("acme", slot_at(2), "rejected by the rule")),
        lambda store: store.cancel("acme", 1),
        lambda store: store.cancel("acme", 2),
        lambda store: store.get_booking("acme", 1),
        lambda store: store.list_bookings(PageQuery("acme", "", "", "", 10)),
        lambda store: store.ping(),
    ],
    ids=["201", "200", "409", "422", "rule", "204", "404", "get", "list", "ready"],
)
def test_no_call_returns_after_sync_failed_in_another_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[sqlite.SQLiteStore], object]
) -> None:
    path = str(tmp_path / "bookings.db")
    creation.create_database(path)
    with contextlib.closing(sqlite.SQLiteStore(path)) as store:
        store.book(NewBooking("acme", slot_at(0), "k0"))
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(
                "CREATE TRIGGER rule BEFORE INSERT ON bookings"
                " WHEN NEW.idempotency_key LIKE '%rule' BEGIN SELECT RAISE(ABORT, 'rejected'); END"
            )
        with monkeypatch.context() as patch:
            patch.setattr(SharedState, "sync_failed", True)
            with pytest.raises(Unavailable):
                call(store)


# --- Restart

# Patch: while the file `broken` exists, settling fails with the error number that it contains.
BROKEN_DISK = """
import os
from bookings.stores import recovery
settle = recovery.settle
def settle_unless_broken(files):
    if os.path.exists("broken"):
        with open("attempts", "a") as attempts:
            attempts.write("x")
        number = int(open("broken").read())
        raise OSError(number, os.strerror(number))
    return settle(files)
recovery.settle = settle_unless_broken
"""


def book_slot(server: Server, number: int) -> Response | None:
    """Book a slot with a key of its own. Return None if the connection ends without a response."""
    try:
        return server.book("acme", slot_at(number), f"k{number}")
    except (OSError, http.client.HTTPException):
        return None


def fail_sync(server: Server, number: int) -> set[int]:
    """Make the sync of one booking fail; its client gets 503 or a closed connection.

    Return the workers from before.
    """
    workers, fail = workers_of(server), server.log.with_name("fail")
    fail.touch()
    response = book_slot(server, number)
    assert response is None or response.status == 503
    fail.unlink()
    return workers


def wait_until_restarted(server: Server, before: set[int]) -> None:
    """Wait until the server serves without one of these workers."""

    def is_restarted() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return not before & workers_of(server) and server.call("GET", "/ready").status == 200
        return False

    until(is_restarted, RESTART_SECONDS)


def lines_with(server: Server, text: str) -> list[str]:
    return [line for line in server.log.read_text().splitlines() if text in line]


def keys(server: Server) -> list[str]:
    return [key for _, _, key in server.rows()]


@requires_fork
@worker_counts
def test_server_restarts_once_after_failed_sync(tmp_path: Path, workers: int) -> None:
    with serving(tmp_path, f"--workers={workers}", patch=CONTROLLED_SYNC) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
        before = fail_sync(server, 1)
        wait_until_restarted(server, before)
        after = workers_of(server)
        assert len(after) == workers and not after & before
        assert not children_in_state(server, "Z")
        # The sync failed after the commit, so that the retry may find the booking.
        assert server.book("acme", slot_at(1), "k1").status in (200, 201)
        assert server.book("acme", slot_at(0), "k0").status == 200
        assert keys(server) == ["k0", "k1"]
        time.sleep(0.5)
        assert workers_of(server) == after
        (line,) = server.log.read_text().splitlines()
        assert "sync failed" in line and os.strerror(errno.EIO) in line
        assert server.stop() == 0
        assert not alive(before | after)
        assert not Path(f"{server.database}-wal").exists()


@requires_fork
@worker_counts
def test_worker_killed_during_failed_sync_restarts_server(tmp_path: Path, workers: int) -> None:
    """The kernel has told the worker alone. The descriptor of the supervisor is told as well."""
    patch = f"""
import os, signal
from bookings.stores import sqlite
fdatasync, fsync, supervisor = sqlite.fdatasync, os.fsync, os.getpid()
def die(descriptor):
    if os.path.exists("fail"):
        os.kill(os.getpid(), signal.SIGKILL)
    fdatasync(descriptor)
def fail_once(descriptor):
    if os.getpid() == supervisor and os.path.exists("fail"):
        os.unlink("fail")
        raise OSError({errno.EIO}, os.strerror({errno.EIO}))
    fsync(descriptor)
sqlite.fdatasync, os.fsync = die, fail_once
"""
    with serving(tmp_path, f"--workers={workers}", patch=patch) as server:
        before = workers_of(server)
        (tmp_path / "fail").touch()
        assert book_slot(server, 0) is None
        wait_until_restarted(server, before)
        assert len(lines_with(server, "sync failed")) == 1
        assert server.book("acme", slot_at(0), "k0").status == 200
        assert server.stop() == 0


@requires_fork
@worker_counts
def test_server_waits_for_disk_and_serves_when_it_recovers(tmp_path: Path, workers: int) -> None:
    patch = CONTROLLED_SYNC + BROKEN_DISK
    with serving(tmp_path, f"--workers={workers}", patch=patch) as server:
        broken, attempts = tmp_path / "broken", tmp_path / "attempts"
        assert server.book("acme", slot_at(0), "k0").status == 201
        broken.write_text(str(errno.EIO))
        before = fail_sync(server, 1)
        until(lambda: attempts.exists() and attempts.stat().st_size >= 4)
        assert not workers_of(server) and not children_in_state(server, "Z")
        assert len(lines_with(server, "waiting for the disk")) == 1
        assert os.strerror(errno.EIO) in lines_with(server, "waiting for the disk")[0]
        # A client does not wait for the disk: its connection is closed.
        with pytest.raises((OSError, http.client.HTTPException)) as closed:
            server.call("GET", "/live")
        assert not isinstance(closed.value, socket.timeout)
        broken.unlink()
        wait_until_restarted(server, before)
        assert len(workers_of(server)) == workers
        assert server.book("acme", slot_at(2), "k2").status == 201
        assert len(server.log.read_text().splitlines()) == 2
        assert server.stop() == 0


@requires_fork
def test_shutdown_while_server_waits_for_disk_is_clean(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2", patch=CONTROLLED_SYNC + BROKEN_DISK) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
        (tmp_path / "broken").write_text(str(errno.EIO))
        fail_sync(server, 1)
        until((tmp_path / "attempts").exists)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(2.0) == 0
        with pytest.raises(ProcessLookupError):  # No process is left in the group.
            os.killpg(server.process.pid, 0)
        # Nothing was checkpointed into a database that may not be on the disk.
        assert Path(f"{server.database}-wal").stat().st_size > 0
    with serving(tmp_path) as server:
        assert server.book("acme", slot_at(0), "k0").status == 200


@requires_fork
@worker_counts
def test_server_ends_if_file_system_becomes_read_only(tmp_path: Path, workers: int) -> None:
    patch = CONTROLLED_SYNC + BROKEN_DISK
    with serving(tmp_path, f"--workers={workers}", patch=patch) as server:
        (tmp_path / "broken").write_text(str(errno.EROFS))
        fail_sync(server, 1)
        assert server.process.wait(RESTART_SECONDS) == 1
        cause, line = server.log.read_text().splitlines()
        assert "sync failed" in cause and "read-only" in line
        assert (tmp_path / "attempts").stat().st_size == 1


@requires_fork
def test_database_moved_away_while_server_waits_for_disk_is_not_replaced(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2", patch=CONTROLLED_SYNC + BROKEN_DISK) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
        (tmp_path / "broken").write_text(str(errno.EIO))
        fail_sync(server, 1)
        until((tmp_path / "attempts").exists)
        server.database.rename(tmp_path / "away.db")
        creation.create_database(str(tmp_path / "other.db"))
        (tmp_path / "other.db").rename(server.database)
        (tmp_path / "broken").unlink()
        assert server.process.wait(SOON) == 1
        assert len(lines_with(server, "replaced")) == 2 * MAX_STARTUP_FAILURES


@requires_fork
def test_sql_client_that_closes_while_server_waits_for_disk_does_no_harm(tmp_path: Path) -> None:
    """It is the last one to close, so SQLite deletes the WAL. Nothing is lost with it."""
    with serving(tmp_path, "--workers=2", patch=CONTROLLED_SYNC + BROKEN_DISK) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
        (tmp_path / "broken").write_text(str(errno.EIO))
        before = fail_sync(server, 1)
        until((tmp_path / "attempts").exists)
        assert keys(server) == ["k0", "k1"]
        assert not Path(f"{server.database}-wal").exists()
        for number in range(9):  # The new WAL must not get the inode of the old one.
            (tmp_path / f"other{number}").touch()
        (tmp_path / "broken").unlink()
        wait_until_restarted(server, before)
        assert server.book("acme", slot_at(0), "k0").status == 200
        assert server.book("acme", slot_at(2), "k2").status == 201
        assert server.stop() == 0


@requires_fork
def test_restart_frees_write_queue(tmp_path: Path) -> None:
    """The restart kills a worker that has reached the head of the queue meanwhile."""
    patch = """
from bookings.server import workers
kill_workers = workers.Supervisor._kill_workers
def kill_later(supervisor):
    while os.path.exists("late"):
        time.sleep(0.005)
    kill_workers(supervisor)
workers.Supervisor._kill_workers = kill_later
"""
    with serving(tmp_path, "--workers=2", patch=CONTROLLED_SYNC + STOP_IN_QUEUE + patch) as server:
        late = tmp_path / "late"
        late.touch()
        before = fail_sync(server, 1)

        def work(number: int) -> None:
            if number:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    server.book("acme", slot_at(2), "stop")
            else:
                until(lambda: children_in_state(server, "T"))
                late.unlink()

        at_once(2, work)
        wait_until_restarted(server, before)
        began = time.monotonic()
        assert [server.book("acme", slot_at(n), f"k{n}").status for n in range(3, 9)] == [201] * 6
        # Each would wait for QUEUE_TIMEOUT, which the patch makes 0.5 s.
        assert time.monotonic() - began < 6 * 0.5


# --- Checkpoints

# Patches: a checkpoint fails while the file `fail` exists.
FAIL_FSYNC = f"""
import os
from bookings.stores import sqlite
sqlite.CHECKPOINT_COMMITS = 3
fsync = os.fsync
def fail_on_database(descriptor):
    if os.path.exists("fail") and os.path.samestat(os.fstat(descriptor), os.stat("bookings.db")):
        raise OSError({errno.EIO}, os.strerror({errno.EIO}))
    fsync(descriptor)
os.fsync = fail_on_database
"""
FAIL_PRAGMA = """
import os, sqlite3
from bookings.stores import sqlite
sqlite.CHECKPOINT_COMMITS = 3
class Failing(sqlite3.Connection):
    def execute(self, statement, *values):
        if "wal_checkpoint" in statement and os.path.exists("fail"):
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(statement, *values)
connect = sqlite3.connect
sqlite3.connect = lambda *arguments, **named: connect(*arguments, factory=Failing, **named)
"""
failing_checkpoints = pytest.mark.parametrize(
    ("patch", "cause"),
    [(FAIL_FSYNC, os.strerror(errno.EIO)), (FAIL_PRAGMA, "disk I/O error")],
    ids=["fsync", "SQLite"],
)


@requires_fork
@failing_checkpoints
def test_failed_checkpoint_is_failed_sync(tmp_path: Path, patch: str, cause: str) -> None:
    with serving(tmp_path, "--workers=2", patch=patch) as server:
        before, fail = workers_of(server), tmp_path / "fail"
        fail.touch()
        responses = [book_slot(server, number) for number in range(3)]
        assert [response and response.status for response in responses[:2]] == [201, 201]
        assert responses[2] is None or responses[2].status == 503
        fail.unlink()
        wait_until_restarted(server, before)
        assert cause in lines_with(server, "sync failed")[0]
        assert len(lines_with(server, "sync failed")) == 1
        responses = [book_slot(server, number) for number in range(8)]
        assert [response and response.status for response in responses] == [200] * 3 + [201] * 5
        assert server.stop() == 0
        assert keys(server) == [f"k{number}" for number in range(8)]


@requires_fork
@worker_counts
@failing_checkpoints
def test_failed_checkpoint_at_shutdown_keeps_wal(
    tmp_path: Path, workers: int, patch: str, cause: str
) -> None:
    with serving(tmp_path, f"--workers={workers}", patch=patch) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
        (tmp_path / "fail").touch()
        assert server.stop() == 1
        assert cause in lines_with(server, "sync failed")[0]
        assert Path(f"{server.database}-wal").stat().st_size > 0
        (tmp_path / "fail").unlink()
    with serving(tmp_path) as server:
        assert server.book("acme", slot_at(0), "k0").status == 200
        assert server.stop() == 0
        assert not Path(f"{server.database}-wal").exists()


@requires_fork
def test_sync_that_fails_during_shutdown_keeps_other_workers_from_checkpointing(
    tmp_path: Path,
) -> None:
    """A checkpoint that a power cut interrupts cannot be repaired from a WAL with a hole."""
    # A worker that closes the store waits until the file `fail` is gone.
    patch = """
close = sqlite.SQLiteStore.close
def close_later(self):
    while os.path.exists("fail"):
        time.sleep(0.005)
    close(self)
sqlite.SQLiteStore.close = close_later
"""
    with serving(tmp_path, "--workers=2", patch=CONTROLLED_SYNC + patch) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
        syncs, hold, fail = (tmp_path / name for name in ("syncs", "hold", "fail"))
        before = syncs.stat().st_size

        def work(number: int) -> Response | None:
            if number:
                return book_slot(server, 1)
            until(lambda: syncs.stat().st_size > before)
            fail.touch()
            server.process.send_signal(signal.SIGTERM)
            until(lambda: not accepts_connections(server))
            hold.unlink()
            until(lambda: lines_with(server, "sync failed"))
            fail.unlink()
            return None

        hold.touch()
        response = at_once(2, work)[1]
        assert response is None or response.status == 503
        assert server.process.wait(SOON) == 1
        assert Path(f"{server.database}-wal").stat().st_size > 0
        assert len(server.log.read_text().splitlines()) == 1
    with serving(tmp_path) as server:
        assert server.book("acme", slot_at(0), "k0").status == 200


def accepts_connections(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=SOON).close()
    except OSError:
        return False
    return True


# --- Settling


def state_of_wal(server: Server) -> tuple[bytes, int]:
    wal = Path(f"{server.database}-wal")
    return wal.read_bytes(), wal.stat().st_mtime_ns


@requires_fork
@pytest.mark.parametrize("other", ["nobody", "SQL client", "second server"])
def test_restart_does_not_write_wal_that_another_program_has_open(
    tmp_path: Path, other: str
) -> None:
    wait = "from bookings.server import workers; workers.OTHERS_SECONDS = 0.3\n"
    with serving(tmp_path, "--workers=2", patch=CONTROLLED_SYNC + wait) as server:
        with contextlib.ExitStack() as stack:
            assert server.book("acme", slot_at(0), "k0").status == 201
            if other == "SQL client":
                db = stack.enter_context(contextlib.closing(sqlite3.connect(server.database)))
                assert db.execute("SELECT count(*) FROM bookings").fetchone() == (1,)
            elif other == "second server":
                second = stack.enter_context(contextlib.closing(Server(tmp_path)))
                assert second.book("acme", slot_at(0), "k0").status == 200
            workers = fail_sync(server, 1)
            before = state_of_wal(server)
            wait_until_restarted(server, workers)
            after = state_of_wal(server)
            assert after[0] == before[0]
            assert (after[1] == before[1]) == (other != "nobody")
            said = lines_with(server, "another program has the database open")
            assert len(said) == (other != "nobody")
            assert server.book("acme", slot_at(2), "k2").status == 201
            if other == "second server":
                assert second.book("acme", slot_at(2), "k2").status == 200
        assert keys(server) == ["k0", "k1", "k2"]


@requires_fork
def test_restart_waits_for_program_that_closes_database(tmp_path: Path) -> None:
    """A backup must not make the server continue with a WAL that has a hole."""
    with serving(tmp_path, "--workers=2", patch=CONTROLLED_SYNC) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            assert db.execute("SELECT count(*) FROM bookings").fetchone() == (1,)
            workers = fail_sync(server, 1)
            until(lambda: not workers & workers_of(server))
            # Several attempts fail while the database is open.
            time.sleep(0.5)
            assert not workers_of(server)
        wait_until_restarted(server, workers)
        assert not lines_with(server, "another program")
        assert server.book("acme", slot_at(0), "k0").status == 200


@requires_fork
def test_disk_that_fails_every_sync_causes_one_restart_per_second(tmp_path: Path) -> None:
    """Such a disk accepts what settling writes, for example because only new blocks are full."""
    with serving(tmp_path, "--workers=2", patch=CONTROLLED_SYNC) as server:
        (tmp_path / "fail").touch()
        began, number = time.monotonic(), 0
        while time.monotonic() < began + 2.5:
            book_slot(server, number)
            number += 1
        (tmp_path / "fail").unlink()
        assert 2 <= len(lines_with(server, "sync failed")) <= 4
        wait_until_restarted(server, set())
        assert server.book("acme", slot_at(number), "after").status == 201
        assert server.stop() == 0


def test_startup_settles_files_before_first_connection(tmp_path: Path) -> None:
    """A server that was killed after a failed sync must not trust the page cache."""
    with serving(tmp_path) as server:
        for number in range(5):
            assert server.book("acme", slot_at(number), f"k{number}").status == 201
    wal = Path(f"{tmp_path / FILES[1]}").read_bytes()
    assert wal
    trace = "pread64,pwrite64,fsync,fadvise64,openat"
    with traced_server(tmp_path, patch=SMALL, trace=trace) as server:
        assert keys(server) == [f"k{number}" for number in range(5)]
        calls = stop_and_read_trace(server)
    files = [call for call in calls if call.file in FILES]
    # SQLite reads the header of the database first.
    first = next(
        n for n, call in enumerate(files) if (call.name, call.file) == ("pread64", FILES[0])
    )
    settled = files[:first]
    for file in FILES:
        names = [call.name for call in settled if call.file == file]
        assert names[:2] == ["fsync", "fadvise64"]
        assert names[-1] == "fsync" and len(names) > 2
    written = [call for call in settled if call.name == "pwrite64"]
    assert {call.file for call in written} == {FILES[1]}
    assert b"".join(call.data for call in written) == wal


def test_startup_does_not_write_wal_of_running_server(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
        before = state_of_wal(server)
        with contextlib.closing(Server(tmp_path)) as second:
            assert state_of_wal(server) == before
            assert second.book("acme", slot_at(0), "k0").status == 200
            assert second.book("acme", slot_at(1), "k1").status == 201
            assert second.stop() == 0
        assert server.book("acme", slot_at(1), "k1").status == 200
        assert server.log.read_text() == ""


# Holds a database in exclusive locking mode until its standard input ends.
EXCLUSIVE_CLIENT = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA locking_mode = EXCLUSIVE")
db.execute("INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) "
    "VALUES ('acme', '2026-02-01T10:00:00Z', 'client')")
print("ready", flush=True)
sys.stdin.read()
"""


def test_settle_does_not_write_wal_of_client_in_exclusive_mode(tmp_path: Path) -> None:
    """Such a client keeps the index of the WAL in memory and does not lock -shm."""
    with serving(tmp_path) as server:
        assert server.book("acme", slot_at(0), "k0").status == 201
    files = DatabaseFiles(str(server.database))
    command = [sys.executable, "-c", EXCLUSIVE_CLIENT, str(server.database)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as client:  # type: ignore[call-overload]
        assert client.stdout.readline() == b"ready\n"
        before = state_of_wal(server)
        assert not recovery.settle(files)
        assert state_of_wal(server) == before
        client.communicate()
    assert recovery.settle(files)
    with serving(tmp_path) as server:
        assert keys(server) == ["k0", "client"]


def test_checkpoint_after_failed_sync_leaves_database_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would copy pages from behind the hole in the WAL."""
    path = tmp_path / "bookings.db"
    creation.create_database(str(path))
    shared = SharedState()
    with contextlib.closing(sqlite.SQLiteStore(str(path), shared=shared)) as store:
        store.book(NewBooking("acme", slot_at(0), "k0"))
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(sqlite, "CHECKPOINT_COMMITS", 1)
            patch.setattr(SharedState, "sync_failed", True)
            with pytest.raises(Unavailable):
                store.book(NewBooking("acme", slot_at(1), "k1"))
        assert path.read_bytes() == before
