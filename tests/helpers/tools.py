"""`bookings.show`, `bookings.backup` and `bookings.prove` as processes, and databases for them."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.servers import ROOT, SOON, copy_project
from tests.helpers.values import SLOT

SCHEMA = (ROOT / "schema.sql").read_text(encoding="utf-8")
# Longest time in seconds that a tool may take to obey a signal.
SIGNAL_SECONDS = 10.0
INSERT = (
    "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key, created_at) "
    "VALUES (?, ?, ?, ?)"
)
posix_only = pytest.mark.skipif(
    os.name == "nt", reason="Windows has no such signal, terminal, mode or link"
)
requires_ps = pytest.mark.skipif(not shutil.which("ps"), reason="lists processes with ps")
requires_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")


def tool_environment(code: Path = ROOT, **changes: str) -> dict[str, str]:
    """Return the environment in which `python -m bookings.<tool>` runs the program in `code`."""
    return {**os.environ, "PYTHONPATH": str(code), "PYTHONIOENCODING": "utf-8", **changes}


def start_tool(
    tool: str, *flags: str, code: Path = ROOT, under: tuple[str, ...] = (), **more: Any
) -> Any:
    """Start a tool of the program in `code`, run by the command `under` if given.

    Keywords in capitals become environment variables, others go to Popen.
    """
    changes = {name: more.pop(name) for name in list(more) if name.isupper()}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen(
        [*under, sys.executable, "-m", f"bookings.{tool}", *flags],
        env=tool_environment(code, **changes),
        **{**pipes, "cwd": code, **more},
    )


def run_tool(tool: str, *flags: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end; the parameters are those of `start_tool`."""
    with start_tool(tool, *flags, **more) as process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def assert_one_line(ended: subprocess.CompletedProcess[str], tool: str) -> None:
    """Assert that the tool failed and printed nothing but one line with the reason."""
    assert (ended.returncode, ended.stdout) == (1, ""), ended
    assert ended.stderr.startswith(f"bookings.{tool}: ") and len(ended.stderr) < 900, ended.stderr
    assert len(ended.stderr.splitlines()) == 1, ended.stderr


def limit_file_size(blocks: int) -> Sequence[str]:
    """Return a command that runs another with a limit on file sizes, in blocks of 512 bytes."""
    return "sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh"


def wait_for(event: Callable[[], Any], what: str) -> Any:
    """Call `event` until it returns something true, and return that."""
    deadline = time.monotonic() + SOON
    while True:
        found = event()
        if found:
            return found
        assert time.monotonic() < deadline, f"timeout: waited for {what}"
        time.sleep(0.001)


def make_database(path: Path, count: int, extra_sql: str = "") -> Path:
    """Create a database with `count` bookings of 200 tenants, then run SQL with CHECKs disabled."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(SCHEMA)
        db.execute(
            """WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
            INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key)
            SELECT 'tenant-' || (i % 200),
                strftime('%Y-%m-%dT%H:%M:%SZ', 1767225600 + i * 60, 'unixepoch'),
                'key-' || i FROM n""",
            (count,),
        )
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.executescript(extra_sql)
    return path


def make_database_of(path: Path, *rows: Sequence[object], extra_sql: str = "") -> Path:
    """Create a database with these rows, then run SQL, both with CHECKs disabled."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(SCHEMA)
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute("BEGIN")
        db.executemany(INSERT, rows)
        db.execute("COMMIT")
        db.executescript(extra_sql)
    return path


def cancel_by_hand(condition: str, cancelled_at: str = "2026-01-01T00:00:00Z") -> str:
    """Return SQL that cancels the bookings for which the condition holds."""
    return (
        f"INSERT INTO cancellations SELECT *, '{cancelled_at}' FROM bookings WHERE {condition}; "
        f"DELETE FROM bookings WHERE {condition};"
    )


def row_of(tenant: str, key: str = "k1") -> tuple[str, str, str, str]:
    """Return a row for `make_database_of`."""
    return tenant, SLOT, key, "2025-12-31T23:59:59Z"


def show_lines(database: Path, encoding: str = "utf-8") -> list[str]:
    """Return the lines of the table that `bookings.show` prints."""
    flag = f"--database={database.name}"
    ended = run_tool("show", flag, cwd=database.parent, PYTHONIOENCODING=encoding)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("\n")
    return ended.stdout[:-1].split("\n")


def open_read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


def keys_of(path: Path) -> list[str]:
    """Return the idempotency keys by id, after asserting that the database is intact."""
    with contextlib.closing(open_read_only(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [key for (key,) in db.execute("SELECT idempotency_key FROM bookings ORDER BY id")]


def contents_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of each file in the folder; b"" for a folder."""
    return {path.name: path.read_bytes() if path.is_file() else b"" for path in folder.iterdir()}


def temporary_in(folder: Path) -> dict[str, str]:
    """Return environment variables that make a command put its temporary files into `folder`."""
    return {"TMPDIR": str(folder), "TEMP": str(folder)}


def changed_project(folder: Path, name: str, old: str, new: str) -> Path:
    """Copy the program into `folder` and replace the only occurrence of `old` in one file."""
    copy_project(folder)
    text = (folder / name).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{name} does not contain {old!r} once; change this test"
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def run_in_shell(redirect: str, *command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a Python command in a shell with its output redirected, such as `>&-`."""
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirect}', "sh", sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        timeout=SOON,
        check=False,
    )


def processes_naming(folder: Path) -> dict[int, str]:
    """Return the command lines that contain a path in `folder`, such as its database, by pid."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True
    )
    pairs = (line.strip().split(" ", 1) for line in listed.stdout.splitlines())
    return {int(pid): args for pid, args in pairs if f"{folder}{os.sep}" in args}


def assert_nothing_left(folder: Path) -> None:
    """Assert that there is no file in `folder`, and no process that names one."""
    assert list(folder.iterdir()) == []
    if shutil.which("ps"):
        assert processes_naming(folder) == {}
