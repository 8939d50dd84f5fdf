"""`bookings.prove`: passes on this program, catches one that breaks a promise, leaves nothing."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import signal
import socket
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.clusters import ClusterServer, url
from tests.helpers.servers import SOON, Server
from tests.helpers.tools import (
    SIGNAL_SECONDS,
    assert_nothing_left,
    assert_one_line,
    changed_project,
    open_read_only,
    posix_only,
    processes_naming,
    requires_ps,
    run_tool,
    start_tool,
    temporary_in,
    wait_for,
)

RACE, ONE_REQUEST, SPELLINGS, REUSED_KEY, CANCELLATION, BY_HAND, KILLS = range(7)


def _failed_parts(output: str, count: int) -> set[int]:
    """Return the parts that failed, after asserting that each printed a line with its verdict."""
    line = re.compile(r"\[(\d+)/(\d+)\] +[0-9.]+ s  ([^:]+): (.+): (?:ok|FAIL, expected (.+))")
    printed = [line.fullmatch(text) for text in output.splitlines() if text.startswith("[")]
    parts = [found.groups() for found in printed if found]
    numbers = [(str(number), str(count)) for number in range(1, count + 1)]
    assert [(number, total) for number, total, *_ in parts] == numbers, output
    failed = {int(number) - 1 for number, _, _, _, expected in parts if expected}
    assert all(happened != expected for _, _, _, happened, expected in parts)
    assert output.splitlines()[-1].startswith("FAILED" if failed else "PROVED")
    return failed


def test_prove_passes_on_servers_of_its_own(tmp_path: Path, temporary_folder: Path) -> None:
    # prove must ignore the settings of the user's own server.
    mine = tmp_path / "mine.db"
    settings = {"BOOKINGS_DB": str(mine), "PORT": "1", "HOST": "192.0.2.1"}
    ended = run_tool("prove", **temporary_in(temporary_folder), **settings)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert _failed_parts(ended.stdout, 7) == set()
    assert not mine.exists()
    assert_nothing_left(temporary_folder)


def test_prove_on_running_server_books_for_new_tenants_only(
    server: Server, temporary_folder: Path
) -> None:
    for tenant in ("acme", "prove", "prove-0"):
        assert server.book(tenant, "2026-01-01T00:00:00Z", f"key of {tenant}").status == 201
    before = server.rows()
    url = f"--url=http://127.0.0.1:{server.port}/"
    ended = run_tool("prove", url, **temporary_in(temporary_folder))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert _failed_parts(ended.stdout, 5) == set()
    skipped = [line for line in ended.stdout.splitlines() if line.startswith("Not tested")]
    assert len(skipped) == 1 and "by hand" in skipped[0] and "kill" in skipped[0]
    rows = server.rows()
    assert rows[: len(before)] == before
    # The race booked 25 slots, and each of the other parts one.
    counted = Counter(tenant for tenant, _, _ in rows[len(before) :])
    assert sorted(counted.values()) == [1, 1, 1, 1, 25]
    assert len(server.rows("cancellations")) == 1
    assert not set(counted) & {"acme", "prove", "prove-0"}
    assert server.process.poll() is None
    assert_nothing_left(temporary_folder)


@pytest.mark.on_rqlite
def test_prove_passes_on_cluster(server: ClusterServer) -> None:
    """It kills its own servers; the nodes keep running."""
    assert server.book().status == 201
    before = server.rows()
    ended = run_tool("prove", f"--database={url(*server.nodes)}")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert _failed_parts(ended.stdout, 6) == set()
    assert ended.stdout.splitlines()[-1] == "PROVED: no slot was booked twice."
    rows = server.rows()
    assert rows[:1] == before
    assert len(rows) >= 1 + 25 + 150
    assert all(tenant.startswith("prove-") for tenant, _, _ in rows[1:])


COMMIT = '            db.execute("COMMIT")\n'
CREATED = "    return Outcome.CREATED, Booking("


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        (
            "schema.sql",
            "    UNIQUE (tenant_id, start_time_utc),\n",
            "",
            {RACE, SPELLINGS, CANCELLATION, BY_HAND},
        ),
        (
            "bookings/stores/creation.py",
            COMMIT,
            f'            db.execute("DELETE FROM bookings")\n{COMMIT}',
            {KILLS},
        ),
    ],
    ids=["no UNIQUE", "forgets bookings when it restarts"],
)
def test_prove_catches_broken_program(
    tmp_path: Path, temporary_folder: Path, name: str, old: str, new: str, expected: set[int]
) -> None:
    code = changed_project(tmp_path / "code", name, old, new)
    ended = run_tool("prove", code=code, **temporary_in(temporary_folder))
    assert (ended.returncode, ended.stderr) == (1, "")
    assert _failed_parts(ended.stdout, 7) == expected, ended.stdout
    assert_nothing_left(temporary_folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        (
            "schema.sql",
            "idempotency_key = NEW.idempotency_key",
            "'' = NEW.idempotency_key",
            {CANCELLATION},
        ),
        ("schema.sql", "PRIMARY KEY AUTOINCREMENT\n", "PRIMARY KEY\n", {CANCELLATION}),
        (
            "bookings/stores/decisions.py",
            '    execute("COMMIT", {})\n',
            '    execute("ROLLBACK", {})\n',
            {CANCELLATION},
        ),
        (
            "bookings/stores/model.py",
            "    return found is not None\n",
            "    return False\n",
            {CANCELLATION},
        ),
        (
            "bookings/api.py",
            "_json(booking._asdict(), 200, [(",
            "_json(booking._asdict(), 409, [(",
            {RACE, ONE_REQUEST},
        ),
        (
            "bookings/stores/decisions.py",
            CREATED,
            f'    execute("DELETE FROM bookings", {{}})\n{CREATED}',
            {RACE, ONE_REQUEST, SPELLINGS, REUSED_KEY, CANCELLATION},
        ),
        (
            "bookings/stores/model.py",
            "Outcome.KEY_REUSED, None",
            "Outcome.REPLAYED, found",
            {REUSED_KEY},
        ),
        (
            "bookings/stores/sql.py",
            '_FIND.format("id = :id AND tenant_id = :tenant_id")',
            "_FIND.format(\"id = :id AND :tenant_id != ''\")",
            {REUSED_KEY},
        ),
        (
            "bookings/stores/decisions.py",
            '    row = {**new._asdict(), "created_at": model.current_time()}\n',
            "    return Outcome.SLOT_TAKEN, None\n",
            {RACE, ONE_REQUEST, SPELLINGS, REUSED_KEY, CANCELLATION},
        ),
    ],
    ids=[
        "brings a cancelled booking back",
        "brings an id back",
        "cancels nothing",
        "404 to a second cancellation",
        "409 to a replay",
        "201 without a row",
        "another's booking to a used key",
        "another's booking by its id",
        "409 to everything",
    ],
)
def test_prove_catches_broken_server(
    tmp_path: Path, name: str, old: str, new: str, expected: set[int]
) -> None:
    code = changed_project(tmp_path / "code", name, old, new)
    started = Server(tmp_path, program=code / "run.py", PYTHONPATH=str(code))
    with contextlib.closing(started) as server:
        ended = run_tool("prove", f"--url=http://127.0.0.1:{server.port}")
        rows = server.rows()
    assert (ended.returncode, ended.stderr) == (1, "")
    assert _failed_parts(ended.stdout, 5) == expected, ended.stdout
    # If all five parts fail, nothing is inserted. Otherwise each slot is still booked once.
    assert (rows == []) == (len(expected) == 5)
    assert len({(tenant, start) for tenant, start, _ in rows}) == len(rows)


def _free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}",
        "127.0.0.1:{port}",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:{port}0",
        "nonsense",
    ],
)
def test_prove_without_server_at_url_fails_with_one_line(temporary_folder: Path, url: str) -> None:
    url = url.format(port=_free_port())
    ended = run_tool("prove", "--url", url, **temporary_in(temporary_folder))
    assert_one_line(ended, "prove")
    assert url in ended.stderr
    assert_nothing_left(temporary_folder)


@pytest.mark.parametrize(
    "flag",
    [
        "--url=http://localhost:port",
        "--url=http://[::1",
        "--url=ftp://localhost",
        "--url=http://",
        "--url=http:// x",
        # As from a variable that is not set.
        "--url=",
        "--database=",
    ],
)
def test_prove_rejects_bad_url_and_empty_values(temporary_folder: Path, flag: str) -> None:
    ended = run_tool("prove", flag, **temporary_in(temporary_folder))
    assert ended.returncode in (1, 2) and ended.stdout == ""
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "bookings.prove: " in ended.stderr.splitlines()[-1]
    assert_nothing_left(temporary_folder)


def test_prove_rejects_server_of_another_program() -> None:
    handler = http.server.BaseHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            ended = run_tool("prove", "--url", f"http://127.0.0.1:{other.server_address[1]}")
        finally:
            other.shutdown()
            thread.join()
    assert_one_line(ended, "prove")


def _has_reached(start: str, folder: Path) -> bool:
    """Return whether a slot of this GLOB pattern is booked; for "", whether servers start."""
    if not start:
        return bool(processes_naming(folder))
    select = "SELECT 1 FROM bookings WHERE start_time_utc GLOB ?"
    for database in folder.glob("*/bookings.db"):
        with contextlib.suppress(sqlite3.Error), contextlib.closing(open_read_only(database)) as db:
            return bool(db.execute(select, (start,)).fetchone())
    return False


NOW = "now\n"
# Each start of a server, or of a thread, prints a line and then takes its time.
SLOW_PROCESSES = f"""import threading, time
class SlowPopen(subprocess.Popen):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        print({NOW!r}, end="", flush=True)
        time.sleep(0.2)
subprocess.Popen = SlowPopen
"""
SLOW_THREADS = (
    f"pool.map(wait_and_send, cycle(urls), (print({NOW!r}, end='', flush=True) or time.sleep(0.2) "
    "or request for request in requests))"
)


@posix_only
@requires_ps
@pytest.mark.parametrize(
    ("name", "old", "new", "start"),
    [
        ("run.py", "import sys\n", "import sys\nimport time\ntime.sleep(60)\n", ""),
        ("bookings/process.py", "import threading\n", SLOW_PROCESSES, None),
        ("run.py", "import sys\n", "import sys\n", "*"),
        (
            "bookings/prove_parts.py",
            "pool.map(wait_and_send, cycle(urls), requests)",
            SLOW_THREADS,
            None,
        ),
        ("run.py", "import sys\n", "import sys\n", "*T07:*"),
    ],
    ids=["starting", "starting processes", "racing", "starting threads", "killing"],
)
def test_prove_interrupted_by_ctrl_c_leaves_nothing(
    tmp_path: Path, temporary_folder: Path, name: str, old: str, new: str, start: str | None
) -> None:
    code = changed_project(tmp_path / "code", name, old, new)
    # A terminal sends the signal to the process group; the servers of prove are in others.
    with start_tool(
        "prove", code=code, start_new_session=True, **temporary_in(temporary_folder)
    ) as process:
        try:
            if start is None:
                # At the second start, the first thread already waits for all.
                assert all(NOW in iter(process.stdout.readline, "") for _ in range(2))
            else:
                wait_for(lambda: _has_reached(start, temporary_folder), "the part to interrupt")
            os.killpg(process.pid, signal.SIGINT)
            process.wait(SIGNAL_SECONDS)
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # Processes that are left hold the output open; reading it would wait for them.
            left = processes_naming(temporary_folder)
            for number in left:
                os.kill(number, signal.SIGKILL)
        out, err = process.communicate(timeout=SOON)
    assert left == {}
    assert list(temporary_folder.iterdir()) == []
    assert (process.returncode, err) == (130, "")
    assert "PROVED" not in out
