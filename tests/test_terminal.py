"""Output of the commands: a terminal that shows no controls, a reader that leaves, a full disk."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.helpers.servers import SOON, Server
from tests.helpers.tools import (
    assert_nothing_left,
    changed_project,
    keys_of,
    make_database,
    make_database_of,
    posix_only,
    requires_dev_full,
    row_of,
    run_in_shell,
    run_tool,
    show_lines,
    start_tool,
    temporary_in,
)

# --- Characters that a terminal would act on or cannot show

# Colour, bell, line breaks, tab, NUL, DEL, 8-bit escapes, bidi controls, separators and characters
# without width.
_CONTROLS = (
    "\x1b[31m\x07\n\r\t\x00\x7f\x80\x85\x9b2J\u202e\u2066\u2028\u2029\u200b\ufeff\u00ad\U000e0041"
)


def test_show_escapes_control_characters_in_rows(tmp_path: Path) -> None:
    texts = tuple(f"<{name}{_CONTROLS}>" for name in ("tenant", "start", "key", "created"))
    path = make_database_of(tmp_path / "bookings.db", texts, row_of("acme", "k2"))
    lines = show_lines(path)
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    assert lines[2].count("\\x1b[31m\\x07\\n\\r\\t\\x00\\x7f\\x80\\x85\\x9b2J\\u202e\\u2066") == 4
    assert lines[3].split()[1] == "acme"
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT tenant_id FROM bookings").fetchall()[0] == (texts[0],)


def test_show_prints_escapes_to_ascii_terminal(tmp_path: Path) -> None:
    path = make_database_of(tmp_path / "bookings.db", row_of("日本"))
    lines = show_lines(path, encoding="ascii")
    assert lines[2].split()[1] == r"\u65e5\u672c"
    assert lines[3] == "1 booking"


@posix_only
def test_backup_prints_escapes_for_unprintable_file_name(tmp_path: Path) -> None:
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "käse\udce9.db"
    ended = run_tool("backup", f"--database={source}", str(copy), PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("k\\xe4se\\udce9.db\n")
    assert keys_of(copy) == ["key-0", "key-1", "key-2"]


# --- Output that is closed or full


@pytest.mark.parametrize("count", [1, 3000])
@pytest.mark.parametrize("lines", [0, 1])
def test_show_succeeds_if_reader_leaves(tmp_path: Path, count: int, lines: int) -> None:
    rows = [row_of(f"tenant {number}", f"k{number}") for number in range(count)]
    make_database_of(tmp_path / "bookings.db", *rows)
    with start_tool("show", "--database=bookings.db", cwd=tmp_path) as process:
        for _ in range(lines):
            assert process.stdout.readline().startswith("id ")
        process.stdout.close()
        assert (process.wait(SOON), process.stderr.read()) == (0, "")


@pytest.mark.parametrize("lines", [1, 7], ids=["between parts", "before the verdict"])
def test_prove_fails_quietly_if_reader_leaves(
    tmp_path: Path, temporary_folder: Path, lines: int
) -> None:
    # prove waits for a line after each part, so that its output is closed before it goes on.
    old = "        print(line, flush=True)\n"
    code = changed_project(
        tmp_path / "code", "bookings/prove.py", old, f"{old}        sys.stdin.readline()\n"
    )
    variables = temporary_in(temporary_folder)
    with start_tool("prove", code=code, stdin=subprocess.PIPE, **variables) as process:
        for line in range(lines):
            if line:
                print(file=process.stdin, flush=True)
            assert re.match(r"\[\d/7\] .*: ok$", process.stdout.readline())
        process.stdout.close()
        process.stdin.close()
        assert (process.wait(SOON), process.stderr.read()) == (1, "")
    assert_nothing_left(temporary_folder)


@requires_dev_full
def test_prove_reports_full_output(temporary_folder: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start_tool("prove", stdout=full, **temporary_in(temporary_folder))
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (
        1,
        "bookings.prove: cannot print: No space left on device\n",
    )
    assert_nothing_left(temporary_folder)


@posix_only
@pytest.mark.parametrize(
    "redirect", [">&-", "2>&-", pytest.param(">/dev/full", marks=requires_dev_full), "| true"]
)
def test_backup_is_made_without_reader(tmp_path: Path, redirect: str) -> None:
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    command = ("-m", "bookings.backup", f"--database={source}", str(copy))
    ended = run_in_shell(redirect, *command)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert keys_of(copy) == ["key-0", "key-1", "key-2"]


@posix_only
@pytest.mark.parametrize("tool", ["show", "backup"])
def test_command_with_closed_output_prints_no_traceback(
    tmp_path: Path, server: Server, tool: str
) -> None:
    copy = [str(tmp_path / "copy.db")] if tool == "backup" else []
    command = ("-m", f"bookings.{tool}", f"--database={server.database}", *copy)
    assert b"Traceback" not in run_in_shell(">&-", *command).stderr
