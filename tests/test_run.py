"""`run.py` as a process: its settings, the line it starts with, how it ends, and every start that must fail.

A start that fails says why in one line on stderr, prints nothing else, ends with a status that is not zero
and leaves the files as they were. The last tests read the source: the standard library alone, and arrows that
point down only.
"""

from __future__ import annotations

import ast
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import run_and_fail, without_override
from tests.helpers.servers import ROOT, SOON, Server, at_once, copy_project, patched

RUN = str(ROOT / "run.py")
SCHEMA = (ROOT / "schema.sql").read_text(encoding="utf-8")
SLOT = ("acme", "2026-01-01T10:00:00Z", "k1")
INSERT = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES (?, ?, ?)"

windows_forbids = pytest.mark.skipif(os.name == "nt", reason="Windows allows no such file name")
no_signals = pytest.mark.skipif(os.name == "nt", reason="Windows cannot send a signal to one process alone")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _make(path: Path, script: str = SCHEMA, journal: str = "delete") -> Path:
    """A database that somebody made without the server, with one row where it has our table."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.executescript(script)
        with contextlib.suppress(sqlite3.OperationalError):
            db.execute(INSERT, SLOT)
    return path


def _dump(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return list(db.iterdump())


def _rows(path: Path) -> list[tuple[Any, ...]]:
    assert path.is_file()
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(
            "SELECT tenant_id, start_time_utc, idempotency_key FROM bookings ORDER BY id"
        ).fetchall()


def _book(host: str, port: int) -> int:
    connection = http.client.HTTPConnection(host, port, timeout=SOON)
    with contextlib.closing(connection):
        body = json.dumps(dict(zip(("tenant_id", "start_time_utc", "idempotency_key"), SLOT)))
        connection.request("POST", "/bookings", body, {"Content-Type": "application/json"})
        return connection.getresponse().status


def _idle_connection(server: Server) -> socket.socket:
    """A connection that has had an answer and is kept open for the next request."""
    idle = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
    idle.sendall(b"GET /bookings?tenant_id=acme HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
    return idle


@pytest.mark.parametrize(
    ("flags", "environment", "host", "port", "database"),
    [
        ((), {}, "127.0.0.1", "3000", "copy/bookings.db"),
        ((), {"PORT": "", "HOST": "", "BOOKINGS_DB": ""}, "127.0.0.1", "3000", "copy/bookings.db"),
        (("--port", "0"), {}, "127.0.0.1", "[0-9]+", "copy/bookings.db"),
        (
            (),
            {"PORT": "0", "HOST": "localhost", "BOOKINGS_DB": "environment.db"},
            "localhost",
            "(?!3000)[0-9]+",
            "elsewhere/environment.db",
        ),
        (
            ("--port", "0", "--host", "127.0.0.1", "--database", "flag.db"),
            {"PORT": "none", "HOST": "192.0.2.1", "BOOKINGS_DB": "no/such/folder/environment.db"},
            "127.0.0.1",
            "[0-9]+",
            "elsewhere/flag.db",
        ),
    ],
    ids=["defaults", "empty is not set", "default database", "environment", "flags"],
)
def test_flags_then_the_environment_then_defaults(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], host: str, port: str, database: str
) -> None:
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy_project(copy)
    process = subprocess.Popen(
        [sys.executable, str(copy / "run.py"), *flags],
        env={**os.environ, **environment},
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            if port == "3000" and line.startswith("run.py: cannot listen on 127.0.0.1:3000: "):
                return  # another program has the port, but this one asked for it
            found = re.fullmatch(r"Bookings on http://(.+):([0-9]+), database (.+)\n", line)
            assert found, line
            assert found[1] == host
            assert re.fullmatch(port, found[2])
            assert Path(found[3]) == tmp_path / database
            assert _book(host, int(found[2])) == 201
            assert _rows(tmp_path / database) == [SLOT]
        finally:
            process.kill()
    if database.startswith("copy"):
        assert not list(elsewhere.iterdir())


def test_help_explains_each_setting(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, RUN, "--help"],
        env={**os.environ, "PORT": "none"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    for words in (
        ("--port", "PORT", "3000"),
        ("--host", "HOST", "127.0.0.1"),
        ("--database", "BOOKINGS_DB", "bookings.db beside run.py"),
        ("--allowed-hosts", "ALLOWED_HOSTS", "no others on 127.0.0.1 or ::1, and any elsewhere"),
    ):
        explained = " ".join(ended.stdout.split()).rpartition(words[0])[2]
        assert re.search(rf"environment: {words[1]}; default: {words[2]}", explained)
    assert not list(tmp_path.iterdir())


@no_signals
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_line_at_the_start_and_a_quiet_end(server: Server, tmp_path: Path, number: int) -> None:
    assert (
        server.startup_line == f"Bookings on http://127.0.0.1:{server.port}, database {tmp_path}/bookings.db\n"
    )
    assert server.book(*SLOT).status == 201
    with _idle_connection(server) as idle:
        assert server.stop(number) == 0
        assert idle.recv(65536) == b""
    assert server.process.stdout
    assert server.process.stdout.read() == ""
    assert server.log.read_text() == ""
    # The write-ahead log is gone with the last connection: one file to copy, mail or back up.
    assert sorted(os.listdir(tmp_path)) == ["bookings.db", "server.log"]
    assert server.rows() == [SLOT]


@no_signals
def test_a_restart_on_the_same_port_keeps_the_bookings(server: Server, tmp_path: Path) -> None:
    booked = server.book(*SLOT)
    # The server is the one that closes this connection, so that the port has some time left to wait.
    with _idle_connection(server):
        server.stop(signal.SIGINT)
    with contextlib.closing(Server(tmp_path, "--port", str(server.port))) as restarted:
        assert restarted.port == server.port
        again = restarted.book(*SLOT)
        assert (again.status, again.body) == (200, booked.body)
        assert restarted.rows() == [SLOT]


def test_ipv6(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with contextlib.closing(Server(tmp_path, "--host", "::1")) as server:
        assert f"http://[::1]:{server.port}," in server.startup_line
        assert _book("::1", server.port) == 201
        assert server.rows() == [SLOT]


def test_several_servers_may_start_at_once_on_one_new_database(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = at_once(4, lambda number: stack.enter_context(contextlib.closing(Server(tmp_path))))
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
        pytest.param('file:"x".db', "utf-8", marks=windows_forbids),
        pytest.param(":memory:", "utf-8", marks=windows_forbids),
        ("ü文 where the output is ASCII.db", "ascii"),
    ],
)
def test_the_database_may_have_any_name(tmp_path: Path, name: str, encoding: str) -> None:
    with contextlib.closing(Server(tmp_path, "--database", name, PYTHONIOENCODING=encoding)) as server:
        assert server.book(*SLOT).status == 201
        assert {file for file in os.listdir(tmp_path) if file != "server.log"} <= {
            name,
            f"{name}-wal",
            f"{name}-shm",
        }
        assert _rows(tmp_path / name) == [SLOT]


@no_signals
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_database_behind_a_link(tmp_path: Path, workers: str) -> None:
    """SQLite keeps the log beside the file, and not beside the link."""
    for folder in ("there", "here"):
        (tmp_path / folder).mkdir()
    (tmp_path / "there/other.db").touch()
    link = tmp_path / "here/link.db"
    link.symlink_to("../there/real.db")
    with contextlib.closing(Server(tmp_path, f"--database={link}", f"--workers={workers}")) as server:
        assert f"database {link}\n" in server.startup_line
        assert server.book(*SLOT).status == 201
        assert server.book(*SLOT).status == 200
        assert _rows(link) == _rows(tmp_path / "there/real.db") == [SLOT]
        assert os.listdir(tmp_path / "here") == ["link.db"]
        # Elsewhere from now on, so that the server finds another file than that of the start.
        link.unlink()
        link.symlink_to("../there/other.db")
        assert server.book("acme", "2026-01-01T11:00:00Z", "k2").status == 503
        assert server.call("GET", "/ready").status == 503
        assert server.stop() == 0
    assert sorted(os.listdir(tmp_path / "there")) == ["other.db", "real.db"]
    assert (tmp_path / "there/other.db").read_bytes() == b""
    assert _rows(tmp_path / "there/real.db") == [SLOT]


def _with_other_prose(script: str) -> str:
    return re.sub(r"--.*", "-- don't; ask (why", script).replace(",\n", ", -- indeed\n\n\t")


@pytest.mark.parametrize(
    "change",
    [
        str,
        lambda script: script.replace("\n", "\r\n"),
        lambda script: re.sub(r"\n\s*", "\n", re.sub(r"--.*", "", script)),
        _with_other_prose,
        lambda script: "",
    ],
    ids=["as it is", "CRLF", "no prose", "other prose", "an empty file"],
)
def test_a_database_made_from_the_schema_is_accepted(tmp_path: Path, change: Callable[[str], str]) -> None:
    path = tmp_path / "bookings.db"
    path.touch()
    _make(path, change(SCHEMA))
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book("acme", "2026-01-01T11:00:00Z", "k2").status == 201
        assert server.book("acme", "2026-01-01T11:00:00Z", "k3").status == 409
        assert server.rows()[-1] == ("acme", "2026-01-01T11:00:00Z", "k2")


def test_the_sqlite3_client_can_make_the_database(tmp_path: Path) -> None:
    client = shutil.which("sqlite3")
    if not client:
        pytest.skip("no sqlite3 client here")
    with (ROOT / "schema.sql").open() as schema:
        subprocess.run([client, "bookings.db"], stdin=schema, cwd=tmp_path, check=True, timeout=SOON)
    with contextlib.closing(Server(tmp_path)) as server:
        assert server.book(*SLOT).status == 201
        assert server.rows() == [SLOT]


def test_the_schema_is_plain_sql() -> None:
    statements = re.sub(r"--.*", "", SCHEMA)
    assert "CREATE TABLE" in statements
    assert not re.findall(r"\b(?:PRAGMA|BEGIN|COMMIT|DROP|STRICT|RETURNING)\b", statements, re.IGNORECASE)


@pytest.mark.parametrize(
    "port", ["none", "", "-1", "65536", "70000", "5_0", "+80", " 80", "0x50", "80.0", "５０", "9" * 5000]
)
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    assert "port" in run_and_fail(tmp_path, sys.executable, RUN, f"--port={port}", PORT="0")
    assert not _files(tmp_path)


def test_a_port_that_is_none_in_the_environment(tmp_path: Path) -> None:
    assert "port" in run_and_fail(tmp_path, sys.executable, RUN, PORT="none")
    assert not _files(tmp_path)


@pytest.mark.parametrize(
    "host",
    [
        "http://a.example",
        "a.example:3000",
        "a.example/",
        "*.a.example",
        "a b",
        "user@a.example",
        "bücher.example",
    ],
)
def test_an_allowed_host_that_is_no_name(tmp_path: Path, host: str) -> None:
    """It would match no Host, and nobody would know why."""
    assert repr(host) in run_and_fail(
        tmp_path, sys.executable, RUN, "--port=0", f"--allowed-hosts=b.example,{host}"
    )
    assert repr(host) in run_and_fail(tmp_path, sys.executable, RUN, "--port=0", ALLOWED_HOSTS=host)
    assert not _files(tmp_path)


def test_a_port_that_is_taken(server: Server, tmp_path: Path) -> None:
    assert server.book(*SLOT).status == 201
    second = tmp_path / "second"
    second.mkdir()
    line = run_and_fail(second, sys.executable, RUN, f"--port={server.port}", "--database=second.db")
    assert f"127.0.0.1:{server.port}" in line
    # The database may have been made before the port was asked for; then nothing lies beside it.
    assert set(_files(second)) <= {"second.db"}
    assert server.book(*SLOT).status == 200
    assert server.rows() == [SLOT]


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1", "a..b", "x" * 64])
def test_a_host_that_is_none(tmp_path: Path, host: str) -> None:
    assert host in run_and_fail(tmp_path, sys.executable, RUN, "--port=0", f"--host={host}", "--database=x.db")
    assert set(_files(tmp_path)) <= {"x.db"}


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
    ids=["folder", "missing", "below a file", "text", "short", "bytes", "almost", "nobody may write here"],
)
def test_a_database_that_cannot_be_one(tmp_path: Path, name: str, content: bytes | None) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(content or b"")
    before = _files(tmp_path)
    assert name in run_and_fail(tmp_path, sys.executable, RUN, "--port=0", f"--database={name}")
    assert _files(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no folder that somebody is in")
@pytest.mark.parametrize("program", [[RUN, "--port=0"], ["-m", "bookings.show"]], ids=["run.py", "show"])
def test_a_database_in_a_folder_that_was_removed(tmp_path: Path, program: list[str]) -> None:
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
    assert re.fullmatch(r"(run\.py|bookings\.show): x\.db: [^\n]*folder[^\n]*\n", ended.stderr), ended.stderr


# Gives up what lets root write whatever the modes say (prctl 24 drops CAP_DAC_OVERRIDE, number 1, from the
# bounding set), and becomes the command that follows.
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
def test_a_database_that_may_not_be_written(tmp_path: Path, journal: str, read_only: str, name: str) -> None:
    (tmp_path / "folder").mkdir()
    _make(tmp_path / "folder/old.db", journal=journal)
    before = _files(tmp_path)
    hindrance = tmp_path / read_only
    mode = hindrance.stat().st_mode
    hindrance.chmod(mode & ~0o222)
    try:
        command = without_override(hindrance)
        assert name in run_and_fail(tmp_path, *command, RUN, "--port=0", f"--database={name}")
        assert _files(tmp_path) == before
    finally:
        hindrance.chmod(mode)


# What stands in the schema, and what another table has instead.
_OTHER_TABLES = {
    "no UNIQUE": ("UNIQUE (tenant_id, start_time_utc),", ""),
    "UNIQUE of three": ("UNIQUE (tenant_id, start_time_utc)", "UNIQUE (tenant_id, start_time_utc, id)"),
    "UNIQUE that replaces": ("UNIQUE (idempotency_key)", "UNIQUE (idempotency_key) ON CONFLICT REPLACE"),
    "no NOT NULL": ("start_time_utc TEXT NOT NULL", "start_time_utc TEXT"),
    "no CHECK": ("CHECK (id BETWEEN 1 AND 9007199254740991)", ""),
    "another CHECK": ("start_time_utc BETWEEN '0001' AND ':'", "start_time_utc >= '0000'"),
    "a column more": ("UNIQUE (tenant_id,", "note TEXT, UNIQUE (tenant_id,"),
    "of another program": (SCHEMA, "CREATE TABLE bookings (guest, room)"),
    "another case": (SCHEMA, "CREATE TABLE Bookings (guest, room)"),
    "a view": (SCHEMA, "CREATE TABLE others (a); CREATE VIEW bookings AS SELECT * FROM others"),
    "an index": (SCHEMA, "CREATE TABLE others (a); CREATE INDEX bookings ON others (a)"),
}


@pytest.mark.parametrize(("part", "instead"), _OTHER_TABLES.values(), ids=_OTHER_TABLES)
def test_a_table_that_is_not_the_one_of_the_schema(tmp_path: Path, part: str, instead: str) -> None:
    assert part in SCHEMA
    path = _make(tmp_path / "bookings.db", SCHEMA.replace(part, instead))
    before = _dump(path)
    assert "bookings" in run_and_fail(tmp_path, sys.executable, RUN, "--port=0", f"--database={path}")
    assert _dump(path) == before
    assert os.listdir(tmp_path) == ["bookings.db"]


@pytest.mark.parametrize(
    "theirs",
    [
        "CREATE TABLE bookings (guest, room)",
        "CREATE TABLE Bookings (guest, room)",
        "PRAGMA encoding = 'UTF-16'; CREATE TABLE others (a)",
    ],
    ids=["another table", "another case", "UTF-16"],
)
def test_a_refused_database_keeps_every_byte(tmp_path: Path, theirs: str) -> None:
    path = _make(tmp_path / "bookings.db", theirs)
    before = _files(tmp_path)
    run_and_fail(tmp_path, sys.executable, RUN, "--port=0", f"--database={path}")
    assert _files(tmp_path) == before


def test_a_database_that_is_locked_for_longer_than_the_wait(tmp_path: Path) -> None:
    locks = [("wal", "IMMEDIATE"), ("delete", "EXCLUSIVE")]
    paths = [_make(tmp_path / f"{journal}.db", journal=journal) for journal, _ in locks]
    with contextlib.ExitStack() as stack:
        for path, (_, lock) in zip(paths, locks):
            db = stack.enter_context(contextlib.closing(sqlite3.connect(path, isolation_level=None)))
            db.execute(f"BEGIN {lock}")
            db.execute("DELETE FROM bookings")
        program = str(patched(tmp_path, "store.BUSY_SECONDS = 0.5"))
        # Both at once, since each waits its whole time.
        lines = at_once(
            2,
            lambda number: run_and_fail(
                tmp_path, sys.executable, program, "--port=0", f"--database={paths[number].name}"
            ),
        )
    for path, line in zip(paths, lines):
        assert path.name in line
        assert "locked" in line
        assert _rows(path) == [SLOT]
    assert sorted(os.listdir(tmp_path)) == ["delete.db", "patched.py", "wal.db"]


def _old_python(version: str) -> Iterator[str]:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = [*map(str, pyenv.glob(f"versions/{version}.*/bin/python")), shutil.which(f"python{version}")]
    for python in filter(None, found):
        # A name on PATH may be a shim for a version that is not chosen here.
        probe = [python, "-c", "import sys; sys.exit(sys.hexversion >= 0x03090000)"]
        if not subprocess.run(probe, stderr=subprocess.DEVNULL, check=False, timeout=SOON).returncode:
            yield python


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8"])
def test_a_python_that_is_too_old(tmp_path: Path, version: str) -> None:
    python = next(_old_python(version), None)
    if not python:
        pytest.skip(f"no Python {version} here")
    line = run_and_fail(tmp_path, python, RUN, "--port=0", "--database=x.db")
    assert re.search(rf"\b{version}\.[0-9].*\b3\.9\b", line)
    assert not _files(tmp_path)


def test_an_sqlite_that_is_too_old(tmp_path: Path) -> None:
    with_old_sqlite = """
import os, runpy, sqlite3, sys
sqlite3.sqlite_version_info = (3, 33, 9)
sys.argv[:1] = []
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    line = run_and_fail(tmp_path, sys.executable, "-c", with_old_sqlite, RUN, "--port=0", "--database=x.db")
    assert re.search(r"SQLite.*\b3\.34", line)
    assert not _files(tmp_path)


SOURCES = sorted([ROOT / "run.py", *(ROOT / "bookings").glob("*.py")])


def _imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere in it; those of the project as `bookings.name`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ["bookings" if node.level else "", node.module]))
            found.update(f"{origin}.{alias.name}" if origin == "bookings" else origin for alias in node.names)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_but_the_standard_library(path: Path) -> None:
    standard = getattr(sys, "stdlib_module_names", None)
    if standard is None:
        pytest.skip("this Python does not list its standard library")
    assert {name.partition(".")[0] for name in _imports(path)} <= {*standard, "bookings"}


def test_imports_point_down_only() -> None:
    """As the package's docstring lays the floors out; what it does not name does not exist."""
    floors: dict[str, int] = {}
    floor = -1
    docstring = ast.get_docstring(ast.parse((ROOT / "bookings/__init__.py").read_text(encoding="utf-8")))
    for number, name in re.findall(r"^    (?:floor ([0-9])|       )  (\w+)  ", docstring or "", re.MULTILINE):
        floor = int(number or floor)
        floors[f"bookings.{name}"] = floor
    modules = {f"bookings.{path.stem}": path for path in SOURCES if path.parent.name == "bookings"}
    del modules["bookings.__init__"]
    assert set(floors) == set(modules)
    for module, path in modules.items():
        ours = {name for name in _imports(path) if name.startswith("bookings")}
        assert {name for name in ours if floors[name] >= floors[module]} == set(), module


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("sqlite3", {"store"}),
        ("socket", {"server", "workers"}),
        ("socketserver", {"server"}),
        ("http", {"server", "prove", "rqlite"}),
        ("json", {"api", "fields", "show", "prove", "rqlite"}),
    ],
)
def test_a_room_knows_only_what_is_its_own(library: str, rooms: set[str]) -> None:
    assert {
        path.stem for path in SOURCES if library in {n.partition(".")[0] for n in _imports(path)}
    } == rooms
