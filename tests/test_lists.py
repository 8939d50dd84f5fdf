"""Pages of a tenant's bookings: bounds, limits, and the Link from each page to the next."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urljoin

import pytest

from tests.helpers.clients import as_header
from tests.helpers.servers import Response, Server, assert_problem
from tests.helpers.values import INSTANTS, SLOT, SPACE_FOR_PLUS, fresh_name

LINK = re.compile(r'<(bookings\?[!-;=?-~]*)>; rel="next"')


BEFORE, AFTER = "2026-01-01T09:59:59Z", "2026-01-01T10:00:01Z"
_numbers = itertools.count(1)


def insert_bookings(server: Server, tenant: str, starts: Sequence[str]) -> None:
    """Insert bookings out of order, so that no list is in order by chance."""
    starts = sorted(starts, key=lambda start: start[::-1])
    server.insert([(tenant, start, f"key-{next(_numbers)}") for start in starts])


def stored_starts(server: Server, tenant: str) -> list[str]:
    """Return the tenant's start times in the table, sorted here and not by SQL."""
    return sorted(start for name, start, _ in server.rows() if name == tenant)


def list_page(server: Server, tenant: str, query: dict[str, Any], method: str = "GET") -> Response:
    parameters = urlencode({"tenant_id": tenant, **query}, quote_via=quote)
    return server.call(method, f"/bookings?{parameters}")


def starts_of(response: Response) -> list[str]:
    assert response.status == 200, response.body
    return [booking["start_time_utc"] for booking in response.json]


def next_target(response: Response) -> str | None:
    """Return the target of the next page, asserting that no other page is linked."""
    links = response.headers.get_all("Link") or []
    assert len(links) <= 1
    if not links:
        return None
    found = LINK.fullmatch(links[0])
    assert found, links
    return urljoin("/bookings", found[1])


def next_parameters(response: Response) -> dict[str, str]:
    """Return the parameters in the target of the next page."""
    return dict(parse_qsl((next_target(response) or "").partition("?")[2], strict_parsing=True))


def follow_links(server: Server, first: Response, **headers: str) -> Iterator[Response]:
    """Yield the first page and every page that the links lead to."""
    response = first
    for _ in range(100):
        yield response
        target = next_target(response)
        if target is None:
            return
        response = server.call("GET", target, **headers)
    raise AssertionError("the links form a cycle")


HOURS = [f"2026-01-01T{hour}:00:00Z" for hour in range(10, 15)]
EDGES = ["1970-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]
LOWEST, *_, HIGHEST = ALL = [EDGES[0], *HOURS, EDGES[1]]


@pytest.fixture(scope="module")
def hours(shared_server: Server) -> Server:
    """The tenant `hours` has a booking at each of ALL, and so have its neighbours in the index."""
    for tenant in ("hours", "hour", "hours!", "hours\u200b", "Hours"):
        insert_bookings(shared_server, tenant, ALL)
    return shared_server


@pytest.mark.both_stores
@pytest.mark.parametrize(
    ("query", "expected", "more"),
    [
        ({}, ALL, False),
        ({"from": HOURS[1]}, [*HOURS[1:], HIGHEST], False),
        ({"from": "2026-01-01T10:59:59Z"}, [*HOURS[1:], HIGHEST], False),
        ({"from": "2026-01-01T11:00:01Z"}, [*HOURS[2:], HIGHEST], False),
        ({"from": LOWEST}, ALL, False),
        ({"from": HIGHEST}, [HIGHEST], False),
        ({"to": HOURS[3]}, [LOWEST, *HOURS[:3]], False),
        ({"to": "2026-01-01T13:00:01Z"}, [LOWEST, *HOURS[:4]], False),
        ({"to": HIGHEST}, [LOWEST, *HOURS], False),
        ({"to": LOWEST}, [], False),
        ({"after": HOURS[1]}, [*HOURS[2:], HIGHEST], False),
        ({"after": "2026-01-01T10:59:59Z"}, [*HOURS[1:], HIGHEST], False),
        ({"after": LOWEST}, [*HOURS, HIGHEST], False),
        ({"after": HIGHEST}, [], False),
        ({"from": HOURS[1], "to": HOURS[3]}, HOURS[1:3], False),
        ({"from": HOURS[1], "to": HOURS[1]}, [], False),
        ({"from": HOURS[3], "to": HOURS[1]}, [], False),
        ({"from": HOURS[1], "to": "2026-01-01T11:00:01Z"}, [HOURS[1]], False),
        ({"from": HOURS[1], "after": HOURS[1]}, [*HOURS[2:], HIGHEST], False),
        ({"from": HOURS[2], "after": HOURS[1]}, [*HOURS[2:], HIGHEST], False),
        ({"from": HOURS[1], "after": HOURS[2]}, [*HOURS[3:], HIGHEST], False),
        ({"from": HOURS[1], "after": "2026-01-01T10:59:59Z"}, [*HOURS[1:], HIGHEST], False),
        ({"after": HOURS[1], "to": HOURS[2]}, [], False),
        ({"after": HOURS[2], "to": HOURS[2]}, [], False),
        ({"after": HOURS[3], "to": HOURS[2]}, [], False),
        ({"from": HOURS[0], "after": HOURS[0], "to": HOURS[3]}, HOURS[1:3], False),
        ({"limit": 1}, [LOWEST], True),
        ({"limit": 6}, ALL[:6], True),
        ({"limit": 7}, ALL, False),
        ({"limit": 8}, ALL, False),
        ({"limit": 2, "from": HOURS[1], "to": HOURS[3]}, HOURS[1:3], False),
        ({"limit": 1, "from": HOURS[1], "to": HOURS[3]}, HOURS[1:2], True),
        ({"limit": 1, "from": HOURS[1], "to": HOURS[3], "after": HOURS[1]}, HOURS[2:3], False),
        ({"limit": 1, "from": HOURS[1], "to": HOURS[1]}, [], False),
        ({"limit": 1, "after": HIGHEST}, [], False),
    ],
    ids=str,
)
def test_bounds_select_bookings(
    hours: Server, query: dict[str, Any], expected: list[str], more: bool
) -> None:
    before = hours.rows()
    response = list_page(hours, "hours", query)
    assert starts_of(response) == expected
    assert {booking["tenant_id"] for booking in response.json} <= {"hours"}
    assert (next_target(response) is not None) == more
    assert hours.rows() == before


# What each bound selects of bookings at BEFORE, SLOT and AFTER if its value is SLOT.
AT_SLOT = {"from": [SLOT, AFTER], "to": [BEFORE], "after": [AFTER]}


@pytest.mark.parametrize("bound", AT_SLOT)
def test_bound_is_accepted_in_any_spelling(shared_server: Server, bound: str) -> None:
    tenant = fresh_name()
    insert_bookings(shared_server, tenant, [BEFORE, SLOT, AFTER])
    spellings = [sent for sent, stored, _ in INSTANTS if stored == SLOT]
    assert len(spellings) > 5
    for sent in spellings:
        assert starts_of(list_page(shared_server, tenant, {bound: sent})) == AT_SLOT[bound], sent


@pytest.mark.parametrize("bound", AT_SLOT)
def test_bound_that_is_not_an_instant_is_rejected(shared_server: Server, bound: str) -> None:
    tenant = fresh_name()
    insert_bookings(shared_server, tenant, [SLOT])
    # A URL cannot contain lone surrogates, and an unencoded + in it is a space.
    rejected = [sent for sent, stored, _ in INSTANTS if stored is None and "\ud800" not in sent]

    def reject(sent: str) -> str:
        response = shared_server.call("GET", f"/bookings?tenant_id={tenant}&{bound}={sent}")
        assert_problem(response, 400, "invalid-fields", bound)
        return str(response.json["detail"])

    for sent in [*map(quote, rejected), "%C2%B2026-01-01T10:00:00Z"]:
        reject(sent)
    assert SPACE_FOR_PLUS in reject("2026-01-01T10:00:00+00:00")
    assert stored_starts(shared_server, tenant) == [SLOT]


@pytest.mark.parametrize(
    "limit",
    [
        *("0", "1001", "9999", "10000", "9" * 5000, "01", "001", "+5", "-1", "-0", "5_0"),
        *("", " 5", "5 ", "1.0", "1e2", "0x10", "٣", "１", "²", "5\n", "\x005"),
        *("all", "None", "true", "5,5", "NaN", "Infinity"),
    ],
    ids=ascii,
)
def test_limit_that_is_not_a_number_from_1_to_1000_is_rejected(hours: Server, limit: str) -> None:
    for method in ("GET", "HEAD"):
        response = list_page(hours, "hours", {"limit": limit}, method)
        assert (response.status, response.headers["Link"]) == (400, None)
    assert_problem(list_page(hours, "hours", {"limit": limit}), 400, "invalid-fields", "limit")


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("", ["tenant_id"]),
        ("from=x&to=y&after=z&limit=0", ["after", "from", "limit", "tenant_id", "to"]),
        ("tenant_id=&from=&to=&after=&limit=", ["after", "from", "limit", "tenant_id", "to"]),
        ("tenant_id=@&from=x&limit=0", ["from", "limit"]),
        ("tenant_id=@&size=5&to=x&offset=0", ["offset", "size", "to"]),
        ("tenant_id=@&limit=1&limit=2&after=x", ["after", "limit"]),
        *(
            (f"tenant_id=@&{name}=1", [name])
            for name in ("From", "limits", "offset", "page", "cursor", "sort")
        ),
        *(
            (f"tenant_id=@&{name}=1", [name])
            for name in ("tenant", "start_time_utc", "idempotency_key", "after[]")
        ),
        *((f"tenant_id=@&{name}={SLOT}&{name}={SLOT}", [name]) for name in ("from", "to", "after")),
        ("tenant_id=@&limit=5&limit=5", ["limit"]),
        ("tenant_id=@&tenant_id=@", ["tenant_id"]),
        ("tenant_id=@&" + "&".join(["size=1"] * 16), ["query"]),
        ("tenant_id=@&limit", ["query"]),
        ("tenant_id=@&=", ["query"]),
        ("tenant_id=@&=1", ["query"]),
        ("tenant_id=@&from=%zz", ["query"]),
    ],
    ids=str,
)
def test_rejection_names_every_wrong_parameter(hours: Server, query: str, wrong: list[str]) -> None:
    before = hours.rows()
    response = hours.call("GET", f"/bookings?{query.replace('@', 'hours')}")
    named = [error["field"] for error in response.json["errors"]]
    assert_problem(response, 400, "invalid-fields", *named)
    assert sorted(named) == wrong
    assert response.headers["Link"] is None
    assert hours.rows() == before


@pytest.mark.both_stores
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 9, 10, 11, 1000])
def test_last_page_has_no_link_even_if_full(shared_server: Server, limit: int) -> None:
    tenant = fresh_name()
    starts = [f"2026-01-{day:02}T10:00:00Z" for day in range(1, 11)]
    insert_bookings(shared_server, tenant, starts)
    pages = list(follow_links(shared_server, list_page(shared_server, tenant, {"limit": limit})))
    assert [len(page.json) for page in pages] == [
        min(limit, len(starts) - first) for first in range(0, len(starts), limit)
    ]
    assert (
        [start for page in pages for start in starts_of(page)]
        == stored_starts(shared_server, tenant)
        == starts
    )


@pytest.mark.parametrize(("count", "lengths"), [(999, [999]), (1000, [1000]), (1001, [1000, 1])])
@pytest.mark.parametrize("query", [{}, {"limit": 1000}], ids=str)
def test_page_has_at_most_1000_bookings(
    shared_server: Server, count: int, lengths: list[int], query: dict[str, Any]
) -> None:
    tenant = fresh_name()
    insert_bookings(
        shared_server,
        tenant,
        [f"2026-{1 + n // 600:02}-{1 + n // 24 % 25:02}T{n % 24:02}:00:00Z" for n in range(count)],
    )
    pages = list(follow_links(shared_server, list_page(shared_server, tenant, query)))
    assert [len(page.json) for page in pages] == lengths
    stored = stored_starts(shared_server, tenant)
    assert len(stored) == count
    assert [start for page in pages for start in starts_of(page)] == stored


TENANTS = [
    *("a b", "a&b=c", "café", "cafe\u0301", "😀", "100%", "%20", "a+b", "a#b", '"a"', "'a'"),
    *("<a>; rel=x", "a,b", "a/b?c=d", "\\", "[x]{y}|^`~", "日本語", "after=x", "a;b"),
    *("é" * 255, "😀" * 255, "=", "&", "?", "\u200b"),
]


@pytest.mark.parametrize("bounds", [{}, {"from": HOURS[1], "to": HIGHEST}], ids=["all", "within"])
@pytest.mark.parametrize("sent_in", ["header", "query", "both"])
@pytest.mark.parametrize("name", TENANTS, ids=lambda name: ascii(name)[:20])
def test_links_lead_to_every_booking_once(
    shared_server: Server, name: str, sent_in: str, bounds: dict[str, str]
) -> None:
    if not [row for row in shared_server.rows() if row[0] == name]:
        insert_bookings(shared_server, name, ALL)
    header = {} if sent_in == "query" else {"X_Tenant_ID": as_header(name)}
    query = {**({} if sent_in == "header" else {"tenant_id": name}), **bounds, "limit": "2"}
    expected = [
        start
        for start in stored_starts(shared_server, name)
        if bounds.get("from", "") <= start < bounds.get("to", "~")
    ]
    first = shared_server.call("GET", f"/bookings?{urlencode(query)}", **header)
    # The target contains everything that the next page needs. A client may still send the header.
    for headers in ({}, header):
        pages = list(follow_links(shared_server, first, **headers))
        assert [start for page in pages for start in starts_of(page)] == expected
        assert {booking["tenant_id"] for page in pages for booking in page.json} == {name}
        assert [len(page.json) for page in pages[:-1]] == [2] * (len(pages) - 1)
        for page in pages[:-1]:
            last = page.json[-1]["start_time_utc"]
            assert next_parameters(page) == {
                "tenant_id": name,
                "limit": "2",
                **bounds,
                "after": last,
            }


def test_link_carries_bounds_in_canonical_spelling(shared_server: Server) -> None:
    # A + must not return as a space, and a long fraction must not make the target too long.
    tenant = fresh_name() + "😀" * 240
    insert_bookings(shared_server, tenant, HOURS)
    fraction = "0" * 5000
    query = {
        "from": "2026-01-01t11:00:00+00:00",
        "to": f"2026-01-01T14:00:00.{fraction}-00:00",
        "limit": "1",
    }
    header = {"X_Tenant_ID": as_header(tenant)}
    first = shared_server.call("GET", f"/bookings?{urlencode(query)}", **header)
    pages = list(follow_links(shared_server, first))
    assert [start for page in pages for start in starts_of(page)] == HOURS[1:4]
    for page, last in zip(pages, HOURS[1:3]):
        assert next_parameters(page) == {
            "tenant_id": tenant,
            "from": HOURS[1],
            "to": HOURS[4],
            "limit": "1",
            "after": last,
        }
    assert stored_starts(shared_server, tenant) == HOURS


@pytest.mark.both_stores
@pytest.mark.parametrize(
    "query", [{"limit": 2}, {"limit": 2, "after": HOURS[2]}, {"limit": 7}, {}], ids=str
)
def test_head_response_has_link_of_get(hours: Server, query: dict[str, Any]) -> None:
    got, head = (list_page(hours, "hours", query, method) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    for name in ("Link", "Content-Type", "Content-Length"):
        assert head.headers.get_all(name) == got.headers.get_all(name)
    assert (next_target(got) is not None) == (query.get("limit") == 2)


def test_bookings_added_and_deleted_between_pages_are_seen_at_most_once(server: Server) -> None:
    for hour in range(8):
        assert server.book("acme", f"2026-01-01T{10 + hour}:00:00Z", f"k{hour}").status == 201
    first = list_page(server, "acme", {"limit": 3})
    assert starts_of(first) == [f"2026-01-01T{hour}:00:00Z" for hour in (10, 11, 12)]

    # Add bookings before the page's end, after it and at the very end; delete the page's last.
    for start in (
        "2026-01-01T09:00:00Z",
        "2026-01-01T11:30:00Z",
        "2026-01-01T12:30:00Z",
        "2026-01-02T10:00:00Z",
    ):
        assert server.book("acme", start, start).status == 201
    assert server.book("other", "2026-01-01T12:45:00Z", "k-other").status == 201
    server.execute("DELETE FROM bookings WHERE start_time_utc = '2026-01-01T12:00:00Z'")

    rest = [start for page in list(follow_links(server, first))[1:] for start in starts_of(page)]
    assert rest == [
        start for start in stored_starts(server, "acme") if start > "2026-01-01T12:00:00Z"
    ]
    assert len(rest) == 7
