"""Three nodes, two booking servers and a load on them, while nodes are killed, hang and come back.

Nothing acknowledged is lost, no slot is held twice, nothing but 503 is seen in between, answers resume within ten
seconds of a new leader, and a node that was away ends with the same rows. Where there is no rqlited, all are skipped.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bookings.databases import kind_of
from tests.cluster import ClusterServer, Node, cluster, free_ports, rqlited
from tests.conftest import SOON, assert_problem, until
from tests.test_readme import ON_A_CLUSTER

# From a new leader to answers for everybody.
RESUME_SECONDS = 10.0
CLIENTS = 8

cannot_hang = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped here")


class Event(NamedTuple):
    """One answer: to which client, when it was asked for and when it came."""

    client: int
    tenant: str
    start: str
    key: str
    began: float
    ended: float
    status: int
    body: Any


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
    start_nodes, run = ON_A_CLUSTER
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
    """Clients that book slots, each slot wanted by one client of each server, and insist until they know."""

    def __init__(self, servers: list[ClusterServer], tenant: str) -> None:
        self.history: list[Event] = []
        self._stop = threading.Event()
        self._tenant = tenant
        self._threads = [
            threading.Thread(target=self._run, args=(number, servers[number % len(servers)].port))
            for number in range(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def answered_since(self, moment: float, statuses: Sequence[int] = (201, 409)) -> bool:
        """Whether each client has had one of these answers to a request that it sent since then."""
        found = {
            event.client for event in self.history[:] if event.began > moment and event.status in statuses
        }
        return len(found) == CLIENTS

    def _run(self, client: int, port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
        with contextlib.closing(connection):
            for number in range(86400):
                pair = client // 2
                start = f"2026-01-{pair + 1:02}T{number // 3600:02}:{number // 60 % 60:02}:{number % 60:02}Z"
                key = f"{self._tenant}/{client}/{number}"
                while not self._stop.is_set():
                    event = self._ask(connection, client, start, key)
                    self.history.append(event)
                    if event.status != 503:
                        break
                    self._stop.wait(0.05)
                if self._stop.is_set():
                    return

    def _ask(self, connection: http.client.HTTPConnection, client: int, start: str, key: str) -> Event:
        body = {"tenant_id": self._tenant, "start_time_utc": start, "idempotency_key": key}
        began = time.monotonic()
        try:
            connection.request("POST", "/bookings", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, answer = response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            status, answer = 0, repr(error)
        return Event(client, self._tenant, start, key, began, time.monotonic(), status, answer)


def violations(history: list[Event], rows: list[tuple[Any, ...]]) -> list[str]:
    """What must not be, in what the clients were told and what is stored: (id, tenant, start, key, created_at)."""
    found = [
        f"{event} is no answer"
        for event in history
        if event.status not in (200, 201, 409, 503)
        or (event.status == 503 and event.body["type"] != "/problems/database-unavailable")
    ]
    by_slot = Counter(row[1:3] for row in rows)
    found += [f"{slot} is held {count} times" for slot, count in by_slot.items() if count > 1]
    by_key = {row[3]: row for row in rows}
    holder = {row[1:3]: row[3] for row in rows}
    found += [f"{key} was asked for by nobody" for key in set(by_key) - {event.key for event in history}]
    created = Counter(event.key for event in history if event.status == 201)
    found += [f"{key} was created {count} times" for key, count in created.items() if count > 1]
    for event in history:
        if event.status in (200, 201) and by_key.get(event.key) != tuple(event.body.values()):
            found.append(f"{event} is not stored as it was acknowledged: {by_key.get(event.key)}")
        if event.status == 409 and holder.get((event.tenant, event.start)) in (None, event.key):
            found.append(f"{event} was refused a slot that nobody else has")
    return found


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
    leader.hang()
    return [leader]


def hang_follower(leader: Node, followers: list[Node]) -> list[Node]:
    followers[0].hang()
    return [followers[0]]


@pytest.mark.parametrize(
    ("harm", "heal"),
    [
        (kill_leader, Node.start),
        (kill_follower, Node.start),
        pytest.param(hang_leader, Node.go_on, marks=cannot_hang),
        pytest.param(hang_follower, Node.go_on, marks=cannot_hang),
    ],
    ids=["leader killed", "follower killed", "leader hangs", "follower hangs"],
)
def test_one_node_is_lost_and_comes_back(
    trio: Trio, harm: Callable[[Node, list[Node]], list[Node]], heal: Callable[[Node], None]
) -> None:
    leader, followers = roles(trio)
    with contextlib.closing(Load(trio.servers, harm.__name__)) as load:
        until(lambda: load.answered_since(0))
        lost = harm(leader, followers)
        left = [node for node in trio.nodes if node not in lost]
        until(lambda: the_leader(left))
        moment = time.monotonic()
        until(lambda: load.answered_since(moment), RESUME_SECONDS)
        for node in lost:
            heal(node)
        until(lambda: the_leader(trio.nodes))
        moment = time.monotonic()
        until(lambda: load.answered_since(moment), RESUME_SECONDS)
    assert_sound(trio, load)


def test_a_follower_leads_to_the_leader(trio: Trio, tmp_path: Path) -> None:
    leader, (follower, _) = roles(trio)
    with contextlib.closing(ClusterServer(tmp_path, follower)) as server:
        assert server.book("follower").status == 201
        assert server.book("follower").status == 200
        assert leader.query("SELECT count(*) FROM bookings WHERE tenant_id = 'follower'") == [(1,)]


def test_the_majority_is_lost_and_comes_back(trio: Trio) -> None:
    _, followers = roles(trio)
    with contextlib.closing(Load(trio.servers, "majority")) as load:
        until(lambda: load.answered_since(0))
        for node in followers:
            node.kill()
        gone = time.monotonic()
        until(lambda: load.answered_since(gone, [503]))
        assert {event.status for event in load.history[:] if event.began > gone} == {503}
        for node in followers:
            node.start()
        until(lambda: the_leader(trio.nodes))
        moment = time.monotonic()
        until(lambda: load.answered_since(moment), RESUME_SECONDS)
    assert_sound(trio, load)


def test_the_commands_of_the_readme(of_the_readme: str, tmp_path: Path) -> None:
    if not of_the_readme:
        pytest.skip("the commands are for a shell")
    with contextlib.closing(ClusterServer(tmp_path, database=of_the_readme)) as server:
        assert server.first_line.endswith(f", database {of_the_readme}\n")
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
    statement = f"SELECT * FROM bookings WHERE tenant_id = '{load.history[0].tenant}' ORDER BY id"
    rows = trio.nodes[0].query(statement)
    assert violations(load.history, rows) == []
    assert len(rows) >= CLIENTS / 2
    until(lambda: all(node.query(statement, "none") == rows for node in trio.nodes))
    for server in trio.servers:
        assert "Traceback" not in server.log.read_text()
