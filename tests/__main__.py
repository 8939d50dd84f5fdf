"""python -m tests [arguments for pytest]: every test, on a machine that has nothing but Python.

Where this Python has no pytest, a virtual environment in the ignored folder .venv gets one and runs the tests.
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
    # One for each version, since .ci/run uses several on the same checkout.
    folder = HERE.parent / ".venv" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (
        python.exists() and subprocess.run([str(python), "-c", "import pytest"], check=False).returncode == 0
    ):
        print(f"No pytest here; installing it into {folder}", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", "pytest"], check=True)
        except (subprocess.CalledProcessError, OSError) as error:  # which has said why
            sys.exit(
                f"tests: pytest could not be installed, which takes a network and a folder to write: {error}"
            )
    return str(python)


# They wait for processes, elections and deadlines more than they work. Beside all others, they make the suite 1.7 times
# as fast, and what they print comes last.
ASIDE = [f"tests/test_{name}.py" for name in ("bench", "cluster", "rqlite", "service", "tools", "workers")]


def main(arguments: list[str]) -> int:
    """The exit status of pytest: of one with these arguments, or of two that share all tests, 0 only if of both."""
    pytest = [python_with_pytest(), "-m", "pytest", "-rs"]
    # pytest gets it too, and ends its servers before it ends; it would be killed while it does.
    signal.signal(signal.SIGINT, lambda number, frame: None)
    if arguments:
        return subprocess.call([*pytest, *arguments], cwd=HERE.parent)
    with tempfile.TemporaryFile() as printed:
        # One cache is not for two.
        command = [*pytest, "-p", "no:cacheprovider", *ASIDE]
        with subprocess.Popen(command, cwd=HERE.parent, stdout=printed, stderr=printed) as aside:
            others = subprocess.call([*pytest, *(f"--ignore={path}" for path in ASIDE)], cwd=HERE.parent)
            failed = aside.wait() or others
        printed.seek(0)
        sys.stdout.buffer.write(printed.read())
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
