"""The README: every command and every SQL statement in it is run as printed and answers what is printed below it.

One session, in order, in a copy of the project, as a newcomer would have it. Only times and the order of racers vary.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.__main__ import ASIDE
from tests.helpers.readme import CLUSTER_COMMANDS, README, STEPS
from tests.helpers.servers import CANONICAL, ROOT, SOON, Server, copy_project, until

# Run by other means: the server by this test, the tests by whoever reads this.
NOT_IN_THE_SESSION = ("python run.py\n", "python -m tests\n")


def test_every_block_is_part_of_a_step() -> None:
    """A block in another language would not be run, an answer without a command would not be compared."""
    assert README.count("```") == 2 * sum(1 + bool(step.output) for step in STEPS)
    assert [step.command for step in STEPS if step.command in NOT_IN_THE_SESSION] == list(NOT_IN_THE_SESSION)


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="the session is for curl in a shell"
)
def test_the_session(tmp_path: Path) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    copy_project(project)
    (home / "python").symlink_to(sys.executable)
    with contextlib.closing(Server(project, program=project / "run.py")) as server:
        # Port 3000 may be in use here: curl is told where the server of the README is to be found today.
        (home / ".curlrc").write_text(f'connect-to = "localhost:3000:127.0.0.1:{server.port}"\n')
        environment = {
            **os.environ,
            "CURL_HOME": str(home),
            "PATH": f"{home}{os.pathsep}{os.environ['PATH']}",
        }
        for step in STEPS:
            if step.command in (*NOT_IN_THE_SESSION, *CLUSTER_COMMANDS):
                continue
            if step.command.startswith("sqlite3 ") and not shutil.which("sqlite3"):
                continue
            if step.language == "sql":
                output = by_hand(project / "bookings.db", step.command)
            else:
                output = in_a_shell(step.command, project, environment)
            assert normalised(output) == normalised(step.output), step.command


def test_further_arguments_go_to_pytest() -> None:
    """A file that is named is run alone; where none is, all are looked through."""
    looked_at = []
    for arguments in (["tests/test_readme.py", "--mutate-seconds=600"], ["-k", "test_the_session"]):
        command = [sys.executable, "-m", "tests", "--collect-only", "-q", *arguments]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SOON, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert set(re.findall(r"^tests/(\w+)\.py::", ran.stdout, re.MULTILINE)) == {"test_readme"}
        looked_at.append(max(map(int, re.findall(r"[0-9]+(?= tests collected)", ran.stdout))))
    one_file, everything = looked_at
    assert one_file < 10
    assert everything > 1000


@pytest.mark.parametrize("fails", [None, "test_tools", "test_other"])
def test_every_test_is_in_one_of_two_halves(tmp_path: Path, fails: str | None) -> None:
    """A failure in either fails the whole; what both print is there."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/__main__.py", tmp_path / "tests")
    paths = [*ASIDE, "tests/test_other.py", "tests/test_another.py"]
    names = [Path(path).stem for path in paths]
    for path, name in zip(paths, names):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(f"def test() -> None:\n    assert {name != fails}\n")
    ran = subprocess.run(
        [sys.executable, "-m", "tests"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    assert ran.returncode == (1 if fails else 0), ran.stdout + ran.stderr
    assert sum(map(int, re.findall(r"([0-9]+) passed", ran.stdout))) == len(names) - bool(fails)
    assert [ran.stdout.count(f"{name}.py {'F' if name == fails else '.'}") for name in names] == [1] * len(
        names
    )


# It says that it waits, and that it has tidied up, which takes it longer than a child is let live by subprocess.call.
WAITS = """
import pathlib, time
def test():
    (pathlib.Path(__file__).parent / "waits-NAME").touch()
    try:
        time.sleep(60)
    finally:
        time.sleep(1)
        (pathlib.Path(__file__).parent / "tidied-NAME").touch()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send a signal to one group alone")
@pytest.mark.parametrize("arguments", [(), ("-q", "tests/test_tools.py", "tests/test_other.py")])
def test_ctrl_c_lets_every_test_tidy_up(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Else their servers would stay."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/__main__.py", tmp_path / "tests")
    for path in ASIDE:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    for name in ("tools", "other"):
        (tmp_path / f"tests/test_{name}.py").write_text(WAITS.replace("NAME", name))
    names = ["tools"] if arguments else ["tools", "other"]
    command = [sys.executable, "-m", "tests", *arguments]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True) as ran:
        until(lambda: all((tmp_path / f"tests/waits-{name}").exists() for name in names))
        os.killpg(ran.pid, signal.SIGINT)
        assert ran.wait(SOON) == 2
        assert all((tmp_path / f"tests/tidied-{name}").exists() for name in names)


def test_no_pytest_and_no_network_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/__main__.py", tmp_path / "tests")
    # -S leaves out what was installed, pytest for one; pip is told to look nowhere.
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "tests"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": "",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "",
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        timeout=3 * SOON,
        check=False,
    )
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert re.fullmatch(r"tests: [^\n]*pytest[^\n]*", ran.stderr.splitlines()[-1])


def by_hand(database: Path, statement: str) -> str:
    """What a SQL client says of the statement."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as db:
        try:
            db.execute(statement)
        except sqlite3.Error as error:
            return f"{error}\n"
        return ""


def in_a_shell(command: str, folder: Path, environment: dict[str, str]) -> str:
    ran = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SOON,
        check=False,
    )
    return ran.stdout


def normalised(text: str) -> str:
    text = re.sub(rf'("created_at": ?)"{CANONICAL.pattern}"', r"\1", text.replace("\r\n", "\n"))
    text = re.sub(rf"{CANONICAL.pattern}$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^(Date:) .* GMT$", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"^(X-Request-ID:) [0-9a-f]{16}$", r"\1", text, flags=re.MULTILINE)
    return re.sub(r"\brace-[1-5]\b", "race", text)
