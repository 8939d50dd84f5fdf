"""What the server makes of bytes that no HTTP library would send: over raw sockets, one answer to a request.

A request that cannot be read for certain is refused and its connection closed: each such request carries a
complete booking behind it, or in its body, and that booking must never be made. The answer is well-formed
whatever was asked, and the next client is served. Then time and room: deadlines, the bound on connections,
how a signal ends it all. For short deadlines the server runs in this process; else it is `run.py`.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import select
import signal
import socket
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import parse_headers
from pathlib import Path
from typing import Any

import pytest

import bookings.server as program
from bookings.store import SQLiteStore, create_database
from tests.conftest import SOON, Answer, Server, assert_problem, at_once

START = "2026-01-01T10:00:00Z"
HOST = b"Host: localhost"
TENANT = b"X-Tenant-ID: reader"
JSON = b"Content-Type: application/json"
CLOSE = b"Connection: close"

_numbers = itertools.count()


def fresh() -> str:
    """A tenant and key that no other test uses."""
    return f"http-{next(_numbers)}"


def request(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line, *fields, b"", body])


def sized(body: bytes, *fields: bytes, line: bytes = b"POST /bookings HTTP/1.1") -> bytes:
    return request(line, HOST, JSON, b"Content-Length: %d" % len(body), *fields, body=body)


def booking_of(key: str) -> bytes:
    return json.dumps({"tenant_id": key, "start_time_utc": START, "idempotency_key": key}).encode()


def post(key: str, *fields: bytes) -> bytes:
    return sized(booking_of(key), *fields)


def get(*fields: bytes, line: bytes = b"GET /bookings HTTP/1.1") -> bytes:
    return request(line, HOST, TENANT, *fields)


SMUGGLED = post("smuggled")
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
LAST = get(CLOSE)


def answers(received: bytes, *methods: str) -> list[Answer]:
    """All that was received, as answers without a fault and nothing besides; `methods` are what asked."""
    assert not re.search(rb"Python|http\.server|socketserver|Traceback", received)
    found: list[Answer] = []
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        status_line, _, fields = head.partition(b"\r\n")
        status = re.fullmatch(rb"HTTP/1\.1 ([2-5][0-9]{2}) [A-Za-z' -]+", status_line)
        assert end and status, (status_line, found)
        number = int(status[1])
        headers = parse_headers(io.BytesIO(fields + end))
        names = [name.lower() for name in headers]
        assert number != 500
        assert len(set(names)) == len(names)
        assert "server" not in names
        assert headers["Date"].endswith(" GMT")
        date = parsedate_to_datetime(headers["Date"])
        assert abs(datetime.now(date.tzinfo) - date) < timedelta(minutes=1)
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert ("content-length" in names) == (number != 204)
        has_body = number != 204 and methods[len(found) : len(found) + 1] != ("HEAD",)
        length = int(headers["Content-Length"]) if has_body else 0
        assert len(received) >= length
        found.append(Answer(number, headers, received[:length]))
        received = received[length:]
    return found


def statuses(received: bytes, *methods: str) -> list[int]:
    return [answer.status for answer in answers(received, *methods)]


def assert_serves(server: Server, before: Sequence[Any]) -> None:
    """No row was added to those `before`, and the next client books as if nothing had happened."""
    assert server.rows() == before
    key = fresh()
    assert server.book(key, START, key).status == 201
    assert server.rows() == [*before, (key, START, key)]
    assert "Traceback" not in server.log.read_text()


def assert_refused(server: Server, sent: bytes, status: int, kind: str) -> None:
    """One refusal; the server closes; neither what was sent nor the booking behind it comes to anything."""
    before = server.rows()
    (answer,) = answers(server.raw(sent + SMUGGLED))
    assert_problem(answer, status, kind)
    assert answer.headers["Connection"] == "close"
    assert_serves(server, before)


def connect(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return connection


def head_from(connection: socket.socket) -> bytes:
    """Byte by byte, so that nothing behind it is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, head
        head += byte
    return head


def answer_from(connection: socket.socket) -> Answer:
    """The next answer on a connection that stays open."""
    received = head_from(connection)
    length = re.search(rb"Content-Length: ([0-9]+)", received)
    body = b""
    while length and len(body) < int(length[1]):
        more = connection.recv(int(length[1]) - len(body))
        assert more, received + body
        body += more
    (answer,) = answers(received + body)
    return answer


def all_from(connection: socket.socket, drip: bytes = b"") -> bytes:
    """All that comes until the server closes, while `drip` is sent again and again."""
    received, deadline = b"", time.monotonic() + SOON
    while time.monotonic() < deadline:
        if not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(drip)
            continue
        more = connection.recv(65536)
        if not more:
            return received
        received += more
    raise AssertionError(f"the server did not close; it sent {received!r}")


def assert_silent(connection: socket.socket) -> None:
    assert select.select([connection], [], [], 0.2)[0] == []


def cases(*some: bytes) -> list[bytes]:
    """One test each; a bar stands between them."""
    return b"|".join(some).split(b"|")


def short(value: object) -> str:
    return repr(value)[:60]


LINES = [b"POST /bookings HTTP/1.1", b"GET /bookings HTTP/1.1"]


@pytest.mark.parametrize("line", LINES, ids=short)
@pytest.mark.parametrize(
    "value",
    cases(
        b"-5|+5|5_0|5 0|0x10|5.0|1e3||5,5|5, 6|5;|5h|'5'|five|-0|--5|5\x0b|5\x0c|5\xa0|\xc2\xa05",
        b"\xb2|\xd9\xa3|\xef\xbc\x95",  # superscript, Arabic and full-width digits
    ),
    ids=short,
)
def test_a_length_is_decimal_digits_alone(shared_server: Server, line: bytes, value: bytes) -> None:
    sent = request(line, HOST, TENANT, JSON, b"Content-Length: " + value)
    assert_refused(shared_server, sent, 400, "malformed-request")


@pytest.mark.parametrize("first, second", [(b"5", b"5"), (b"5", b"6"), (b"0", b"5"), (b"5", b""), (b"", b"")])
def test_there_is_one_length(shared_server: Server, first: bytes, second: bytes) -> None:
    for line in LINES:
        sent = get(b"Content-Length: " + first, b"content-length: " + second, line=line)
        assert_refused(shared_server, sent, 400, "malformed-request")


@pytest.mark.parametrize("fields", [[], [b"Content_Length: 5"], [b"X-Content-Length: 5"]])
def test_a_post_without_a_length(shared_server: Server, fields: list[bytes]) -> None:
    sent = request(b"POST /bookings HTTP/1.1", HOST, JSON, *fields)
    assert_refused(shared_server, sent, 411, "length-required")


@pytest.mark.parametrize("line", LINES, ids=short)
@pytest.mark.parametrize(
    "value", [b"16385", b"1000000", b"18446744073709551621", b"0" * 40 + b"16385", b"9" * 6000], ids=short
)
def test_a_length_over_the_limit(shared_server: Server, line: bytes, value: bytes) -> None:
    sent = request(line, HOST, TENANT, JSON, b"Content-Length: " + value)
    assert_refused(shared_server, sent, 413, "body-too-large")


def test_the_longest_body_and_one_byte_more(shared_server: Server) -> None:
    key = fresh()
    before = shared_server.rows()
    assert statuses(shared_server.raw(sized(booking_of(key).ljust(16384), CLOSE))) == [201]
    assert_serves(shared_server, [*before, (key, START, key)])
    assert_refused(shared_server, sized(booking_of(fresh()).ljust(16385)), 413, "body-too-large")


@pytest.mark.parametrize("line", [*LINES, b"POST /nowhere HTTP/1.0"], ids=short)
@pytest.mark.parametrize(
    "fields",
    [
        [b"Transfer-Encoding: chunked"],
        [b"transfer-ENCODING: Chunked"],
        [b"Transfer-Encoding: gzip, chunked"],
        [b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"],
        [b"Transfer-Encoding: identity"],
        [b"Transfer-Encoding: \tchunked \t"],
        [b"Transfer-Encoding: xchunked"],
        [b"Transfer-Encoding:"],
        [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
        [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
        [b"Content-Length: 5, 6", b"Transfer-Encoding: identity"],
    ],
    ids=short,
)
def test_transfer_codings(shared_server: Server, line: bytes, fields: list[bytes]) -> None:
    sent = request(line, HOST, TENANT, JSON, *fields, body=CHUNKED)
    assert_refused(shared_server, sent, 501, "transfer-encoding")


@pytest.mark.parametrize(
    "line",
    cases(
        b"X: 1\r\n 2|X: 1\r\n\t2|X:\r\n chunked| X: 1|\tX: 1| |X|X 1|=",
        b"X : 1|X\t: 1|Transfer-Encoding : chunked|Content-Length : 5|Host : b|: 1|:",
        b"X A: 1|X(A): 1|'\"X\"': 1|X[]: 1|X\x00: 1|Caf\xc3\xa9: 1|Caf\xe9: 1|\xef\xbb\xbfX: 1",
        b"X: 1\x00|X: \x00|X: \x1b[2J|X: 1\x7f|X: 1\x0b2|X: 1\r|X: 1\r2|X: 1\rContent-Length: 5",
        b"X: 1\nY: 2|X: 1\n|X: 1\n\n|\n|X: 1\n\r",
    ),
    ids=short,
)
def test_malformed_header_lines(shared_server: Server, line: bytes) -> None:
    for fields in ([HOST, TENANT, line], [line, HOST, TENANT]):
        sent = request(b"GET /bookings HTTP/1.1", *fields)
        assert_refused(shared_server, sent, 400, "malformed-request")


@pytest.mark.parametrize(
    "line",
    cases(
        b"GET /bookings|GET|/bookings|GET HTTP/1.1|/bookings HTTP/1.1|GET  HTTP/1.1| |=",
        b"GET  /bookings HTTP/1.1|GET /bookings  HTTP/1.1|GET /bookings HTTP/1.1 | GET /bookings HTTP/1.1",
        b"GET\t/bookings\tHTTP/1.1|GET\t/bookings HTTP/1.1|GET /book ings HTTP/1.1|GET\x0b/ HTTP/1.1",
        b"GET / http/1.1|GET / HTTP/1|GET / HTTP/1.|GET / HTTP/.1|GET / HTTP/1.10|GET / HTTP/11.1",
        b"GET / HTTP/01.1|GET / HTTP/1.1.1|GET / HTTP/-1.1|GET / HTTP/1.x|GET / HTTP 1.1|GET / HTTPS/1.1",
        b"GET / HTTP/1.\xb9|GET / HTTP/\xd9\xa1.1|GET / HTTP/1.1\r|GET\r/ HTTP/1.1|GET / HTTP/1.1\x00",
        b"GET /\x00 HTTP/1.1|GET /\x7f HTTP/1.1|GET /caf\xc3\xa9 HTTP/1.1|GET /caf\xe9 HTTP/1.1",
        b"G(T / HTTP/1.1|\xcbET / HTTP/1.1|<GET> / HTTP/1.1|\x00GET / HTTP/1.1|\xef\xbb\xbfGET / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03|\xff\xfe|SSH-2.0-OpenSSH_9.2|{'tenant_id': 'a'}",
    ),
    ids=short,
)
def test_malformed_request_lines(shared_server: Server, line: bytes) -> None:
    assert_refused(shared_server, get(line=line), 400, "malformed-request")
    assert_refused(shared_server, request(line), 400, "malformed-request")


@pytest.mark.parametrize(
    "sent",
    [
        get().replace(b"\r\n", b"\n"),
        get().replace(b"\r\n", b"\n", 1),
        get().replace(b"\r\n", b"\r"),
        get().replace(b"\r\n", b"\r", 1),
        get().replace(b"\r\n\r\n", b"\n\n"),
        get().replace(b"\r\n\r\n", b"\r\n\n"),
        b"\n" + get(),
        b"\r" + get(),
        b"\r\n\n" + get(),
    ],
    ids=short,
)
def test_lines_end_in_crlf_alone(shared_server: Server, sent: bytes) -> None:
    assert_refused(shared_server, sent, 400, "malformed-request")


def test_lines_that_end_in_lf_are_refused_at_once(shared_server: Server) -> None:
    """They are not waited for: no CRLF would ever come."""
    before = shared_server.rows()
    for sent in (SMUGGLED.replace(b"\r\n", b"\n"), SMUGGLED.replace(b"\r\n\r\n", b"\n\n")):
        (answer,) = answers(shared_server.raw(sent))
        assert_problem(answer, 400, "malformed-request")
    assert_serves(shared_server, before)


@pytest.mark.parametrize("version", cases(b"0.9|0.0|2.0|2.1|3.0|9.9"))
def test_other_versions(shared_server: Server, version: bytes) -> None:
    for sent in (get(line=b"GET / HTTP/" + version), b"PRI * HTTP/" + version + b"\r\n\r\nSM\r\n\r\n"):
        assert_refused(shared_server, sent, 505, "http-version")


@pytest.mark.parametrize("line", cases(b"GET /bookings HTTP/1.1|GET http://a/bookings HTTP/1.1"))
@pytest.mark.parametrize("fields", [[], [b"Hosts: a"], [b"X-Host: a"]])
def test_a_host_is_missing(shared_server: Server, line: bytes, fields: list[bytes]) -> None:
    assert_refused(shared_server, request(line, TENANT, *fields), 400, "malformed-request")


@pytest.mark.parametrize(
    "host",
    cases(
        b"a\r\nHost: a|a\r\nhost: b|a b|a/b|http://a|user@a|a:port|a:80:80|a:-1|[::1|::1|[::1]x|caf\xc3\xa9",
        b"caf\xe9|a#b|a?b|<a>|a\\b",
    ),
    ids=short,
)
def test_malformed_hosts(shared_server: Server, host: bytes) -> None:
    for target_and_version in cases(b"/bookings HTTP/1.1|http://a/bookings HTTP/1.1|/bookings HTTP/1.0"):
        sent = request(b"GET " + target_and_version, TENANT, b"Host: " + host)
        assert_refused(shared_server, sent, 400, "malformed-request")


LONGEST_LINE = b"GET /bookings?%s HTTP/1.1" % (b"a" * (8192 - 23))
TOO_LARGE: dict[str, tuple[bytes, int, str]] = {
    "a line of 8193 bytes": (get(line=LONGEST_LINE.replace(b"?", b"?a")), 414, "target-too-long"),
    "a line that never ends": (b"GET /" + b"a" * 100_000, 414, "target-too-long"),
    "a method that never ends": (b"A" * 8193, 414, "target-too-long"),
    "101 fields": (get(*[b"X: 1"] * 99), 431, "headers-too-large"),
    "1000 fields": (get(*[b"X-%d: 1" % number for number in range(998)]), 431, "headers-too-large"),
    "8000 empty fields": (get(*[b"a:"] * 8000), 431, "headers-too-large"),
    "33000 bytes": (get(*[b"X: " + b"a" * 8250] * 4), 431, "headers-too-large"),
    "one field of 33000 bytes": (get(b"X: " + b"a" * 33_000), 431, "headers-too-large"),
    "a name of 33000 bytes": (get(b"a" * 33_000 + b": 1"), 431, "headers-too-large"),
    "fields that never end": (get()[:-2] + b"X: 1\r\n" * 100_000, 431, "headers-too-large"),
}


@pytest.mark.parametrize("sent, status, kind", list(TOO_LARGE.values()), ids=list(TOO_LARGE))
def test_too_large_a_head(shared_server: Server, sent: bytes, status: int, kind: str) -> None:
    assert_refused(shared_server, sent, status, kind)


@pytest.mark.parametrize(
    "value", cases(b"200-ok|100-continue, other|100-continue=1|100-continue\r\nExpect: other")
)
def test_an_expectation_that_cannot_be_met(shared_server: Server, value: bytes) -> None:
    assert_refused(shared_server, post(fresh(), b"Expect: " + value), 417, "expectation-failed")


def assert_goes_on(server: Server, sent: bytes, status: int, kind: str = "") -> None:
    """One answer, and the next request on the same connection is served; no kind, no problem."""
    before = server.rows()
    answer, last = answers(server.raw(sent + LAST))
    assert answer.status == status
    assert "Connection" not in answer.headers
    if kind:
        fields = [error["field"] for error in answer.json["errors"]]
        assert_problem(answer, status, kind, *fields)
    assert (last.status, last.headers["Connection"]) == (200, "close")
    assert_serves(server, before)


@pytest.mark.parametrize(
    "target, status, kind",
    [
        *((target, 200, "") for target in cases(
            b"/bookings|/bookings?|/bookings?tenant_id=reader|/bookings?tenant_id=%72eader|http://a/bookings",
            b"http://a:1/bookings?tenant_id=reader|HTTP://[::1]/bookings|https://Other.example/bookings|/|http://a",
        )),
        *((target, 400, "invalid-fields") for target in cases(
            b"/bookings?tenant_id=%|/bookings?tenant_id=reader%7|/bookings?tenant_id=%u0041|/bookings?%zz=1",
            b"/bookings?tenant_id=%ff|/bookings?tenant_id=%ed%a0%80|/bookings?tenant_id=a%00",
            b"/bookings?reader|/bookings?%0d%0aX:1=1|/bookings??tenant_id=reader|/bookings?&",
            b"http://a/bookings?%",
        )),
        *((target, 400, "malformed-request") for target in cases(
            b"/bookings#|/bookings#top|/bookings?tenant_id=reader#top|http://a/bookings#|http:///bookings",
            b"http:/bookings|ftp://a/bookings|localhost:3000|a:80/bookings|bookings|?tenant_id=reader|**|*/",
        )),
        *((target, 404, "no-such-path") for target in cases(
            b"//bookings|/bookings/|/Bookings|/../../etc/passwd|/bookings%00|/bookings;a|/bookings/x",
            b"http://a/x|/bookings/0|/bookings/01|/bookings/-1|/bookings/1/|/bookings/%d9%a1",
        )),
        (b"/bookings/" + b"9" * 5000, 404, "no-such-path"),
        (b"/" + b"a" * 8000, 404, "no-such-path"),
        (b"/bookings/9999999999999999", 404, "no-such-booking"),
        (b"*", 405, "method-not-allowed"),
    ],
    ids=short,
)  # fmt: skip
def test_targets(shared_server: Server, target: bytes, status: int, kind: str) -> None:
    assert_goes_on(shared_server, get(line=b"GET %s HTTP/1.1" % target), status, kind)


@pytest.mark.parametrize(
    "fields",
    [
        [HOST, b"X-Tenant-ID: caf\xc3\xa9"],
        [b"Host:a", b"x-tenant-id:reader"],
        [b"HOST: \t a \t ", b"X-TENANT-ID: \treader\t"],
        *(
            [TENANT, b"Host:" + host]
            for host in cases(b"| | [::1]:3000|Example.LOCALHOST:65535|a:|1.2.3.4|%7e_-")
        ),
        *(
            [TENANT, HOST, line]
            for line in cases(b"X:|X: :b: c:|X: \xe9\xff|X: \xc3\xa9\xe2\x80\xa8|X: ,;\"'")
        ),
        [TENANT, HOST, b"!#$%&'*+-.^_`|~09aZ: 1"],
        [TENANT, HOST, b"Connection: keep-alive"],
        [TENANT, HOST, b"Connection: closed, not-close"],
        [TENANT, HOST, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"],
        [TENANT, HOST, b"Content-Length: 0"],
        [TENANT, HOST, b"Expect: 100-continue"],
        [TENANT, HOST, *[b"X: 1"] * 98],
        [TENANT, HOST, b"X: " + b"a" * 20_000],
        [TENANT, HOST, *[b"X: " + b"a" * 7980] * 4],
    ],
    ids=short,
)
def test_headers_that_are_taken(shared_server: Server, fields: list[bytes]) -> None:
    assert_goes_on(shared_server, request(b"GET /bookings HTTP/1.1", *fields), 200)


@pytest.mark.parametrize("value", cases(b"caf\xe9||a\xc2\x85b"))
def test_tenants_that_are_not_taken(shared_server: Server, value: bytes) -> None:
    sent = request(b"GET /bookings HTTP/1.1", HOST, b"X-Tenant-ID: " + value)
    assert_goes_on(shared_server, sent, 400, "invalid-fields")


# Each body is a booking, complete with its head, and is not to be read as one.
WITH_BODY: dict[str, tuple[bytes, int, str]] = {
    "GET": (sized(SMUGGLED, TENANT, line=b"GET /bookings HTTP/1.1"), 200, ""),
    "OPTIONS": (sized(SMUGGLED, line=b"OPTIONS /bookings HTTP/1.1"), 204, ""),
    "DELETE": (sized(SMUGGLED, line=b"DELETE /bookings HTTP/1.1"), 405, "method-not-allowed"),
    "PUT": (sized(SMUGGLED, line=b"PUT /bookings/1 HTTP/1.1"), 405, "method-not-allowed"),
    "POST to a booking": (sized(SMUGGLED, line=b"POST /bookings/1 HTTP/1.1"), 405, "method-not-allowed"),
    "post": (sized(SMUGGLED, line=b"post /bookings HTTP/1.1"), 405, "method-not-allowed"),
    "POST nowhere": (sized(SMUGGLED, line=b"POST /nowhere HTTP/1.1"), 404, "no-such-path"),
    "POST nonsense": (sized(SMUGGLED, line=b"POST bookings HTTP/1.1"), 400, "malformed-request"),
    "POST": (sized(SMUGGLED), 400, "malformed-json"),
    "POST of nothing": (sized(b""), 400, "malformed-json"),
    "POST with a query": (sized(SMUGGLED, line=b"POST /bookings?a=1 HTTP/1.1"), 400, "malformed-json"),
    "POST of another type": (sized(SMUGGLED, b"Content-Type: text/plain"), 415, "not-json"),
}


@pytest.mark.parametrize("sent, status, kind", list(WITH_BODY.values()), ids=list(WITH_BODY))
def test_a_body_is_no_request(shared_server: Server, sent: bytes, status: int, kind: str) -> None:
    assert_goes_on(shared_server, sent, status, kind)
    assert_goes_on(shared_server, sent.replace(b"Length: ", b"Length: " + b"0" * 30, 1), status, kind)


@pytest.mark.parametrize(
    "sent, status",
    [
        (b"\r\n" + get(), 200),
        (b"\r\n" * 100 + get(), 200),
        (get(line=b"GET /bookings HTTP/1.2"), 200),
        (get(line=b"GET /bookings HTTP/1.9"), 200),
        (get(line=LONGEST_LINE), 400),
        (get(line=b"OPTIONS * HTTP/1.1"), 204),
        (get(line=b"OPTIONS /nowhere HTTP/1.1"), 404),
    ],
    ids=short,
)
def test_request_lines_that_are_taken(shared_server: Server, sent: bytes, status: int) -> None:
    assert_goes_on(shared_server, sent, status)


@pytest.mark.parametrize(
    "sent, status",
    [
        (get(CLOSE), 200),
        (get(b"connection: Close"), 200),
        (get(b"Connection: keep-alive , close"), 200),
        (get(b"Connection: keep-alive", CLOSE), 200),
        (get(line=b"GET /bookings HTTP/1.0"), 200),
        (request(b"GET /bookings HTTP/1.0", TENANT), 200),
        (get(line=b"OPTIONS * HTTP/1.0"), 204),
        (get(CLOSE, line=b"GET /nowhere HTTP/1.1"), 404),
        (sized(b"{}", CLOSE), 400),
        (sized(b"{}", CLOSE, line=b"DELETE /bookings HTTP/1.1"), 405),
    ],
)
def test_the_connection_ends_where_the_client_says_so(
    shared_server: Server, sent: bytes, status: int
) -> None:
    before = shared_server.rows()
    (answer,) = answers(shared_server.raw(sent + SMUGGLED))
    assert (answer.status, answer.headers["Connection"]) == (status, "close")
    assert_serves(shared_server, before)


@pytest.mark.parametrize(
    "path, allowed", [("/bookings", "GET, HEAD, OPTIONS, POST"), ("/bookings/1", "GET, HEAD, OPTIONS")]
)
@pytest.mark.parametrize("method", ["OPTIONS", "DELETE", "PUT", "PATCH", "TRACE", "PROPFIND", "get", "A-b.c"])
def test_methods(shared_server: Server, path: str, allowed: str, method: str) -> None:
    before = shared_server.rows()
    sent = get(line=f"{method} {path} HTTP/1.1".encode())
    (answer,) = answers(shared_server.raw(sent, half_close=True))
    assert answer.headers["Allow"] == allowed
    if method == "OPTIONS":
        assert (answer.status, answer.body) == (204, b"")
    else:
        assert_problem(answer, 405, "method-not-allowed")
    assert_serves(shared_server, before)


def test_connect_is_no_tunnel(shared_server: Server) -> None:
    before = shared_server.rows()
    (answer,) = answers(shared_server.raw(get(line=b"CONNECT localhost:80 HTTP/1.1"), half_close=True))
    assert_problem(answer, 400, "malformed-request")
    assert_serves(shared_server, before)


@pytest.mark.parametrize("target", [b"/bookings", b"/bookings/1", b"/nowhere", b"/bookings?a=1", b"*", b"x"])
def test_head_has_the_headers_of_get_and_no_body(server: Server, target: bytes) -> None:
    assert server.book("reader", START, "k").status == 201
    same_id = b"X-Request-ID: same"
    (got,) = answers(server.raw(get(CLOSE, same_id, line=b"GET %s HTTP/1.1" % target)))
    (headed,) = answers(server.raw(get(CLOSE, same_id, line=b"HEAD %s HTTP/1.1" % target)), "HEAD")
    assert got.body and not headed.body
    assert got.status == headed.status
    assert got.headers.items()[1:] == headed.headers.items()[1:]  # all but the date
    # On a connection that goes on, a body would be read as the next answer.
    sent = get(line=b"HEAD %s HTTP/1.1" % target) + LAST
    assert statuses(server.raw(sent), "HEAD") == [got.status, 200]
    assert_serves(server, [("reader", START, "k")])


@pytest.mark.parametrize(
    "sent, status",
    [
        (request(b"HEAD /bookings HTTP/1.1", TENANT), 400),
        (request(b"HEAD /bookings HTTP/2.0", HOST), 505),
        (get(b"Transfer-Encoding: chunked", line=b"HEAD /bookings HTTP/1.1"), 501),
        (get(b"Content-Length: 99999", line=b"HEAD /bookings HTTP/1.1"), 413),
        (get(b"Expect: other", line=b"HEAD /bookings HTTP/1.1"), 417),
    ],
)
def test_a_refused_head_has_no_body_either(shared_server: Server, sent: bytes, status: int) -> None:
    before = shared_server.rows()
    (answer,) = answers(shared_server.raw(sent + SMUGGLED), "HEAD")
    assert (answer.status, answer.headers["Connection"]) == (status, "close")
    assert_serves(shared_server, before)


def test_two_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    first, second = answers(server.raw(post("one") + post("two", CLOSE)))
    assert (first.status, first.json["idempotency_key"]) == (201, "one")
    assert (second.status, second.json["idempotency_key"]) == (201, "two")
    assert_serves(server, [("one", START, "one"), ("two", START, "two")])


def test_many_requests_in_one_packet(server: Server) -> None:
    keys = [f"k{number}" for number in range(50)]
    sent = b"".join(
        post(key) + get(line=b"GET /bookings/%d HTTP/1.1" % (number + 1)) for number, key in enumerate(keys)
    )
    found = answers(server.raw(sent, half_close=True))
    assert [answer.status for answer in found] == [201, 404] * 50
    assert [answer.json["idempotency_key"] for answer in found[::2]] == keys
    assert_serves(server, [(key, START, key) for key in keys])


def test_what_follows_a_body_is_the_next_request(shared_server: Server) -> None:
    key = fresh()
    before = shared_server.rows()
    made, refused = answers(shared_server.raw(post(key) + b"x\r\n\r\n" + SMUGGLED))
    assert made.status == 201
    assert_problem(refused, 400, "malformed-request")
    assert_serves(shared_server, [*before, (key, START, key)])


def test_one_connection_serves_many_requests(server: Server) -> None:
    with connect(server) as connection:
        for number in range(20):
            connection.sendall(post(f"k{number}"))
            assert answer_from(connection).status == 201
            connection.sendall(
                b"\r\n" + get(line=b"GET /bookings?tenant_id=k%d HTTP/1.1" % number).replace(TENANT, b"X: 1")
            )
            (booking,) = answer_from(connection).json
            assert booking["idempotency_key"] == f"k{number}"
    assert_serves(server, [(f"k{number}", START, f"k{number}") for number in range(20)])


def test_a_request_in_single_bytes(server: Server) -> None:
    with connect(server) as connection:
        for byte in post("slow") + post("slow", CLOSE):
            connection.send(bytes([byte]))
        assert statuses(all_from(connection)) == [201, 200]
    assert_serves(server, [("slow", START, "slow")])


LONGEST_HEAD = get(b"X: " + b"a" * (program.MAX_HEAD - len(get()) - 1))


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


def test_a_continue_is_sent_before_the_body_is(server: Server) -> None:
    head, end, body = post("k", b"Expect: 100-Continue").partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + end)
        assert head_from(connection) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body + LAST)
        assert statuses(all_from(connection)) == [201, 200]
    assert_serves(server, [("k", START, "k")])


@pytest.mark.parametrize(
    "sent, status",
    [
        (post("k", b"Expect: 100-continue", CLOSE).replace(b"HTTP/1.1", b"HTTP/1.0"), 201),
        (request(b"POST /bookings HTTP/1.1", HOST, b"Expect: 100-continue", b"Content-Length: 16385"), 413),
        (request(b"POST /bookings HTTP/1.1", HOST, b"Expect: 100-continue"), 411),
        (
            request(b"POST /bookings HTTP/1.1", HOST, b"Expect: 100-continue", b"Transfer-Encoding: chunked"),
            501,
        ),
    ],
)
def test_no_continue_where_none_can_be_meant(server: Server, sent: bytes, status: int) -> None:
    head, end, body = sent.partition(b"\r\n\r\n")
    with connect(server) as connection:
        connection.sendall(head + end)
        if body:
            assert_silent(connection)
            connection.sendall(body)
        assert statuses(all_from(connection)) == [status]
    assert_serves(server, [("k", START, "k")] if status == 201 else [])


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
    whole = post(fresh())
    for length in range(len(whole)):
        assert statuses(shared_server.raw(whole[:length], half_close=True)) in ([], [400])
    # Behind a whole one, too.
    key = fresh()
    cut = post(key) + whole[:-1]
    assert statuses(shared_server.raw(cut, half_close=True)) in ([201], [201, 400])
    assert_serves(shared_server, [*before, (key, START, key)])


def test_who_has_no_more_to_send_is_answered_still(server: Server) -> None:
    assert statuses(server.raw(post("k"), half_close=True)) == [201]
    assert_serves(server, [("k", START, "k")])


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
            found = answers(all_from(connection, drip))
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
    """The answers are more than the buffers of two sockets take."""
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
        with connect(server) as first, connect(server) as second, connect(server) as third:
            for inside in (first, second):
                inside.sendall(get())
                assert answer_from(inside).status == 200
            third.sendall(post("third", CLOSE))
            assert_silent(third)
            assert server.rows() == []
            # Those who are in are served all the while.
            second.sendall(post("second"))
            assert answer_from(second).status == 201
            first.close()
            assert statuses(all_from(third)) == [201]
        rows = [("second", START, "second"), ("third", START, "third")]
        assert server.rows() == rows
        crowd = at_once(30, lambda number: server.book(f"t{number}", START, f"k{number}").status)
        assert crowd == [201] * 30
        assert sorted(server.rows()) == sorted([*rows, *((f"t{n}", START, f"k{n}") for n in range(30))])


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
        assert answer_from(used).status == 201
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
        (answer,) = answers(all_from(connection))
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
        started = time.monotonic()
        assert server.stop(number) == -number
        assert time.monotonic() - started < 2
    assert server.rows() == []


# --- DNS rebinding: a page of a stranger whose name has come to mean this machine

STRANGERS = cases(
    b"evil.example|evil.example:3000|EVIL.example.|localhost.evil.example|127.0.0.1.evil.example|a.b|1.2.3.x"
)
OWN_NAMES = cases(
    b"localhost|LocalHost:3000|app.localhost:1|127.0.0.1|127.0.0.1:3000|[::1]:3000|192.168.0.7|bookings"
)


def _book_as(server: Server, host: bytes, key: str) -> int:
    (status,) = statuses(server.raw(post(key, CLOSE).replace(HOST, b"Host: " + host)))
    return status


@pytest.mark.parametrize("host", STRANGERS, ids=short)
def test_a_stranger_who_points_a_name_here_reads_nothing(shared_server: Server, host: bytes) -> None:
    for line in cases(
        b"GET /bookings HTTP/1.1|GET / HTTP/1.1|OPTIONS /bookings HTTP/1.1|GET /bookings HTTP/1.0"
    ):
        sent = request(line, TENANT, b"Host: " + host)
        assert_refused(shared_server, sent, 421, "unknown-host")


def test_names_by_which_the_server_may_be_called(tmp_path: Path) -> None:
    """The flag, the Host, and whether it may book."""
    for number, (flags, own, strange) in enumerate(
        [
            ((), OWN_NAMES, STRANGERS),
            (
                ("--allowed-hosts= Book.Example ,a.b",),
                [b"book.example:3000", b"A.B", *OWN_NAMES],
                STRANGERS[:5],
            ),
            (("--host=0.0.0.0",), [*OWN_NAMES, *STRANGERS], []),
            (("--host=0.0.0.0", "--allowed-hosts=a.b"), [b"a.b:3000", *OWN_NAMES], STRANGERS[:5]),
        ]
    ):
        base = tmp_path / str(number)
        base.mkdir()
        with contextlib.closing(Server(base, "--workers=1", *flags)) as server:
            assert {_book_as(server, host, "refused") for host in strange} <= {421}, flags
            assert server.rows() == []
            assert [_book_as(server, host, "booked") for host in own] == [201] + [200] * (len(own) - 1), flags
            assert server.rows() == [("booked", START, "booked")]
