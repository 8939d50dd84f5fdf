"""What stands around the bookings: is it up, what a problem is, what the log says, and the document.

The pages beside /bookings; the request's id on every answer; the log of requests, which no client can forge;
and openapi.json, held against the program both ways: what is documented is served, and what is served is
documented. A property-based tester that reads it sends one key with many tenants, and must know that 422 answers that:
for schemathesis, 422 goes among the expected-statuses of positive_data_acceptance.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import sqlite3
import struct
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bookings import api, fields
from bookings.problems import KINDS
from bookings.server import MAX_LINE
from tests.helpers.clients import (
    FRAMING_ERRORS,
    badly_framed,
    closing_post,
    closing_request,
    first_response,
)
from tests.helpers.openapi import (
    ANNOTATIONS,
    DOCUMENT,
    KEYWORDS,
    OPERATIONS,
    assert_documented,
    each_operation,
    fits,
    resolved,
    schema_errors,
)
from tests.helpers.servers import ROOT, SOON, Server, assert_problem, at_once, patched
from tests.helpers.storage import FAULT_TRIGGER
from tests.helpers.values import INSTANTS, REJECTED_TEXTS, SLOT, TEXTS, fresh_name

ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


# --- The pages beside the bookings


def test_the_index_leads_to_all_there_is(shared_server: Server) -> None:
    index = shared_server.call("GET", "/")
    assert (index.status, index.headers["Content-Type"]) == (200, "application/json")
    links = index.json["links"]
    for target in links.values():
        assert shared_server.call("GET", target, X_Tenant_ID="acme").status == 200
    untemplated = {path for path in DOCUMENT["paths"] if "{" not in path}
    assert sorted(links.values()) == sorted(untemplated - {"/"})


@pytest.mark.parametrize(
    "target", ["/", "/live", "/ready", "/openapi.json", "/problems", "/problems/slot-taken"]
)
def test_a_page_is_read_alike_by_all_and_takes_no_parameters(shared_server: Server, target: str) -> None:
    before = shared_server.rows()
    got, head = (shared_server.call(method, target, X_Tenant_ID="a" * 256) for method in ("GET", "HEAD"))
    assert (got.status, head.status, head.body) == (200, 200, b"")
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == got.headers[name]
    for query, field in (("?x=1", "x"), ("?tenant_id=acme", "tenant_id"), ("?%zz", "query")):
        assert_problem(shared_server.call("GET", target + query), 400, "invalid-fields", field)
    assert_problem(shared_server.call("POST", target, {}), 405, "method-not-allowed")
    assert_problem(shared_server.call("GET", f"{target}/x".replace("//", "/")), 404, "no-such-path")
    assert shared_server.rows() == before


def _set_aside(database: Path) -> Path:
    """Move the database away, all of it in one file; where it went."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    return database.rename(database.with_name("aside.db"))


posix_only = pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody move a file that is open")


@posix_only
@pytest.mark.parametrize(
    "instead",
    [None, b"", b"no database\n" * 1000, b"SQLite format 3\0" * 256],
    ids=["none", "empty", "text", "malformed"],
)
def test_live_and_ready_while_the_database_cannot_be_read(server: Server, instead: bytes | None) -> None:
    assert server.book().status == 201
    aside = _set_aside(server.database)
    if instead is not None:
        server.database.write_bytes(instead)
    for _ in range(2):
        live, ready = server.call("GET", "/live"), server.call("GET", "/ready")
        assert (live.status, live.json) == (200, {"status": "live"})
        assert_problem(ready, 503, "database-unavailable")
        assert ready.headers["Retry-After"].isdigit()
        assert server.call("HEAD", "/ready").status == 503
    for target in ("/", "/openapi.json", "/problems"):
        assert server.call("GET", target).status == 200
    if instead is None:
        aside.rename(server.database)
        ready = server.call("GET", "/ready")
        assert (ready.status, ready.json) == (200, {"status": "ready"})
        assert server.rows() == [("acme", SLOT, "k1")]


def test_ready_needs_the_table(server: Server) -> None:
    server.execute("ALTER TABLE bookings RENAME TO gone")
    assert_problem(server.call("GET", "/ready"), 503, "database-unavailable")
    assert server.call("GET", "/live").status == 200
    server.execute("ALTER TABLE gone RENAME TO bookings")
    assert server.call("GET", "/ready").status == 200


@pytest.mark.parametrize("name", KINDS)
def test_a_problem_explains_itself(shared_server: Server, name: str) -> None:
    explained = shared_server.call("GET", f"/problems/{name}")
    assert (explained.status, explained.headers["Content-Type"]) == (200, "application/json")
    kind = KINDS[name]
    assert explained.json == {
        "type": f"/problems/{name}",
        "status": kind.status,
        "title": kind.title,
        "why": kind.why,
        "what_to_do": kind.what_to_do,
    }
    assert all(explained.json.values())


def test_the_list_of_problems(shared_server: Server) -> None:
    each = [shared_server.call("GET", f"/problems/{name}").json for name in KINDS]
    assert shared_server.call("GET", "/problems").json == each
    for field in ("type", "title", "why", "what_to_do"):
        assert len({problem[field] for problem in each}) == len(KINDS)


@pytest.mark.parametrize(
    "name", ["none", "", "slot-taken/", "Slot-Taken", "slot-take", "slot%2Dtaken", "409"]
)
def test_a_problem_that_there_is_not(shared_server: Server, name: str) -> None:
    assert_problem(shared_server.call("GET", f"/problems/{name}"), 404, "no-such-path")


def test_the_type_of_a_refusal_leads_to_its_explanation(shared_server: Server) -> None:
    name = fresh_name()
    assert shared_server.book(name, SLOT, name).status == 201
    refusals = [
        shared_server.book(name, SLOT, f"{name}-2"),
        shared_server.book(f"{name}-2", SLOT, name),
        shared_server.book(name, "now", name),
        shared_server.call("POST", "/bookings", b"{"),
        shared_server.call("POST", "/bookings", b"{}", Content_Type="text/plain"),
        shared_server.call("GET", "/nowhere"),
        shared_server.call("GET", "/bookings/9999", X_Tenant_ID=name),
        shared_server.call("DELETE", "/bookings"),
        first_response(shared_server.raw(closing_request(b"POST /bookings HTTP/1.1"))),
        *(first_response(shared_server.raw(badly_framed(status, "GET", "/"))) for status in FRAMING_ERRORS),
    ]
    assert len({refusal.json["type"] for refusal in refusals}) == len(refusals)
    for refusal in refusals:
        explained = shared_server.call("GET", refusal.json["type"])
        assert explained.status == 200
        for member in ("type", "title", "status"):
            assert explained.json[member] == refusal.json[member]
    assert [row for row in shared_server.rows() if name in row[0]] == [(name, SLOT, name)]


# --- The request's id

# The values of X-Request-ID in a request, and what is taken over from them.
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


@pytest.mark.parametrize(("sent", "taken"), IDS, ids=str)
@pytest.mark.parametrize("target", [b"/live", b"/nowhere"])
def test_a_request_id(shared_server: Server, target: bytes, sent: list[bytes], taken: str | None) -> None:
    headers = [b"x-Request-ID:" + value for value in sent]
    found = []
    for _ in range(2):
        answer = first_response(shared_server.raw(closing_request(b"GET %s HTTP/1.1" % target, *headers)))
        assert answer.status == (200 if target == b"/live" else 404)
        found += answer.headers.get_all("X-Request-ID") or []
    assert len(found) == 2 and all(map(ID.fullmatch, found))
    if taken:
        assert found == [taken, taken]
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
def test_what_cannot_be_read_has_an_id_too(shared_server: Server, sent: bytes) -> None:
    answer = first_response(shared_server.raw(sent))
    (found,) = answer.headers.get_all("X-Request-ID") or []
    assert answer.status >= 400 and ID.fullmatch(found)
    assert found == "mine" or len(found) >= 8


def test_ids_are_never_given_twice(shared_server: Server) -> None:
    found = [shared_server.call("GET", "/live").headers["X-Request-ID"] for _ in range(200)]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("own", [None, "mine"])
def test_the_id_of_a_fault_is_in_the_answer_and_in_the_log(server: Server, own: str | None) -> None:
    """The log of a server that is --quiet, too."""
    server.execute(FAULT_TRIGGER)
    assert server.call("GET", "/live").status == 200
    headers = {"X_Request_ID": own} if own else {}
    answer = server.book(**headers)
    found = answer.headers["X-Request-ID"]
    assert (answer.status, answer.json["request_id"]) == (500, found)
    assert found in answer.json["detail"]
    assert own in (None, found)
    (line,) = [line for line in server.log.read_text().splitlines() if found in line]
    assert STARTS.match(line)
    assert "closed" in server.log.read_text()
    assert server.rows() == []


@posix_only
def test_the_cause_of_an_unreachable_database_is_in_the_log(server: Server) -> None:
    _set_aside(server.database)
    answer = server.call("GET", "/ready", X_Request_ID="mine")
    assert_problem(answer, 503, "database-unavailable")
    (line,) = server.log.read_text().splitlines()
    assert STARTS.match(line)
    assert "mine" in line and "unable to open database file" in line


# --- The log of requests

STARTS = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z ")
LINE = re.compile(
    r"(?P<time>[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3})Z "
    r"(?P<client>127\.0\.0\.1) (?P<method>[!-~]+) (?P<target>[!-~]+) (?P<status>[2-5][0-9]{2}) "
    r"(?P<bytes>[0-9]+) (?P<ms>[0-9]+\.[0-9]) (?P<id>[A-Za-z0-9._-]{1,64})"
)


@pytest.fixture
def loud(tmp_path: Path) -> Iterator[Server]:
    """A server without the --quiet that the harness gives each."""
    program = patched(tmp_path, "sys.argv.remove('--quiet')")
    with contextlib.closing(Server(tmp_path, program=program)) as one:
        yield one


def _logged(loud: Server, count: int) -> list[re.Match[str]]:
    """Every line of the log, once there are as many, and no more when the server has stopped."""
    deadline = time.monotonic() + SOON
    # A line is written after its answer, so that the client may be a moment ahead of it.
    while loud.log.read_bytes().count(b"\n") < count and time.monotonic() < deadline:
        time.sleep(0.005)
    loud.stop()
    log = loud.log.read_bytes()
    assert not re.search(rb"[^\n -~]", log)
    lines = log.decode("ascii").split("\n")
    assert lines.pop() == ""
    found = [LINE.fullmatch(line) for line in lines]
    assert len(found) == count and all(found), lines
    return [match for match in found if match]


def test_a_line_for_each_request(loud: Server) -> None:
    name = fresh_name()
    booking = closing_post(name, SLOT, name, b"X-Request-ID: r1")
    sent = {
        "r1": (booking, "POST", "/bookings", 201),
        "r2": (booking.replace(b"r1", b"r2"), "POST", "/bookings", 200),
        "r3": (closing_post(name, SLOT, f"{name}-2", b"X-Request-ID: r3"), "POST", "/bookings", 409),
        "r4": (
            closing_request(b"GET /bookings?tenant_id=%s&limit=1 HTTP/1.1" % name.encode(), b"X-Request-ID: r4"),
            "GET",
            f"/bookings?tenant_id={name}&limit=1",
            200,
        ),
        "r5": (closing_request(b"HEAD /live HTTP/1.1", b"X-Request-ID: r5"), "HEAD", "/live", 200),
        "r6": (closing_request(b"OPTIONS * HTTP/1.1", b"X-Request-ID: r6"), "OPTIONS", "*", 204),
        "r7": (closing_request(b"GET http://x/?%22 HTTP/1.1", b"X-Request-ID: r7"), "GET", "http://x/?%22", 400),
        "r8": (closing_request(b"BREW /%F0%9F HTTP/1.1", b"X-Request-ID: r8"), "BREW", "/%F0%9F", 404),
        # Whose head has an end; the others are in the test below.
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
        received[number] = loud.raw(request)
        took[number] = (time.monotonic() - started) * 1000
    lines = {match["id"]: match for match in _logged(loud, len(sent))}
    after = time.time()
    assert set(lines) == set(sent)
    for number, (_, method, target, status) in sent.items():
        line = lines[number]
        assert (line["method"], line["target"], int(line["status"])) == (method, target, status)
        assert first_response(received[number]).status == status
        assert int(line["bytes"]) == len(received[number])
        assert 0 <= float(line["ms"]) <= took[number] + 1
        at = datetime.fromisoformat(f"{line['time']}+00:00").timestamp()
        # The log's milliseconds are cut off, not rounded.
        assert before - 0.001 <= at <= after
    assert loud.rows() == [(name, SLOT, name)]


def test_a_line_for_what_has_no_end(tmp_path: Path) -> None:
    """The request line may be there all the same, and says what to look for."""
    program = patched(
        tmp_path, "sys.argv.remove('--quiet'); from bookings import server; server.HEAD_SECONDS = 0.5"
    )
    sent = {
        b"GET /x HTTP/1.1\r\nX: " + b"x" * 70_000: "GET /x 431",
        b"PUT /y HTTP/1.1\r\nHost:": "PUT /y 408",
        b"PUT /y": "- - 408",
        b"GET /" + b"x" * 70_000: "- - 414",
    }
    with contextlib.closing(Server(tmp_path, program=program)) as loud:
        for request in sent:
            loud.raw(request)
        found = [
            f"{match['method']} {match['target']} {match['status']}" for match in _logged(loud, len(sent))
        ]
    assert found == list(sent.values())


@contextlib.contextmanager
def _booking_under_way(loud: Server) -> Iterator[socket.socket]:
    """The connection of a client whose booking has been read and waits for the database, freed at the end."""
    with contextlib.closing(sqlite3.connect(loud.database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with socket.create_connection(("127.0.0.1", loud.port), timeout=SOON) as client:
            # In one packet: whoever has the first answer knows that the second request was read as well.
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


def test_the_milliseconds_have_the_wait_for_the_database_in_them(loud: Server) -> None:
    with _booking_under_way(loud) as client:
        # Nothing comes: so long it waits at the least.
        client.settimeout(0.3)
        with pytest.raises(socket.timeout):
            client.recv(1)
    lines = _logged(loud, 2)
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
    """In the target, the method, the version, a header's name or value, an id, or a body."""
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


def test_no_client_forges_a_line(loud: Server) -> None:
    """Wherever it writes one: each request makes one line, which is about itself."""
    sent = [request for odd in ODD for request in _forgeries(odd)]
    for request in sent:
        # One answer, so that what follows an odd line was no second request.
        received = loud.raw(request)
        assert received.count(b"HTTP/1.1 ") == 1 and re.match(rb"HTTP/1\.1 [245]", received), (
            request,
            received,
        )
    for line in _logged(loud, len(sent)):
        assert "6.6.6.6" not in (line["client"], line["method"], line["id"])
        assert line["id"] != "forged"
    assert loud.rows() == []


@pytest.mark.skipif(sys.platform != "linux", reason="a pipe takes less in one piece elsewhere")
def test_the_lines_of_several_workers_stay_whole(tmp_path: Path) -> None:
    """In a pipe that is full, too, where the rest of a torn line would begin one in a client's own words."""
    pipe = tmp_path / "server.log"
    os.mkfifo(pipe)
    # Before the server, which could not open the other end without it.
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as log:
        program = patched(tmp_path, "sys.argv.remove('--quiet')")
        with contextlib.closing(Server(tmp_path, "--workers=4", program=program)) as loud:
            # Several of each length, since it is chance which lines meet.
            sizes = [100, MAX_LINE // 4, MAX_LINE // 3, *[MAX_LINE // 2, MAX_LINE - 100] * 6]
            targets = [f"/{number}{'x' * size}" for number, size in enumerate(sizes * 8)]
            # Each is answered before its line is written, so that nobody here waits for the pipe.
            answers = at_once(len(targets), lambda number: loud.call("GET", targets[number]))
            os.set_blocking(log.fileno(), True)
            lines = [LINE.fullmatch(log.readline().decode("ascii").rstrip("\n")) for _ in targets]
    assert [answer.status for answer in answers] == [404] * len(targets)
    assert all(lines)
    ids = sorted(answer.headers["X-Request-ID"] for answer in answers)
    assert sorted(line["id"] for line in lines if line) == ids
    # Those that a client has reason to send are there as they are.
    logged = {line["target"] for line in lines if line}
    assert {target for target in targets if len(target) < MAX_LINE * 2 // 5} <= logged


def test_a_fault_with_line_breaks_in_it_begins_one_line(loud: Server) -> None:
    """A traceback goes on in lines that begin with a space, which no line of ours does."""
    text = FORGED.decode()
    loud.execute(FAULT_TRIGGER.replace("closed", f"closed\n{text}\n{text}"))
    answer = loud.book(X_Request_ID="mine")
    assert answer.status == 500
    loud.stop()
    lines = loud.log.read_text().splitlines()
    ours = [line for line in lines if not line.startswith(" ")]
    assert len(ours) == 2 < len(lines)
    assert all(STARTS.match(line) and "mine" in line for line in ours)
    assert LINE.fullmatch(ours[1])
    assert loud.rows() == []


@pytest.mark.skipif(os.name == "nt", reason="a stop on Windows waits for nobody")
def test_who_leaves_before_the_answer_is_logged_too(loud: Server) -> None:
    """The booking is made and its line is there, though nobody reads the answer."""
    with _booking_under_way(loud) as client:
        # Closing resets the connection.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    deadline = time.monotonic() + SOON
    while not loud.rows() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert loud.rows() == [("acme", SLOT, "k1")]
    # Stopping waits for the requests that are under way.
    loud.stop()
    _assert_live_and_booking(_logged(loud, loud.log.read_bytes().count(b"\n")))


def test_quiet_leaves_requests_out_but_no_fault(server: Server) -> None:
    assert server.book().status == 201
    assert server.call("GET", "/nowhere").status == 404
    server.raw(b"GARBAGE\r\n\r\n")
    server.execute(FAULT_TRIGGER)
    assert server.book(key="k2", start="2026-01-02T10:00:00Z", X_Request_ID="mine").status == 500
    server.stop()
    ours = [line for line in server.log.read_text().splitlines() if not line.startswith(" ")]
    assert len(ours) == 1 and "mine" in ours[0] and not LINE.fullmatch(ours[0])
    assert server.rows() == [("acme", SLOT, "k1")]


# --- The document, by itself

def _subschemas(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        yield schema
        inner = [
            *schema.get("properties", {}).values(),
            schema.get("items"),
            schema.get("additionalProperties"),
        ]
        for each in inner:
            yield from _subschemas(each)


def _nodes(node: Any = DOCUMENT) -> Iterator[dict[str, Any]]:
    """Every object of the document, examples left out: these may be any JSON."""
    if isinstance(node, dict):
        yield node
        for name, value in node.items():
            if name not in ("example", "examples"):
                yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def _schemas() -> list[Any]:
    named = [
        *DOCUMENT["components"]["schemas"].values(),
        *(node["schema"] for node in _nodes() if "schema" in node),
    ]
    return [each for schema in named for each in _subschemas(schema)]


def test_the_document_can_be_read_as_openapi() -> None:
    assert re.fullmatch(r"3\.1\.[0-9]+", DOCUMENT["openapi"])
    assert DOCUMENT["info"]["title"] and DOCUMENT["info"]["version"]
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for _, path, operation in OPERATIONS:
        parameters = [resolved(node) for node in operation.get("parameters", [])]
        assert {p["name"] for p in parameters if p["in"] == "path"} == set(re.findall(r"\{(\w+)\}", path))
        assert all(p["required"] for p in parameters if p["in"] == "path")
        assert len({(p["in"], p["name"]) for p in parameters}) == len(parameters)
        assert operation["summary"] and all(
            resolved(r)["description"] for r in operation["responses"].values()
        )
        for response in operation["responses"].values():
            for link in resolved(response).get("links", {}).values():
                assert link["operationId"] in names


def test_every_reference_leads_somewhere() -> None:
    references = [node for node in _nodes() if "$ref" in node]
    assert len(references) > 100 and all(resolved(node) for node in references)
    used = {node["$ref"] for node in references}
    # No operation has a 405: it is the answer to a method that is none of a path's.
    used.add("#/components/responses/MethodNotAllowed")
    kinds = DOCUMENT["components"].items()
    assert used == {f"#/components/{kind}/{name}" for kind, members in kinds for name in members}


def test_every_keyword_is_checked_here() -> None:
    used = {keyword for schema in _schemas() for keyword in schema}
    assert used - {"$ref"} <= KEYWORDS.keys() | ANNOTATIONS


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, True),
        ({"type": "integer"}, "1"),
        ({"type": "string"}, None),
        ({"type": "array", "items": {"type": "string"}}, ["a", 1]),
        ({"enum": ["a"]}, "b"),
        ({"const": "true"}, True),
        ({"minimum": 1}, 0),
        ({"maximum": 1}, 2),
        ({"minLength": 1}, ""),
        ({"maxLength": 1}, "ab"),
        ({"maxItems": 1}, [1, 2]),
        ({"pattern": "^a$"}, "a\n"),
        ({"required": ["a"]}, {"b": 1}),
        ({"properties": {"a": {"type": "string"}}}, {"a": 1}),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"b": 1}),
        ({"additionalProperties": {"type": "string"}}, {"b": 1}),
        ({"$ref": "#/components/schemas/Booking"}, {"id": 1}),
    ],
    ids=str,
)
def test_the_check_finds_what_is_wrong(schema: Any, value: Any) -> None:
    assert schema_errors(schema, value)


def test_the_examples_are_valid() -> None:
    count = 0
    for schema in _schemas():
        for example in [*schema.get("examples", []), *([schema["default"]] if "default" in schema else [])]:
            assert not schema_errors(schema, example)
            count += 1
    for node in _nodes():
        if "schema" in node:
            examples = node.get("examples", {})
            given = [node["example"]] if "example" in node else [each["value"] for each in examples.values()]
            for example in given:
                assert not schema_errors(node["schema"], example)
                count += 1
    assert count > 40


# Lone surrogates are no characters, and JSON Schema says nothing of what a pattern makes of them.
PLAIN_TEXTS = [
    text for text in [*TEXTS, *(text for text, _ in REJECTED_TEXTS)] if not re.search("[\ud800-\udfff]", text)
]


def _is_taken(check: fields.Check, value: str) -> bool:
    try:
        check(value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["Tenant", "IdempotencyKey"])
def test_the_schema_of_a_text_is_the_programs_rule(name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}"}
    codes = [*range(0x3100), 0xFEFF, 0xFFFD, 0xFFFF, 0x10000, 0x10FFFF]
    around = [f"{before}{chr(code)}{after}" for code in codes for before in ("", "a") for after in ("", "b")]
    for text in [*PLAIN_TEXTS, *around]:
        assert fits(schema, text) == _is_taken(fields.text, text), ascii(text)


def test_the_schema_of_an_instant_is_the_programs_rule() -> None:
    instant, canonical = (
        {"$ref": f"#/components/schemas/{name}"} for name in ("Instant", "CanonicalInstant")
    )
    for sent, stored, _ in INSTANTS:
        assert fits(instant, sent) == (stored is not None), ascii(sent)
        assert fits(canonical, sent) == (sent == stored), ascii(sent)
    years = [
        0,
        1,
        4,
        9,
        10,
        99,
        100,
        104,
        400,
        999,
        1000,
        1900,
        1999,
        2000,
        2024,
        2026,
        2100,
        2400,
        9996,
        9999,
    ]
    for year, month, day in itertools.product(years, range(14), range(33)):
        sent = f"{year:04}-{month:02}-{day:02}T10:00:00Z"
        for schema in (instant, canonical):
            assert fits(schema, sent) == _is_taken(fields.instant, sent), sent
    for hour, minute, second in [
        *itertools.product(range(26), range(62), [59]),
        *((9, 9, s) for s in range(62)),
    ]:
        sent = f"2026-01-01T{hour:02}:{minute:02}:{second:02}Z"
        assert fits(instant, sent) == _is_taken(fields.instant, sent), sent


def test_the_limits_are_the_programs() -> None:
    limit = DOCUMENT["components"]["parameters"]["limit"]["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, fields.MAX_PAGE, fields.MAX_PAGE)
    content = DOCUMENT["paths"]["/bookings"]["get"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"]["maxItems"] == fields.MAX_PAGE
    for name in ("Tenant", "IdempotencyKey"):
        schema = DOCUMENT["components"]["schemas"][name]
        assert (schema["minLength"], schema["maxLength"]) == (1, fields.MAX_CHARACTERS)


def test_the_problems_are_those_of_the_table() -> None:
    """As types, as names, and as the examples of the responses: one for each kind, under its status."""
    components = DOCUMENT["components"]
    assert components["schemas"]["Problem"]["properties"]["type"]["enum"] == [
        f"/problems/{name}" for name in KINDS
    ]
    assert components["parameters"]["name"]["schema"]["enum"] == list(KINDS)
    shown = [
        (name, example["value"]["type"], example["value"]["status"], example["value"]["title"])
        for response in components["responses"].values()
        for name, example in response["content"]["application/problem+json"]["examples"].items()
    ]
    expected = [(name, f"/problems/{name}", kind.status, kind.title) for name, kind in KINDS.items()]
    assert sorted(shown) == sorted(expected)
    for _, _, operation in OPERATIONS:
        for status, response in operation["responses"].items():
            media = resolved(response).get("content", {}).get("application/problem+json", {"examples": {}})
            assert {str(example["value"]["status"]) for example in media["examples"].values()} <= {status}
            assert (int(status) >= 400) == bool(media["examples"])


# --- The document against the program

def _target(path: str, booking_id: int = 1) -> str:
    """A target that the path's template stands for."""
    return path.replace("{id}", str(booking_id)).replace("{name}", "slot-taken")


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the booking that `_target` and the tenant of `_valid` ask for."""
    with contextlib.closing(Server(tmp_path_factory.mktemp("documented"))) as one:
        assert one.book("acme", SLOT, "k1").json["id"] == 1
        yield one


def _valid(method: str, path: str) -> bytes:
    """A request for the operation, with nothing in it to refuse."""
    if method == "post":
        return closing_post("acme", SLOT, "k1")
    return closing_request(f"{method.upper()} {_target(path)} HTTP/1.1".encode(), b"X-Tenant-ID: acme")


def test_every_route_is_documented_and_every_path_is_a_route() -> None:
    matched = []
    for path, operations in DOCUMENT["paths"].items():
        (handlers,) = [handlers for pattern, handlers in api._ROUTES if pattern.fullmatch(_target(path))]
        assert sorted(operations) == sorted(method.lower() for method in api._methods(handlers))
        matched.append(handlers)
        for method, operation in operations.items():
            _, known = handlers.get("GET" if method == "head" else method.upper(), (None, ()))
            parameters = [resolved(node) for node in operation.get("parameters", [])]
            assert [p["name"] for p in parameters if p["in"] == "query"] == list(known)
    assert len(matched) == len(api._ROUTES) == len({id(handlers) for handlers in matched})


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_every_method_is_served_or_refused_as_documented(documented: Server, path: str) -> None:
    before = documented.rows()
    operations = {method.upper() for method in DOCUMENT["paths"][path]}
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"):
        sent = _valid(method.lower(), path).replace(b"/bookings ", _target(path).encode() + b" ", 1)
        answer = first_response(documented.raw(sent))
        assert (answer.status == 405) == (method not in operations)
        if answer.status in (204, 405):
            assert set(answer.headers["Allow"].split(", ")) == operations
        assert_documented(answer, method, path)
    assert documented.rows() == before


# Not provoked for each operation: a slow request, a fault of the program and its stop can befall any of them, and
# only who books needs room on the disk. Other files test that each is answered so.
BEFALL_ANY = {"408", "500", "503"}
BEFALL_BOOKING = {"507"}


@each_operation
def test_every_status_is_documented_and_every_documented_one_is_given(
    documented: Server, unreachable: Server, method: str, path: str, operation: dict[str, Any]
) -> None:
    before = documented.rows()
    target = _target(path)
    given = [
        *(first_response(documented.raw(badly_framed(status, method.upper(), target))) for status in FRAMING_ERRORS),
        first_response(documented.raw(_valid(method, path))),
        first_response(unreachable.raw(_valid(method, path))),
    ]
    assert [answer.status for answer in given[: len(FRAMING_ERRORS)]] == list(FRAMING_ERRORS)
    if "{" in path:
        nowhere = path[: path.index("{")] + "0"
        given.append(first_response(documented.raw(closing_request(f"{method.upper()} {nowhere} HTTP/1.1".encode()))))
    if method == "post":
        new = fresh_name()
        given += [
            documented.book(new, SLOT, new),
            documented.book(new, SLOT, f"{new}-2"),
            documented.book(f"{new}-2", SLOT, new),
            documented.call("POST", "/bookings", b"{}", Content_Type="text/plain"),
            documented.call("POST", "/bookings", b"{}"),
            documented.call("POST", "/bookings", b"{"),
            first_response(documented.raw(closing_request(b"POST /bookings HTTP/1.1"))),
        ]
        before = [*before, (new, SLOT, new)]
    # Without a stop, only what asks the database can be so answered.
    asks = method != "options" and path in ("/bookings", "/bookings/{id}", "/ready")
    assert (given[len(FRAMING_ERRORS) + 1].status == 503) == asks
    for answer in given:
        assert_documented(answer, method.upper(), path)
    befalls = BEFALL_ANY | (BEFALL_BOOKING if method == "post" else set())
    assert {str(answer.status) for answer in given} | befalls == set(operation["responses"])
    assert documented.rows() == before


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its database cannot be asked: there is no table in it any more."""
    with contextlib.closing(Server(tmp_path_factory.mktemp("unreachable"))) as one:
        one.execute("DROP TABLE bookings")
        yield one


def test_a_stop_is_answered_as_documented(tmp_path: Path) -> None:
    """Whatever is asked, where the last byte does not come."""
    program = patched(tmp_path, "from bookings import server; server.ARRIVAL_SECONDS = 0.5")
    with contextlib.closing(Server(tmp_path, program=program)) as server, contextlib.ExitStack() as stack:
        late = []
        for method, path, _ in OPERATIONS:
            late.append(
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=SOON))
            )
            late[-1].sendall(_valid(method, path)[:-1])
        assert server.stop() == 0
        for (method, path, _), connection in zip(OPERATIONS, late):
            answer = first_response(connection.recv(65536))
            assert answer.status == 503 and answer.headers["Retry-After"].isdigit()
            assert_documented(answer, method.upper(), path)
        assert server.rows() == []


def test_a_fault_is_answered_as_documented(server: Server) -> None:
    server.execute(FAULT_TRIGGER)
    answer = server.book()
    assert answer.status == 500
    assert_documented(answer, "POST", "/bookings")
    schema = DOCUMENT["components"]["schemas"]["Problem"]
    assert answer.json.keys() - set(schema["required"]) == {"request_id"}
    assert server.rows() == []


@pytest.mark.parametrize("path", [path for path in DOCUMENT["paths"] if path != "/openapi.json"])
def test_the_examples_are_what_is_answered(server: Server, path: str) -> None:
    """The example of a request makes the example of its answer, and so for what is read from then on."""
    post = DOCUMENT["paths"]["/bookings"]["post"]
    asked = post["requestBody"]["content"]["application/json"]["examples"]["example"]["value"]
    made = server.call("POST", "/bookings", asked)
    assert made.status == 201
    example = post["responses"]["201"]["content"]["application/json"]["examples"]["example"]["value"]
    assert {**made.json, "created_at": example["created_at"]} == example

    got = server.call("GET", _target(path), **({"X_Tenant_ID": "acme"} if "/bookings" in path else {}))
    assert got.status == 200
    assert_documented(got, "GET", path)
    content = DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    text = json.dumps(got.json).replace(made.json["created_at"], example["created_at"])
    shown = content["examples"]["example"]["value"]
    assert shown == json.loads(text) or (path == "/problems" and all(each in got.json for each in shown))
    assert server.rows() == [
        tuple(asked[name] for name in ("tenant_id", "start_time_utc", "idempotency_key"))
    ]


def test_the_examples_of_problems_are_what_is_answered(tmp_path: Path) -> None:
    """Word for word, save for the request's id in a fault."""
    program = patched(
        tmp_path, "from bookings import server; server.HEAD_SECONDS = 1.0; server.ARRIVAL_SECONDS = 0.1"
    )
    with contextlib.closing(Server(tmp_path, program=program)) as server:
        assert server.book("acme", SLOT, "order-1").status == 201
        given = [
            *(first_response(server.raw(badly_framed(status, "GET", "/"))) for status in FRAMING_ERRORS),
            first_response(server.raw(closing_request(b"POST /bookings HTTP/1.1"))),
            first_response(server.raw(b"GET /")),
            server.book("acme", SLOT, "order-2"),
            server.book("acme", "2026-01-02T10:00:00Z", "order-1"),
            server.call("POST", "/bookings", b'{"tenant_id": "ac\xff"}'),
            server.call("POST", "/bookings", {"tenant_id": "acme", "idempotency_key": "order-3"}),
            server.call("POST", "/bookings", b"{}", Content_Type="text/plain"),
            server.call("DELETE", "/bookings"),
            server.call("GET", "/bookings/2", X_Tenant_ID="acme"),
            server.call("GET", "/nowhere"),
        ]
        server.execute(FAULT_TRIGGER)
        given.append(server.book("acme", "2026-01-02T10:00:00Z", "order-3"))
        with socket.create_connection(("127.0.0.1", server.port), timeout=SOON) as late:
            late.sendall(b"GET /")
            assert server.stop() == 0
            given.append(first_response(late.recv(65536)))
        assert server.rows() == [("acme", SLOT, "order-1")]
    responses = DOCUMENT["components"]["responses"].values()
    media = [response["content"]["application/problem+json"] for response in responses]
    shown = {name: each["value"] for one in media for name, each in one["examples"].items()}
    id_of_example = shown["internal-error"]["request_id"]
    for answer in given:
        name = answer.json["type"].rpartition("/")[2]
        found = answer.body.decode().replace(answer.headers["X-Request-ID"], id_of_example)
        assert shown.pop(name) == json.loads(found)
    # The others need a database that is locked, away or full, and are words of a table.
    details = {name: value["detail"] for name, value in shown.items()}
    assert details == dict(api._TROUBLES.values())


def test_lists_and_bookings_are_as_documented(server: Server) -> None:
    """Texts of all kinds, and instants in all spellings, in what is answered."""
    for number, text in enumerate(TEXTS):
        answer = server.book(text, SLOT, f"key-{number}")
        assert_documented(answer, "POST", "/bookings")
        assert_documented(server.book(text, SLOT, f"key-{number}"), "POST", "/bookings")
        assert_documented(
            server.call("GET", f"/bookings?tenant_id={quote(text, safe='')}"), "GET", "/bookings"
        )
        assert_documented(
            server.call("GET", f"/bookings/{answer.json['id']}?tenant_id={quote(text, safe='')}"),
            "GET",
            "/bookings/{id}",
        )
    for number, (sent, _, _) in enumerate(INSTANTS):
        assert_documented(server.book("acme-2", sent, f"acme-{number}"), "POST", "/bookings")
    for method in ("GET", "HEAD"):
        page = server.call(method, "/bookings?limit=1", X_Tenant_ID="acme-2")
        assert page.headers["Link"]
        assert_documented(page, method, "/bookings")
    assert len(server.rows()) == len(TEXTS) + len({stored for _, stored, _ in INSTANTS if stored})


@each_operation
def test_a_documented_alternative_is_taken(
    documented: Server, method: str, path: str, operation: dict[str, Any]
) -> None:
    """The header alone does what the parameter or member alone does, and no operation takes another."""
    taken = {"tenant_id": b"X-Tenant-ID: acme", "idempotency_key": b"Idempotency-Key: k1"}
    headers = {resolved(node)["name"] for node in operation.get("x-alternatives", [])}
    members = {"tenant_id", "start_time_utc", "idempotency_key"} if method == "post" else set()
    parameters = {resolved(node)["name"] for node in operation.get("parameters", [])}
    instead = {name: line for name, line in taken.items() if name in members | parameters}
    assert headers == {line.split(b":")[0].decode() for line in instead.values()}
    if instead:
        body = json.dumps({"start_time_utc": SLOT}).encode() if method == "post" else b""
        length = b"Content-Length: %d" % len(body)
        media = b"Content-Type: application/json"
        line = f"{method.upper()} {_target(path)} HTTP/1.1".encode()
        answer = first_response(documented.raw(closing_request(line, media, length, *instead.values(), body=body)))
        assert answer.status == 200
        for name in instead:
            others = [value for other, value in instead.items() if other != name]
            answer = first_response(documented.raw(closing_request(line, media, length, *others, body=body)))
            assert answer.status == 400
            if method != "head":
                assert [error["field"] for error in answer.json["errors"]] == [name]


@each_operation
def test_a_query_parameter_is_taken_where_it_is_documented(
    documented: Server, method: str, path: str, operation: dict[str, Any]
) -> None:
    """And refused where it is not, however right its value; asking for the methods alone reads no query."""
    if method == "options":
        return
    known = {"tenant_id": "acme", "from": SLOT, "to": SLOT, "after": SLOT, "limit": "1"}
    parameters = {resolved(node)["name"] for node in operation.get("parameters", [])}
    for name, value in known.items():
        sent = _valid(method, path).replace(b" HTTP", f"?{name}={value} HTTP".encode(), 1)
        answer = first_response(documented.raw(sent))
        assert answer.status == (200 if name in parameters else 400), name
        assert_documented(answer, method.upper(), path)


def test_the_document_is_served_as_it_is(shared_server: Server) -> None:
    answer = shared_server.call("GET", "/openapi.json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.body == (ROOT / "bookings" / "openapi.json").read_bytes()
    assert_documented(answer, "GET", "/openapi.json")
