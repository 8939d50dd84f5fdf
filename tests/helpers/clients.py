"""Requests as bytes, raw sockets, and the parsing of what a server sends back."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import re
import select
import socket
from collections.abc import Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http.client import parse_headers
from typing import Any

from bookings.server.http1 import MAX_BODY, MAX_HEADERS, MAX_REQUEST_LINE
from tests.helpers.servers import SOON, Response, Server
from tests.helpers.values import MEMBERS, SLOT, fresh_name, utf8

HOST = b"Host: localhost"
TENANT = b"X-Tenant-ID: reader"
JSON = b"Content-Type: application/json"
CLOSE = b"Connection: close"

# Status of each framing error and a request that provokes it: a template for the request line,
# which takes method and target, and header lines. The server rejects them before routing.
FRAMING_ERRORS: dict[int, tuple[bytes, ...]] = {
    400: (b"%s %s HTTP/1.1", b"Host: y"),
    413: (b"%s %s HTTP/1.1", b"Content-Length: %d" % (MAX_BODY + 1)),
    414: (b"%%s %%s?%s HTTP/1.1" % (b"a" * MAX_REQUEST_LINE),),
    417: (b"%s %s HTTP/1.1", b"Content-Length: 0", b"Expect: wonders"),
    421: (b"%s %s HTTP/1.1", b"Host: rebound.example"),
    431: (b"%s %s HTTP/1.1", *[b"X: x"] * MAX_HEADERS),
    501: (b"%s %s HTTP/1.1", b"Transfer-Encoding: gzip"),
    505: (b"%s %s HTTP/2.0",),
}


def as_header(value: str) -> str:
    """Return the string that http.client encodes into the UTF-8 bytes of `value`."""
    return value.encode().decode("latin-1")


# --- Requests


def request(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([line, *fields, b"", body])


def sized(body: bytes, *fields: bytes, line: bytes = b"POST /bookings HTTP/1.1") -> bytes:
    """Return a request with this JSON body and its Content-Length."""
    return request(line, HOST, JSON, b"Content-Length: %d" % len(body), *fields, body=body)


def booking_of(key: str, start: str = SLOT) -> bytes:
    """Return the JSON body of a booking in which `key` is both tenant and idempotency key."""
    return json.dumps({"tenant_id": key, "start_time_utc": start, "idempotency_key": key}).encode()


def post(key: str, *fields: bytes) -> bytes:
    """Return a POST of `booking_of(key)`."""
    return sized(booking_of(key), *fields)


def get(*fields: bytes, line: bytes = b"GET /bookings HTTP/1.1") -> bytes:
    """Return a GET of the bookings of the tenant `reader`."""
    return request(line, HOST, TENANT, *fields)


def closing_request(line: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    """Return a request with `Connection: close`."""
    host = [] if b"Host: rebound.example" in fields else [b"Host: x"]
    return request(line, *host, CLOSE, *fields, body=body)


def closing_post(tenant: str, start: str, key: str, *fields: bytes) -> bytes:
    """Return a POST of this booking with `Connection: close`."""
    body = json.dumps({"tenant_id": tenant, "start_time_utc": start, "idempotency_key": key})
    length = b"Content-Length: %d" % len(body)
    line = b"POST /bookings HTTP/1.1"
    return closing_request(line, JSON, length, *fields, body=body.encode())


def badly_framed(status: int, method: str, target: str, *more: bytes) -> bytes:
    """Return a request that the server rejects with this status, one of FRAMING_ERRORS."""
    line, *fields = FRAMING_ERRORS[status]
    return closing_request(line % (method.encode(), target.encode()), *fields, *more)


# --- Connections


def connect(server: Server) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    return connection


def book_at(host: str, port: int) -> int:
    """Send the booking acme, SLOT, k1 to a server at this address; return the status."""
    body = dict(zip(MEMBERS, ("acme", SLOT, "k1")))
    connection = http.client.HTTPConnection(host, port, timeout=SOON)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/bookings", json.dumps(body), headers)
        return connection.getresponse().status


def head_from(connection: socket.socket) -> bytes:
    """Read one response head, byte by byte so that nothing after it is consumed."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, head
        head += byte
    return head


def response_from(connection: socket.socket) -> Response:
    """Read the next response on a connection that stays open."""
    received = head_from(connection)
    length = re.search(rb"Content-Length: ([0-9]+)", received)
    body = b""
    while length and len(body) < int(length[1]):
        more = connection.recv(int(length[1]) - len(body))
        assert more, received + body
        body += more
    (response,) = responses(received + body)
    return response


def assert_silent(connection: socket.socket) -> None:
    """Assert that nothing arrives for a while."""
    assert select.select([connection], [], [], 0.2)[0] == []


def call_with_header_lines(
    server: Server,
    method: str,
    target: str,
    headers: Sequence[tuple[str, str]],
    body: bytes = b"",
) -> Response:
    """Send exactly these headers. `Server.call` adds a Content-Type and sends no header twice."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
    with contextlib.closing(connection):
        connection.putrequest(method, target)
        for name, value in headers:
            connection.putheader(name, utf8(value))
        if method == "POST":
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())


# --- Responses


def responses(received: bytes, *methods: str) -> list[Response]:
    """Parse the bytes as complete, well-formed responses with nothing in between or after.

    `methods` are those of the requests; a response to HEAD has no body.
    """
    assert not re.search(rb"Python|http\.server|socketserver|Traceback", received)
    found: list[Response] = []
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
        # CORS headers would let web pages of other origins read the response.
        assert not any(name.startswith("access-control-") for name in names)
        assert ("content-length" in names) == (number != 204)
        has_body = number != 204 and methods[len(found) : len(found) + 1] != ("HEAD",)
        length = int(headers["Content-Length"]) if has_body else 0
        assert len(received) >= length
        found.append(Response(number, headers, received[:length]))
        received = received[length:]
    return found


def statuses(received: bytes, *methods: str) -> list[int]:
    """Return the status of each response in `responses(received, *methods)`."""
    return [response.status for response in responses(received, *methods)]


def first_response(received: bytes) -> Response:
    """Parse the first response head; everything after it becomes the body, unchecked."""
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, _, lines = head.partition(b"\r\n")
    headers = parse_headers(io.BytesIO(lines + b"\r\n\r\n"))
    return Response(int(status_line.split()[1]), headers, body)


def only_response(received: bytes) -> Response:
    """Parse the bytes as one response whose body ends where the bytes end."""
    response = first_response(received)
    assert received.startswith(b"HTTP/1.1 "), received
    assert int(response.headers["Content-Length"]) == len(response.body)
    return response


def assert_serves(server: Server, before: Sequence[Any]) -> None:
    """Assert that the rows are still those of `before` and that the server accepts a booking."""
    assert server.rows() == before
    key = fresh_name()
    assert server.book(key, SLOT, key).status == 201
    assert server.rows() == [*before, (key, SLOT, key)]
    assert "Traceback" not in server.log.read_text()


def rows_with(server: Server, value: str) -> list[tuple[Any, ...]]:
    """Return the rows in which a field has this value."""
    return [row for row in server.rows() if value in row]


def assert_nothing_booked(server: Server, name: str) -> None:
    """Assert that no row has this tenant or key, and that a booking can still use both."""
    assert rows_with(server, name) == []
    assert server.book(name, SLOT, name).status == 201
    assert rows_with(server, name) == [(name, SLOT, name)]
