"""Three nodes, two booking servers and a load on them, while nodes are killed, hang and come back.

Nothing acknowledged is lost, no slot is held twice, nothing but 503 is seen in between, answers resume within ten
seconds of a new leader, and a node that was away ends with the same rows. Where there is no rqlited, all are skipped.
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
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from bookings.databases import kind_of
from tests.helpers.clusters import ClusterServer, Node, cluster, free_ports, rqlited
from tests.helpers.histories import Book, Call, List, run_client, send, violations
from tests.helpers.readme import CLUSTER_COMMANDS
from tests.helpers.servers import SOON, assert_problem, at_once, until

# From a new leader to answers for everybody.
RESUME_SECONDS = 10.0
CLIENTS = 8
# What tells for good what became of a request.
DECIDED = (200, 201, 409, 422)
# Far more than there is time for; the lists of so many have each booking on their first page.
ROUNDS = 500

cannot_hang = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped here")


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


@pytest.fixture(scope="module", autouse=True)
def of_the_readme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The database that the README names, on ports that are free here. Its nodes are started first and asked last, so
    that the other tests fill the wait."""
    program = rqlited()
    if os.name == "nt" or not shutil.which("bash"):
        yield ""
        return
    start_nodes, run = CLUSTER_COMMANDS
    ports = {f"localhost:400{number}": f"localhost:{port}" for number, port in enumerate(free_ports(6), 1)}

    def moved(command: str) -> str:
        return re.sub("localhost:400[1-6]", lambda found: ports[found[0]], command)

    base = tmp_path_factory.mktemp("readme")
    with (base / "nodes.log").open("w") as log:
        # In a group of their own, so that all that the shell leaves in the background can be ended.
        shell = subprocess.Popen(
            ["bash", "-c", f"{moved(start_nodes).replace('rqlited ', program + ' ')}wait"],
            cwd=base,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        found = re.fullmatch("python run.py --database (.*)\n", moved(run))
        assert found
        yield found[1]
    finally:
        os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()


class Load:
    """Clients that book and list through one server after the other, until they are told to end, on an empty table."""

    def __init__(self, trio: Trio) -> None:
        assert trio.nodes[0].execute("DELETE FROM bookings") == ""
        self.history: list[Call] = []
        # Each goes through alone, so that all of them have something under way at any time.
        self._gate = threading.Barrier(1)
        self._ports = [server.port for server in trio.servers]
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [
            self._pool.submit(run_client, client, self._ports, ROUNDS, self._gate, self.history.append)
            for client in range(CLIENTS)
        ]

    def close(self) -> None:
        """Let each client come to the end of its round, with an answer to all that it has asked."""
        self._gate.abort()
        self._pool.shutdown()
        for client in self._clients:
            with contextlib.suppress(threading.BrokenBarrierError):
                client.result()

    def ask(self, client: int, request: Book | List) -> int | None:
        """The status for one more client, which asks the server whose turn it is by its number, and once."""
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[client % 2], timeout=SOON)
        with contextlib.closing(connection):
            call = send(CLIENTS + client, connection, request)
        self.history.append(call)
        return call.status

    def decided_since(self, moment: float) -> bool:
        """Whether each client has been told by each server what became of a booking that it asked for since then."""
        found = {
            (call.client, call.port)
            for call in self.history[:]
            if call.began > moment and isinstance(call.request, Book) and call.status in DECIDED
        }
        return found >= {*itertools.product(range(CLIENTS), self._ports)}


def is_foreseen(call: Call) -> bool:
    """Whether it was decided, or put off because of the cluster, or given up by the client itself."""
    return (
        call.status in DECIDED
        or (call.status == 503 and json.loads(call.body)["type"] == "/problems/database-unavailable")
        or (call.status is None and not call.body)
    )


def the_leader(nodes: list[Node]) -> Node | None:
    """The node that all of these say leads, if it is one of them."""
    names = {node.leader() for node in nodes}
    return next((node for node in nodes if names == {node.name}), None)


def kill_leader(leader: Node, followers: list[Node]) -> list[Node]:
    leader.kill()
    return [leader]


def kill_follower(leader: Node, followers: list[Node]) -> list[Node]:
    followers[0].kill()
    return [followers[0]]


def hang_leader(leader: Node, followers: list[Node]) -> list[Node]:
    leader.suspend()
    return [leader]


def hang_follower(leader: Node, followers: list[Node]) -> list[Node]:
    followers[0].suspend()
    return [followers[0]]


@pytest.mark.parametrize(
    ("harm", "heal"),
    [
        (kill_leader, Node.start),
        (kill_follower, Node.start),
        pytest.param(hang_leader, Node.resume, marks=cannot_hang),
        pytest.param(hang_follower, Node.resume, marks=cannot_hang),
    ],
    ids=["leader killed", "follower killed", "leader hangs", "follower hangs"],
)
def test_one_node_is_lost_and_comes_back(
    trio: Trio, harm: Callable[[Node, list[Node]], list[Node]], heal: Callable[[Node], None]
) -> None:
    leader, followers = roles(trio)
    with contextlib.closing(Load(trio)) as load:
        until(lambda: load.decided_since(0))
        lost = harm(leader, followers)
        left = [node for node in trio.nodes if node not in lost]
        until(lambda: the_leader(left))
        moment = time.monotonic()
        until(lambda: load.decided_since(moment), RESUME_SECONDS)
        for node in lost:
            heal(node)
        until(lambda: the_leader(trio.nodes))
        moment = time.monotonic()
        until(lambda: load.decided_since(moment), RESUME_SECONDS)
    assert_sound(trio, load)


def test_a_follower_leads_to_the_leader(trio: Trio, tmp_path: Path) -> None:
    leader, (follower, _) = roles(trio)
    with contextlib.closing(ClusterServer(tmp_path, follower)) as server:
        assert server.book("follower").status == 201
        assert server.book("follower").status == 200
        assert leader.query("SELECT count(*) FROM bookings WHERE tenant_id = 'follower'") == [(1,)]


def test_the_majority_is_lost_and_comes_back(trio: Trio) -> None:
    _, followers = roles(trio)
    # Four to each server; all that the load has under way may have been sent before.
    late: list[Book | List] = [Book("late", f"2026-01-01T00:00:0{n}Z", f"late/{n}") for n in range(6)]
    late += [List("acme"), List("zoo")]
    with contextlib.closing(Load(trio)) as load:
        until(lambda: load.decided_since(0))
        for node in followers:
            node.kill()
        gone = time.monotonic()
        assert at_once(len(late), lambda n: load.ask(n, late[n])) == [503] * len(late)
        assert {call.status for call in load.history[:] if call.began > gone} <= {503, None}
        for node in followers:
            node.start()
        until(lambda: the_leader(trio.nodes))
        moment = time.monotonic()
        until(lambda: load.decided_since(moment), RESUME_SECONDS)
        # Sent again, it is booked once, whatever became of it the first time.
        assert {*at_once(len(late), lambda n: load.ask(n, late[n]))} <= {200, 201}
    assert_sound(trio, load)


def test_the_commands_of_the_readme(of_the_readme: str, tmp_path: Path) -> None:
    if not of_the_readme:
        pytest.skip("the commands are for a shell")
    with contextlib.closing(ClusterServer(tmp_path, database=of_the_readme)) as server:
        assert server.startup_line.endswith(f", database {of_the_readme}\n")
        assert server.book().status == 201
        assert_problem(server.book(key="k2"), 409, "slot-taken", "start_time_utc")
        listed = server.call("GET", "/bookings?tenant_id=acme").json
        with kind_of(of_the_readme).reading(of_the_readme) as reader:
            assert [vars(booking) for booking in reader.bookings(None, "", "", -1)] == listed
    # All three have joined.
    addresses = of_the_readme.partition("//")[2].split(",")
    for address in addresses:
        connection = http.client.HTTPConnection(address, timeout=SOON)
        with contextlib.closing(connection):
            connection.request("GET", "/status?key=store.nodes")
            assert len(json.loads(connection.getresponse().read())) == len(addresses) == 3


def roles(trio: Trio) -> tuple[Node, list[Node]]:
    until(lambda: the_leader(trio.nodes))
    leader = the_leader(trio.nodes)
    assert leader
    return leader, [node for node in trio.nodes if node is not leader]


def assert_sound(trio: Trio, load: Load) -> None:
    """The history agrees with the rows, which are the same on every node, and the servers saw nothing unforeseen."""
    statement = "SELECT * FROM bookings ORDER BY id"
    rows = trio.nodes[0].query(statement)
    assert [call for call in load.history if not is_foreseen(call)] == []
    assert violations(load.history, rows, resent=True) == []
    assert len(rows) >= CLIENTS / 2
    until(lambda: all(node.query(statement, "none") == rows for node in trio.nodes))
    for server in trio.servers:
        assert "Traceback" not in server.log.read_text()
