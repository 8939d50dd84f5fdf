"""Routes: outcomes of a booking, reads, methods, and the pages beside the bookings."""

from __future__ import annotations

import pytest

from tests.helpers.openapi import DOCUMENT
from tests.helpers.servers import Server, assert_problem
from tests.helpers.storage import set_aside
from tests.helpers.tools import posix_only
from tests.helpers.values import SLOT

# --- Index, live and ready


def test_index_links_every_path(shared_server: Server) -> None:
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


def test_ready_is_503_without_table(server: Server) -> None:
    server.execute("ALTER TABLE bookings RENAME TO gone")
    assert_problem(server.call("GET", "/ready"), 503, "database-unavailable")
    assert server.call("GET", "/live").status == 200
    server.execute("ALTER TABLE gone RENAME TO bookings")
    assert server.call("GET", "/ready").status == 200
