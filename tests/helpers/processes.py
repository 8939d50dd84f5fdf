"""Processes: the workers of a server, servers that run changed code, and programs that fail."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.servers import ROOT, SOON, Server, patched

requires_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="a system without fork has no workers"
)
requires_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

# Drops the capability with which root ignores file modes (PR_CAPBSET_DROP, CAP_DAC_OVERRIDE).
_DROP_OVERRIDE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextlib.contextmanager
def serving(base: Path, *flags: str, patch: str = "", **environment: str) -> Iterator[Server]:
    """Run a server, after executing `patch` (see `patched`) if given."""
    program = patched(base, patch) if patch else ROOT / "run.py"
    with contextlib.closing(Server(base, *flags, program=program, **environment)) as started:
        yield started


def all_processes() -> dict[int, tuple[int, str]]:
    """Return parent and state of every process, by pid."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "stat="],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return {int(pid): (int(parent), state) for pid, parent, state in rows}


def running_processes() -> dict[int, tuple[int, str]]:
    """Return parent and state of every process, by pid, except zombies."""
    return {pid: row for pid, row in all_processes().items() if not row[1].startswith("Z")}


def workers_of(server: Server) -> set[int]:
    """Return the pids of the server's workers."""
    return {pid for pid, (parent, _) in running_processes().items() if parent == server.process.pid}


def children_in_state(server: Server, state: str) -> set[int]:
    """Return the pids of the server's child processes in this state, such as Z (zombie) or T."""
    return {
        pid
        for pid, (parent, found) in all_processes().items()
        if parent == server.process.pid and found.startswith(state)
    }


def alive(pids: set[int]) -> set[int]:
    """Return the pids that are still running."""
    return pids & set(running_processes())


def proc_folders(server: Server) -> list[Path]:
    """Return the folder in /proc of the supervisor and of each worker."""
    return [Path(f"/proc/{pid}") for pid in (server.process.pid, *workers_of(server))]


def resources_used(server: Server) -> dict[str, float]:
    """Sum over all processes: threads, file descriptors, resident memory (bytes), CPU seconds."""
    used = {"threads": 0.0, "descriptors": 0.0, "memory": 0.0, "seconds": 0.0}
    for process in proc_folders(server):
        status = (process / "status").read_text()
        times = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
        used["threads"] += int(re.findall(r"Threads:\s+(\d+)", status)[0])
        used["descriptors"] += len(os.listdir(process / "fd"))
        used["memory"] += int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) * 1024
        used["seconds"] += sum(map(int, times)) / os.sysconf("SC_CLK_TCK")
    return used


@contextlib.contextmanager
def suspended(server: Server) -> Iterator[None]:
    """Suspend all processes of the server; the kernel still fills the backlog of connections."""
    os.killpg(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.process.pid, signal.SIGCONT)


def without_override(read_only: Path) -> list[str]:
    """Return a Python command that cannot write read-only files, even if the tests run as root.

    Skip the test if `read_only` is writable all the same.
    """
    command = [sys.executable]
    if sys.platform.startswith("linux") and os.geteuid() == 0:
        command = [sys.executable, "-c", _DROP_OVERRIDE, sys.executable]
    check = "import os, sys; sys.exit(os.access(sys.argv[1], os.W_OK))"
    probe = [*command, "-c", check, str(read_only)]
    if subprocess.run(probe, check=False, timeout=SOON).returncode:
        pytest.skip("file modes do not keep this user from writing")
    return command


def run_and_fail(folder: Path, *command: str, **environment: str) -> str:
    """Run a command that must fail in `folder`; return the only line it prints, on stderr."""
    ended = subprocess.run(
        command,
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert ended.returncode > 0
    assert ended.stdout == ""
    assert re.fullmatch(r"run\.py: [^\n]+\n", ended.stderr), ended.stderr
    return ended.stderr
