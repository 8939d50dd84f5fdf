"""Sockets, framing, limits, deadlines, draining: bytes to a request, a response to bytes.

The rules, from RFC 9112 and stricter where it allows: lines end in CRLF; a request whose end is not certain is refused
and its connection closed, so that no byte of a body is ever read as a request; headers and body of an answer leave in
one write; every wait has a deadline; a thread serves one connection, and their number is bounded.

`http.server` gives the threads and the accept loop. Its own parser is not used: it takes HTTP/0.9, bare line feeds,
folded and doubled headers, and signs in a length. This module knows nothing of bookings and nothing of SQL.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import ipaddress
import logging
import os
import random
import re
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Collection, Iterable
from email.utils import formatdate
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from bookings import api
from bookings.problems import Problem
from bookings.store import Store

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

# RFC 9112, section 3, asks for at least 8000; the query of a list needs a few hundred.
MAX_LINE = 8192
# What popular servers take (Apache: 100 fields), with room for the cookies and traces that a proxy adds. The bytes are
# those of all fields, without the request line.
MAX_HEADERS = 100
MAX_HEAD = 32768
# A booking is under 7 KiB, were each character an escape; the rest is for members that are ignored.
MAX_BODY = 16384
# Browsers and proxies keep a connection for a minute or two; whoever comes back later opens another at little cost.
IDLE_SECONDS = 60.0
# A head and a body arrive in one or two packets, seconds apart on the worst of networks. The deadline is for the whole
# of it, however often a byte comes.
HEAD_SECONDS = 10.0
BODY_SECONDS = 10.0
# An answer fits a socket's buffer, save for a long list to a client that does not read it.
ANSWER_SECONDS = 10.0
# Closing while the client still sends would reset the connection and destroy the answer before it is read.
LINGER_SECONDS = 1.0
# A connection that was in the backlog at a stop is a client's that has only just connected: what it has to say is there.
NEWCOMER_SECONDS = 0.1
# A request that arrives during a stop has this long for the rest of it: a packet that was lost twice is sent again
# within 3 s (RFC 6298).
ARRIVAL_SECONDS = 3.0
# After which it is answered within 5 s, however busy the database. Those who stop servers (Docker for one) kill them
# after 10 s.
DRAIN_SECONDS = 8.0
# A thread takes some 50 KiB of memory. Beyond the bound, the connection that has been idle for the longest is closed for
# a new one; where none is idle, new ones wait in the backlog.
MAX_CONNECTIONS = 1000
# One that has been idle for less may have a request on its way, of which a lost packet is sent again after 1 s (RFC 6298).
SETTLED_SECONDS = 1.0
# Its socket, and while it is answered the database, its WAL and the WAL once more for the sync. A thread without a
# descriptor left could not answer, so that where few are allowed the bound is lower.
DESCRIPTORS_PER_CONNECTION = 4
# Standard streams, the socket that listens, the workers' pipes, the store's own connection; twice what these were.
OTHER_DESCRIPTORS = 32
BACKLOG = 1024
# What a line of the log shows of a method and of a target, so that it stays under the 4096 bytes (PIPE_BUF on Linux) that
# a pipe takes in one piece: of a longer line, another worker's could tear off the rest, and that would begin a line in a
# client's words. No method is as long, and no target of a list, unless it has been made so.
MAX_LOGGED_METHOD = 50
MAX_LOGGED_TARGET = 3500

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([!-~]+) HTTP/([0-9])\.([0-9])")
_HEADER = re.compile(rf"({_TOKEN}):([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"[0-9]+")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_PORT = re.compile(r":[0-9]*\Z")
# What a web page of somebody else's cannot have as its own host, since no one can register it: an address, a name without
# a dot, and whatever ends in .localhost (RFC 6761).
_OWN_HOST = re.compile(r"\[.*|[0-9.]*|[^.]*|.*\.localhost")
# What is taken over as a request's id: nothing that could be mistaken for another part of a log line.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_EMPTY_LINES = re.compile(rb"^(?:\r\n)+")
# Without a length, only these are known to have no body (RFC 9110, section 9.3).
_BODILESS = ("GET", "HEAD", "OPTIONS")

# No cache may keep an answer, since the tenant in a header is no part of its key; no browser may guess a media type.
_FIXED_HEADERS = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"

_logger = logging.getLogger("bookings")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises OSError, or UnicodeError for a host that cannot be a name."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name != "nt":  # where the option would let a second server take the port of the first
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
        listener.bind(address)
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    # Several processes wait for the same connection, and all but one find that it is gone.
    listener.setblocking(False)
    return listener


class Closed(Exception):
    """The connection is at its end, without an answer: the client left, or had nothing more to ask."""


class BookingServer(ThreadingHTTPServer):
    """Accepts connections and gives each a thread, until `shutdown`; then `server_close` ends what is idle and takes what
    has come, and `drain` lets those in flight finish.
    """

    def __init__(self, listener: socket.socket, store: Store, allowed_hosts: Collection[str] = ()) -> None:
        super().__init__(listener.getsockname(), _Connection, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.store = store
        self._allowed_hosts = allowed_hosts
        self._any_host = not allowed_hosts and not ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        self.stopping = False
        # Since when each is, in this order.
        self.idle: dict[socket.socket, float] = {}
        self._room = threading.Semaphore(_places())
        self._connections: set[socket.socket] = set()
        self._ended = threading.Condition()

    def get_request(self) -> tuple[socket.socket, Any]:
        # An OSError tells the accept loop that there is no connection yet; it asks again.
        if not self._room.acquire(blocking=False):
            settled = time.monotonic() - SETTLED_SECONDS
            _read_no_more(each for each in list(self.idle)[:1] if self.idle.get(each, settled) < settled)
            if not self._room.acquire(timeout=0.5):
                raise OSError("as many connections as there may be")
        try:
            return super().get_request()
        except OSError as error:
            self._room.release()
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                time.sleep(0.1)  # the connection stays in the backlog, so that the loop would spin
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._ended:
            self._connections.add(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._end_connection(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end_connection(request)

    def knows(self, host: str) -> bool:
        """Whether a Host may mean this server: a name that a stranger has pointed here may not.

        That is DNS rebinding: a browser takes such a name's page and this server for one site. Where no names are given,
        a server that only this machine can reach has none, and any other server, every one.
        """
        name = _PORT.sub("", host.lower())
        return self._any_host or bool(_OWN_HOST.fullmatch(name)) or name in self._allowed_hosts

    def _end_connection(self, request: Any) -> None:
        self._room.release()
        with self._ended:
            self._connections.discard(request)
            self._ended.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        _logger.exception("the connection of %s failed", client_address[0])

    def server_close(self) -> None:
        """After `shutdown`: end idle connections now, and take those in the backlog, which closing it would reset."""
        self.stopping = True
        _read_no_more(self.idle)
        # An OSError when there are no more, a RuntimeError when there can be no more threads.
        with contextlib.suppress(OSError, RuntimeError):
            for _ in range(BACKLOG):
                self.process_request(*self.get_request())
        super().server_close()

    def drain(self) -> bool:
        """After `server_close`: wait for requests in flight; False if DRAIN_SECONDS were not enough."""
        deadline = time.monotonic() + DRAIN_SECONDS
        with self._ended:
            if not self._ended.wait_for(lambda: not self._connections, ARRIVAL_SECONDS):
                _read_no_more(self._connections)
            return self._ended.wait_for(lambda: not self._connections, deadline - time.monotonic())


def _read_no_more(connections: Iterable[socket.socket]) -> None:
    """What waits for a client's bytes ends, save for what has arrived already; no answer is touched."""
    for connection in list(connections):
        with contextlib.suppress(OSError):  # its client has just left
            connection.shutdown(socket.SHUT_RD)


def _places() -> int:
    """How many connections this process can have, after asking for as many descriptors as it may ask for."""
    if not resource:
        return MAX_CONNECTIONS
    allowed, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems have a lower bound than the one they tell.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        allowed = hard
    if allowed == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, (allowed - OTHER_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION))


class _Connection(socketserver.BaseRequestHandler):
    """One client's connection: its requests, one after the other."""

    server: BookingServer
    request: socket.socket

    def setup(self) -> None:
        self._received = b""

    def handle(self) -> None:
        try:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            while self._serve_one():
                pass
        except (Closed, OSError):
            pass
        else:
            self._linger()

    def _serve_one(self) -> bool:
        """Read a request, answer it and log it; True if the connection goes on."""
        self._wait_for_request()
        started = time.monotonic()
        self._method, self._target, self._request_id, keep = "-", "-", f"{random.getrandbits(64):016x}", False
        self._head = b""
        try:
            request, keep = self._read_request()
            response = self._answer(request)
        except Problem as problem:
            cause = problem.__cause__
            if cause:  # as str, which names the file, where repr does not
                _logger.error("%s %s (%s: %s)", self._request_id, problem.detail, type(cause).__name__, cause)
            response = api.refusal(problem)
            if not self._head:  # it had no end, but may have had a first line
                self._take_line(self._received.partition(b"\r\n")[0].decode("utf-8", "replace"))
        keep = keep and not self.server.stopping
        # The method is known even where the rest could not be read, be it for its form or for its length.
        with_body = not (self._head or self._received).startswith(b"HEAD ")
        answer = _to_bytes(response, self._request_id, with_body, keep)
        try:
            self.request.settimeout(ANSWER_SECONDS)
            self.request.sendall(answer)
        finally:  # whether or not its client is still there, the request was answered
            self._log(response.status, len(answer), time.monotonic() - started)
        return keep

    def _log(self, status: int, size: int, seconds: float) -> None:
        """The request's line, as `logging` would word it, but past its records and locks.

        They took half of the server's own time for a request: with 16 clients, /live went from 17,000/s to 26,000/s.
        """
        if not _logger.isEnabledFor(logging.INFO) or not sys.stderr:
            return
        now = time.time()
        line = (
            f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03d}Z "
            f"{self.client_address[0]} {_cut(self._method, MAX_LOGGED_METHOD)} {_cut(self._target, MAX_LOGGED_TARGET)} "
            f"{status} {size} {seconds * 1000:.1f} {self._request_id}\n"
        )
        with contextlib.suppress(OSError, ValueError):  # whoever read the log may have left
            # Past its buffer, too, which may hand on the lines of two threads as one.
            os.write(sys.stderr.fileno(), line.encode("ascii"))

    def _answer(self, request: api.Request) -> api.Response:
        try:
            return api.answer(request, self.server.store)
        except Problem:
            raise
        except Exception:
            _logger.exception("%s failed", self._request_id)
            detail = f"This is a fault of the program; its log has more under request {self._request_id}."
            return api.refusal(Problem("internal-error", detail), self._request_id)

    def _read_request(self) -> tuple[api.Request, bool]:
        """The next request, and whether the connection goes on after it; Problem for one that cannot be read."""
        self._head = self._read_head()
        request_line, *lines = self._head.decode("utf-8", "surrogateescape").split("\r\n")
        match = self._take_line(request_line)
        if not match:
            raise Problem("malformed-request", "The request line is not of the form METHOD /path HTTP/1.1.")
        headers = _parse_headers(lines)
        ids = headers.get("x-request-id", [])
        if len(ids) == 1 and _REQUEST_ID.fullmatch(ids[0]):
            self._request_id = ids[0]
        if match[3] != "1":
            raise Problem("http-version", "Send the request as HTTP/1.1.")
        if len(lines) > MAX_HEADERS:
            raise Problem("headers-too-large", f"Send at most {MAX_HEADERS} header fields.")
        version = int(match[4])
        _check_host(headers, version)
        for host in headers.get("host", ()):
            if not self.server.knows(host):
                raise Problem(
                    "unknown-host", "Send a Host by which this server is known: localhost, or its address."
                )
        length = _body_length(self._method, headers)
        keep = (
            version > 0 and (length is not None or self._method in _BODILESS) and not _asks_to_close(headers)
        )
        if length and version > 0 and headers.get("expect") and len(self._received) < length:
            self.request.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = self._read_body(length or 0)
        return api.Request(self._method, self._target, headers, body), keep

    def _take_line(self, line: str) -> re.Match[str] | None:
        """The parts of a request line, of which the log has two; None where it is none."""
        match = _REQUEST_LINE.fullmatch(line)
        if match:
            self._method, self._target = match[1], match[2]
        return match

    def _wait_for_request(self) -> None:
        """Until its first byte; a connection that waits here may be closed at any time without harm."""
        # In this order, so that a stop finds it among the idle ones, or it finds the stop.
        now = self.server.idle[self.request] = time.monotonic()
        deadline = now + (NEWCOMER_SECONDS if self.server.stopping else IDLE_SECONDS)
        try:
            while True:
                # An empty line before a request is to be ignored (RFC 9112, section 2.2).
                self._received = _EMPTY_LINES.sub(b"", self._received)
                if self._received not in (b"", b"\r"):
                    return
                self._receive(deadline)
        except socket.timeout:  # noqa: UP041 - before Python 3.10 it is no TimeoutError
            raise Closed from None
        finally:
            del self.server.idle[self.request]

    def _read_head(self) -> bytes:
        deadline, searched = time.monotonic() + HEAD_SECONDS, 0
        while True:
            end = self._received.find(b"\r\n\r\n", searched)
            # The end may have arrived but for its last byte, so that three bytes may be no part of the head.
            size = len(self._received) - 3 if end < 0 else end
            line_end = self._received.find(b"\r\n", 0, MAX_LINE + 2)
            if line_end < 0 and len(self._received) > MAX_LINE + 1:
                raise Problem("target-too-long", f"Send a request line of at most {MAX_LINE} bytes.")
            if size > line_end + 2 + MAX_HEAD:
                raise Problem("headers-too-large", f"Send at most {MAX_HEAD} bytes of headers.")
            if _BARE_LINE_FEED.search(self._received, searched, len(self._received) if end < 0 else end):
                raise Problem("malformed-request", "A line ends in a bare line feed; send CRLF.")
            if end >= 0:
                head, self._received = self._received[:end], self._received[end + 4 :]
                return head
            searched = max(0, len(self._received) - 3)
            self._receive_in_time(deadline, "The request's head")

    def _read_body(self, length: int) -> bytes:
        deadline = time.monotonic() + BODY_SECONDS
        while len(self._received) < length:
            self._receive_in_time(deadline, "The request's body")
        body, self._received = self._received[:length], self._received[length:]
        return body

    def _receive_in_time(self, deadline: float, what: str) -> None:
        try:
            self._receive(deadline)
        except socket.timeout:  # noqa: UP041 - before Python 3.10 it is no TimeoutError
            detail = f"{what} did not arrive in time; send it at once, on a new connection."
            raise Problem("too-slow", detail) from None
        except Closed:
            if not self.server.stopping:
                raise
            detail = "The server is stopping, and the rest of the request had not arrived; send it again."
            raise Problem("shutting-down", detail) from None

    def _receive(self, deadline: float) -> None:
        """Some more bytes; raises socket.timeout at the deadline, and Closed at the end, which a stop brings about."""
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise socket.timeout  # noqa: UP041 - before Python 3.10 it is no TimeoutError
        self.request.settimeout(remaining)
        received = self.request.recv(65536)
        if not received:
            raise Closed
        self._received += received

    def _linger(self) -> None:
        """Tell the client that no more comes, and let it finish; see LINGER_SECONDS."""
        deadline = time.monotonic() + LINGER_SECONDS
        try:
            self.request.shutdown(socket.SHUT_WR)
            while True:
                self.request.settimeout(max(deadline - time.monotonic(), 0.001))
                if not self.request.recv(65536) or time.monotonic() > deadline:
                    return
        except OSError:
            pass  # the client has left


def _parse_headers(lines: list[str]) -> dict[str, list[str]]:
    """The values of each header, by its name in lower case; Problem for what is not well-formed."""
    headers: dict[str, list[str]] = {}
    for line in lines:
        field = _HEADER.fullmatch(line)
        if not field:
            raise Problem("malformed-request", "A header is not of the form Name: value on one line.")
        headers.setdefault(field[1].lower(), []).append(field[2].strip(" \t"))
    return headers


def _check_host(headers: dict[str, list[str]], version: int) -> None:
    hosts = headers.get("host", [])
    if len(hosts) > 1 or (not hosts and version > 0) or not all(map(_HOST.fullmatch, hosts)):
        raise Problem("malformed-request", "Send exactly one Host header, with a host and a port.")


def _body_length(method: str, headers: dict[str, list[str]]) -> int | None:
    """The body's length, None where none is given; Problem where it is not certain or too much."""
    if "transfer-encoding" in headers:
        raise Problem("transfer-encoding", "Send the body as it is, with its Content-Length.")
    if any(value.lower() != "100-continue" for value in headers.get("expect", ())):
        raise Problem("expectation-failed", "The only expectation that can be met is 100-continue.")
    lengths = headers.get("content-length")
    if lengths is None:
        if method == "POST":
            raise Problem("length-required", "Send a Content-Length, the number of bytes in the body.")
        return None
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Problem("malformed-request", "Send exactly one Content-Length, of decimal digits alone.")
    digits = lengths[0].lstrip("0") or "0"
    if len(digits) > len(str(MAX_BODY)) or int(digits) > MAX_BODY:
        raise Problem("body-too-large", f"Send at most {MAX_BODY} bytes.")
    return int(digits)


def _asks_to_close(headers: dict[str, list[str]]) -> bool:
    tokens = ",".join(headers.get("connection", ())).lower().split(",")
    return any(token.strip() == "close" for token in tokens)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)


def _to_bytes(response: api.Response, request_id: str, with_body: bool, keep: bool) -> bytes:
    head = f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\nDate: {_date(int(time.time()))}\r\n"
    head += f"{_FIXED_HEADERS}X-Request-ID: {request_id}\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in response.headers)
    if response.status != HTTPStatus.NO_CONTENT:
        head += f"Content-Length: {len(response.body)}\r\n"
    if not keep:
        head += "Connection: close\r\n"
    return head.encode("ascii") + b"\r\n" + (response.body if with_body else b"")
