"""python -m bookings.backup FILE: copies the database while the server runs.

The copy is written under a temporary name and verified before it gets the name FILE, so FILE is
either a complete copy or does not exist. A failed backup leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile

from bookings import settings
from bookings.stores import find_database
from bookings.stores.files import absolute_path
from bookings.stores.model import CannotOpen, Counts
from bookings.terminal import plural, print_if_possible, run_command

_NAME = "bookings.backup"


def main() -> int:
    """Copy the database. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_NAME}", description="Copy the database while the server runs."
    )
    parser.add_argument("file", help="file to create")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    settings.add_database(parser)
    options = parser.parse_args()
    copied = back_up(options.database, absolute_path(options.file), options.force)
    print_if_possible(f"{describe(copied)} copied to {options.file}")
    return 0


def describe(counts: Counts) -> str:
    """Return a text like "1 booking and 2 cancellations"."""
    bookings = plural(counts.bookings, "booking")
    if not counts.cancellations:
        return bookings
    return f"{bookings} and {plural(counts.cancellations, 'cancellation')}"


def back_up(database: str, target: str, force: bool) -> Counts:
    """Copy the database to `target` and return what is in the copy.

    Raises CannotOpen or OSError.
    """
    verify_target(database, target, force)
    with find_database(database).read() as reader:
        # In the same directory, because a rename is atomic within one file system only.
        directory, name = os.path.split(target)
        handle, partial = tempfile.mkstemp(dir=directory, prefix=f"{name}.")
        try:
            os.close(handle)
            on_terminal = sys.stderr and sys.stderr.isatty()
            copied = reader.copy_to(
                partial, show_progress if on_terminal else lambda remaining, total: None
            )
            sync(partial)
            # mkstemp made the copy private to its owner. A cluster has no mode to copy.
            if os.path.exists(database):
                shutil.copymode(database, partial)
            verify_target(database, target, force)
            publish(partial, target, force)
        finally:
            for leftover in (partial, f"{partial}-journal", f"{partial}-wal", f"{partial}-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(leftover)
    if os.name != "nt":  # Windows cannot open a directory.
        with contextlib.suppress(PermissionError):  # A directory may be writable but not readable.
            sync(directory)
    return copied


def verify_target(database: str, target: str, force: bool) -> None:
    """Raise CannotOpen if a copy must not be written to `target`."""
    if not os.path.isdir(os.path.dirname(target)):
        raise CannotOpen(f"{target}: its directory does not exist; create it or name another file")
    if os.path.isdir(target):
        raise CannotOpen(f"{target} is a directory; name a file in it")
    if os.path.exists(target) and not os.path.isfile(target):
        raise CannotOpen(f"{target} is not a regular file; name another file")
    for leftover in (f"{target}-wal", f"{target}-journal"):
        if os.path.exists(leftover):
            raise CannotOpen(
                f"{leftover} exists, and SQLite would replay it into the copy; name another file"
            )
    source = os.path.realpath(database)
    if os.path.realpath(target) in (f"{source}-wal", f"{source}-shm", f"{source}-journal"):
        raise CannotOpen(f"{target} belongs to the database; name another file")
    if os.path.exists(target) and os.path.exists(database) and os.path.samefile(database, target):
        raise CannotOpen(f"{target} is the database itself; name another file")
    if os.path.lexists(target) and not force:
        raise CannotOpen(f"{target} exists; --force replaces it")


def publish(partial: str, target: str, force: bool) -> None:
    """Give the copy its name. Without `force` this never replaces a file."""
    if force:
        os.replace(partial, target)
        return
    try:
        # rename would replace a file that was created in the meantime; link fails.
        os.link(partial, target)
    except FileExistsError:
        raise CannotOpen(f"{target} exists; --force replaces it") from None
    except OSError as error:
        raise CannotOpen(
            f"{target}: this file system cannot create a file without the risk of replacing one "
            f"({error.strerror}); --force accepts that"
        ) from error


def show_progress(remaining: int, total: int) -> None:
    done = 100 * (total - remaining) // max(total, 1)
    # The next line, whether progress or an error, overwrites this one.
    end = "\r" if remaining else "\n"
    print(f"{done:3d} % of {total} pages", end=end, file=sys.stderr, flush=True)


def sync(path: str) -> None:
    # Windows syncs only a file that is open for writing.
    handle = os.open(path, os.O_RDWR if os.path.isfile(path) else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(run_command(_NAME, main))
