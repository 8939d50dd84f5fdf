"""What the tests share: a server as a process on a free port, a client, and the rows as SQLite has them."""

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
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
CANONICAL = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
# For whatever should happen at once: long enough for a busy machine, and a bound all the same.
SOON = 20.0
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

# Whoever runs the tests may have a server of their own, or a proxy, which are not meant here.
for name in (
    *("PORT", "HOST", "BOOKINGS_DB", "WORKERS", "ALLOWED_HOSTS"),
    *("PYTEST_ADDOPTS", "http_proxy", "all_proxy", "ALL_PROXY"),
):
    os.environ.pop(name, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutate-seconds",
        type=float,
        default=5,
        help="how long to try mutants of the corpus (default: %(default)s)",
    )
    parser.addoption(
        "--mutate-seed", type=int, default=1, help="which mutants, in which order (default: %(default)s)"
    )


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """`run.py` as a process; `base` is a folder for its database and log unless flags say otherwise."""

    def __init__(self, base: Path, *flags: str, program: Path = ROOT / "run.py", **environment: str) -> None:
        self.database = base / "bookings.db"
        self.log = base / "server.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(program),
                    "--quiet",
                    "--port",
                    "0",
                    "--database",
                    str(self.database),
                    *flags,
                ],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=base,
                start_new_session=True,
            )
        assert self.process.stdout
        # One that says nothing would keep all tests waiting.
        overdue = threading.Timer(2 * SOON, self.process.kill)
        overdue.start()
        try:
            self.first_line = self.process.stdout.readline()
        except BaseException:  # Ctrl+C, which does not reach it, and nobody would close it
            self.process.kill()
            raise
        finally:
            overdue.cancel()
        found = re.search(r"http://.*:([0-9]+), database", self.first_line)
        assert found, f"{self.first_line!r} {self.log.read_text()}"
        self.port = int(found[1])

    def call(self, method: str, target: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own. A body that is not bytes is sent as JSON; `X_Tenant_ID=` makes
        the header X-Tenant-ID."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            named.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SOON)
        try:
            connection.request(method, target, body, named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def book(
        self, tenant: str = "acme", start: str = "2026-01-01T10:00:00Z", key: str = "k1", **headers: str
    ) -> Answer:
        body = {"tenant_id": tenant, "start_time_utc": start, "idempotency_key": key}
        return self.call("POST", "/bookings", body, **headers)

    def raw(self, sent: bytes, half_close: bool = False) -> bytes:
        """All that comes back for these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=SOON) as connection:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return all_from(connection)

    def rows(self) -> list[tuple[Any, ...]]:
        """(tenant, start, key) of every row, by id."""
        with contextlib.closing(sqlite3.connect(self.database)) as db:
            return db.execute(
                "SELECT tenant_id, start_time_utc, idempotency_key FROM bookings ORDER BY id"
            ).fetchall()

    def insert(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """Bookings (tenant, start, key) written by hand."""
        with contextlib.closing(sqlite3.connect(self.database)) as db, db:
            db.executemany(
                "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES (?, ?, ?)", rows
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SOON)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            # With its workers, which end by themselves, but not at once.
            (os.killpg if hasattr(os, "killpg") else os.kill)(self.process.pid, KILL)
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own, on an empty database."""
    with contextlib.closing(Server(tmp_path)) as started:
        yield started


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of a module share; each uses tenants and keys of its own."""
    with contextlib.closing(Server(tmp_path_factory.mktemp("shared"))) as started:
        yield started


def until(condition: Callable[[], object], seconds: float = SOON) -> None:
    """Wait until the condition holds, which it must within the bound."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def all_from(connection: socket.socket) -> bytes:
    """All that comes until the server closes, or says nothing more for a while."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while True:
            more = connection.recv(65536)
            if not more:
                break
            received += more
    return received


def patched(folder: Path, patch: str) -> Path:
    """A program that is run.py, save that these lines run before it; `store` is in their reach."""
    program = folder / "patched.py"
    start = f"import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom bookings import store\n{patch}\n"
    program.write_text(f"{start}runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n")
    return program


def copy_project(folder: Path) -> Path:
    """What a user has, without tests and databases: for what runs beside another checkout, or broken."""
    shutil.copytree(ROOT / "bookings", folder / "bookings", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("run.py", "schema.sql"):
        shutil.copy(ROOT / name, folder)
    return folder


def at_once(count: int, work: Any) -> list[Any]:
    """`work(0)` ... `work(count - 1)` in threads that all start at the same moment; their results in order."""
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


def assert_problem(answer: Answer, status: int, kind: str, *field_names: str) -> None:
    """The answer is this problem in the form of RFC 9457, with these fields in its errors, and nothing else."""
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = answer.json
    assert set(problem) == {"type", "title", "status", "detail", "errors"}
    assert problem["type"] == f"/problems/{kind}"
    assert problem["status"] == status
    assert problem["title"] and problem["detail"]
    assert [error["field"] for error in problem["errors"]] == list(field_names)
    assert all(set(error) == {"field", "detail"} and error["detail"] for error in problem["errors"])
    for word in (b"Traceback", b"sqlite", b"SELECT", b"INSERT", b"UNIQUE"):
        assert word not in answer.body
