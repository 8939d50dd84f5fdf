"""The rules of schema.sql, and databases whose tables are not those of schema.sql."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.processes import run_and_fail
from tests.helpers.servers import ROOT, SOON, Server
from tests.helpers.storage import BOOKING, all_files, create_by_hand
from tests.helpers.tools import SCHEMA

RUN = str(ROOT / "run.py")


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
    with (ROOT / "schema.sql").open() as schema:
        subprocess.run(
            [client, "bookings.db"], stdin=schema, cwd=tmp_path, check=True, timeout=SOON
        )
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book(*BOOKING).status == 201
        assert server.rows() == [BOOKING]


def test_schema_is_plain_sql() -> None:
    statements = re.sub(r"--.*", "", SCHEMA)
    assert "CREATE TABLE" in statements
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
    "additional column": (
        "UNIQUE (tenant_id,",
        "note TEXT, UNIQUE (tenant_id,",
        "unexpected: note TEXT",
    ),
    "table of another program": (SCHEMA, "CREATE TABLE bookings (guest, room)", "guest, room"),
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


def _dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())
