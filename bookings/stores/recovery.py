"""Makes the database equal to what is on the disk, before the first connection opens it.

After a failed write-back Linux marks the dirty pages clean, so the next sync succeeds although the
pages never reached the disk. Each file descriptor that was open reports the error once; one that
is opened later does not report it at all. The WAL then has a hole, and SQLite's recovery drops
every transaction after it. Only a restart from the bytes on the disk shows which those are.
"""

from __future__ import annotations

import os
from contextlib import suppress

from bookings.stores.files import DatabaseFiles, open_descriptor

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# Every connection in WAL mode holds a shared lock on these bytes of the database, also one in
# exclusive locking mode, which does not use -shm (SHARED_FIRST and SHARED_SIZE in os.h).
_SHARED_LOCK_START, _SHARED_LOCK_BYTES = 0x40000002, 510
_COPY_BYTES = 1 << 20


def settle(files: DatabaseFiles) -> bool:
    """Drop cached pages and make the WAL on the disk durable. Raise OSError if the disk fails.

    Call this while this process has no connection. Returns False, without touching the files, if
    another process has one, because the WAL must not be written then. Windows has no such locks,
    so nothing happens there.
    """
    if not fcntl or not os.path.exists(files.path):
        return True
    # Closing the database drops the lock, so it stays open until the WAL is durable.
    with open_descriptor(files.path, os.O_RDWR) as database:
        try:
            exclusive = fcntl.LOCK_EX | fcntl.LOCK_NB
            fcntl.lockf(database, exclusive, _SHARED_LOCK_BYTES, _SHARED_LOCK_START)
        except BlockingIOError:
            return False
        _drop_cache(database)
        os.fsync(database)
        if os.path.exists(files.wal):
            with open_descriptor(files.wal, os.O_RDWR) as wal:
                _drop_cache(wal)
                _rewrite(wal)
                os.fsync(wal)
    return True


def _drop_cache(descriptor: int) -> None:
    """Make the next read come from the disk, not from pages that the kernel has given up."""
    with suppress(OSError):  # Pages that cannot be written are the ones to drop.
        os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _rewrite(descriptor: int) -> None:
    """Write the file's bytes over themselves, so that the next sync makes all of them durable."""
    offset = 0
    while True:
        part = os.pread(descriptor, _COPY_BYTES, offset)
        if not part:
            return
        offset += os.pwrite(descriptor, part, offset)
