"""The store on an rqlite cluster, on one real node: the same contract, and what only a cluster can do wrong.

The tests of the contract are those of the SQLite store, run once more with a server whose bookings are on the node.
Where there is no rqlited, all are skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bookings.rqlite import LEAST_SECONDS
from tests.helpers.clusters import ClusterServer, Link, Node, cluster, free_ports, url
from tests.helpers.servers import CANONICAL, ROOT, SOON, assert_problem, at_once, patched

WAIT_SECONDS = 2.5

SLOT = ("acme", "2026-01-01T10:00:00Z", "k1")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with cluster(tmp_path_factory.mktemp("node")) as nodes:
        yield nodes[0]


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory, node: Node) -> Iterator[ClusterServer]:
    with contextlib.closing(ClusterServer(tmp_path_factory.mktemp("shared"), node)) as started:
        yield started


@pytest.fixture
def server(shared_server: ClusterServer, node: Node) -> ClusterServer:
    """The shared one, on an empty table."""
    assert node.execute("DELETE FROM bookings") == ""
    return shared_server


def _tool(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """run.py or a module, run to its end."""
    command = [str(ROOT / "run.py"), "--port=0"] if name == "run.py" else ["-m", f"bookings.{name}"]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * SOON,
        check=False,
    )


def _fault(name: str, *arguments: str, **environment: str) -> str:
    """The one line with which it ends."""
    ended = _tool(name, *arguments, **environment)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"[^\n]+\n", ended.stderr), ended.stderr
    return ended.stderr


# --- What is stored


def test_a_booking_is_stored_as_it_was_answered(server: ClusterServer, node: Node) -> None:
    """All of it: the time, above all, is the server's, since each node would have another."""
    created = server.book(*SLOT)
    assert created.status == 201
    assert created.headers["Location"] == f"/bookings/{created.json['id']}"
    assert CANONICAL.fullmatch(created.json["created_at"])
    assert node.query("SELECT * FROM bookings") == [tuple(created.json.values())]
    again = server.book(*SLOT)
    assert (again.status, again.body) == (200, created.body)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert server.rows() == [SLOT]


@pytest.mark.parametrize(
    "text", ["X'41'", "x''", "X'4142434445'", "?1 ? :a $[0]", '["a"]', "'); --", "é🎫\\u0041"]
)
def test_text_that_looks_like_something_else_is_text(server: ClusterServer, node: Node, text: str) -> None:
    created = server.book(text, SLOT[1], text)
    assert created.status == 201
    types = "typeof(tenant_id), typeof(idempotency_key)"
    assert node.query(f"SELECT tenant_id, idempotency_key, {types} FROM bookings") == [
        (text, text, "text", "text")
    ]
    assert server.book(text, SLOT[1], text).body == created.body
    assert_problem(server.book(text, SLOT[1], "k2"), 409, "slot-taken", "start_time_utc")
    assert_problem(server.book("else", SLOT[1], text), 422, "key-reused", "idempotency_key")
    header = text.encode().decode("latin-1")
    assert server.call("GET", "/bookings", X_Tenant_ID=header).json == [created.json]
    assert server.call("GET", created.headers["Location"], X_Tenant_ID=header).body == created.body
    assert len(server.rows()) == 1


def test_the_schema_decides_on_the_cluster_too(server: ClusterServer, node: Node) -> None:
    assert server.book(*SLOT).status == 201
    insert = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES"
    for values, kind in [
        ("('acme', '2026-01-01T10:00:00Z', 'k2')", "UNIQUE"),
        ("('acme', '2026-01-01T11:00:00Z', 'k1')", "UNIQUE"),
        ("('acme', '2026-01-01 11:00:00', 'k2')", "CHECK"),
        ("(' acme', '2026-01-01T11:00:00Z', 'k2')", "CHECK"),
    ]:
        assert node.execute(f"{insert} {values}").startswith(f"{kind} constraint failed"), values
    assert server.rows() == [SLOT]


@pytest.mark.parametrize(
    ("action", "logged"),
    [("ABORT, 'closed on Mondays'", "closed on Mondays"), ("IGNORE", "the INSERT was ignored")],
    ids=["refused", "ignored"],
)
def test_another_fault_than_a_lost_slot_is_a_fault_of_the_program(
    server: ClusterServer, node: Node, action: str, logged: str
) -> None:
    trigger = f"BEFORE INSERT ON bookings BEGIN SELECT RAISE({action}); END"
    assert node.execute(f"CREATE TRIGGER closed {trigger}") == ""
    answer = server.book(*SLOT)
    assert node.execute("DROP TRIGGER closed") == ""
    assert (answer.status, answer.json["type"]) == (500, "/problems/internal-error")
    assert b"Mondays" not in answer.body
    log = server.log.read_text()
    assert logged in log and answer.json["request_id"] in log
    server.log.write_text("")  # the tests after this one find it as they expect it
    assert server.rows() == []
    assert server.book(*SLOT).status == 201


# --- Answers that are lost on their way


@contextlib.contextmanager
def _behind_a_link(
    base: Path, node: Node, loses: Callable[[str], bool]
) -> Iterator[tuple[ClusterServer, Link]]:
    with contextlib.ExitStack() as stack:
        link = stack.enter_context(contextlib.closing(Link(node, loses)))
        database = f"http://{link.address}"
        # Short, for those who wait for the end of it.
        program = patched(base, f"from bookings import rqlite\nrqlite.WAIT_SECONDS = {WAIT_SECONDS}")
        behind = ClusterServer(base, node, database=database, program=program)
        yield stack.enter_context(contextlib.closing(behind)), link


class Losses:
    """Loses the next answers from where statements write, or read, until told otherwise."""

    def __init__(self) -> None:
        self.left = {"/db/execute": 0, "/db/query": 0}

    def __call__(self, request: str) -> bool:
        path = request.partition("?")[0]
        self.left[path] -= 1
        return self.left[path] >= 0


def test_an_answer_that_is_lost_is_asked_for_again(server: ClusterServer, node: Node, tmp_path: Path) -> None:
    """The INSERT has been carried out, whatever became of its answer: it is never told as a taken slot."""
    losses = Losses()
    with _behind_a_link(tmp_path, node, losses) as (behind, _):
        for path, lost in [("/db/execute", 1), ("/db/execute", 3)]:
            start = f"2026-01-0{lost}T10:00:00Z"
            losses.left[path] = lost
            answer = behind.book("acme", start, start)
            assert answer.status == 200, answer.body
            assert node.query(f"SELECT * FROM bookings WHERE start_time_utc = '{start}'") == [
                tuple(answer.json.values())
            ]
            losses.left[path] = lost
            assert_problem(behind.book("acme", start, "else"), 409, "slot-taken", "start_time_utc")
            losses.left[path] = lost
            assert_problem(behind.book("else", start, start), 422, "key-reused", "idempotency_key")
            losses.left["/db/query"] = lost
            again = behind.book("acme", start, start)
            assert (again.status, again.body) == (200, answer.body)
        assert len(server.rows()) == 2


def test_when_no_answer_comes_nothing_is_guessed(server: ClusterServer, node: Node, tmp_path: Path) -> None:
    """Neither of an INSERT whose answers are lost, nor where those of the look that explains it are."""
    losing = threading.Event()
    other = ("acme", "2026-01-02T10:00:00Z", "k2")

    def loses(request: str) -> bool:
        return losing.is_set() and (SLOT[2] in request or request.startswith("/db/query"))

    assert server.book(*other).status == 201
    with _behind_a_link(tmp_path, node, loses) as (behind, _):
        losing.set()
        began = time.monotonic()
        answers = at_once(2, lambda number: behind.book(*(SLOT, other)[number]))
        assert WAIT_SECONDS - LEAST_SECONDS - 1 < time.monotonic() - began < WAIT_SECONDS + 5
        for answer in answers:
            assert_problem(answer, 503, "database-unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        assert server.rows() == [other, SLOT]  # the INSERT has happened, and nobody said that it had not
        losing.clear()
        assert [behind.book(*slot).status for slot in (SLOT, other)] == [200, 200]
        assert server.rows() == [other, SLOT]


def test_reads_that_must_not_miss_a_booking_go_through_the_log(
    server: ClusterServer, node: Node, tmp_path: Path
) -> None:
    with _behind_a_link(tmp_path, node, lambda request: False) as (behind, link):
        booked = behind.book("levels", *SLOT[1:])
        link.targets.clear()
        for status, answer in [
            (200, behind.book("levels", *SLOT[1:])),
            (409, behind.book("levels", SLOT[1], "k2")),
            (200, behind.call("GET", "/bookings?tenant_id=levels")),
            (200, behind.call("GET", f"{booked.headers['Location']}?tenant_id=levels")),
        ]:
            assert answer.status == status
        reads = [target for target in link.targets if target.startswith("/db/query")]
        assert len(reads) == 4
        assert all("level=strong" in target for target in reads)
        link.targets.clear()
        assert behind.book("levels", "2026-01-02T10:00:00Z", "k3").status == 201
        assert len(link.targets) == 1, "a free slot takes one round trip"
    assert len(server.rows()) == 2


def test_what_goes_over_the_wire(server: ClusterServer, node: Node, tmp_path: Path) -> None:
    """No parameter is what a client has sent, which later releases of rqlite could take for a blob, and no time is left
    to the nodes, each of which would have its own."""
    with _behind_a_link(tmp_path, node, lambda request: False) as (behind, link):
        link.bodies.clear()
        booked = behind.book("X'41'", SLOT[1], "X'42'")
        assert behind.book("X'41'", SLOT[1], "X'43'").status == 409
        assert behind.call("GET", "/bookings?tenant_id=X'41'").json == [booked.json]
        values = [json.loads(parameter) for ((_, *parameters),) in link.bodies for parameter in parameters]
        assert values[0] == list(booked.json.values())[1:]
        assert len(values) == len(link.bodies) == 4
    assert server.rows() == [("X'41'", SLOT[1], "X'42'")]


# --- How a cluster is named, and what is wrong with it


@pytest.mark.parametrize(
    "database",
    [
        "http://",
        "http://:4001",
        "http://a b",
        "http://host:port",
        "http://host:65536",
        "http://host/path",
        "https://u:secret@",
    ],
)
def test_a_name_of_no_cluster(database: str) -> None:
    for tool in ("run.py", "show"):
        line = _fault(tool, f"--database={database}")
        assert "http://host:4001,host:4001" in line
        assert "secret" not in line


def test_a_node_that_is_not_there_is_passed_over(server: ClusterServer, node: Node, tmp_path: Path) -> None:
    (dead,) = free_ports(1)
    database = f"http://127.0.0.1:{dead},{node.address}"
    with contextlib.closing(ClusterServer(tmp_path, node, database=database)) as running:
        assert running.startup_line.endswith(f", database {database}\n")
        assert running.book(*SLOT).status == 201
        assert running.call("GET", "/ready").status == 200
        assert server.rows() == [SLOT]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Node, dict[str, str]]]:
    """A node with a password and a certificate, and the environment in which that certificate is trusted."""
    base = tmp_path_factory.mktemp("guarded")
    if not shutil.which("openssl"):
        pytest.skip("no openssl here to make a certificate")
    key, certificate, users = base / "key.pem", base / "certificate.pem", base / "users.json"
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *made.split(), "-keyout", key, "-out", certificate], capture_output=True, check=True
    )
    users.write_text(json.dumps([{"username": "bookings", "password": "p@ss:w/rd", "perms": ["all"]}]))
    flags = (f"-http-cert={certificate}", f"-http-key={key}", f"-auth={users}")
    node = Node(base, "guarded", flags=flags)
    try:
        yield node, {"SSL_CERT_FILE": str(certificate)}
    finally:
        node.kill()


def test_password_and_https(guarded: tuple[Node, dict[str, str]], tmp_path: Path) -> None:
    node, trusted = guarded
    database = f"https://bookings:p%40ss%3Aw%2Frd@{node.address}"
    with contextlib.closing(ClusterServer(tmp_path, node, database=database, **trusted)) as running:
        assert running.startup_line.endswith(f", database https://{node.address}\n")
        booked = running.book(*SLOT)
        assert (booked.status, running.book(*SLOT).status) == (201, 200)
        shown = _tool("show", "--json", BOOKINGS_DB=database, **trusted)
        assert [json.loads(line) for line in shown.stdout.splitlines()] == [booked.json]


def test_a_cluster_that_cannot_be_used(guarded: tuple[Node, dict[str, str]], tmp_path: Path) -> None:
    """All at once, since each is tried for its whole time. No line repeats a password."""
    node, trusted = guarded
    dead = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    copy = str(tmp_path / "copy.db")
    asks: list[tuple[tuple[str, ...], str, dict[str, str], str]] = [
        (("run.py",), f"http://user:secret@{dead}", {}, f"http://{dead} does not answer"),
        (("show",), f"http://user:secret@{dead}", {}, f"http://{dead} does not answer"),
        (("backup", copy), f"http://user:secret@{dead}", {}, f"http://{dead} does not answer"),
        (("show",), f"https://bookings:secret@{node.address}", trusted, "401"),
        (("show",), f"https://bookings:secret@{node.address}", {"SSL_CERT_FILE": os.devnull}, "certificate"),
    ]

    def ask(number: int) -> str:
        tool, database, environment, _ = asks[number]
        return _fault(*tool, BOOKINGS_DB=database, **environment)

    for line, (_, _, _, said) in zip(at_once(len(asks), ask), asks):
        assert said in line
        assert "secret" not in line
    assert not list(tmp_path.iterdir())


# --- The tools


def test_show(server: ClusterServer) -> None:
    """As from a file, over more than one page, in order of tenant and start time."""
    days = [f"2026-{month:02}-{day:02}T10:00:00Z" for month in range(1, 13) for day in range(1, 29)]
    tenants = ["a", "X'41'", "ü", "z"]
    rows = [(tenant, day, f"{tenant}/{day}") for day in days for tenant in tenants]
    server.insert(rows)
    for flags, chosen in [
        ((), rows),
        (("--tenant=X'41'",), [row for row in rows if row[0] == "X'41'"]),
        ((f"--from={days[9]}", f"--to={days[300]}"), [row for row in rows if days[9] <= row[1] < days[300]]),
        (("--limit=1001",), sorted(rows)[:1001]),
        (("--limit=3", "--tenant=z"), [row for row in rows if row[0] == "z"][:3]),
        (("--tenant=nobody",), []),
    ]:
        ended = _tool("show", "--json", *flags, f"--database={url(*server.nodes)}")
        assert (ended.returncode, ended.stderr) == (0, "")
        found = [tuple(json.loads(line).values())[1:4] for line in ended.stdout.splitlines()]
        assert found == sorted(chosen), flags
    table = _tool("show", "--tenant=ü", f"--database={url(*server.nodes)}").stdout.splitlines()
    assert len(table) == len(days) + 3
    assert table[-1] == f"{len(days)} bookings"


def test_a_backup_is_a_database_for_a_server(server: ClusterServer, tmp_path: Path) -> None:
    booked = server.book("X'41'", *SLOT[1:])
    server.insert([("acme", f"2026-01-{day:02}T10:00:00Z", f"key {day}") for day in range(1, 29)])
    copy = tmp_path / "copy.db"
    ended = _tool("backup", str(copy), f"--database={url(*server.nodes)}")
    assert (ended.returncode, ended.stdout) == (0, f"29 bookings copied to {copy}\n"), ended.stderr
    assert os.listdir(tmp_path) == ["copy.db"]
    with contextlib.closing(sqlite3.connect(copy)) as db:
        assert db.execute("SELECT * FROM bookings").fetchone() == tuple(booked.json.values())
        rows = db.execute("SELECT tenant_id, start_time_utc, idempotency_key FROM bookings ORDER BY id")
        assert rows.fetchall() == server.rows()
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    line = _fault("backup", str(copy), f"--database={url(*server.nodes)}")
    assert "--force" in line
    shown = _tool("show", f"--database={copy}")
    assert shown.stdout.splitlines()[-1] == "29 bookings"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_a_backup_without_room_ends_at_once_and_blames_no_node(server: ClusterServer, tmp_path: Path) -> None:
    server.insert([("acme", f"2026-01-01T10:{n // 60:02}:{n % 60:02}Z", f"key {n}") for n in range(2000)])
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    command = [sys.executable, "-m", "bookings.backup", str(copy), f"--database={url(*server.nodes)}"]
    ended = subprocess.run(
        ["sh", "-c", 'ulimit -f 200; exec "$@"', "sh", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert (ended.returncode, ended.stdout, list(copy.parent.iterdir())) == (1, "", [])
    assert re.fullmatch(r"bookings.backup: the copy cannot be made: [^\n]+\n", ended.stderr), ended.stderr


def test_prove_on_a_cluster(server: ClusterServer) -> None:
    """It tries all that it tries on a file; the server that it kills is its own, and the nodes go on."""
    assert server.book(*SLOT).status == 201
    ended = _tool("prove", f"--database={url(*server.nodes)}")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert [line.rpartition(": ")[2] for line in lines[:6]] == ["ok"] * 6
    assert lines[-1] == "PROVED: no slot was booked twice."
    first, *others = server.rows()
    assert first == SLOT
    assert len(others) >= 25 + 150 and all(tenant.startswith("prove-") for tenant, _, _ in others)


# --- Last, because rqlite goes on showing the columns of a table that was


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ("CREATE TABLE bookings (guest, room)", "not the one of schema.sql"),
        ("CREATE VIEW bookings AS SELECT 1", "not the one of schema.sql"),
        ("CREATE INDEX bookings ON others (a)", "bookings"),
    ],
    ids=["of another program", "a view", "an index"],
)
def test_a_table_that_is_not_the_one_of_the_schema(node: Node, theirs: str, said: str) -> None:
    for statement in ("DROP TABLE IF EXISTS bookings", "CREATE TABLE IF NOT EXISTS others (a)", theirs):
        assert node.execute(statement) == ""
    before = node.query("SELECT name, sql FROM sqlite_master ORDER BY name")
    line = _fault("run.py", f"--database={url(node)}")
    assert said in line and url(node) in line
    assert node.query("SELECT name, sql FROM sqlite_master ORDER BY name") == before
    assert node.execute(f"DROP {theirs.split()[1]} bookings") == ""
