"""run.py as a process: startup, restarts, and startups that must fail.

A failed startup prints one line with the reason on stderr, exits with a status other than 0 and
leaves the files as they were.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookings import __version__
from bookings.process import ServerProcess
from tests.helpers.clients import book_at
from tests.helpers.processes import run_and_fail, without_override
from tests.helpers.servers import ROOT, SOON, Server, at_once, patched
from tests.helpers.storage import BOOKING, all_files, create_by_hand, rows_in
from tests.helpers.tools import posix_only, run_tool

RUN = str(ROOT / "run.py")

windows_forbids = pytest.mark.skipif(os.name == "nt", reason="Windows allows no such file name")


def _idle_connection(server: Server) -> socket.socket:
    """Return a connection that received a response and waits for the next request."""
    idle = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
    idle.sendall(b"GET /bookings?tenant_id=acme HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
    return idle


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_startup_prints_one_line_and_shutdown_nothing(
    server: Server, tmp_path: Path, number: int
) -> None:
    address = f"http://127.0.0.1:{server.port}"
    line = f"Bookings {__version__} on {address}, database {tmp_path}/bookings.db\n"
    assert server.startup_line == line
    assert server.book(*BOOKING).status == 201
    with _idle_connection(server) as idle:
        assert server.stop(number) == 0
        assert idle.recv(65536) == b""
    assert server.process.stdout
    assert server.process.stdout.read() == ""
    assert server.log.read_text() == ""
    # The last connection deletes the WAL, so the database is a single file.
    assert sorted(os.listdir(tmp_path)) == ["bookings.db", "server.log"]
    assert server.rows() == [BOOKING]


@posix_only
def test_restart_on_same_port_keeps_bookings(server: Server, tmp_path: Path) -> None:
    booked = server.book(*BOOKING)
    # The server closes this connection first, so its port stays in TIME_WAIT.
    with _idle_connection(server):
        server.stop(signal.SIGINT)
    with contextlib.closing(Server(tmp_path, port=server.port)) as restarted:
        assert restarted.port == server.port
        again = restarted.book(*BOOKING)
        assert (again.status, again.body) == (200, booked.body)
        assert restarted.rows() == [BOOKING]


def test_ipv6_address_is_served(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with contextlib.closing(Server(tmp_path, "--host", "::1")) as server:
        assert f"http://[::1]:{server.port}," in server.startup_line
        assert book_at("::1", server.port) == 201
        assert server.rows() == [BOOKING]


def test_name_with_addresses_of_both_families_is_served_at_printed_url(tmp_path: Path) -> None:
    """Like localhost on most machines. The first client to try may know only one of them."""
    patch = """
import socket
real = socket.getaddrinfo
def both(host, *arguments, **options):
    hosts = ("::1", "127.0.0.1") if host == "localhost" else (host,)
    return [address for each in hosts for address in real(each, *arguments, **options)]
socket.getaddrinfo = both
"""
    program = patched(tmp_path, patch)
    with contextlib.closing(Server(tmp_path, "--host=localhost", program=program)) as server:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert book_at("127.0.0.1", server.port) == 201
        assert book_at("localhost", server.port) == 200
        assert server.rows() == [BOOKING]


def test_servers_started_at_once_share_new_database(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = at_once(
            4, lambda number: stack.enter_context(contextlib.closing(Server(tmp_path)))
        )
        assert len({server.port for server in servers}) == 4
        keys = [f"k{number}" for number in range(4)]
        starts = [f"2026-01-01T1{number}:00:00Z" for number in range(4)]
        for server, start, key in zip(servers, starts, keys):
            assert server.book("acme", start, key).status == 201
        assert servers[0].rows() == [("acme", start, key) for start, key in zip(starts, keys)]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("two words 50%41 #ü文'.db", "utf-8"),
        pytest.param("what?mode=memory&cache=shared.db", "utf-8", marks=windows_forbids),
        pytest.param('x:"file:".db', "utf-8", marks=windows_forbids),
        ("ü文 where the output is ASCII.db", "ascii"),
    ],
)
def test_database_can_have_any_name(tmp_path: Path, name: str, encoding: str) -> None:
    with contextlib.closing(
        Server(tmp_path, "--database", name, PYTHONIOENCODING=encoding)
    ) as server:
        assert server.book(*BOOKING).status == 201
        assert {file for file in os.listdir(tmp_path) if file != "server.log"} <= {
            name,
            f"{name}-wal",
            f"{name}-shm",
        }
        assert rows_in(tmp_path / name) == [BOOKING]


@posix_only
@pytest.mark.parametrize("workers", ["1", "2"])
def test_database_behind_symbolic_link_has_wal_beside_target(tmp_path: Path, workers: str) -> None:
    for folder in ("there", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "there/other.db").touch()
    link = tmp_path / "here/link.db"
    link.symlink_to("../there/real.db")
    with contextlib.closing(
        Server(tmp_path, f"--database={link}", f"--workers={workers}")
    ) as server:
        assert f"database {link}\n" in server.startup_line
        assert server.book(*BOOKING).status == 201
        assert server.book(*BOOKING).status == 200
        assert rows_in(link) == rows_in(tmp_path / "there/real.db") == [BOOKING]
        assert os.listdir(tmp_path / "here") == ["link.db"]
        # The path now leads to another file than at startup.
        link.unlink()
        link.symlink_to("../there/other.db")
        assert server.book("acme", "2026-01-01T11:00:00Z", "k2").status == 503
        assert server.call("GET", "/ready").status == 503
        assert server.stop() == 0
    assert sorted(os.listdir(tmp_path / "there")) == ["other.db", "real.db"]
    assert (tmp_path / "there/other.db").read_bytes() == b""
    assert rows_in(tmp_path / "there/real.db") == [BOOKING]


def test_port_in_use_is_rejected(server: Server, tmp_path: Path) -> None:
    assert server.book(*BOOKING).status == 201
    second = tmp_path / "second"
    second.mkdir()
    line = run_and_fail(
        second, sys.executable, RUN, f"--port={server.port}", "--database=second.db"
    )
    assert f"127.0.0.1:{server.port}" in line
    # The server may create the database before it listens, but leaves nothing beside it.
    assert set(all_files(second)) <= {"second.db"}
    assert server.book(*BOOKING).status == 200
    assert server.rows() == [BOOKING]


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "a..b", "x" * 64])
def test_host_that_cannot_be_listened_on_is_rejected(tmp_path: Path, host: str) -> None:
    assert host in run_and_fail(
        tmp_path, sys.executable, RUN, "--port=0", f"--host={host}", "--database=x.db"
    )
    assert set(all_files(tmp_path)) <= {"x.db"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("folder", None),
        ("folder/missing/bookings.db", None),
        ("file/bookings.db", None),
        ("file", b"tenant_id,start_time_utc\nacme,2026-01-01T10:00:00Z\n" * 100),
        ("file", b"hi\n"),
        ("file", bytes(range(256)) * 64),
        ("file", b"SQLite format 3\0" + bytes(range(256)) * 64),
        pytest.param(
            "/proc/bookings.db",
            None,
            marks=pytest.mark.skipif(not os.path.exists("/proc/self"), reason="no /proc here"),
        ),
    ],
    ids=["folder", "missing", "file as folder", "text", "short", "bytes", "header only", "procfs"],
)
def test_path_that_cannot_be_database_is_rejected(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(content or b"")
    before = all_files(tmp_path)
    assert name in run_and_fail(tmp_path, sys.executable, RUN, "--port=0", f"--database={name}")
    assert all_files(tmp_path) == before


@pytest.mark.skipif(
    os.name == "nt", reason="Windows does not remove the current directory of a process"
)
@pytest.mark.parametrize(
    "program", [[RUN, "--port=0"], ["-m", "bookings.show"]], ids=["run.py", "show"]
)
def test_removed_current_directory_is_reported(tmp_path: Path, program: list[str]) -> None:
    removed = tmp_path / "removed"
    removed.mkdir()
    gone = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", gone, sys.executable, *program, "--database=x.db"]
    ended = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=removed,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(
        r"(run\.py|bookings\.show): x\.db: [^\n]*directory[^\n]*\n", ended.stderr
    ), ended.stderr


@pytest.mark.parametrize(
    ("journal", "read_only", "name"),
    [
        ("delete", "folder/old.db", "folder/old.db"),
        ("wal", "folder/old.db", "folder/old.db"),
        ("delete", "folder", "folder/old.db"),
        ("wal", "folder", "folder/old.db"),
        ("wal", "folder", "folder/new.db"),
    ],
)
def test_database_without_write_permission_is_rejected(
    tmp_path: Path, journal: str, read_only: str, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    create_by_hand(tmp_path / "folder/old.db", journal=journal)
    before = all_files(tmp_path)
    protected = tmp_path / read_only
    mode = protected.stat().st_mode
    protected.chmod(mode & ~0o222)
    try:
        command = without_override(protected)
        line = run_and_fail(tmp_path, *command, RUN, "--port=0", f"--database={name}")
        assert str(tmp_path / name) in line and "permission denied" in line
        # The file itself is fine if the directory is not.
        assert ("this user cannot create files in" in line) == (read_only == "folder")
        assert all_files(tmp_path) == before
    finally:
        protected.chmod(mode)


@posix_only
@pytest.mark.parametrize("end", ["-wal", "-shm"])
def test_file_of_another_user_is_named(tmp_path: Path, end: str) -> None:
    path = create_by_hand(tmp_path / "bookings.db", journal="wal")
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM bookings").fetchone() == (1,)
        other = Path(f"{path}{end}")
        other.chmod(0o444)
        command = without_override(other)
        line = run_and_fail(tmp_path, *command, RUN, "--port=0", f"--database={path}")
    assert line == f"run.py: {other}: permission denied: not writable by this user\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (":memory:", ":memory:"),
        ("file:x.db", "file:"),
        ("sqlite:///x.db", "sqlite://"),
        ("Postgres://me:secret@localhost/x", "postgres://"),
        ("localhost:4001", "localhost:4001"),
        ("10.0.0.1:4001,10.0.0.2:4001", "10.0.0.1:4001"),
    ],
)
def test_database_that_is_neither_path_nor_cluster_is_rejected(
    tmp_path: Path, name: str, shown: str
) -> None:
    line = run_and_fail(tmp_path, sys.executable, RUN, "--port=0", f"--database={name}")
    assert f"{shown} is not supported" in line and "http://host:4001" in line
    assert "secret" not in line
    assert not all_files(tmp_path)


@posix_only
def test_name_of_database_may_have_colon(tmp_path: Path) -> None:
    for name in ("2026-01-01T10:00.db", "./db:1"):
        ended = run_tool("show", f"--database={name}", cwd=tmp_path)
        assert f"there is no database at {tmp_path / name}" in ended.stderr


def test_database_locked_for_too_long_is_reported(tmp_path: Path) -> None:
    locks = [("wal", "IMMEDIATE"), ("delete", "EXCLUSIVE")]
    paths = [create_by_hand(tmp_path / f"{journal}.db", journal=journal) for journal, _ in locks]
    with contextlib.ExitStack() as stack:
        for path, (_, lock) in zip(paths, locks):
            db = stack.enter_context(
                contextlib.closing(sqlite3.connect(path, isolation_level=None))
            )
            db.execute(f"BEGIN {lock}")
            db.execute("DELETE FROM bookings")
        patch = "from bookings.stores import connections; connections.BUSY_SECONDS = 0.5"
        program = str(patched(tmp_path, patch))
        # Both at once, because each waits for the whole time.
        lines = at_once(
            2,
            lambda number: run_and_fail(
                tmp_path, sys.executable, program, "--port=0", f"--database={paths[number].name}"
            ),
        )
    for path, line in zip(paths, lines):
        assert path.name in line
        assert "locked" in line
        assert rows_in(path) == [BOOKING]
    assert sorted(os.listdir(tmp_path)) == ["delete.db", "patched.py", "wal.db"]


def _old_python(version: str) -> Iterator[str]:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [
        *map(str, pyenv.glob(f"versions/{version}.*/bin/python")),
        shutil.which(f"python{version}"),
    ]
    for python in filter(None, found):
        # A name on PATH may be a pyenv shim for a version that is not enabled here.
        probe = [python, "-c", "import sys; sys.exit(sys.hexversion >= 0x03090000)"]
        if not subprocess.run(
            probe, stderr=subprocess.DEVNULL, check=False, timeout=SOON
        ).returncode:
            yield python


COMMANDS = [
    [RUN, "--port=0"],
    *(["-m", f"bookings.{name}"] for name in ("__main__", "show", "backup", "prove")),
]


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8"])
def test_old_python_is_rejected(tmp_path: Path, version: str) -> None:
    python = next(_old_python(version), None)
    if not python:
        pytest.skip(f"no Python {version} here")
    for command in COMMANDS:
        ended = subprocess.run(
            [python, *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (1, "")
        expected = rf"bookings: needs Python 3\.9 or newer; this is {version}\.[0-9]+\n"
        assert re.fullmatch(expected, ended.stderr), ended.stderr
    assert not all_files(tmp_path)


@pytest.mark.parametrize("isolated", ["-I", "-P"])
def test_server_starts_in_isolated_mode(tmp_path: Path, isolated: str) -> None:
    if isolated == "-P" and sys.version_info < (3, 11):
        pytest.skip("this Python has no option -P")
    command = [sys.executable, isolated, RUN, "--database=x.db"]
    server = ServerProcess(command, cwd=tmp_path)
    try:
        assert server.url
        assert book_at("127.0.0.1", server.port) == 201
        assert rows_in(tmp_path / "x.db") == [BOOKING]
    finally:
        server.kill()


def test_old_sqlite_is_rejected(tmp_path: Path) -> None:
    with_old_sqlite = """
import os, runpy, sqlite3, sys
sqlite3.sqlite_version_info = (3, 33, 9)
sys.argv[:1] = []
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    line = run_and_fail(
        tmp_path, sys.executable, "-c", with_old_sqlite, RUN, "--port=0", "--database=x.db"
    )
    assert re.search(r"SQLite.*\b3\.34", line)
    assert not all_files(tmp_path)
