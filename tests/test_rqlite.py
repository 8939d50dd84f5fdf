"""The store on a real rqlite node. Tests of the contract run on it too: see `both_stores`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookings.stores import sql
from bookings.stores.rqlite_client import RqliteClient
from tests.helpers.clients import as_header
from tests.helpers.clusters import ClusterServer, Link, Node, cluster, url
from tests.helpers.processes import run_and_fail
from tests.helpers.servers import CANONICAL, ROOT, assert_problem

BOOKING = ("acme", "2026-01-01T10:00:00Z", "k1")


@pytest.mark.on_rqlite
def test_booking_is_stored_as_in_its_response(server: ClusterServer, rqlite_node: Node) -> None:
    """That includes `created_at`: the server passes its time, because each node has another."""
    created = server.book(*BOOKING)
    assert created.status == 201
    assert created.headers["Location"] == f"bookings/{created.json['id']}"
    assert CANONICAL.fullmatch(created.json["created_at"])
    assert rqlite_node.query("SELECT * FROM bookings") == [tuple(created.json.values())]
    replay = server.book(*BOOKING)
    assert (replay.status, replay.body) == (200, created.body)
    assert replay.headers["Idempotent-Replayed"] == "true"
    assert server.rows() == [BOOKING]


@pytest.mark.on_rqlite
@pytest.mark.parametrize(
    "text", ["X'41'", "x''", "X'4142434445'", "?1 ? :a $[0]", '["a"]', "'); --", "é🎫\\u0041"]
)
def test_text_that_looks_like_sql_or_json_is_stored_as_text(
    server: ClusterServer, rqlite_node: Node, text: str
) -> None:
    created = server.book(text, BOOKING[1], text)
    assert created.status == 201
    types = "typeof(tenant_id), typeof(idempotency_key)"
    assert rqlite_node.query(f"SELECT tenant_id, idempotency_key, {types} FROM bookings") == [
        (text, text, "text", "text")
    ]
    assert server.book(text, BOOKING[1], text).body == created.body
    assert_problem(server.book(text, BOOKING[1], "k2"), 409, "slot-taken", "start_time_utc")
    assert_problem(server.book("other", BOOKING[1], text), 422, "key-reused", "idempotency_key")
    header = as_header(text)
    assert server.call("GET", "/bookings", X_Tenant_ID=header).json == [created.json]
    location = created.location
    assert server.call("GET", location, X_Tenant_ID=header).body == created.body
    assert len(server.rows()) == 1


@pytest.mark.on_rqlite
def test_schema_rejects_insert_by_hand_on_node(server: ClusterServer, rqlite_node: Node) -> None:
    assert server.book(*BOOKING).status == 201
    insert = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES"
    for values, violated in [
        ("('acme', '2026-01-01T10:00:00Z', 'k2')", "UNIQUE"),
        ("('acme', '2026-01-01T11:00:00Z', 'k1')", "UNIQUE"),
        ("('acme', '2026-01-01 11:00:00', 'k2')", "CHECK"),
        ("('', '2026-01-01T11:00:00Z', 'k2')", "CHECK"),
    ]:
        error = rqlite_node.execute(f"{insert} {values}")
        assert error.startswith(f"{violated} constraint failed"), values
    assert server.rows() == [BOOKING]
    # Only the API rejects white space; such a row must not break its tenant's list.
    assert rqlite_node.execute(f"{insert} (' acme', '2026-01-01T11:00:00Z', 'k2')") == ""
    assert server.rows() == [BOOKING, (" acme", "2026-01-01T11:00:00Z", "k2")]
    assert len(server.call("GET", "/bookings?tenant_id=acme").json) == 1


@pytest.mark.on_rqlite
@pytest.mark.parametrize(
    ("action", "logged"),
    [
        ("INSERT INTO bookings SELECT * FROM nowhere", "no such table: main.nowhere"),
        ("SELECT RAISE(IGNORE)", "the INSERT had no effect"),
    ],
    ids=["fault", "ignore"],
)
def test_insert_stopped_by_trigger_is_internal_error(
    server: ClusterServer, rqlite_node: Node, action: str, logged: str
) -> None:
    trigger = f"BEFORE INSERT ON bookings BEGIN {action}; END"
    assert rqlite_node.execute(f"CREATE TRIGGER closed {trigger}") == ""
    response = server.book(*BOOKING)
    assert rqlite_node.execute("DROP TRIGGER closed") == ""
    assert (response.status, response.json["type"]) == (500, "/problems/internal-error")
    assert b"nowhere" not in response.body
    log = server.log.read_text()
    assert logged in log and response.json["request_id"] in log
    server.log.write_text("")  # Later tests expect it to be empty.
    assert server.rows() == []
    assert server.book(*BOOKING).status == 201


@pytest.mark.on_rqlite
def test_rows_affected_counts_rows_of_each_statement(
    server: ClusterServer, rqlite_node: Node
) -> None:
    """rqlite leaves it out of a result if no row was affected."""
    booking_id = server.book(*BOOKING).json["id"]
    statements = [sql.INSERT_CANCELLATION, sql.DELETE_BOOKING]
    found = {"tenant_id": "acme", "cancelled_at": "2026-01-01T00:00:00Z"}

    def affected(number: int) -> list[int | None]:
        values = {**found, "id": number}
        results = client.execute([(statement, values) for statement in statements])
        return [result.get("rows_affected") for result in results]

    with contextlib.closing(RqliteClient(url(rqlite_node))) as client:
        assert affected(booking_id + 1) == [None, None]
        assert affected(booking_id) == [1, 1]
        assert affected(booking_id) == [None, None]
    assert server.rows() == []
    assert server.rows("cancellations") == [BOOKING]


@pytest.mark.on_rqlite
def test_booking_is_cancelled_in_one_transaction(
    server: ClusterServer, rqlite_node: Node, tmp_path: Path
) -> None:
    """In one request. `cancelled_at` is the same on each node, because the server passes it."""
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(contextlib.closing(Link(rqlite_node, lambda request: False)))
        linked = ClusterServer(tmp_path, rqlite_node, database=f"http://{link.address}")
        stack.enter_context(contextlib.closing(linked))
        booked = linked.book(*BOOKING)
        link.targets.clear()
        link.bodies.clear()
        assert linked.cancel(booked.json["id"]).status == 204
        ((target,), (statements,)) = link.targets, link.bodies
        assert target.startswith("/db/execute?transaction&")
        ((cancelled_at,),) = rqlite_node.query("SELECT cancelled_at FROM cancellations")
        assert CANONICAL.fullmatch(cancelled_at)
        assert all(json.loads(values)["cancelled_at"] == cancelled_at for _, values in statements)
    assert server.rows() == []


@pytest.mark.on_rqlite
def test_reads_after_booking_use_strong_consistency(
    server: ClusterServer, rqlite_node: Node, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(contextlib.closing(Link(rqlite_node, lambda request: False)))
        linked = ClusterServer(tmp_path, rqlite_node, database=f"http://{link.address}")
        stack.enter_context(contextlib.closing(linked))
        booked = linked.book("levels", *BOOKING[1:])
        link.targets.clear()
        location = booked.location
        responses = [
            linked.book("levels", *BOOKING[1:]),
            linked.book("levels", BOOKING[1], "k2"),
            linked.call("GET", "/bookings?tenant_id=levels"),
            linked.call("GET", f"{location}?tenant_id=levels"),
            linked.cancel(booked.json["id"] + 1, "levels"),
        ]
        assert [response.status for response in responses] == [200, 409, 200, 200, 404]
        reads = [target for target in link.targets if target.startswith("/db/query")]
        assert len(reads) == 5
        assert all("level=strong" in target for target in reads)
        link.targets.clear()
        assert linked.book("levels", "2026-01-02T10:00:00Z", "k3").status == 201
        assert len(link.targets) == 1, "booking a free slot took more than one round trip"
    assert len(server.rows()) == 2


# --- Tables that are not those of schema.sql


@pytest.fixture(scope="module")
def other_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Another node, because rqlite still reports the columns of a table after it was replaced."""
    with cluster(tmp_path_factory.mktemp("other")) as nodes:
        yield nodes[0]


@pytest.mark.parametrize(
    ("create", "message"),
    [
        ("CREATE TABLE bookings (guest, room)", "not the one in schema.sql"),
        ("CREATE VIEW bookings AS SELECT 1", "no table bookings"),
        ("CREATE INDEX bookings ON others (a)", "bookings"),
    ],
    ids=["table of another program", "view", "index"],
)
def test_server_rejects_cluster_with_other_bookings_object(
    other_node: Node, tmp_path: Path, create: str, message: str
) -> None:
    for statement in (
        "DROP TABLE IF EXISTS bookings",
        "CREATE TABLE IF NOT EXISTS others (a)",
        create,
    ):
        assert other_node.execute(statement) == ""
    objects = "SELECT name, sql FROM sqlite_master ORDER BY name"
    before = other_node.query(objects)
    database = url(other_node)
    command = [sys.executable, str(ROOT / "run.py"), "--port=0", f"--database={database}"]
    line = run_and_fail(tmp_path, *command)
    assert message in line and database in line
    assert other_node.query(objects) == before
    assert other_node.execute(f"DROP {create.split()[1]} bookings") == ""
