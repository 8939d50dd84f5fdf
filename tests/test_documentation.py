"""README.md and OPERATING.md: each command and statement prints what the document shows.

Each document is one session, in order, in a copy of the project. Only times and the order of
concurrent requests vary.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bookings.process import ServerProcess
from tests.helpers.readme import (
    CONFIGURATIONS,
    DOCUMENTS,
    Step,
    needs_cluster,
    normalized,
    steps_of,
)
from tests.helpers.servers import ROOT, SOON, copy_project

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)
# The last command of a block that runs until Ctrl+C; a backslash continues its line.
STARTS_SERVER = re.compile(r"^(?:[A-Z_]+=\S+ )*python run\.py\b(?:.*\\\n)*.*\Z", re.MULTILINE)
# Commands that replace a database, which the documents allow only without a server.
REPLACES_DATABASE = re.compile(r"^(?:rm|mv|cp)\b.*\bbookings\.db", re.MULTILINE)


class Session:
    """A shell in a copy of the project, and the server that the session started last."""

    def __init__(self, base: Path) -> None:
        self._home, self.project, self._log = base / "home", base / "project", base / "server.log"
        self._home.mkdir()
        copy_project(self.project)
        (self._home / "python").symlink_to(sys.executable)
        self._server: ServerProcess | None = None
        self._environment = {
            **os.environ,
            "CURL_HOME": str(self._home),
            "PATH": f"{self._home}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, step: Step) -> str:
        """Return what the step prints."""
        if step.language == "sql":
            return self._execute(step.command)
        if starts_server(step):
            return self._start_server(step.command)
        if REPLACES_DATABASE.search(step.command):
            self.stop_server()
        ended = subprocess.run(
            ["bash", "-c", step.command],
            cwd=self.project,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=SOON,
            check=False,
        )
        return ended.stdout

    def stop_server(self) -> None:
        if self._server:
            self._server.process.terminate()
            self._server.process.wait(SOON)
            self._server.kill()
            self._server = None

    def _start_server(self, command: str) -> str:
        """Run the command with one more flag for a free port, because port 3000 may be in use."""
        self.stop_server()
        shell = ["bash", "-c", f'{command.rstrip()} "$@"', "bash"]
        with self._log.open("a") as log:
            self._server = ServerProcess(shell, cwd=self.project, env=self._environment, stderr=log)
        line = self._server.startup_line
        assert self._server.url, f"{line!r} {self._log.read_text()}"
        # curl connects to this port wherever the document has 3000.
        connect_to = f"localhost:3000:127.0.0.1:{self._server.port}"
        (self._home / ".curlrc").write_text(f'connect-to = "{connect_to}"\n')
        return line.replace(f":{self._server.port}", ":3000")

    def _execute(self, script: str) -> str:
        """Return what a SQL client prints: rows as the sqlite3 client does, and errors."""
        printed, statement = "", ""
        database = self.project / "bookings.db"
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
            for line in script.splitlines(keepends=True):
                statement += line
                if not sqlite3.complete_statement(statement):
                    continue
                try:
                    rows = db.execute(statement).fetchall()
                    printed += "".join(f"{'|'.join(map(str, row))}\n" for row in rows)
                except sqlite3.Error as error:
                    printed += f"{error}\n"
                statement = ""
        assert not statement, "the last statement has no semicolon"
        return printed


def starts_server(step: Step) -> bool:
    return bool(STARTS_SERVER.search(step.command.rstrip("\n")))


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    started = Session(tmp_path)
    yield started
    started.stop_server()


@each_document
def test_every_block_is_command_or_its_output(document: Path) -> None:
    """A block in another language would not run, and output without a command not be compared."""
    steps = steps_of(document)
    assert {step.language for step in steps} <= {"sh", "sql", *CONFIGURATIONS}
    blocks = sum(1 + bool(step.output) for step in steps)
    assert document.read_text(encoding="utf-8").count("```") == 2 * blocks


@each_document
def test_output_is_fenced_in_its_language(document: Path) -> None:
    for step in steps_of(document):
        if step.output_language == "http":
            assert re.match(r"HTTP/1\.1 [0-9]{3} |[A-Z][A-Za-z-]+: ", step.output), step
        assert (step.output_language == "json") == bool(step.output and is_json(step.output)), step


def test_readme_starts_with_server_and_tests() -> None:
    commands = [step.command for step in steps_of(ROOT / "README.md")]
    assert commands[0] == "python run.py\n"
    assert [step for step in commands if step.startswith("python -m tests")] == [
        "python -m tests\n"
    ]


def test_readme_quotes_one_body_for_each_shell() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (posix,) = re.findall(r"^curl -i .*\\\n  -d '(.*)'$", text, re.MULTILINE)
    (powershell,) = re.findall(r"^    Invoke-RestMethod .* -Body '(.*)'$", text, re.MULTILINE)
    (cmd,) = re.findall(r'^    curl -i .* -d "(.*)"$', text, re.MULTILINE)
    assert powershell == posix
    # The C library of Windows reads \" in a quoted argument as a double quote.
    assert cmd.replace(r"\"", '"') == posix
    assert is_json(posix) and not re.search(r'(?<!\\)"', cmd)


@each_document
@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="the commands need curl and bash"
)
def test_commands_print_documented_output(session: Session, document: Path) -> None:
    for step in steps_of(document):
        if needs_cluster(step) or step.command.startswith(("python -m tests", "docker ")):
            continue
        if step.language in CONFIGURATIONS:
            continue
        if step.command.startswith("sqlite3 ") and not shutil.which("sqlite3"):
            continue
        printed = session.run(step)
        # The startup line need not be shown.
        if step.output or not starts_server(step):
            assert normalized(printed) == normalized(step.output), step.command


def is_json(text: str) -> bool:
    """Return whether the text, or each line of it, is a JSON object or array."""
    for documents in ([text], text.splitlines()):
        with contextlib.suppress(ValueError):
            return all(isinstance(json.loads(document), (dict, list)) for document in documents)
    return False
