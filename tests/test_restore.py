"""`bookings.restore`: the rules of schema.sql judge every row, and the new database has all of them
or does not exist. The copy stays as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clusters import ClusterServer, Link, Node, cluster, url
from tests.helpers.processes import without_override
from tests.helpers.servers import KILL, ROOT, SOON, Server
from tests.helpers.storage import create_by_hand
from tests.helpers.tools import (
    INSERT,
    SCHEMA,
    assert_one_line,
    changed_project,
    contents_of,
    limit_file_size,
    make_database,
    make_database_of,
    posix_only,
    row_of,
    run_tool,
    start_tool,
    wait_for,
)
from tests.helpers.values import COLUMNS, SLOT

LARGE = 200_000
_, *_PARTS = re.split(
    r"^-- (\w+)\n", (ROOT / "tests/old_schemas.sql").read_text(encoding="utf-8"), flags=re.MULTILINE
)
OLD_SCHEMAS = dict(zip(_PARTS[::2], _PARTS[1::2]))
# The columns without any rule. Rows in it can break every rule of schema.sql.
LAX = f"CREATE TABLE bookings ({', '.join(COLUMNS)})"
CANCELLED = (
    "INSERT INTO cancellations SELECT *, '2026-01-01T00:00:00Z' FROM bookings WHERE id = {0};"
)
GOOD = (1, "acme", SLOT, "k1", "2025-12-31T23:59:59Z")


def make_old(path: Path, schema: str, *rows: tuple[object, ...], more_sql: str = "") -> Path:
    """Create a database with another schema and these rows, then run SQL."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(schema)
        db.execute("BEGIN")
        db.executemany(f"INSERT INTO bookings ({', '.join(COLUMNS)}) VALUES (?, ?, ?, ?, ?)", rows)
        db.execute("COMMIT")
        db.executescript(more_sql)
    return path


def rows_of(path: Path, table: str = "bookings") -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(f"SELECT * FROM {table} ORDER BY id").fetchall()


def restore(copy: Path, target: Path | str, **more: Any) -> Any:
    return run_tool("restore", str(copy), f"--database={target}", **more)


def assert_rejected(ended: Any, *reasons: str, hidden: int = 0) -> None:
    """Assert that the restore named rows with these reasons, in order, and counted the others."""
    *named, last = ended.stderr.splitlines()
    assert (ended.returncode, ended.stdout) == (1, ""), ended
    assert len(named) == len(reasons), ended.stderr
    for line, reason in zip(named, reasons):
        assert line.startswith("bookings.restore: ") and reason in line
    assert str(len(reasons) + hidden) in last and "nothing was restored" in last
    assert (f"{hidden} of them not shown" in last) == bool(hidden)


# --- Copies that can be restored


def test_history_is_complete() -> None:
    assert len(OLD_SCHEMAS) == 9 and SCHEMA not in OLD_SCHEMAS.values()


@pytest.mark.parametrize("schema", OLD_SCHEMAS.values(), ids=OLD_SCHEMAS)
def test_database_of_older_version_is_read_refused_and_restored(
    tmp_path: Path, schema: str
) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    row = (7, "Ünï & söhne", SLOT, "k1", "2025-12-31T23:59:59Z")
    make_old(old, schema, row)
    before = old.read_bytes()
    refused = run_server(tmp_path, old)
    command = f"python -m bookings.restore {old} --database new.db makes a new database from it"
    assert refused.endswith(f"; {command}\n")
    # The command of the message, as it stands there.
    ended = run_tool(*command.split()[2].split(".")[1:], *command.split()[3:6], cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"1 booking restored to {new}\n"
    assert old.read_bytes() == before and set(contents_of(tmp_path)) == {"old.db", "new.db"}
    assert rows_of(new) == [row]
    shown = [run_tool("show", f"--database={path}", "--json") for path in (old, new)]
    assert shown[0].stdout == shown[1].stdout != ""
    assert run_tool("show", f"--database={old}", "--cancelled").stdout.endswith(
        "0 cancelled bookings\n"
    )
    copied = run_tool("backup", str(tmp_path / "copy.db"), f"--database={old}")
    assert (copied.returncode, rows_of(tmp_path / "copy.db")) == (0, [row])
    with contextlib.closing(Server(tmp_path, f"--database={new}")) as server:
        assert server.book(*row[1:4]).json == dict(zip(COLUMNS, row))
        assert server.book("acme", SLOT, "k2").json["id"] == 8


def run_server(folder: Path, database: Path | str) -> str:
    """Return the line that the server prints instead of starting."""
    ended = run_tool("__main__", "--port=0", f"--database={database}", cwd=folder)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert len(ended.stderr.splitlines()) == 1
    return str(ended.stderr)


@pytest.mark.parametrize(
    ("written", "restored"),
    [
        ("2026-01-01 10:00:00", "2026-01-01T10:00:00Z"),
        ("2026-01-01 10:00:00.999", "2026-01-01T10:00:00Z"),
        ("2026-01-01T10:00:00.123Z", "2026-01-01T10:00:00Z"),
        # Without Z this may be local time.
        ("2026-01-01T10:00:00", None),
        ("2026-02-30 10:00:00", None),
        ("1969-12-31 23:59:59", None),
        (1767261600, None),
        (None, None),
    ],
)
def test_created_at_in_utc_gets_canonical_spelling(
    tmp_path: Path, written: object, restored: str | None
) -> None:
    old = make_old(
        tmp_path / "old.db", LAX, (*GOOD[:4], written), (2, "zoo", *GOOD[2:3], "k", SLOT)
    )
    ended = restore(old, tmp_path / "new.db")
    if restored:
        assert ended.returncode == 0 and "created_at of 1 booking was rewritten" in ended.stderr
        assert [row[4] for row in rows_of(tmp_path / "new.db")] == [restored, SLOT]
    else:
        assert_rejected(ended, "id 1: ")
        assert "created_at" in ended.stderr


def test_restored_backup_has_cancellations_and_new_ids(tmp_path: Path) -> None:
    """Neither a cancelled booking nor a deleted one gives its id to another."""
    rows = [row_of(f"tenant {n}", f"k{n}") for n in range(1, 6)]
    copy = make_database_of(
        tmp_path / "copy.db",
        *rows,
        extra_sql=f"{CANCELLED.format(2)}{CANCELLED.format(4)}"
        "DELETE FROM bookings WHERE id IN (2, 4, 5)",
    )
    ended = restore(copy, tmp_path / "bookings.db")
    assert (ended.returncode, ended.stderr) == (0, "")
    restored = f"2 bookings and 2 cancellations restored to {tmp_path / 'bookings.db'}\n"
    assert ended.stdout == restored
    for table in ("bookings", "cancellations"):
        assert rows_of(tmp_path / "bookings.db", table) == rows_of(copy, table)
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book(*rows[1][:3]).status == 410
        assert server.book("acme", key="k6").json["id"] == 6


def test_next_id_follows_cancellation_of_copy_without_sequence(tmp_path: Path) -> None:
    schema = SCHEMA.replace("AUTOINCREMENT", "")
    old = make_old(tmp_path / "old.db", schema, GOOD, (9, "zoo", SLOT, "k9", SLOT))
    with contextlib.closing(sqlite3.connect(old)) as db:
        db.executescript(f"{CANCELLED.format(9)} DELETE FROM bookings WHERE id = 9")
    assert restore(old, tmp_path / "bookings.db").returncode == 0
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book("other").status == 422
        assert server.book("other", key="k10").json["id"] == 10


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16"])
def test_texts_keep_their_bytes(tmp_path: Path, encoding: str) -> None:
    texts = ["Ünï 日本 👍", "a\0b"]
    old = make_old(
        tmp_path / "old.db",
        f"PRAGMA encoding = '{encoding}'; {LAX}",
        *((n, text, SLOT, f"k{n}", SLOT) for n, text in enumerate(texts, 1)),
    )
    if encoding == "UTF-8":
        with contextlib.closing(sqlite3.connect(old)) as db, db:
            db.execute(
                f"INSERT INTO bookings VALUES (3, CAST(X'ff80' AS TEXT), '{SLOT}', 'k3', '{SLOT}')"
            )
    assert restore(old, tmp_path / "new.db").returncode == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "new.db")) as db:
        read = "SELECT typeof(tenant_id), CAST(tenant_id AS BLOB) FROM bookings ORDER BY id"
        expected = [("text", text.encode()) for text in texts]
        assert db.execute(read).fetchall() == expected + [("text", b"\xff\x80")] * (
            encoding == "UTF-8"
        )


def test_objects_beyond_schema_are_named_and_not_copied(tmp_path: Path) -> None:
    old = make_old(
        tmp_path / "old.db",
        SCHEMA,
        GOOD,
        more_sql="ALTER TABLE bookings ADD COLUMN note TEXT; CREATE TABLE rooms (a);"
        "ALTER TABLE bookings ADD COLUMN day AS (substr(start_time_utc, 1, 10));"
        "CREATE TRIGGER closed BEFORE INSERT ON bookings BEGIN SELECT 1; END",
    )
    ended = restore(old, tmp_path / "new.db")
    assert ended.returncode == 0
    assert (
        ended.stderr
        == "bookings.restore: not copied: column note, column day, table rooms, trigger closed\n"
    )
    assert rows_of(tmp_path / "new.db") == [GOOD]


def test_view_of_bookings_is_copied(tmp_path: Path) -> None:
    more_sql = "ALTER TABLE bookings RENAME TO t; CREATE VIEW bookings AS SELECT * FROM t"
    old = make_old(tmp_path / "old.db", LAX, GOOD, more_sql=more_sql)
    ended = restore(old, tmp_path / "new.db")
    assert (ended.returncode, ended.stderr) == (0, "bookings.restore: not copied: table t\n")
    assert rows_of(tmp_path / "new.db") == [GOOD]


def make_with_wal(folder: Path) -> Path:
    """Make what a killed server leaves: a database whose second booking is only in its WAL."""
    made = make_database_of(folder / "made.db", row_of("acme"))
    with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(INSERT, row_of("zoo", "k2"))
        for end in ("", "-wal"):
            shutil.copy(f"{made}{end}", folder / f"copy.db{end}")
    made.unlink()
    return folder / "copy.db"


def test_rows_in_wal_of_copy_are_restored(tmp_path: Path) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    copy = make_with_wal(folder)
    before = contents_of(folder)
    assert restore(copy, tmp_path / "new.db").stdout.startswith("2 bookings restored")
    assert {**contents_of(folder), **before} == contents_of(folder)
    assert [row[1] for row in rows_of(tmp_path / "new.db")] == ["acme", "zoo"]


@posix_only
@pytest.mark.parametrize("wal", [False, True])
def test_copy_in_read_only_directory_is_restored_or_refused(tmp_path: Path, wal: bool) -> None:
    folder = tmp_path / "copies"
    folder.mkdir()
    copy = make_with_wal(folder)
    if not wal:
        assert rows_of(copy)  # Closing this connection deletes the WAL.
    before = contents_of(folder)
    folder.chmod(0o555)
    try:
        under = tuple(without_override(folder)[:-1])  # Without Python, which run_tool adds.
        ended = restore(copy, tmp_path / "new.db", under=under)
        assert contents_of(folder) == before
    finally:
        folder.chmod(0o755)
    if wal:
        assert_one_line(ended, "restore")
        assert f"{copy}-wal" in ended.stderr and f"{copy}-shm" in ended.stderr
    else:
        assert ended.stdout.startswith("2 bookings restored")


@posix_only
@pytest.mark.parametrize(("mode", "restored"), [(0o440, 0o640), (0o600, 0o600), (0o664, 0o664)])
def test_restored_database_is_as_private_as_copy(tmp_path: Path, mode: int, restored: int) -> None:
    copy = make_database(tmp_path / "copy.db", 1)
    copy.chmod(mode)
    assert restore(copy, tmp_path / "new.db").returncode == 0
    assert (tmp_path / "new.db").stat().st_mode & 0o7777 == restored


# --- Copies that cannot be restored


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ((2, "acme", SLOT, "k2", SLOT), "UNIQUE constraint failed: bookings.tenant_id, bookings.s"),
        ((2, "zoo", SLOT, "k1", SLOT), "UNIQUE constraint failed: bookings.idempotency_key"),
        ((1, "zoo", SLOT, "k2", SLOT), "UNIQUE constraint failed: bookings.id"),
        ((2, None, SLOT, "k2", SLOT), "NOT NULL constraint failed: bookings.tenant_id"),
        ((2, "", SLOT, "k2", SLOT), "tenant_id must be text of 1 to 255"),
        ((2, b"zoo", SLOT, "k2", SLOT), "tenant_id must be text of 1 to 255"),
        ((2, "zoo", "2026-01-01T10:00:00.000Z", "k2", SLOT), "start_time_utc must be written like"),
        ((2, "zoo", "2026-01-01 10:00:00", "k2", SLOT), "start_time_utc must be written like"),
        ((2, "zoo", "now", "k2", SLOT), "non-deterministic use of strftime"),
        ((2, "zoo", SLOT, "k" * 256, SLOT), "idempotency_key must be text of 1 to 255"),
        ((2, "zoo", SLOT, "k2", "yesterday"), "created_at must be written like"),
        ((0, "zoo", SLOT, "k2", SLOT), "id must be between 1 and 2^53 - 1"),
        (("3f2a", "zoo", SLOT, "k2", SLOT), "id '3f2a': datatype mismatch"),
        ((None, "zoo", SLOT, "k2", SLOT), "id None: datatype mismatch"),
    ],
)
def test_row_that_breaks_rule_is_named(
    tmp_path: Path, row: tuple[object, ...], reason: str
) -> None:
    old = make_old(tmp_path / "old.db", LAX, GOOD, row)
    before = contents_of(tmp_path)
    assert_rejected(restore(old, tmp_path / "new.db"), reason)
    assert contents_of(tmp_path) == before


def test_long_id_is_shortened(tmp_path: Path) -> None:
    old = make_old(tmp_path / "old.db", LAX, ("x" * 9999, "zoo", SLOT, "k2", SLOT))
    ended = restore(old, tmp_path / "new.db")
    assert_rejected(ended, "id 'xxx")
    assert len(ended.stderr) < 500


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sqlite_sequence SET seq = 9007199254740991",
        "INSERT INTO cancellations VALUES (9007199254740992, 'a', 'b', 'c', 'd', 'e')",
    ],
)
def test_copy_that_leaves_no_id_is_refused(tmp_path: Path, change: str) -> None:
    """The new database could not book anything."""
    old = make_old(tmp_path / "old.db", SCHEMA, GOOD, more_sql=change)
    ended = restore(old, tmp_path / "new.db")
    assert_one_line(ended, "restore")
    assert "900719925474099" in ended.stderr and str(old) in ended.stderr
    assert set(contents_of(tmp_path)) == {"old.db"}


def test_cancelled_booking_does_not_come_back(tmp_path: Path) -> None:
    old = make_old(
        tmp_path / "old.db",
        SCHEMA,
        GOOD,
        (2, "zoo", SLOT, "k2", SLOT),
        more_sql=CANCELLED.format(2),
    )
    assert_rejected(restore(old, tmp_path / "new.db"), "bookings, id 2: the booking with this")
    assert set(contents_of(tmp_path)) == {"old.db"}


@pytest.mark.parametrize("count", [20, 2025])
def test_first_twenty_rejected_rows_are_named(tmp_path: Path, count: int) -> None:
    rows = [(n, "acme", SLOT, f"k{n}", SLOT) for n in range(count + 1)]
    ended = restore(make_old(tmp_path / "old.db", LAX, *rows), tmp_path / "new.db")
    named = ["id 0: ", *(f"id {n}: UNIQUE" for n in range(2, 21))]
    assert_rejected(ended, *named, hidden=count - 20)


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
def test_nothing_may_be_where_the_database_goes(tmp_path: Path, end: str) -> None:
    copy = make_database(tmp_path / "copy.db", 3)
    (tmp_path / f"new.db{end}").write_bytes(b"precious")
    before = contents_of(tmp_path)
    ended = restore(copy, tmp_path / "new.db")
    assert_one_line(ended, "restore")
    assert f"{tmp_path / 'new.db'}{end} must not exist" in ended.stderr
    assert contents_of(tmp_path) == before


@posix_only
@pytest.mark.parametrize("target", ["copy.db", "link.db", "folder", "missing/new.db"])
def test_unusable_target_is_refused(tmp_path: Path, target: str) -> None:
    copy = make_database(tmp_path / "copy.db", 3)
    (tmp_path / "link.db").symlink_to("elsewhere/new.db")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path)), copy.read_bytes()
    ended = restore(copy, target, cwd=tmp_path)
    assert_one_line(ended, "restore")
    assert target in ended.stderr
    assert (sorted(os.listdir(tmp_path)), copy.read_bytes()) == before


def test_database_created_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    look = "            _verify_absent(path)\n"
    create = "            open(path, 'w').close()\n"
    code = changed_project(tmp_path / "code", "bookings/stores/restoration.py", look, create)
    copy = make_database(tmp_path / "copy.db", 3)
    ended = restore(copy, tmp_path / "new.db", code=code)
    assert_one_line(ended, "restore")
    assert (tmp_path / "new.db").read_bytes() == b""
    assert {path.name for path in tmp_path.iterdir()} == {"code", "copy.db", "new.db"}


def _damage(path: Path) -> None:
    content = bytearray(make_database(path, 20_000).read_bytes())
    size = int.from_bytes(content[16:18], "big")
    content[size * 40 : size * 41] = b"\xff" * size
    path.write_bytes(content)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.touch(),
        lambda path: path.write_bytes(b"id,tenant_id\n1,acme\n" * 100),
        lambda path: create_by_hand(path, "CREATE TABLE bookings (id, guest)"),
        _damage,
    ],
    ids=["missing", "folder", "empty", "text", "other columns", "damaged"],
)
def test_unusable_copy_is_refused(tmp_path: Path, make: Any) -> None:
    copy = tmp_path / "copy.db"
    make(copy)
    before = contents_of(tmp_path)
    ended = restore(copy, tmp_path / "new.db")
    assert_one_line(ended, "restore")
    assert f"{copy}" in ended.stderr
    assert contents_of(tmp_path) == before


def test_copy_whose_index_lacks_rows_is_refused(tmp_path: Path) -> None:
    """SQLite counts the rows of an index, which is smaller than the table."""
    copy = make_old(tmp_path / "copy.db", LAX, *((n, f"t{n}", SLOT, f"k{n}", SLOT) for n in (1, 2)))
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as db:
        db.execute("CREATE INDEX partial ON bookings (id) WHERE id = 1")
        db.execute("PRAGMA writable_schema = ON")
        db.execute(
            "UPDATE sqlite_master SET sql = 'CREATE INDEX partial ON bookings (id)'"
            " WHERE name = 'partial'"
        )
    ended = restore(copy, tmp_path / "new.db")
    assert_one_line(ended, "restore")
    assert f"{copy} is damaged: it has 1 or 2 rows" in ended.stderr


# --- A WAL that another database left


@pytest.mark.parametrize("tool", ["__main__", "show", "backup", "restore"])
@pytest.mark.parametrize("database", ["copy", "empty"])
def test_wal_of_another_database_is_not_replayed(tmp_path: Path, tool: str, database: str) -> None:
    """`kill -9` leaves a WAL, and then somebody puts a copy in the place of its database."""
    path = make_with_wal(tmp_path)
    if database == "copy":
        make_database(tmp_path / "backup.db", 3).replace(path)
    else:
        path.write_bytes(b"")
    before = contents_of(tmp_path)
    arguments = {
        "__main__": ["--port=0", f"--database={path}"],
        "show": [f"--database={path}"],
        "backup": [f"--database={path}", str(tmp_path / "new.db")],
        "restore": [str(path), f"--database={tmp_path / 'new.db'}"],
    }
    ended = run_tool(tool, *arguments[tool])
    assert ended.returncode == 1 and len(ended.stderr.splitlines()) == 1, ended
    assert f"{path}-wal was left by another database" in ended.stderr
    assert contents_of(tmp_path) == before


def test_wal_of_the_database_itself_is_replayed(tmp_path: Path) -> None:
    make_with_wal(tmp_path).rename(tmp_path / "bookings.db")
    (tmp_path / "copy.db-wal").rename(tmp_path / "bookings.db-wal")
    with contextlib.closing(Server(tmp_path)) as server:
        assert [row[0] for row in server.rows()] == ["acme", "zoo"]


@posix_only
@pytest.mark.parametrize("tool", ["show", "restore"])
def test_journal_of_killed_program_is_named(tmp_path: Path, tool: str) -> None:
    """Only a writer can undo the transaction, and these tools do not write."""
    path = make_database(tmp_path / "copy.db", 2000)
    kill = (
        "import os, sqlite3, sys; db = sqlite3.connect(sys.argv[1]);"
        "db.execute('PRAGMA cache_size = 1'); db.execute('UPDATE bookings SET tenant_id = id');"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", kill, str(path)], check=False, timeout=SOON)
    before = contents_of(tmp_path)
    assert set(before) == {"copy.db", "copy.db-journal"}
    target = [str(path)] if tool == "restore" else []
    database = tmp_path / "new.db" if tool == "restore" else path
    ended = run_tool(tool, *target, f"--database={database}")
    assert_one_line(ended, tool)
    assert f"{path}-journal was left by a program that was killed" in ended.stderr
    assert contents_of(tmp_path) == before


# --- Interruptions, time and memory


@pytest.fixture(scope="module")
def large_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("large") / "copy.db", LARGE)


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, KILL])
def test_interrupted_restore_makes_no_database(
    large_database: Path, tmp_path: Path, number: signal.Signals
) -> None:
    def has_begun() -> bool:
        assert process.poll() is None, "the restore ended before the signal"
        with contextlib.suppress(FileNotFoundError):
            return any(path.stat().st_size for path in tmp_path.iterdir())
        return False

    target = tmp_path / "new.db"
    with start_tool("restore", str(large_database), f"--database={target}") as process:
        wait_for(has_begun, "the restore to begin")
        process.send_signal(number)
        out, err = process.communicate(timeout=SOON)
    assert (out, err) == ("", "")
    if number == KILL:
        (left,) = contents_of(tmp_path)
        assert left.startswith("new.db.")
        assert restore(make_database(tmp_path / "copy.db", 3), target).returncode == 0
    else:
        assert process.returncode == 128 + number
        assert contents_of(tmp_path) == {}


@posix_only
def test_large_restore_is_fast_small_and_shows_progress(
    large_database: Path, tmp_path: Path
) -> None:
    import pty

    measure = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(used.ru_maxrss, used.ru_utime + used.ru_stime); sys.exit(code)"
    )
    under = (sys.executable, "-c", measure)
    master, terminal = pty.openpty()
    used = []
    try:
        for copy in (make_database(tmp_path / "small.db", 20_000), large_database):
            target = tmp_path / f"{copy.name}.new"
            ended = restore(copy, target, under=under, stderr=terminal)
            assert ended.returncode == 0
            used.append([float(number) for number in ended.stdout.split()[-2:]])
        os.set_blocking(master, False)
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(terminal)
    # CPU seconds, because the machine may be busy. It takes three.
    assert used[1][1] < 10
    # Kilobytes, or bytes on macOS: 25 bytes for each additional row would be more than this.
    assert used[1][0] - used[0][0] < 4_500 * (1024 if sys.platform == "darwin" else 1), used
    percents = [int(found) for found in re.findall(r"(\d+) % of 200000 rows", shown)]
    assert len(percents) > 3 and percents == sorted(percents) and percents[-1] == 100


@posix_only
@pytest.mark.parametrize("target", ["new.db", "cluster"])
def test_restore_beyond_file_size_limit_leaves_nothing(
    large_database: Path, tmp_path: Path, target: str
) -> None:
    # For a cluster the rows are judged in a temporary file, before the cluster is used.
    database = "http://localhost:1" if target == "cluster" else tmp_path / target
    ended = restore(large_database, database, under=limit_file_size(4000), TMPDIR=str(tmp_path))
    assert_one_line(ended, "restore")
    blamed = "a temporary database" if target == "cluster" else f"{database}"
    assert f": {blamed}: " in ended.stderr and str(large_database) not in ended.stderr
    assert contents_of(tmp_path) == {}


# --- Clusters


@pytest.fixture(scope="module")
def other_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with cluster(tmp_path_factory.mktemp("restored")) as nodes:
        yield nodes[0]


@pytest.fixture
def node(other_node: Node) -> Node:
    """A node without tables."""
    for table in ("bookings", "cancellations"):
        assert other_node.execute(f"DROP TABLE IF EXISTS {table}") == ""
    return other_node


@pytest.fixture(scope="module")
def copy_for_cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pages of bookings, one of cancellations, and an id that was used last."""
    return make_database(
        tmp_path_factory.mktemp("copy") / "copy.db",
        2_500,
        "UPDATE bookings SET tenant_id = 'X''41'' é🎫' WHERE id = 1;"
        f"{CANCELLED.format('5 OR id > 2490')}"
        "DELETE FROM bookings WHERE id IN (SELECT id FROM cancellations) OR id = 2490",
    )


def assert_same_rows(node: Node, copy: Path) -> None:
    for table in ("bookings", "cancellations"):
        assert node.query(f"SELECT * FROM {table} ORDER BY id") == rows_of(copy, table)


def test_cluster_is_made_from_copy_and_back(
    node: Node, copy_for_cluster: Path, tmp_path: Path
) -> None:
    ended = restore(copy_for_cluster, url(node))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"2488 bookings and 11 cancellations restored to {url(node)}\n"
    assert_same_rows(node, copy_for_cluster)
    assert restore(copy_for_cluster, url(node)).stdout == ended.stdout
    assert_same_rows(node, copy_for_cluster)
    with contextlib.closing(ClusterServer(tmp_path, node)) as server:
        assert server.book("acme", key="new").json["id"] == 2501
        assert server.book("tenant-4", key="key-4").status == 422
    # And back to a file, by way of a backup.
    assert run_tool("backup", str(tmp_path / "b.db"), f"--database={url(node)}").returncode == 0
    assert restore(tmp_path / "b.db", tmp_path / "new.db").stdout.startswith("2489 bookings and 11")
    assert_same_rows(node, tmp_path / "new.db")
    refused = restore(copy_for_cluster, url(node))
    assert_one_line(refused, "restore")
    assert "other bookings, such as id 2501" in refused.stderr


def test_cluster_of_older_version_is_read_refused_and_copied(node: Node, tmp_path: Path) -> None:
    assert node.execute(OLD_SCHEMAS["2c68622"]) == ""
    assert node.execute(f"INSERT INTO bookings VALUES {GOOD}") == ""
    refused = run_server(tmp_path, url(node))
    assert "it has no table cancellations; it has no trigger reject_cancelled; python" in refused
    shown = run_tool("show", f"--database={url(node)}", "--json")
    assert json.loads(shown.stdout) == dict(zip(COLUMNS, GOOD))
    shown = run_tool("show", f"--database={url(node)}", "--cancelled")
    assert shown.stdout.endswith("0 cancelled bookings\n")
    # The commands of the message.
    assert "bookings.backup copy.db and then python -m bookings.restore copy.db --d" in refused
    copy = tmp_path / "copy.db"
    assert run_tool("backup", str(copy), f"--database={url(node)}").returncode == 0
    assert restore(copy, tmp_path / "new.db").returncode == 0
    assert rows_of(tmp_path / "new.db") == [GOOD]
    # Rules are never added to tables that had rows without them.
    refused = restore(copy, url(node))
    assert_one_line(refused, "restore")
    assert node.query("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'") == [(0,)]


def test_restore_to_cluster_continues_after_interruption(
    node: Node, copy_for_cluster: Path
) -> None:
    """The response of one page is lost, and then the process is killed."""
    pages: list[str] = []

    def loses(request: str) -> bool:
        if "json_each" in request:
            pages.append(request)
        if len(pages) == 4:
            process.kill()
        return len(pages) in (2, 4)

    with contextlib.closing(Link(node, loses)) as link:
        database = f"--database=http://{link.address}"
        with start_tool("restore", str(copy_for_cluster), database) as process:
            process.communicate(timeout=SOON)
    assert process.returncode not in (0, 1) and len(pages) == 4
    count = "SELECT (SELECT count(*) FROM bookings) + (SELECT count(*) FROM cancellations)"
    assert 1000 < node.query(count)[0][0] < 2499
    assert restore(copy_for_cluster, url(node)).returncode == 0
    assert_same_rows(node, copy_for_cluster)


def test_cluster_with_other_bookings_is_left_alone(
    node: Node, copy_for_cluster: Path, tmp_path: Path
) -> None:
    assert restore(make_database_of(tmp_path / "a.db", row_of("acme")), url(node)).returncode == 0
    ended = restore(copy_for_cluster, url(node))
    assert_one_line(ended, "restore")
    assert "other bookings, such as id 1" in ended.stderr and url(node) in ended.stderr
    assert_same_rows(node, tmp_path / "a.db")


@pytest.mark.parametrize(
    ("tenant", "reason"),
    [("''", "tenant_id must be"), ("'a' || char(0)", "a NUL"), ("CAST(X'ff' AS TEXT)", "UTF-8")],
)
def test_row_that_cluster_cannot_have_is_named(
    node: Node, tmp_path: Path, tenant: str, reason: str
) -> None:
    change = f"UPDATE bookings SET tenant_id = {tenant} WHERE id = 2"
    copy = make_database(tmp_path / "copy.db", 3, change)
    ended = restore(copy, url(node))
    assert_rejected(ended, "bookings, id 2: ")
    assert reason in ended.stderr
    assert node.query("SELECT name FROM sqlite_master WHERE type = 'table'") in (
        [],
        [("sqlite_sequence",)],
    )
