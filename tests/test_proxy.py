"""The documented files for nginx and systemd, word for word except for paths and ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.clients import CLOSE, HOST, JSON, first_response, request
from tests.helpers.processes import proc_folders, requires_proc, serving
from tests.helpers.readme import configuration
from tests.helpers.servers import SOON, Server, assert_problem, until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
requires_nginx = pytest.mark.skipif(not NGINX, reason="needs nginx")

SOCKET = "/run/bookings/bookings.sock"
ACME = {"Authorization": "Bearer 0c6f1f1c9d5a4a539f0e8f8e0b0d2c1e"}
ZOO = {"Authorization": "Bearer 4b8f9a550d1c2e3f4a5b4f7c1a526d0e"}
BODY = {"start_time_utc": "2026-01-01T10:00:00Z", "idempotency_key": "k1"}
ROW = ("acme", "2026-01-01T10:00:00Z", "k1")
# The rest of nginx.conf. Without a master process, nginx does not change its user.
MAIN = """
daemon off;
master_process off;
pid nginx.pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path temporary;
    proxy_temp_path temporary;
    fastcgi_temp_path temporary;
    uwsgi_temp_path temporary;
    scgi_temp_path temporary;
    include bookings.conf;
}
"""

# Patch: a worker that books while the file `die` exists deletes the file and kills itself.
DIE_ONCE = """
import os, signal
from bookings.stores import sqlite
insert_or_explain = sqlite.insert_or_explain
def die_or_insert(execute, new):
    if os.path.exists("die"):
        os.unlink("die")
        os.kill(os.getpid(), signal.SIGKILL)
    return insert_or_explain(execute, new)
sqlite.insert_or_explain = die_or_insert
"""


@contextlib.contextmanager
def _proxied(tmp_path: Path, patch: str = "") -> Iterator[Server]:
    """Run a server behind nginx. The methods of the server send to nginx."""
    text = configuration("nginx")
    assert text.count(SOCKET) == 2 and text.count("8080") == 1
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Relative paths, because that of a socket must be short.
    text = text.replace(SOCKET, "bookings.sock").replace("8080", f"127.0.0.1:{port}")
    (tmp_path / "bookings.conf").write_text(text)
    (tmp_path / "nginx.conf").write_text(MAIN)
    with serving(tmp_path, "--host=unix:bookings.sock", "--workers=2", patch=patch) as server:
        command = [str(NGINX), "-p", str(tmp_path), "-c", "nginx.conf"]
        with open(tmp_path / "nginx.log", "w") as log:
            nginx = subprocess.Popen(command, cwd=tmp_path, stderr=log)
        server.port = port
        try:
            until(lambda: nginx.poll() is not None or _is_open(port))
            assert nginx.poll() is None, (tmp_path / "nginx.log").read_text()
            yield server
        finally:
            nginx.send_signal(signal.SIGTERM)
            nginx.wait(SOON)


def _is_open(port: int) -> bool:
    with contextlib.suppress(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


@requires_nginx
def test_nginx_gives_each_token_its_tenant(tmp_path: Path) -> None:
    with _proxied(tmp_path) as server:
        for headers in ({}, {"Authorization": "Bearer x"}, {"X_Tenant_ID": "acme"}):
            assert server.call("POST", "/bookings", BODY, **headers).status == 401
        assert server.rows() == []
        created = server.call("POST", "/bookings", BODY, **ACME)
        assert (created.status, created.json["tenant_id"]) == (201, "acme")
        location = f"/bookings/{created.json['id']}"
        assert server.call("GET", location, **ACME).json == created.json
        # A client cannot name another tenant.
        assert server.call("GET", location, **ZOO).status == 404
        assert server.call("GET", location, **ZOO, X_Tenant_ID="acme").status == 404
        for response in (
            server.call("GET", f"{location}?tenant_id=acme", **ZOO),
            server.call("GET", "/bookings?tenant_id=acme", **ZOO),
            server.call("DELETE", f"{location}?tenant_id=acme", **ZOO),
            server.call("POST", "/bookings", {**BODY, "tenant_id": "acme"}, **ZOO),
        ):
            assert_problem(response, 400, "invalid-fields", "tenant_id")
        assert server.call("GET", "/bookings", **ZOO).json == []
        assert server.rows() == [ROW]


@requires_nginx
def test_nginx_sends_chunked_body_with_its_length(tmp_path: Path) -> None:
    body = b'{"start_time_utc": "2026-01-01T10:00:00Z", "idempotency_key": "k1"}'
    authorization = f"Authorization: {ACME['Authorization']}".encode()
    head = request(
        b"POST /bookings HTTP/1.1", HOST, JSON, CLOSE, authorization, b"Transfer-Encoding: chunked"
    )
    with _proxied(tmp_path) as server:
        received = server.raw(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert first_response(received).status == 201
        assert server.rows() == [ROW]


@requires_nginx
@requires_proc
def test_nginx_keeps_connections(tmp_path: Path) -> None:
    with _proxied(tmp_path) as server:
        for _ in range(20):
            assert server.call("GET", "/live", **ACME).status == 200
        links = (link for folder in proc_folders(server) for link in (folder / "fd").iterdir())
        sockets = {os.readlink(link) for link in links}
        # One of them listens. nginx keeps a connection to each of its two upstream servers.
        assert len([link for link in sockets if link.startswith("socket:")]) in (2, 3)


@requires_nginx
def test_nginx_repeats_booking_if_worker_dies(tmp_path: Path) -> None:
    with _proxied(tmp_path, DIE_ONCE) as server:
        (tmp_path / "die").touch()
        assert server.call("POST", "/bookings", BODY, **ACME).status == 201
        assert not (tmp_path / "die").exists()
        assert server.rows() == [ROW]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_accepts_unit(tmp_path: Path) -> None:
    unit = tmp_path / "bookings.service"
    text = configuration("ini")
    assert text.count("/usr/bin/python3") == 1
    unit.write_text(text.replace("/usr/bin/python3", sys.executable))
    ended = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    # Units of the machine may have faults of their own.
    assert [line for line in ended.stderr.splitlines() if "bookings" in line] == []
    assert ended.returncode == 0 or ended.stderr, ended
