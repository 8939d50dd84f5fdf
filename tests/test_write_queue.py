"""The write queue: a worker that hangs or dies at its head delays others for a limited time.

The patch STOP_IN_QUEUE shortens QUEUE_TIMEOUT to 0.5 s and BUSY_SECONDS to 1 s.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookings.stores.write_queue import WriteQueue
from tests.helpers.processes import children_in_state, requires_fork, serving, workers_of
from tests.helpers.servers import Response, Server, at_once, until
from tests.helpers.storage import STOP_IN_QUEUE
from tests.helpers.values import slot_at

QUEUE_TIMEOUT, BUSY_SECONDS = 0.5, 1.0
pytestmark = requires_fork


def book(server: Server, number: int) -> tuple[Response, float]:
    """Book a slot with a key of its own; return the response and how long it took in seconds."""
    began = time.monotonic()
    response = server.book("acme", slot_at(number), f"k{number}")
    return response, time.monotonic() - began


@contextlib.contextmanager
def stopped_at_head(server: Server, key: str) -> Iterator[tuple[int, list[Response | None]]]:
    """Yield a worker that has suspended itself, and a list that its response is appended to."""
    responses: list[Response | None] = []

    def send() -> None:
        try:
            responses.append(server.book("acme", slot_at(0), key))
        except (OSError, http.client.HTTPException):
            responses.append(None)

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: children_in_state(server, "T"))
    (worker,) = children_in_state(server, "T")
    try:
        yield worker, responses
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
        thread.join()


def assert_full_speed(server: Server, first: int) -> None:
    """Assert that no booking waits for the timeout of the queue."""
    took = [book(server, number) for number in range(first, first + 8)]
    assert {response.status for response, _ in took} == {201}
    assert max(seconds for _, seconds in took) < QUEUE_TIMEOUT


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL], ids=lambda end: end.name)
@pytest.mark.parametrize(
    ("key", "status"), [("stop", 201), ("lock", 503)], ids=["in the queue", "with SQLite's lock"]
)
def test_worker_that_hangs_at_head_of_queue_delays_others_for_limited_time(
    tmp_path: Path, key: str, status: int, end: signal.Signals
) -> None:
    with serving(tmp_path, "--workers=2", patch=STOP_IN_QUEUE) as server:
        with stopped_at_head(server, key) as (worker, responses):
            # The waits overlap instead of adding up.
            took = at_once(8, lambda number: book(server, 1 + number))
            assert {response.status for response, _ in took} == {status}
            assert all(seconds >= QUEUE_TIMEOUT for _, seconds in took)
            assert max(seconds for _, seconds in took) < QUEUE_TIMEOUT + BUSY_SECONDS + 0.5
            os.kill(worker, end)
            until(lambda: responses)
        if end == signal.SIGCONT:
            assert responses[0] and responses[0].status == 201
        else:
            assert responses == [None]
            until(lambda: len(workers_of(server)) == 2 and worker not in workers_of(server))
        assert_full_speed(server, 20)
        assert server.stop() == 0


def test_worker_that_is_killed_at_head_of_queue_frees_it(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=2", patch=STOP_IN_QUEUE) as server:
        before = workers_of(server)
        with pytest.raises((OSError, http.client.HTTPException)):
            server.book("acme", slot_at(0), "die")
        until(lambda: len(workers_of(server)) == 2 and workers_of(server) != before)
        assert_full_speed(server, 1)
        assert server.book("acme", slot_at(0), "k0").status == 201
        assert server.stop() == 0


def test_repair_of_free_queue_lets_one_request_in() -> None:
    queue = WriteQueue()
    queue.repair()
    assert queue.enter(0)
    assert not queue.enter(0)
    queue.leave()
    queue.leave()  # Does nothing.
    assert queue.enter(0)
    assert not queue.enter(0)
