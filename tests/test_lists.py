"""Pages of a tenant's bookings: their bounds and length, and the Link from each page to the next.

Whatever the tenant is called and wherever its name was sent, following the links gives every booking once, in
order. A page costs the same in a small table and in a large one: the query plan shows it, and SQLite's own
steps are counted.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import pytest

from bookings import store
from tests.helpers.servers import ROOT, Response, Server, assert_problem
from tests.helpers.values import INSTANTS, SLOT, fresh_name

LINK = re.compile(r'<(/bookings\?[!-;=?-~]*)>; rel="next"')
BEFORE, AFTER = "2026-01-01T09:59:59Z", "2026-01-01T10:00:01Z"
_numbers = itertools.count(1)


def _fill(server: Server, tenant: str, starts: Sequence[str]) -> None:
    """Bookings written by hand, which is quicker; out of order, so that no list is in order by chance."""
    starts = sorted(starts, key=lambda start: start[::-1])
    server.insert([(tenant, start, f"key-{next(_numbers)}") for start in starts])


def _stored(server: Server, tenant: str) -> list[str]:
    """The start times that the table has for the tenant, put in order here and not by SQL."""
    return sorted(start for name, start, _ in server.rows() if name == tenant)


def _list(server: Server, tenant: str, query: dict[str, Any], method: str = "GET") -> Response:
    return server.call(method, f"/bookings?{urlencode({'tenant_id': tenant, **query}, quote_via=quote)}")


def _starts(answer: Response) -> list[str]:
    assert answer.status == 200, answer.body
    return [booking["start_time_utc"] for booking in answer.json]


def _next(answer: Response) -> str | None:
    """The target of the next page; there is at most one Link, and none to a page of something else."""
    links = answer.headers.get_all("Link") or []
    assert len(links) <= 1
    if not links:
        return None
    found = LINK.fullmatch(links[0])
    assert found, links
    return found[1]


def _follow(server: Server, first: Response, **headers: str) -> Iterator[Response]:
    """The first page and those behind it, each asked for by the Link before it."""
    answer = first
    for _ in range(100):
        yield answer
        target = _next(answer)
        if target is None:
            return
        answer = server.call("GET", target, **headers)
    raise AssertionError("the links lead round in a circle")


HOURS = [f"2026-01-01T{hour}:00:00Z" for hour in range(10, 15)]
EDGES = ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"]
LOWEST, *_, HIGHEST = ALL = [EDGES[0], *HOURS, EDGES[1]]


@pytest.fixture(scope="module")
def hours(shared_server: Server) -> Server:
    """`hours` has a booking at each of ALL; the tenants next to it in the index have the same."""
    for tenant in ("hours", "hour", "hours!", "hours\u200b", "Hours"):
        _fill(shared_server, tenant, ALL)
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
def test_bounds(hours: Server, query: dict[str, Any], expected: list[str], more: bool) -> None:
    before = hours.rows()
    answer = _list(hours, "hours", query)
    assert _starts(answer) == expected
    assert {booking["tenant_id"] for booking in answer.json} <= {"hours"}
    assert (_next(answer) is not None) == more
    assert hours.rows() == before


# With a booking at each of BEFORE, SLOT and AFTER.
AT_SLOT = {"from": [SLOT, AFTER], "to": [BEFORE], "after": [AFTER]}


@pytest.mark.parametrize("bound", AT_SLOT)
def test_a_bound_in_any_spelling(shared_server: Server, bound: str) -> None:
    tenant = fresh_name()
    _fill(shared_server, tenant, [BEFORE, SLOT, AFTER])
    spellings = [sent for sent, stored, _ in INSTANTS if stored == SLOT]
    assert len(spellings) > 5
    for sent in spellings:
        assert _starts(_list(shared_server, tenant, {bound: sent})) == AT_SLOT[bound], sent


@pytest.mark.parametrize("bound", AT_SLOT)
def test_a_bound_that_is_no_instant(shared_server: Server, bound: str) -> None:
    tenant = fresh_name()
    _fill(shared_server, tenant, [SLOT])
    # Lone surrogates have no place in a URL; a + that is not encoded is a blank there.
    refused = [sent for sent, stored, _ in INSTANTS if stored is None and "\ud800" not in sent]
    for sent in [*map(quote, refused), "2026-01-01T10:00:00+00:00", "%C2%B2026-01-01T10:00:00Z"]:
        answer = shared_server.call("GET", f"/bookings?tenant_id={tenant}&{bound}={sent}")
        assert_problem(answer, 400, "invalid-fields", bound)
    assert _stored(shared_server, tenant) == [SLOT]


@pytest.mark.parametrize(
    "limit",
    [
        "0",
        "1001",
        "9999",
        "10000",
        "9" * 5000,
        "01",
        "001",
        "+5",
        "-1",
        "-0",
        "5_0",
        "",
        " 5",
        "5 ",
        "1.0",
        "1e2",
    ]
    + ["0x10", "٣", "１", "²", "5\n", "\x005", "all", "None", "true", "5,5", "NaN", "Infinity"],
    ids=ascii,
)
def test_a_limit_that_is_none(hours: Server, limit: str) -> None:
    for method in ("GET", "HEAD"):
        answer = _list(hours, "hours", {"limit": limit}, method)
        assert (answer.status, answer.headers["Link"]) == (400, None)
    assert_problem(_list(hours, "hours", {"limit": limit}), 400, "invalid-fields", "limit")


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
            for name in ("From", "limits", "offset", "page", "cursor", "sort", "")
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
        ("tenant_id=@&", ["query"]),
        ("tenant_id=@&from=%zz", ["query"]),
    ],
    ids=str,
)
def test_all_that_is_wrong_is_said_at_once(hours: Server, query: str, wrong: list[str]) -> None:
    before = hours.rows()
    answer = hours.call("GET", f"/bookings?{query.replace('@', 'hours')}")
    named = [error["field"] for error in answer.json["errors"]]
    assert_problem(answer, 400, "invalid-fields", *named)
    assert sorted(named) == wrong
    assert answer.headers["Link"] is None
    assert hours.rows() == before


@pytest.mark.both_stores
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 9, 10, 11, 1000])
def test_the_last_page_has_no_link(shared_server: Server, limit: int) -> None:
    """Also where it is exactly full: nobody is sent to an empty page."""
    tenant = fresh_name()
    starts = [f"2026-01-{day:02}T10:00:00Z" for day in range(1, 11)]
    _fill(shared_server, tenant, starts)
    pages = list(_follow(shared_server, _list(shared_server, tenant, {"limit": limit})))
    assert [len(page.json) for page in pages] == [
        min(limit, len(starts) - first) for first in range(0, len(starts), limit)
    ]
    assert [start for page in pages for start in _starts(page)] == _stored(shared_server, tenant) == starts


@pytest.mark.parametrize(("count", "lengths"), [(999, [999]), (1000, [1000]), (1001, [1000, 1])])
@pytest.mark.parametrize("query", [{}, {"limit": 1000}], ids=str)
def test_a_page_has_a_thousand_bookings_at_most(
    shared_server: Server, count: int, lengths: list[int], query: dict[str, Any]
) -> None:
    tenant = fresh_name()
    _fill(
        shared_server,
        tenant,
        [f"2026-{1 + n // 600:02}-{1 + n // 24 % 25:02}T{n % 24:02}:00:00Z" for n in range(count)],
    )
    pages = list(_follow(shared_server, _list(shared_server, tenant, query)))
    assert [len(page.json) for page in pages] == lengths
    stored = _stored(shared_server, tenant)
    assert len(stored) == count
    assert [start for page in pages for start in _starts(page)] == stored


TENANTS = [
    "a b",
    "a&b=c",
    "café",
    "cafe\u0301",
    "😀",
    "100%",
    "%20",
    "a+b",
    "a#b",
    '"a"',
    "'a'",
    "<a>; rel=x",
    "a,b",
]
TENANTS += [
    "a/b?c=d",
    "\\",
    "[x]{y}|^`~",
    "日本語",
    "after=x",
    "a;b",
    "é" * 255,
    "😀" * 255,
    "=",
    "&",
    "?",
    "\u200b",
]


@pytest.mark.parametrize("bounds", [{}, {"from": HOURS[1], "to": HIGHEST}], ids=["all", "within"])
@pytest.mark.parametrize("sent_in", ["header", "query", "both"])
@pytest.mark.parametrize("name", TENANTS, ids=lambda name: ascii(name)[:20])
def test_following_the_links(shared_server: Server, name: str, sent_in: str, bounds: dict[str, str]) -> None:
    """The target has all that the next page needs; a client that goes on to send the header may."""
    if not [row for row in shared_server.rows() if row[0] == name]:
        _fill(shared_server, name, ALL)
    header = {} if sent_in == "query" else {"X_Tenant_ID": name.encode().decode("latin-1")}
    query = {**({} if sent_in == "header" else {"tenant_id": name}), **bounds, "limit": "2"}
    expected = [
        start
        for start in _stored(shared_server, name)
        if bounds.get("from", "") <= start < bounds.get("to", "~")
    ]
    first = shared_server.call("GET", f"/bookings?{urlencode(query)}", **header)
    for headers in ({}, header):
        pages = list(_follow(shared_server, first, **headers))
        assert [start for page in pages for start in _starts(page)] == expected
        assert {booking["tenant_id"] for page in pages for booking in page.json} == {name}
        assert [len(page.json) for page in pages[:-1]] == [2] * (len(pages) - 1)
        for page in pages[:-1]:
            following = dict(parse_qsl((_next(page) or "").partition("?")[2], strict_parsing=True))
            last = page.json[-1]["start_time_utc"]
            assert following == {"tenant_id": name, "limit": "2", **bounds, "after": last}


def test_a_bound_goes_on_in_its_one_spelling(shared_server: Server) -> None:
    """However it came: a + must not come back as a blank, nor a long fraction make a target that is refused."""
    tenant = fresh_name() + "😀" * 240
    _fill(shared_server, tenant, HOURS)
    fraction = "0" * 5000
    query = {"from": "2026-01-01t11:00:00+00:00", "to": f"2026-01-01T14:00:00.{fraction}-00:00", "limit": "1"}
    header = {"X_Tenant_ID": tenant.encode().decode("latin-1")}
    first = shared_server.call("GET", f"/bookings?{urlencode(query)}", **header)
    pages = list(_follow(shared_server, first))
    assert [start for page in pages for start in _starts(page)] == HOURS[1:4]
    for page, last in zip(pages, HOURS[1:3]):
        following = dict(parse_qsl((_next(page) or "").partition("?")[2], strict_parsing=True))
        assert following == {
            "tenant_id": tenant,
            "from": HOURS[1],
            "to": HOURS[4],
            "limit": "1",
            "after": last,
        }
    assert _stored(shared_server, tenant) == HOURS


@pytest.mark.both_stores
@pytest.mark.parametrize("query", [{"limit": 2}, {"limit": 2, "after": HOURS[2]}, {"limit": 7}, {}], ids=str)
def test_head_has_the_link_too(hours: Server, query: dict[str, Any]) -> None:
    got, head = (_list(hours, "hours", query, method) for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    for name in ("Link", "Content-Type", "Content-Length"):
        assert head.headers.get_all(name) == got.headers.get_all(name)
    assert (_next(got) is not None) == (query.get("limit") == 2)


def test_bookings_that_come_and_go_between_pages(server: Server) -> None:
    """Whatever stands throughout is seen once; so is what is added behind the page; nothing is seen twice."""
    for hour in range(8):
        assert server.book("acme", f"2026-01-01T{10 + hour}:00:00Z", f"k{hour}").status == 201
    first = _list(server, "acme", {"limit": 3})
    assert _starts(first) == [f"2026-01-01T{hour}:00:00Z" for hour in (10, 11, 12)]

    # Before the page's end, behind it, and at the very end; then the page's last booking goes.
    for start in (
        "2026-01-01T09:00:00Z",
        "2026-01-01T11:30:00Z",
        "2026-01-01T12:30:00Z",
        "2026-01-02T10:00:00Z",
    ):
        assert server.book("acme", start, start).status == 201
    assert server.book("other", "2026-01-01T12:45:00Z", "k-other").status == 201
    with contextlib.closing(sqlite3.connect(server.database)) as db, db:
        db.execute("DELETE FROM bookings WHERE start_time_utc = '2026-01-01T12:00:00Z'")

    rest = [start for page in list(_follow(server, first))[1:] for start in _starts(page)]
    assert rest == [start for start in _stored(server, "acme") if start > "2026-01-01T12:00:00Z"]
    assert len(rest) == 7


# --- What a page costs


def _table(path: Path, count: int) -> sqlite3.Connection:
    """A table of `count` bookings: a third for the tenant a, a third for z, and one each for many others."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript((ROOT / "schema.sql").read_text(encoding="utf-8"))
    # The rows keep the rules; to have them checked would take most of the time.
    db.executescript("PRAGMA ignore_check_constraints = ON; PRAGMA synchronous = OFF; BEGIN")
    db.execute(
        """INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key)
        WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n + 1 < ?)
        SELECT CASE n % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' || n ELSE 'z' END,
            strftime('%Y-%m-%dT%H:%M:%SZ', 1767225600 + n * 60, 'unixepoch'), 'k' || n FROM n""",
        (count,),
    )
    db.execute("COMMIT")
    return db


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One of a thousand bookings and one of three hundred thousand."""
    paths = []
    for count in (1_000, 300_000):
        paths.append(tmp_path_factory.mktemp("table") / "bookings.db")
        with contextlib.closing(_table(paths[-1], count)) as db:
            assert db.execute("SELECT count(*) FROM bookings").fetchone() == (count,)
    return paths


def test_the_query_plan(tables: list[Path]) -> None:
    """One search in the index of UNIQUE (tenant_id, start_time_utc), with both bounds: no scan, no sort."""
    for path in tables:
        with contextlib.closing(sqlite3.connect(path)) as db:
            indexes = {
                tuple(column for _, _, column in db.execute(f"PRAGMA index_info({name})")): name
                for _, name, unique, *_ in db.execute("PRAGMA index_list(bookings)")
                if unique
            }
            index = indexes["tenant_id", "start_time_utc"]
            search = (
                f"SEARCH( TABLE)? bookings USING INDEX {index} "
                r"\(tenant_id=\? AND start_time_utc>\? AND start_time_utc<\?\)"
            )
            # Without statistics, as the program makes the table, and with those of somebody's ANALYZE.
            for statement in ("SELECT 1", "ANALYZE"):
                db.execute(statement)
                plan = db.execute(f"EXPLAIN QUERY PLAN {store.PAGE}", ("a", "", "~", 101)).fetchall()
                # Around the search, the page's rows are walked once, to be made into one.
                details = [row[-1] for row in plan]
                found = [detail for detail in details if "bookings" in detail]
                assert len(found) == 1 and re.fullmatch(search, found[0]), details
                assert not any("TEMP B-TREE" in detail for detail in details)
                scans = [detail for detail in details if detail.startswith("SCAN")]
                assert all(
                    re.fullmatch(r"SCAN (SUBQUERY [0-9]+|\(subquery-[0-9]+\))", scan) for scan in scans
                ), details
            db.execute("DROP TABLE sqlite_stat1")


# Bounds of a page for a tenant that has the same third of both tables.
EARLY, LATE = "2026-01-01T00:30:00Z", "2026-01-01T08:00:00Z"
# Stands for an instant near the end of the tenant's bookings, which is far into the large table.
END = "end"


@pytest.mark.parametrize(
    ("tenant", "at_least", "before", "after", "found"),
    [
        ("a", "", "", "", 100),
        ("z", "", "", "", 100),
        ("a", EARLY, "", "", 100),
        ("a", "", "", LATE, 100),
        ("a", EARLY, "9999-01-01T00:00:00Z", LATE, 100),
        ("a", LATE, EARLY, "", 0),
        ("a", END, "", "", 100),
        ("a", "", "", END, 100),
        ("a", EARLY, "9999-01-01T00:00:00Z", END, 100),
        ("b1", "", "", "", 1),
        ("nobody", "", "", "", 0),
        ("zz", "", "", "", 0),
    ],
)
def test_a_page_costs_the_same_in_any_table(
    tables: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    tenant: str,
    at_least: str,
    before: str,
    after: str,
    found: int,
) -> None:
    """Steps of SQLite's machine, over all that the store does for a page: unlike times, they do not vary."""
    real = store._connect
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    def counted(uri: str) -> sqlite3.Connection:
        db = real(uri)
        db.set_progress_handler(step, 1)
        return db

    monkeypatch.setattr(store, "_connect", counted)
    costs = []
    for path in tables:
        with contextlib.closing(sqlite3.connect(path)) as db:
            (end,) = db.execute(
                "SELECT start_time_utc FROM bookings WHERE tenant_id = 'a' "
                "ORDER BY start_time_utc DESC LIMIT 1 OFFSET 150"
            ).fetchone()
        lowest, highest, cursor = (end if bound == END else bound for bound in (at_least, before, after))
        store.create_database(str(path))
        with contextlib.closing(store.SQLiteStore(str(path))) as opened:
            steps = 0
            page = opened.bookings_of(tenant, lowest, highest, cursor, 100)
            costs.append(steps)
            assert len(json.loads(page.array)) == found
            assert page.more == (found == 100)
    assert costs[0] == costs[1]
    # Far less than one step for each of the large table's rows, and not much for each of the page's.
    assert 0 < costs[0] < 200 + 50 * (found + 1)
