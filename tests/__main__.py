"""python -m tests [arguments for pytest]: every test, on a machine that has nothing but Python.

Where this Python has no pytest, a virtual environment in the ignored folder .venv gets one and runs the tests.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
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


if __name__ == "__main__":
    command = [python_with_pytest(), "-m", "pytest", "-rs", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=HERE.parent, check=False).returncode)
