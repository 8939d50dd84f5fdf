"""Load for `tests.bench`: requests over a number of connections, and their latencies."""

from __future__ import annotations

import contextlib
import json
import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bookings.stores import sql
from bookings.stores.model import NewBooking

# Longest wait in seconds for one response or for a process to start.
RESPONSE_SECONDS = 30.0
TENANTS = 1000


def new_booking(number: int) -> NewBooking:
    """Return booking number `number`, up to 86 million, in a year in which no other bookings are.

    Keys are spread over the index like those of many clients. The factor is odd, so no key occurs
    twice within 2^32.
    """
    second = number // TENANTS
    start = f"2027-01-01T{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}Z"
    key = f"{number * 2654435761 & 4294967295:08x}-new"
    return NewBooking(f"tenant-{number % TENANTS}", start, key)


def post_request(target: str, body: str) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def booking_request(number: int) -> bytes:
    return post_request("/bookings", json.dumps(new_booking(number)._asdict()))


LIST_REQUEST = b"GET /bookings?tenant_id=small-0 HTTP/1.1\r\nHost: localhost\r\n\r\n"
# test_bench compares the target and the statement with those that the program sends.
EXECUTE = "/db/execute?transaction&noparse&redirect"
INSERT = re.sub(r":([a-z_]+)\b", r"json_extract(?1, '$.\1')", sql.INSERT)


def insert_request(number: int) -> bytes:
    """Return the request with which the program inserts this booking on the leader of a cluster."""
    values = {**new_booking(number)._asdict(), "created_at": "2026-11-22T16:00:00Z"}
    return post_request(EXECUTE, json.dumps([[INSERT, json.dumps(values)]]))


# For each kind of request: how to make it, and what the correct response contains.
KINDS: dict[str, tuple[Callable[[int], bytes], bytes]] = {
    "post": (booking_request, b"HTTP/1.1 201 "),
    "get": (lambda number: LIST_REQUEST, b"HTTP/1.1 200 "),
    "insert": (insert_request, b'"rows_affected":1'),
}


class Measured(NamedTuple):
    """The result of `drive`."""

    rate: float  # Responses per second.
    p50: float  # Milliseconds.
    p99: float
    bad: int  # Wrong or missing responses.
    busy: float  # Share of one CPU that the load generator used.
    size: int  # Bytes of a response.
    responses: int


def drive(
    port: int,
    kind: str,
    connections: int,
    seconds: float,
    numbers: Iterator[int],
    at_least: int = 0,
) -> Measured:
    """Send requests back to back on every connection, for a time and for `at_least` responses."""
    make_request, expected = KINDS[kind]
    latencies: list[float] = []
    bad, size, waiting = 0, 0, connections
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(connections):
            address = ("127.0.0.1", port)
            client: Any = stack.enter_context(socket.create_connection(address, RESPONSE_SECONDS))
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            selector.register(client, selectors.EVENT_READ)
        clients = [key.fileobj for key in selector.get_map().values()]
        began, cpu = time.perf_counter(), time.process_time()
        sent, received = dict.fromkeys(clients, began), dict.fromkeys(clients, b"")
        for client in clients:
            # The buffer is empty and takes the whole request.
            client.send(make_request(next(numbers)))
        while waiting:
            ready = selector.select(RESPONSE_SECONDS)
            if not ready:
                bad += waiting
                break
            for key, _ in ready:
                client = key.fileobj
                try:
                    more = client.recv(65536)
                except OSError:
                    more = b""
                if not more:  # The server closed the connection without a response.
                    selector.unregister(client)
                    bad, waiting = bad + 1, waiting - 1
                    continue
                response = received[client] = received[client] + more
                if not is_complete(response):
                    continue
                now, size = time.perf_counter(), len(response)
                latencies.append(now - sent[client])
                bad += expected not in response
                if now - began < seconds or len(latencies) < at_least:
                    received[client], sent[client] = b"", now
                    with contextlib.suppress(OSError):  # The next recv fails as well.
                        client.send(make_request(next(numbers)))
                else:
                    waiting -= 1
        took, busy = time.perf_counter() - began, time.process_time() - cpu
    p50, p99 = (1000 * percentile(latencies, share) for share in (0.50, 0.99))
    return Measured(len(latencies) / took, p50, p99, bad, busy / took, size, len(latencies))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(len(values) * share)] if values else 0.0


def is_complete(response: bytes) -> bool:
    end = response.find(b"\r\n\r\n")
    start = response.find(b"Content-Length: ", 0, end) + len(b"Content-Length: ")
    return end >= 0 and len(response) >= end + 4 + int(
        response[start : response.index(b"\r", start)]
    )
