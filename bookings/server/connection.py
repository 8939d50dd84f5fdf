"""One client's connection: reads requests within deadlines, sends responses, logs.

RFC 9112 says how requests are delimited; `http1` has that grammar. This module owns the waiting:
every read and write has a deadline, and a shutdown ends every wait.
"""

from __future__ import annotations

import logging
import random
import re
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field

from bookings import api
from bookings.problems import Problem
from bookings.server import http1
from bookings.server.hosts import HostPolicy
from bookings.server.request_log import log_request
from bookings.stores.model import Store

# How long a connection may be idle between two requests: longer than the 60 s after which nginx and
# most load balancers close it. If both sides closed at the same moment, a request could be lost.
IDLE_SECONDS = 75.0
# Deadlines for a whole head and a whole body, however often a byte arrives. Each is one or two
# packets, which take seconds on the worst networks.
HEAD_SECONDS = 10.0
BODY_SECONDS = 10.0
# Deadline for sending a response. It fits into the socket's buffer, except for a long list that
# the client does not read.
RESPONSE_SECONDS = 10.0
# How long to read on after the last response. Closing while the client still sends would reset
# the connection and could destroy the response before the client reads it.
LINGER_SECONDS = 1.0
# How long a connection that was accepted during a shutdown may take to start its request. The
# client has just connected, so its request is already here.
LATE_SECONDS = 0.1

# Request ids accepted from clients. The characters cannot imitate other parts of a log line.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RECEIVE_BYTES = 65536

_logger = logging.getLogger("bookings")


@dataclass
class Shared:
    """State that the connections of a server share."""

    store: Store
    hosts: HostPolicy
    shutting_down: bool = False
    # Sockets that wait for a request, and since when, oldest first.
    idle: dict[socket.socket, float] = field(default_factory=dict)


class ClientGone(Exception):
    """The connection ended between two requests, or without a complete one."""


class Connection:
    """Serves one client until the connection ends."""

    def __init__(self, connection: socket.socket, client: str, shared: Shared) -> None:
        self._socket = connection
        self._client = client
        self._shared = shared
        self._received = b""

    def serve(self) -> None:
        try:
            if self._socket.family in (socket.AF_INET, socket.AF_INET6):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            while self._serve_request():
                pass
        except (ClientGone, OSError):
            return
        self._linger()

    def _serve_request(self) -> bool:
        """Read, answer and log one request. Return whether the connection stays open."""
        self._wait_for_request()
        started = time.monotonic()
        self._method, self._target, self._request_id = "-", "-", f"{random.getrandbits(64):016x}"
        self._is_head, keep = False, False
        try:
            request, keep = self._read_request()
            response = self._respond(request)
        except Problem as problem:
            if problem.__cause__:
                # str(cause) names the file, repr(cause) does not.
                cause = f"{type(problem.__cause__).__name__}: {problem.__cause__}"
                _logger.error("%s %s (%s)", self._request_id, problem.detail, cause)
            response = api.problem_response(problem)
        keep = keep and not response.close and not self._shared.shutting_down
        head = http1.serialize_head(
            response.status, response.headers, len(response.body), self._request_id, keep
        )
        # One piece, so that head and body leave in one packet if they fit.
        message = head if self._is_head else head + response.body
        try:
            self._socket.settimeout(RESPONSE_SECONDS)
            self._socket.sendall(message)
        finally:  # Log the request even if the client has left.
            sent = (self._client, self._method, self._target)
            seconds = time.monotonic() - started
            log_request(*sent, response.status, len(message), seconds, self._request_id)
        return keep

    def _respond(self, request: api.Request) -> api.Response:
        try:
            return api.respond(request, self._shared.store)
        except Problem:
            raise
        except Exception:
            _logger.exception("%s failed", self._request_id)
            detail = f"The server's log has the cause under request {self._request_id}."
            return api.problem_response(Problem("internal-error", detail), self._request_id)

    def _wait_for_request(self) -> None:
        """Wait for the first byte of a request. A connection that waits here can be closed at any
        time without harm.
        """
        # Register as idle before reading `shutting_down`, so that a concurrent shutdown is never
        # missed.
        now = self._shared.idle[self._socket] = time.monotonic()
        deadline = now + (LATE_SECONDS if self._shared.shutting_down else IDLE_SECONDS)
        try:
            while True:
                self._received = http1.skip_empty_lines(self._received)
                if self._received not in (b"", b"\r"):
                    return
                self._receive(deadline)
        except socket.timeout:
            raise ClientGone from None
        finally:
            del self._shared.idle[self._socket]

    def _read_request(self) -> tuple[api.Request, bool]:
        """Return the request, and whether the client keeps the connection. Raise Problem."""
        try:
            head = self._read_head()
        except Problem:
            # The head never ended, but its first line may be complete.
            self._take_request_line(self._received.partition(b"\r\n")[0].decode("utf-8", "replace"))
            raise
        first_line, *lines = head.decode("utf-8", "surrogateescape").split("\r\n")
        request_line = self._take_request_line(first_line)
        if not request_line:
            raise Problem("malformed-request", http1.explain_request_line(first_line))
        method, target, version = request_line
        headers = http1.parse_headers(lines)
        ids = headers.get("x-request-id", [])
        if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]):
            self._request_id = ids[0]
        http1.verify_limits(version, len(lines))
        host = http1.host(headers, version)
        if host is not None and not self._shared.hosts.accepts(host):
            detail = "Send localhost or the server's address, or allow this name: --allowed-hosts."
            raise Problem("unknown-host", detail)
        length = http1.body_length(headers, version)
        awaits_continue = http1.expects_continue(headers) and version > (1, 0)
        if awaits_continue and (length is None or len(self._received) < length):
            self._socket.sendall(http1.CONTINUE)
        body = self._read_body(length)
        request = api.Request(method, target, headers, body)
        return request, http1.keeps_connection(method, headers, version)

    def _take_request_line(self, line: str) -> http1.RequestLine | None:
        """Parse a request line and keep its method and target for the response and the log."""
        # A response to HEAD has no body, even if the rest of the line is malformed.
        self._is_head = line.startswith("HEAD ")
        request_line = http1.parse_request_line(line)
        if request_line:
            self._method, self._target = request_line.method, request_line.target
        return request_line

    def _read_head(self) -> bytes:
        deadline, searched = time.monotonic() + HEAD_SECONDS, 0
        while True:
            end = http1.find_head_end(self._received, searched)
            if end >= 0:
                head, self._received = self._received[:end], self._received[end + 4 :]
                return head
            searched = max(0, len(self._received) - 3)
            self._receive_or_reject(deadline, "head")

    def _read_body(self, length: int | None) -> bytes:
        """Return the body. It is chunked if `length` is None."""
        deadline = time.monotonic() + BODY_SECONDS
        if length is None:
            chunked = http1.ChunkedBody()
            while True:
                self._received, has_ended = chunked.decode(self._received)
                if has_ended:
                    return bytes(chunked.content)
                self._receive_or_reject(deadline, "body")
        while len(self._received) < length:
            self._receive_or_reject(deadline, "body")
        body, self._received = self._received[:length], self._received[length:]
        return body

    def _receive_or_reject(self, deadline: float, part: str) -> None:
        """Receive more bytes of a request that has started. Raise Problem if none arrive."""
        try:
            self._receive(deadline)
        except socket.timeout:
            detail = f"The {part} did not arrive in time; send the request at once."
            raise Problem("too-slow", detail) from None
        except ClientGone:
            if not self._shared.shutting_down:
                raise
            detail = "The request did not arrive completely. Nothing was changed; send it again."
            raise Problem("shutting-down", detail) from None

    def _receive(self, deadline: float) -> None:
        """Receive more bytes. Raise socket.timeout at the deadline, and ClientGone at the end of
        the stream, which is also how a shutdown ends a wait.
        """
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise socket.timeout
        self._socket.settimeout(remaining)
        received = self._socket.recv(_RECEIVE_BYTES)
        if not received:
            raise ClientGone
        self._received += received

    def _linger(self) -> None:
        """Announce the end, then read what the client still sends; see LINGER_SECONDS."""
        deadline = time.monotonic() + LINGER_SECONDS
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            while time.monotonic() < deadline:
                self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
                if not self._socket.recv(_RECEIVE_BYTES):
                    return
