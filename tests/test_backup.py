"""`bookings.backup`: a copy is complete and verified or does not exist; no other file changes."""

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
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.clusters import ClusterServer, Link, url
from tests.helpers.servers import SOON, Server
from tests.helpers.tools import (
    assert_one_line,
    changed_project,
    contents_of,
    keys_of,
    limit_file_size,
    make_database,
    posix_only,
    run_tool,
    start_tool,
    wait_for,
)
from tests.helpers.values import slot_at

LARGE = 200_000


@pytest.fixture(scope="module")
def large_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_database(tmp_path_factory.mktemp("large") / "bookings.db", LARGE)


@pytest.mark.parametrize("tool", ["show", "backup"])
@pytest.mark.parametrize("running", [False, True])
def test_reading_database_leaves_no_file(tmp_path: Path, tool: str, running: bool) -> None:
    copy = [str(tmp_path / "copy.db")] if tool == "backup" else []
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book().status == 201
        if not running:
            server.stop()
        before = contents_of(tmp_path)
        wal = ["bookings.db-wal", "bookings.db-shm"] if running else []
        assert set(before) == {"bookings.db", "server.log", *wal}
        assert run_tool(tool, f"--database={server.database}", *copy).returncode == 0
        after = contents_of(tmp_path)
        # Another user's empty WAL would keep the server from writing, and `--force` from replacing.
        assert set(after) - set(before) == ({"copy.db"} if copy else set())
        for name in ("bookings.db", "bookings.db-wal"):
            assert after.get(name) == before.get(name)


def test_backup_under_load_is_consistent_snapshot(large_database: Path, tmp_path: Path) -> None:
    """The copy has all bookings acknowledged before, and of each writer all up to one moment."""
    shutil.copy(large_database, tmp_path / "bookings.db")
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
    assert after - copied, "nothing was booked during the backup"
    counts = Counter(key.partition(":")[0] for key in copied)
    assert copied == {f"{name}:{n}" for name, count in counts.items() for n in range(count)}

    flags = ("--tenant=writer-1", "--json")
    shown = run_tool("show", f"--database={copy}", *flags).stdout.splitlines()
    assert len(shown) == counts["1"]
    with contextlib.closing(Server(copy.parent, "--database", str(copy))) as second:
        listed = second.call("GET", "/bookings?tenant_id=writer-1").json
        assert listed == [json.loads(line) for line in shown]
        assert second.book("writer-1", listed[0]["start_time_utc"], "another").status == 409
        assert second.book("writer-1", "2090-01-01T10:00:00Z", "another").status == 201


def test_backup_copies_cancellations(server: Server, tmp_path: Path) -> None:
    """A server on the copy knows which keys and ids were cancelled."""
    ids = [server.book("acme", slot_at(number), f"k{number}").json["id"] for number in range(4)]
    for number, counted in [
        (0, "3 bookings and 1 cancellation"),
        (1, "2 bookings and 2 cancellations"),
        (2, "1 booking and 3 cancellations"),
    ]:
        assert server.cancel(ids[number]).status == 204
        copy = tmp_path / "copies" / f"{number}.db"
        copy.parent.mkdir(exist_ok=True)
        ended = run_tool("backup", f"--database={server.database}", str(copy))
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == f"{counted} copied to {copy}\n"
    with contextlib.closing(Server(copy.parent, "--database", str(copy))) as second:
        statuses = [second.book("acme", slot_at(n), f"k{n}").status for n in range(4)]
        assert statuses == [410, 410, 410, 200]
        assert second.cancel(ids[0]).status == 204
        new = second.book("acme", slot_at(0), "new")
        assert (new.status, new.json["id"] > ids[-1]) == (201, True)


@posix_only
def test_backup_replaces_dangling_link_only_by_force(tmp_path: Path) -> None:
    """Such a link may lead to a disk that is not mounted now."""
    source, link = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    link.symlink_to("elsewhere/copy.db")
    assert_one_line(run_tool("backup", f"--database={source}", str(link)), "backup")
    assert os.readlink(link) == "elsewhere/copy.db"
    assert run_tool("backup", f"--database={source}", str(link), "--force").returncode == 0
    assert keys_of(link) == ["key-0", "key-1", "key-2"] and not link.is_symlink()


def test_backup_replaces_file_only_by_force(tmp_path: Path) -> None:
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    copy.write_bytes(b"precious")
    before = contents_of(tmp_path)
    rejected = run_tool("backup", f"--database={source}", str(copy))
    assert_one_line(rejected, "backup")
    assert "--force" in rejected.stderr
    assert contents_of(tmp_path) == before
    forced = run_tool("backup", f"--database={source}", "copy.db", "--force", cwd=tmp_path)
    assert (forced.returncode, forced.stderr) == (0, "")
    assert forced.stdout == "3 bookings copied to copy.db\n"
    assert keys_of(copy) == ["key-0", "key-1", "key-2"]
    assert set(contents_of(tmp_path)) == set(before)


@pytest.mark.parametrize("force", [False, True])
def test_backup_never_replaces_file_created_meanwhile(tmp_path: Path, force: bool) -> None:
    look = "        verify_target(database, target, force)\n"
    create = "        open(target, 'w').close()\n"
    code = changed_project(tmp_path / "code", "bookings/backup.py", look, create)
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    flags = ["--force"] if force else []
    ended = run_tool("backup", f"--database={source}", str(copy), *flags, code=code)
    if force:
        assert (ended.returncode, keys_of(copy)) == (0, ["key-0", "key-1", "key-2"])
    else:
        assert_one_line(ended, "backup")
        assert "--force" in ended.stderr and copy.read_bytes() == b""
    assert {path.name for path in tmp_path.iterdir()} == {"bookings.db", "code", "copy.db"}


def test_backup_without_hard_links_needs_force(tmp_path: Path) -> None:
    link = "        os.link(partial, target)\n"
    fail = "        raise PermissionError(1, 'Operation not permitted')\n"
    code = changed_project(tmp_path / "code", "bookings/stores/new_file.py", link, fail)
    source, copy = make_database(tmp_path / "bookings.db", 3), tmp_path / "copy.db"
    rejected = run_tool("backup", f"--database={source}", str(copy), code=code)
    assert_one_line(rejected, "backup")
    assert "--force" in rejected.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"bookings.db", "code"}
    forced = run_tool("backup", f"--database={source}", str(copy), "--force", code=code)
    assert (forced.returncode, keys_of(copy)) == (0, ["key-0", "key-1", "key-2"])


@posix_only
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_backup_has_mode_of_database(tmp_path: Path, mode: int) -> None:
    source, copy = make_database(tmp_path / "bookings.db", 1), tmp_path / "copy.db"
    source.chmod(mode)
    copy.touch(0o777)
    assert run_tool("backup", f"--database={source}", str(copy), "--force").returncode == 0
    assert copy.stat().st_mode & 0o7777 == mode
    assert keys_of(copy) == ["key-0"]


@posix_only
@pytest.mark.parametrize("flags", [(), ("--force",)], ids=["", "force"])
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
def test_backup_rejects_target(tmp_path: Path, target: str, flags: tuple[str, ...]) -> None:
    make_database(tmp_path / "bookings.db", 1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "symlink").symlink_to("bookings.db")
    os.link(tmp_path / "bookings.db", tmp_path / "hardlink")
    make_database(tmp_path / "used.db", 2)
    (tmp_path / "used.db-wal").write_bytes(b"bookings of another server")
    # SQLite would roll a journal back into a database that has its name.
    make_database(tmp_path / "left.db", 2)
    for name in ("left", "gone"):
        (tmp_path / f"{name}.db-journal").write_bytes(b"pages from before a process was killed")
    before = contents_of(tmp_path)
    ended = run_tool("backup", "--database=bookings.db", target, *flags, cwd=tmp_path)
    assert_one_line(ended, "backup")
    assert contents_of(tmp_path) == before
    assert (tmp_path / "symlink").is_symlink()


@posix_only
@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_backup_replaces_no_file_of_running_server(server: Server, suffix: str) -> None:
    assert server.book(key="k1").status == 201
    target = Path(f"{server.database}{suffix}")
    inode = target.stat().st_ino
    ended = run_tool("backup", f"--database={server.database}", str(target), "--force")
    assert target.stat().st_ino == inode, "the file was replaced under the server"
    assert_one_line(ended, "backup")
    assert server.book(start="2026-01-01T11:00:00Z", key="k2").status == 201
    assert [key for _, _, key in server.rows()] == ["k1", "k2"]


def _damage_page(page: int) -> Callable[[Path], None]:
    """Make a database with a readable schema and one unreadable page."""

    def make(path: Path) -> None:
        content = bytearray(make_database(path, 20_000).read_bytes())
        size = int.from_bytes(content[16:18], "big")
        content[size * page : size * (page + 1)] = b"\xff" * size
        path.write_bytes(content)

    return make


def _make_truncated(path: Path) -> None:
    content = make_database(path, 20_000).read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_text("id,tenant_id\n1,acme\n" * 100),
        _make_truncated,
        _damage_page(2),
        _damage_page(40),
    ],
    ids=["missing", "folder", "text", "truncated", "root page", "leaf page"],
)
def test_backup_of_unusable_database_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], Any]
) -> None:
    source, folder = tmp_path / "bookings.db", tmp_path / "copies"
    make(source)
    folder.mkdir()
    (folder / "old.db").write_bytes(b"precious")
    before = contents_of(tmp_path)
    for target, flags in (("copy.db", ()), ("old.db", ("--force",))):
        ended = run_tool("backup", f"--database={source}", str(folder / target), *flags)
        assert_one_line(ended, "backup")
        assert contents_of(folder) == {"old.db": b"precious"}
    assert contents_of(tmp_path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if not (sys.platform.startswith("linux") and os.geteuid() == 0 and shutil.which("mount")):
        pytest.skip("only root on Linux can mount a small disk")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("root cannot mount on this machine")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_backup_to_full_disk_leaves_nothing(large_database: Path, small_disk: Path) -> None:
    (small_disk / "old.db").write_bytes(b"precious")
    for target in ("copy.db", "old.db"):
        ended = run_tool(
            "backup", f"--database={large_database}", str(small_disk / target), "--force"
        )
        assert_one_line(ended, "backup")
        # The message blames the copy and not the database.
        assert "copy" in ended.stderr and str(large_database) not in ended.stderr
        assert contents_of(small_disk) == {"old.db": b"precious"}
    before = os.statvfs(small_disk)
    assert before.f_bavail * before.f_frsize > 3 << 20


@posix_only
def test_backup_beyond_file_size_limit_leaves_nothing(large_database: Path, tmp_path: Path) -> None:
    ended = run_tool(
        "backup",
        f"--database={large_database}",
        str(tmp_path / "copy.db"),
        under=limit_file_size(4000),
    )
    assert_one_line(ended, "backup")
    assert "copy" in ended.stderr and str(large_database) not in ended.stderr
    assert contents_of(tmp_path) == {}


@posix_only
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_backup_interrupted_by_signal_leaves_nothing(
    large_database: Path, tmp_path: Path, number: signal.Signals
) -> None:
    old = tmp_path / "copy.db"
    old.write_bytes(b"precious")

    def has_begun() -> bool:
        assert process.poll() is None, "the backup ended before the signal"
        with contextlib.suppress(FileNotFoundError):
            return any(path.stat().st_size for path in tmp_path.iterdir() if path != old)
        return False

    with start_tool("backup", f"--database={large_database}", str(old), "--force") as process:
        wait_for(has_begun, "the copy to begin")
        process.send_signal(number)
        out, err = process.communicate(timeout=SOON)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert contents_of(tmp_path) == {"copy.db": b"precious"}


def _run_on_terminal(*arguments: str, under: Sequence[str] = ()) -> tuple[int, str, str]:
    """Run a backup with a terminal as standard error; return status, output and terminal text."""
    import pty

    master, terminal = pty.openpty()
    try:
        ended = run_tool("backup", *arguments, under=under, stderr=terminal)
        # The terminal's buffer of 4 KB holds all progress, so it can be read afterwards.
        os.set_blocking(master, False)
        return ended.returncode, ended.stdout, os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(terminal)


@posix_only
def test_backup_shows_progress_on_terminal_only(large_database: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    status, output, shown = _run_on_terminal(f"--database={large_database}", str(copy))
    assert (status, output) == (0, f"{LARGE} bookings copied to {copy}\n")
    percents = [int(found) for found in re.findall(r"(\d+) %", shown)]
    assert len(percents) > 3 and percents == sorted(percents) and percents[-1] == 100
    assert shown.endswith("\r\n") and shown.count("\n") == 1
    assert len(keys_of(copy)) == LARGE


@posix_only
def test_backup_failure_overwrites_progress_on_terminal(
    large_database: Path, tmp_path: Path
) -> None:
    status, output, shown = _run_on_terminal(
        f"--database={large_database}", str(tmp_path / "copy.db"), under=limit_file_size(20000)
    )
    progress, message = shown.split("\rbookings.backup: ")
    assert (status, output) == (1, "") and "%" in progress and "%" not in message
    # The message is long enough to cover the progress.
    assert len(message) > max(map(len, progress.split("\r")))


@posix_only
def test_backup_replaces_regular_files_only(tmp_path: Path, server: Server) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    ended = run_tool("backup", str(pipe), "--force", BOOKINGS_DB=str(server.database))
    assert_one_line(ended, "backup")
    assert pipe.is_fifo()


# --- Clusters


@pytest.mark.on_rqlite
def test_backup_of_cluster_is_database_for_server(server: ClusterServer, tmp_path: Path) -> None:
    booked = server.book("X'41'")
    days = range(1, 29)
    server.insert([("acme", f"2026-01-{day:02}T10:00:00Z", f"key {day}") for day in days])
    copy = tmp_path / "copy.db"
    flag = f"--database={url(*server.nodes)}"
    ended = run_tool("backup", str(copy), flag)
    assert (ended.returncode, ended.stdout) == (0, f"29 bookings copied to {copy}\n"), ended.stderr
    assert os.listdir(tmp_path) == ["copy.db"]
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT * FROM bookings").fetchone() == tuple(booked.json.values())
        columns = "tenant_id, start_time_utc, idempotency_key"
        rows = db.execute(f"SELECT {columns} FROM bookings ORDER BY id").fetchall()
        assert rows == server.rows()
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    again = run_tool("backup", str(copy), flag)
    assert_one_line(again, "backup")
    assert "--force" in again.stderr
    shown = run_tool("show", f"--database={copy}")
    assert shown.stdout.splitlines()[-1] == "29 bookings"


@pytest.mark.on_rqlite
@pytest.mark.parametrize("by_hand", [False, True])
def test_backup_of_cluster_accepts_booking_cancelled_meanwhile(
    server: ClusterServer, tmp_path: Path, by_hand: bool
) -> None:
    """One that was deleted by hand after the count makes the copy look incomplete."""
    ids = [server.book("acme", slot_at(number), f"k{number}").json["id"] for number in range(2)]

    def act_after_count(request: str) -> bool:
        if "count(*)" in request and by_hand:
            server.execute(f"DELETE FROM bookings WHERE id = {ids[0]}")
        elif "count(*)" in request:
            assert server.cancel(ids[0]).status == 204
        return False

    copy = tmp_path / "copy.db"
    with contextlib.closing(Link(server.nodes[0], act_after_count)) as link:
        ended = run_tool("backup", str(copy), f"--database=http://{link.address}")
    if by_hand:
        assert_one_line(ended, "backup")
        assert "the copy is incomplete: 1 of 2" in ended.stderr
        assert list(tmp_path.iterdir()) == []
    else:
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == f"1 booking and 1 cancellation copied to {copy}\n"
        assert keys_of(copy) == ["k1"]
    assert [key for _, _, key in server.rows()] == ["k1"]


@posix_only
@pytest.mark.on_rqlite
def test_backup_of_cluster_beyond_file_size_limit_leaves_nothing(
    server: ClusterServer, tmp_path: Path
) -> None:
    """It fails at once and blames the copy; another node would not help."""
    server.insert([("acme", slot_at(number), f"key {number}") for number in range(2000)])
    copy = tmp_path / "copy.db"
    ended = run_tool(
        "backup", str(copy), f"--database={url(*server.nodes)}", under=limit_file_size(200)
    )
    assert_one_line(ended, "backup")
    assert ended.stderr.startswith("bookings.backup: the copy failed: ")
    assert list(tmp_path.iterdir()) == []
