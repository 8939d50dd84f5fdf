"""How many workers there are by default, and which CPU each one uses.

Threads of one Python process can only run one at a time. On several CPUs they pay for every
handover of the GIL: 8 threads that read a list take 197 us each, and 117 us each on a single CPU.
So there is one worker per CPU, bound to it: with 16 clients on two CPUs 4,162 bookings/s instead
of 2,518.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

# Most workers by default. SQLite serializes bookings, and each worker takes 25 MiB.
MAX_DEFAULT_WORKERS = 8

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")


def default_workers() -> int:
    """Return the number of CPUs that this process may use, at most MAX_DEFAULT_WORKERS."""
    if not hasattr(os, "fork"):
        return 1
    return math.ceil(min(_usable_cpus(), _quota(), MAX_DEFAULT_WORKERS))


def bind_worker(number: int) -> None:
    """Bind the calling process to one of the CPUs that it may use, where the system allows it."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        with suppress(OSError):  # A container may forbid it.
            os.sched_setaffinity(0, {cpus[number % len(cpus)]})


def _usable_cpus() -> int:
    if hasattr(os, "process_cpu_count"):  # Python 3.13; also reads PYTHON_CPU_COUNT.
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota() -> float:
    """Return how many CPUs the control group may use on average, or infinity."""
    quotas = [math.inf]
    for folder in _cgroup_folders():
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").exists():  # Version 2: "max 100000" or "150000 100000".
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if quota != "max" and int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return min(quotas)


def _cgroup_folders() -> Iterator[Path]:
    """Yield the folders of the process's control groups and of all groups above them.

    A container may see the path on the host, which does not exist in it; the top folder does.
    """
    with suppress(OSError, ValueError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            top = _CGROUPS / controllers if controllers else _CGROUPS
            group = PurePosixPath(path.lstrip("/"))
            yield from (top / parent for parent in (group, *group.parents))
