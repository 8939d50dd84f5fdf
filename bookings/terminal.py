"""Signals, exit codes and output of the commands. The terminal may be gone at any time."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from bookings.stores.model import CannotOpen, Counts


def run_command(name: str, command: Callable[[], int], broken_pipe: int = 1) -> int:
    """Run a command and return its exit code, `broken_pipe` if the reader of its output left.

    An error becomes one line on standard error and exit code 1. Ctrl+C, SIGTERM and SIGHUP become
    exceptions, so that the command can clean up, and exit code 128 plus the signal's number.
    """
    exit_on_signals()
    tolerate_unprintable_characters()
    try:
        return command()
    except CannotOpen as error:
        return fail(name, str(error))
    except BrokenPipeError:
        discard_output()
        return broken_pipe
    except OSError as error:
        discard_output()
        return fail(name, f"{error.filename or 'cannot print'}: {error.strerror or error}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def exit_on_signals() -> None:
    for number in (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")):
        # nohup ignores SIGHUP, and the command must keep ignoring it.
        if number and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


def tolerate_unprintable_characters() -> None:
    """Print escapes instead of failing for characters that the terminal cannot show."""
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def print_if_possible(text: str) -> None:
    """Print a line, unless standard output is closed or its reader is gone."""
    try:
        print(text, flush=True)
    except OSError:
        discard_output()


def describe(counts: Counts) -> str:
    """Return a text like "1 booking and 2 cancellations"."""
    bookings = plural(counts.bookings, "booking")
    if not counts.cancellations:
        return bookings
    return f"{bookings} and {plural(counts.cancellations, 'cancellation')}"


def progress_of(unit: str) -> Callable[[int, int], None]:
    """Return a function that shows how many of these units remain, if there is a terminal."""

    def show(remaining: int, total: int) -> None:
        done = 100 * (total - remaining) // max(total, 1)
        # The next line, whether progress or an error, overwrites this one.
        end = "\r" if remaining else "\n"
        print(f"{done:3d} % of {total} {unit}", end=end, file=sys.stderr, flush=True)

    return show if sys.stderr and sys.stderr.isatty() else lambda remaining, total: None


def escape(text: str) -> str:
    """Replace unprintable characters with Python escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def discard_output() -> None:
    """Send standard output to the null device. Otherwise Python fails again when it closes it."""
    if sys.stdout:
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(name: str, message: str) -> int:
    """Print an error and return exit code 1."""
    note(name, message)
    return 1


def note(name: str, message: str) -> None:
    """Print a line on standard error."""
    if sys.stderr:
        print(f"{name}: {message}", file=sys.stderr)
