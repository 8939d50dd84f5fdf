"""Settings of run.py: flags, environment variables, defaults and help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bookings import __version__
from tests.helpers.clients import book_at
from tests.helpers.processes import run_and_fail
from tests.helpers.servers import ROOT, SOON, copy_project
from tests.helpers.storage import BOOKING, all_files, rows_in

RUN = str(ROOT / "run.py")


@pytest.mark.parametrize(
    ("flags", "environment", "host", "port", "database"),
    [
        ((), {}, "127.0.0.1", "3000", "copy/bookings.db"),
        ((), {"PORT": "", "HOST": "", "BOOKINGS_DB": ""}, "127.0.0.1", "3000", "copy/bookings.db"),
        (("--port", "0"), {}, "127.0.0.1", "[0-9]+", "copy/bookings.db"),
        (
            (),
            {"PORT": "0", "HOST": "localhost", "BOOKINGS_DB": "environment.db"},
            "127.0.0.1",
            "(?!3000)[0-9]+",
            "elsewhere/environment.db",
        ),
        (
            ("--port", "0", "--host", "127.0.0.1", "--database", "flag.db"),
            {"PORT": "none", "HOST": "192.0.2.1", "BOOKINGS_DB": "no/such/folder/environment.db"},
            "127.0.0.1",
            "[0-9]+",
            "elsewhere/flag.db",
        ),
    ],
    ids=["defaults", "empty variables", "default database", "environment", "flags"],
)
def test_flag_wins_over_environment_and_default(
    tmp_path: Path,
    flags: tuple[str, ...],
    environment: dict[str, str],
    host: str,
    port: str,
    database: str,
) -> None:
    copy, elsewhere = tmp_path / "copy", tmp_path / "elsewhere"
    elsewhere.mkdir()
    copy_project(copy)
    process = subprocess.Popen(
        [sys.executable, str(copy / "run.py"), *flags],
        env={**os.environ, **environment},
        cwd=elsewhere,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            if port == "3000" and line.startswith("run.py: cannot listen on 127.0.0.1:3000: "):
                return  # Another program has the port, but the server tried to listen on it.
            found = re.fullmatch(r"Bookings [0-9.]+ on http://(.+):([0-9]+), database (.+)\n", line)
            assert found, line
            assert found[1] == host
            assert re.fullmatch(port, found[2])
            assert Path(found[3]) == tmp_path / database
            assert book_at(host, int(found[2])) == 201
            assert rows_in(tmp_path / database) == [BOOKING]
        finally:
            process.kill()
    if database.startswith("copy"):
        assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ("command", "name"), [([RUN], "run.py"), (["-m", "bookings"], "python -m bookings")]
)
def test_program_prints_its_name_and_version(tmp_path: Path, command: list[str], name: str) -> None:
    def run(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command, *flags],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
        )

    version = run("--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout == f"bookings {__version__}\n"
    assert run("--help").stdout.startswith(f"usage: {name} ")
    for flags in (["--port=none"], ["--host=unix:"]):
        assert run("--database=x.db", *flags).stderr.startswith(f"{name}: ")


def test_help_explains_each_setting(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, RUN, "--help"],
        env={**os.environ, "PORT": "none"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    for words in (
        ("--port", "PORT", "3000"),
        ("--host", "HOST", "127.0.0.1"),
        ("--database", "BOOKINGS_DB", "bookings.db beside run.py"),
        ("--workers", "WORKERS", "one per CPU that it may use, at most 8; one on Windows"),
        ("--allowed-hosts", "ALLOWED_HOSTS", "none on loopback, any otherwise"),
    ):
        explained = " ".join(ended.stdout.split()).rpartition(words[0])[2]
        assert re.search(rf"environment: {words[1]}; default: {words[2]}", explained)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "port",
    ["none", "", "-1", "65536", "70000", "5_0", "+80", " 80", "0x50", "80.0", "５０", "9" * 5000],
)
def test_bad_port_is_rejected(tmp_path: Path, port: str) -> None:
    assert "port" in run_and_fail(tmp_path, sys.executable, RUN, f"--port={port}", PORT="0")
    assert not all_files(tmp_path)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "none"),
        ("PORT", "tcp://10.0.0.1:80"),
        ("WORKERS", "two"),
        ("ALLOWED_HOSTS", "http://a.example"),
        # conda sets this one to the platform.
        ("HOST", "x86_64-conda-linux-gnu"),
    ],
)
def test_rejection_names_environment_variable_or_flag(
    tmp_path: Path, variable: str, value: str
) -> None:
    flag = f"--{variable.lower().replace('_', '-')}"
    command = [sys.executable, RUN, "--database=x.db"]
    port = {"PORT": "0"}
    line = run_and_fail(tmp_path, *command, **{**port, variable: value})
    assert value in line and re.search(rf"\b{variable}\b", line)
    # A flag overrides the variable, and its error does not name it.
    line = run_and_fail(tmp_path, *command, f"{flag}={value}", **{**port, variable: "none"})
    assert value in line and not re.search(rf"\b{variable}\b", line)
    assert set(all_files(tmp_path)) <= {"x.db"}


@pytest.mark.parametrize(
    "host", ["[::1]", "[::1]:80", "127.0.0.1:80", "localhost:", "http://localhost", "10.0.0.0/8"]
)
def test_host_that_is_more_than_an_address_is_rejected(tmp_path: Path, host: str) -> None:
    line = run_and_fail(tmp_path, sys.executable, RUN, f"--host={host}")
    assert f"{host!r}; give one like 127.0.0.1 or ::1" in line and "--port" in line
    assert "variable HOST" in run_and_fail(tmp_path, sys.executable, RUN, HOST=host)
    assert not all_files(tmp_path)


@pytest.mark.parametrize(
    "host",
    [
        "http://a.example",
        "a.example:3000",
        "a.example/",
        "*.a.example",
        "..a.example",
        "a..example",
        ".",
        "a b",
        "user@a.example",
        "bücher.example",
    ],
)
def test_bad_allowed_host_is_rejected(tmp_path: Path, host: str) -> None:
    """It would never match a Host header, and the operator would not learn why."""
    assert repr(host) in run_and_fail(
        tmp_path, sys.executable, RUN, "--port=0", f"--allowed-hosts=b.example,{host}"
    )
    assert repr(host) in run_and_fail(tmp_path, sys.executable, RUN, "--port=0", ALLOWED_HOSTS=host)
    assert not all_files(tmp_path)
