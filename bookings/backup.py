"""python -m bookings.backup FILE: a copy of the database while the server works.

The copy is written beside its place and renamed into it only after it has been found sound and whole, so that FILE is
a good copy or is not there. A failure leaves nothing behind. This module knows files; `store` knows how to copy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile

from bookings.databases import kind_of
from bookings.store import CannotOpen, default_database


def main() -> int:
    """Copy; the exit status, 1 where there is no copy."""
    parser = argparse.ArgumentParser(
        prog="python -m bookings.backup", description="Copy the database while the server works."
    )
    parser.add_argument("file", help="where the copy goes")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    parser.add_argument(
        "--database",
        default=default_database(),
        help="the SQLite file, or an rqlite cluster like http://host:4001,host:4001 "
        "(environment: BOOKINGS_DB; default: bookings.db beside run.py)",
    )
    settings = parser.parse_args()
    clean_up_on_signals()
    try:
        count = back_up(settings.database, os.path.abspath(settings.file), settings.force)
    except CannotOpen as error:
        print(f"bookings.backup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"bookings.backup: {settings.file}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if sys.stdout:  # where whoever started this has not closed it
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        try:
            print(f"{count} booking{'' if count == 1 else 's'} copied to {settings.file}", flush=True)
        except OSError:
            # The copy is made all the same. Python would complain once more when it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def clean_up_on_signals() -> None:
    """Turn the signals that would end the program at once, with half a copy left behind, into an exception."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


def back_up(database: str, target: str, force: bool) -> int:
    """Copy the database to `target` and return how many bookings it has; raises CannotOpen or OSError."""
    refuse_target(database, target, force)
    with kind_of(database).reading(database) as reader:
        # Beside the target, since only within one file system is renaming a single step.
        handle, partial = tempfile.mkstemp(dir=os.path.dirname(target), prefix=os.path.basename(target) + ".")
        try:
            os.close(handle)
            to_see = sys.stderr and sys.stderr.isatty()
            count = reader.copy_to(partial, show_progress if to_see else lambda remaining, total: None)
            sync(partial)
            if os.path.exists(database):  # a cluster has no mode, and its copy is for its owner alone
                shutil.copymode(database, partial)
            # Again: the copy took its time, and the file may have come into being.
            refuse_target(database, target, force)
            put_in_place(partial, target, force)
        except BaseException:
            for leftover in (partial, partial + "-journal", partial + "-wal", partial + "-shm"):
                if os.path.exists(leftover):
                    os.remove(leftover)
            raise
        if os.name != "nt":  # where a folder cannot be opened, and a rename is on the disk by itself
            with contextlib.suppress(PermissionError):  # one that may be written, but not read
                sync(os.path.dirname(target))
        return count


def refuse_target(database: str, target: str, force: bool) -> None:
    if os.path.isdir(target):
        raise CannotOpen(f"{target} is a folder; name a file in it")
    if os.path.exists(target) and not os.path.isfile(target):
        raise CannotOpen(f"{target} is not a file that can be replaced; name another")
    for log in (target + "-wal", target + "-journal"):
        if os.path.exists(log):  # SQLite would write what is in it into the copy
            raise CannotOpen(f"{target} is a database in use, or {log} is left of one; name another file")
    own = os.path.realpath(database)
    if os.path.realpath(target) in (f"{own}-wal", f"{own}-shm", f"{own}-journal"):
        raise CannotOpen(f"{target} belongs to the database; name another file")
    if os.path.exists(target) and os.path.exists(database) and os.path.samefile(database, target):
        raise CannotOpen(f"{target} is the database itself; name another file")
    if os.path.lexists(target) and not force:  # a link that leads nowhere, too
        raise CannotOpen(f"{target} exists; --force replaces it")


def put_in_place(partial: str, target: str, force: bool) -> None:
    """Rename; without `force` by a link, which never takes the place of a file, however late that came into being."""
    if not force:
        try:
            os.link(partial, target)
        except FileExistsError:
            raise CannotOpen(f"{target} exists; --force replaces it") from None
        except OSError:  # FAT has no links: there, having looked must do
            pass
        else:
            os.remove(partial)
            return
    os.replace(partial, target)


def show_progress(remaining: int, total: int) -> None:
    done = 100 * (total - remaining) // max(total, 1)
    # The next line takes its place, be it one of these or what has gone wrong.
    print(f"{done:3d} % of {total} pages", end="\r" if remaining else "\n", file=sys.stderr, flush=True)


def sync(path: str) -> None:
    # Windows syncs only what is open for writing, and a folder opens only for reading.
    handle = os.open(path, os.O_RDWR if os.path.isfile(path) else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


if __name__ == "__main__":
    sys.exit(main())
