"""Request ids, and the request log: one line per request, which no client can forge."""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import sqlite3
import struct
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import pytest

from bookings.server.http1 import MAX_REQUEST_LINE
from tests.helpers.clients import (
    FRAMING_ERRORS,
    badly_framed,
    closing_post,
    closing_request,
    first_response,
)
from tests.helpers.processes import requires_fork
from tests.helpers.servers import SOON, Server, assert_problem, at_once, patched, until
from tests.helpers.storage import FAULT, set_aside
from tests.helpers.tools import posix_only
from tests.helpers.values import SLOT, fresh_name

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
STARTS = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z ")
LINE = re.compile(
    r"(?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3})Z "
    r"(?P<client>127\.0\.0\.1) (?P<method>[!-~]+) (?P<target>[!-~]+) (?P<status>[2-5][0-9]{2}) "
    r"(?P<bytes>[0-9]+) (?P<ms>[0-9]+\.[0-9]) (?P<id>[A-Za-z0-9._-]{1,64})"
)
DROPPED = re.compile(rb" dropped ([0-9]+) lines? of this log, because it was not read\n")


# --- Request ids

# Values of X-Request-ID in a request, and the id that the server adopts (None: its own).
IDS: list[tuple[list[bytes], str | None]] = [
    ([b"a"], "a"),
    ([b"A-Z.0_9"], "A-Z.0_9"),
    ([b"0b0d2c1e-8f8e-4a53-9f0e-0c6f1f1c9d5a"], "0b0d2c1e-8f8e-4a53-9f0e-0c6f1f1c9d5a"),
    ([b"x" * 64], "x" * 64),
    ([b" \tpadded\t "], "padded"),
    ([], None),
    ([b""], None),
    ([b" "], None),
    ([b"x" * 65], None),
    ([b"x" * 8000], None),
    ([b"a b"], None),
    ([b"a\tb"], None),
    ([b'"a"'], None),
    ([b"'a'"], None),
    ([b"a,b"], None),
    ([b"a;b=c"], None),
    ([b"a/b"], None),
    ([b"a:b"], None),
    ([b"%41"], None),
    ([b"$(id)"], None),
    ([b"<b>"], None),
    ([b"caf\xc3\xa9"], None),
    ([b"\xd9\xa3"], None),
    ([b"\xef\xbc\x91"], None),
    ([b"\xc2\x85"], None),
    ([b"\xff"], None),
    ([b"a", b"b"], None),
    ([b"a", b"a"], None),
    ([b"a", b""], None),
]


@pytest.mark.parametrize(("sent", "adopted"), IDS, ids=str)
@pytest.mark.parametrize("target", [b"/live", b"/nowhere"])
def test_request_id_is_adopted_only_if_harmless(
    shared_server: Server, target: bytes, sent: list[bytes], adopted: str | None
) -> None:
    headers = [b"x-Request-ID:" + value for value in sent]
    found = []
    for _ in range(2):
        response = first_response(
            shared_server.raw(closing_request(b"GET %s HTTP/1.1" % target, *headers))
        )
        assert response.status == (200 if target == b"/live" else 404)
        found += response.headers.get_all("X-Request-ID") or []
    assert len(found) == 2 and all(map(ID.fullmatch, found))
    if adopted:
        assert found == [adopted, adopted]
    else:
        assert len({*found, *(value.decode("latin-1") for value in sent)}) == 2 + len(set(sent))


@pytest.mark.parametrize(
    "sent",
    [
        *(badly_framed(status, "GET", "/", b"X-Request-ID: mine") for status in FRAMING_ERRORS),
        closing_request(b"POST /bookings HTTP/1.1", b"X-Request-ID: mine"),
        closing_request(b"GET / HTTP/1.1", b"X-Request-ID: a\rb"),
        closing_request(b"GET / HTTP/1.1", b"X-Request-ID: a\nb"),
        closing_request(b"GET / HTTP/1.1", b"X-Request-ID: a\0b"),
        closing_request(b"GET / HTTP/1.1", b"X-Request-ID : mine"),
        closing_request(b"GET /\x1b HTTP/1.1", b"X-Request-ID: mine"),
        closing_request(b"GARBAGE", b"X-Request-ID: mine"),
        closing_request(b"\xff\xfe / HTTP/1.1"),
    ],
    ids=lambda sent: repr(sent)[:60],
)
def test_malformed_request_has_request_id(shared_server: Server, sent: bytes) -> None:
    response = first_response(shared_server.raw(sent))
    (found,) = response.headers.get_all("X-Request-ID") or []
    assert response.status >= 400 and ID.fullmatch(found)
    assert found == "mine" or len(found) >= 8


def test_generated_request_ids_are_unique(shared_server: Server) -> None:
    found = [shared_server.call("GET", "/live").headers["X-Request-ID"] for _ in range(200)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("own", [None, "mine"])
def test_fault_has_request_id_in_response_and_quiet_log(server: Server, own: str | None) -> None:
    server.execute(*FAULT)
    assert server.call("GET", "/live").status == 200
    headers = {"X_Request_ID": own} if own else {}
    response = server.book(**headers)
    found = response.headers["X-Request-ID"]
    assert (response.status, response.json["request_id"]) == (500, found)
    assert found in response.json["detail"]
    assert own in (None, found)
    (line,) = [line for line in server.log.read_text().splitlines() if found in line]
    assert STARTS.match(line)
    assert "closed" in server.log.read_text()
    assert server.rows() == []


@posix_only
def test_cause_of_unreachable_database_is_logged(server: Server) -> None:
    set_aside(server.database)
    response = server.call("GET", "/ready", X_Request_ID="mine")
    assert_problem(response, 503, "database-unavailable")
    (line,) = server.log.read_text().splitlines()
    assert STARTS.match(line)
    assert "mine" in line and str(server.database) in line


# --- The request log


@pytest.fixture
def logging_server(tmp_path: Path) -> Iterator[Server]:
    """A server without --quiet, which `Server` passes by default."""
    program = patched(tmp_path, "sys.argv.remove('--quiet')")
    with contextlib.closing(Server(tmp_path, program=program)) as started:
        yield started


def _logged(logging_server: Server, count: int) -> list[re.Match[str]]:
    """Shut the server down; assert that its log has exactly `count` lines, and return them."""
    deadline = time.monotonic() + SOON
    # The server writes a line after the response, so the client may be ahead of it.
    while logging_server.log.read_bytes().count(b"\n") < count and time.monotonic() < deadline:
        time.sleep(0.005)
    logging_server.stop()
    log = logging_server.log.read_bytes()
    assert not re.search(rb"[^\n -~]", log)
    lines = log.decode("ascii").split("\n")
    assert lines.pop() == ""
    found = [LINE.fullmatch(line) for line in lines]
    assert len(found) == count and all(found), lines
    return [match for match in found if match]


def test_each_request_is_logged_as_one_line(logging_server: Server) -> None:
    name = fresh_name()
    booking = closing_post(name, SLOT, name, b"X-Request-ID: r1")
    sent = {
        "r1": (booking, "POST", "/bookings", 201),
        "r2": (booking.replace(b"r1", b"r2"), "POST", "/bookings", 200),
        "r3": (
            closing_post(name, SLOT, f"{name}-2", b"X-Request-ID: r3"),
            "POST",
            "/bookings",
            409,
        ),
        "r4": (
            closing_request(
                b"GET /bookings?tenant_id=%s&limit=1 HTTP/1.1" % name.encode(), b"X-Request-ID: r4"
            ),
            "GET",
            f"/bookings?tenant_id={name}&limit=1",
            200,
        ),
        "r5": (closing_request(b"HEAD /live HTTP/1.1", b"X-Request-ID: r5"), "HEAD", "/live", 200),
        "r6": (closing_request(b"OPTIONS * HTTP/1.1", b"X-Request-ID: r6"), "OPTIONS", "*", 204),
        "r7": (
            closing_request(b"GET http://x/?%22 HTTP/1.1", b"X-Request-ID: r7"),
            "GET",
            "http://x/?%22",
            400,
        ),
        "r8": (
            closing_request(b"BREW /%F0%9F HTTP/1.1", b"X-Request-ID: r8"),
            "BREW",
            "/%F0%9F",
            404,
        ),
        # The log has no target for 414; see the next test.
        **{
            f"r{status}": (
                badly_framed(status, "PUT", "/x", b"X-Request-ID: r%d" % status),
                "PUT",
                "/x",
                status,
            )
            for status in FRAMING_ERRORS
            if status != 414
        },
    }
    before = time.time()
    received, took = {}, {}
    for number, (request, *_) in sent.items():
        started = time.monotonic()
        received[number] = logging_server.raw(request)
        took[number] = (time.monotonic() - started) * 1000
    lines = {match["id"]: match for match in _logged(logging_server, len(sent))}
    after = time.time()
    assert set(lines) == set(sent)
    for number, (_, method, target, status) in sent.items():
        line = lines[number]
        assert (line["method"], line["target"], int(line["status"])) == (method, target, status)
        assert first_response(received[number]).status == status
        assert int(line["bytes"]) == len(received[number])
        assert 0 <= float(line["ms"]) <= took[number] + 1
        at = datetime.fromisoformat(f"{line['time']}+00:00").timestamp()
        # The server truncates the time to milliseconds.
        assert before - 0.001 <= at <= after
    assert logging_server.rows() == [(name, SLOT, name)]


def test_incomplete_request_is_logged_with_its_request_line(tmp_path: Path) -> None:
    patch = "from bookings.server import connection; connection.HEAD_SECONDS = 0.5"
    program = patched(tmp_path, f"sys.argv.remove('--quiet'); {patch}")
    sent = {
        b"GET /x HTTP/1.1\r\nX: " + b"x" * 70_000: "GET /x 431",
        b"PUT /y HTTP/1.1\r\nHost:": "PUT /y 408",
        b"PUT /y": "- - 408",
        b"GET /" + b"x" * 70_000: "- - 414",
    }
    with contextlib.closing(Server(tmp_path, program=program)) as logging_server:
        for request in sent:
            logging_server.raw(request)
        found = [
            f"{match['method']} {match['target']} {match['status']}"
            for match in _logged(logging_server, len(sent))
        ]
    assert found == list(sent.values())


@contextlib.contextmanager
def _booking_in_progress(logging_server: Server) -> Iterator[socket.socket]:
    """Yield the connection of a client whose booking waits for the write lock until the end."""
    with contextlib.closing(
        sqlite3.connect(logging_server.database, isolation_level=None)
    ) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with socket.create_connection(("127.0.0.1", logging_server.port), timeout=SOON) as client:
            # Both requests fit into one packet: once the first is answered, the server has both.
            first = b"GET /live HTTP/1.1\r\nHost: x\r\nX-Request-ID: first\r\n\r\n"
            client.sendall(first + closing_post("acme", SLOT, "k1", b"X-Request-ID: second"))
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
            yield client
        holder.execute("ROLLBACK")


def _assert_live_and_booking(lines: list[re.Match[str]]) -> None:
    assert [(line["id"], line["method"], line["target"]) for line in lines] == [
        ("first", "GET", "/live"),
        ("second", "POST", "/bookings"),
    ]


def test_logged_milliseconds_include_wait_for_database(logging_server: Server) -> None:
    with _booking_in_progress(logging_server) as client:
        # No response arrives for this long, so the request takes at least as long.
        client.settimeout(0.3)
        with pytest.raises(socket.timeout):
            client.recv(1)
    lines = _logged(logging_server, 2)
    _assert_live_and_booking(lines)
    assert float(lines[0]["ms"]) < 300 <= float(lines[1]["ms"]) < SOON * 1000


FORGED = b"2026-01-01T00:00:00.000Z 6.6.6.6 GET /forged 200 5 0.1 forged"
DASHED = FORGED.replace(b" ", b"-")
ODD = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b"\x1b[2K",
    b"\x0b",
    b"\x0c",
    b"\x7f",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\xff",
    b"\t",
    b" ",
    b"%0d%0a",
    b"\\n",
]


def _forgeries(odd: bytes) -> list[bytes]:
    """Return requests with the bytes in target, method, version, header, id and body."""
    inside = odd + FORGED + odd
    return [
        closing_request(b"GET /x%s HTTP/1.1" % inside),
        closing_request(b"GET /x%s HTTP/1.1" % (odd + DASHED + odd)),
        closing_request(b"GET /bookings?tenant_id=%s HTTP/1.1" % (odd + DASHED)),
        closing_request(b"GET%s / HTTP/1.1" % inside),
        closing_request(b"GET%s / HTTP/1.1" % odd),
        closing_request(b"GET / HTTP/1.1%s" % inside),
        closing_request(b"GET / HTTP/%s" % odd),
        *(
            closing_request(b"GET / HTTP/1.1", name + b": x" + inside)
            for name in (b"X-Request-ID", b"X-Tenant-ID", b"Expect")
        ),
        closing_request(b"GET / HTTP/1.1", b"X-Request-ID: " + odd + DASHED[:20]),
        closing_request(b"GET / HTTP/1.1", b"X%s: x" % inside),
        closing_request(b"POST /bookings HTTP/1.1", b"Content-Length: 5%s" % inside, body=b"12345"),
        closing_request(
            b"POST /bookings HTTP/1.1",
            b"Content-Type: application/json" + inside,
            b"Content-Length: %d" % len(inside),
            body=inside,
        ),
    ]


def test_log_line_cannot_be_forged(logging_server: Server) -> None:
    sent = [request for odd in ODD for request in _forgeries(odd)]
    for request in sent:
        # A single response: the server took nothing after the odd bytes for a second request.
        received = logging_server.raw(request)
        assert received.count(b"HTTP/1.1 ") == 1 and re.match(rb"HTTP/1\.1 [245]", received), (
            request,
            received,
        )
    for line in _logged(logging_server, len(sent)):
        assert "6.6.6.6" not in (line["client"], line["method"], line["id"])
        assert line["id"] != "forged"
    assert logging_server.rows() == []


@contextlib.contextmanager
def _logging_to_pipe(tmp_path: Path, *flags: str) -> Iterator[tuple[Server, BinaryIO]]:
    """Yield a server whose standard error is a pipe, and the end to read, which does not block."""
    pipe = tmp_path / "server.log"
    os.mkfifo(pipe)
    # Open the pipe first: the server could not open its end without a reader.
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as log:
        program = patched(tmp_path, "sys.argv.remove('--quiet')")
        with contextlib.closing(Server(tmp_path, *flags, program=program)) as started:
            yield started, log


def _read_log(log: BinaryIO, count: int) -> list[str]:
    """Read until there is a line for each of `count` requests, or a line that says how many were
    dropped. Return the lines of requests.
    """
    received = b""

    def is_complete() -> bool:
        nonlocal received
        received += log.read() or b""
        lines = received.count(b"\n") - len(DROPPED.findall(received))
        return lines + sum(map(int, DROPPED.findall(received))) == count

    until(is_complete)
    return [line for line in received.decode("ascii").splitlines() if " dropped " not in line]


def _send_many(server: Server, count: int) -> None:
    """Send this many requests at once on each of four connections."""
    sent = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n" * (count - 1)
    last = closing_request(b"GET /live HTTP/1.1")
    received = at_once(4, lambda number: server.raw(sent + last))
    assert [each.count(b"HTTP/1.1 200 ") for each in received] == [count] * 4


@posix_only
def test_log_lines_of_several_workers_stay_whole_in_full_pipe(tmp_path: Path) -> None:
    """If a line were torn, a client could choose how the next line starts."""
    with _logging_to_pipe(tmp_path, "--workers=4") as (logging_server, log):
        # Several of each length, because chance decides which lines meet.
        sizes = [
            100,
            MAX_REQUEST_LINE // 4,
            MAX_REQUEST_LINE // 3,
            *[MAX_REQUEST_LINE // 2, MAX_REQUEST_LINE - 100] * 6,
        ]
        targets = [f"/{number}{'x' * size}" for number, size in enumerate(sizes * 8)]
        responses = at_once(
            len(targets), lambda number: logging_server.call("GET", targets[number])
        )
        lines = [LINE.fullmatch(line) for line in _read_log(log, len(targets))]
    assert [response.status for response in responses] == [404] * len(targets)
    assert lines and all(lines)
    ids = {response.headers["X-Request-ID"] for response in responses}
    logged = {line["id"]: line["target"] for line in lines if line}
    assert len(logged) == len(lines) and logged.keys() <= ids
    # Targets of usual length are not truncated.
    longest = select.PIPE_BUF - 300
    assert all(t in targets or len(t) == longest + len("...") for t in logged.values())


@requires_fork
@pytest.mark.parametrize("workers", ["1", "3"])
def test_pipe_that_nobody_reads_delays_neither_requests_nor_shutdown(
    tmp_path: Path, workers: str
) -> None:
    with _logging_to_pipe(tmp_path, f"--workers={workers}") as (logging_server, log):
        _send_many(logging_server, 750)
        lines = _read_log(log, 3000)
        assert 100 < len(lines) < 3000 and all(map(LINE.fullmatch, lines))
        _send_many(logging_server, 750)
        # Faults are dropped as well.
        logging_server.execute(*FAULT)
        assert logging_server.book().status == 500
        started = time.monotonic()
        assert logging_server.stop() == 0
        assert time.monotonic() - started < 4
        lines = (log.read() or b"").decode("ascii").splitlines(keepends=True)
    assert 100 < len(lines) < 3000
    assert all(line.endswith("\n") and LINE.fullmatch(line[:-1]) for line in lines)


@requires_fork
def test_last_lines_reach_pipe_before_shutdown_ends(tmp_path: Path) -> None:
    with _logging_to_pipe(tmp_path, "--workers=2") as (logging_server, log):
        _send_many(logging_server, 50)
        assert logging_server.stop() == 0
        lines = (log.read() or b"").decode("ascii").splitlines()
    assert len(lines) == 200 and all(map(LINE.fullmatch, lines))


def test_fault_with_line_breaks_starts_one_log_entry(logging_server: Server) -> None:
    """Continuation lines start with a space, and no entry does."""
    text = FORGED.decode()
    logging_server.execute(*(each.replace("closed", f"closed\n{text}\n{text}") for each in FAULT))
    response = logging_server.book(X_Request_ID="mine")
    assert response.status == 500
    logging_server.stop()
    lines = logging_server.log.read_text().splitlines()
    entries = [line for line in lines if not line.startswith(" ")]
    assert len(entries) == 2 < len(lines)
    assert all(STARTS.match(line) and "mine" in line for line in entries)
    assert LINE.fullmatch(entries[1])
    assert logging_server.rows() == []


@pytest.mark.skipif(os.name == "nt", reason="a shutdown on Windows does not drain")
def test_request_of_client_that_left_is_booked_and_logged(logging_server: Server) -> None:
    with _booking_in_progress(logging_server) as client:
        # With SO_LINGER 0, close() resets the connection.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(logging_server.rows)
    assert logging_server.rows() == [("acme", SLOT, "k1")]
    # The shutdown waits for requests in progress.
    logging_server.stop()
    _assert_live_and_booking(_logged(logging_server, logging_server.log.read_bytes().count(b"\n")))


def test_quiet_server_logs_faults_but_no_requests(server: Server) -> None:
    assert server.book().status == 201
    assert server.call("GET", "/nowhere").status == 404
    server.raw(b"GARBAGE\r\n\r\n")
    server.execute(*FAULT)
    assert server.book(key="k2", start="2026-01-02T10:00:00Z", X_Request_ID="mine").status == 500
    server.stop()
    entries = [line for line in server.log.read_text().splitlines() if not line.startswith(" ")]
    assert len(entries) == 1 and "mine" in entries[0] and not LINE.fullmatch(entries[0])
    assert server.rows() == [("acme", SLOT, "k1")]
