"""python -m bookings.backup FILE: copies the database while the server runs.

The copy is written under a temporary name and verified before it gets the name FILE, so FILE is
either a complete copy or does not exist. A failed backup leaves nothing behind.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from bookings import settings, terminal
from bookings.stores import find_database
from bookings.stores.files import absolute_path
from bookings.stores.model import CannotOpen, Counts
from bookings.stores.new_file import new_file

_NAME = "bookings.backup"


def main() -> int:
    """Copy the database. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_NAME}",
        description="Copy the database, also while the server runs, and verify the copy.",
    )
    parser.add_argument("file", help="file to create")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    settings.add_database(parser)
    options = parser.parse_args()
    copied = back_up(options.database, absolute_path(options.file), options.force)
    terminal.print_if_possible(f"{terminal.describe(copied)} copied to {options.file}")
    return 0


def back_up(database: str, target: str, force: bool) -> Counts:
    """Copy the database to `target` and return what is in the copy.

    Raises CannotOpen or OSError.
    """
    verify_target(database, target, force)
    copy = new_file(target, force, "--force replaces a file")
    with find_database(database).read() as reader, copy as partial:
        copied = reader.copy_to(partial, terminal.progress_of("pages"))
        # The copy is private to its owner. A cluster has no mode to copy.
        if os.path.exists(database):
            shutil.copymode(database, partial)
        verify_target(database, target, force)
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


if __name__ == "__main__":
    sys.exit(terminal.run_command(_NAME, main))
