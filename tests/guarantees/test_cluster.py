"""Three rqlite nodes and two servers under load, while nodes are killed or suspended and return.

The history stays linearizable, failures are 503 alone, and all nodes end with the same rows.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from bookings.stores import find_database
from tests.helpers.clusters import ClusterServer, Node, cluster, free_ports, rqlited
from tests.helpers.histories import Book, Call, List, Request, run_client, send, violations
from tests.helpers.readme import CLUSTER_STEPS, normalized
from tests.helpers.servers import SOON, assert_problem, at_once, copy_project, until
from tests.helpers.values import COLUMNS

# Longest time from the election of a leader until each client has responses from each server.
RESUME_SECONDS = 10.0
CLIENTS = 8
# Statuses that are final for a request to book, and for other requests.
DECIDED = (200, 201, 409, 410, 422)
FINAL = (*DECIDED, 204, 404)
# More than the tests have time for, but few enough that a list shows all bookings on one page.
ROUNDS = 500

TABLES = ("bookings", "cancellations")
ROWS = [f"SELECT {', '.join(COLUMNS)} FROM {table} ORDER BY id" for table in TABLES]

requires_sigstop = pytest.mark.skipif(
    not hasattr(signal, "SIGSTOP"), reason="suspends processes with SIGSTOP"
)


class Trio(NamedTuple):
    nodes: list[Node]
    servers: list[ClusterServer]


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    base = tmp_path_factory.mktemp("trio")
    with contextlib.ExitStack() as stack:
        nodes = stack.enter_context(cluster(base, 3))
        servers = []
        for number, order in enumerate((nodes, nodes[::-1])):
            folder = base / f"server{number}"
            folder.mkdir()
            servers.append(stack.enter_context(contextlib.closing(ClusterServer(folder, *order))))
        yield Trio(nodes, servers)


class Session(NamedTuple):
    """A shell that runs the documented commands for a cluster."""

    shell: subprocess.Popen[bytes]
    folder: Path
    database: str


@pytest.fixture(scope="module", autouse=True)
def documented_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session | None]:
    """Run the commands on free ports; the output of each block goes to a file with its number.

    The shell starts first and is used last, so that the other tests fill the wait.
    """
    program = rqlited()
    if os.name == "nt" or not (shutil.which("bash") and shutil.which("curl")):
        yield None
        return
    base = tmp_path_factory.mktemp("documented")
    project, commands = base / "project", base / "bin"
    copy_project(project)
    commands.mkdir()
    (commands / "python").symlink_to(sys.executable)
    (commands / "rqlited").symlink_to(program)
    documented = ["3000", "4001", "4002", "4003", "4004", "4005", "4006"]
    ports = dict(zip(documented, map(str, free_ports(len(documented)))))
    script = "".join(f"{{\n{step.command}}} >{n}\n" for n, step in enumerate(CLUSTER_STEPS))
    script = re.sub(r"(?<=localhost:)[34]00[0-6]\b", lambda found: ports[found[0]], script)
    found = re.search("BOOKINGS_DB=(.*)", script)
    assert found
    environment = {
        **os.environ,
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PORT": ports["3000"],
        "TMPDIR": str(base),
    }
    with (base / "errors").open("w") as errors:
        # A new process group, so that the background processes of the shell can be killed.
        shell = subprocess.Popen(
            ["bash", "-c", script],
            cwd=project,
            env=environment,
            stdout=errors,
            stderr=errors,
            start_new_session=True,
        )
    try:
        yield Session(shell, project, found[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


class Load:
    """Clients that book, cancel and read through both servers by turns until closed.

    The tables are emptied first.
    """

    def __init__(self, trio: Trio) -> None:
        for table in TABLES:
            assert trio.nodes[0].execute(f"DELETE FROM {table}") == ""
        self.history: list[Call] = []
        # One party: clients do not wait for each other, so each always has a request in flight.
        self._gate = threading.Barrier(1)
        self._ports = [server.port for server in trio.servers]
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [
            self._pool.submit(
                run_client, client, self._ports, ROUNDS, self._gate, self.history.append
            )
            for client in range(CLIENTS)
        ]

    def close(self) -> None:
        """Let each client finish its round, and wait until all its requests are decided."""
        self._gate.abort()
        self._pool.shutdown()
        for client in self._clients:
            with contextlib.suppress(threading.BrokenBarrierError):
                client.result()

    def send_once(self, client: int, request: Request) -> int | None:
        """Send a request as an additional client, to the server that its number selects."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[client % 2], timeout=SOON)
        with contextlib.closing(connection):
            call = send(CLIENTS + client, connection, request)
        self.history.append(call)
        return call.status

    def decided_since(self, moment: float) -> bool:
        """Return whether each client got, from each server, a final response to a later request."""
        found = {
            (call.client, call.port)
            for call in self.history[:]
            if call.began > moment and isinstance(call.request, Book) and call.status in DECIDED
        }
        return found >= {*itertools.product(range(CLIENTS), self._ports)}


def is_allowed(call: Call) -> bool:
    """Return whether the response is final or database-unavailable, or the client hung up."""
    if call.status == 503:
        return bool(json.loads(call.body)["type"] == "/problems/database-unavailable")
    return call.status in FINAL or (call.status is None and not call.body)


def common_leader(nodes: list[Node]) -> Node | None:
    """Return the node that all these nodes name as their leader, if it is one of them."""
    names = {node.leader() for node in nodes}
    return next((node for node in nodes if names == {node.name}), None)


def roles(trio: Trio) -> tuple[Node, list[Node]]:
    until(lambda: common_leader(trio.nodes))
    leader = common_leader(trio.nodes)
    assert leader
    return leader, [node for node in trio.nodes if node is not leader]


def assert_sound(trio: Trio, load: Load) -> None:
    """Assert a linearizable history, allowed responses alone, and the same rows on every node."""
    rows, cancelled = tables = [trio.nodes[0].query(statement) for statement in ROWS]
    assert [call for call in load.history if not is_allowed(call)] == []
    assert violations(load.history, rows, cancelled, resent=True) == []
    assert len(rows) >= CLIENTS / 2 and len(cancelled) >= CLIENTS / 2
    until(lambda: all([node.query(each, "none") for each in ROWS] == tables for node in trio.nodes))
    for server in trio.servers:
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("role", "harm", "heal"),
    [
        ("leader", Node.kill, Node.start),
        ("follower", Node.kill, Node.start),
        pytest.param("leader", Node.suspend, Node.resume, marks=requires_sigstop),
        pytest.param("follower", Node.suspend, Node.resume, marks=requires_sigstop),
    ],
    ids=["leader killed", "follower killed", "leader suspended", "follower suspended"],
)
def test_cluster_serves_while_one_node_is_lost(
    trio: Trio, role: str, harm: Callable[[Node], None], heal: Callable[[Node], None]
) -> None:
    leader, followers = roles(trio)
    lost = leader if role == "leader" else followers[0]
    with contextlib.closing(Load(trio)) as load:
        until(lambda: load.decided_since(0))
        harm(lost)
        until(lambda: common_leader([node for node in trio.nodes if node is not lost]))
        moment = time.monotonic()
        until(lambda: load.decided_since(moment), RESUME_SECONDS)
        heal(lost)
        until(lambda: common_leader(trio.nodes))
        moment = time.monotonic()
        until(lambda: load.decided_since(moment), RESUME_SECONDS)
    assert_sound(trio, load)


def test_server_given_only_a_follower_finds_the_leader(trio: Trio, tmp_path: Path) -> None:
    leader, (follower, _) = roles(trio)
    with contextlib.closing(ClusterServer(tmp_path, follower)) as server:
        assert server.book("follower").status == 201
        assert server.book("follower").status == 200
        assert leader.query("SELECT count(*) FROM bookings WHERE tenant_id = 'follower'") == [(1,)]


def test_cluster_without_majority_responds_503_until_it_returns(trio: Trio) -> None:
    _, followers = roles(trio)
    # Additional requests, since those of the load may have been sent before the nodes were killed.
    late: list[Request] = [List("acme"), List("zoo")]
    late += [Book("late", f"2026-01-01T00:00:0{n}Z", f"late/{n}") for n in range(6)]
    with contextlib.closing(Load(trio)) as load:
        until(lambda: load.decided_since(0))
        for node in followers:
            node.kill()
        killed_at = time.monotonic()
        assert at_once(len(late), lambda n: load.send_once(n, late[n])) == [503] * len(late)
        assert {call.status for call in load.history[:] if call.began > killed_at} <= {503, None}
        for node in followers:
            node.start()
        until(lambda: common_leader(trio.nodes))
        moment = time.monotonic()
        until(lambda: load.decided_since(moment), RESUME_SECONDS)
        # The first attempts may have been executed or not; the second ones must succeed.
        assert {*at_once(len(late), lambda n: load.send_once(n, late[n]))} <= {200, 201}
    assert_sound(trio, load)


def test_documented_commands_start_cluster_that_serves_bookings(
    documented_session: Session | None, tmp_path: Path
) -> None:
    if not documented_session:
        pytest.skip("the documented commands need bash and curl")
    shell, folder, database = documented_session
    shell.wait(SOON)
    for number, step in enumerate(CLUSTER_STEPS):
        # rqlite's responses do not end with a newline.
        printed = (folder / str(number)).read_text().rstrip("\n")
        assert normalized(printed) == normalized(step.output.rstrip("\n")), step.command
    with contextlib.closing(ClusterServer(tmp_path, database=database)) as server:
        assert server.startup_line.endswith(f", database {database}\n")
        assert server.book(start="2026-01-02T10:00:00Z").status == 201
        assert_problem(server.book(key="k2"), 409, "slot-taken", "start_time_utc")
        listed = server.call("GET", "/bookings?tenant_id=acme").json
        with find_database(database).read() as reader:
            shown = [booking._asdict() for booking in reader.bookings(None, "", "", -1)]
        assert shown == listed
    # All three nodes have joined.
    addresses = database.partition("//")[2].split(",")
    for address in addresses:
        connection = http.client.HTTPConnection(address, timeout=SOON)
        with contextlib.closing(connection):
            connection.request("GET", "/status?key=store.nodes")
            assert len(json.loads(connection.getresponse().read())) == len(addresses) == 3
