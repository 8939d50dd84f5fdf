"""What a client sees: each answer that the API promises and each refusal, with the rows stored after it.

A booking, its replay and its list; every kind of problem and its whole body; a database that is busy, gone,
full or failing under a running server; and rows that somebody wrote by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bookings.problems import KINDS
from bookings.server import BODY_SECONDS, HEAD_SECONDS, MAX_BODY, MAX_HEAD, MAX_HEADERS, MAX_LINE
from bookings.store import BUSY_SECONDS
from tests.helpers.clients import as_header, only_response
from tests.helpers.openapi import assert_documented
from tests.helpers.servers import CANONICAL, SOON, Response, Server, assert_problem, at_once

POST = b"POST /bookings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
MEMBERS = ["id", "tenant_id", "start_time_utc", "idempotency_key", "created_at"]
GOOD = {
    "tenant_id": "refused",
    "start_time_utc": "2026-05-01T10:00:00Z",
    "idempotency_key": "never used up",
}


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in GOOD.items() if name not in names}


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def assert_booking(answer: Response, status: int) -> dict[str, Any]:
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json) == MEMBERS
    booking: dict[str, Any] = answer.json
    return booking


def assert_unavailable(answer: Response, kind: str) -> None:
    assert_problem(answer, 503, kind)
    assert int(answer.headers["Retry-After"]) > 0


def insert(path: Path, **values: str) -> None:
    """A row written by hand, as somebody with a SQL client would."""
    names, marks = ", ".join(values), ", ".join("?" * len(values))
    with contextlib.closing(sqlite3.connect(path, timeout=SOON)) as db, db:
        db.execute(f"INSERT INTO bookings ({names}) VALUES ({marks})", tuple(values.values()))


@pytest.fixture(scope="module", autouse=True)
def stalled(shared_server: Server) -> Iterator[dict[str, socket.socket]]:
    """Two requests that stop half-way; begun first and read last, so that the other tests fill the wait."""
    sent = {"head": POST, "body": POST + b"Content-Length: 300\r\n\r\n" + json.dumps(GOOD).encode()}
    with contextlib.ExitStack() as stack:
        sockets = {}
        for name, begun in sent.items():
            connection = stack.enter_context(
                socket.create_connection(("127.0.0.1", shared_server.port), timeout=SOON)
            )
            connection.sendall(begun)
            sockets[name] = connection
        yield sockets


# --- Bookings


def test_created(server: Server) -> None:
    began = now()
    created = server.book("acme", "2026-01-01T10:00:00Z", "k1")
    booking = assert_booking(created, 201)
    assert created.headers["Location"] == f"/bookings/{booking['id']}"
    assert created.headers["Idempotent-Replayed"] is None
    assert type(booking["id"]) is int
    assert CANONICAL.fullmatch(booking["created_at"])
    assert began <= booking["created_at"] <= now()
    assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]
    assert tuple(booking.values())[1:4] == server.rows()[0]
    with contextlib.closing(sqlite3.connect(server.database)) as db:
        assert db.execute("SELECT * FROM bookings").fetchall() == [tuple(booking.values())]


def test_replay_is_identical_however_it_is_sent_and_after_a_restart(server: Server, tmp_path: Path) -> None:
    tenant, key, start = 'Zoë "& sons" \\ 日本 🎫 %41', 'a"b\\c', "2026-01-01T10:00:00Z"
    everything = {"tenant_id": tenant, "start_time_utc": start, "idempotency_key": key}
    no_key = {name: value for name, value in everything.items() if name != "idempotency_key"}
    slot_alone = {"start_time_utc": "2026-01-01T10:00:00.000+00:00"}
    quoted = '"a\\"b\\\\c"'
    again: list[tuple[Any, dict[str, str]]] = [
        (everything, {}),
        ({**everything, "start_time_utc": "2026-01-01t10:00:00.000z"}, {}),
        (no_key, {"Idempotency_Key": key}),
        (no_key, {"Idempotency_Key": quoted}),
        (slot_alone, {"X_Tenant_ID": as_header(tenant), "Idempotency_Key": quoted}),
        (everything, {"X_Tenant_ID": as_header(tenant), "Idempotency_Key": key}),
        ({"price": [1.5, None], **everything}, {"Content_Type": "Application/JSON; charset=utf-8"}),
        (json.dumps(dict(reversed(list(everything.items()))), indent=4, ensure_ascii=False).encode(), {}),
    ]
    created = server.call("POST", "/bookings", everything)
    booking = assert_booking(created, 201)
    target = f"/bookings/{booking['id']}"

    def assert_all_identical(running: Server) -> None:
        for body, headers in again:
            replay = running.call("POST", "/bookings", body, **headers)
            assert (replay.status, replay.body) == (200, created.body), (body, headers)
            assert replay.headers["Idempotent-Replayed"] == "true"
            assert replay.headers["Content-Type"] == "application/json"
        assert running.call("GET", target, X_Tenant_ID=as_header(tenant)).body == created.body
        assert running.rows() == [(tenant, start, key)]

    assert_all_identical(server)
    assert server.stop() == 0
    with contextlib.closing(Server(tmp_path)) as restarted:
        assert_all_identical(restarted)


@pytest.mark.both_stores
@pytest.mark.parametrize(
    ("tenant", "hour", "key", "status"),
    [
        pytest.param("anna", 1, "k1", 200, id="same"),
        pytest.param("anna", 1, "k9", 409, id="slot taken"),
        pytest.param("anna", 3, "k1", 422, id="key of another slot"),
        pytest.param("anna", 2, "k1", 422, id="key of another slot, and the slot taken under another key"),
        pytest.param("bert", 3, "k1", 422, id="key of another tenant and slot"),
        pytest.param("bert", 2, "k1", 422, id="key of another tenant"),
        pytest.param("bert", 1, "k1", 422, id="key of another tenant, for its slot, and the slot taken"),
        pytest.param("bert", 2, "k9", 201, id="slot taken by another tenant only"),
        pytest.param("anna", 3, "k9", 201, id="free"),
        pytest.param("anna", 3, "K1", 201, id="key in upper case"),
    ],
)
def test_outcome(server: Server, tenant: str, hour: int, key: str, status: int) -> None:
    def slot(number: int) -> str:
        return f"2026-01-01T0{number}:00:00Z"

    existing = [("anna", slot(1), "k1"), ("anna", slot(2), "k2"), ("bert", slot(1), "k3")]
    first, *_ = [server.book(*row) for row in existing]
    answer = server.book(tenant, slot(hour), key)
    if status == 409:
        assert_problem(answer, 409, "slot-taken", "start_time_utc")
    elif status == 422:
        assert_problem(answer, 422, "key-reused", "idempotency_key")
    else:
        assert_booking(answer, status)
    assert (answer.body == first.body) == (status == 200)
    assert server.rows() == existing + ([(tenant, slot(hour), key)] if status == 201 else [])
    if status in (409, 422):
        for word in ("anna", "bert", "k1", "k2", "k3", "2026"):
            assert word not in answer.body.decode()


@pytest.mark.both_stores
def test_refused_by_conflict_uses_up_no_key(server: Server) -> None:
    assert server.book("one", "2026-01-01T10:00:00Z", "k1").status == 201
    assert server.book("one", "2026-01-01T10:00:00Z", "k2").status == 409
    assert server.book("one", "2026-01-01T11:00:00Z", "k2").status == 201
    assert server.rows() == [("one", "2026-01-01T10:00:00Z", "k1"), ("one", "2026-01-01T11:00:00Z", "k2")]


@pytest.mark.both_stores
def test_list_is_a_bare_array_in_order_of_time(server: Server) -> None:
    empty = server.call("GET", "/bookings", X_Tenant_ID="acme")
    assert (empty.status, empty.json) == (200, [])
    starts = [
        "2026-10-01T09:00:00Z",
        "0001-01-01T00:00:00Z",
        "2026-02-01T09:00:00Z",
        "9999-12-31T23:59:59Z",
        "2026-02-01T08:59:59Z",
        "1969-12-31T23:59:59Z",
    ]
    booked = [server.book("acme", start, f"k{n}").json for n, start in enumerate(starts)]
    assert server.book("other", starts[0], "other").status == 201
    expected = sorted(booked, key=lambda booking: str(booking["start_time_utc"]))
    for target, headers in [("/bookings", {"X_Tenant_ID": "acme"}), ("/bookings?tenant_id=acme", {})]:
        answer = server.call("GET", target, **headers)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.json == expected
        assert all(list(booking) == MEMBERS for booking in answer.json)
    assert len(server.rows()) == len(starts) + 1


@pytest.mark.both_stores
def test_one_booking_is_read_as_it_was_created(server: Server) -> None:
    created = server.book("acme")
    for target, headers in [("", {"X_Tenant_ID": "acme"}), ("?tenant_id=acme", {})]:
        answer = server.call("GET", created.headers["Location"] + target, **headers)
        assert (answer.status, answer.body) == (200, created.body)
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.both_stores
@pytest.mark.parametrize("target", ["/bookings", "/bookings/1"])
def test_head_is_get_without_the_body(server: Server, target: str) -> None:
    server.book("acme")
    head, get = (server.call(method, target, X_Tenant_ID="acme") for method in ("HEAD", "GET"))
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(get.body) > 0
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


# --- Refusals: (body, headers, fields)

SLOT = GOOD["start_time_utc"]
REFUSED_FIELDS: dict[str, tuple[Any, dict[str, str], tuple[str, ...]]] = {
    "nothing": ({}, {}, ("tenant_id", "start_time_utc", "idempotency_key")),
    "no tenant": (without("tenant_id"), {}, ("tenant_id",)),
    "no start": (without("start_time_utc"), {}, ("start_time_utc",)),
    "no key": (without("idempotency_key"), {}, ("idempotency_key",)),
    "everything of the wrong type": (
        {"tenant_id": 5, "start_time_utc": None, "idempotency_key": ["k"]},
        {},
        ("tenant_id", "start_time_utc", "idempotency_key"),
    ),
    "boolean": ({**GOOD, "tenant_id": True}, {}, ("tenant_id",)),
    "object": ({**GOOD, "idempotency_key": {"k": "k"}}, {}, ("idempotency_key",)),
    "empty": ({**GOOD, "tenant_id": "", "idempotency_key": ""}, {}, ("tenant_id", "idempotency_key")),
    "too long": ({**GOOD, "tenant_id": "é" * 256}, {}, ("tenant_id",)),
    "control character": ({**GOOD, "idempotency_key": "a\u0085b"}, {}, ("idempotency_key",)),
    "NUL": ({**GOOD, "tenant_id": "a\x00b"}, {}, ("tenant_id",)),
    "white space at an end": ({**GOOD, "tenant_id": "refused\u00a0"}, {}, ("tenant_id",)),
    "lone surrogate": ({**GOOD, "idempotency_key": "\ud800"}, {}, ("idempotency_key",)),
    "no offset": ({**GOOD, "start_time_utc": SLOT[:-1]}, {}, ("start_time_utc",)),
    "30 February": ({**GOOD, "start_time_utc": "2026-02-30T10:00:00Z"}, {}, ("start_time_utc",)),
    "empty tenant header": (without("tenant_id"), {"X_Tenant_ID": ""}, ("tenant_id",)),
    "empty tenant header beside a good member": (GOOD, {"X_Tenant_ID": ""}, ("tenant_id",)),
    "empty quoted key": (without("idempotency_key"), {"Idempotency_Key": '""'}, ("idempotency_key",)),
    "header that is no UTF-8": (without("tenant_id"), {"X_Tenant_ID": "\xe9"}, ("tenant_id",)),
    "two tenants": (GOOD, {"X_Tenant_ID": "other"}, ("tenant_id",)),
    "two keys": (GOOD, {"Idempotency_Key": "other"}, ("idempotency_key",)),
    "two of each": (GOOD, {"X_Tenant_ID": "x", "Idempotency_Key": '"y"'}, ("tenant_id", "idempotency_key")),
    "wrong in both places": (
        {**GOOD, "tenant_id": 5},
        {"X_Tenant_ID": ""},
        ("tenant_id", "tenant_id"),
    ),
    "one thing wrong in each": (
        {**GOOD, "start_time_utc": "noon"},
        {"X_Tenant_ID": "other", "Idempotency_Key": ""},
        ("tenant_id", "start_time_utc", "idempotency_key"),
    ),
}
REFUSED_JSON = {
    "empty body": b"",
    "not JSON": b"tenant_id=refused",
    "cut off": json.dumps(GOOD).encode()[:-1],
    "something after it": json.dumps(GOOD).encode() + b"{}",
    "not UTF-8": json.dumps(GOOD).replace("refused", "\xff").encode("latin-1"),
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "an array": json.dumps([GOOD]).encode(),
    "null": b"null",
    "a string": b'"x"',
    "NaN": json.dumps({**GOOD, "price": float("nan")}).encode(),
    "Infinity": json.dumps({**GOOD, "price": float("inf")}).encode(),
    "a member twice": json.dumps(GOOD).encode()[:-1] + b',"tenant_id":"refused"}',
    "an unknown member twice": json.dumps(GOOD).encode()[:-1] + b',"x":1,"x":1}',
    "nested too deep": json.dumps(GOOD).encode()[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
}
NOT_JSON_TYPES = [
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/jsonp",
]


@pytest.mark.both_stores
@pytest.mark.parametrize("case", REFUSED_FIELDS)
def test_refused_fields(shared_server: Server, case: str) -> None:
    body, headers, names = REFUSED_FIELDS[case]
    before = shared_server.rows()
    assert_problem(shared_server.call("POST", "/bookings", body, **headers), 400, "invalid-fields", *names)
    assert shared_server.rows() == before


@pytest.mark.both_stores
@pytest.mark.parametrize("case", REFUSED_JSON)
def test_refused_json(shared_server: Server, case: str) -> None:
    before = shared_server.rows()
    assert_problem(shared_server.call("POST", "/bookings", REFUSED_JSON[case]), 400, "malformed-json", "body")
    assert shared_server.rows() == before


@pytest.mark.both_stores
@pytest.mark.parametrize("media_type", NOT_JSON_TYPES)
def test_refused_content_type(shared_server: Server, media_type: str) -> None:
    before = shared_server.rows()
    answer = shared_server.call("POST", "/bookings", GOOD, Content_Type=media_type)
    assert_problem(answer, 415, "not-json")
    assert answer.headers["Accept"] == "application/json"
    assert shared_server.rows() == before


@pytest.mark.both_stores
def test_refused_requests_use_up_no_key(server: Server) -> None:
    for body, headers, _ in REFUSED_FIELDS.values():
        assert server.call("POST", "/bookings", body, **headers).status == 400
    for sent in REFUSED_JSON.values():
        assert server.call("POST", "/bookings", sent).status == 400
    for media_type in NOT_JSON_TYPES:
        assert server.call("POST", "/bookings", GOOD, Content_Type=media_type).status == 415
    assert server.rows() == []
    assert server.call("POST", "/bookings", GOOD).status == 201
    assert server.rows() == [tuple(GOOD[name] for name in MEMBERS[1:4])]


@pytest.mark.both_stores
@pytest.mark.parametrize("path", ["/bookings", "/bookings/1"])
@pytest.mark.parametrize(
    ("query", "headers", "names"),
    [
        ("", {}, {"tenant_id"}),
        ("?", {}, {"tenant_id"}),
        ("?tenant_id=", {}, {"tenant_id"}),
        ("?tenant_id=%00", {}, {"tenant_id"}),
        ("?tenant_id=a&tenant_id=a", {}, {"tenant_id"}),
        ("?tenant_id=a", {"X_Tenant_ID": "b"}, {"tenant_id"}),
        ("?tenant_id=a", {"X_Tenant_ID": ""}, {"tenant_id"}),
        ("?tenant_id=%ff", {}, {"query"}),
        ("?tenant_id=%4", {}, {"query"}),
        ("?tenant_id=a&size=1", {}, {"size"}),
        ("?tenant=a", {}, {"tenant", "tenant_id"}),
    ],
)
def test_refused_query(
    shared_server: Server, path: str, query: str, headers: dict[str, str], names: set[str]
) -> None:
    answer = shared_server.call("GET", path + query, **headers)
    assert_problem(answer, 400, "invalid-fields", *(error["field"] for error in answer.json["errors"]))
    assert {error["field"] for error in answer.json["errors"]} == names


@pytest.mark.both_stores
def test_everything_wrong_in_query_and_body_is_said(shared_server: Server) -> None:
    before = shared_server.rows()
    answer = shared_server.call("POST", "/bookings?size=1", without("tenant_id"))
    assert_problem(answer, 400, "invalid-fields", "size", "tenant_id")
    assert shared_server.rows() == before


@pytest.mark.both_stores
@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/booking",
        "/Bookings",
        "/bookings/",
        "//bookings",
        "/bookings/0",
        "/bookings/01",
        "/bookings/-1",
    ]
    + ["/bookings/x", "/bookings/1/", "/bookings/1.0", "/bookings/99999999999999999999", "/bookings/%31"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_no_such_path(shared_server: Server, method: str, path: str) -> None:
    body = GOOD if method == "POST" else None
    before = shared_server.rows()
    assert_problem(shared_server.call(method, path, body, X_Tenant_ID="refused"), 404, "no-such-path")
    assert shared_server.rows() == before


@pytest.mark.both_stores
def test_no_such_booking(server: Server) -> None:
    booked = server.book("acme")
    for tenant, number in [
        ("acme", booked.json["id"] + 1),
        ("acme", 2**53 - 1),
        ("other", booked.json["id"]),
    ]:
        answer = server.call("GET", f"/bookings/{number}", X_Tenant_ID=tenant)
        assert_problem(answer, 404, "no-such-booking")


@pytest.mark.both_stores
@pytest.mark.parametrize(
    ("path", "methods", "allow"),
    [
        ("/bookings", ["PUT", "PATCH", "DELETE", "TRACE", "BREW", "get"], "GET, HEAD, OPTIONS, POST"),
        ("/bookings/1", ["POST", "PUT", "PATCH", "DELETE"], "GET, HEAD, OPTIONS"),
    ],
)
def test_method_not_allowed(server: Server, path: str, methods: list[str], allow: str) -> None:
    server.book("acme")
    for method in methods:
        answer = server.call(method, path, GOOD, X_Tenant_ID="acme")
        assert_problem(answer, 405, "method-not-allowed")
        assert answer.headers["Allow"] == allow
    options = server.call("OPTIONS", path)
    assert (options.status, options.headers["Allow"], options.body) == (204, allow, b"")
    assert len(server.rows()) == 1


# --- Refusals of a request whose end is not certain or too far away: the server closes

CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
FRAMING: dict[str, tuple[bytes, int, str]] = {
    "no request": (b"hello\r\n\r\n", 400, "malformed-request"),
    "no Host": (b"GET /bookings HTTP/1.1\r\n\r\n", 400, "malformed-request"),
    "length that is no number": (POST + b"Content-Length: +5\r\n\r\n12345", 400, "malformed-request"),
    "two lengths": (POST + b"Content-Length: 5\r\n" * 2 + b"\r\n12345", 400, "malformed-request"),
    "no length": (POST + b"\r\n" + json.dumps(GOOD).encode(), 411, "length-required"),
    "chunked": (POST + CHUNKED, 501, "transfer-encoding"),
    "chunked with a length": (POST + b"Content-Length: 5\r\n" + CHUNKED, 501, "transfer-encoding"),
    "body over the limit": (
        POST + b"Content-Length: %d\r\n\r\n" % (MAX_BODY + 1) + b" " * (MAX_BODY + 1),
        413,
        "body-too-large",
    ),
    "body far over it": (POST + b"Content-Length: 99999999999999999999\r\n\r\n", 413, "body-too-large"),
    "target too long": (
        b"GET /bookings?tenant_id=%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * MAX_LINE),
        414,
        "target-too-long",
    ),
    "headers too long": (POST + b"X: %s\r\n\r\n" % (b"x" * MAX_HEAD), 431, "headers-too-large"),
    "headers too many": (POST + b"X: x\r\n" * MAX_HEADERS + b"\r\n", 431, "headers-too-large"),
    "expectation": (
        POST + b"Expect: a miracle\r\nContent-Length: 5\r\n\r\n12345",
        417,
        "expectation-failed",
    ),
    "rebound": (b"GET /bookings HTTP/1.1\r\nHost: rebound.example\r\n\r\n", 421, "unknown-host"),
    "HTTP/2": (b"GET /bookings HTTP/2.0\r\nHost: x\r\n\r\n", 505, "http-version"),
}
PROVOKED_BY_OTHER_TESTS = {
    *("malformed-json", "invalid-fields", "not-json"),
    *("no-such-path", "no-such-booking", "method-not-allowed"),
    *("slot-taken", "key-reused", "too-slow", "internal-error"),
    *("database-busy", "database-unavailable", "database-full", "shutting-down"),
}


@pytest.mark.both_stores
@pytest.mark.parametrize("case", FRAMING)
def test_refused_framing_closes_the_connection(shared_server: Server, case: str) -> None:
    sent, status, kind = FRAMING[case]
    before = shared_server.rows()
    # What follows would be answered too if the connection went on; `only_response` takes one answer only.
    answer = only_response(shared_server.raw(sent + b"GET /bookings?tenant_id=x HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert_problem(answer, status, kind)
    assert answer.headers["Connection"] == "close"
    assert shared_server.rows() == before


def test_body_without_a_content_type(shared_server: Server) -> None:
    before = shared_server.rows()
    body = json.dumps(GOOD).encode()
    head = b"POST /bookings HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    answer = only_response(shared_server.raw(head + b"Content-Length: %d\r\n\r\n" % len(body) + body))
    assert_problem(answer, 415, "not-json")
    assert answer.headers["Accept"] == "application/json"
    assert shared_server.rows() == before


def test_every_kind_of_problem_is_provoked_here() -> None:
    assert {kind for _, _, kind in FRAMING.values()} | PROVOKED_BY_OTHER_TESTS == set(KINDS)


# --- The database in trouble


def test_busy_database(server: Server) -> None:
    booked = server.book("acme", "2026-01-01T10:00:00Z", "k0")
    before = server.rows()

    def ask(number: int) -> tuple[Response, float]:
        started = time.monotonic()
        if number < 4:
            answer = server.book("acme", f"2026-01-02T1{number}:00:00Z", f"k{number + 1}")
        else:
            answer = server.call("GET", "/bookings", X_Tenant_ID="acme")
        return answer, time.monotonic() - started

    with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        *refused, (listed, list_seconds) = at_once(5, ask)
        for answer, seconds in refused:
            assert_unavailable(answer, "database-busy")
            # Each waits its own time, and not for the time of those before it.
            assert BUSY_SECONDS * 0.9 < seconds < BUSY_SECONDS * 1.9
        assert (listed.status, listed.json) == (200, [booked.json])
        assert list_seconds < BUSY_SECONDS * 0.5
        assert server.rows() == before
        waited: list[Response] = []
        waiting = threading.Thread(target=lambda: waited.append(ask(0)[0]))
        waiting.start()
        waiting.join(BUSY_SECONDS / 20)
        assert waiting.is_alive()
        holder.execute("ROLLBACK")
        waiting.join(SOON)
    # The refused ones have used up no key, and a request that was waiting goes through.
    assert [waited[0].status, *(ask(number)[0].status for number in range(4))] == [201, 200, 201, 201, 201]
    assert len(server.rows()) == 5


@pytest.mark.skipif(os.name == "nt", reason="Windows lets nobody move a file that is open")
def test_database_moved_away(server: Server) -> None:
    booked = server.book("acme")
    aside = server.database.with_name("aside.db")
    server.database.rename(aside)
    files = sorted(os.listdir(aside.parent))
    for _ in range(2):
        assert_unavailable(server.book("acme", key="k2"), "database-unavailable")
        assert_unavailable(server.book("acme", "2026-01-02T10:00:00Z", "k2"), "database-unavailable")
        for target in ("/bookings", booked.headers["Location"]):
            assert_unavailable(server.call("GET", target, X_Tenant_ID="acme"), "database-unavailable")
    assert sorted(os.listdir(aside.parent)) == files
    aside.rename(server.database)
    assert server.book("acme").body == booked.body
    assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
    assert len(server.rows()) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; only root on Linux can have one without further ado."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("a disk that can be filled needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    database = small_disk / "bookings.db"
    with contextlib.closing(Server(tmp_path, "--database", str(database))) as server:
        server.database = database
        booked = server.book("acme")
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        for _ in range(2):
            full = server.book("acme", "2026-01-02T10:00:00Z", "k2")
            assert_problem(full, 507, "database-full")
            assert_documented(full, "POST", "/bookings")
        listed = server.call("GET", "/bookings", X_Tenant_ID="acme")
        assert (listed.status, listed.json) == (200, [booked.json])
        assert len(server.rows()) == 1
        filler.unlink()
        assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
        assert len(server.rows()) == 2


def test_fault_of_the_program(server: Server) -> None:
    """A trigger that somebody added raises an IntegrityError that is no taken slot."""
    booked = server.book("acme")
    with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as db:
        db.execute(
            "CREATE TRIGGER closed BEFORE INSERT ON bookings "
            "BEGIN SELECT RAISE(ABORT, 'closed on Mondays'); END"
        )
        answer = server.book("acme", "2026-01-02T10:00:00Z", "k2")
        problem = answer.json
        assert (answer.status, answer.headers["Content-Type"]) == (500, "application/problem+json")
        assert set(problem) == {"type", "title", "status", "detail", "errors", "request_id"}
        assert (problem["type"], problem["status"], problem["errors"]) == (
            "/problems/internal-error",
            500,
            [],
        )
        assert problem["title"] and len(problem["request_id"]) >= 8
        for word in ("Traceback", "sqlite", "SQL", "INSERT", "Integrity", "Mondays", "k2", "acme", ".py"):
            assert word not in answer.body.decode()
        log = server.log.read_text()
        assert [line for line in log.splitlines() if problem["request_id"] in line]
        assert "IntegrityError: closed on Mondays" in log
        assert server.book("acme", "2026-01-02T10:00:00Z", "k2").json["request_id"] != problem["request_id"]
        assert server.call("GET", "/bookings", X_Tenant_ID="acme").json == [booked.json]
        assert len(server.rows()) == 1
        db.execute("DROP TRIGGER closed")
    assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
    assert len(server.rows()) == 2


# --- Rows written by hand


INSERT = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES"


@pytest.mark.parametrize(
    "statement",
    [
        f"{INSERT} ('acme', '2026-01-01T10:00:00Z', 'k9')",
        f"{INSERT} ('acme', '2026-01-09T10:00:00Z', 'k1')",
        f"{INSERT} ('else', '2026-01-09T10:00:00Z', 'k1')",
        f"{INSERT} ('acme', '2026-01-09T10:00:00Z', 'k9'), ('acme', '2026-01-02T10:00:00Z', 'k8')",
        "INSERT INTO bookings SELECT 9, tenant_id, start_time_utc, 'k9', created_at FROM bookings",
        "UPDATE bookings SET start_time_utc = '2026-01-01T10:00:00Z'",
        "UPDATE bookings SET idempotency_key = 'k1'",
    ],
)
def test_duplicate_by_hand_is_refused_by_the_database(server: Server, statement: str) -> None:
    assert server.book("acme", "2026-01-01T10:00:00Z", "k1").status == 201
    assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
    before = server.rows()
    refused = pytest.raises(sqlite3.IntegrityError, match="UNIQUE constraint failed")
    with contextlib.closing(sqlite3.connect(server.database)) as db, refused:
        db.executescript(statement)
    assert server.rows() == before


def test_row_by_hand_is_a_booking_like_any_other(server: Server) -> None:
    slot, other_slot = "2026-01-01T10:00:00Z", "2026-01-02T10:00:00Z"
    insert(server.database, tenant_id="acme", start_time_utc=slot, idempotency_key="by hand")
    old = {"idempotency_key": "a year ago", "created_at": "2025-01-01T00:00:00Z"}
    insert(server.database, tenant_id="acme", start_time_utc=other_slot, **old)
    first, second = server.call("GET", "/bookings?tenant_id=acme").json
    assert list(first) == MEMBERS and CANONICAL.fullmatch(first["created_at"])
    assert [first[name] for name in MEMBERS[1:4]] == ["acme", slot, "by hand"]
    assert second["created_at"] == "2025-01-01T00:00:00Z"
    assert server.call("GET", f"/bookings/{first['id']}", X_Tenant_ID="acme").json == first
    for start, booking in [(slot, first), (other_slot, second)]:
        replay = server.book("acme", start, booking["idempotency_key"])
        assert (replay.status, replay.json) == (200, booking)
        assert replay.headers["Idempotent-Replayed"] == "true"
    assert_problem(server.book("acme", slot, "k9"), 409, "slot-taken", "start_time_utc")
    assert_problem(server.book("else", slot, "by hand"), 422, "key-reused", "idempotency_key")
    assert server.rows() == [("acme", slot, "by hand"), ("acme", other_slot, "a year ago")]


def test_slot_freed_by_hand_is_free(server: Server) -> None:
    assert server.book("acme", key="gone").status == 201
    with contextlib.closing(sqlite3.connect(server.database)) as db, db:
        db.execute("DELETE FROM bookings")
    assert server.book("acme", key="gone").status == 201
    assert [key for _, _, key in server.rows()] == ["gone"]


# --- Last, because the wait for it has passed meanwhile


@pytest.mark.parametrize(("part", "limit"), [("head", HEAD_SECONDS), ("body", BODY_SECONDS)])
def test_too_slow(shared_server: Server, stalled: dict[str, socket.socket], part: str, limit: float) -> None:
    before = shared_server.rows()
    connection = stalled[part]
    connection.settimeout(limit + SOON)
    received = b""
    while True:
        more = connection.recv(65536)
        if not more:
            break
        received += more
    answer = only_response(received)
    assert_problem(answer, 408, "too-slow")
    assert answer.headers["Connection"] == "close"
    assert shared_server.rows() == before
