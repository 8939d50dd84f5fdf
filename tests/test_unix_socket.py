"""--host unix:PATH: a socket that only its user and group can reach."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookings.server import unix_socket
from bookings.server.signals import SAME_SIGNAL_SECONDS
from bookings.stores.files import open_descriptor
from tests.helpers.clients import CLOSE, HOST, closing_post, post, statuses
from tests.helpers.processes import requires_fork, run_and_fail, serving, workers_of
from tests.helpers.servers import ROOT, SOON, Server, all_from, until
from tests.helpers.storage import BOOKING

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets"
)
RUN = str(ROOT / "run.py")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a socket. It is short enough because it is relative to the current directory."""
    monkeypatch.chdir(tmp_path)
    return Path("bookings.sock")


@contextlib.contextmanager
def _listening(tmp_path: Path, path: Path, *flags: str, patch: str = "") -> Iterator[Server]:
    with serving(tmp_path, f"--host=unix:{path}", *flags, patch=patch) as server:
        yield server


def _send(path: Path, sent: bytes) -> list[int]:
    """Send requests and return the statuses of all responses until the server closes."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(SOON)
        client.connect(str(path))
        client.sendall(sent)
        return statuses(all_from(client))


def _book(path: Path) -> list[int]:
    return _send(path, closing_post(*BOOKING))


@requires_fork
def test_socket_serves_and_is_removed_at_stop(tmp_path: Path, path: Path) -> None:
    patch = "sys.argv.remove('--quiet')"
    with _listening(tmp_path, path, "--workers=2", patch=patch) as server:
        assert server.url == f"unix:{path}"
        assert f" on unix:{path}, database " in server.startup_line
        mode = path.lstat().st_mode
        assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o660
        get = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
        assert _send(path, get + closing_post(*BOOKING)) == [200, 201]
        killed = workers_of(server)
        for worker in killed:
            os.kill(worker, signal.SIGKILL)
        # A killed worker that is reaped during the shutdown would make the exit code 1.
        until(lambda: len(workers_of(server) - killed) == 2)
        assert _book(path) == [200]
        assert server.rows() == [BOOKING]
        assert server.stop() == 0
        assert not path.exists()
        lines = [line for line in server.log.read_text().splitlines() if " 20" in line]
        assert [line.split()[1] for line in lines] == ["unix"] * 3


@requires_fork
def test_second_signal_leaves_no_socket(tmp_path: Path, path: Path) -> None:
    with _listening(tmp_path, path) as server, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(SOON)
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.1\r\n")  # The shutdown waits for the rest.
        server.process.send_signal(signal.SIGTERM)
        until(lambda: not path.exists())
        time.sleep(2 * SAME_SIGNAL_SECONDS)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SOON) == -signal.SIGTERM
        assert not path.exists()


@requires_fork
def test_stale_socket_is_replaced(tmp_path: Path, path: Path) -> None:
    with _listening(tmp_path, path) as server:
        server.kill()
        assert path.exists()
    with _listening(tmp_path, path) as server:
        assert _book(path) == [201]


@requires_fork
def test_socket_of_another_server_stays(tmp_path: Path, path: Path) -> None:
    with _listening(tmp_path, path) as server:
        path.unlink()
        with contextlib.closing(unix_socket.bind(str(path), 1)):
            assert server.stop() == 0
            assert path.exists()


@requires_fork
def test_lock_on_folder_does_not_delay_start(tmp_path: Path, path: Path) -> None:
    """systemd-tmpfiles asks programs to lock a folder that it must not clean up."""
    fcntl = pytest.importorskip("fcntl")
    with open_descriptor(str(tmp_path), os.O_RDONLY) as folder:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with _listening(tmp_path, path):
            assert _book(path) == [201]


@requires_fork
def test_live_socket_is_rejected_and_stays(tmp_path: Path, path: Path) -> None:
    with _listening(tmp_path, path):
        line = run_and_fail(tmp_path, sys.executable, RUN, f"--host=unix:{path}", "--database=x.db")
        assert f"unix:{path}: another server listens on it" in line
        assert _book(path) == [201]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "exists and is not a socket"),
        (".", "exists and is not a socket"),
        ("no/such/folder/x.sock", "No such file"),
        ("x" * 104, "1 to 103 bytes"),
        ("", "1 to 103 bytes"),
    ],
)
def test_path_that_cannot_be_listened_on_is_rejected(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").write_text("kept")
    line = run_and_fail(tmp_path, sys.executable, RUN, f"--host=unix:{name}", "--database=x.db")
    assert f"unix:{name}: " in line and reason in line
    assert (tmp_path / "file").read_text() == "kept"


def test_socket_never_has_wider_mode(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user could connect in the moment before a chmod."""
    for name in ("chmod", "fchmod"):
        monkeypatch.delattr(os, name)
    before = os.umask(0)
    try:
        with contextlib.closing(unix_socket.bind(str(path), 1)):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o660
        assert os.umask(0) == 0
    finally:
        os.umask(before)


@requires_fork
@pytest.mark.parametrize(
    ("flags", "expected"), [((), [201]), (("--allowed-hosts=a.example",), [421])]
)
def test_host_names_are_accepted_unless_listed(
    tmp_path: Path, path: Path, flags: tuple[str, ...], expected: list[int]
) -> None:
    with _listening(tmp_path, path, *flags):
        sent = post("k1", CLOSE).replace(HOST, b"Host: bookings.example")
        assert _send(path, sent) == expected
