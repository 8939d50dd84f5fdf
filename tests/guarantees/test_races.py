"""Races for slots and keys among threads, processes, two servers and SQL clients.

One request per slot gets 201, its retries get 200 with the same bytes, and all others get 409.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bookings.stores.connections import BUSY_SECONDS
from tests.helpers.servers import SOON, Response, Server, assert_problem, at_once
from tests.helpers.values import MEMBERS

THREADS = 32
# All spellings of an instant are the same slot, in a race too.
SPELLINGS = [
    "2026-01-{:02}T10:00:00Z",
    "2026-01-{:02}T10:00:00.000Z",
    "2026-01-{:02}t10:00:00z",
    "2026-01-{:02}T10:00:00+00:00",
]


def slot(day: int) -> str:
    return SPELLINGS[0].format(day)


def assert_one_winner(
    start: str, responses: list[tuple[str, int, bytes]], rows: list[tuple[Any, ...]]
) -> None:
    """Assert the outcome of a race; `responses` are (key, status, body) for this slot of acme."""
    ((winner, booking),) = [(key, body) for key, status, body in responses if status == 201]
    shown = json.loads(booking)
    assert [shown[name] for name in MEMBERS] == ["acme", start, winner]
    for key, status, body in responses:
        if key != winner:
            assert status == 409, body
            assert json.loads(body)["type"] == "/problems/slot-taken"
        elif status != 201:
            assert (status, body) == (200, booking)
    assert [row for row in rows if row[1] == start] == [("acme", start, winner)]


@pytest.mark.both_stores
@pytest.mark.parametrize("keys", [THREADS, 8, 2], ids=lambda keys: f"{keys} keys")
def test_threads_racing_for_slot_have_one_winner(server: Server, keys: int) -> None:
    days = range(1, 7)
    for day in days:

        def book_twice(number: int, day: int = day) -> list[tuple[str, int, bytes]]:
            key = f"{day}/{number % keys}"
            start = SPELLINGS[number % len(SPELLINGS)].format(day)
            pair = [server.book("acme", start, key) for _ in range(2)]
            return [(key, response.status, response.body) for response in pair]

        responses = [each for pair in at_once(THREADS, book_twice) for each in pair]
        assert len(responses) == 2 * THREADS
        assert_one_winner(slot(day), responses, server.rows())
    assert len(server.rows()) == len(days)
    assert server.log.read_text() == ""


@pytest.mark.both_stores
def test_request_sent_50_times_at_once_is_booked_once(server: Server) -> None:
    for day in range(1, 4):
        responses = at_once(50, lambda number, day=day: server.book("acme", slot(day), f"k{day}"))
        assert Counter(response.status for response in responses) == {201: 1, 200: 49}
        assert len({response.body for response in responses}) == 1
        for response in responses:
            replayed = response.headers["Idempotent-Replayed"] == "true"
            assert replayed == (response.status == 200)
        assert server.rows()[day - 1 :] == [("acme", slot(day), f"k{day}")]


@pytest.mark.both_stores
@pytest.mark.parametrize("by", ["slot", "tenant"])
def test_key_sent_for_different_bookings_at_once_has_one_winner(server: Server, by: str) -> None:
    """Two threads request each booking; the winner's second request must be a replay."""
    for key in ("k1", "k2", "k3"):

        def book(number: int, key: str = key) -> tuple[tuple[str, str, str], Response]:
            which = number // 2 + 1
            tenant, day = (key, which) if by == "slot" else (f"{key} {which}", 1)
            return (tenant, slot(day), key), server.book(tenant, slot(day), key)

        before = server.rows()
        pairs = at_once(THREADS, book)
        (winner,) = [wanted for wanted, response in pairs if response.status == 201]
        assert server.rows() == [*before, winner]
        for wanted, response in pairs:
            if wanted != winner:
                assert_problem(response, 422, "key-reused", "idempotency_key")
        assert sorted(r.status for wanted, r in pairs if wanted == winner) == [200, 201]
    assert server.log.read_text() == ""


def test_sql_clients_racing_with_server_have_one_winner(server: Server) -> None:
    columns = "tenant_id, start_time_utc, idempotency_key"
    statement = f"INSERT INTO bookings ({columns}) VALUES ('acme', ?, ?)"
    for day in range(1, 9):

        def book(number: int, day: int = day) -> tuple[str, int]:
            key = f"{day}/{number}"
            if number % 2:
                return key, server.book("acme", slot(day), key).status
            with contextlib.closing(
                sqlite3.connect(server.database, timeout=SOON, isolation_level=None)
            ) as db:
                try:
                    db.execute(statement, (slot(day), key))
                except sqlite3.IntegrityError:
                    return key, 409
                return key, 201

        outcomes = at_once(16, book)
        assert Counter(status for _, status in outcomes) == {201: 1, 409: 15}
        ((winner, _),) = [outcome for outcome in outcomes if outcome[1] == 201]
        assert server.rows()[day - 1 :] == [("acme", slot(day), winner)]


# --- Processes

CLIENTS = 4
PROCESS_DAYS = range(1, 29)


def run_process(
    number: int, ports: list[int], start: threading.Barrier, results: multiprocessing.Queue[Any]
) -> None:
    """Book each slot through one server, then the other; report (day, key, status, body)."""
    servers = [http.client.HTTPConnection("127.0.0.1", port, timeout=SOON) for port in ports]
    responses = []
    for day in PROCESS_DAYS:
        # By turns, all keys differ, two processes share a key, and all share one.
        key = f"{day}/{number % (CLIENTS, 2, 1)[day % 3]}"
        spelling = SPELLINGS[number].format(day)
        body = json.dumps(dict(zip(MEMBERS, ("acme", spelling, key))))
        start.wait(SOON)
        for turn in (number, number + 1, number):
            connection = servers[turn % len(servers)]
            connection.request("POST", "/bookings", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            responses.append((day, key, response.status, response.read()))
    for connection in servers:
        connection.close()
    results.put(responses)


def test_processes_racing_through_two_servers_have_one_winner(tmp_path: Path) -> None:
    # Not fork: it would copy this process while other tests have threads.
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(CLIENTS), context.Queue()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(contextlib.closing(Server(tmp_path))) for _ in range(2)]
        ports = [server.port for server in servers]
        clients = [
            context.Process(target=run_process, args=(number, ports, start, results), daemon=True)
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        responses = [each for _ in clients for each in results.get(timeout=SOON)]
        for client in clients:
            client.join(SOON)
        assert [client.exitcode for client in clients] == [0] * CLIENTS
        assert len(responses) == 3 * CLIENTS * len(PROCESS_DAYS)
        rows = servers[0].rows()
        for day in PROCESS_DAYS:
            assert_one_winner(slot(day), [each[1:] for each in responses if each[0] == day], rows)
        assert len(rows) == len(PROCESS_DAYS)
        assert servers[0].log.read_text() == ""


# --- Startup


def test_servers_started_at_once_on_new_database_all_start(tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            servers = at_once(6, lambda number, folder=folder: Server(folder))
            for server in filter(None, servers):
                stack.enter_context(contextlib.closing(server))
            assert None not in servers, (folder / "server.log").read_text()
            booked = [server.book("acme", slot(1), str(key)) for key, server in enumerate(servers)]
            responses = [(str(key), each.status, each.body) for key, each in enumerate(booked)]
            assert [status for _, status, _ in responses] == [201, 409, 409, 409, 409, 409]
            assert_one_winner(slot(1), responses, servers[-1].rows())
            assert (folder / "server.log").read_text() == ""


def test_servers_wait_while_another_program_creates_database(tmp_path: Path) -> None:
    """SQLite does not wait for a lock when it changes the journal mode, so the server must."""
    locked, started = threading.Event(), threading.Event()

    def work(number: int) -> Server | None:
        if number == 0:
            with contextlib.closing(
                sqlite3.connect(tmp_path / "bookings.db", isolation_level=None)
            ) as db:
                db.execute("BEGIN IMMEDIATE")
                locked.set()
                # Long enough that the servers meet the lock, and far below their timeout.
                assert not started.wait(BUSY_SECONDS / 4), "a server started or failed too early"
                return None
        assert locked.wait(SOON)
        try:
            return Server(tmp_path)
        finally:
            started.set()

    with contextlib.ExitStack() as stack:
        _, *servers = at_once(4, work)
        for server in filter(None, servers):
            stack.enter_context(contextlib.closing(server))
        assert None not in servers, (tmp_path / "server.log").read_text()
        statuses = [server.book("acme", slot(1), "k1").status for server in servers]
        assert statuses == [201, 200, 200]
        assert servers[0].rows() == [("acme", slot(1), "k1")]
