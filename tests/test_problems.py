"""Problem types: /problems explains each of them, and every rejection leads there."""

from __future__ import annotations

import pytest

from bookings.problems import PROBLEM_TYPES
from tests.helpers.clients import FRAMING_ERRORS, badly_framed, closing_request, first_response
from tests.helpers.servers import Server, assert_problem
from tests.helpers.values import SLOT, fresh_name

OTHER_SLOT = "2026-01-02T10:00:00Z"


@pytest.mark.parametrize("name", PROBLEM_TYPES)
def test_problem_type_is_explained(shared_server: Server, name: str) -> None:
    explained = shared_server.call("GET", f"/problems/{name}")
    assert (explained.status, explained.headers["Content-Type"]) == (200, "application/json")
    problem_type = PROBLEM_TYPES[name]
    assert explained.json == {
        "type": f"/problems/{name}",
        "status": problem_type.status,
        "title": problem_type.title,
        "explanation": problem_type.explanation,
        "retryable": problem_type.retryable,
    }
    assert all(value for name, value in explained.json.items() if name != "retryable")


def test_problems_lists_every_type_with_texts_of_its_own(shared_server: Server) -> None:
    each = [shared_server.call("GET", f"/problems/{name}").json for name in PROBLEM_TYPES]
    assert shared_server.call("GET", "/problems").json == each
    for field in ("type", "title", "explanation"):
        assert len({problem[field] for problem in each}) == len(PROBLEM_TYPES)


@pytest.mark.parametrize(
    "name", ["none", "", "slot-taken/", "Slot-Taken", "slot-take", "slot%2Dtaken", "409"]
)
def test_unknown_problem_type_is_404(shared_server: Server, name: str) -> None:
    assert_problem(shared_server.call("GET", f"/problems/{name}"), 404, "no-such-path")


def test_type_of_rejection_leads_to_its_explanation(shared_server: Server) -> None:
    name = fresh_name()
    assert shared_server.book(name, SLOT, name).status == 201
    cancelled = f"{name}-cancelled"
    booking_id = shared_server.book(name, OTHER_SLOT, cancelled).json["id"]
    assert shared_server.cancel(booking_id, name).status == 204
    rejections = [
        shared_server.book(name, SLOT, f"{name}-2"),
        shared_server.book(f"{name}-2", SLOT, name),
        shared_server.book(name, "now", name),
        shared_server.call("POST", "/bookings", b"{"),
        shared_server.call("POST", "/bookings", b"{}", Content_Type="text/plain"),
        shared_server.call("GET", "/nowhere"),
        shared_server.call("GET", "/bookings/9999", X_Tenant_ID=name),
        shared_server.book(name, OTHER_SLOT, cancelled),
        shared_server.call("DELETE", "/bookings"),
        first_response(shared_server.raw(closing_request(b"POST /bookings HTTP/1.1"))),
        *(
            first_response(shared_server.raw(badly_framed(status, "GET", "/")))
            for status in FRAMING_ERRORS
        ),
    ]
    assert len({rejection.json["type"] for rejection in rejections}) == len(rejections)
    for rejection in rejections:
        explained = shared_server.call("GET", rejection.json["type"])
        assert explained.status == 200
        for member in ("type", "title", "status"):
            assert explained.json[member] == rejection.json[member]
    assert [row for row in shared_server.rows() if name in row[0]] == [(name, SLOT, name)]
