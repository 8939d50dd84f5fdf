"""The client of rqlite: nodes that fail, lost responses, cluster URLs, passwords, certificates."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bookings.stores.model import FailureReason, NewBooking, Outcome, Unavailable
from bookings.stores.rqlite import RqliteStore
from bookings.stores.rqlite_client import ATTEMPT_SECONDS
from tests.helpers.clusters import ClusterServer, Link, Node, free_ports
from tests.helpers.processes import run_and_fail
from tests.helpers.servers import ROOT, SOON, assert_problem, at_once, patched
from tests.helpers.tools import assert_one_line, run_tool

# Replaces CALL_SECONDS, to shorten the tests that wait until it is over.
CALL_SECONDS = 2.5
BOOKING = NewBooking("acme", "2026-01-01T10:00:00Z", "k1")

# --- Nodes that send nonsense


def http_response(status: str, body: str, *headers: str) -> bytes:
    length = f"Content-Length: {len(body)}"
    lines = [f"HTTP/1.1 {status}", length, "Connection: close", *headers, "", body]
    return "\r\n".join(lines).encode()


def result(result: object) -> bytes:
    return http_response("200 OK", json.dumps({"results": [result]}))


INSERTED = result({"last_insert_id": 7, "rows_affected": 1})


@contextlib.contextmanager
def scripted_store(responses: Sequence[bytes]) -> Iterator[RqliteStore]:
    """Yield a store on a node that sends one response per connection, repeating the last."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # The listener is shut down.
                for number in range(1000):
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(SOON)
                        connection.recv(65536)
                        connection.sendall(responses[min(number, len(responses) - 1)])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with contextlib.closing(RqliteStore(url)) as store:
                yield store
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(SOON)


@pytest.mark.parametrize(
    "nonsense",
    [
        http_response("301 Moved Permanently", "", "Location: http://127.0.0.1:abc/"),
        http_response("301 Moved Permanently", "", "Location: ://"),
        http_response("200 OK", '{"results":["x"]}'),
        http_response("200 OK", '{"results":[null]}'),
        http_response("200 OK", '{"results":[{"error":[]}]}'),
        http_response("200 OK", "[5]"),
        http_response("200 OK", "null"),
        http_response("200 OK", "[" * 100_000),
        http_response("200 OK", ""),
        http_response("503 Service Unavailable", "leader not found"),
        b"",
        b"garbage\r\n\r\n",
    ],
    ids=lambda sent: repr(sent[:16] + sent[-24:]),
)
def test_request_is_repeated_after_nonsense(nonsense: bytes) -> None:
    with scripted_store([nonsense, INSERTED]) as store:
        outcome, booking = store.book(BOOKING)
    assert outcome is Outcome.CREATED
    assert booking
    assert (booking.id, booking.tenant_id, booking.idempotency_key) == (7, "acme", "k1")


@pytest.mark.parametrize(
    "fault",
    [
        "disk I/O error",
        "attempt to write a readonly database",
        "database disk image is malformed",
        "database is locked",
        "database or disk is full",
        "context deadline exceeded",
    ],
)
def test_fault_of_node_is_reported_as_unreachable(fault: str) -> None:
    with scripted_store([result({"error": fault})]) as store, pytest.raises(Unavailable) as raised:
        store.book(BOOKING)
    assert raised.value.reason is FailureReason.UNREACHABLE
    assert str(raised.value.__cause__) == fault


# --- Lost responses


@contextlib.contextmanager
def linked_server(
    base: Path, node: Node, loses: Callable[[str], bool] = lambda request: False
) -> Iterator[tuple[ClusterServer, Link]]:
    """Run a server that reaches the node through a `Link`."""
    patch = (
        f"from bookings.stores import rqlite_client\nrqlite_client.CALL_SECONDS = {CALL_SECONDS}"
    )
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(contextlib.closing(Link(node, loses)))
        database = f"http://{link.address}"
        server = ClusterServer(base, node, database=database, program=patched(base, patch))
        yield stack.enter_context(contextlib.closing(server)), link


class Losses:
    """Loses as many of the next responses to writes and to reads as `left` says."""

    def __init__(self) -> None:
        self.left = {"/db/execute": 0, "/db/query": 0}

    def __call__(self, request: str) -> bool:
        path = request.partition("?")[0]
        self.left[path] -= 1
        return self.left[path] >= 0


@pytest.mark.on_rqlite
def test_request_is_repeated_after_lost_response(
    server: ClusterServer, rqlite_node: Node, tmp_path: Path
) -> None:
    """The first INSERT was executed. The repeated one must not make it a taken slot."""
    losses = Losses()
    with linked_server(tmp_path, rqlite_node, losses) as (linked, _):
        for path, lost in [("/db/execute", 1), ("/db/execute", 3)]:
            start = f"2026-01-0{lost}T10:00:00Z"
            losses.left[path] = lost
            booked = linked.book("acme", start, start)
            assert booked.status == 200, booked.body
            select = f"SELECT * FROM bookings WHERE start_time_utc = '{start}'"
            assert rqlite_node.query(select) == [tuple(booked.json.values())]
            losses.left[path] = lost
            assert_problem(linked.book("acme", start, "other"), 409, "slot-taken", "start_time_utc")
            losses.left[path] = lost
            reused = linked.book("other", start, start)
            assert_problem(reused, 422, "key-reused", "idempotency_key")
            losses.left["/db/query"] = lost
            replay = linked.book("acme", start, start)
            assert (replay.status, replay.body) == (200, booked.body)
        assert len(server.rows()) == 2


@pytest.mark.on_rqlite
def test_cancellation_is_repeated_after_lost_response(
    server: ClusterServer, rqlite_node: Node, tmp_path: Path
) -> None:
    """The first request was executed. The repeated one finds no booking and looks it up."""
    losses = Losses()
    with linked_server(tmp_path, rqlite_node, losses) as (linked, _):
        for day, lost in [(1, {"/db/execute": 1}), (2, {"/db/execute": 3, "/db/query": 1})]:
            booking_id = linked.book("acme", f"2026-01-0{day}T10:00:00Z", f"k{day}").json["id"]
            losses.left.update(lost)
            assert linked.cancel(booking_id).status == 204
            assert all(left < 0 for left in losses.left.values()), "a response was not lost"
            losses.left.update(lost)
            assert linked.cancel(booking_id).status == 204
            losses.left.update(lost)
            assert_problem(linked.cancel(booking_id, "other"), 404, "no-such-booking")
        assert server.rows() == []
        assert [key for _, _, key in server.rows("cancellations")] == ["k1", "k2"]


@pytest.mark.on_rqlite
def test_outcome_is_not_guessed_if_all_responses_are_lost(
    server: ClusterServer, rqlite_node: Node, tmp_path: Path
) -> None:
    """Neither if those to the write are lost, nor if those to the look-up are."""
    losing = threading.Event()
    other = ("acme", "2026-01-02T10:00:00Z", "k2")
    cancelled = ("acme", "2026-01-03T10:00:00Z", "k3")

    def loses(request: str) -> bool:
        return losing.is_set() and (
            BOOKING.idempotency_key in request
            or "cancelled_at" in request
            or request.startswith("/db/query")
        )

    assert server.book(*other).status == 201
    cancelled_id = server.book(*cancelled).json["id"]
    with linked_server(tmp_path, rqlite_node, loses) as (linked, _):
        losing.set()
        began = time.monotonic()
        sends = [
            lambda: linked.book(*BOOKING),
            lambda: linked.book(*other),
            lambda: linked.cancel(cancelled_id),
        ]
        responses = at_once(len(sends), lambda number: sends[number]())
        took = time.monotonic() - began
        assert CALL_SECONDS - ATTEMPT_SECONDS - 1 < took < CALL_SECONDS + 5
        for response in responses:
            assert_problem(response, 503, "database-unavailable")
            assert int(response.headers["Retry-After"]) > 0
        # The writes were executed, and the responses did not deny it.
        assert server.rows() == [other, BOOKING]
        losing.clear()
        assert [send().status for send in sends] == [200, 200, 204]
        assert server.rows() == [other, BOOKING]
        assert server.rows("cancellations") == [cancelled]


@pytest.mark.on_rqlite
def test_booking_made_during_cancellation_is_cancelled(
    server: ClusterServer, rqlite_node: Node, tmp_path: Path
) -> None:
    """It is made after the statements that move it, and before the look-up."""
    last = server.book(*BOOKING).json["id"]
    made: list[int] = []

    def book_after_statements(request: str) -> bool:
        if "INSERT INTO cancellations" in request and not made:
            made.append(server.book("acme", "2026-01-02T10:00:00Z", "k2").json["id"])
        return False

    with linked_server(tmp_path, rqlite_node, book_after_statements) as (linked, _):
        response = linked.call("DELETE", f"/bookings/{last + 1}", X_Tenant_ID="acme")
    assert made == [last + 1]
    assert response.status == 204, response.body
    assert rqlite_node.query("SELECT id FROM cancellations") == [(last + 1,)]
    assert server.rows() == [BOOKING]


@pytest.mark.on_rqlite
def test_values_travel_as_one_json_parameter(
    server: ClusterServer, rqlite_node: Node, tmp_path: Path
) -> None:
    """rqlite would turn a parameter like X'41' into a blob."""
    with linked_server(tmp_path, rqlite_node) as (linked, link):
        link.bodies.clear()
        booked = linked.book("X'41'", BOOKING.start_time_utc, "X'42'")
        assert linked.book("X'41'", BOOKING.start_time_utc, "X'43'").status == 409
        assert linked.call("GET", "/bookings?tenant_id=X'41'").json == [booked.json]
        values = [json.loads(parameter) for ((_, parameter),) in link.bodies]
        # The time is among them, since each node would have another.
        inserted = {name: value for name, value in booked.json.items() if name != "id"}
        assert values[0] == inserted
        assert len(values) == 4
        assert not any("X'4" in statement for ((statement, _),) in link.bodies)
    assert server.rows() == [("X'41'", BOOKING.start_time_utc, "X'42'")]


# --- URLs, passwords and certificates


def failure_of(tool: str, *flags: str, **environment: str) -> str:
    """Run run.py or a tool that must fail; return the only line it prints."""
    if tool == "run.py":
        command = [sys.executable, str(ROOT / "run.py"), "--port=0"]
        return run_and_fail(ROOT, *command, *flags, **environment)
    ended = run_tool(tool, *flags, **environment)
    assert_one_line(ended, tool)
    return ended.stderr


@pytest.mark.parametrize(
    "database",
    [
        "http://",
        "http://:4001",
        "http://a b",
        "http://host:port",
        "http://host:65536",
        "http://host/path",
        "https://u:secret@",
    ],
)
def test_malformed_cluster_url_is_rejected(database: str) -> None:
    for tool in ("run.py", "show"):
        line = failure_of(tool, f"--database={database}")
        assert "http://host:4001,host:4001" in line
        assert "secret" not in line


@pytest.mark.on_rqlite
def test_unreachable_node_is_skipped(
    server: ClusterServer, rqlite_node: Node, tmp_path: Path
) -> None:
    (unused,) = free_ports(1)
    database = f"http://127.0.0.1:{unused},{rqlite_node.address}"
    with contextlib.closing(ClusterServer(tmp_path, rqlite_node, database=database)) as running:
        assert running.startup_line.endswith(f", database {database}\n")
        assert running.book(*BOOKING).status == 201
        assert running.call("GET", "/ready").status == 200
        assert server.rows() == [BOOKING]


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, dict[str, str]]]:
    """A node with a password and a certificate, and the environment that trusts it."""
    base = tmp_path_factory.mktemp("secured")
    if not shutil.which("openssl"):
        pytest.skip("creates a certificate with openssl")
    key, certificate, users = base / "key.pem", base / "certificate.pem", base / "users.json"
    request = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    name = "-addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *f"{request} {name}".split(), "-keyout", key, "-out", certificate],
        capture_output=True,
        check=True,
    )
    user = {"username": "bookings", "password": "p@ss:w/rd", "perms": ["all"]}
    users.write_text(json.dumps([user]))
    flags = (f"-http-cert={certificate}", f"-http-key={key}", f"-auth={users}")
    node = Node(base, "secured", flags=flags)
    try:
        yield node, {"SSL_CERT_FILE": str(certificate)}
    finally:
        node.kill()


def test_password_and_https_are_used(secured: tuple[Node, dict[str, str]], tmp_path: Path) -> None:
    node, trusted = secured
    database = f"https://bookings:p%40ss%3Aw%2Frd@{node.address}"
    running = ClusterServer(tmp_path, node, database=database, **trusted)
    with contextlib.closing(running):
        assert running.startup_line.endswith(f", database https://{node.address}\n")
        booked = running.book(*BOOKING)
        assert (booked.status, running.book(*BOOKING).status) == (201, 200)
        shown = run_tool("show", "--json", BOOKINGS_DB=database, **trusted)
        assert [json.loads(line) for line in shown.stdout.splitlines()] == [booked.json]


def test_unusable_cluster_is_reported_without_its_password(
    secured: tuple[Node, dict[str, str]], tmp_path: Path
) -> None:
    node, trusted = secured
    unused = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    copy = str(tmp_path / "copy.db")
    wrong = f"https://bookings:secret@{node.address}"
    unreachable = f"http://{unused} does not answer"
    cases: list[tuple[tuple[str, ...], str, dict[str, str], str]] = [
        (("run.py",), f"http://user:secret@{unused}", {}, unreachable),
        (("show",), f"http://user:secret@{unused}", {}, unreachable),
        (("backup", copy), f"http://user:secret@{unused}", {}, unreachable),
        (("show",), wrong, trusted, "401"),
        (("show",), wrong, {"SSL_CERT_FILE": os.devnull}, "certificate"),
    ]

    def fail(number: int) -> str:
        tool, database, environment, _ = cases[number]
        return failure_of(*tool, BOOKINGS_DB=database, **environment)

    # At once, because each repeats its request until the deadline.
    for line, (_, _, _, message) in zip(at_once(len(cases), fail), cases):
        assert message in line
        assert "secret" not in line
    assert not list(tmp_path.iterdir())
