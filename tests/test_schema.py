"""The rules of schema.sql, and databases whose tables are not those of schema.sql."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clients import as_header
from tests.helpers.processes import run_and_fail
from tests.helpers.servers import CANONICAL, ROOT, SOON, Server, assert_problem
from tests.helpers.storage import BOOKING, all_files, create_by_hand
from tests.helpers.tools import SCHEMA, run_tool
from tests.helpers.values import (
    COLUMNS,
    INSTANTS,
    MEMBERS,
    REJECTED_TEXTS,
    SLOT,
    TEXTS,
    fresh_name,
    short_id,
    utf8,
)

RUN = str(ROOT / "run.py")
INSERT = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES"
TEXT_COLUMNS = ["tenant_id", "idempotency_key"]
INSTANT_COLUMNS = ["start_time_utc", "created_at"]

# --- The rules of the table


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(tmp_path_factory.mktemp("sql") / "bookings.db")) as db:
        db.executescript(SCHEMA)
        yield db


@pytest.fixture
def table(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """The empty table in a connection of a SQL client. What a test inserts is rolled back."""
    yield database
    database.rollback()


def insert_value(table: sqlite3.Connection, column: str, value: object) -> tuple[Any, ...]:
    """Insert a row with this value in one column; return the type and the bytes stored for it.

    Text is cast from its bytes, because `sqlite3` rejects lone surrogates before SQLite sees them.
    """
    row = {"tenant_id": "acme", "start_time_utc": SLOT, "idempotency_key": "k", column: value}
    marks = ["CAST(? AS TEXT)" if isinstance(given, str) else "?" for given in row.values()]
    table.execute(
        f"INSERT INTO bookings ({', '.join(row)}) VALUES ({', '.join(marks)})",
        [utf8(given) if isinstance(given, str) else given for given in row.values()],
    )
    read = f"SELECT typeof({column}), CAST({column} AS BLOB) FROM bookings"
    (stored,) = table.execute(read).fetchall()
    return tuple(stored)


def assert_rejected_by_table(table: sqlite3.Connection, column: str, value: object) -> None:
    # The message names the column whose value failed. SQLite does not allow "now" in a CHECK.
    failure = f"constraint failed.*{column}|non-deterministic use"
    with pytest.raises(sqlite3.DatabaseError, match=failure):
        insert_value(table, column, value)
    assert table.execute("SELECT count(*) FROM bookings").fetchone() == (0,)


@pytest.mark.parametrize("column", INSTANT_COLUMNS)
@pytest.mark.parametrize(("sent", "stored", "detail"), INSTANTS, ids=short_id)
def test_table_accepts_only_canonical_instants(
    table: sqlite3.Connection, column: str, sent: str, stored: str | None, detail: str
) -> None:
    if sent == stored:
        assert insert_value(table, column, sent) == ("text", sent.encode())
    else:
        assert_rejected_by_table(table, column, sent)


def test_table_accepts_exactly_the_days_of_the_calendar(table: sqlite3.Connection) -> None:
    # The end of February in all years, and in some years every day that can be written.
    around_february = itertools.product(range(10_000), [2], [28, 29, 30])
    first_of_march = itertools.product(range(10_000), [3], [1])
    years = (300, 700, 1969, 1970, 1972, 2000, 2026)
    all_months = itertools.product(years, range(14), range(33))
    days = {
        f"{year:04}-{month:02}-{day:02}"
        for year, month, day in (*around_february, *first_of_march, *all_months)
    }
    rows = [(f"{day}T10:00:00Z", day) for day in sorted(days)]
    table.executemany(f"{INSERT.replace('INTO', 'OR IGNORE INTO')} ('acme', ?, ?)", rows)
    real = []
    for start, day in rows:
        with contextlib.suppress(ValueError):
            if date(*map(int, day.split("-"))).year >= 1970:
                real.append((start,))
    assert len(real) > 18_000
    stored = table.execute("SELECT start_time_utc FROM bookings ORDER BY start_time_utc")
    assert stored.fetchall() == real


@pytest.mark.parametrize("column", INSTANT_COLUMNS)
@pytest.mark.parametrize(
    "value",
    [SLOT.encode(), b"2026-01-01T10:00:00\xff", b"", None, 0, 2026, 1767261600, 2461041.5],
    ids=short_id,
)
def test_table_rejects_instant_that_is_not_text(
    table: sqlite3.Connection, column: str, value: object
) -> None:
    assert_rejected_by_table(table, column, value)


def test_created_at_defaults_to_current_time(table: sqlite3.Connection) -> None:
    table.execute(f"{INSERT} ('acme', ?, 'k')", (SLOT,))
    [(created_at, now)] = table.execute(
        "SELECT created_at, strftime('%Y-%m-%dT%H:%M:%SZ', 'now') FROM bookings"
    ).fetchall()
    assert CANONICAL.fullmatch(created_at)
    assert created_at <= now


@pytest.mark.parametrize("column", TEXT_COLUMNS)
@pytest.mark.parametrize("text", TEXTS, ids=short_id)
def test_table_accepts_text_that_api_accepts(
    table: sqlite3.Connection, column: str, text: str
) -> None:
    assert insert_value(table, column, text) == ("text", text.encode())


@pytest.mark.parametrize("value", [-1, 0, 2**53])
def test_table_rejects_id_outside_1_to_2_53_minus_1(table: sqlite3.Connection, value: int) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="CHECK constraint failed: id must be"):
        insert_value(table, "id", value)
    assert insert_value(table, "id", 2**53 - 1) == ("integer", b"%d" % (2**53 - 1))


def table_accepts(text: str) -> bool:
    """Return whether SQLite's length() of the text is 1 to 255. It ends at the first NUL."""
    return 1 <= len(text.partition("\0")[0]) <= 255


BAD_LENGTHS = [
    *(text for text, _ in REJECTED_TEXTS if not table_accepts(text)),
    # The bytes are limited as well: a row with a long text after a NUL would make lists slow.
    *("a\0" + "x" * 1019, "a\0" + "huge" * 250_000),
]


@pytest.mark.parametrize("column", TEXT_COLUMNS)
@pytest.mark.parametrize("text", BAD_LENGTHS, ids=short_id)
def test_table_rejects_text_without_1_to_255_characters(
    table: sqlite3.Connection, column: str, text: str
) -> None:
    assert_rejected_by_table(table, column, text)


@pytest.mark.parametrize("column", TEXT_COLUMNS)
@pytest.mark.parametrize("value", [None, b"", b"acme", b"\xed\xa0\x80", b"\x00"], ids=short_id)
def test_table_rejects_blob_and_null_as_text(
    table: sqlite3.Connection, column: str, value: object
) -> None:
    assert_rejected_by_table(table, column, value)


@pytest.mark.parametrize("column", TEXT_COLUMNS)
@pytest.mark.parametrize(("number", "stored"), [(5, b"5"), (-1, b"-1"), (5.5, b"5.5")])
def test_table_stores_number_as_text(
    table: sqlite3.Connection, column: str, number: float, stored: bytes
) -> None:
    assert insert_value(table, column, number) == ("text", stored)
    # A number and its text are therefore neither two tenants nor two keys.
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        insert_value(table, column, stored.decode())


# --- Rows written by hand

# Only the API has rules about characters; the table accepts these texts.
HAND_WRITTEN = [
    *(utf8(text) for text, _ in REJECTED_TEXTS if table_accepts(text)),
    # An emoji as two surrogates of three bytes each (CESU-8), which is not UTF-8.
    utf8("\ud83d\ude00"),
    *(b"\xff", b"a\xc3", b"\xf4\x90\x80\x80", b"caf\xe9"),
    b"a\0" + b"x" * 1018,
]


def insert_by_hand(server: Server, *values: bytes) -> None:
    """Insert a row with these bytes as texts: tenant, start and key."""
    texts = [f"CAST(X'{value.hex()}' AS TEXT)" for value in values]
    server.execute(f"{INSERT} ({', '.join(texts)})")


@pytest.mark.both_stores
@pytest.mark.parametrize("key", HAND_WRITTEN, ids=short_id)
def test_hand_written_key_that_api_rejects_is_listed(shared_server: Server, key: bytes) -> None:
    tenant = fresh_name()
    insert_by_hand(shared_server, tenant.encode(), SLOT.encode(), key)
    assert shared_server.book(tenant, "2026-01-02T10:00:00Z", tenant).status == 201
    listed = shared_server.call("GET", "/bookings", X_Tenant_ID=tenant)
    assert listed.status == 200
    first, second = listed.json
    assert [first[name] for name in MEMBERS] == [tenant, SLOT, key.decode("utf-8", "replace")]
    assert second["idempotency_key"] == tenant
    for booking in (first, second):
        got = shared_server.call("GET", f"/bookings/{booking['id']}", X_Tenant_ID=tenant)
        assert (got.status, got.json) == (200, booking)
    page = shared_server.call("GET", "/bookings?limit=1", X_Tenant_ID=tenant)
    assert page.json == [first] and page.headers["Link"]
    taken = shared_server.book(tenant, SLOT, f"{tenant}-other")
    assert_problem(taken, 409, "slot-taken", "start_time_utc")


@pytest.mark.both_stores
@pytest.mark.parametrize("tenant", HAND_WRITTEN, ids=short_id)
def test_hand_written_tenant_that_api_rejects_is_not_listed(
    shared_server: Server, tenant: bytes
) -> None:
    name = fresh_name()
    insert_by_hand(shared_server, tenant, SLOT.encode(), f"{name}-by-hand".encode())
    # The valid name that is closest to the hand-written one.
    similar = re.sub("[\x00-\x1f\x7f-\x9f]", "", tenant.decode("utf-8", "replace")).strip()
    for neighbour in {name, similar[:255] or name}:
        listed = shared_server.call("GET", "/bookings", X_Tenant_ID=as_header(neighbour))
        assert (listed.status, listed.json) == (200, [])
    reused = shared_server.book(name, "2026-01-02T10:00:00Z", f"{name}-by-hand")
    assert_problem(reused, 422, "key-reused", "idempotency_key")
    own = shared_server.book(name, SLOT, name)
    assert own.status == 201
    assert shared_server.call("GET", "/bookings", X_Tenant_ID=name).json == [own.json]


@pytest.mark.parametrize(
    "statement",
    [
        f"{INSERT} ('acme', '2026-01-01T10:00:00Z', 'k9')",
        f"{INSERT} ('acme', '2026-01-09T10:00:00Z', 'k1')",
        f"{INSERT} ('else', '2026-01-09T10:00:00Z', 'k1')",
        f"{INSERT} ('acme', '2026-01-09T10:00:00Z', 'k9'), ('acme', '2026-01-02T10:00:00Z', 'k8')",
        "INSERT INTO bookings SELECT 9, tenant_id, start_time_utc, 'k9', created_at FROM bookings",
        "UPDATE bookings SET start_time_utc = '2026-01-01T10:00:00Z'",
        "UPDATE bookings SET idempotency_key = 'k1'",
    ],
)
def test_hand_written_duplicate_is_rejected(server: Server, statement: str) -> None:
    assert server.book("acme", "2026-01-01T10:00:00Z", "k1").status == 201
    assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
    before = server.rows()
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE constraint failed"):
        server.execute(statement)
    assert server.rows() == before


def test_hand_written_row_is_a_booking(server: Server) -> None:
    slot, other_slot = "2026-01-01T10:00:00Z", "2026-01-02T10:00:00Z"
    server.execute(
        f"{INSERT} ('acme', '{slot}', 'by hand')",
        f"{INSERT.replace(')', ', created_at)')} "
        f"('acme', '{other_slot}', 'a year ago', '2025-01-01T00:00:00Z')",
    )
    first, second = server.call("GET", "/bookings?tenant_id=acme").json
    assert list(first) == list(COLUMNS) and CANONICAL.fullmatch(first["created_at"])
    assert [first[name] for name in MEMBERS] == ["acme", slot, "by hand"]
    assert second["created_at"] == "2025-01-01T00:00:00Z"
    assert server.call("GET", f"/bookings/{first['id']}", X_Tenant_ID="acme").json == first
    for start, booking in [(slot, first), (other_slot, second)]:
        replay = server.book("acme", start, booking["idempotency_key"])
        assert (replay.status, replay.json) == (200, booking)
        assert replay.headers["Idempotent-Replayed"] == "true"
    assert_problem(server.book("acme", slot, "k9"), 409, "slot-taken", "start_time_utc")
    assert_problem(server.book("else", slot, "by hand"), 422, "key-reused", "idempotency_key")
    assert server.rows() == [("acme", slot, "by hand"), ("acme", other_slot, "a year ago")]


INTO = "INTO bookings (id, tenant_id, start_time_utc, idempotency_key) VALUES"
CANCELLED = f"(NULL, 'acme', '{SLOT}', 'k1')"


@pytest.mark.both_stores
@pytest.mark.parametrize(
    "statement",
    [
        f"INSERT {INTO} {CANCELLED}",
        f"INSERT {INTO} (NULL, 'acme', '2026-01-03T10:00:00Z', 'k9'), {CANCELLED}",
        f"INSERT {INTO} (NULL, 'else', '2026-01-03T10:00:00Z', 'k1')",
        f"INSERT OR IGNORE {INTO} {CANCELLED}",
        f"INSERT OR REPLACE {INTO} {CANCELLED}",
        # This slot is taken.
        f"INSERT OR REPLACE {INTO} (NULL, 'acme', '2026-01-02T10:00:00Z', 'k1')",
        f"INSERT {INTO} {CANCELLED} ON CONFLICT DO NOTHING",
        f"INSERT {INTO} {CANCELLED} ON CONFLICT (idempotency_key) DO UPDATE SET id = 9",
        f"INSERT INTO bookings SELECT {', '.join(COLUMNS)} FROM cancellations",
    ],
)
def test_hand_written_insert_of_cancelled_booking_is_rejected(
    server: Server, statement: str
) -> None:
    first = server.book("acme", SLOT, "k1").json["id"]
    assert server.cancel(first).status == 204
    assert server.book("acme", "2026-01-02T10:00:00Z", "k2").status == 201
    message = "the booking with this idempotency key was cancelled"
    with pytest.raises((sqlite3.IntegrityError, AssertionError), match=message):
        server.execute(statement)
    assert server.rows() == [("acme", "2026-01-02T10:00:00Z", "k2")]
    assert server.rows("cancellations") == [("acme", SLOT, "k1")]
    assert server.book("acme", SLOT, "k3").status == 201


@pytest.mark.both_stores
def test_cancelled_booking_deleted_by_hand_can_be_booked(server: Server) -> None:
    """That erases it without a trace: its key is unknown, its id is 404 and does not return."""
    first = server.book("acme", SLOT, "k1").json["id"]
    assert server.cancel(first).status == 204
    server.execute(f"DELETE FROM cancellations WHERE id = {first}")
    assert_problem(server.cancel(first), 404, "no-such-booking")
    second = server.book("acme", SLOT, "k1")
    assert second.status == 201
    assert second.json["id"] > first
    assert server.rows() == [("acme", SLOT, "k1")]
    assert server.rows("cancellations") == []


def test_slot_freed_by_hand_can_be_booked_under_new_id(server: Server) -> None:
    first = server.book("acme", key="gone")
    assert first.status == 201
    server.execute("DELETE FROM bookings")
    assert_problem(server.cancel(first.json["id"]), 404, "no-such-booking")
    assert server.rows("cancellations") == []
    second = server.book("acme", key="gone")
    assert second.status == 201
    assert second.json["id"] > first.json["id"]
    assert [key for _, _, key in server.rows()] == ["gone"]


# --- Databases that were created without the server


def _with_other_comments(script: str) -> str:
    return re.sub(r"--.*", "-- don't; ask (why", script).replace(",\n", ", -- indeed\n\n\t")


@pytest.mark.parametrize(
    "change",
    [
        str,
        lambda script: script.replace("\n", "\r\n"),
        lambda script: re.sub(r"\n\s*", "\n", re.sub(r"--.*", "", script)),
        _with_other_comments,
        lambda script: "",
    ],
    ids=["unchanged", "CRLF", "no comments", "other comments", "empty file"],
)
def test_database_made_from_schema_is_accepted(
    tmp_path: Path, change: Callable[[str], str]
) -> None:
    path = tmp_path / "bookings.db"
    path.touch()
    create_by_hand(path, change(SCHEMA))
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book("acme", "2026-01-01T11:00:00Z", "k2").status == 201
        assert server.book("acme", "2026-01-01T11:00:00Z", "k3").status == 409
        assert server.rows()[-1] == ("acme", "2026-01-01T11:00:00Z", "k2")


def test_sqlite3_client_can_create_database(tmp_path: Path) -> None:
    client = shutil.which("sqlite3")
    if not client:
        pytest.skip("no sqlite3 client")
    for _ in range(2):  # Running it again is harmless.
        with (ROOT / "schema.sql").open() as schema:
            ended = subprocess.run(
                [client, "bookings.db"],
                stdin=schema,
                cwd=tmp_path,
                capture_output=True,
                check=True,
                timeout=SOON,
            )
        assert (ended.stdout, ended.stderr) == (b"", b"")
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book(*BOOKING).status == 201
        assert server.rows() == [BOOKING]


def test_schema_is_plain_sql() -> None:
    statements = re.sub(r"--.*", "", SCHEMA)
    assert "CREATE TABLE" in statements
    # The body of a trigger has a BEGIN of its own.
    statements = re.sub(r"\bBEGIN\b.*?\bEND;", "", statements, flags=re.DOTALL)
    assert not re.findall(
        r"\b(?:PRAGMA|BEGIN|COMMIT|DROP|STRICT|RETURNING)\b", statements, re.IGNORECASE
    )


# What another table has instead of a part of schema.sql, and the difference that the error names.
_OTHER_TABLES = {
    "no UNIQUE": (
        "UNIQUE (tenant_id, start_time_utc),",
        "",
        "missing: UNIQUE (tenant_id, start_time_utc)",
    ),
    "UNIQUE of three": (
        "UNIQUE (tenant_id, start_time_utc)",
        "UNIQUE (tenant_id, start_time_utc, id)",
        "unexpected: UNIQUE (tenant_id, start_time_utc, id)",
    ),
    "UNIQUE that replaces": (
        "UNIQUE (idempotency_key)",
        "UNIQUE (idempotency_key) ON CONFLICT REPLACE",
        "ON CONFLICT REPLACE",
    ),
    "no NOT NULL": (
        "start_time_utc TEXT NOT NULL",
        "start_time_utc TEXT",
        "unexpected: start_time_utc TEXT",
    ),
    "no CHECK": ("CHECK (id BETWEEN 1 AND 9007199254740991)", "", "CHECK (id BETWEEN"),
    "another CHECK": ("start_time_utc >= '1970'", "start_time_utc >= '0000'", "'0000'"),
    "additional column without default": (
        "UNIQUE (tenant_id,",
        "note TEXT NOT NULL, UNIQUE (tenant_id,",
        "unexpected: note TEXT NOT NULL",
    ),
    "additional UNIQUE column": (
        "UNIQUE (tenant_id,",
        "note TEXT DEFAULT '' UNIQUE, UNIQUE (tenant_id,",
        "unexpected: note TEXT DEFAULT '' UNIQUE",
    ),
    "additional CHECK": (
        "UNIQUE (tenant_id,",
        "CHECK (tenant_id <> 'acme'), UNIQUE (tenant_id,",
        "unexpected: CHECK (tenant_id <> 'acme')",
    ),
    "rule in comment": (
        "UNIQUE (idempotency_key)\n",
        "CHECK (id <> '--') -- , UNIQUE (idempotency_key)\n",
        "missing: UNIQUE (idempotency_key)",
    ),
    "table of another program": (
        SCHEMA,
        "CREATE TABLE bookings (guest, room, UNIQUE (room))",
        "its table bookings (guest, room) is not",
    ),
    "upper-case name": (SCHEMA, "CREATE TABLE Bookings (guest, room)", "guest, room"),
    "view": (
        SCHEMA,
        "CREATE TABLE others (a); CREATE VIEW bookings AS SELECT * FROM others",
        "no table bookings",
    ),
    "index": (
        SCHEMA,
        "CREATE TABLE others (a); CREATE INDEX bookings ON others (a)",
        "no table bookings",
    ),
    "other tables only": (SCHEMA, "CREATE TABLE others (a)", "no table bookings"),
    "no cancellations": (
        SCHEMA[SCHEMA.index("CREATE TABLE IF NOT EXISTS cancellations") :],
        "",
        "no table cancellations",
    ),
    "cancellations without PRIMARY KEY": (
        "id INTEGER PRIMARY KEY,",
        "id INTEGER,",
        "its table cancellations is not the one in schema.sql",
    ),
    "cancellations without UNIQUE": (
        "idempotency_key TEXT NOT NULL UNIQUE",
        "idempotency_key TEXT NOT NULL",
        "its table cancellations is not the one in schema.sql",
    ),
    "no trigger": (
        SCHEMA[SCHEMA.index("CREATE TRIGGER") :],
        "",
        "no trigger reject_cancelled",
    ),
    "trigger under another name": ("reject_cancelled", "other", "no trigger reject_cancelled"),
    "trigger that ignores": (
        "RAISE(ABORT, 'the booking with this idempotency key was cancelled')",
        "RAISE(IGNORE)",
        "its trigger reject_cancelled is not the one in schema.sql",
    ),
    "trigger that compares nothing": (
        "idempotency_key = NEW.idempotency_key",
        "'' = NEW.idempotency_key",
        "its trigger reject_cancelled is not the one in schema.sql",
    ),
}


@pytest.mark.parametrize(
    ("part", "instead", "difference"), _OTHER_TABLES.values(), ids=_OTHER_TABLES
)
def test_table_that_differs_from_schema_is_rejected(
    tmp_path: Path, part: str, instead: str, difference: str
) -> None:
    assert part in SCHEMA
    path = create_by_hand(tmp_path / "bookings.db", SCHEMA.replace(part, instead))
    before = _dump(path)
    line = run_and_fail(tmp_path, sys.executable, RUN, "--port=0", f"--database={path}")
    assert str(path) in line and difference in line
    with contextlib.closing(sqlite3.connect(path)) as db:
        found = {name for (name,) in db.execute("SELECT name FROM pragma_table_info('bookings')")}
    if found.issuperset(COLUMNS):
        command = f"python -m bookings.restore {path} --database new.db"
        assert line.endswith(f"; {command} makes a new database from it\n")
    else:
        assert line.endswith("; is it the database of another program?\n")
    assert _dump(path) == before
    assert os.listdir(tmp_path) == ["bookings.db"]


@pytest.mark.parametrize(
    "theirs",
    [
        "CREATE TABLE bookings (guest, room)",
        "CREATE TABLE Bookings (guest, room)",
        "PRAGMA encoding = 'UTF-16'; CREATE TABLE others (a)",
        "CREATE TABLE others (a)",
    ],
    ids=["another table", "upper-case name", "UTF-16", "other tables only"],
)
def test_rejected_database_keeps_every_byte(tmp_path: Path, theirs: str) -> None:
    path = create_by_hand(tmp_path / "bookings.db", theirs)
    before = all_files(tmp_path)
    run_and_fail(tmp_path, sys.executable, RUN, "--port=0", f"--database={path}")
    assert all_files(tmp_path) == before


@pytest.mark.parametrize(
    "column",
    [
        "note",
        "note TEXT NOT NULL DEFAULT '-- , ('",
        "\"a, 'note'\" INTEGER DEFAULT (-1) CHECK (tenant_id <> '')",
    ],
)
def test_column_that_operator_added_locks_nobody_out(tmp_path: Path, column: str) -> None:
    path = create_by_hand(tmp_path / "bookings.db")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"ALTER TABLE bookings ADD COLUMN {column}")
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.call("GET", "/ready").status == 200
        booked = server.book("acme", "2026-01-01T11:00:00Z", "k2")
        assert (booked.status, list(booked.json)) == (201, list(COLUMNS))
        assert booked.json in server.call("GET", "/bookings?tenant_id=acme").json
        shown = run_tool("show", f"--database={path}", "--json")
        assert [json.loads(line) for line in shown.stdout.splitlines()][1] == booked.json
        copied = run_tool("backup", str(tmp_path / "copy.db"), f"--database={path}")
        assert copied.stdout.startswith("2 bookings copied")


def _dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())
