"""HTTP/1.1 over raw sockets: methods, HEAD, pipelining, limits, and framing errors.

Bytes that no HTTP library would send are in guarantees/test_hostile_http.py.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl

import pytest

from bookings.problems import PROBLEM_TYPES
from bookings.server.connection import BODY_SECONDS, HEAD_SECONDS
from bookings.server.http1 import (
    MAX_BODY,
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_REQUEST_LINE,
    ChunkedBody,
)
from tests.helpers.clients import (
    CLOSE,
    HOST,
    JSON,
    TENANT,
    assert_serves,
    assert_silent,
    booking_of,
    connect,
    get,
    only_response,
    post,
    request,
    response_from,
    responses,
    statuses,
)
from tests.helpers.servers import SOON, Server, all_from, assert_problem
from tests.helpers.values import SLOT, VALID_BODY

LAST = get(CLOSE)


@pytest.mark.parametrize(
    "path, allowed",
    [("/bookings", "GET, HEAD, OPTIONS, POST"), ("/bookings/1", "DELETE, GET, HEAD, OPTIONS")],
)
@pytest.mark.parametrize(
    "method", ["OPTIONS", "delete", "PUT", "PATCH", "TRACE", "PROPFIND", "get", "A-b.c"]
)
def test_allow_header_lists_methods_of_path(
    shared_server: Server, path: str, allowed: str, method: str
) -> None:
    before = shared_server.rows()
    sent = get(line=f"{method} {path} HTTP/1.1".encode())
    (response,) = responses(shared_server.raw(sent, half_close=True))
    assert response.headers["Allow"] == allowed
    if method == "OPTIONS":
        assert (response.status, response.body) == (204, b"")
    else:
        assert_problem(response, 405, "method-not-allowed")
    assert_serves(shared_server, before)


def test_options_of_asterisk_lists_methods_of_all_paths(shared_server: Server) -> None:
    (response,) = responses(shared_server.raw(get(CLOSE, line=b"OPTIONS * HTTP/1.1")))
    assert (response.status, response.body) == (204, b"")
    assert response.headers["Allow"] == "DELETE, GET, HEAD, OPTIONS, POST"


@pytest.mark.parametrize(
    "target", [b"/bookings", b"/bookings/1", b"/nowhere", b"/bookings?a=1", b"*", b"x"]
)
def test_head_response_has_headers_of_get_and_no_body(server: Server, target: bytes) -> None:
    assert server.book("reader", SLOT, "k").status == 201
    same_id = b"X-Request-ID: same"
    (got,) = responses(server.raw(get(CLOSE, same_id, line=b"GET %s HTTP/1.1" % target)))
    (headed,) = responses(
        server.raw(get(CLOSE, same_id, line=b"HEAD %s HTTP/1.1" % target)), "HEAD"
    )
    assert got.body and not headed.body
    assert got.status == headed.status
    assert got.headers.items()[1:] == headed.headers.items()[1:]  # All but Date.
    # A body would be parsed as the start of the next response.
    sent = get(line=b"HEAD %s HTTP/1.1" % target) + LAST
    assert statuses(server.raw(sent), "HEAD") == [got.status, 200]
    assert_serves(server, [("reader", SLOT, "k")])


def test_pipelined_requests_in_one_packet_are_answered_in_order(server: Server) -> None:
    keys = [f"k{number}" for number in range(50)]
    sent = b"".join(
        post(key) + get(line=b"GET /bookings/%d HTTP/1.1" % (number + 1))
        for number, key in enumerate(keys)
    )
    found = responses(server.raw(sent, half_close=True))
    assert [response.status for response in found] == [201, 404] * 50
    assert [response.json["idempotency_key"] for response in found[::2]] == keys
    assert_serves(server, [(key, SLOT, key) for key in keys])


def test_connection_serves_many_requests(server: Server) -> None:
    with connect(server) as connection:
        for number in range(20):
            connection.sendall(post(f"k{number}"))
            assert response_from(connection).status == 201
            listing = get(line=b"GET /bookings?tenant_id=k%d HTTP/1.1" % number)
            connection.sendall(b"\r\n" + listing.replace(TENANT, b"X: 1"))
            (booking,) = response_from(connection).json
            assert booking["idempotency_key"] == f"k{number}"
    assert_serves(server, [(f"k{number}", SLOT, f"k{number}") for number in range(20)])


# Each body is consumed and ignored, whatever its type. The last one is a request.
@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        (None, None),
        (None, b""),
        (None, b"{"),
        (b"application/json", b'{"tenant_id": "else", "start_time_utc": 5}'),
        (b"text/plain; ;", b"\xff\0garbage"),
        (b"application/json", post("smuggled")),
    ],
    ids=["no length", "empty", "no type", "JSON", "garbage", "a request"],
)
def test_delete_ignores_body_and_keeps_connection(
    server: Server, media_type: bytes | None, body: bytes | None
) -> None:
    assert server.book("reader", SLOT, "k1").status == 201
    fields = [] if media_type is None else [b"Content-Type: " + media_type]
    fields += [] if body is None else [b"Content-Length: %d" % len(body)]
    line = b"DELETE /bookings/1 HTTP/1.1"
    sent = get(*fields, line=line) + (body or b"")
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(sent)
            cancelled = response_from(connection)
            assert (cancelled.status, cancelled.body) == (204, b"")
            assert not {"Connection", "Content-Type", "Content-Length"} & set(cancelled.headers)
        connection.sendall(post("next") + sent + LAST)
        assert statuses(all_from(connection)) == [201, 204, 200]
    assert server.rows("cancellations") == [("reader", SLOT, "k1")]
    assert_serves(server, [("next", SLOT, "next")])


def test_request_in_single_bytes_is_accepted(server: Server) -> None:
    with connect(server) as connection:
        for byte in post("slow") + post("slow", CLOSE):
            connection.send(bytes([byte]))
        assert statuses(all_from(connection)) == [201, 200]
    assert_serves(server, [("slow", SLOT, "slow")])


def test_chunked_request_in_single_bytes_is_accepted(server: Server) -> None:
    chunks = b"".join(b"%x;a=b\r\n%c\r\n" % (1, byte) for byte in booking_of("slow"))
    head = request(b"POST /bookings HTTP/1.1", HOST, JSON, b"Transfer-Encoding: chunked")
    with connect(server) as connection:
        for byte in head + chunks + b"0\r\nX: 1\r\n\r\n" + post("slow", CLOSE):
            connection.send(bytes([byte]))
        assert statuses(all_from(connection)) == [201, 200]
    assert_serves(server, [("slow", SLOT, "slow")])


def test_client_that_speaks_tls_is_rejected_at_once(server: Server) -> None:
    context, hello = ssl.create_default_context(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost").do_handshake()
    # Its random bytes may have a line break, which is rejected as well.
    sent = hello.read().replace(b"\n", b"-")
    with connect(server) as connection:
        connection.settimeout(HEAD_SECONDS / 2)  # Before the server gives up.
        connection.sendall(sent)
        response = response_from(connection)
    assert response.status == 400 and "http://" in response.json["detail"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (booking_of("k"), 400),
        (b"tenant_id=acme", 400),
        (b"1 ;a\0", 400),
        (b"2\r\r", 400),
        (b"4001", 413),
    ],
)
def test_bytes_that_cannot_start_a_chunk_are_rejected_at_once(
    server: Server, sent: bytes, status: int
) -> None:
    head = request(b"POST /bookings HTTP/1.1", HOST, JSON, b"Transfer-Encoding: chunked")
    with connect(server) as connection:
        connection.settimeout(BODY_SECONDS / 2)  # Before the server gives up.
        connection.sendall(head + sent)
        assert response_from(connection).status == status
    assert_serves(server, [])


def test_chunks_are_decoded_once_although_they_arrive_in_single_bytes() -> None:
    body, rest, has_ended = ChunkedBody(), b"", False
    for byte in b"1\r\n \r\n" * MAX_BODY + b"0\r\n" + b"X: 1\r\n" * 1000 + b"\r\nGET":
        if has_ended:
            rest += bytes([byte])
        else:
            rest, has_ended = body.decode(rest + bytes([byte]))
            # If the beginning were decoded again for each byte, the time would be quadratic.
            assert len(rest) < 6
    assert (body.content, rest) == (b" " * MAX_BODY, b"GET")


def test_body_of_unknown_length_is_sent_in_chunks_and_booked(server: Server) -> None:
    """Like `fetch` with a stream, or .NET's PostAsJsonAsync."""
    body = booking_of("stream")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
    with contextlib.closing(connection):
        for status in (201, 200):
            pieces = iter([body[:1], body[1:50], body[50:]])
            connection.request("POST", "/bookings", pieces, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert (response.status, response.will_close) == (status, False)
            assert json.loads(response.read())["idempotency_key"] == "stream"
    assert_serves(server, [("stream", SLOT, "stream")])


LONGEST_LINE = b"GET /bookings?%s HTTP/1.1" % (b"a" * (MAX_REQUEST_LINE - 23))
# Neither the request line nor the empty line at the end counts.
LONGEST_HEAD = get(b"X: " + b"a" * (MAX_HEADER_BYTES - len(get().partition(b"\r\n")[2]) - 1))


@pytest.mark.parametrize(
    "whole, end, status",
    [(get(line=LONGEST_LINE), len(LONGEST_LINE) + 2, 400), (LONGEST_HEAD, len(LONGEST_HEAD), 200)],
    ids=["longest line", "longest head"],
)
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_limits_do_not_depend_on_packet_boundaries(
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


@pytest.mark.parametrize(
    ("line", "status"), [(b"GET /bookings HTTP/1.1", 200), (LONGEST_LINE, 400)]
)
def test_head_one_byte_over_limit_is_rejected(
    shared_server: Server, line: bytes, status: int
) -> None:
    before = shared_server.rows()
    headers = LONGEST_HEAD.partition(b"\r\n")[2]
    assert statuses(shared_server.raw(line + b"\r\n" + headers, half_close=True)) == [status]
    assert statuses(shared_server.raw(line + b"\r\n" + headers[:-4] + b"a\r\n\r\n")) == [431]
    assert_serves(shared_server, before)


# --- Framing errors: the server cannot tell where the request ends, or it ends too far away

POST = b"POST /bookings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
GZIP = CHUNKED.replace(b"chunked", b"gzip, chunked")
FRAMING: dict[str, tuple[bytes, int, str]] = {
    "no request": (b"hello\r\n\r\n", 400, "malformed-request"),
    "no Host": (b"GET /bookings HTTP/1.1\r\n\r\n", 400, "malformed-request"),
    "length that is not a number": (
        POST + b"Content-Length: +5\r\n\r\n12345",
        400,
        "malformed-request",
    ),
    "two lengths": (POST + b"Content-Length: 5\r\n" * 2 + b"\r\n12345", 400, "malformed-request"),
    "no length": (POST + b"\r\n" + json.dumps(VALID_BODY).encode(), 411, "length-required"),
    "chunked with a length": (POST + b"Content-Length: 5\r\n" + CHUNKED, 400, "malformed-request"),
    "other coding": (POST + GZIP, 501, "transfer-encoding"),
    "body over the limit": (
        POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1) + b" " * (MAX_BODY + 1),
        413,
        "body-too-large",
    ),
    "body far over the limit": (
        POST + b"Content-Length: 99999999999999999999\r\n\r\n",
        413,
        "body-too-large",
    ),
    "target too long": (
        b"GET /bookings?tenant_id=%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * MAX_REQUEST_LINE),
        414,
        "target-too-long",
    ),
    "headers too long": (
        POST + b"X: %s\r\n\r\n" % (b"x" * MAX_HEADER_BYTES),
        431,
        "headers-too-large",
    ),
    "headers too many": (POST + b"X: x\r\n" * MAX_HEADERS + b"\r\n", 431, "headers-too-large"),
    "expectation": (
        POST + b"Expect: a miracle\r\nContent-Length: 5\r\n\r\n12345",
        417,
        "expectation-failed",
    ),
    "rebound": (
        b"GET /bookings HTTP/1.1\r\nHost: rebound.example\r\n\r\n",
        421,
        "unknown-host",
    ),
    "HTTP/2": (b"GET /bookings HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http-version"),
}
PROVOKED_BY_OTHER_MODULES = {
    *("malformed-json", "invalid-fields", "not-json", "content-encoding"),
    *("no-such-path", "no-such-booking", "method-not-allowed"),
    *("slot-taken", "rejected-by-rule", "key-reused", "booking-cancelled"),
    *("too-slow", "internal-error"),
    *("database-busy", "database-unavailable", "database-full", "shutting-down"),
}


@pytest.mark.both_stores
@pytest.mark.parametrize("case", FRAMING)
def test_framing_error_is_rejected_and_closes_connection(shared_server: Server, case: str) -> None:
    sent, status, problem_type = FRAMING[case]
    before = shared_server.rows()
    # If the connection stayed open, this request would be answered as well.
    following = b"GET /bookings?tenant_id=x HTTP/1.1\r\nHost: x\r\n\r\n"
    response = only_response(shared_server.raw(sent + following))
    assert_problem(response, status, problem_type)
    assert response.headers["Connection"] == "close"
    assert shared_server.rows() == before


@pytest.mark.parametrize(
    ("target", "explained"),
    [
        (b"/bookings?tenant_id=a b", True),
        (b"/bookings?tenant_id=caf\xc3\xa9", True),
        (b"/bookings?tenant_id=caf\xe9", True),
        (b"http://x/bookings?tenant_id=a b", True),
        (b" /bookings", False),
        (b"bookings list", False),
    ],
)
def test_target_that_is_not_encoded_is_explained(
    shared_server: Server, target: bytes, explained: bool
) -> None:
    response = only_response(shared_server.raw(get(line=b"GET %s HTTP/1.1" % target)))
    assert_problem(response, 400, "malformed-request")
    assert response.headers["Connection"] == "close"
    assert ("percent-encode" in response.json["detail"]) == explained


def test_every_problem_type_is_provoked() -> None:
    framing = {problem_type for _, _, problem_type in FRAMING.values()}
    assert framing | PROVOKED_BY_OTHER_MODULES == set(PROBLEM_TYPES)
