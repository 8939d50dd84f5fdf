"""`python -m bookings.show` as a process: an aligned table from a database that it only reads.

Nothing that a row holds acts on the terminal; what cannot be shown is one line on stderr and status 1.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.servers import ROOT, SOON, Server, copy_project

SCHEMA = (ROOT / "schema.sql").read_text(encoding="utf-8")
START = "2026-01-01T10:00:00Z"
INSERT = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key, created_at) VALUES (?, ?, ?, ?)"
COMMAND = [sys.executable, "-m", "bookings.show"]


def _environment(code: Path = ROOT, **changes: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "BOOKINGS_DB"}
    return {**inherited, "PYTHONPATH": str(code), **changes}


def _show(
    folder: Path, *flags: str, code: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *flags],
        env=_environment(code, **environment),
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=SOON,
        check=False,
    )


def _shown(database: Path, encoding: str = "utf-8") -> list[str]:
    """The lines of a database's table."""
    ended = _show(database.parent, f"--database={database.name}", PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("\n")
    return ended.stdout[:-1].split("\n")


def _make(path: Path, *rows: tuple[object, ...], by_hand: str = "") -> Path:
    """A database with these rows and then this SQL, written by hand while no CHECK looks."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(SCHEMA)
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("BEGIN")
        db.executemany(INSERT, rows)
        db.execute("COMMIT")
        db.executescript(by_hand)
    return path


def _row(tenant: str, key: str = "k1") -> tuple[str, str, str, str]:
    return tenant, START, key, "2025-12-31T23:59:59Z"


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
            [_row("acme")],
            """
id  tenant_id  start_time_utc        idempotency_key  created_at
--  ---------  --------------------  ---------------  --------------------
1   acme       2026-01-01T10:00:00Z  k1               2025-12-31T23:59:59Z
1 booking
""",
        ),
        (
            [_row("widgets & sons"), _row("acme", "a key longer than its header"), _row("Ünï", "k3")],
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
def test_an_aligned_table_with_header_and_count(
    tmp_path: Path, rows: list[tuple[str, ...]], table: str
) -> None:
    assert "\n".join(_shown(_make(tmp_path / "bookings.db", *rows))) == table.strip("\n")


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
def test_columns_stay_aligned(tmp_path: Path, tenant: str, columns: int) -> None:
    lines = _shown(_make(tmp_path / "bookings.db", _row(tenant)))
    assert (
        lines[2]
        == f"1   {tenant}{' ' * (len('tenant_id') - columns)}  {START}  k1{' ' * 13}  2025-12-31T23:59:59Z"
    )


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
def test_the_file_is_found_from_any_folder(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], shown: str
) -> None:
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy_project(copy)
    _make(copy / "bookings.db", _row("beside"))
    for name in ("environment", "flag"):
        _make(elsewhere / f"{name}.db", _row(name))
    ended = _show(elsewhere, *flags, code=copy, **environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.split()[1] for line in ended.stdout.splitlines()[2:-1]] == [shown]


def test_any_name_of_a_file(tmp_path: Path) -> None:
    name = "two words 50%41 #ü文'" + ("" if os.name == "nt" else "?mode=memory")
    assert _shown(_make(tmp_path / name, _row("acme")))[-1] == "1 booking"


def test_while_the_server_runs_and_afterwards(server: Server) -> None:
    assert server.book("acme", START, "k1").status == 201
    while_running = _shown(server.database)
    assert while_running[2].split()[:4] == ["1", "acme", START, "k1"]
    assert while_running[3:] == ["1 booking"]
    # Somebody's open transaction neither delays the table nor shows in it.
    with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute(INSERT, _row("other", "k2"))
        assert _shown(server.database) == while_running
    server.process.terminate()
    server.process.wait(SOON)
    assert _shown(server.database) == while_running
    assert server.rows() == [("acme", START, "k1")]


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_the_file_is_only_read(tmp_path: Path, journal: str) -> None:
    path = _make(tmp_path / "bookings.db", _row("acme"), by_hand=f"PRAGMA journal_mode = {journal}")
    before = path.read_bytes()
    assert _shown(path)[-1] == "1 booking"
    assert path.read_bytes() == before


def _damaged(path: Path) -> None:
    """The schema can be read, the rows cannot."""
    _make(path, _row("acme"))
    content = path.read_bytes()
    page = int.from_bytes(content[16:18], "big")
    path.write_bytes(content[:page] + b"\xff" * (len(content) - page))


def _with_table(sql: str) -> Callable[[Path], None]:
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
        _damaged,
        _with_table("CREATE TABLE others (a)"),
        _with_table("CREATE TABLE bookings (guest, room); INSERT INTO bookings VALUES (1, 2)"),
        _with_table(SCHEMA.replace("UNIQUE (idempotency_key)", "CHECK (true)")),
        _with_table("CREATE TABLE others (a); CREATE VIEW bookings AS SELECT * FROM others"),
    ],
    ids=[
        "missing",
        "folder",
        "empty",
        "text",
        "bytes",
        "damaged",
        "none of ours",
        "of another program",
        "no UNIQUE",
        "a view",
    ],
)
def test_nothing_to_show_is_one_line_and_status_1(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "bookings.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    ended = _show(tmp_path, "--database=bookings.db")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("bookings.show: ")
    assert ended.stderr.endswith("\n")
    assert len(ended.stderr.splitlines()) == 1
    assert (path.read_bytes() if path.is_file() else None) == before


def test_a_missing_folder_is_not_made(tmp_path: Path) -> None:
    ended = _show(tmp_path, "--database=missing/bookings.db")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# Colour, bell, line breaks, tab, NUL, DEL, 8-bit escapes, bidi controls, separators, what has no width.
_ACTIVE = "\x1b[31m\x07\n\r\t\x00\x7f\x80\x85\x9b2J\u202e\u2066\u2028\u2029\u200b\ufeff\u00ad\U000e0041"


def test_a_row_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    texts = tuple(f"<{name}{_ACTIVE}>" for name in ("tenant", "start", "key", "created"))
    path = _make(tmp_path / "bookings.db", texts, _row("acme", "k2"))
    lines = _shown(path)
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    assert lines[2].count("\\x1b[31m\\x07\\n\\r\\t\\x00\\x7f\\x80\\x85\\x9b2J\\u202e\\u2066") == 4
    assert lines[3].split()[1] == "acme"
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT tenant_id FROM bookings").fetchall()[0] == (texts[0],)


def test_values_that_are_no_text_are_shown_all_the_same(tmp_path: Path) -> None:
    path = _make(
        tmp_path / "bookings.db",
        _row("acme"),
        by_hand="""
            INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key, created_at)
            VALUES (CAST(x'3cff80c33e' AS TEXT), x'1b07', CAST(x'eda080' AS TEXT), 0)
        """,
    )
    lines = _shown(path)
    assert lines[-1] == "2 bookings"
    assert all(line.isprintable() for line in lines)
    damaged = next(line for line in lines if line.startswith("2 "))
    assert "<\ufffd\ufffd\ufffd>" in damaged
    assert any("acme" in line for line in lines)


@pytest.mark.parametrize("count", [1, 3000])
@pytest.mark.parametrize("lines", [0, 1])
def test_a_reader_may_leave(tmp_path: Path, count: int, lines: int) -> None:
    _make(tmp_path / "bookings.db", *(_row(f"tenant {n}", f"k{n}") for n in range(count)))
    process = subprocess.Popen(
        [*COMMAND, "--database=bookings.db"],
        env=_environment(),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    for _ in range(lines):
        assert process.stdout.readline().startswith(b"id ")
    process.stdout.close()
    process.stdout = None  # so that communicate does not read it either
    _, complaint = process.communicate(timeout=SOON)
    assert (process.returncode, complaint) == (0, b"")


def test_an_output_that_knows_ascii_only(tmp_path: Path) -> None:
    path = _make(tmp_path / "bookings.db", _row("日本"))
    lines = _shown(path, encoding="ascii")
    assert lines[2].split()[1] == r"\u65e5\u672c"
    assert lines[3] == "1 booking"


def test_help_explains_the_setting(tmp_path: Path) -> None:
    ended = _show(tmp_path, "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    explained = " ".join(ended.stdout.split())
    assert "--database" in explained
    assert "environment: BOOKINGS_DB; default: bookings.db beside run.py" in explained
