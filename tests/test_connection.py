"""One connection: deadlines, clients that vanish or stop halfway, and how a response is written."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bookings.server import connection as connection_module
from bookings.server import server as server_module
from tests.helpers.clients import (
    HOST,
    JSON,
    assert_serves,
    connect,
    get,
    only_response,
    post,
    request,
    responses,
    sized,
    statuses,
)
from tests.helpers.servers import SOON, InProcessServer, Server, all_from, assert_problem
from tests.helpers.values import SLOT, fresh_name

HALF_BODY = post("late")[:-20]
CHUNKED = request(b"POST /bookings HTTP/1.1", HOST, JSON, b"Transfer-Encoding: chunked")


@pytest.fixture(scope="module", autouse=True)
def stalled(shared_server: Server) -> Iterator[dict[str, socket.socket]]:
    """Two requests that stall. Only the last test reads their responses, so that no test waits."""
    sent = {"head": HALF_BODY.partition(b"\r\n\r\n")[0], "body": HALF_BODY}
    with contextlib.ExitStack() as stack:
        connections = {name: stack.enter_context(connect(shared_server)) for name in sent}
        for name, connection in connections.items():
            connection.sendall(sent[name])
        yield connections


@pytest.mark.parametrize(
    "field, status",
    [
        (b"Content-Length: 1000000", 413),
        (b"Transfer-Encoding: chunked", 400),
        (b"Transfer-Encoding: gzip", 501),
    ],
)
def test_rejection_can_be_read_while_body_is_still_sent(
    shared_server: Server, field: bytes, status: int
) -> None:
    before = shared_server.rows()
    body = post("smuggled") * 4000
    sent = request(b"POST /bookings HTTP/1.1", HOST, JSON, field, body=body)
    with connect(shared_server) as connection:
        connection.sendall(sent[:65536])
        assert select.select([connection], [], [], SOON)[0]
        # If the server had closed already, these bytes would reset the connection, and the
        # response could be lost.
        for start in range(65536, len(sent), 65536):
            connection.sendall(sent[start : start + 65536])
        assert statuses(all_from(connection)) == [status]
    assert_serves(shared_server, before)


def test_request_cut_short_is_not_booked(shared_server: Server) -> None:
    before = shared_server.rows()
    whole = post(fresh_name())
    for length in range(len(whole)):
        assert statuses(shared_server.raw(whole[:length], half_close=True)) in ([], [400])
    # The same after a complete request.
    key = fresh_name()
    cut = post(key) + whole[:-1]
    assert statuses(shared_server.raw(cut, half_close=True)) in ([201], [201, 400])
    assert_serves(shared_server, [*before, (key, SLOT, key)])


def test_vanishing_clients_leave_nothing(server: Server) -> None:
    whole = post("gone")
    cut_short = (b"", b"P", whole[:40], whole[:-40], whole[:-1])
    for sent in (*cut_short, b"GARBAGE\r\n\r\n", get(), get() * 100):
        for linger in (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)):
            with connect(server) as connection:
                # Linger of 0 s: close() sends a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(sent)
    assert_serves(server, [])
    rows = server.rows()
    if os.name == "posix":
        # The exit ends all connections, so nothing is written later.
        assert server.stop() == 0
        assert server.rows() == rows
        assert server.log.read_text() == ""


DEADLINES: dict[str, tuple[str, bytes, bytes, list[int]]] = {
    "silence": ("IDLE_SECONDS", b"", b"", []),
    "silence after a request": ("IDLE_SECONDS", get(), b"", [200]),
    "empty line after a request": ("IDLE_SECONDS", get() + b"\r\n", b"", [200]),
    "one byte": ("HEAD_SECONDS", b"G", b"", [408]),
    "half a head": ("HEAD_SECONDS", HALF_BODY[:60], b"", [408]),
    "dripping head": ("HEAD_SECONDS", HALF_BODY[:60], b"a", [408]),
    "endless headers": ("HEAD_SECONDS", b"GET /bookings HTTP/1.1\r\n", b"X: 1\r\n", [408]),
    "request and a head without its end": ("HEAD_SECONDS", get() + get()[:-1], b"", [200, 408]),
    "no body": ("BODY_SECONDS", sized(b" " * 9999)[:-9999], b"", [408]),
    "half a body": ("BODY_SECONDS", HALF_BODY, b"", [408]),
    "dripping body": ("BODY_SECONDS", sized(b" " * 9999)[:-9999], b" ", [408]),
    "half a chunk": ("BODY_SECONDS", CHUNKED + b"5\r\n{", b"", [408]),
    "dripping size": ("BODY_SECONDS", CHUNKED, b"0", [408]),
    "dripping chunks": ("BODY_SECONDS", CHUNKED, b"1\r\n \r\n", [408]),
    "dripping trailers": ("BODY_SECONDS", CHUNKED + b"0\r\n", b"X: 1\r\n", [408]),
    "request and half a body": ("BODY_SECONDS", get() + HALF_BODY, b"", [200, 408]),
}


@pytest.mark.parametrize(
    "constant, sent, drip, expected", list(DEADLINES.values()), ids=list(DEADLINES)
)
def test_deadline_ends_wait(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    sent: bytes,
    drip: bytes,
    expected: list[int],
) -> None:
    monkeypatch.setattr(connection_module, constant, 0.3)
    with contextlib.closing(InProcessServer(tmp_path)) as server:
        with connect(server) as connection:
            started = time.monotonic()
            connection.sendall(sent)
            found = responses(all_from(connection, drip=drip))
            waited = time.monotonic() - started
        assert [response.status for response in found] == expected
        # The other deadlines are 10 s or longer.
        assert 0.29 < waited < 5
        if 408 in expected:
            assert_problem(found[-1], 408, "too-slow")
            assert found[-1].headers["Connection"] == "close"
        assert_serves(server, [])


def test_idle_connection_outlives_those_of_balancers() -> None:
    """Their default is 60 s. If the server closed first, it could lose a request."""
    assert connection_module.IDLE_SECONDS > 70


def stay_silent(server: Server, connection: socket.socket) -> None:
    pass


def stay_after_rejection(server: Server, connection: socket.socket) -> None:
    connection.sendall(b"GARBAGE\r\n\r\n")
    assert statuses(all_from(connection)) == [400]


def ask_and_not_read(server: Server, connection: socket.socket) -> None:
    """Request more than the buffers of both sockets hold."""
    rows = [("reader", f"{2000 + n}-01-01T00:00:00Z", f"{n:0255}") for n in range(1000)]
    server.insert(rows)
    connection.sendall(get() * 60)


@pytest.mark.parametrize(
    "constant, occupy",
    [
        ("IDLE_SECONDS", stay_silent),
        ("LINGER_SECONDS", stay_after_rejection),
        ("RESPONSE_SECONDS", ask_and_not_read),
    ],
)
def test_connection_frees_its_place_in_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    occupy: Callable[[Server, socket.socket], None],
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(connection_module, constant, 0.3)
    with contextlib.closing(InProcessServer(tmp_path)) as server, connect(server) as connection:
        occupy(server, connection)
        assert_serves(server, server.rows())


def test_response_is_sent_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def watch(name: str) -> None:
        original = getattr(socket.socket, name)

        def watching(self: socket.socket, data: Any, *arguments: Any) -> Any:
            if self.getsockname()[1] == server.port:
                written.append(bytes(data))
            return original(self, data, *arguments)

        monkeypatch.setattr(socket.socket, name, watching, raising=False)

    with contextlib.closing(InProcessServer(tmp_path)) as server:
        for name in ("send", "sendall"):
            watch(name)
        received = server.raw(post("k") + get() + get(line=b"GET /x HTTP/1.1") + b"GARBAGE\r\n\r\n")
        assert [statuses(each) for each in written] == [[201], [200], [404], [400]]
        assert b"".join(written) == received
        assert server.rows() == [("k", SLOT, "k")]


@pytest.mark.parametrize(
    ("part", "limit"),
    [("head", connection_module.HEAD_SECONDS), ("body", connection_module.BODY_SECONDS)],
)
def test_stalled_request_is_408_in_time(
    shared_server: Server, stalled: dict[str, socket.socket], part: str, limit: float
) -> None:
    before = shared_server.rows()
    connection = stalled[part]
    connection.settimeout(limit + SOON)
    received = b""
    while more := connection.recv(65536):
        received += more
    response = only_response(received)
    assert_problem(response, 408, "too-slow")
    assert response.headers["Connection"] == "close"
    assert shared_server.rows() == before
