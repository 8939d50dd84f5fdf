"""Rules that the operator adds to the database: the client learns why it is rejected."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.servers import Server, assert_problem
from tests.helpers.storage import BOOKING

pytestmark = pytest.mark.both_stores

SUNDAY = ("acme", "2026-01-04T10:00:00Z", "k2")
TEXT = 'closed on Sundays; "it\'s" \\ ü文'
INSERT_RULE = "BEFORE INSERT ON bookings WHEN NEW.start_time_utc LIKE '2026-01-04%'"


@pytest.fixture
def dropped(server: Server) -> Iterator[None]:
    """Undo what the test did, because a node is shared by all tests."""
    yield
    server.execute("DROP TRIGGER IF EXISTS rule", "DROP INDEX IF EXISTS rule")
    server.execute("DELETE FROM cancellations")


def _add_trigger(server: Server, event: str, text: str = TEXT, action: str = "ABORT") -> None:
    quoted = text.replace("'", "''")
    server.execute(f"CREATE TRIGGER rule {event} BEGIN SELECT RAISE({action}, '{quoted}'); END")


@pytest.mark.usefixtures("dropped")
@pytest.mark.parametrize("action", ["ABORT", "FAIL", "ROLLBACK"])
def test_trigger_rejects_booking_with_its_text(server: Server, action: str) -> None:
    assert server.book(*BOOKING).status == 201
    _add_trigger(server, INSERT_RULE, action=action)
    response = server.book(*SUNDAY)
    assert_problem(response, 409, "rejected-by-rule")
    assert response.json["detail"].endswith(f": {TEXT}")
    assert server.book(*BOOKING).status == 200
    assert server.rows() == [BOOKING]
    assert server.log.read_text() == ""
    server.execute("DROP TRIGGER rule")
    # The key was not used.
    assert server.book(*SUNDAY).status == 201


@pytest.mark.usefixtures("dropped")
def test_rule_does_not_apply_to_earlier_bookings(server: Server) -> None:
    assert server.book(*SUNDAY).status == 201
    _add_trigger(server, INSERT_RULE)
    assert server.book(*SUNDAY).status == 200
    assert server.book("other", *SUNDAY[1:]).status == 422
    assert server.rows() == [SUNDAY]


@pytest.mark.usefixtures("dropped")
@pytest.mark.parametrize(
    ("columns", "named"),
    [("start_time_utc", "start_time_utc"), ("lower(start_time_utc)", "index 'rule'")],
)
def test_unique_index_rejects_booking(server: Server, columns: str, named: str) -> None:
    """The slot is free: only the constraints of schema.sql mean that a slot or a key is taken."""
    server.execute(f"CREATE UNIQUE INDEX rule ON bookings ({columns})")
    assert server.book(*BOOKING).status == 201
    response = server.book("other", BOOKING[1], "k2")
    assert_problem(response, 409, "rejected-by-rule")
    assert response.json["detail"].endswith(f": {named} must be unique")
    assert server.book(*BOOKING).status == 200
    assert server.rows() == [BOOKING]


@pytest.mark.usefixtures("dropped")
@pytest.mark.parametrize("event", ["BEFORE DELETE ON bookings", "AFTER INSERT ON cancellations"])
def test_trigger_rejects_cancellation_with_its_text(server: Server, event: str) -> None:
    target = f"/bookings/{server.book(*BOOKING).json['id']}?tenant_id=acme"
    _add_trigger(server, event)
    response = server.call("DELETE", target)
    assert_problem(response, 409, "rejected-by-rule")
    assert response.json["detail"].endswith(f": {TEXT}")
    assert server.call("DELETE", target.replace("acme", "other")).status == 404
    assert server.call("GET", target).status == 200
    assert server.log.read_text() == ""
    server.execute("DROP TRIGGER rule")
    assert server.call("DELETE", target).status == 204
    _add_trigger(server, event)
    assert server.call("DELETE", target).status == 204
    assert server.rows() == []


@pytest.mark.usefixtures("dropped")
def test_unique_index_rejects_cancellation(server: Server) -> None:
    bookings = [BOOKING, SUNDAY]
    first, second = (f"/bookings/{server.book(*each).json['id']}" for each in bookings)
    server.execute("CREATE UNIQUE INDEX rule ON cancellations (tenant_id)")
    assert server.call("DELETE", f"{first}?tenant_id=acme").status == 204
    response = server.call("DELETE", f"{second}?tenant_id=acme")
    assert_problem(response, 409, "rejected-by-rule")
    assert response.json["detail"].endswith(": cancellations.tenant_id must be unique")
    assert server.call("DELETE", f"{first}?tenant_id=acme").status == 204
    assert server.rows() == [SUNDAY]
    assert server.log.read_text() == ""


@pytest.mark.usefixtures("dropped")
def test_text_of_rule_may_mention_constraint(server: Server) -> None:
    _add_trigger(server, INSERT_RULE, "opening hours: constraint failed")
    response = server.book(*SUNDAY)
    assert_problem(response, 409, "rejected-by-rule")
    assert response.json["detail"].endswith(": opening hours: constraint failed")


@pytest.mark.usefixtures("dropped")
def test_long_text_of_rule_is_cut(server: Server) -> None:
    _add_trigger(server, INSERT_RULE, "x" * 10_000)
    response = server.book(*SUNDAY)
    assert_problem(response, 409, "rejected-by-rule")
    assert "x" * 500 in response.json["detail"] and len(response.json["detail"]) < 600
