"""Who gets a slot when many ask at once: one, whatever the threads, processes and SQL clients do.

Each race is judged alike: one 201 a slot; every retry under the winner's key 200 with the identical booking;
all others 409; one row a slot, the winner's. And servers that start together on one new database all start.
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

from bookings.store import BUSY_SECONDS
from tests.helpers.servers import SOON, Response, Server, assert_problem, at_once

THREADS = 32
# A second spelling must not be a second slot, least of all in a race.
SPELLINGS = [
    "2026-01-{:02}T10:00:00Z",
    "2026-01-{:02}T10:00:00.000Z",
    "2026-01-{:02}t10:00:00z",
    "2026-01-{:02}T10:00:00+00:00",
]


def slot(day: int) -> str:
    return SPELLINGS[0].format(day)


def assert_one_winner(start: str, asked: list[tuple[str, int, bytes]], rows: list[tuple[Any, ...]]) -> None:
    """`asked` has (key, status, body) for each request for this slot of the tenant acme."""
    ((winner, booking),) = [(key, body) for key, status, body in asked if status == 201]
    members = json.loads(booking)
    assert [members[name] for name in ("tenant_id", "start_time_utc", "idempotency_key")] == [
        "acme",
        start,
        winner,
    ]
    for key, status, body in asked:
        if key != winner:
            assert status == 409, body
            assert json.loads(body)["type"] == "/problems/slot-taken"
        elif status != 201:
            assert (status, body) == (200, booking)
    assert [row for row in rows if row[1] == start] == [("acme", start, winner)]


@pytest.mark.both_stores
@pytest.mark.parametrize("keys", [THREADS, 8, 2], ids=lambda keys: f"{keys} keys")
def test_threads_race_for_the_same_slots(server: Server, keys: int) -> None:
    days = range(1, 7)
    for day in days:

        def ask_twice(number: int, day: int = day) -> list[tuple[str, int, bytes]]:
            key, start = f"{day}/{number % keys}", SPELLINGS[number % len(SPELLINGS)].format(day)
            answers = [server.book("acme", start, key) for _ in range(2)]
            return [(key, answer.status, answer.body) for answer in answers]

        asked = [one for pair in at_once(THREADS, ask_twice) for one in pair]
        assert len(asked) == 2 * THREADS
        assert_one_winner(slot(day), asked, server.rows())
    assert len(server.rows()) == len(days)
    assert server.log.read_text() == ""


@pytest.mark.both_stores
def test_the_same_request_50_times_at_once(server: Server) -> None:
    for day in range(1, 4):
        answers = at_once(50, lambda number, day=day: server.book("acme", slot(day), f"k{day}"))
        assert Counter(answer.status for answer in answers) == {201: 1, 200: 49}
        assert len({answer.body for answer in answers}) == 1
        assert all(
            (answer.headers["Idempotent-Replayed"] == "true") == (answer.status == 200) for answer in answers
        )
        assert server.rows()[day - 1 :] == [("acme", slot(day), f"k{day}")]


@pytest.mark.both_stores
@pytest.mark.parametrize("by", ["slot", "tenant"])
def test_one_key_for_different_bookings_at_once(server: Server, by: str) -> None:
    """Two threads ask for each booking: the winner's twin shows that a retry is no other use of the key."""
    for key in ("k1", "k2", "k3"):

        def ask(number: int, key: str = key) -> tuple[tuple[str, str, str], Response]:
            which = number // 2 + 1
            tenant, day = (key, which) if by == "slot" else (f"{key} {which}", 1)
            return (tenant, slot(day), key), server.book(tenant, slot(day), key)

        before = server.rows()
        asked = at_once(THREADS, ask)
        (winner,) = [wanted for wanted, answer in asked if answer.status == 201]
        assert server.rows() == [*before, winner]
        for wanted, answer in asked:
            if wanted != winner:
                assert_problem(answer, 422, "key-reused", "idempotency_key")
        assert sorted(answer.status for wanted, answer in asked if wanted == winner) == [200, 201]
    assert server.log.read_text() == ""


def test_sql_clients_race_with_the_server(server: Server) -> None:
    statement = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES ('acme', ?, ?)"
    for day in range(1, 9):

        def ask(number: int, day: int = day) -> tuple[str, int]:
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

        asked = at_once(16, ask)
        assert Counter(status for _, status in asked) == {201: 1, 409: 15}
        ((winner, _),) = [one for one in asked if one[1] == 201]
        assert server.rows()[day - 1 :] == [("acme", slot(day), winner)]


# --- Processes

CLIENTS = 4
PROCESS_DAYS = range(1, 29)


def race_as_a_process(
    number: int, ports: list[int], start: threading.Barrier, results: multiprocessing.Queue[Any]
) -> None:
    """Ask for each slot through one server, then the other; report (day, key, status, body)."""
    servers = [http.client.HTTPConnection("127.0.0.1", port, timeout=SOON) for port in ports]
    asked = []
    for day in PROCESS_DAYS:
        # By turns all keys differ, two processes share one, all share one.
        key = f"{day}/{number % (CLIENTS, 2, 1)[day % 3]}"
        spelled = SPELLINGS[number].format(day)
        body = json.dumps({"tenant_id": "acme", "start_time_utc": spelled, "idempotency_key": key})
        start.wait(SOON)
        for turn in (number, number + 1, number):
            connection = servers[turn % len(servers)]
            connection.request("POST", "/bookings", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            asked.append((day, key, response.status, response.read()))
    for connection in servers:
        connection.close()
    results.put(asked)


def test_processes_race_through_two_servers_on_one_database(tmp_path: Path) -> None:
    # Spawned on every system, since a fork would carry over the threads of other tests.
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(CLIENTS), context.Queue()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(contextlib.closing(Server(tmp_path))) for _ in range(2)]
        ports = [server.port for server in servers]
        clients = [
            context.Process(target=race_as_a_process, args=(number, ports, start, results), daemon=True)
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        asked = [one for _ in clients for one in results.get(timeout=SOON)]
        for client in clients:
            client.join(SOON)
        assert [client.exitcode for client in clients] == [0] * CLIENTS
        assert len(asked) == 3 * CLIENTS * len(PROCESS_DAYS)
        rows = servers[0].rows()
        for day in PROCESS_DAYS:
            assert_one_winner(slot(day), [one[1:] for one in asked if one[0] == day], rows)
        assert len(rows) == len(PROCESS_DAYS)
        assert servers[0].log.read_text() == ""


def test_servers_start_together_on_a_database_that_is_not_there_yet(tmp_path: Path) -> None:
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        with contextlib.ExitStack() as stack:
            servers = at_once(6, lambda number, folder=folder: Server(folder))
            for server in filter(None, servers):
                stack.enter_context(contextlib.closing(server))
            assert None not in servers, (folder / "server.log").read_text()
            asked = [(str(key), server.book("acme", slot(1), str(key))) for key, server in enumerate(servers)]
            answers = [(key, answer.status, answer.body) for key, answer in asked]
            assert [status for _, status, _ in answers] == [201, 409, 409, 409, 409, 409]
            assert_one_winner(slot(1), answers, servers[-1].rows())
            assert (folder / "server.log").read_text() == ""


def test_servers_wait_for_whoever_is_making_the_database(tmp_path: Path) -> None:
    """Whoever comes second may find the file locked, and SQLite does not wait to choose a journal."""
    held, ended = threading.Event(), threading.Event()

    def work(number: int) -> Server | None:
        if number == 0:
            with contextlib.closing(sqlite3.connect(tmp_path / "bookings.db", isolation_level=None)) as maker:
                maker.execute("BEGIN IMMEDIATE")
                held.set()
                # Long enough for servers to come to the lock, and well within their patience.
                assert not ended.wait(BUSY_SECONDS / 4), "no server can start meanwhile, and none may give up"
                return None
        assert held.wait(SOON)
        try:
            return Server(tmp_path)
        finally:
            ended.set()

    with contextlib.ExitStack() as stack:
        _, *servers = at_once(4, work)
        for server in filter(None, servers):
            stack.enter_context(contextlib.closing(server))
        assert None not in servers, (tmp_path / "server.log").read_text()
        assert [server.book("acme", slot(1), "k1").status for server in servers] == [201, 200, 200]
        assert servers[0].rows() == [("acme", slot(1), "k1")]
