"""How many workers are started by default, and which CPU each one uses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bookings import cpus
from tests.helpers.processes import requires_fork, serving, workers_of
from tests.helpers.servers import ROOT, Server, until

requires_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot bind processes to CPUs"
)
PRINT_DEFAULT = "from bookings import cpus; print(cpus.default_workers())"


def _cpus_of(workers: set[int]) -> list[set[int]]:
    """Return the CPUs of each worker, in the order in which the workers were started."""
    return [os.sched_getaffinity(worker) for worker in sorted(workers)]


def _replace(server: Server, killed: int, cpus_of_killed: set[int]) -> None:
    """Kill a worker, and wait until the one that takes its place has the same CPUs."""
    others = workers_of(server)
    os.kill(killed, signal.SIGKILL)
    until(lambda: len(workers_of(server) - others) == 1)
    (replacement,) = workers_of(server) - others
    until(lambda: os.sched_getaffinity(replacement) == cpus_of_killed)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "5000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 8),
        ({"cpu.max": "max 100000", "../cpu.max": "300000 100000"}, 3),
        ({"cpu.max": "200000 100000", "../cpu.max": "300000 100000"}, 2),
        ({"cpu.max": "unreadable"}, 8),
    ],
    ids=str,
)
def test_quota_of_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    group = tmp_path / "system.slice" / "bookings.service"
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name).write_text(f"{text}\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/system.slice/bookings.service\n")
    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cpus, "_OWN_GROUPS", own)
    monkeypatch.setattr(cpus, "_usable_cpus", lambda: 64)
    assert cpus.default_workers() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("100000", 1), ("250000", 3)])
@pytest.mark.parametrize("path", ["/", "/docker/a1b2"], ids=["seen", "unseen"])
def test_quota_of_control_group_version_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int, path: str
) -> None:
    """A container may see the path that its group has on the host, which it cannot open."""
    controllers = tmp_path / "cpu,cpuacct"
    controllers.mkdir()
    (controllers / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (controllers / "cpu.cfs_period_us").write_text("100000\n")
    own = tmp_path / "cgroup"
    own.write_text(f"5:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:/\n0::/\n")
    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cpus, "_OWN_GROUPS", own)
    monkeypatch.setattr(cpus, "_usable_cpus", lambda: 64)
    assert cpus.default_workers() == expected


@requires_affinity
def test_default_respects_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{one}}}); {PRINT_DEFAULT}"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "1\n"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="this Python has no -X cpu_count")
@pytest.mark.parametrize(
    ("flags", "environment"), [(["-X", "cpu_count=3"], {}), ([], {"PYTHON_CPU_COUNT": "3"})]
)
def test_default_respects_cpu_count_of_python(
    flags: list[str], environment: dict[str, str]
) -> None:
    command = [sys.executable, *flags, "-c", PRINT_DEFAULT]
    environment = {**os.environ, **environment}
    assert subprocess.check_output(command, cwd=ROOT, env=environment, text=True) == "3\n"


@requires_fork
@requires_affinity
@pytest.mark.parametrize("count", [2, 3])
def test_each_worker_has_one_cpu(tmp_path: Path, count: int) -> None:
    """A replacement has the CPU of the worker that died. The supervisor keeps all CPUs."""
    usable = sorted(os.sched_getaffinity(0))
    with serving(tmp_path, f"--workers={count}") as server:
        workers = workers_of(server)
        bound = [{usable[number % len(usable)]} for number in range(count)]
        assert _cpus_of(workers) == bound
        for killed, its_cpus in zip(sorted(workers), bound):
            _replace(server, killed, its_cpus)
        assert os.sched_getaffinity(server.process.pid) == set(usable)
        assert server.book().status == 201


@requires_fork
@requires_affinity
def test_single_worker_has_all_cpus(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers=1") as server:
        assert _cpus_of(workers_of(server)) == [os.sched_getaffinity(0)]
