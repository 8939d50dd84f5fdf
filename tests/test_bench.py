"""`python -m tests.bench`, as short as it can be: every load beside its floors, and a wrong answer does not pass."""

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

from bookings.rqlite import RqliteStore
from bookings.store import Outcome
from tests import bench
from tests.helpers.clusters import HOW_TO_INSTALL, ROWS, Link, cluster, url
from tests.helpers.servers import ROOT, copy_project

TINY = ("--seconds=0.1", "--rounds=1", "--rows=1000")


def _bench(code: Path, home: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.bench", *TINY, *flags],
        cwd=code,
        env={
            **os.environ,
            "TMPDIR": str(home),
            "TEMP": str(home),
            "PYTHONIOENCODING": "utf-8",
            **environment,
        },
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def _table(printed: str, first: str) -> dict[str, list[float]]:
    """The figures of each row below the heading that starts so."""
    lines = printed[printed.index(f"\n{first}") + 1 :].split("\n\n")[0].splitlines()
    rows = [re.split(r" {2,}", line) for line in lines[1:]]
    assert {len(row) for row in rows} == {len(re.split(r" {2,}", lines[0]))}
    return {name: [float(figure.replace(",", "")) for figure in figures] for name, *figures in rows}


def _assert_loads(printed: str, names: list[str]) -> dict[str, list[float]]:
    table = _table(printed, "load ")
    assert list(table) == names
    for name, (connections, rate, p50, p99, _, sqlite, _, http, _) in table.items():
        assert connections == int(re.sub("[a-z]", "", name) or 16)
        assert rate > 0 and sqlite > 0 and http > 0 and 0 < p50 <= p99
    # The program and its floor both wait 4 ms for the disk.
    assert table["slowdisk1"][2] > 4 and table["slowdisk1"][5] < 250
    growth = _table(printed, "16 connections ")
    assert list(growth) == ["bookings/s", "pages of 20/s"]
    assert all(figure > 0 for figures in growth.values() for figure in figures)
    assert re.search(r"^First answer after python run.py: [0-9.]+ s", printed, re.MULTILINE)
    return table


@pytest.mark.skipif(
    not (sys.platform == "linux" and shutil.which("gcc") and shutil.which("ps")), reason="needs gcc and ps"
)
def test_every_load_beside_its_floors(tmp_path: Path) -> None:
    ended = _bench(ROOT, tmp_path, "--connections=1", "--requests=2000")
    assert ended.returncode == 0, ended.stderr
    nodes = bench.has_nodes()
    table = _assert_loads(ended.stdout, ["post1", "get1", "slowdisk1", *["cluster1"] * nodes])
    assert not any(row[4] for row in table.values())
    assert (HOW_TO_INSTALL in ended.stdout) != nodes
    assert "4 ms more in every fsync" in ended.stdout
    answers, memory = re.findall(r"over ([0-9,]+) requests.* its workers: (.*)", ended.stdout)[0]
    assert int(answers.replace(",", "")) >= 2000
    assert all(float(each) > 5 for each in re.split(" to |, ", memory))
    # Progress stays out of what is printed, and nothing is left behind.
    assert "round 1 of 1, post1: the bare store" in ended.stderr and "round 1 of" not in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("compiler", [True, False])
def test_a_sync_on_the_slow_disk_takes_4_ms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: bool
) -> None:
    if not compiler:
        monkeypatch.setenv("PATH", str(tmp_path))
    changes, how = bench.slow_disk(str(tmp_path))
    assert ("preloaded" in how) == ("LD_PRELOAD" in changes)
    assert compiler or "PYTHONPATH" in changes
    # A pipe cannot be synced, which is found out within microseconds, so that no disk is as slow by itself.
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
        [sys.executable, "-c", timed], env={**os.environ, **changes}, stdout=subprocess.PIPE, check=True
    )
    took = [float(line) for line in ended.stdout.split()]
    assert len(took) == 2 and min(took) >= 0.004


def test_the_bare_loop_does_its_work_or_fails(tmp_path: Path) -> None:
    database = str(tmp_path / "bookings.db")
    bench.make_database(database, 30)
    assert bench.work_on_store(database, "post", 0.05, 2, range(2)) > 0
    with contextlib.closing(sqlite3.connect(database)) as db:
        rows = db.execute("SELECT count(*), count(DISTINCT tenant_id) FROM bookings").fetchone()
        assert rows[0] >= 52  # 20 of one tenant, 30 of others, and new ones by both threads
        assert rows[1] >= 31
        # What was made without the checks keeps them.
        db.execute("CREATE TABLE copy AS SELECT * FROM bookings")
        db.execute("DELETE FROM bookings")
        db.execute("INSERT INTO bookings SELECT * FROM copy")
        db.execute("DELETE FROM bookings WHERE tenant_id = 'small-0'")
        db.commit()
    with pytest.raises(RuntimeError):  # the slots are taken
        bench.work_on_store(database, "post", 20.0, 1, range(1))
    with pytest.raises(RuntimeError):  # the tenant has no list
        bench.work_on_store(database, "get", 20.0, 1, range(1))


def test_the_bare_cluster_does_its_work_or_fails(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        (node,) = stack.enter_context(cluster(tmp_path))
        assert bench.bare_cluster(url(node), "post", 2, 0.1, 1) > 0
        rows = node.query(ROWS)
        assert len(rows) >= 2
        assert sorted(rows) == sorted(map(bench.new_booking, range(len(rows))))
        with pytest.raises(RuntimeError):  # the slots are taken
            bench.bare_cluster(url(node), "post", 2, 0.1, 1)
        # It is asked for the very thing that the program asks for.
        link = stack.enter_context(contextlib.closing(Link(node, lambda _: False)))
        store = stack.enter_context(contextlib.closing(RqliteStore(f"http://{link.address}")))
        assert store.book(*bench.new_booking(1_000_000))[0] is Outcome.CREATED
        head, _, body = bench.insert(1_000_000).decode().partition("\r\n\r\n")
        ((bare, bare_values),), (((statement, values),),) = json.loads(body), link.bodies
        assert (head.split()[1], bare, len(json.loads(bare_values))) == (link.targets[0], statement, 4)
        assert json.loads(bare_values)[:3] == json.loads(values)[:3]


def test_a_wrong_answer_is_counted_with_nothing_but_python(tmp_path: Path) -> None:
    code, home = copy_project(tmp_path / "code"), tmp_path / "home"
    home.mkdir()
    (code / "tests").mkdir()
    for name in ("__init__.py", "bench.py"):
        shutil.copy(ROOT / "tests" / name, code / "tests")
    api = code / "bookings" / "api.py"
    text = api.read_text(encoding="utf-8")
    assert text.count("return _json(201,") == 1
    api.write_text(text.replace("return _json(201,", "return _json(202,"), encoding="utf-8")
    ended = _bench(code, home, "--loads", "slowdisk", "cluster", "--connections", "1", "16", PATH=str(home))
    assert ended.returncode == 1, ended.stderr
    table = _assert_loads(ended.stdout, ["slowdisk1", "slowdisk"])
    bad = [row[4] for row in table.values()]
    assert all(bad)
    assert int(ended.stdout.rpartition(" ")[2]) > sum(bad)  # those of the growth too
    assert "4 ms more in os.fsync" in ended.stdout
    assert ended.stdout.count("Left out, the load on a cluster: No module named 'tests.helpers'\n") == 1
    assert ended.stdout.count("its workers: unknown\n") == 1
    assert list(home.iterdir()) == []
