"""python -m tests: arguments, two halves side by side, Ctrl+C, and no pytest."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.__main__ import ASIDE
from tests.helpers.servers import ROOT, SOON, until

# The name of a test module in the second half.
IN_ASIDE = Path(ASIDE[0]).stem


def test_arguments_are_passed_to_pytest() -> None:
    """A file is collected alone; without one, the whole suite is collected."""
    collected = []
    for arguments in (
        ["tests/test_runner.py", "--mutate-seconds=600"],
        ["-k", "test_arguments_are_passed_to_pytest"],
    ):
        command = [sys.executable, "-m", "tests", "--collect-only", "-q", *arguments]
        ran = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=SOON, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert set(re.findall(r"^tests/(\w+)\.py::", ran.stdout, re.MULTILINE)) == {"test_runner"}
        collected.append(max(map(int, re.findall(r"[0-9]+(?= tests collected)", ran.stdout))))
    one_file, everything = collected
    assert one_file < 10
    assert everything > 1000


@pytest.mark.parametrize("fails", [None, IN_ASIDE, "test_other"])
def test_every_test_is_in_one_of_two_halves(tmp_path: Path, fails: str | None) -> None:
    """A failure in either half fails the run, and the output of both is printed."""
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
    assert [ran.stdout.count(f"{name}.py {'F' if name == fails else '.'}") for name in names] == [
        1
    ] * len(names)


# A test that reports that it waits and that it has cleaned up. Cleaning up takes longer than
# subprocess.call waits for a child after Ctrl+C.
WAITS = """
import pathlib, time
def test():
    (pathlib.Path(__file__).parent / "waits-NAME").touch()
    try:
        time.sleep(60)
    finally:
        time.sleep(1)
        (pathlib.Path(__file__).parent / "cleaned-NAME").touch()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send a signal to one group alone")
@pytest.mark.parametrize("arguments", [(), ("-q", f"tests/{IN_ASIDE}.py", "tests/test_other.py")])
def test_ctrl_c_lets_every_test_clean_up(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Otherwise the servers of the tests would keep running."""
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/__main__.py", tmp_path / "tests")
    for path in ASIDE:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    for name in (IN_ASIDE, "test_other"):
        (tmp_path / f"tests/{name}.py").write_text(WAITS.replace("NAME", name))
    names = [IN_ASIDE] if arguments else [IN_ASIDE, "test_other"]
    command = [sys.executable, "-m", "tests", *arguments]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True
    ) as ran:
        until(lambda: all((tmp_path / f"tests/waits-{name}").exists() for name in names))
        os.killpg(ran.pid, signal.SIGINT)
        assert ran.wait(SOON) == 2
        assert all((tmp_path / f"tests/cleaned-{name}").exists() for name in names)


def test_missing_pytest_without_network_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    shutil.copy(ROOT / "tests/__main__.py", tmp_path / "tests")
    # -S hides installed packages such as pytest, and PIP_NO_INDEX keeps pip offline.
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
