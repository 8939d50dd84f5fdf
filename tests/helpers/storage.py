"""Faults in the storage below the server, as patches and triggers."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from pathlib import Path

# Patch for `patched()`: a sync waits while the file `hold` exists, fails with EIO while `fail`
# exists, and appends a line to the file `syncs`.
CONTROLLED_SYNC = f"""
import os, time
from bookings.stores import sqlite
sync = sqlite.fdatasync
def controlled(descriptor):
    with open("syncs", "a") as syncs:
        syncs.write("x\\n")
    while os.path.exists("hold"):
        time.sleep(0.005)
    if os.path.exists("fail"):
        raise OSError({errno.EIO}, os.strerror({errno.EIO}))
    sync(descriptor)
sqlite.fdatasync = controlled
"""

# Makes every INSERT fail with an IntegrityError that is not a lost slot or key: a 500.
FAULT_TRIGGER = (
    "CREATE TRIGGER fault BEFORE INSERT ON bookings BEGIN SELECT RAISE(ABORT, 'closed'); END"
)


def set_aside(database: Path) -> Path:
    """Move a database away, with everything in one file, and return its new path."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        assert db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    return database.rename(database.with_name("aside.db"))
