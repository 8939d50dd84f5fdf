"""Histories of concurrent clients are linearizable: threads, processes, two servers, restarts."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.histories import (
    CALLS,
    Book,
    Call,
    Cancel,
    Get,
    List,
    run_in_processes,
    run_in_threads,
    violations,
)
from tests.helpers.processes import requires_fork, workers_of
from tests.helpers.servers import KILL, ROOT, Server, patched, until
from tests.helpers.values import COLUMNS

CLIENTS = 8
ROUNDS = 40


def tables(server: Server) -> list[list[Any]]:
    """Return the bookings and the cancelled ones."""
    with contextlib.closing(sqlite3.connect(server.database)) as db:
        return [
            db.execute(f"SELECT {', '.join(COLUMNS)} FROM {table}").fetchall()
            for table in ("bookings", "cancellations")
        ]


def overlap(call: Call, other: Call) -> bool:
    return call.began < other.ended and other.began < call.ended


def assert_linearizable(history: Sequence[Call], stored: list[Any], cancelled: list[Any]) -> None:
    """Assert that there is no violation, and that enough calls competed to make that meaningful."""
    assert violations(history, stored, cancelled) == []
    counts = Counter((type(call.request), call.status) for call in history)
    won = {call.request: call for call in history if call.status == 201}
    # Responses 409 to calls that overlapped the winner's.
    overlapping = sum(
        call.status == 409 and any(overlap(call, other) for other in winners)
        for call in history
        for winners in [[other for other in won.values() if other.request[:2] == call.request[:2]]]
    )
    ids = {row[3]: row[0] for row in [*stored, *cancelled]}
    cancels = {number: [] for number in ids.values()}
    for call in history:
        if isinstance(call.request, Cancel) and call.status == 204:
            cancels[call.request.id].append(call)
    # Retries of a POST, and pairs of DELETEs, that overlapped a DELETE of their booking.
    retries = sum(
        isinstance(call.request, Book)
        and call.status in (200, 410)
        and any(overlap(call, other) for other in cancels[ids[call.request.key]])
        for call in history
    )
    pairs = sum(overlap(*pair) for each in cancels.values() for pair in combinations(each, 2))
    slots = Counter(row[1:3] for row in [*stored, *cancelled])
    assert counts[Book, 201] >= ROUNDS, counts
    assert counts[Book, 200] >= ROUNDS / 2, counts
    assert counts[Book, 409] >= ROUNDS, counts
    assert counts[Book, 410] >= ROUNDS, counts
    assert counts[Book, 422] >= ROUNDS, counts
    assert counts[List, 200] >= ROUNDS, counts
    assert counts[Get, 200] + counts[Get, 410] >= ROUNDS, counts
    assert counts[Cancel, 204] >= ROUNDS, counts
    assert counts[Cancel, 404] >= ROUNDS / 20, counts
    # Bookings whose client did not see the 201, and bookings of a slot that was free again.
    assert len(ids) - len(won) >= ROUNDS / 20, counts
    assert len(ids) - len(slots) >= ROUNDS / 4, slots
    assert overlapping >= ROUNDS / 6, overlapping
    assert retries >= ROUNDS / 20, retries
    assert pairs > 0


def test_history_of_threads_and_one_worker_is_linearizable(tmp_path: Path) -> None:
    history: list[Call] = []
    with contextlib.closing(Server(tmp_path, "--workers", "1")) as server:
        run_in_threads(CLIENTS, [server.port], ROUNDS, history.append)
        assert_linearizable(history, *tables(server))
        assert server.log.read_text() == ""


@requires_fork
def test_history_of_processes_and_two_workers_is_linearizable(tmp_path: Path) -> None:
    with contextlib.closing(Server(tmp_path, "--workers", "2")) as server:
        history = run_in_processes(CLIENTS // 2, [server.port], 2 * ROUNDS)
        assert_linearizable(history, *tables(server))
        assert server.log.read_text() == ""


def test_history_of_two_servers_on_one_database_is_linearizable(tmp_path: Path) -> None:
    """One server ignores the write queue, which is for fairness alone."""
    history: list[Call] = []
    patch = (
        "from bookings.stores.write_queue import WriteQueue; WriteQueue.enter = lambda *_: False"
    )
    impatient = patched(tmp_path, patch)
    with contextlib.ExitStack() as stack:
        servers = [
            stack.enter_context(contextlib.closing(Server(tmp_path, program=program)))
            for program in (ROOT / "run.py", impatient)
        ]
        run_in_threads(CLIENTS, [server.port for server in servers], ROUNDS, history.append)
        assert_linearizable(history, *tables(servers[0]))
        assert servers[0].log.read_text() == ""


def refuses_connections(server: Server) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", server.port)) != 0


def kill(server: Server) -> None:
    server.close()
    # The workers exit shortly after their supervisor.
    until(lambda: refuses_connections(server))


def shut_down(server: Server) -> None:
    assert server.stop() == 0


def kill_worker(server: Server) -> None:
    os.kill(min(workers_of(server)), KILL)


@pytest.mark.parametrize(
    "end",
    [
        kill,
        pytest.param(kill_worker, marks=requires_fork),
        pytest.param(
            shut_down,
            marks=pytest.mark.skipif(os.name == "nt", reason="SIGTERM kills on Windows"),
        ),
    ],
)
def test_history_with_restarts_is_linearizable(
    tmp_path: Path, end: Callable[[Server], None]
) -> None:
    restarts = 3
    history: list[Call] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(Server(tmp_path)))
        load = stack.enter_context(ThreadPoolExecutor(1)).submit(
            run_in_threads, CLIENTS, [server.port], ROUNDS, history.append
        )
        for restart in range(1, restarts + 1):
            # Half of the responses come before the last restart.
            enough = restart / restarts * CLIENTS * ROUNDS * CALLS / 2
            until(lambda enough=enough: sum(call.status is not None for call in history) > enough)
            assert not load.done()
            end(server)
            if server.process.poll() is not None:
                server = Server(tmp_path, port=server.port)
                stack.enter_context(contextlib.closing(server))
        load.result()
        assert_linearizable(history, *tables(server))
        lines = server.log.read_text().splitlines()
        assert len(lines) == (restarts if end is kill_worker else 0), lines
