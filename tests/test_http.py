"""How the server frames what it reads and sends, over raw sockets: an answer to a request, in order, well-formed.

The bytes that no HTTP library would send are in tests/corpus/; here is what takes more than bytes and their answer.
Then time and room: deadlines, the bound on connections, how a signal ends it all. For short deadlines the server
runs in this process; else it is `run.py`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import bookings.server as program
from bookings.store import SQLiteStore, create_database
from bookings.workers import SAME_SECONDS
from tests.helpers.clients import (
    CLOSE,
    HOST,
    JSON,
    TENANT,
    assert_serves,
    connect,
    get,
    head_from,
    post,
    request,
    response_from,
    responses,
    sized,
    statuses,
)
from tests.helpers.servers import SOON, Server, all_from, assert_problem, at_once
from tests.helpers.values import fresh_name

START = "2026-01-01T10:00:00Z"
SMUGGLED = post("smuggled")
LAST = get(CLOSE)


def assert_silent(connection: socket.socket) -> None:
    assert select.select([connection], [], [], 0.2)[0] == []


@pytest.mark.parametrize(
    "path, allowed", [("/bookings", "GET, HEAD, OPTIONS, POST"), ("/bookings/1", "GET, HEAD, OPTIONS")]
)
@pytest.mark.parametrize("method", ["OPTIONS", "DELETE", "PUT", "PATCH", "TRACE", "PROPFIND", "get", "A-b.c"])
def test_methods(shared_server: Server, path: str, allowed: str, method: str) -> None:
    before = shared_server.rows()
    sent = get(line=f"{method} {path} HTTP/1.1".encode())
    (answer,) = responses(shared_server.raw(sent, half_close=True))
    assert answer.headers["Allow"] == allowed
    if method == "OPTIONS":
        assert (answer.status, answer.body) == (204, b"")
    else:
        assert_problem(answer, 405, "method-not-allowed")
    assert_serves(shared_server, before)


@pytest.mark.parametrize("target", [b"/bookings", b"/bookings/1", b"/nowhere", b"/bookings?a=1", b"*", b"x"])
def test_head_has_the_headers_of_get_and_no_body(server: Server, target: bytes) -> None:
    assert server.book("reader", START, "k").status == 201
    same_id = b"X-Request-ID: same"
    (got,) = responses(server.raw(get(CLOSE, same_id, line=b"GET %s HTTP/1.1" % target)))
    (headed,) = responses(server.raw(get(CLOSE, same_id, line=b"HEAD %s HTTP/1.1" % target)), "HEAD")
    assert got.body and not headed.body
    assert got.status == headed.status
    assert got.headers.items()[1:] == headed.headers.items()[1:]  # all but the date
    # On a connection that goes on, a body would be read as the next answer.
    sent = get(line=b"HEAD %s HTTP/1.1" % target) + LAST
    assert statuses(server.raw(sent), "HEAD") == [got.status, 200]
    assert_serves(server, [("reader", START, "k")])


def test_many_requests_in_one_packet(server: Server) -> None:
    keys = [f"k{number}" for number in range(50)]
    sent = b"".join(
        post(key) + get(line=b"GET /bookings/%d HTTP/1.1" % (number + 1)) for number, key in enumerate(keys)
    )
    found = responses(server.raw(sent, half_close=True))
    assert [answer.status for answer in found] == [201, 404] * 50
    assert [answer.json["idempotency_key"] for answer in found[::2]] == keys
    assert_serves(server, [(key, START, key) for key in keys])


def test_one_connection_serves_many_requests(server: Server) -> None:
    with connect(server) as connection:
        for number in range(20):
            connection.sendall(post(f"k{number}"))
            assert response_from(connection).status == 201
            connection.sendall(
                b"\r\n" + get(line=b"GET /bookings?tenant_id=k%d HTTP/1.1" % number).replace(TENANT, b"X: 1")
            )
            (booking,) = response_from(connection).json
            assert booking["idempotency_key"] == f"k{number}"
    assert_serves(server, [(f"k{number}", START, f"k{number}") for number in range(20)])


def test_a_request_in_single_bytes(server: Server) -> None:
    with connect(server) as connection:
        for byte in post("slow") + post("slow", CLOSE):
            connection.send(bytes([byte]))
        assert statuses(all_from(connection)) == [201, 200]
    assert_serves(server, [("slow", START, "slow")])


LONGEST_LINE = b"GET /bookings?%s HTTP/1.1" % (b"a" * (program.MAX_LINE - 23))
# The line has a limit of its own, and is no part of this one; neither is the end.
LONGEST_HEAD = get(b"X: " + b"a" * (program.MAX_HEAD - len(get().partition(b"\r\n")[2]) - 1))


@pytest.mark.parametrize(
    "whole, end, status",
    [(get(line=LONGEST_LINE), len(LONGEST_LINE) + 2, 400), (LONGEST_HEAD, len(LONGEST_HEAD), 200)],
    ids=["the longest line", "the longest head"],
)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_limits_do_not_depend_on_where_packets_are_cut(
    shared_server: Server, whole: bytes, end: int, status: int, cut: int
) -> None:
    before = shared_server.rows()
    assert statuses(shared_server.raw(whole, half_close=True)) == [status]
    with connect(shared_server) as connection:
        connection.sendall(whole[: end - cut])
        assert_silent(connection)
        connection.sendall(whole[end - cut :] + LAST)
        assert statuses(all_from(connection)) == [status, 200]
    assert_serves(shared_server, before)


@pytest.mark.parametrize(("line", "status"), [(b"GET /bookings HTTP/1.1", 200), (LONGEST_LINE, 400)])
def test_a_byte_over_the_longest_head(shared_server: Server, line: bytes, status: int) -> None:
    before = shared_server.rows()
    headers = LONGEST_HEAD.partition(b"\r\n")[2]
    assert statuses(shared_server.raw(line + b"\r\n" + headers, half_close=True)) == [status]
    assert statuses(shared_server.raw(line + b"\r\n" + headers[:-4] + b"a\r\n\r\n")) == [431]
    assert_serves(shared_server, before)


@pytest.mark.parametrize(
    "field, status", [(b"Content-Length: 1000000", 413), (b"Transfer-Encoding: chunked", 501)]
)
def test_a_refusal_can_be_read_by_who_still_sends(shared_server: Server, field: bytes, status: int) -> None:
    before = shared_server.rows()
    body = SMUGGLED * (1_000_000 // len(SMUGGLED))
    sent = request(b"POST /bookings HTTP/1.1", HOST, JSON, field, body=body)
    with connect(shared_server) as connection:
        connection.sendall(sent[:65536])
        assert select.select([connection], [], [], SOON)[0]
        # A connection closed too early is reset by what comes now, and the answer may be lost with it.
        for start in range(65536, len(sent), 65536):
            connection.sendall(sent[start : start + 65536])
        assert statuses(all_from(connection)) == [status]
    assert_serves(shared_server, before)


def test_a_request_that_ends_early_is_not_answered_as_if_it_were_whole(shared_server: Server) -> None:
    before = shared_server.rows()
    whole = post(fresh_name())
    for length in range(len(whole)):
        assert statuses(shared_server.raw(whole[:length], half_close=True)) in ([], [400])
    # Behind a whole one, too.
    key = fresh_name()
    cut = post(key) + whole[:-1]
    assert statuses(shared_server.raw(cut, half_close=True)) in ([201], [201, 400])
    assert_serves(shared_server, [*before, (key, START, key)])


def test_clients_that_vanish(server: Server) -> None:
    whole = post("gone")
    for sent in (b"", b"P", whole[:40], whole[:-40], whole[:-1], b"GARBAGE\r\n\r\n", get(), get() * 100):
        for linger in (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)):
            with connect(server) as connection:
                # Zero seconds make close send a reset.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connection.sendall(sent)
    assert_serves(server, [])
    rows = server.rows()
    if os.name == "posix":
        # With the server at its end, so is every connection: nothing was written late.
        assert server.stop() == 0
        assert server.rows() == rows
        assert server.log.read_text() == ""


class Inside(Server):
    """The real server on a real socket, in a thread of this process: its deadlines can be shortened."""

    def __init__(self, base: Path) -> None:
        self.database = base / "bookings.db"
        self.log = base / "server.log"
        self.log.touch()
        create_database(str(self.database))
        self._store = SQLiteStore(str(self.database))
        self._serving = program.BookingServer(program.listen("127.0.0.1", 0), self._store)
        self.port = self._serving.server_address[1]
        self._thread = threading.Thread(target=self._serving.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._serving.shutdown()
        self._thread.join()
        self._serving.server_close()
        drained = self._serving.drain()
        self._store.close()
        assert drained


HALF_BODY = post("late")[:-20]


DEADLINES: dict[str, tuple[str, bytes, bytes, list[int]]] = {
    "nothing at all": ("IDLE_SECONDS", b"", b"", []),
    "nothing more": ("IDLE_SECONDS", get(), b"", [200]),
    "an empty line, to be ignored": ("IDLE_SECONDS", get() + b"\r\n", b"", [200]),
    "a byte": ("HEAD_SECONDS", b"G", b"", [408]),
    "half a head": ("HEAD_SECONDS", HALF_BODY[:60], b"", [408]),
    "a head in drips": ("HEAD_SECONDS", HALF_BODY[:60], b"a", [408]),
    "fields without end": ("HEAD_SECONDS", b"GET /bookings HTTP/1.1\r\n", b"X: 1\r\n", [408]),
    "a whole request and a half": ("HEAD_SECONDS", get() + get()[:-1], b"", [200, 408]),
    "no body": ("BODY_SECONDS", sized(b" " * 9999)[:-9999], b"", [408]),
    "half a body": ("BODY_SECONDS", HALF_BODY, b"", [408]),
    "a body in drips": ("BODY_SECONDS", sized(b" " * 9999)[:-9999], b" ", [408]),
    "a request and half a body": ("BODY_SECONDS", get() + HALF_BODY, b"", [200, 408]),
}


@pytest.mark.parametrize("constant, sent, drip, expected", list(DEADLINES.values()), ids=list(DEADLINES))
def test_deadlines(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    sent: bytes,
    drip: bytes,
    expected: list[int],
) -> None:
    monkeypatch.setattr(program, constant, 0.3)
    with contextlib.closing(Inside(tmp_path)) as server:
        with connect(server) as connection:
            started = time.monotonic()
            connection.sendall(sent)
            found = responses(all_from(connection, drip=drip))
            waited = time.monotonic() - started
        assert [answer.status for answer in found] == expected
        # It was this deadline: the others are ten seconds and more.
        assert 0.29 < waited < 5
        if 408 in expected:
            assert_problem(found[-1], 408, "too-slow")
            assert found[-1].headers["Connection"] == "close"
        assert_serves(server, [])


def silent(server: Server, connection: socket.socket) -> None:
    pass


def refused_and_staying(server: Server, connection: socket.socket) -> None:
    connection.sendall(b"GARBAGE\r\n\r\n")
    assert statuses(all_from(connection)) == [400]


def asking_and_not_reading(server: Server, connection: socket.socket) -> None:
    """The responses are more than the buffers of two sockets take."""
    with contextlib.closing(sqlite3.connect(server.database)) as db, db:
        for number in range(1000):
            row = ("reader", f"{1000 + number}-01-01T00:00:00Z", f"{number:0255}")
            db.execute(
                "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES (?, ?, ?)", row
            )
    connection.sendall(get() * 60)


@pytest.mark.parametrize(
    "constant, holds",
    [
        ("IDLE_SECONDS", silent),
        ("LINGER_SECONDS", refused_and_staying),
        ("ANSWER_SECONDS", asking_and_not_reading),
    ],
)
def test_nobody_holds_a_place_for_ever(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    holds: Callable[[Server, socket.socket], None],
) -> None:
    monkeypatch.setattr(program, "MAX_CONNECTIONS", 1)
    monkeypatch.setattr(program, constant, 0.3)
    with contextlib.closing(Inside(tmp_path)) as server, connect(server) as connection:
        holds(server, connection)
        assert_serves(server, server.rows())


def test_beyond_the_bound_clients_wait_for_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "MAX_CONNECTIONS", 2)
    with contextlib.closing(Inside(tmp_path)) as server:
        with contextlib.ExitStack() as stack:
            first, second = (stack.enter_context(connect(server)) for _ in range(2))
            for inside in (first, second):
                inside.sendall(get() + get()[:-1])
                assert response_from(inside).status == 200
            third = stack.enter_context(connect(server))
            third.sendall(post("third", CLOSE))
            assert_silent(third)
            assert server.rows() == []
            # Those who are in are served all the while, and the one that is idle then makes room.
            second.sendall(b"\n")
            assert response_from(second).status == 200
            assert statuses(all_from(third)) == [201]
            assert all_from(second) == b""
            first.sendall(b"\n")
            assert response_from(first).status == 200
        rows = [("third", START, "third")]
        assert server.rows() == rows
        crowd = at_once(30, lambda number: server.book(f"t{number}", START, f"k{number}").status)
        assert crowd == [201] * 30
        assert sorted(server.rows()) == sorted([*rows, *((f"t{n}", START, f"k{n}") for n in range(30))])


def test_at_the_bound_the_longest_idle_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(program, "SETTLED_SECONDS", 0.1)
    with contextlib.closing(Inside(tmp_path)) as server, contextlib.ExitStack() as stack:
        used, silent, busy = (stack.enter_context(connect(server)) for _ in range(3))
        for connection in (used, busy):
            connection.sendall(get())
            assert response_from(connection).status == 200
        busy.sendall(HALF_BODY)
        # Idle before the silent one, but not for so long: it has asked once more.
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
        assert sorted(server.rows()) == [("late", START, "late"), ("new", START, "new")]


def test_an_answer_leaves_in_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []

    def watch(name: str) -> None:
        original = getattr(socket.socket, name)

        def watching(self: socket.socket, data: Any, *arguments: Any) -> Any:
            if self.getsockname()[1] == server.port:
                written.append(bytes(data))
            return original(self, data, *arguments)

        monkeypatch.setattr(socket.socket, name, watching, raising=False)

    with contextlib.closing(Inside(tmp_path)) as server:
        for name in ("send", "sendall"):
            watch(name)
        received = server.raw(post("k") + get() + get(line=b"GET /x HTTP/1.1") + b"GARBAGE\r\n\r\n")
        assert [statuses(each) for each in written] == [[201], [200], [404], [400]]
        assert b"".join(written) == received
        assert server.rows() == [("k", START, "k")]


posix = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def wait_until_refused(server: Server) -> None:
    """Until a signal has had its effect: nobody listens any more."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=SOON).close()
        except (ConnectionRefusedError, ConnectionResetError):
            return
        time.sleep(0.01)
    raise AssertionError("the server listens still")


@contextlib.contextmanager
def in_flight(server: Server) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection on which the server has asked for the body, and the half of it that is not sent yet."""
    head, end, body = post("k", b"Expect: 100-continue").partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + end)
        head_from(connection)
        connection.sendall(body[:30])
        yield connection, body[30:]


@posix
@signals
def test_a_signal_ends_idle_connections_at_once(server: Server, number: int) -> None:
    with connect(server) as silent, connect(server) as used:
        used.sendall(post("k"))
        assert response_from(used).status == 201
        started = time.monotonic()
        assert server.stop(number) == 0
        assert time.monotonic() - started < 2
        assert all_from(silent) == all_from(used) == b""
    assert server.rows() == [("k", START, "k")]
    assert server.log.read_text() == ""


@posix
@signals
def test_a_signal_lets_a_request_in_flight_be_answered(server: Server, number: int) -> None:
    with in_flight(server) as (connection, rest):
        server.process.send_signal(number)
        wait_until_refused(server)
        assert server.process.poll() is None
        connection.sendall(rest + SMUGGLED)
        (answer,) = responses(all_from(connection))
        assert (answer.status, answer.headers["Connection"]) == (201, "close")
    assert server.process.wait(SOON) == 0
    assert server.rows() == [("k", START, "k")]
    assert server.log.read_text() == ""


@posix
@signals
def test_a_second_signal_ends_it_at_once(server: Server, number: int) -> None:
    with in_flight(server):
        server.process.send_signal(number)
        wait_until_refused(server)
        time.sleep(SAME_SECONDS)
        started = time.monotonic()
        assert server.stop(number) == -number
        assert time.monotonic() - started < 2
    assert server.rows() == []


# --- DNS rebinding: a page of a stranger whose name has come to mean this machine

STRANGERS = [
    *(
        "evil.example",
        "evil.example:3000",
        "EVIL.example.",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
    ),
    *("a.b", "1.2.3.x", "bookings."),
]
OWN_NAMES = [
    *(
        "localhost",
        "LocalHost:3000",
        "app.localhost:1",
        "127.0.0.1",
        "127.0.0.1:3000",
        "[::1]:3000",
        "192.168.0.7",
    ),
    *("bookings", ""),
]


def _book_as(server: Server, host: str, key: str) -> int:
    (status,) = statuses(server.raw(post(key, CLOSE).replace(HOST, b"Host: " + host.encode())))
    return status


@pytest.mark.parametrize(
    ("flags", "own", "strange"),
    [
        ((), OWN_NAMES, STRANGERS),
        (("--allowed-hosts= Book.Example ,a.b",), ["book.example:3000", "A.B", *OWN_NAMES], STRANGERS[:5]),
        (("--host=0.0.0.0",), [*OWN_NAMES, *STRANGERS], []),
        (("--host=0.0.0.0", "--allowed-hosts=a.b"), ["a.b:3000", *OWN_NAMES], STRANGERS[:5]),
    ],
)
def test_names_by_which_the_server_may_be_called(
    tmp_path: Path, flags: tuple[str, ...], own: list[str], strange: list[str]
) -> None:
    with contextlib.closing(Server(tmp_path, "--workers=1", *flags)) as server:
        assert {_book_as(server, host, "refused") for host in strange} <= {421}
        assert server.rows() == []
        assert [_book_as(server, host, "booked") for host in own] == [201] + [200] * (len(own) - 1)
        assert server.rows() == [("booked", START, "booked")]
