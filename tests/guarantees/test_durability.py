"""A power cut or `kill -9` loses no booking and no cancellation that a response has acknowledged.

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
import select
import socket
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bookings.stores import sqlite
from bookings.stores.creation import create_database
from bookings.stores.model import NewBooking, Outcome
from bookings.stores.shared import SharedState
from bookings.stores.sqlite import SQLiteStore
from tests.helpers.processes import serving
from tests.helpers.servers import SOON, Response, Server, assert_problem, at_once, until
from tests.helpers.storage import CONTROLLED_SYNC
from tests.helpers.traces import (
    Call,
    cancel_request_id,
    replay_power_cuts,
    responses_in,
    stop_and_read_trace,
    traced_server,
)
from tests.helpers.values import COLUMNS, MEMBERS, slot_at

FIRST = ("acme", "2026-01-01T10:00:00Z", "k1")
SECOND = ("acme", "2026-01-02T10:00:00Z", "k2")
JSON = {"Content-Type": "application/json"}
# Patches for `patched()`.
NO_SYNC = "from bookings.stores import sqlite; sqlite.fdatasync = lambda descriptor: None\n"
# One checkpoint per 25 bookings, so that a short test has several.
FREQUENT_CHECKPOINTS = "from bookings.stores import sqlite; sqlite.CHECKPOINT_COMMITS = 25\n"
# The status of a POST that follows FIRST, and the booking that it asks for.
OUTCOMES = {
    201: SECOND,
    200: FIRST,
    409: (*FIRST[:2], "other"),
    422: (*SECOND[:2], "k1"),
}


def slot_on(day: int) -> str:
    return f"2026-01-{day:02}T10:00:00Z"


def cancel(server: Server, tenant: str, number: int) -> Response:
    name = cancel_request_id(number)
    return server.call("DELETE", f"/bookings/{number}", X_Tenant_ID=tenant, X_Request_ID=name)


def fields_of(booking: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(MEMBERS, booking))


# --- Order of system calls, from a trace


def unsynced_responses(calls: list[Call]) -> list[str]:
    """Return the responses that were sent before the necessary sync of the WAL.

    Requests that compete for one booking, or cancel it, have ids with the same start, up to the
    dot.
    """
    files = ("bookings.db", "bookings.db-wal")
    responses = list(responses_in(calls))
    committed: dict[str, int] = {}
    for sent, status, name, _ in responses:
        if status in (201, 204):
            # Of several 204, only the first one has written.
            group = name.partition(".")[0]
            written = [
                c.ended
                for c in calls
                if (c.thread, c.name, c.file) == (sent.thread, "pwrite64", files[1])
                and c.ended < sent.began
            ]
            committed[group] = max(committed.get(group, -1), *written, -1)
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
    trace = "pwrite64,pread64,fdatasync,fsync,sendto"
    with traced_server(tmp_path, "--workers=2", patch=patch, trace=trace) as server:

        def ask(number: int, day: int) -> Response:
            # Two requests have the same key; the last one uses the first key for another slot.
            key, start = (f"{day}/0", 20 + day) if number == 8 else (f"{day}/{number // 2}", day)
            request_id = f"{day}.{number}"
            return server.book("acme", slot_on(start), key, X_Request_ID=request_id)

        seen: list[int] = []
        for day in range(1, 6):
            # One request first, so that its key exists when the last one reuses it.
            first = ask(0, day)
            seen.append(first.status)
            seen += at_once(8, lambda number, day=day: ask(number + 1, day).status)
            target = f"/bookings/{first.json['id']}?tenant_id=acme"
            seen += at_once(
                4,
                lambda number, day=day, target=target: (
                    server.call("DELETE", target, X_Request_ID=f"cancel-{day}.{number}").status
                ),
            )
        for day in range(6, 11):
            seen += at_once(8, lambda number, day=day: ask(number, day).status)
        rows = server.rows()
        calls = stop_and_read_trace(server)
    assert Counter(seen) == {201: 10, 200: 10, 409: 60, 422: 5, 204: 20}
    assert [row[1] for row in rows] == [slot_on(day) for day in range(6, 11)]
    assert sorted(status for _, status, _, _ in responses_in(calls)) == sorted(seen)
    late = unsynced_responses(calls)
    if sound:
        assert late == []
    else:
        assert {name[-3:] for name in late} == {"201", "200", "409", "422", "204"}


# --- Power cut


@pytest.mark.parametrize(
    ("patch", "sound"), [("", True), (NO_SYNC, False)], ids=["unchanged", "without sync"]
)
def test_power_cut_loses_nothing_acknowledged(tmp_path: Path, patch: str, sound: bool) -> None:
    """Each booking is in one of the two tables, and a cancelled one stays cancelled."""
    threads, each = 8, 20
    trace = "pwrite64,fdatasync,fsync,ftruncate,unlink,sendto"
    patch = FREQUENT_CHECKPOINTS + patch
    with traced_server(tmp_path, "--workers=2", patch=patch, trace=trace) as server:

        def load(number: int) -> list[int]:
            seen = []
            for day in range(1, each + 1):
                tenant, key = f"t{number}", f"{number}/{day}"
                booked = server.book(tenant, slot_on(day), key)
                seen.append(booked.status)
                if day % 5 == 0:
                    # A retry, the cancellation, and another booking of the slot.
                    seen.append(server.book(tenant, slot_on(day), key).status)
                    seen.append(cancel(server, tenant, booked.json["id"]).status)
                    seen.append(server.book(tenant, slot_on(day), f"{key}/anew").status)
            return seen

        seen = [status for some in at_once(threads, load) for status in some]
        extra = threads * each // 5
        assert Counter(seen) == {201: threads * each + extra, 200: extra, 204: extra}
        assert len(server.rows()) == threads * each
        calls = stop_and_read_trace(server)
    folder = tmp_path / "image"
    folder.mkdir()
    cuts = replay_power_cuts(calls, folder)
    assert (cuts.acknowledged, cuts.cancelled) == (threads * each + extra, extra)
    assert cuts.checkpoints > 3
    if sound:
        assert (cuts.lossy, cuts.revived) == (0, 0)
    else:
        assert cuts.lossy > cuts.images / 2
        assert cuts.revived > cuts.cancelled / 2


# --- Order of events, from a replaced sync


@pytest.mark.parametrize("status", OUTCOMES)
def test_sync_follows_decision_and_blocks_no_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    path = tmp_path / "bookings.db"
    create_database(str(path))
    shared = SharedState()
    with contextlib.closing(SQLiteStore(str(path), shared=shared)) as store:
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
            assert shared.queue.enter(0)
            shared.queue.leave()
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


def test_failed_sync_acknowledges_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, patch=CONTROLLED_SYNC) as server:
        first = server.book(*FIRST)
        assert first.status == 201
        fail = tmp_path / "fail"
        fail.touch()
        for booking in OUTCOMES.values():
            # A worker may exit before it can respond.
            with contextlib.suppress(OSError, http.client.HTTPException):
                response = server.book(*booking)
                assert_problem(response, 503, "database-unavailable")
                assert response.headers["Retry-After"]
        fail.unlink()
        # A worker may answer reads until the supervisor replaces it, but no booking.
        until(lambda: books_second(server))
        # No row is incomplete.
        assert server.rows()[0] == FIRST
        log = server.log.read_text()
        assert os.strerror(errno.EIO) in log
        assert "Traceback" not in log
        replay = server.book(*FIRST)
        assert (replay.status, replay.body) == (200, first.body)
        for status in (409, 422):
            assert server.book(*OUTCOMES[status]).status == status
        assert server.rows() == [FIRST, SECOND]
        assert server.log.read_text() == log


def books_second(server: Server) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return server.book(*SECOND).status in (200, 201)
    return False


# --- kill -9


class RetryingClient:
    """Books one slot after the other, and cancels every third booking.

    A request without a response is sent to the next server.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged: dict[int, Any] = {}
        self.cancelled: dict[int, Any] = {}
        self.answered = 0
        # The slot, and whether its booking is to be cancelled now.
        self._next, self._cancel = 0, False

    def ask(self, connection: http.client.HTTPConnection) -> None:
        number = self._next
        body = fields_of((self.name, slot_at(60 * number), f"{self.name}/{number}"))
        if self._cancel:
            target = f"/bookings/{self.acknowledged[number]['id']}?tenant_id={self.name}"
            connection.request("DELETE", target)
        else:
            connection.request("POST", "/bookings", json.dumps(body), JSON)
        response = connection.getresponse()
        content = response.read()
        if self._cancel:
            assert response.status == 204, content
            self.cancelled[number] = self.acknowledged.pop(number)
        else:
            assert response.status in (200, 201), content
            self.acknowledged[number] = json.loads(content)
            assert {name: self.acknowledged[number][name] for name in body} == body
        self.answered += 1
        self._cancel = number % 3 == 0 and not self._cancel
        self._next += not self._cancel

    def work(self, port: int, stop: threading.Event) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
        ended = contextlib.suppress(OSError, http.client.HTTPException)
        with contextlib.closing(connection), ended:
            while not stop.is_set():
                self.ask(connection)


def test_killed_server_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """The server and its workers are killed 20 times, at moments drawn with a fixed seed."""
    rounds, chance = 20, random.Random(9)
    clients = [RetryingClient(f"t{number}") for number in range(6)]
    progress = []
    for _ in range(rounds):
        with contextlib.closing(Server(tmp_path, "--workers=2")) as server:
            with contextlib.closing(sqlite3.connect(server.database)) as db:
                assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            stop, before = threading.Event(), sum(client.answered for client in clients)
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
                        until(lambda: sum(client.answered for client in clients) >= wanted)
                        stop.wait(moment)
                        server.close()
                except AssertionError as error:
                    return str(error) or "failed"
                finally:
                    stop.set()
                return ""

            # The clients still work when the server is killed; only that ends them.
            assert at_once(len(clients) + 1, work) == [""] * (len(clients) + 1)
        progress.append(sum(client.answered for client in clients) - before)
    assert min(progress) >= 20
    with contextlib.closing(Server(tmp_path, "--workers=2")) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
        with contextlib.closing(connection):
            for client in clients:
                client.ask(connection)
        with contextlib.closing(sqlite3.connect(server.database)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            for table, name in (("bookings", "acknowledged"), ("cancellations", "cancelled")):
                rows = db.execute(f"SELECT {', '.join(COLUMNS)} FROM {table}").fetchall()
                bookings = [each for client in clients for each in getattr(client, name).values()]
                assert len(bookings) > rounds
                assert sorted(rows) == sorted(tuple(each.values()) for each in bookings)
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
