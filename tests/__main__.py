"""python -m tests [arguments for pytest]: run the tests on a machine that has nothing but Python.

If this Python has no pytest, install one into a virtual environment in the ignored folder .venv.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def python_with_pytest() -> str:
    if importlib.util.find_spec("pytest"):
        return sys.executable
    # .ci/run uses several Python versions on the same checkout.
    folder = HERE.parent / ".venv" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    probe = [str(python), "-c", "import pytest"]
    if not (python.exists() and subprocess.run(probe, check=False).returncode == 0):
        print(f"No pytest here; installing it into {folder}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "pytest"], check=True)
        except (subprocess.CalledProcessError, OSError) as error:
            # venv and pip have printed the reason.
            need = "that needs a network connection and a writable folder"
            sys.exit(f"tests: could not install pytest ({need}): {error}")
    return str(python)


# The half of the tests that runs in a second pytest process, with its output printed at the end.
# They mostly wait for processes, elections and deadlines: the suite takes 60 % of the time.
ASIDE = [
    "tests/test_backup.py",
    "tests/test_bench.py",
    "tests/guarantees/test_cluster.py",
    "tests/test_main.py",
    "tests/test_openapi.py",
    "tests/test_prove.py",
    "tests/test_request_log.py",
    "tests/test_restore.py",
    "tests/test_rqlite.py",
    "tests/test_rqlite_client.py",
    "tests/test_server.py",
    "tests/test_sqlite.py",
    "tests/test_workers.py",
    "tests/test_write_queue.py",
    "tests/guarantees/test_wal_size.py",
]


def main(arguments: list[str]) -> int:
    """Run pytest with these arguments, or all tests in two processes; return its exit status.

    With two processes, the status is 0 only if it is 0 for both.
    """
    pytest = [python_with_pytest(), "-m", "pytest", "-rs"]
    # Ctrl+C reaches pytest as well. If this process ended first, pytest would be killed while it
    # shuts down its servers.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    if arguments:
        return subprocess.call([*pytest, *arguments], cwd=HERE.parent)
    with tempfile.TemporaryFile() as printed:
        # Two processes must not write the same cache.
        command = [*pytest, "-p", "no:cacheprovider", *ASIDE]
        with subprocess.Popen(command, cwd=HERE.parent, stdout=printed, stderr=printed) as aside:
            ignore = [f"--ignore={path}" for path in ASIDE]
            others = subprocess.call([*pytest, *ignore], cwd=HERE.parent)
            failed = aside.wait() or others
        printed.seek(0)
        sys.stdout.buffer.write(printed.read())
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
