"""Starts a server as a separate process, for `bookings.prove` and the tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

_STARTUP_LINE = re.compile(r"Bookings \S+ on (http://\S+:([0-9]+)|unix:.+), database")


class ServerProcess:
    """A server in a separate process group, so that it can be killed with its workers.

    `command` runs the server without --port; `options` are those of subprocess.Popen.
    """

    def __init__(self, command: Sequence[str], port: int = 0, **options: Any) -> None:
        self._command = command
        self._options = options
        self.port = port
        try:
            self.start()
        except BaseException:  # Ctrl+C. The caller has no object to call `kill` on.
            if hasattr(self, "process"):
                self.kill()
            raise

    def start(self) -> None:
        """Start the process, on the same port as before if it was killed, and read the startup
        line. `url` is "" if the process exited without one.
        """
        with signals_deferred():
            self.process = subprocess.Popen(
                [*self._command, f"--port={self.port}"],
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
                **self._options,
            )
        assert self.process.stdout
        self.startup_line = self.process.stdout.readline()
        match = _STARTUP_LINE.match(self.startup_line)
        self.url = match[1] if match else ""
        self.port = int(match[2] or 0) if match else self.port

    def kill(self) -> None:
        """Kill the server and its workers without a warning."""
        if self.process.returncode is not None:  # The system may have reused its id.
            return
        with suppress(ProcessLookupError, PermissionError):  # macOS: the process is a zombie.
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP after the block: an exception between the start of a
    process and the assignment of its handle would leave the process running.
    """
    arrived: list[int] = []
    previous = {}
    if threading.current_thread() is threading.main_thread():  # Only it receives signals.
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            # The new process inherits an ignored signal, such as SIGHUP under nohup.
            if number and signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.getsignal(number)
                signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if arrived:
            signal.raise_signal(arrived[0])
