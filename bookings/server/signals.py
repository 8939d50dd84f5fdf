"""Signals that end the server, the second one at once, and signals that it ignores."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence

# `timeout` signals both the process and its group; count two signals within this time as one. A
# person needs longer to press Ctrl+C twice.
SAME_SIGNAL_SECONDS = 0.01
# SIGBREAK is Ctrl+Break on Windows.
STOP_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
]
# Programs that rotate logs send these to the processes that write them. The server reopens nothing.
_IGNORED_SIGNALS = [
    getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)
]


def handle_signals(
    signals: Sequence[int],
    shut_down: Callable[[], None],
    kill: Callable[[], None] = lambda: None,
) -> None:
    """Call `shut_down` at the first of these signals. At the second one, call `kill` and die.

    SIGUSR1 and SIGUSR2 are ignored, also in processes that this one forks afterwards.
    """
    first_signal: float | None = None
    hangup = getattr(signal, "SIGHUP", None)

    def handle(number: int, frame: object) -> None:
        nonlocal first_signal
        if first_signal is None:
            first_signal = time.monotonic()
            shut_down()
        # When a terminal closes, its shell sends SIGHUP as well; it never counts as the second.
        elif number != hangup and time.monotonic() - first_signal >= SAME_SIGNAL_SECONDS:
            kill()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in signals:
        # nohup ignores SIGHUP, and the server must keep ignoring it.
        if number != hangup or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def wake_up_on_signals() -> int:
    """Return a pipe that becomes readable at every signal, SIGCHLD included. A signal that
    arrives just before a blocking call would otherwise go unnoticed until the call returns.
    """
    wakeup, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return wakeup
