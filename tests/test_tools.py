"""`bookings.show`, `bookings.backup` and `bookings.prove` as processes.

What `show` prints is what the API lists, whatever the filter, and a large table costs it no memory. A copy by
`backup` is sound and whole or is not there, and harms no file on the way. `prove` passes with this server,
catches one that breaks a promise, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.helpers.servers import ROOT, SOON, Server, copy_project
from tests.helpers.tools import (
    SCHEMA,
    SIGNAL_SECONDS,
    assert_one_line,
    contents_of,
    keys_of,
    make_database,
    open_read_only,
    posix_only,
    requires_ps,
    run_tool,
    start_tool,
    tool_environment,
    wait_for,
)

LARGE = 200_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("large") / "bookings.db", LARGE)


@pytest.mark.parametrize("tool", ["show", "backup"])
@pytest.mark.parametrize("running", [False, True])
def test_who_looks_leaves_no_file(tmp_path: Path, tool: str, running: bool) -> None:
    """An empty log that stays could be one that the server may not write, and hinders `backup --force`."""
    copy = [str(tmp_path / "copy.db")] if tool == "backup" else []
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book().status == 201
        if not running:
            server.stop()
        before = contents_of(tmp_path)
        assert set(before) == {
            "bookings.db",
            "server.log",
            *(["bookings.db-wal", "bookings.db-shm"] if running else []),
        }
        assert run_tool(tool, f"--database={server.database}", *copy).returncode == 0
        after = contents_of(tmp_path)
        assert set(after) - set(before) == ({"copy.db"} if copy else set())
        for name in ("bookings.db", "bookings.db-wal"):
            assert after.get(name) == before.get(name)


# bookings.show

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
    """With bookings made in an order that no list has."""
    for number, (tenant, start) in enumerate(itertools.product(TENANTS, reversed(STARTS))):
        assert shared_server.book(tenant, start, f"{number} € {tenant}").status == 201
    return shared_server


def _listed(server: Server, chosen: dict[str, str]) -> list[dict[str, Any]]:
    """What the API lists for the same filters; without a tenant, for one tenant after the other."""
    query = {name: value for name, value in chosen.items() if name != "tenant"}
    lists = []
    for tenant in [chosen["tenant"]] if "tenant" in chosen else sorted(TENANTS, key=str.encode):
        answer = server.call("GET", "/bookings?" + urlencode({"tenant_id": tenant, **query}))
        assert answer.status == 200
        lists += answer.json
    return lists[: int(chosen.get("limit", len(lists)))]


@pytest.mark.parametrize(
    "chosen",
    [
        *(dict(some) for size in range(5) for some in itertools.combinations(FILTERS.items(), size)),
        {"tenant": "nobody"},
        {"tenant": "acme", "from": STARTS[2], "to": STARTS[2]},
        {"from": STARTS[3], "to": STARTS[1]},
        {"from": STARTS[1], "to": "2026-01-01T10:00:01Z", "limit": "1000"},
    ],
    ids=lambda chosen: " ".join(chosen) or "none",
)
def test_show_prints_what_the_api_lists(booked: Server, chosen: dict[str, str]) -> None:
    flags = [f"--database={booked.database}", *(f"--{name}={value}" for name, value in chosen.items())]
    listed = _listed(booked, chosen)
    as_json, table = run_tool("show", *flags, "--json"), run_tool("show", *flags)
    for ended in (as_json, table):
        assert (ended.returncode, ended.stderr) == (0, "")
    assert as_json.stdout.isascii()
    assert [json.loads(line) for line in as_json.stdout.splitlines()] == listed
    lines = table.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == [str(booking["id"]) for booking in listed]
    assert lines[-1] == ("1 booking" if len(listed) == 1 else f"{len(listed)} bookings")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--limit", "0", "from 1"),
        ("--limit", "-1", "from 1"),
        ("--limit", "1.5", "from 1"),
        ("--limit", "１", "from 1"),
        ("--limit", "", "from 1"),
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
def test_show_refuses_a_bad_value(booked: Server, flag: str, value: str, says: str) -> None:
    ended = run_tool("show", f"--database={booked.database}", f"{flag}={value}", "--json")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr and "\x1b" not in ended.stderr
    message = ended.stderr.splitlines()[-1]
    assert "error: " in message and flag in message and says in message, message


@pytest.mark.parametrize("limit", ["9223372036854775807", "9223372036854775808", "9" * 5000], ids=len)
def test_show_with_a_limit_beyond_any_table(booked: Server, limit: str) -> None:
    ended = run_tool("show", f"--database={booked.database}", "--json", f"--limit={limit}")
    assert "Traceback" not in ended.stderr, ended.stderr
    # All there is, or a refusal: both are answers.
    assert (ended.returncode, len(ended.stdout.splitlines())) in ((0, len(TENANTS) * len(STARTS)), (2, 0))


def test_show_json_of_values_that_are_no_text(tmp_path: Path) -> None:
    by_hand = """INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key, created_at)
        VALUES (CAST(x'3cff80c33e' AS TEXT), x'1b07', 'k' || char(10, 27, 155), 0)"""
    path = make_database(tmp_path / "bookings.db", 1, by_hand)
    ended = run_tool("show", f"--database={path}", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.isascii() and "\x1b" not in ended.stdout
    assert sorted(json.loads(line)["id"] for line in ended.stdout.splitlines()) == [1, 2]


# The peak of a process can be read only from within, and what rusage calls its peak includes its parent's.
_MEASURED = """
import atexit, runpy, sys, time
def tell():
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(peak.split()[1], file=sys.stderr)
    print(time.process_time(), file=sys.stderr)
atexit.register(tell)
runpy.run_module("bookings.show", run_name="__main__", alter_sys=True)
"""


def _cost(*flags: str) -> tuple[int, float]:
    """The peak of resident memory, in KiB, and the seconds of CPU time."""
    ended = subprocess.run(
        [sys.executable, "-c", _MEASURED, *flags],
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
def test_show_streams_a_large_table(large: Path, tmp_path: Path, form: tuple[str, ...]) -> None:
    small, _ = _cost(f"--database={make_database(tmp_path / 'bookings.db', 1)}", *form)
    peak, whole = _cost(f"--database={large}", *form)
    # SQLite's cache of 2 MB and some room; the rows themselves would be over 50 MB.
    assert peak - small < 8192
    if not form:
        return
    # The first line is there before the others are read. CPU time, so that a busy machine does not matter.
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with start_tool("show", f"--database={large}", *form) as process:
        assert json.loads(process.stdout.readline())["id"] == 1
        process.stdout.close()
        assert (process.wait(SOON), process.stderr.read()) == (0, "")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < whole / 3


# bookings.backup


def test_a_copy_under_load(large: Path, tmp_path: Path) -> None:
    """A snapshot: all that was acknowledged before, of each writer all up to a moment; no writer waits."""
    shutil.copy(large, tmp_path / "bookings.db")
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    acknowledged: list[str] = []
    stop = threading.Event()

    def write(writer: int) -> list[int]:
        statuses = []
        for number in range(10_000):
            if stop.is_set():
                break
            start = f"{2100 + number // 60}-01-01T10:{number % 60:02d}:00Z"
            statuses.append(server.book(f"writer-{writer}", start, f"{writer}:{number}").status)
            acknowledged.append(f"{writer}:{number}")
        return statuses

    with contextlib.closing(Server(tmp_path)) as server, ThreadPoolExecutor(3) as pool:
        try:
            writers = [pool.submit(write, writer) for writer in range(3)]
            wait_for(lambda: len(acknowledged) >= 50, "bookings")
            before = set(acknowledged)
            ended = run_tool("backup", f"--database={server.database}", str(copy))
            after = set(acknowledged)
        finally:
            stop.set()
        assert {status for writer in writers for status in writer.result()} == {201}
        every = {key for _, _, key in server.rows()}
    assert (ended.returncode, ended.stderr) == (0, "")
    assert list(contents_of(copy.parent)) == ["copy.db"]
    keys = keys_of(copy)
    assert ended.stdout == f"{len(keys)} bookings copied to {copy}\n"
    copied = {key for key in keys if ":" in key}
    assert before <= copied <= every and len(keys) == LARGE + len(copied)
    assert after - copied, "nothing was booked while the copy was made"
    counts = Counter(key.partition(":")[0] for key in copied)
    assert copied == {f"{writer}:{number}" for writer, count in counts.items() for number in range(count)}

    shown = run_tool("show", f"--database={copy}", "--tenant=writer-1", "--json").stdout.splitlines()
    assert len(shown) == counts["1"]
    with contextlib.closing(Server(copy.parent, "--database", str(copy))) as second:
        listed = second.call("GET", "/bookings?tenant_id=writer-1").json
        assert listed == [json.loads(line) for line in shown]
        assert second.book("writer-1", listed[0]["start_time_utc"], "another").status == 409
        assert second.book("writer-1", "2090-01-01T10:00:00Z", "another").status == 201


@posix_only
def test_a_link_that_leads_nowhere_is_replaced_only_by_force(tmp_path: Path) -> None:
    """To a disk that is not mounted now, perhaps."""
    source, link = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    link.symlink_to("elsewhere/copy.db")
    assert_one_line(run_tool("backup", f"--database={source}", str(link)), "backup")
    assert os.readlink(link) == "elsewhere/copy.db"
    assert run_tool("backup", f"--database={source}", str(link), "--force").returncode == 0
    assert keys_of(link) == ["key-0", "key-1", "key-2"] and not link.is_symlink()


def test_an_existing_file_is_replaced_only_by_force(tmp_path: Path) -> None:
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    copy.write_bytes(b"precious")
    before = contents_of(tmp_path)
    refused = run_tool("backup", f"--database={source}", str(copy))
    assert_one_line(refused, "backup")
    assert "--force" in refused.stderr
    assert contents_of(tmp_path) == before
    forced = run_tool("backup", f"--database={source}", "copy.db", "--force", cwd=tmp_path)
    assert (forced.returncode, forced.stdout, forced.stderr) == (0, "3 bookings copied to copy.db\n", "")
    assert keys_of(copy) == ["key-0", "key-1", "key-2"]
    assert set(contents_of(tmp_path)) == set(before)


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_comes_into_being_at_the_last_moment(tmp_path: Path, force: bool) -> None:
    """Looking is only for a clear answer: without it, as for a file that came after it, nothing is replaced."""
    look = "            refuse_target(database, target, force)\n"
    code = _broken(tmp_path / "code", "bookings/backup.py", look, "            open(target, 'w').close()\n")
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    ended = run_tool("backup", f"--database={source}", str(copy), *["--force"][:force], code=code)
    if force:
        assert (ended.returncode, keys_of(copy)) == (0, ["key-0", "key-1", "key-2"])
    else:
        assert_one_line(ended, "backup")
        assert "--force" in ended.stderr and copy.read_bytes() == b""
    assert {path.name for path in tmp_path.iterdir()} == {"bookings.db", "code", "copy.db"}


@posix_only
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_the_copy_has_the_mode_of_the_source(tmp_path: Path, mode: int) -> None:
    source, copy = make_database(tmp_path / "bookings.db", 1), tmp_path / "copy.db"
    source.chmod(mode)
    copy.touch(0o777)
    assert run_tool("backup", f"--database={source}", str(copy), "--force").returncode == 0
    assert copy.stat().st_mode & 0o7777 == mode
    assert keys_of(copy) == ["key-0"]


@posix_only
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "force"])
@pytest.mark.parametrize(
    "target",
    [
        "bookings.db",
        "folder/../bookings.db",
        "symlink",
        "hardlink",
        "folder",
        "folder/",
        "no/copy.db",
        "used.db",
        "left.db",
        "gone.db",
    ],
)
def test_a_target_that_is_refused(tmp_path: Path, target: str, force: tuple[str, ...]) -> None:
    make_database(tmp_path / "bookings.db", 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "symlink").symlink_to("bookings.db")
    os.link(tmp_path / "bookings.db", tmp_path / "hardlink")
    make_database(tmp_path / "used.db", 2)
    (tmp_path / "used.db-wal").write_bytes(b"bookings of another server")
    # SQLite would roll them back into whatever database stands beside them.
    make_database(tmp_path / "left.db", 2)
    for name in ("left", "gone"):
        (tmp_path / f"{name}.db-journal").write_bytes(b"pages of a database before somebody was killed")
    before = contents_of(tmp_path)
    ended = run_tool("backup", "--database=bookings.db", target, *force, cwd=tmp_path)
    assert_one_line(ended, "backup")
    assert contents_of(tmp_path) == before
    assert (tmp_path / "symlink").is_symlink()


@posix_only
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_no_file_of_a_database_at_work_is_replaced(server: Server, suffix: str) -> None:
    assert server.book(key="k1").status == 201
    target = Path(f"{server.database}{suffix}")
    inode = target.stat().st_ino
    ended = run_tool("backup", f"--database={server.database}", str(target), "--force")
    assert target.stat().st_ino == inode, "the file was replaced under the server"
    assert_one_line(ended, "backup")
    assert server.book(start="2026-01-01T11:00:00Z", key="k2").status == 201
    assert [key for _, _, key in server.rows()] == ["k1", "k2"]


def _damaged(page: int) -> Callable[[Path], None]:
    """The schema can be read, one page cannot: a root, of which the check has much to say, or a leaf."""

    def make(path: Path) -> None:
        content = bytearray(make_database(path, 20_000).read_bytes())
        size = int.from_bytes(content[16:18], "big")
        content[size * page : size * (page + 1)] = b"\xff" * size
        path.write_bytes(content)

    return make


def _truncated(path: Path) -> None:
    content = make_database(path, 20_000).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _without_unique(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(SCHEMA.replace("UNIQUE (tenant_id, start_time_utc),", ""))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_text("id,tenant_id\n1,acme\n" * 100),
        _without_unique,
        _truncated,
        _damaged(2),
        _damaged(40),
    ],
    ids=["missing", "folder", "text", "no UNIQUE", "truncated", "root page", "leaf page"],
)
def test_a_source_that_cannot_be_copied_leaves_nothing(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    source, folder = tmp_path / "bookings.db", tmp_path / "copies"
    make(source)
    folder.mkdir()
    (folder / "old.db").write_bytes(b"precious")
    before = contents_of(tmp_path)
    for target, flags in (("copy.db", ()), ("old.db", ("--force",))):
        assert_one_line(run_tool("backup", f"--database={source}", str(folder / target), *flags), "backup")
        assert contents_of(folder) == {"old.db": b"precious"}
    assert contents_of(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if not (sys.platform.startswith("linux") and os.geteuid() == 0 and shutil.which("mount")):
        pytest.skip("only root on Linux can mount a small disk")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing(large: Path, small_disk: Path) -> None:
    (small_disk / "old.db").write_bytes(b"precious")
    for target in ("copy.db", "old.db"):
        ended = run_tool("backup", f"--database={large}", str(small_disk / target), "--force")
        assert_one_line(ended, "backup")
        # It is not the disk of the database that is full.
        assert "copy" in ended.stderr and str(large) not in ended.stderr
        assert contents_of(small_disk) == {"old.db": b"precious"}
    before = os.statvfs(small_disk)
    assert before.f_bavail * before.f_frsize > 3 << 20


def _with_files_of(blocks: int) -> Sequence[str]:
    """What starts a program that may write files of so many blocks of 512 bytes."""
    return "sh", "-c", f'ulimit -f {blocks}; exec "$@"', "sh"


@posix_only
def test_a_limit_on_a_files_size_leaves_nothing(large: Path, tmp_path: Path) -> None:
    ended = run_tool("backup", f"--database={large}", str(tmp_path / "copy.db"), under=_with_files_of(4000))
    assert_one_line(ended, "backup")
    assert "copy" in ended.stderr and str(large) not in ended.stderr
    assert contents_of(tmp_path) == {}


@posix_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_leaves_nothing(large: Path, tmp_path: Path, number: signal.Signals) -> None:
    old = tmp_path / "copy.db"
    old.write_bytes(b"precious")

    def begun() -> bool:
        assert process.poll() is None, "it ended before the signal"
        with contextlib.suppress(FileNotFoundError):
            return any(path.stat().st_size for path in tmp_path.iterdir() if path != old)
        return False

    with start_tool("backup", f"--database={large}", str(old), "--force") as process:
        wait_for(begun, "the copy to begin")
        process.send_signal(number)
        out, err = process.communicate(timeout=SOON)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert contents_of(tmp_path) == {"copy.db": b"precious"}


def _on_a_terminal(*arguments: str, under: Sequence[str] = ()) -> tuple[int, str, str]:
    """Status and output of the backup, and what it shows on a terminal."""
    import pty

    master, terminal = pty.openpty()
    try:
        ended = run_tool("backup", *arguments, under=under, stderr=terminal)
        # The terminal's buffer of some 4 KB takes it all, so that it can be read afterwards.
        os.set_blocking(master, False)
        return ended.returncode, ended.stdout, os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(terminal)


@posix_only
def test_progress_on_a_terminal_only(large: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    status, output, shown = _on_a_terminal(f"--database={large}", str(copy))
    assert (status, output) == (0, f"{LARGE} bookings copied to {copy}\n")
    percents = [int(found) for found in re.findall(r"(\d+) %", shown)]
    assert len(percents) > 3 and percents == sorted(percents) and percents[-1] == 100
    assert shown.endswith("\r\n") and shown.count("\n") == 1
    assert len(keys_of(copy)) == LARGE


@posix_only
def test_a_failure_on_a_terminal_takes_the_line_of_the_progress(large: Path, tmp_path: Path) -> None:
    status, output, shown = _on_a_terminal(
        f"--database={large}", str(tmp_path / "copy.db"), under=_with_files_of(20000)
    )
    progress, said = shown.split("\rbookings.backup: ")
    assert (status, output) == (1, "") and "%" in progress and "%" not in said
    # So long that nothing of the progress is left to be seen.
    assert len(said) > max(map(len, progress.split("\r")))


# bookings.prove

RACE, ONE_KEY, SPELLINGS, OTHER_USE, BY_HAND, KILL = range(6)


def _verdicts(output: str, count: int) -> list[str]:
    """The verdict of each part; the progress and the table agree on it, and the last line follows from it."""
    progress = re.findall(r"^\[(\d+)/(\d+)\] +[0-9.]+ s  (.+): (ok|FAIL)$", output, re.MULTILINE)
    assert [(int(number), int(of)) for number, of, _, _ in progress] == [(n + 1, count) for n in range(count)]
    before, *table, after = re.split(r"^-+(?:  -+){3}\n", output, flags=re.MULTILINE)
    # The cells of one row go on in the lines below, each in its column.
    columns = [match.span() for match in re.finditer("-+", output[len(before) :].partition("\n")[0])]
    rows = [
        tuple(
            " ".join(line[begin:end].strip() for line in row.splitlines()).strip() for begin, end in columns
        )
        for row in table
    ]
    assert rows[0] == ("tried", "expected", "happened", "")
    assert all(all(row) for row in rows[1:])
    assert [(row[0], row[3]) for row in rows[1:]] == [(tried, verdict) for _, _, tried, verdict in progress]
    verdicts = [row[3] for row in rows[1:]]
    assert after.splitlines()[-1].startswith("FAILED" if "FAIL" in verdicts else "PROVED")
    return verdicts


def _processes_naming(folder: Path) -> dict[int, str]:
    """Whose command line has this folder in it, which is where their database is."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, check=True
    )
    pairs = (line.strip().split(" ", 1) for line in listed.stdout.splitlines())
    return {int(pid): args for pid, args in pairs if f"{folder}{os.sep}" in args}


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files of the process that is tried; whoever is still at work there is ended."""
    folder = tmp_path / "t"
    folder.mkdir()
    yield folder
    for process in _processes_naming(folder) if shutil.which("ps") else ():
        os.kill(process, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)


def _assert_nothing_left(temporary: Path) -> None:
    assert list(temporary.iterdir()) == []
    if shutil.which("ps"):
        assert _processes_naming(temporary) == {}


def test_prove_passes_on_a_server_of_its_own(tmp_path: Path, temporary: Path) -> None:
    # Somebody's settings are neither used nor in the way.
    mine = tmp_path / "mine.db"
    ended = run_tool(
        "prove", TMPDIR=str(temporary), TEMP=str(temporary), BOOKINGS_DB=str(mine), PORT="1", HOST="192.0.2.1"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert _verdicts(ended.stdout, 6) == ["ok"] * 6
    assert not mine.exists()
    _assert_nothing_left(temporary)


@pytest.mark.parametrize("lines", [1, 6], ids=["while it tries", "before the table"])
def test_prove_ends_quietly_when_nobody_reads_on(tmp_path: Path, temporary: Path, lines: int) -> None:
    """As `| head` does, which is closed here before prove goes on."""
    wait = 'verdict(result)}", flush=True)\n        sys.stdin.readline()'
    code = _broken(tmp_path / "code", "bookings/prove.py", 'verdict(result)}", flush=True)', wait)
    with start_tool(
        "prove", code=code, TMPDIR=str(temporary), TEMP=str(temporary), stdin=subprocess.PIPE
    ) as process:
        for line in range(lines):
            if line:
                print(file=process.stdin, flush=True)
            assert re.match(r"\[\d/6\] .*: ok$", process.stdout.readline())
        process.stdout.close()
        process.stdin.close()
        assert (process.wait(SOON), process.stderr.read()) == (1, "")
    _assert_nothing_left(temporary)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_prove_says_that_it_cannot_print(temporary: Path) -> None:
    with open("/dev/full", "w") as full:
        process = start_tool("prove", TMPDIR=str(temporary), stdout=full)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "bookings.prove: [Errno 28] No space left on device\n")
    _assert_nothing_left(temporary)


def test_prove_on_a_running_server_keeps_to_tenants_of_its_own(server: Server, temporary: Path) -> None:
    for tenant in ("acme", "prove", "prove-0"):
        assert server.book(tenant, "2026-01-01T00:00:00Z", f"key of {tenant}").status == 201
    before = server.rows()
    ended = run_tool(
        "prove", f"--url=http://127.0.0.1:{server.port}/", TMPDIR=str(temporary), TEMP=str(temporary)
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert _verdicts(ended.stdout, 4) == ["ok"] * 4
    skipped = [line for line in ended.stdout.splitlines() if line.startswith("Not tried")]
    assert len(skipped) == 1 and "by hand" in skipped[0] and "kill" in skipped[0]
    rows = server.rows()
    assert rows[: len(before)] == before
    # What it says it did has been done: 25 slots, and one booking for each of the other parts.
    counted = Counter(tenant for tenant, _, _ in rows[len(before) :])
    assert sorted(counted.values()) == [1, 1, 1, 25]
    assert not set(counted) & {"acme", "prove", "prove-0"}
    assert server.process.poll() is None
    _assert_nothing_left(temporary)


def _broken(folder: Path, name: str, promise: str, breach: str) -> Path:
    """A copy of the program with this change in one of its files."""
    copy_project(folder)
    text = (folder / name).read_text(encoding="utf-8")
    assert text.count(promise) == 1, f"{name} no longer has {promise!r}: find another way to break it"
    (folder / name).write_text(text.replace(promise, breach), encoding="utf-8")
    return folder


INSERTS = "    try:\n        cursor = db.execute(INSERT"
RESTART = '            db.execute("COMMIT")\n'


@pytest.mark.parametrize(
    ("name", "promise", "breach", "caught"),
    [
        ("schema.sql", "    UNIQUE (tenant_id, start_time_utc),\n", "", {RACE, SPELLINGS, BY_HAND}),
        ("bookings/store.py", RESTART, f'            db.execute("DELETE FROM bookings")\n{RESTART}', {KILL}),
    ],
    ids=["no UNIQUE", "forgets when it restarts"],
)
def test_prove_catches_a_broken_program(
    tmp_path: Path, temporary: Path, name: str, promise: str, breach: str, caught: set[int]
) -> None:
    code = _broken(tmp_path / "code", name, promise, breach)
    ended = run_tool("prove", code=code, TMPDIR=str(temporary), TEMP=str(temporary))
    assert (ended.returncode, ended.stderr) == (1, "")
    verdicts = _verdicts(ended.stdout, 6)
    assert {part for part, verdict in enumerate(verdicts) if verdict == "FAIL"} == caught, ended.stdout
    _assert_nothing_left(temporary)


@pytest.mark.parametrize(
    ("name", "promise", "breach", "caught"),
    [
        ("bookings/api.py", "_json(200, vars(booking), [(", "_json(409, vars(booking), [(", {RACE, ONE_KEY}),
        (
            "bookings/store.py",
            INSERTS,
            f'    db.execute("BEGIN")\n{INSERTS}',
            {RACE, ONE_KEY, SPELLINGS, OTHER_USE},
        ),
        ("bookings/store.py", "Outcome.KEY_REUSED, None", "Outcome.REPLAYED, booking", {OTHER_USE}),
        (
            "bookings/store.py",
            "WHERE id = ? AND tenant_id = ?",
            "WHERE id = ? AND ? != ''",
            {OTHER_USE},
        ),
        (
            "bookings/store.py",
            "        row = (tenant_id, start_time_utc, idempotency_key, now())\n",
            "        return Outcome.SLOT_TAKEN, None\n",
            {RACE, ONE_KEY, SPELLINGS, OTHER_USE},
        ),
    ],
    ids=[
        "409 to a repeat",
        "201 without a row",
        "another's booking to a used key",
        "another's booking by its id",
        "409 to all",
    ],
)
def test_prove_catches_a_broken_server(
    tmp_path: Path, name: str, promise: str, breach: str, caught: set[int]
) -> None:
    code = _broken(tmp_path / "code", name, promise, breach)
    with contextlib.closing(Server(tmp_path, program=code / "run.py", PYTHONPATH=str(code))) as server:
        ended = run_tool("prove", f"--url=http://127.0.0.1:{server.port}")
        rows = server.rows()
    assert (ended.returncode, ended.stderr) == (1, "")
    verdicts = _verdicts(ended.stdout, 4)
    assert {part for part, verdict in enumerate(verdicts) if verdict == "FAIL"} == caught, ended.stdout
    # The breach is there: no row where nothing is inserted, and elsewhere still one for a slot.
    assert len(rows) == (0 if len(caught) == 4 else 28)


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}",
        "127.0.0.1:{port}",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{port}0",
        "nonsense",
    ],
)
def test_prove_where_nothing_answers(temporary: Path, url: str) -> None:
    named = url.format(port=_free_port())
    ended = run_tool("prove", "--url", named, TMPDIR=str(temporary), TEMP=str(temporary))
    assert_one_line(ended, "prove")
    assert named in ended.stderr
    _assert_nothing_left(temporary)


@pytest.mark.parametrize(
    "given",
    [
        *(
            "--url=http://localhost:port",
            "--url=http://[::1",
            "--url=ftp://localhost",
            "--url=http://",
            "--url=http:// x",
        ),
        *("--url=", "--database="),  # as of an unset variable
    ],
)
def test_prove_with_what_is_no_server(temporary: Path, given: str) -> None:
    ended = run_tool("prove", given, TMPDIR=str(temporary), TEMP=str(temporary))
    assert ended.returncode in (1, 2) and ended.stdout == ""
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "bookings.prove: " in ended.stderr.splitlines()[-1]
    _assert_nothing_left(temporary)


@posix_only
def test_backup_replaces_nothing_but_a_file(tmp_path: Path, server: Server) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ended = run_tool("backup", str(pipe), "--force", BOOKINGS_DB=str(server.database))
    assert_one_line(ended, "backup")
    assert pipe.is_fifo()


@posix_only
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">/dev/full", "| true"])
def test_a_copy_is_made_whoever_hears_of_it(tmp_path: Path, closed: str) -> None:
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    if "full" in closed and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    command = [sys.executable, "-m", "bookings.backup", f"--database={source}", str(copy)]
    ended = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command],
        cwd=ROOT,
        capture_output=True,
        timeout=SOON,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert keys_of(copy) == ["key-0", "key-1", "key-2"]


@posix_only
def test_a_copy_whose_name_cannot_be_shown(tmp_path: Path) -> None:
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "käse\udce9.db"
    ended = run_tool("backup", f"--database={source}", str(copy), PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith("k\\xe4se\\udce9.db\n")
    assert keys_of(copy) == ["key-0", "key-1", "key-2"]


@posix_only
@pytest.mark.parametrize("tool", ["show", "backup"])
def test_a_closed_output_is_no_traceback(tmp_path: Path, server: Server, tool: str) -> None:
    copy = [str(tmp_path / "copy.db")] if tool == "backup" else []
    command = [sys.executable, "-m", f"bookings.{tool}", f"--database={server.database}", *copy]
    ended = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *command], cwd=ROOT, capture_output=True, timeout=SOON, check=False
    )
    assert b"Traceback" not in ended.stderr


def test_prove_where_another_program_answers(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            ended = run_tool("prove", "--url", f"http://127.0.0.1:{other.server_address[1]}")
        finally:
            other.shutdown()
            thread.join()
    assert_one_line(ended, "prove")


def _is_at(tenant: str, temporary: Path) -> bool:
    """prove has started a server, and a tenant of this form has bookings."""
    if not tenant:
        return bool(_processes_naming(temporary))
    for database in temporary.glob("*/bookings.db"):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(open_read_only(database)) as db:
            return bool(db.execute("SELECT 1 FROM bookings WHERE tenant_id GLOB ?", (tenant,)).fetchone())
    return False


NOW = "now\n"
# It says so when it starts a racer, be it a process or a thread, and takes its time.
SLOW_PROCESSES = f"""import uuid
from multiprocessing.process import BaseProcess
def slowly(process, started=BaseProcess.start):
    started(process)
    print({NOW!r}, end="", flush=True)
    time.sleep(0.2)
BaseProcess.start = slowly
"""
SLOW_THREADS = (
    f"pool.map(one, (print({NOW!r}, end='', flush=True) or time.sleep(0.2) or ask for ask in asks))"
)


@posix_only
@requires_ps
@pytest.mark.parametrize(
    ("name", "promise", "breach", "tenant"),
    [
        ("run.py", "import argparse\n", "import argparse\nimport time\ntime.sleep(60)\n", ""),
        ("bookings/prove.py", "import uuid\n", SLOW_PROCESSES, None),
        ("run.py", "import argparse\n", "import argparse\n", "prove-*"),
        ("bookings/prove.py", "pool.map(one, asks)", SLOW_THREADS, None),
        ("run.py", "import argparse\n", "import argparse\n", "prove-*-[0-9]"),
    ],
    ids=["starting", "starting processes", "racing", "starting threads", "killing"],
)
def test_prove_leaves_nothing_after_ctrl_c(
    tmp_path: Path, temporary: Path, name: str, promise: str, breach: str, tenant: str | None
) -> None:
    code = _broken(tmp_path / "code", name, promise, breach)
    # A terminal sends the signal to the whole group, and the server that prove starts is in another.
    with start_tool("prove", code=code, TMPDIR=str(temporary), start_new_session=True) as process:
        try:
            if tenant is None:
                # When the second is at it, the first one waits for all.
                assert all(NOW in iter(process.stdout.readline, "") for _ in range(2))
            else:
                wait_for(lambda: _is_at(tenant, temporary), "the part to interrupt")
            os.killpg(process.pid, signal.SIGINT)
            process.wait(SIGNAL_SECONDS)
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # Before the output is read: they hold it open.
            left = _processes_naming(temporary)
            for number in left:
                os.kill(number, signal.SIGKILL)
        out, err = process.communicate(timeout=SOON)
    assert left == {}
    assert list(temporary.iterdir()) == []
    assert (process.returncode, err) == (130, "")
    assert "PROVED" not in out
