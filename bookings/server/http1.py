"""HTTP/1.1 grammar (RFC 9112) and serialization, without I/O.

The grammar is stricter than the RFC requires: a line ends in CRLF, and a request whose end is
uncertain is rejected, so that no byte of a body is ever parsed as a request. `http.server` accepts
HTTP/0.9, bare line feeds, folded and repeated headers, and signs in a length; its parser is not
used. A function raises Problem unless its docstring says otherwise.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import NamedTuple

from bookings.problems import Problem

# Longest request line in bytes. RFC 9112, section 3, asks for at least 8,000.
MAX_REQUEST_LINE = 8192
# Limits of a header section, without the request line: fields, and bytes of all of them. Apache
# allows 100 fields. The bytes leave room for the cookies and traces that proxies add.
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32768
# Longest body in bytes. A booking takes at most 7 KiB, with every character escaped.
MAX_BODY = 16384
# Longest line of the coding `chunked` in bytes, and most bytes that the coding may add to a body.
# A body in chunks of one byte takes five more for each.
MAX_CHUNK_LINE = 1024
MAX_CHUNK_OVERHEAD = 6 * MAX_BODY

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST_LINE = re.compile(rf"({_TOKEN}) ([!-~]+) HTTP/([0-9])\.([0-9])")
_UNENCODED = re.compile(rf"{_TOKEN} (?:/|[Hh][Tt][Tt][Pp])[!-~]*[^!-~].* HTTP/[0-9]\.[0-9]")
_HEADER = re.compile(rf"({_TOKEN}):([^\x00-\x08\x0a-\x1f\x7f]*)")
_DIGITS = re.compile(r"[0-9]+")
# ASCII, because the lower case of the Kelvin sign is k.
_CHUNKED = re.compile("chunked", re.ASCII | re.IGNORECASE)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_EMPTY_LINES = re.compile(rb"^(?:\r\n)+")
# A size and extensions, which are ignored. 16 digits after zeros are more than any size needs.
_CHUNK_LINE = re.compile(rb"0*([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")

# No cache may store a response: its key would not include the tenant, which may be in a header.
# No browser may guess a media type.
_FIXED_HEADERS = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"

Headers = Mapping[str, Sequence[str]]


class RequestLine(NamedTuple):
    """The parts of a request line. `version` is (major, minor)."""

    method: str
    target: str
    version: tuple[int, int]


def skip_empty_lines(received: bytes) -> bytes:
    """Remove empty lines before a request (RFC 9112, section 2.2)."""
    return _EMPTY_LINES.sub(b"", received)


def find_head_end(received: bytes, searched: int) -> int:
    """Return the offset of the empty line that ends the head, or -1 if it has not arrived.

    The first `searched` bytes were searched before.
    """
    end = received.find(b"\r\n\r\n", searched)
    # Three bytes at the end may be the start of the empty line and do not count as headers.
    size = len(received) - 3 if end < 0 else end
    line_end = received.find(b"\r\n", 0, MAX_REQUEST_LINE + 2)
    if line_end < 0 and len(received) > MAX_REQUEST_LINE + 1:
        detail = f"Send a request line of at most {MAX_REQUEST_LINE} bytes."
        raise Problem("target-too-long", detail)
    if size > line_end + 2 + MAX_HEADER_BYTES:
        raise Problem("headers-too-large", f"Send at most {MAX_HEADER_BYTES} bytes of headers.")
    # TLS starts with a control character. Its client would wait for the response.
    if end < 0 and received < b"!":
        detail = "The request does not start with a method. Use http://, not https://."
        raise Problem("malformed-request", detail)
    if _BARE_LINE_FEED.search(received, searched, len(received) if end < 0 else end):
        raise Problem("malformed-request", "A line ends in a bare line feed; send CRLF.")
    return end


def parse_request_line(line: str) -> RequestLine | None:
    """Parse a request line; return None if it is malformed."""
    match = _REQUEST_LINE.fullmatch(line)
    return RequestLine(match[1], match[2], (int(match[3]), int(match[4]))) if match else None


def explain_request_line(line: str) -> str:
    """Say what is wrong with a line that `parse_request_line` rejects, and what to send."""
    if _UNENCODED.fullmatch(line):
        return "The target has a space or a character that is not ASCII; percent-encode it."
    return "The request line is not of the form METHOD /path HTTP/1.1."


def parse_headers(lines: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each header under its lower-case name."""
    headers: dict[str, list[str]] = {}
    for line in lines:
        field = _HEADER.fullmatch(line)
        if not field:
            detail = "A header is not of the form Name: value on one line."
            raise Problem("malformed-request", detail)
        headers.setdefault(field[1].lower(), []).append(field[2].strip(" \t"))
    return headers


def verify_limits(version: tuple[int, int], header_count: int) -> None:
    """Reject another major version, and too many headers."""
    if version[0] != 1:
        raise Problem("http-version", "Send the request as HTTP/1.1.")
    if header_count > MAX_HEADERS:
        raise Problem("headers-too-large", f"Send at most {MAX_HEADERS} header fields.")


def host(headers: Headers, version: tuple[int, int]) -> str | None:
    """Return the value of Host, or None if an HTTP/1.0 request has none."""
    hosts = headers.get("host", [])
    if len(hosts) > 1 or (not hosts and version > (1, 0)) or not all(map(_HOST.fullmatch, hosts)):
        raise Problem(
            "malformed-request", "Send exactly one Host header, like Host: localhost:3000."
        )
    return hosts[0] if hosts else None


def body_length(headers: Headers, version: tuple[int, int]) -> int | None:
    """Return the length of the body in bytes, 0 without a body (RFC 9112, section 6.3), or None if
    the body is chunked.
    """
    if "transfer-encoding" in headers:
        if "content-length" in headers or version < (1, 1):
            detail = "Send Content-Length, or Transfer-Encoding: chunked in HTTP/1.1, but not both."
            raise Problem("malformed-request", detail)
        codings = headers["transfer-encoding"]
        if len(codings) > 1 or not _CHUNKED.fullmatch(codings[0]):
            detail = "The only supported transfer coding is chunked; send it, or Content-Length."
            raise Problem("transfer-encoding", detail)
        return None
    lengths = headers.get("content-length", ["0"])
    if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
        detail = "Send exactly one Content-Length, of decimal digits only."
        raise Problem("malformed-request", detail)
    digits = lengths[0].lstrip("0") or "0"
    if len(digits) > len(str(MAX_BODY)) or int(digits) > MAX_BODY:
        raise Problem("body-too-large", f"Send a body of at most {MAX_BODY} bytes.")
    return int(digits)


class ChunkedBody:
    """Decodes a body in the coding `chunked` (RFC 9112, section 7.1) while it arrives.

    Extensions and trailers are ignored: no value of a booking comes in them.
    """

    def __init__(self) -> None:
        self.content = bytearray()
        self._overhead = 0
        self._in_trailers = False

    def decode(self, received: bytes) -> tuple[bytes, bool]:
        """Decode what has arrived completely. Return the bytes after it, and whether the body has
        ended.
        """
        start = 0
        while True:
            data = received.find(b"\n", start, start + MAX_CHUNK_LINE) + 1
            line = received[start : data or start + MAX_CHUNK_LINE]
            if self._overhead + len(line) > MAX_CHUNK_OVERHEAD or len(line) == MAX_CHUNK_LINE:
                raise Problem("body-too-large", "Send fewer chunks, extensions and trailers.")
            if not data:
                if line and not self._in_trailers:
                    # Reject what no byte can make a size: the client may wait for the response.
                    self._size(line.removesuffix(b"\r") + b";\r\n")
                return received[start:], False
            if self._in_trailers and line == b"\r\n":
                return received[data:], True
            end = data
            if self._in_trailers:
                parse_headers([line.decode("utf-8", "surrogateescape").removesuffix("\r\n")])
            elif size := self._size(line):
                end = data + size + 2
                line_end = received[data + size : end]
                if not b"\r\n".startswith(line_end):
                    detail = "A chunk does not end where its size says; count its bytes."
                    raise Problem("malformed-request", detail)
                if line_end != b"\r\n":
                    return received[start:], False
                self.content += received[data : data + size]
            else:
                self._in_trailers = True
            self._overhead += len(line) + 2
            start = end

    def _size(self, line: bytes) -> int:
        """Return the size in the first line of a chunk."""
        match = _CHUNK_LINE.fullmatch(line)
        if not match:
            detail = (
                "A chunk does not start with its hexadecimal size; send chunks or Content-Length."
            )
            raise Problem("malformed-request", detail)
        size = int(match[1], 16)
        if len(self.content) + size > MAX_BODY:
            raise Problem("body-too-large", f"Send a body of at most {MAX_BODY} bytes.")
        return size


def expects_continue(headers: Headers) -> bool:
    """Return whether the client waits for 100 Continue before it sends the body."""
    expectations = headers.get("expect", ())
    if any(value.lower() != "100-continue" for value in expectations):
        detail = "The only supported expectation is 100-continue; remove the Expect header."
        raise Problem("expectation-failed", detail)
    return bool(expectations)


def keeps_connection(method: str, headers: Headers, version: tuple[int, int]) -> bool:
    """Return whether another request may follow on the connection."""
    if method == "CONNECT":  # The bytes that follow are meant for a tunnel.
        return False
    tokens = ",".join(headers.get("connection", ())).lower().split(",")
    return version > (1, 0) and not any(token.strip() == "close" for token in tokens)


def serialize_head(
    status: int, headers: Iterable[tuple[str, str]], length: int, request_id: str, keep: bool
) -> bytes:
    """Return the head of a response. `keep` says whether the connection stays open."""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nDate: {_date(int(time.time()))}\r\n"
        f"{_FIXED_HEADERS}X-Request-ID: {request_id}\r\n"
    )
    head += "".join(f"{name}: {value}\r\n" for name, value in headers)
    if status != HTTPStatus.NO_CONTENT:
        head += f"Content-Length: {length}\r\n"
    if not keep:
        head += "Connection: close\r\n"
    return f"{head}\r\n".encode("ascii")


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
