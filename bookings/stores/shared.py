"""State that all workers of a server share. The supervisor creates it before it forks."""

from __future__ import annotations

import logging
import mmap
import os
from typing import NoReturn

from bookings.stores.write_queue import WriteQueue

# Exit code of a process that ended because a sync failed (EX_IOERR of sysexits.h).
SYNC_FAILED = 74

_logger = logging.getLogger("bookings")


class SharedState:
    """The write queue, whether a sync failed, and the number of commits since a checkpoint.

    The number only says when to checkpoint and need not be exact.
    """

    def __init__(self) -> None:
        self.queue = WriteQueue()
        self._memory = mmap.mmap(-1, 8)  # Byte 0: the flag. Bytes 4 to 7: the number.

    @property
    def sync_failed(self) -> bool:
        return self._memory[0] != 0

    def reset(self) -> None:
        """Forget the failed sync. Call this while no worker runs."""
        self._memory[:] = bytes(8)
        self.queue.repair()  # A worker may have been killed at its head.

    def leave_if_sync_failed(self) -> None:
        """End the process if any worker could not sync, without closing connections."""
        if self.sync_failed:
            os._exit(SYNC_FAILED)

    def abandon(self, error: Exception) -> NoReturn:
        """End the process after a failed sync. Closing a connection would checkpoint."""
        if not self.sync_failed:
            self._memory[0] = 1
            _logger.error("a sync failed; all workers restart from the disk: %s", error)
        os._exit(SYNC_FAILED)

    def count_commit(self) -> int:
        """Return the number of commits since the last checkpoint, this one included."""
        commits = int.from_bytes(self._memory[4:], "little") + 1
        self._memory[4:] = commits.to_bytes(4, "little")
        return commits

    def reset_commits(self) -> None:
        self._memory[4:] = bytes(4)
