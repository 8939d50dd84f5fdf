"""`python -m tests.bench` with the shortest measurements: all loads, and a wrong response fails."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from bookings.stores.model import Outcome
from bookings.stores.rqlite import RqliteStore
from tests import bench
from tests.helpers.clusters import HOW_TO_INSTALL, ROWS, Link, cluster, url
from tests.helpers.floors import bare_cluster, make_database, work_on_store
from tests.helpers.load import insert_request, new_booking
from tests.helpers.servers import ROOT
from tests.helpers.slow_disk import slow_disk
from tests.helpers.tools import changed_project, temporary_in

# The helpers that the bench needs without a cluster.
HELPERS = ("__init__", "floors", "load", "slow_disk")
TINY = ("--seconds=0.1", "--rounds=1", "--rows=1000")


def _run_bench(
    code: Path, home: Path, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    changes = {**temporary_in(home), "PYTHONIOENCODING": "utf-8", **environment}
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *TINY, *flags],
        cwd=code,
        env={**os.environ, **changes},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def _table(printed: str, first: str) -> dict[str, list[float]]:
    """Return the numbers of each row of the table whose heading starts with `first`."""
    lines = printed[printed.index(f"\n{first}") + 1 :].split("\n\n")[0].splitlines()
    rows = [re.split(r" {2,}", line) for line in lines[1:]]
    assert {len(row) for row in rows} == {len(re.split(r" {2,}", lines[0]))}
    return {name: [float(cell.replace(",", "")) for cell in cells] for name, *cells in rows}


def _assert_loads(printed: str, names: list[str]) -> dict[str, list[float]]:
    table = _table(printed, "load ")
    assert list(table) == names
    for name, (connections, rate, p50, p99, _, sqlite, _, http, _) in table.items():
        assert connections == int(re.sub("[a-z]", "", name) or 16)
        assert rate > 0 and sqlite > 0 and http > 0 and 0 < p50 <= p99
    # The server and the bare store both wait 4 ms for the disk.
    assert table["slowdisk1"][2] > 4 and table["slowdisk1"][5] < 250
    growth = _table(printed, "16 connections ")
    assert list(growth) == ["bookings/s", "pages of 20/s"]
    assert all(number > 0 for numbers in growth.values() for number in numbers)
    assert re.search(r"^First response after python run.py: [0-9.]+ s", printed, re.MULTILINE)
    return table


@pytest.mark.skipif(
    not (sys.platform == "linux" and shutil.which("gcc") and shutil.which("ps")),
    reason="needs Linux, gcc and ps",
)
def test_bench_measures_all_loads(tmp_path: Path) -> None:
    ended = _run_bench(ROOT, tmp_path, "--connections=1", "--requests=2000")
    assert ended.returncode == 0, ended.stderr
    nodes = bench.has_nodes()
    table = _assert_loads(ended.stdout, ["post1", "get1", "slowdisk1", *["cluster1"] * nodes])
    assert not any(row[4] for row in table.values())
    assert (HOW_TO_INSTALL in ended.stdout) != nodes
    assert "4 ms more in every fsync" in ended.stdout
    count, memory = re.findall(r"workers over ([0-9,]+) requests: (.*)", ended.stdout)[0]
    assert int(count.replace(",", "")) >= 2000
    assert all(float(each) > 5 for each in re.split(" to |, ", memory))
    assert "round 1 of 1, post1: the bare store" in ended.stderr
    assert "round 1 of" not in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compiler", [True, False])
def test_slow_disk_delays_syncs_by_4_ms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: bool
) -> None:
    if not compiler:
        monkeypatch.setenv("PATH", str(tmp_path))
    changes, how = slow_disk(str(tmp_path))
    assert ("preloaded" in how) == ("LD_PRELOAD" in changes)
    assert compiler or "PYTHONPATH" in changes
    # The sync of a pipe fails within microseconds, however slow the real disk is.
    timed = """import os, time
pipe, _ = os.pipe()
for sync in (os.fsync, getattr(os, "fdatasync", os.fsync)):
    began = time.perf_counter()
    try:
        sync(pipe)
    except OSError:
        print(time.perf_counter() - began)
"""
    ended = subprocess.run(
        [sys.executable, "-c", timed],
        env={**os.environ, **changes},
        stdout=subprocess.PIPE,
        check=True,
    )
    took = [float(line) for line in ended.stdout.split()]
    assert len(took) == 2 and min(took) >= 0.004


def test_bare_store_works_or_fails(tmp_path: Path) -> None:
    database = str(tmp_path / "bookings.db")
    make_database(database, 30)
    assert work_on_store(database, "post", 0.05, 2, range(2)) > 0
    with contextlib.closing(sqlite3.connect(database)) as db:
        rows = db.execute("SELECT count(*), count(DISTINCT tenant_id) FROM bookings").fetchone()
        assert rows[0] >= 52  # 20 of one tenant, 30 of others, and new ones of both threads.
        assert rows[1] >= 31
        # make_database disables the CHECKs; its rows satisfy them.
        db.execute("CREATE TABLE copy AS SELECT * FROM bookings")
        db.execute("DELETE FROM bookings")
        db.execute("INSERT INTO bookings SELECT * FROM copy")
        db.execute("DELETE FROM bookings WHERE tenant_id = 'small-0'")
        db.commit()
    with pytest.raises(RuntimeError):  # The slots are taken.
        work_on_store(database, "post", 20.0, 1, range(1))
    with pytest.raises(RuntimeError):  # The tenant has no bookings.
        work_on_store(database, "get", 20.0, 1, range(1))


def test_bare_cluster_works_or_fails(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        (node,) = stack.enter_context(cluster(tmp_path))
        assert bare_cluster(url(node), "post", 2, 0.1, 1) > 0
        rows = node.query(ROWS)
        assert len(rows) >= 2
        assert sorted(rows) == sorted(map(new_booking, range(len(rows))))
        with pytest.raises(RuntimeError):  # The slots are taken.
            bare_cluster(url(node), "post", 2, 0.1, 1)
        # The bench sends the request that the program sends.
        link = stack.enter_context(contextlib.closing(Link(node, lambda _: False)))
        store = stack.enter_context(contextlib.closing(RqliteStore(f"http://{link.address}")))
        assert store.book(new_booking(1_000_000))[0] is Outcome.CREATED
        head, _, body = insert_request(1_000_000).decode().partition("\r\n\r\n")
        (sent,), ((received,),) = json.loads(body), link.bodies
        assert (head.split()[1], sent[0]) == (link.targets[0], received[0])
        sent_values, received_values = json.loads(sent[1]), json.loads(received[1])
        assert list(sent_values) == list(received_values)
        assert {**sent_values, "created_at": received_values["created_at"]} == received_values


def test_bench_counts_wrong_responses_and_needs_only_python(tmp_path: Path) -> None:
    old = "_json(booking._asdict(), 201,"
    new = "_json(booking._asdict(), 202,"
    code, home = changed_project(tmp_path / "code", "bookings/api.py", old, new), tmp_path / "home"
    home.mkdir()
    (code / "tests" / "helpers").mkdir(parents=True)
    for name in ("__init__", "bench", *(f"helpers/{n}" for n in HELPERS)):
        shutil.copy(ROOT / "tests" / f"{name}.py", code / "tests" / f"{name}.py")
    flags = ("--loads", "slowdisk", "cluster", "--connections", "1", "16")
    ended = _run_bench(code, home, *flags, PATH=str(home))
    assert ended.returncode == 1, ended.stderr
    table = _assert_loads(ended.stdout, ["slowdisk1", "slowdisk"])
    bad = [row[4] for row in table.values()]
    assert all(bad)
    assert int(ended.stdout.rpartition(" ")[2]) > sum(bad)  # With those of the large table.
    assert "4 ms more in os.fsync" in ended.stdout
    skipped = "Skipped the load on a cluster: No module named 'tests.helpers.clusters'\n"
    assert ended.stdout.count(skipped) == 1
    assert ended.stdout.count(" requests: unknown\n") == 1
    assert list(home.iterdir()) == []
