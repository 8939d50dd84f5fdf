"""A pipe in front of standard error, so that no write to the log waits for its reader.

Standard error itself cannot be made non-blocking: the shell and other programs share its open file
description. So all processes of the server write to another pipe, and a thread of the first
process copies it to standard error. If standard error is not read, only that thread waits.
"""

from __future__ import annotations

import mmap
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

# Longest write in bytes that a pipe takes whole or not at all (4,096 on Linux, 512 on macOS).
# Longer writes may interleave between workers, which would let a client forge the start of a line.
PIPE_BUF: int = getattr(select, "PIPE_BUF", 4096)
# How long `close` waits until the last lines are copied.
CLOSE_SECONDS = 1.0
# How often to look for dropped lines. A process may count one just after the pipe was emptied.
_NOTE_SECONDS = 1.0
_READ_BYTES = 65536


class LogPipe:
    """Takes lines from all processes, and drops and counts them while the pipe is full.

    `note` returns the line that reports a number of dropped lines. `processes` is the number of
    processes that write at the same time, this one included.
    """

    def __init__(self, target: int, processes: int, note: Callable[[int], bytes]) -> None:
        self._target = target
        self._note = note
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        # The number of dropped lines of each process, in memory that all of them share.
        self._dropped = memoryview(mmap.mmap(-1, 8 * processes)).cast("Q")
        self._process = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        # Signals must reach the main thread, because only it can block them around a fork.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._thread.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def write(self, lines: bytes) -> None:
        """Write whole lines, at most PIPE_BUF bytes. Raise OSError if the first process is gone."""
        try:
            os.write(self._write_end, lines)
        except BlockingIOError:
            with self._lock:
                self._dropped[self._process] += lines.count(b"\n")

    def enter_worker(self, number: int) -> None:
        """Count dropped lines for this worker. Call it in the new process, after the fork."""
        self._process = number + 1
        os.close(self._read_end)

    def close(self) -> None:
        """Copy the last lines, once all other processes have ended, if they are read in time."""
        os.close(self._write_end)
        self._thread.join(CLOSE_SECONDS)

    def _copy(self) -> None:
        rest, noted = b"", 0
        while True:
            is_ready, _, _ = select.select([self._read_end], [], [], _NOTE_SECONDS)
            received = os.read(self._read_end, _READ_BYTES) if is_ready else b""
            lines, end, rest = (rest + received).rpartition(b"\n")
            for piece in split_lines(lines + end):
                self._write_to_target(piece)
            dropped = sum(self._dropped)
            if dropped > noted:
                self._write_to_target(self._note(dropped - noted))
                noted = dropped
            if is_ready and not received:  # All writers have closed their ends.
                return

    def _write_to_target(self, piece: bytes) -> None:
        with suppress(OSError):  # The reader is gone.
            while piece:
                try:
                    piece = piece[os.write(self._target, piece) :]
                except BlockingIOError:  # Another program made it non-blocking.
                    select.select([], [self._target], [])


def split_lines(text: bytes) -> Iterator[bytes]:
    """Split whole lines into pieces of at most PIPE_BUF bytes. Longer lines are continued."""
    while text:
        end = text.rfind(b"\n", 0, PIPE_BUF) + 1
        if end:
            yield text[:end]
            text = text[end:]
        else:
            yield text[: PIPE_BUF - 1] + b"\n"
            text = b"    " + text[PIPE_BUF - 1 :]
