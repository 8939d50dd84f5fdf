"""Cancelling: no retry brings a booking back, and no late DELETE hits another booking."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import sqlite3
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import requires_fork, serving
from tests.helpers.servers import CANONICAL, SOON, Response, Server, assert_problem, at_once
from tests.helpers.values import SLOT, slot_at

BOOKING = ("acme", SLOT, "k1")
OTHER_SLOT = "2026-01-02T10:00:00Z"


def assert_cancelled(response: Response) -> None:
    assert (response.status, response.body) == (204, b"")


def assert_rows(
    server: Server, bookings: list[tuple[Any, ...]], cancellations: list[tuple[Any, ...]]
) -> None:
    assert server.rows() == bookings
    assert server.rows("cancellations") == cancellations


def cancelled_booking(server: Server, *booking: str) -> int:
    """Book and cancel; return the id."""
    booking_id: int = server.book(*(booking or BOOKING)).json["id"]
    assert_cancelled(server.cancel(booking_id))
    return booking_id


# --- DELETE


@pytest.mark.both_stores
@pytest.mark.parametrize("start", [SLOT, "1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_own_booking_is_cancelled_and_its_row_moves(server: Server, start: str) -> None:
    booking = server.book("acme", start, "k1").json
    other = server.book("acme", OTHER_SLOT, "k2").json
    assert_cancelled(server.cancel(booking["id"]))
    assert_rows(server, [("acme", OTHER_SLOT, "k2")], [("acme", start, "k1")])
    assert server.call("GET", "/bookings", X_Tenant_ID="acme").json == [other]


@pytest.mark.both_stores
def test_cancellation_keeps_columns_of_booking(server: Server) -> None:
    """Among them a `created_at` that is older than the cancellation."""
    columns = "tenant_id, start_time_utc, idempotency_key, created_at"
    server.execute(
        f"INSERT INTO bookings ({columns}) VALUES ('acme', '{SLOT}', 'k1', '2025-01-01T00:00:00Z')"
    )
    (booking,) = server.call("GET", "/bookings", X_Tenant_ID="acme").json
    assert_cancelled(server.cancel(booking["id"]))
    ((*row, cancelled_at),) = server.select("SELECT * FROM cancellations")
    assert row == list(booking.values())
    assert CANONICAL.fullmatch(cancelled_at) and cancelled_at > booking["created_at"]


@pytest.mark.both_stores
def test_cancelling_again_is_success_and_changes_nothing(server: Server) -> None:
    """Late, too, when the slot has been booked anew."""
    booking_id = cancelled_booking(server)
    before = server.select("SELECT * FROM cancellations")
    assert_cancelled(server.cancel(booking_id))
    rebooked = server.book("acme", SLOT, "k2")
    assert rebooked.status == 201
    for _ in range(2):
        assert_cancelled(server.cancel(booking_id))
    assert server.call("GET", "/bookings", X_Tenant_ID="acme").json == [rebooked.json]
    assert server.rows() == [("acme", SLOT, "k2")]
    assert server.select("SELECT * FROM cancellations") == before


@pytest.mark.both_stores
def test_booking_cancelled_20_times_at_once_is_cancelled_once(server: Server) -> None:
    for number in range(5):
        booking_id = server.book("acme", slot_at(number), f"k{number}").json["id"]
        for response in at_once(20, lambda _, booking_id=booking_id: server.cancel(booking_id)):
            assert_cancelled(response)
    assert_rows(server, [], [("acme", slot_at(number), f"k{number}") for number in range(5)])
    assert server.log.read_text() == ""


@pytest.mark.both_stores
def test_cancelling_unknown_or_foreign_booking_is_404_and_changes_nothing(server: Server) -> None:
    """All the responses are the same: see guarantees/test_tenants.py, too."""
    live = server.book("other", SLOT, "k1").json["id"]
    cancelled = server.book("other", OTHER_SLOT, "k2").json["id"]
    assert_cancelled(server.cancel(cancelled, "other"))
    found = [server.cancel(number) for number in (cancelled + 1, 2**53 - 1, live, cancelled)]
    for response in found:
        assert_problem(response, 404, "no-such-booking")
    assert len({response.body for response in found}) == 1
    assert_rows(server, [("other", SLOT, "k1")], [("other", OTHER_SLOT, "k2")])


@pytest.mark.both_stores
def test_get_of_own_cancelled_booking_is_410(server: Server) -> None:
    booking_id = cancelled_booking(server)
    path = f"/bookings/{booking_id}"
    assert_problem(server.call("GET", path, X_Tenant_ID="acme"), 410, "booking-cancelled")
    head = server.call("HEAD", path, X_Tenant_ID="acme")
    assert (head.status, head.body) == (410, b"")
    assert server.call("GET", "/bookings", X_Tenant_ID="acme").json == []
    assert_rows(server, [], [BOOKING])


# --- POST after DELETE


@pytest.mark.both_stores
@pytest.mark.parametrize("holder", ["nobody", "same tenant", "cancelled again"])
def test_key_of_cancelled_booking_books_nothing(server: Server, holder: str) -> None:
    """Whoever holds the slot now. A 422 does not reveal that the other booking was cancelled."""
    cancelled_booking(server)
    taken = "2026-01-03T10:00:00Z"
    bookings, cancellations = [("acme", taken, "k3")], [BOOKING]
    assert server.book(*bookings[0]).status == 201
    if holder == "same tenant":
        bookings.append(("acme", SLOT, "k2"))
        assert server.book(*bookings[-1]).status == 201
    elif holder == "cancelled again":
        cancellations.append(("acme", SLOT, "k2"))
        cancelled_booking(server, *cancellations[-1])
    for _ in range(2):
        for start in (SLOT, "2026-01-01t10:00:00.000+00:00"):
            response = server.book("acme", start, "k1")
            assert_problem(response, 410, "booking-cancelled", "idempotency_key")
            for word in ("acme", "k1", "k2", "2026"):
                assert word not in response.body.decode()
        for tenant, start in itertools.product(("acme", "bert"), (SLOT, OTHER_SLOT, taken)):
            if (tenant, start) != BOOKING[:2]:
                response = server.book(tenant, start, "k1")
                assert_problem(response, 422, "key-reused", "idempotency_key")
                assert response.body == server.book("carl", SLOT, "k3").body
    assert_rows(server, bookings, cancellations)


@pytest.mark.both_stores
def test_freed_slot_is_booked_under_new_id(server: Server) -> None:
    """No id is used twice, even if the latest booking was cancelled."""
    ids = [cancelled_booking(server, "acme", SLOT, f"k{number}") for number in range(3)]
    created = server.book("acme", SLOT, "k3")
    assert created.status == 201
    assert created.headers["Location"] == f"bookings/{created.json['id']}"
    assert ids == sorted(set(ids)) and created.json["id"] > ids[-1]
    assert_problem(server.book("acme", SLOT, "k4"), 409, "slot-taken", "start_time_utc")
    assert_rows(
        server, [("acme", SLOT, "k3")], [("acme", SLOT, f"k{number}") for number in range(3)]
    )


@pytest.mark.both_stores
def test_clients_racing_for_freed_slot_have_one_winner(server: Server) -> None:
    """One cancels and the others try to get the slot, the original request among them."""
    rows, cancelled = [], []
    for round_number in range(10):
        booking = ("acme", slot_at(round_number), f"{round_number}/0")
        booking_id = server.book(*booking).json["id"]
        cancelled_now = threading.Event()

        def act(
            number: int,
            booking: tuple[str, str, str] = booking,
            booking_id: int = booking_id,
            cancelled_now: threading.Event = cancelled_now,
        ) -> int:
            if number == 0:
                status = server.cancel(booking_id).status
                cancelled_now.set()
                return status
            if number == 1:
                return server.book(*booking).status
            status, is_free = 409, False
            while status == 409 and not is_free:
                is_free = cancelled_now.is_set()
                status = server.book(*booking[:2], f"{booking[2]}/{number}").status
            return status

        cancel, original, *rivals = at_once(6, act)
        assert cancel == 204
        assert original in (200, 410)
        assert Counter(rivals) == {201: 1, 409: 3}
        rows.append((*booking[:2], f"{booking[2]}/{rivals.index(201) + 2}"))
        cancelled.append(booking)
    assert_rows(server, rows, cancelled)


@pytest.mark.both_stores
def test_booking_racing_with_its_cancellation_is_200_or_410(server: Server) -> None:
    """Clients repeat the POST until it is rejected. It never makes a new booking."""
    bookings = [("acme", slot_at(number), f"k{number}") for number in range(20)]
    for booking in bookings:
        created = server.book(*booking)
        assert created.status == 201
        replayed = threading.Event()

        def act(
            number: int,
            booking: tuple[str, str, str] = booking,
            booking_id: int = created.json["id"],
            replayed: threading.Event = replayed,
        ) -> list[Response]:
            if number == 0:
                assert replayed.wait(SOON)
                return [server.cancel(booking_id)]
            found = [server.book(*booking)]
            while found[-1].status == 200:
                replayed.set()
                found.append(server.book(*booking))
            return found

        (cancelled,), *posted = at_once(5, act)
        assert_cancelled(cancelled)
        for *replays, rejection in posted:
            assert {replay.body for replay in replays} <= {created.body}
            assert_problem(rejection, 410, "booking-cancelled", "idempotency_key")
    assert_rows(server, [], bookings)
    assert server.log.read_text() == ""


# --- Failures

TRIGGERS = {
    "ignores the INSERT": ("BEFORE INSERT ON cancellations", "SELECT RAISE(IGNORE)"),
    "fails the INSERT": (
        "BEFORE INSERT ON cancellations",
        "INSERT INTO cancellations (id) VALUES (0)",
    ),
    "ignores the DELETE": ("BEFORE DELETE ON bookings", "SELECT RAISE(IGNORE)"),
    "fails the DELETE": ("BEFORE DELETE ON bookings", "INSERT INTO cancellations (id) VALUES (0)"),
}


@pytest.mark.both_stores
@pytest.mark.parametrize(("event", "action"), TRIGGERS.values(), ids=TRIGGERS)
def test_cancellation_stopped_by_trigger_is_internal_error(
    server: Server, event: str, action: str
) -> None:
    """The trigger of an operator. The booking stays as it was and can be cancelled later."""
    booking = server.book(*BOOKING)
    server.execute(f"CREATE TRIGGER closed {event} BEGIN {action}; END")
    responses = [server.cancel(booking.json["id"]) for _ in range(2)]
    server.execute("DROP TRIGGER closed")
    log = server.log.read_text()
    server.log.write_text("")  # Other tests expect it to be empty.
    for response in responses:
        assert (response.status, response.json["type"]) == (500, "/problems/internal-error")
        assert b"tenant_id" not in response.body and b"trigger" not in response.body
        assert response.json["request_id"] in log
    assert ("does a trigger" if "IGNORE" in action else "NOT NULL constraint failed") in log
    assert_rows(server, [BOOKING], [])
    assert server.book(*BOOKING).body == booking.body
    assert_cancelled(server.cancel(booking.json["id"]))
    assert_rows(server, [], [BOOKING])


@pytest.mark.both_stores
def test_late_cancellation_leaves_booking_that_got_its_id_by_hand(server: Server) -> None:
    booking_id = cancelled_booking(server)
    other = server.book("acme", SLOT, "k2").json["id"]
    server.execute(f"UPDATE bookings SET id = {booking_id} WHERE id = {other}")
    assert server.cancel(booking_id).status == 204
    assert_rows(server, [("acme", SLOT, "k2")], [BOOKING])


# The worker kills itself after the statement that starts with the text in the file `die`.
DIE_AFTER_STATEMENT = """
import os, signal, time
from bookings.stores import sqlite
cancel_or_explain = sqlite.cancel_or_explain
def cancel(execute, tenant_id, booking_id):
    def execute_and_die(statement, values):
        cursor = execute(statement, values)
        if os.path.exists("die") and statement.startswith(open("die").read()):
            os.unlink("die")
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.1)  # Another thread may receive the signal.
        return cursor
    return cancel_or_explain(execute_and_die, tenant_id, booking_id)
sqlite.cancel_or_explain = cancel
"""


@requires_fork
def test_worker_killed_while_cancelling_leaves_booking_in_one_table(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(tmp_path, "--workers=2", patch=DIE_AFTER_STATEMENT))
        # Both workers may be gone at the same moment. Then the last client to close the database
        # would delete the WAL, without which no worker starts again.
        client = stack.enter_context(contextlib.closing(sqlite3.connect(server.database)))
        client.execute("SELECT id FROM bookings").fetchone()
        for number, (statement, moved) in enumerate(
            [("INSERT", False), ("DELETE", False), ("COMMIT", True)]
        ):
            booking = ("acme", slot_at(number), f"k{number}")
            created = server.book(*booking)
            (tmp_path / "die").write_text(statement)
            with pytest.raises((OSError, http.client.HTTPException)):
                server.cancel(created.json["id"])
            assert not (tmp_path / "die").exists()
            assert (booking in server.rows()) == (not moved)
            assert (booking in server.rows("cancellations")) == moved
            assert server.book(*booking).status == (410 if moved else 200)
            assert_cancelled(server.cancel(created.json["id"]))
        cancelled = [("acme", slot_at(number), f"k{number}") for number in range(3)]
        assert_rows(server, [], cancelled)
        assert server.select("PRAGMA integrity_check") == [("ok",)]
