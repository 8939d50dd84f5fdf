"""A disk whose syncs take 4 ms longer, as on a cloud volume, for `tests.bench`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SLOW_DISK_IN_C = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

static int slowly(const char *name, int descriptor) {
    int (*call)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    usleep(4000);
    return call(descriptor);
}

int fsync(int descriptor) { return slowly("fsync", descriptor); }
int fdatasync(int descriptor) { return slowly("fdatasync", descriptor); }
"""
# Python runs a module named sitecustomize at each start.
SLOW_DISK_IN_PYTHON = """
import os, time
def slowly(call):
    return lambda descriptor: time.sleep(0.004) or call(descriptor)
for name in {"fsync", "fdatasync"}.intersection(dir(os)):
    setattr(os, name, slowly(getattr(os, name)))
"""


def slow_disk(folder: str) -> tuple[dict[str, str], str]:
    """Return environment variables that make a program's syncs slow, and a description.

    Without a C compiler on Linux, only the syncs of the program itself are slow and not those of
    SQLite's checkpoints.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if sys.platform == "linux" and compiler:
        source, library = Path(folder, "slow_disk.c"), Path(folder, "slow_disk.so")
        source.write_text(SLOW_DISK_IN_C)
        command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        return {"LD_PRELOAD": str(library)}, "in every fsync and fdatasync, by a preloaded library"
    Path(folder, "sitecustomize.py").write_text(SLOW_DISK_IN_PYTHON)
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path}, "in os.fsync and os.fdatasync, so not in SQLite's own checkpoints"
