"""`bookings.show`: prints what the API lists, reads the database without changing it, and fails
with one line if there is nothing to show.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.helpers.clusters import ClusterServer, url
from tests.helpers.servers import SOON, Server, copy_project
from tests.helpers.tools import (
    INSERT,
    assert_one_line,
    cancel_by_hand,
    make_database,
    make_database_of,
    row_of,
    run_tool,
    show_lines,
    start_tool,
    tool_environment,
)
from tests.helpers.values import SLOT

# --- The table


@pytest.mark.parametrize(
    ("rows", "table"),
    [
        (
            [],
            """
id  tenant_id  start_time_utc  idempotency_key  created_at
--  ---------  --------------  ---------------  ----------
0 bookings
""",
        ),
        (
            [row_of("acme")],
            """
id  tenant_id  start_time_utc        idempotency_key  created_at
--  ---------  --------------------  ---------------  --------------------
1   acme       2026-01-01T10:00:00Z  k1               2025-12-31T23:59:59Z
1 booking
""",
        ),
        (
            [
                row_of("widgets & sons"),
                row_of("acme", "a key longer than its header"),
                row_of("Ünï", "k3"),
            ],
            """
id  tenant_id       start_time_utc        idempotency_key               created_at
--  --------------  --------------------  ----------------------------  --------------------
2   acme            2026-01-01T10:00:00Z  a key longer than its header  2025-12-31T23:59:59Z
1   widgets & sons  2026-01-01T10:00:00Z  k1                            2025-12-31T23:59:59Z
3   Ünï             2026-01-01T10:00:00Z  k3                            2025-12-31T23:59:59Z
3 bookings
""",
        ),
    ],
    ids=["none", "one", "three"],
)
def test_show_prints_aligned_table_with_header_and_count(
    tmp_path: Path, rows: list[tuple[str, ...]], table: str
) -> None:
    lines = show_lines(make_database_of(tmp_path / "bookings.db", *rows))
    assert lines == table.strip("\n").split("\n")


@pytest.mark.parametrize(
    ("tenant", "columns"),
    [
        ("日本", 4),
        ("ＡＢ", 4),
        ("ｱｲ", 2),
        ("cafe\u0301", 4),
        ("สวัสดี", 4),
        ("नु", 1),
        ("a\u20dd", 1),
        ("👍", 2),
    ],
    ids=["CJK", "full width", "half width", "accent", "Thai", "Devanagari", "enclosing", "emoji"],
)
def test_show_aligns_characters_of_any_width(tmp_path: Path, tenant: str, columns: int) -> None:
    lines = show_lines(make_database_of(tmp_path / "bookings.db", row_of(tenant)))
    cell = tenant + " " * (len("tenant_id") - columns)
    assert lines[2] == f"1   {cell}  {SLOT}  k1{' ' * 13}  2025-12-31T23:59:59Z"


@pytest.mark.parametrize(
    ("flags", "environment", "shown"),
    [
        ((), {}, "beside"),
        ((), {"BOOKINGS_DB": ""}, "beside"),
        ((), {"BOOKINGS_DB": "environment.db"}, "environment"),
        (("--database", "flag.db"), {"BOOKINGS_DB": "environment.db"}, "flag"),
    ],
    ids=["default", "empty is not set", "environment", "flag"],
)
def test_show_finds_database_from_any_folder(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], shown: str
) -> None:
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy_project(copy)
    make_database_of(copy / "bookings.db", row_of("beside"))
    for name in ("environment", "flag"):
        make_database_of(elsewhere / f"{name}.db", row_of(name))
    ended = run_tool("show", *flags, cwd=elsewhere, code=copy, **environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.split()[1] for line in ended.stdout.splitlines()[2:-1]] == [shown]


def test_show_accepts_any_file_name(tmp_path: Path) -> None:
    name = "two words 50%41 #ü文'" + ("" if os.name == "nt" else "?mode=memory")
    assert show_lines(make_database_of(tmp_path / name, row_of("acme")))[-1] == "1 booking"


def test_show_works_while_server_runs_and_afterwards(server: Server) -> None:
    assert server.book("acme", SLOT, "k1").status == 201
    while_running = show_lines(server.database)
    assert while_running[2].split()[:4] == ["1", "acme", SLOT, "k1"]
    assert while_running[3:] == ["1 booking"]
    # An open transaction neither delays the table nor appears in it.
    with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute(INSERT, row_of("other", "k2"))
        assert show_lines(server.database) == while_running
    server.process.terminate()
    server.process.wait(SOON)
    assert show_lines(server.database) == while_running
    assert server.rows() == [("acme", SLOT, "k1")]


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_show_does_not_change_database(tmp_path: Path, journal: str) -> None:
    path = make_database_of(
        tmp_path / "bookings.db", row_of("acme"), extra_sql=f"PRAGMA journal_mode = {journal}"
    )
    before = path.read_bytes()
    assert show_lines(path)[-1] == "1 booking"
    assert path.read_bytes() == before


def test_show_prints_blobs_and_invalid_utf_8(tmp_path: Path) -> None:
    path = make_database_of(
        tmp_path / "bookings.db",
        row_of("acme"),
        extra_sql="""
            INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key, created_at)
            VALUES (CAST(x'3cff80c33e' AS TEXT), x'1b07', CAST(x'eda080' AS TEXT), 0)
        """,
    )
    lines = show_lines(path)
    assert lines[-1] == "2 bookings"
    assert all(line.isprintable() for line in lines)
    damaged = next(line for line in lines if line.startswith("2 "))
    assert "<\ufffd\ufffd\ufffd>" in damaged
    assert any("acme" in line for line in lines)


# --- Cancelled bookings


@pytest.mark.parametrize(
    ("condition", "table"),
    [
        (
            "FALSE",
            """
id  tenant_id  start_time_utc  idempotency_key  created_at  cancelled_at
--  ---------  --------------  ---------------  ----------  ------------
0 cancelled bookings
""",
        ),
        (
            "id = 2",
            """
id  tenant_id  start_time_utc        idempotency_key  created_at            cancelled_at
--  ---------  --------------------  ---------------  --------------------  --------------------
2   acme       2026-01-01T10:00:00Z  k1               2025-12-31T23:59:59Z  2026-01-01T00:00:00Z
1 cancelled booking
""",
        ),
        (
            "id > 1",
            """
id  tenant_id  start_time_utc        idempotency_key  created_at            cancelled_at
--  ---------  --------------------  ---------------  --------------------  --------------------
2   acme       2026-01-01T10:00:00Z  k1               2025-12-31T23:59:59Z  2026-01-01T00:00:00Z
3   b\\n        2026-01-01T10:00:00Z  k3               2025-12-31T23:59:59Z  2026-01-01T00:00:00Z
2 cancelled bookings
""",
        ),
    ],
    ids=["none", "one", "two"],
)
def test_show_prints_cancelled_bookings(tmp_path: Path, condition: str, table: str) -> None:
    rows = [row_of("live", "k2"), row_of("acme"), row_of("b\n", "k3")]
    path = make_database_of(tmp_path / "bookings.db", *rows, extra_sql=cancel_by_hand(condition))
    ended = run_tool("show", "--cancelled", f"--database={path}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == table.lstrip("\n")
    # Each booking is in one of the two tables, which have three other lines each.
    assert len(show_lines(path)) + len(ended.stdout.splitlines()) == len(rows) + 6


# --- Filters

TENANTS = ("Müller & Söhne 日本", "acme", "zoo")
STARTS = [f"2026-01-0{day}T{hour}:00:00Z" for day in (1, 2, 3) for hour in ("09", "10")]
FILTERS = {
    "tenant": TENANTS[0],
    "from": "2026-01-01t10:00:00.000z",
    "to": "2026-01-03T10:00:00Z",
    "limit": "3",
}


@pytest.fixture(scope="module")
def booked(shared_server: Server) -> Server:
    """Book in an order that differs from the order of every list."""
    for number, (tenant, start) in enumerate(itertools.product(TENANTS, reversed(STARTS))):
        assert shared_server.book(tenant, start, f"{number} € {tenant}").status == 201
    return shared_server


def _listed_by_api(server: Server, filters: dict[str, str]) -> list[dict[str, Any]]:
    """Return the bookings that the API lists for these filters, one tenant after the other."""
    query = {name: value for name, value in filters.items() if name != "tenant"}
    lists = []
    for tenant in [filters["tenant"]] if "tenant" in filters else sorted(TENANTS, key=str.encode):
        response = server.call("GET", "/bookings?" + urlencode({"tenant_id": tenant, **query}))
        assert response.status == 200
        lists += response.json
    return lists[: int(filters.get("limit", len(lists)))]


@pytest.mark.parametrize(
    "filters",
    [
        *(
            dict(subset)
            for size in range(5)
            for subset in itertools.combinations(FILTERS.items(), size)
        ),
        {"tenant": "nobody"},
        {"tenant": "acme", "from": STARTS[2], "to": STARTS[2]},
        {"from": STARTS[3], "to": STARTS[1]},
        {"from": STARTS[1], "to": "2026-01-01T10:00:01Z", "limit": "1000"},
    ],
    ids=lambda filters: " ".join(filters) or "none",
)
def test_show_prints_bookings_that_api_lists(booked: Server, filters: dict[str, str]) -> None:
    flags = [
        f"--database={booked.database}",
        *(f"--{name}={value}" for name, value in filters.items()),
    ]
    listed = _listed_by_api(booked, filters)
    as_json, table = run_tool("show", *flags, "--json"), run_tool("show", *flags)
    for ended in (as_json, table):
        assert (ended.returncode, ended.stderr) == (0, "")
    assert as_json.stdout.isascii()
    assert [json.loads(line) for line in as_json.stdout.splitlines()] == listed
    lines = table.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == [str(booking["id"]) for booking in listed]
    assert lines[-1] == ("1 booking" if len(listed) == 1 else f"{len(listed)} bookings")


@pytest.mark.parametrize(
    "filters",
    [
        {},
        *({name: FILTERS[name]} for name in FILTERS),
        FILTERS,
        {"tenant": "nobody"},
        {"from": STARTS[3], "to": STARTS[1]},
    ],
    ids=lambda filters: " ".join(filters) or "none",
)
def test_show_filters_cancelled_bookings(
    tmp_path: Path, booked: Server, filters: dict[str, str]
) -> None:
    """The same ones that the filters choose while they are bookings."""
    listed = _listed_by_api(booked, filters)
    copy = tmp_path / "copy.db"
    assert run_tool("backup", f"--database={booked.database}", str(copy)).returncode == 0
    with contextlib.closing(sqlite3.connect(copy)) as db:
        db.executescript(cancel_by_hand("TRUE"))
    flags = [f"--database={copy}", *(f"--{name}={value}" for name, value in filters.items())]
    ended = run_tool("show", *flags, "--cancelled", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [json.loads(line) for line in ended.stdout.splitlines()] == [
        {**booking, "cancelled_at": "2026-01-01T00:00:00Z"} for booking in listed
    ]
    assert run_tool("show", *flags).stdout.endswith("\n0 bookings\n")


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--limit", "0", "positive number"),
        ("--limit", "-1", "positive number"),
        ("--limit", "1.5", "positive number"),
        ("--limit", "１", "positive number"),
        ("--limit", "", "positive number"),
        ("--from", "yesterday", "2026-01-01T10:00:00Z"),
        ("--from", "", "2026-01-01T10:00:00Z"),
        ("--from", "2026-01-01T12:00:00+02:00", "2026-01-01T10:00:00Z"),
        ("--to", "2026-02-30T10:00:00Z", "day"),
        ("--to", "2026-01-01 10:00:00", "2026-01-01T10:00:00Z"),
        ("--tenant", "", "1 to 255"),
        ("--tenant", " acme", "white space"),
        ("--tenant", "\x1b[31m", "control character"),
        ("--tennant", "acme", "unrecognized"),
    ],
)
def test_show_rejects_bad_value(booked: Server, flag: str, value: str, expected: str) -> None:
    ended = run_tool("show", f"--database={booked.database}", f"{flag}={value}", "--json")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr and "\x1b" not in ended.stderr
    message = ended.stderr.splitlines()[-1]
    assert "error: " in message and flag in message and expected in message, message


@pytest.mark.parametrize(
    "limit", ["9223372036854775807", "9223372036854775808", "9" * 5000], ids=len
)
def test_show_limit_beyond_table_prints_all_or_is_rejected(booked: Server, limit: str) -> None:
    ended = run_tool("show", f"--database={booked.database}", "--json", f"--limit={limit}")
    assert "Traceback" not in ended.stderr, ended.stderr
    result = (ended.returncode, len(ended.stdout.splitlines()))
    assert result in ((0, len(TENANTS) * len(STARTS)), (2, 0))


def test_show_json_prints_blobs_and_control_characters(tmp_path: Path) -> None:
    insert = """INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key, created_at)
        VALUES (CAST(x'3cff80c33e' AS TEXT), x'1b07', 'k' || char(10, 27, 155), 0)"""
    path = make_database(tmp_path / "bookings.db", 1, insert)
    ended = run_tool("show", f"--database={path}", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii() and "\x1b" not in ended.stdout
    assert sorted(json.loads(line)["id"] for line in ended.stdout.splitlines()) == [1, 2]


# --- Clusters


@pytest.mark.on_rqlite
def test_show_prints_bookings_of_cluster(server: ClusterServer) -> None:
    """More than one page of them, in the order that a file has."""
    days = [f"2026-{month:02}-{day:02}T10:00:00Z" for month in range(1, 13) for day in range(1, 29)]
    rows = [(tenant, day, f"{tenant}/{day}") for day in days for tenant in ("a", "X'41'", "ü", "z")]
    server.insert(rows)
    flag = f"--database={url(*server.nodes)}"
    for flags, chosen in [
        ((), rows),
        (("--tenant=X'41'",), [row for row in rows if row[0] == "X'41'"]),
        (
            (f"--from={days[9]}", f"--to={days[300]}"),
            [row for row in rows if days[9] <= row[1] < days[300]],
        ),
        (("--limit=1001",), sorted(rows)[:1001]),
        (("--limit=3", "--tenant=z"), [row for row in rows if row[0] == "z"][:3]),
        (("--tenant=nobody",), []),
    ]:
        ended = run_tool("show", "--json", *flags, flag)
        assert (ended.returncode, ended.stderr) == (0, "")
        found = [tuple(json.loads(line).values())[1:4] for line in ended.stdout.splitlines()]
        assert found == sorted(chosen), flags
    table = run_tool("show", "--tenant=ü", flag).stdout.splitlines()
    assert len(table) == len(days) + 3
    assert table[-1] == f"{len(days)} bookings"


@pytest.mark.on_rqlite
def test_show_prints_cancelled_bookings_of_cluster(server: ClusterServer) -> None:
    """More than two pages of them, all of one slot."""
    assert server.book("acme", SLOT, "live").status == 201
    server.execute(
        f"""INSERT INTO cancellations
        WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2100)
        SELECT 10000 + i, 'acme', '{SLOT}', 'k' || i, '{SLOT}', '{SLOT}' FROM n"""
    )
    every = [(10_000 + n, "acme", SLOT, f"k{n}", SLOT, SLOT) for n in range(1, 2101)]
    flags = ("--cancelled", f"--database={url(*server.nodes)}")
    for limit in (None, 1000, 1001):
        limited = [] if limit is None else [f"--limit={limit}"]
        ended = run_tool("show", *flags, "--json", *limited)
        assert (ended.returncode, ended.stderr) == (0, "")
        found = [tuple(json.loads(line).values()) for line in ended.stdout.splitlines()]
        assert found == every[:limit]
    assert run_tool("show", *flags).stdout.splitlines()[-1] == "2100 cancelled bookings"


# --- Cost

# Runs `bookings.show` and prints its peak memory and CPU time. getrusage would include the peak of
# the parent process.
_MEASURED_SHOW = """
import atexit, runpy, sys, time
def report():
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)
    print(time.process_time(), file=sys.stderr)
atexit.register(report)
runpy.run_module("bookings.show", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def large_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("large") / "bookings.db", 200_000)


def _measure(*flags: str) -> tuple[int, float]:
    """Return the peak of resident memory, in KiB, and the CPU time in seconds."""
    ended = subprocess.run(
        [sys.executable, "-c", _MEASURED_SHOW, *flags],
        env=tool_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    peak, seconds = ended.stderr.split()
    return int(peak), float(seconds)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["table", "json"])
def test_show_streams_large_table(
    large_database: Path, tmp_path: Path, form: tuple[str, ...]
) -> None:
    small, _ = _measure(f"--database={make_database(tmp_path / 'bookings.db', 1)}", *form)
    peak, whole = _measure(f"--database={large_database}", *form)
    # SQLite's cache takes 2 MB; all rows would take over 50 MB.
    assert peak - small < 8192
    if not form:
        return
    import resource

    # The first line is printed before the other rows are read. The CPU time shows that, even on a
    # busy machine.
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with start_tool("show", f"--database={large_database}", *form) as process:
        assert json.loads(process.stdout.readline())["id"] == 1
        process.stdout.close()
        assert (process.wait(SOON), process.stderr.read()) == (0, "")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < whole / 3


# --- Failures


def _make_damaged(path: Path) -> None:
    """Make a database with a readable schema and unreadable rows."""
    make_database_of(path, row_of("acme"))
    content = path.read_bytes()
    page = int.from_bytes(content[16:18], "big")
    path.write_bytes(content[:page] + b"\xff" * (len(content) - page))


def _make_with(sql: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.executescript(sql)

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.touch(),
        lambda path: path.write_text("id,tenant_id\n1,acme\n" * 100),
        lambda path: path.write_bytes(bytes(range(256)) * 64),
        _make_damaged,
        _make_with("CREATE TABLE others (a)"),
        _make_with("CREATE TABLE bookings (guest, room); INSERT INTO bookings VALUES (1, 2)"),
        _make_with("CREATE TABLE others (a); CREATE VIEW bookings AS SELECT * FROM others"),
    ],
    ids=[
        "missing",
        "folder",
        "empty",
        "text",
        "bytes",
        "damaged",
        "other tables",
        "other columns",
        "view",
    ],
)
def test_show_without_usable_database_fails_with_one_line(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    path = tmp_path / "bookings.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    ended = run_tool("show", "--database=bookings.db", cwd=tmp_path)
    assert_one_line(ended, "show")
    assert ended.stderr.endswith("\n")
    assert (path.read_bytes() if path.is_file() else None) == before


def test_show_does_not_create_folder(tmp_path: Path) -> None:
    ended = run_tool("show", "--database=missing/bookings.db", cwd=tmp_path)
    assert_one_line(ended, "show")
    assert not list(tmp_path.iterdir())


def test_show_help_explains_database_setting(tmp_path: Path) -> None:
    ended = run_tool("show", "--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    explained = " ".join(ended.stdout.split())
    assert "--database" in explained
    assert "environment: BOOKINGS_DB; default: bookings.db beside run.py" in explained
