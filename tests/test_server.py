"""Limits of the server: connections, descriptors, idle clients; and how a signal ends it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookings.server import server as server_module
from bookings.server.signals import SAME_SIGNAL_SECONDS
from tests.helpers.clients import (
    CLOSE,
    assert_silent,
    connect,
    get,
    head_from,
    post,
    response_from,
    responses,
    statuses,
)
from tests.helpers.openapi import assert_documented
from tests.helpers.processes import (
    requires_fork,
    requires_proc,
    resources_used,
    serving,
    suspended,
    workers_of,
)
from tests.helpers.servers import (
    SOON,
    InProcessServer,
    Server,
    all_from,
    assert_problem,
    at_once,
    until,
)
from tests.helpers.values import SLOT, slot_at

requires_posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
stop_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raise the limit on file descriptors of this process: each client connection needs one."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip("the hard limit on file descriptors is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- Number of connections


def test_connections_beyond_limit_wait_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    with contextlib.closing(InProcessServer(tmp_path)) as server:
        with contextlib.ExitStack() as stack:
            first, second = (stack.enter_context(connect(server)) for _ in range(2))
            for accepted in (first, second):
                accepted.sendall(get() + get()[:-1])
                assert response_from(accepted).status == 200
            third = stack.enter_context(connect(server))
            third.sendall(post("third", CLOSE))
            assert_silent(third)
            assert server.rows() == []
            # Accepted connections are served meanwhile; the first one to become idle makes room.
            second.sendall(b"\n")
            assert response_from(second).status == 200
            assert statuses(all_from(third)) == [201]
            assert all_from(second) == b""
            first.sendall(b"\n")
            assert response_from(first).status == 200
        rows = [("third", SLOT, "third")]
        assert server.rows() == rows
        crowd = at_once(30, lambda number: server.book(f"t{number}", SLOT, f"k{number}").status)
        assert crowd == [201] * 30
        assert sorted(server.rows()) == sorted(
            [*rows, *((f"t{n}", SLOT, f"k{n}") for n in range(30))]
        )


def test_longest_idle_connection_is_closed_for_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(server_module, "SETTLED_SECONDS", 0.1)
    with contextlib.closing(InProcessServer(tmp_path)) as server, contextlib.ExitStack() as stack:
        used, silent, busy = (stack.enter_context(connect(server)) for _ in range(3))
        for connection in (used, busy):
            connection.sendall(get())
            assert response_from(connection).status == 200
        busy.sendall(post("late")[:-20])
        # `used` was idle before `silent`, but sends another request, so `silent` is idle longest.
        used.sendall(get())
        assert response_from(used).status == 200
        new = stack.enter_context(connect(server))
        new.sendall(post("new"))
        assert response_from(new).status == 201
        assert all_from(silent) == b""
        for connection in (used, new):
            connection.sendall(get())
            assert response_from(connection).status == 200
        busy.sendall(post("late")[-20:])
        assert response_from(busy).status == 201
        assert sorted(server.rows()) == [("late", SLOT, "late"), ("new", SLOT, "new")]


@requires_proc
def test_waiting_connections_cost_nothing(tmp_path: Path) -> None:
    """All places are occupied by incomplete requests; when these end, the others are served."""
    patch = "from bookings.server import server; server.MAX_CONNECTIONS = 20"
    with serving(tmp_path, "--workers=1", patch=patch) as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(server)) for _ in range(20)]
        for connection in busy:
            connection.sendall(get()[:-1])
        # One thread of the supervisor, two of the worker, and one per connection.
        until(lambda: resources_used(server)["threads"] == 23)
        waiting = [stack.enter_context(connect(server)) for _ in range(50)]
        for number, connection in enumerate(waiting):
            connection.sendall(post(f"w{number}", CLOSE))
        before = resources_used(server)
        assert select.select([*waiting, *busy], [], [], 1.5)[0] == []
        after = resources_used(server)
        assert after["seconds"] - before["seconds"] < 0.3
        assert after["threads"] == 23
        assert after["descriptors"] == before["descriptors"]
        assert server.rows() == []
        for connection in busy:
            connection.sendall(b"\n")
        for connection in waiting:
            assert statuses(all_from(connection, allow_reset=True)) == [201]
            # Until this close the connection would keep its place.
            connection.close()
        assert len(server.rows()) == 50
        assert resources_used(server)["threads"] <= 23
        assert server.log.read_text() == ""


@requires_proc
def test_idle_connections_beyond_limit_make_room(tmp_path: Path, many_descriptors: None) -> None:
    """Clients that are idle longest make room long before their own deadline."""
    patch = "from bookings.server import server; server.MAX_CONNECTIONS = 50"
    with serving(tmp_path, "--workers=2", patch=patch) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(300)]
        took = []
        for number in range(20):
            started = time.monotonic()
            assert server.book(start=slot_at(number), key=f"k{number}").status == 201
            took.append(time.monotonic() - started)
        # Only connections that are idle for SETTLED_SECONDS make room, so the first requests wait.
        assert sorted(took)[10] < 0.25 and max(took) < 10
        assert resources_used(server)["threads"] <= 3 + 2 * 51
        until(lambda: len(select.select(idle, [], [], 0)[0]) >= 200)
        assert len(server.rows()) == 20
        assert server.log.read_text() == ""


@requires_proc
@pytest.mark.parametrize("is_raised", [True, False], ids=["soft", "hard"])
def test_limit_on_descriptors_lowers_number_of_connections(tmp_path: Path, is_raised: bool) -> None:
    """A soft limit is raised. A hard limit lowers the number of connections; each is served."""
    patch = f"""
import resource
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard if {is_raised} else 64))
"""
    with serving(tmp_path, "--workers=1", patch=patch) as server, contextlib.ExitStack() as stack:
        (worker,) = workers_of(server)
        limits = Path(f"/proc/{worker}/limits").read_text()
        soft, hard = re.findall(r"Max open files\s+(\S+)\s+(\S+)", limits)[0]
        assert soft == hard
        assert (soft == "64") != is_raised
        busy = [stack.enter_context(connect(server)) for _ in range(60)]
        # Accepted connections are new and therefore keep their places. Without them there are three
        # threads: one of the supervisor and two of the worker.
        until(lambda: resources_used(server)["threads"] == 3 + (60 if is_raised else 8))
        for number, connection in enumerate(busy):
            connection.sendall(post(f"k{number}", CLOSE))
        for connection in busy:
            assert statuses(all_from(connection, allow_reset=True)) == [201]
            # Until this close the connection would keep its place.
            connection.close()
        until(lambda: resources_used(server)["threads"] == 3)
        idle = [stack.enter_context(connect(server)) for _ in range(12)]
        assert server.book(key="new").status == 201
        assert len(select.select(idle, [], [], 0)[0]) == (0 if is_raised else 12 - 7)
        assert len(server.rows()) == 61
        assert server.log.read_text() == ""


@requires_proc
def test_slow_clients_do_not_delay_others(tmp_path: Path, many_descriptors: None) -> None:
    """500 clients are silent, 200 send a byte per second. Each is disconnected at its deadline."""
    limit = 4.0
    patch = (
        f"from bookings.server import connection as c; c.HEAD_SECONDS = c.IDLE_SECONDS = {limit}"
    )
    with serving(tmp_path, "--workers=2", patch=patch) as server, contextlib.ExitStack() as stack:
        server.book()
        # One thread of the supervisor and two per worker; the booking's thread has ended.
        until(lambda: resources_used(server)["threads"] == 5)
        before = resources_used(server)
        silent, used = (
            [stack.enter_context(connect(server)) for _ in range(250)] for _ in range(2)
        )
        # One at a time: for reads that overlap, SQLite opens spare descriptors and keeps them.
        for connection in used:
            connection.sendall(get())
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        dripping = [stack.enter_context(connect(server)) for _ in range(200)]
        opened = time.monotonic()
        stop, took = threading.Event(), []

        def drip() -> None:
            for byte in post("late"):
                for connection in dripping:
                    with contextlib.suppress(OSError):  # The server has disconnected it.
                        connection.send(bytes([byte]))
                if stop.wait(1.0):
                    return

        def ask() -> None:
            headers = {"X-Tenant-ID": "good", "Content-Type": "application/json"}
            good = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
            with contextlib.closing(good):
                for number in range(100):
                    start, key = slot_at(number), f"good {number}"
                    booking = json.dumps({"start_time_utc": start, "idempotency_key": key})
                    for method, body in (("POST", booking), ("GET", None)):
                        started = time.monotonic()
                        target = "/bookings" if body else "/bookings?limit=1"
                        good.request(method, target, body, headers)
                        response = good.getresponse()
                        response.read()
                        took.append(time.monotonic() - started)
                        assert response.status == (201 if body else 200)

        dripper = threading.Thread(target=drip)
        dripper.start()
        try:
            ask()
            assert time.monotonic() - opened < limit, "the slow clients were disconnected too early"
            during = resources_used(server)
            for connection in dripping:
                (response,) = responses(all_from(connection, allow_reset=True))
                assert_problem(response, 408, "too-slow")
            for connection in (*silent, *used):
                assert all_from(connection, allow_reset=True) == b""
            # The deadline ended the last one, not the end of its bytes. Closing takes some seconds.
            assert limit < time.monotonic() - opened < limit + 5
        finally:
            stop.set()
            dripper.join()
        assert sorted(took)[len(took) * 99 // 100] < 0.25
        assert during["threads"] <= before["threads"] + 701
        # One per connection, and a few of the requests that were served meanwhile.
        assert during["descriptors"] <= before["descriptors"] + 701 + 20
        assert during["memory"] - before["memory"] < 700 * 100_000
        until(lambda: resources_used(server)["threads"] == before["threads"])
        assert resources_used(server)["descriptors"] <= before["descriptors"] + 20
        assert len(server.rows()) == 101
        assert server.log.read_text() == ""


# --- Shutdown


def is_listening(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=SOON).close()
    except OSError:
        return False
    return True


def is_stalled(server: Server) -> bool:
    """Return whether the server used no CPU time for 0.1 s."""
    before = resources_used(server)["seconds"]
    time.sleep(0.1)
    return resources_used(server)["seconds"] == before


@contextlib.contextmanager
def in_flight(server: Server) -> Iterator[tuple[socket.socket, bytes]]:
    """Yield a connection that has sent half of a body, and the other half."""
    head, end, body = post("k", b"Expect: 100-continue").partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + end)
        head_from(connection)
        connection.sendall(body[:30])
        yield connection, body[30:]


@requires_posix
@stop_signals
def test_shutdown_closes_idle_connections_at_once(server: Server, number: int) -> None:
    with connect(server) as silent, connect(server) as used:
        used.sendall(post("k"))
        assert response_from(used).status == 201
        started = time.monotonic()
        assert server.stop(number) == 0
        assert time.monotonic() - started < 2
        assert all_from(silent) == all_from(used) == b""
    assert server.rows() == [("k", SLOT, "k")]
    assert server.log.read_text() == ""


@requires_posix
@stop_signals
def test_shutdown_completes_request_in_flight(server: Server, number: int) -> None:
    with in_flight(server) as (connection, rest):
        server.process.send_signal(number)
        until(lambda: not is_listening(server))
        assert server.process.poll() is None
        connection.sendall(rest + post("smuggled"))
        (response,) = responses(all_from(connection))
        assert (response.status, response.headers["Connection"]) == (201, "close")
    assert server.process.wait(SOON) == 0
    assert server.rows() == [("k", SLOT, "k")]
    assert server.log.read_text() == ""


@requires_posix
@stop_signals
def test_second_signal_exits_at_once(server: Server, number: int) -> None:
    with in_flight(server):
        server.process.send_signal(number)
        until(lambda: not is_listening(server))
        time.sleep(SAME_SIGNAL_SECONDS)
        started = time.monotonic()
        assert server.stop(number) == -number
        assert time.monotonic() - started < 2
    assert server.rows() == []


@requires_fork
@pytest.mark.parametrize("count", [1, 2])
def test_shutdown_serves_backlog(tmp_path: Path, count: int) -> None:
    with serving(tmp_path, f"--workers={count}") as server, contextlib.ExitStack() as stack:
        kept = stack.enter_context(connect(server))
        kept.sendall(get())
        assert kept.recv(65536).startswith(b"HTTP/1.1 200 ")
        with suspended(server):
            # `kept` was idle and sends again; the others are new, and two of them stay silent.
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
    "one byte": b"P",
    "half a head": post("late")[:60],
    "no body": post("late").partition(b"\r\n\r\n")[0] + b"\r\n\r\n",
    "half a body": post("late")[:-20],
}


@requires_fork
def test_shutdown_waits_for_stalled_request_until_deadline(tmp_path: Path) -> None:
    """The client is told to retry. The exit status is 0, because every request got a response."""
    limit = 1.0
    patch = f"from bookings.server import server; server.ARRIVAL_SECONDS = {limit}"
    with serving(tmp_path, "--workers=2", patch=patch) as server, contextlib.ExitStack() as stack:
        stalled, dripping = (stack.enter_context(connect(server)) for _ in range(2))
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
        for (response,) in found:
            assert_problem(response, 503, "shutting-down")
            assert_documented(response, "GET", "/live")
            assert response.headers["Connection"] == "close"
        assert server.process.wait(SOON) == 0
        assert limit <= time.monotonic() - started < limit + 3
        assert server.rows() == []
        assert server.log.read_text() == ""


@requires_proc
def test_shutdown_completes_response_to_slow_reader(tmp_path: Path) -> None:
    patch = "from bookings.server import server; server.ARRIVAL_SECONDS = 0.1"
    with serving(tmp_path, "--workers=1", patch=patch) as server:
        server.insert([("slow", slot_at(number), f"{number:0255}") for number in range(1000)])
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(SOON)
            client.connect(("127.0.0.1", server.port))
            asked = 40
            client.sendall(
                b"GET /bookings HTTP/1.1\r\nHost: a\r\nX-Tenant-ID: slow\r\n\r\n" * asked
            )
            received = client.recv(65536)
            # The responses exceed all buffers, so the server blocks in the middle of one.
            until(lambda: is_stalled(server))
            server.process.send_signal(signal.SIGTERM)
            until(lambda: not is_listening(server))
            with pytest.raises(subprocess.TimeoutExpired):
                server.process.wait(0.5)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            received += all_from(client, allow_reset=True)
        assert server.process.wait(SOON) == 0
        found = responses(received)
        assert 0 < len(found) < asked
        assert [len(response.json) for response in found] == [1000] * len(found)
        *earlier, last = (response.headers["Connection"] for response in found)
        assert set(earlier) <= {None} and last == "close"
        assert server.log.read_text() == ""
