"""A server as a process on a free port, a client for it, and assertions on its responses."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from bookings.process import ServerProcess
from bookings.server.server import BookingServer, listen
from bookings.stores.creation import create_database
from bookings.stores.sqlite import SQLiteStore

ROOT = Path(__file__).resolve().parent.parent.parent
CANONICAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
# Upper bound in seconds for anything that should happen at once, generous for a busy machine.
SOON = 20.0
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)


@dataclass(frozen=True)
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def location(self) -> str:
        """The target of the booking that a POST /bookings made."""
        return urljoin("/bookings", self.headers["Location"])


class Server(ServerProcess):
    """`run.py` as a process. By default its database and request log are in `base`."""

    def __init__(
        self,
        base: Path,
        *flags: str,
        program: Path = ROOT / "run.py",
        port: int = 0,
        **environment: str,
    ) -> None:
        self.database = base / "bookings.db"
        self.log = base / "server.log"
        command = [sys.executable, str(program), "--quiet", "--database", str(self.database)]
        # A server that prints nothing would block the start forever.
        overdue = threading.Timer(2 * SOON, lambda: self.process.kill())
        overdue.start()
        try:
            with self.log.open("a") as log:
                env = {**os.environ, **environment}
                super().__init__([*command, *flags], port, env=env, stderr=log, cwd=base)
        finally:
            overdue.cancel()
        assert self.url, f"{self.startup_line!r} {self.log.read_text()}"

    def call(self, method: str, target: str, body: Any = None, **headers: str) -> Response:
        """Send one request on a new connection.

        A body that is not bytes is sent as JSON. `X_Tenant_ID=` becomes the header X-Tenant-ID.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            named.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)
        try:
            connection.request(method, target, body, named)
            response = connection.getresponse()
            return Response(response.status, response.headers, response.read())
        finally:
            connection.close()

    def book(
        self,
        tenant: str = "acme",
        start: str = "2026-01-01T10:00:00Z",
        key: str = "k1",
        **headers: str,
    ) -> Response:
        body = {"tenant_id": tenant, "start_time_utc": start, "idempotency_key": key}
        return self.call("POST", "/bookings", body, **headers)

    def cancel(self, booking_id: int, tenant: str = "acme") -> Response:
        return self.call("DELETE", f"/bookings/{booking_id}", X_Tenant_ID=tenant)

    def raw(self, sent: bytes, half_close: bool = False) -> bytes:
        """Send these bytes on a new connection and return everything the server sends back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=SOON) as connection:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return all_from(connection, allow_reset=True)

    def select(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows that a SQL statement reads, bypassing the server."""
        with contextlib.closing(sqlite3.connect(self.database)) as db:
            return db.execute(statement).fetchall()

    def rows(self, table: str = "bookings") -> list[tuple[Any, ...]]:
        """Return (tenant, start, key) of every row, ordered by id."""
        return self.select(
            f"SELECT tenant_id, start_time_utc, idempotency_key FROM {table} ORDER BY id"
        )

    def insert(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Insert bookings (tenant, start, key) with SQL, bypassing the server."""
        with contextlib.closing(sqlite3.connect(self.database)) as db, db:
            columns = "tenant_id, start_time_utc, idempotency_key"
            db.executemany(f"INSERT INTO bookings ({columns}) VALUES (?, ?, ?)", rows)

    def execute(self, *statements: str) -> None:
        """Execute SQL statements in autocommit, bypassing the server."""
        with contextlib.closing(sqlite3.connect(self.database, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait for the process to exit, and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(SOON)

    def close(self) -> None:
        self.kill()


class InProcessServer(Server):
    """The server in a thread of this process, on a real socket, so that tests can patch it."""

    def __init__(self, base: Path) -> None:
        self.database = base / "bookings.db"
        self.log = base / "server.log"
        self.log.touch()
        create_database(str(self.database))
        self._store = SQLiteStore(str(self.database))
        self._server = BookingServer(listen("127.0.0.1", 0), self._store)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        drained = self._server.drain()
        self._store.close()
        assert drained


def all_from(connection: socket.socket, *, drip: bytes = b"", allow_reset: bool = False) -> bytes:
    """Return everything received until the server closes the connection.

    `drip` is sent again whenever nothing arrives for 50 ms. A connection reset raises unless
    `allow_reset` is set, which makes it count as a close.
    """
    received, deadline = b"", time.monotonic() + SOON
    connection.settimeout(0.05 if drip else SOON)
    while time.monotonic() < deadline:
        try:
            more = connection.recv(65536)
        except socket.timeout:
            connection.sendall(drip)
            continue
        except ConnectionResetError:
            if allow_reset:
                return received
            raise
        if not more:
            return received
        received += more
    raise AssertionError(f"the server did not close the connection; it sent {received!r}")


def until(condition: Callable[[], object], seconds: float = SOON) -> None:
    """Wait until the condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not hold within {seconds} s"
        time.sleep(0.005)


def patched(folder: Path, patch: str) -> Path:
    """Write a program that executes `patch` and then runs run.py.

    The patch imports what it changes, such as `from bookings.stores import sqlite`.
    """
    program = folder / "patched.py"
    path = f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    run = f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
    program.write_text(f"{path}{patch}\n{run}")
    return program


def copy_project(folder: Path) -> Path:
    """Copy the program without tests and databases, so that a test can break or relocate it."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "bookings", folder / "bookings", ignore=ignore)
    for name in ("run.py", "schema.sql"):
        shutil.copy(ROOT / name, folder)
    return folder


def at_once(count: int, work: Any) -> list[Any]:
    """Call `work(0)` to `work(count - 1)` in threads that start together; return the results."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait(SOON)
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def assert_problem(response: Response, status: int, problem_type: str, *field_names: str) -> None:
    """Assert a complete RFC 9457 problem of this type, with exactly these fields in `errors`."""
    assert response.status == status, response.body
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json
    assert set(problem) == {"type", "title", "status", "detail", "errors"}
    assert problem["type"] == f"/problems/{problem_type}"
    assert problem["status"] == status
    assert problem["title"] and problem["detail"]
    assert [error["field"] for error in problem["errors"]] == list(field_names)
    assert all(set(error) == {"field", "detail"} and error["detail"] for error in problem["errors"])
    for word in (b"Traceback", b"sqlite", b"SELECT", b"INSERT", b"UNIQUE"):
        assert word not in response.body
