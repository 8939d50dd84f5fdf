"""Routes: outcomes of a booking, reads, methods, and the pages beside the bookings."""

from __future__ import annotations

import contextlib
import http.client
import json
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import pytest

from bookings.stores.schema import schema_statements
from tests.helpers.clients import as_header
from tests.helpers.openapi import DOCUMENT
from tests.helpers.servers import CANONICAL, SOON, Response, Server, assert_problem
from tests.helpers.storage import set_aside
from tests.helpers.tools import posix_only
from tests.helpers.values import COLUMNS, SLOT, VALID_BODY

# --- Outcomes of a booking


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def assert_booking(response: Response, status: int) -> dict[str, Any]:
    assert response.status == status, response.body
    assert response.headers["Content-Type"] == "application/json"
    assert list(response.json) == list(COLUMNS)
    booking: dict[str, Any] = response.json
    return booking


def test_created_booking_is_returned_and_stored(server: Server) -> None:
    began = now()
    created = server.book("acme", "2026-01-01T10:00:00Z", "k1")
    booking = assert_booking(created, 201)
    assert created.headers["Location"] == f"bookings/{booking['id']}"
    assert created.headers["Idempotent-Replayed"] is None
    assert type(booking["id"]) is int
    assert CANONICAL.fullmatch(booking["created_at"])
    assert began <= booking["created_at"] <= now()
    assert server.rows() == [("acme", "2026-01-01T10:00:00Z", "k1")]
    assert tuple(booking.values())[1:4] == server.rows()[0]
    with contextlib.closing(sqlite3.connect(server.database)) as db:
        assert db.execute("SELECT * FROM bookings").fetchall() == [tuple(booking.values())]


def test_replay_returns_identical_booking_after_restart(server: Server, tmp_path: Path) -> None:
    tenant, key, start = 'Zoë "& sons" \\ 日本 🎫 %41', 'a"b\\c', "2026-01-01T10:00:00Z"
    everything = {"tenant_id": tenant, "start_time_utc": start, "idempotency_key": key}
    no_key = {name: value for name, value in everything.items() if name != "idempotency_key"}
    in_reverse = dict(reversed(list(everything.items())))
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
        (json.dumps(in_reverse, indent=4, ensure_ascii=False).encode(), {}),
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
        pytest.param("anna", 2, "k1", 422, id="key of another slot, slot taken under another key"),
        pytest.param("bert", 3, "k1", 422, id="key of another tenant and slot"),
        pytest.param("bert", 2, "k1", 422, id="key of another tenant"),
        pytest.param("bert", 1, "k1", 422, id="key of another tenant, at its slot, slot taken"),
        pytest.param("bert", 2, "k9", 201, id="slot taken by another tenant only"),
        pytest.param("anna", 3, "k9", 201, id="free"),
        pytest.param("anna", 3, "K1", 201, id="key in upper case"),
    ],
)
def test_outcome_of_booking(server: Server, tenant: str, hour: int, key: str, status: int) -> None:
    def slot(number: int) -> str:
        return f"2026-01-01T0{number}:00:00Z"

    existing = [("anna", slot(1), "k1"), ("anna", slot(2), "k2"), ("bert", slot(1), "k3")]
    first, *_ = [server.book(*row) for row in existing]
    response = server.book(tenant, slot(hour), key)
    if status == 409:
        assert_problem(response, 409, "slot-taken", "start_time_utc")
    elif status == 422:
        assert_problem(response, 422, "key-reused", "idempotency_key")
    else:
        assert_booking(response, status)
    assert (response.body == first.body) == (status == 200)
    assert server.rows() == existing + ([(tenant, slot(hour), key)] if status == 201 else [])
    if status in (409, 422):
        for word in ("anna", "bert", "k1", "k2", "k3", "2026"):
            assert word not in response.body.decode()


@pytest.mark.both_stores
def test_conflict_does_not_use_key(server: Server) -> None:
    assert server.book("one", "2026-01-01T10:00:00Z", "k1").status == 201
    assert server.book("one", "2026-01-01T10:00:00Z", "k2").status == 409
    assert server.book("one", "2026-01-01T11:00:00Z", "k2").status == 201
    assert server.rows() == [
        ("one", "2026-01-01T10:00:00Z", "k1"),
        ("one", "2026-01-01T11:00:00Z", "k2"),
    ]


# --- Reads


@pytest.mark.both_stores
def test_list_is_array_ordered_by_start_time(server: Server) -> None:
    empty = server.call("GET", "/bookings", X_Tenant_ID="acme")
    assert (empty.status, empty.json) == (200, [])
    starts = [
        "2026-10-01T09:00:00Z",
        "1970-01-01T00:00:00Z",
        "2026-02-01T09:00:00Z",
        "9999-12-31T23:59:59Z",
        "2026-02-01T08:59:59Z",
        "1999-12-31T23:59:59Z",
    ]
    booked = [server.book("acme", start, f"k{n}").json for n, start in enumerate(starts)]
    assert server.book("other", starts[0], "other").status == 201
    expected = sorted(booked, key=lambda booking: str(booking["start_time_utc"]))
    for target, headers in [
        ("/bookings", {"X_Tenant_ID": "acme"}),
        ("/bookings?tenant_id=acme", {}),
    ]:
        response = server.call("GET", target, **headers)
        assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
        assert response.json == expected
        assert all(list(booking) == list(COLUMNS) for booking in response.json)
    assert len(server.rows()) == len(starts) + 1


@pytest.mark.both_stores
def test_get_returns_booking_as_created(server: Server) -> None:
    created = server.book("acme")
    for target, headers in [("", {"X_Tenant_ID": "acme"}), ("?tenant_id=acme", {})]:
        response = server.call("GET", created.location + target, **headers)
        assert (response.status, response.body) == (200, created.body)
        assert response.headers["Content-Type"] == "application/json"


@pytest.mark.both_stores
def test_unknown_booking_is_404(server: Server) -> None:
    booked = server.book("acme")
    for tenant, number in [
        ("acme", booked.json["id"] + 1),
        ("acme", 2**53 - 1),
        ("other", booked.json["id"]),
    ]:
        response = server.call("GET", f"/bookings/{number}", X_Tenant_ID=tenant)
        assert_problem(response, 404, "no-such-booking")


# --- Paths and methods


@pytest.mark.both_stores
@pytest.mark.parametrize("resource", ["list", "booking"])
def test_head_is_get_without_body(server: Server, resource: str) -> None:
    created = server.book("acme")
    target = "/bookings" if resource == "list" else created.location
    head, get = (server.call(method, target, X_Tenant_ID="acme") for method in ("HEAD", "GET"))
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(get.body) > 0
    assert head.headers["Content-Type"] == get.headers["Content-Type"]


@pytest.mark.both_stores
@pytest.mark.parametrize(
    "path",
    [
        *("/nowhere", "/booking", "/Bookings", "/bookings/", "//bookings"),
        *("/bookings/0", "/bookings/01", "/bookings/-1", "/bookings/x", "/bookings/1/"),
        *("/bookings/1.0", "/bookings/%31", "/bookings/12345678901234567"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_path_is_404(shared_server: Server, method: str, path: str) -> None:
    body = VALID_BODY if method == "POST" else None
    before = shared_server.rows()
    assert_problem(shared_server.call(method, path, body, X_Tenant_ID="acme"), 404, "no-such-path")
    assert shared_server.rows() == before


@pytest.mark.both_stores
@pytest.mark.parametrize(
    ("path", "methods", "allow"),
    [
        ("/bookings", "PUT PATCH DELETE TRACE BREW get", "GET, HEAD, OPTIONS, POST"),
        ("/bookings/1", "POST PUT PATCH", "DELETE, GET, HEAD, OPTIONS"),
    ],
)
def test_method_not_allowed_is_405(server: Server, path: str, methods: str, allow: str) -> None:
    server.book("acme")
    for method in methods.split():
        response = server.call(method, path, VALID_BODY, X_Tenant_ID="acme")
        assert_problem(response, 405, "method-not-allowed")
        assert response.headers["Allow"] == allow
    options = server.call("OPTIONS", path)
    assert (options.status, options.headers["Allow"], options.body) == (204, allow, b"")
    assert len(server.rows()) == 1


# --- Index, live and ready


def test_index_links_every_path(shared_server: Server) -> None:
    index = shared_server.call("GET", "/")
    assert (index.status, index.headers["Content-Type"]) == (200, "application/json")
    links = index.json["links"]
    targets = [urljoin("/", link) for link in links.values()]
    for target in targets:
        assert shared_server.call("GET", target, X_Tenant_ID="acme").status == 200
    untemplated = {path for path in DOCUMENT["paths"] if "{" not in path}
    assert sorted(targets) == sorted(untemplated - {"/"})


class PrefixProxy(BaseHTTPRequestHandler):
    """Forwards /api/x as /x to the server at `port`, as nginx does with `location /api/`."""

    port = 0

    def do_GET(self) -> None:
        if not self.path.startswith("/api/"):
            self.send_error(502, "outside of /api")
            return
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)
        with contextlib.closing(connection):
            connection.request(self.command, self.path[4:], body, dict(self.headers))
            response = connection.getresponse()
            self.send_response_only(response.status)
            for name, value in response.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(response.read())

    do_POST = do_GET

    def log_message(self, *arguments: Any) -> None:
        pass


def test_references_resolve_behind_proxy_that_strips_prefix(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PrefixProxy, "port", server.port)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), PrefixProxy)
    threading.Thread(target=proxy.serve_forever, args=(0.01,)).start()
    base = f"http://127.0.0.1:{proxy.server_port}/api"

    def call(url: str, body: Any = None) -> tuple[http.client.HTTPResponse, Any]:
        assert url.startswith(f"{base}/")
        headers = {"X-Tenant-ID": "acme", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urlopen(UrlRequest(url, data, headers), timeout=SOON) as response:
            return response, json.loads(response.read())

    try:
        index = f"{base}/"
        _, found = call(index)
        for link in found["links"].values():
            call(urljoin(index, link))
        bookings = urljoin(index, found["links"]["bookings"])
        for start in (SLOT, "2026-01-01T11:00:00Z"):
            made, booking = call(bookings, {"start_time_utc": start, "idempotency_key": start})
            assert call(urljoin(bookings, made.headers["Location"]))[1] == booking
        first = f"{bookings}?limit=1"
        page, (one,) = call(first)
        target = page.headers["Link"].partition(">")[0][1:]
        _, (other,) = call(urljoin(first, target))
        assert (one["start_time_utc"], other) == (SLOT, booking)
        _, document = call(urljoin(index, found["links"]["openapi"]))
        (described,) = document["servers"]
        assert urljoin(f"{base}/openapi.json", described["url"]) == index
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert len(server.rows()) == 2


def test_references_resolve_from_absolute_target(server: Server) -> None:
    target = "http://bookings.localhost/bookings"
    created = server.call("POST", target, {**VALID_BODY})
    assert urljoin(target, created.headers["Location"]) == f"{target}/{created.json['id']}"
    server.book(VALID_BODY["tenant_id"], SLOT, "k2")
    page = server.call("GET", f"{target}?tenant_id=rejected&limit=1")
    following = urljoin(target, page.headers["Link"].partition(">")[0][1:])
    assert following == f"{target}?tenant_id=rejected&limit=1&after={SLOT}"
    (last,) = server.call("GET", following).json
    assert last == created.json


@pytest.mark.parametrize(
    "target", ["/", "/live", "/ready", "/openapi.json", "/problems", "/problems/slot-taken"]
)
def test_page_is_public_and_rejects_parameters(shared_server: Server, target: str) -> None:
    before = shared_server.rows()
    got, head = (
        shared_server.call(method, target, X_Tenant_ID="a" * 256) for method in ("GET", "HEAD")
    )
    assert (got.status, head.status, head.body) == (200, 200, b"")
    for name in ("Content-Type", "Content-Length"):
        assert head.headers[name] == got.headers[name]
    for query, field in (("?x=1", "x"), ("?tenant_id=acme", "tenant_id"), ("?%zz", "query")):
        assert_problem(shared_server.call("GET", target + query), 400, "invalid-fields", field)
    assert_problem(shared_server.call("POST", target, {}), 405, "method-not-allowed")
    assert_problem(shared_server.call("GET", f"{target}/x".replace("//", "/")), 404, "no-such-path")
    assert shared_server.rows() == before


@posix_only
@pytest.mark.parametrize(
    "instead",
    [None, b"", b"not a database\n" * 1000, b"SQLite format 3\0" * 256],
    ids=["none", "empty", "text", "malformed"],
)
def test_live_is_200_and_ready_503_while_database_is_unreadable(
    server: Server, instead: bytes | None
) -> None:
    assert server.book().status == 201
    moved = set_aside(server.database)
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
        moved.rename(server.database)
        ready = server.call("GET", "/ready")
        assert (ready.status, ready.json) == (200, {"status": "ready"})
        assert server.rows() == [("acme", SLOT, "k1")]


@pytest.mark.both_stores
@pytest.mark.parametrize(
    ("named", "change"),
    [
        ("trigger reject_cancelled", ["DROP TRIGGER reject_cancelled"]),
        ("table cancellations", ["DROP TABLE cancellations"]),
        ("bookings", ["DROP TABLE bookings"]),
        # As a tool does that changes a column.
        (
            "table bookings",
            [
                f"CREATE TABLE rebuilt ({', '.join(COLUMNS)})",
                "INSERT INTO rebuilt SELECT * FROM bookings",
                "DROP TABLE bookings",
                "ALTER TABLE rebuilt RENAME TO bookings",
            ],
        ),
    ],
    ids=["no trigger", "no cancellations", "no bookings", "no UNIQUE"],
)
def test_ready_is_503_while_rule_is_missing(server: Server, named: str, change: list[str]) -> None:
    server.execute(*change)
    server.log.write_text("")
    for _ in range(2):
        assert_problem(server.call("GET", "/ready"), 503, "database-unavailable")
    assert server.call("GET", "/live").status == 200
    assert server.log.read_text().count(named) >= 2
    server.execute("DROP TABLE IF EXISTS bookings", *schema_statements())
    ready = server.call("GET", "/ready")
    assert (ready.status, ready.json) == (200, {"status": "ready"})
    assert server.book().status == 201
