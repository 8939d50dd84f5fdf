"""The files of a SQLite database, and whether they are still the ones from startup.

This module opens and compares files. It runs no SQL.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bookings.stores.model import CannotOpen

OLDEST_SQLITE = (3, 34, 0)

# Device and inode of each path. They identify a file even after it was renamed.
Identities = Mapping[str, tuple[int, int]]


class DatabaseFiles:
    """The database file and its -wal and -shm files.

    SQLite keeps its locks in -shm. If either file is deleted and recreated while we run, old and
    new connections do not see each other's locks and corrupt the database. `verify` detects this.
    """

    def __init__(self, path: str) -> None:
        self.path = absolute_path(path)
        # SQLite resolves a symbolic link and puts -wal and -shm beside its target, except on
        # Windows.
        real = self.path if os.name == "nt" else os.path.realpath(self.path)
        self.wal, self.shm = f"{real}-wal", f"{real}-shm"
        self._identities: Identities = {}

    def identify(self) -> Identities:
        """Return the identities of the files that exist now."""
        paths = (self.path, self.wal, self.shm)
        return {path: _identity(path) for path in paths if os.path.exists(path)}

    def expect(self, identities: Identities) -> None:
        """Make `verify` compare with these identities."""
        self._identities = identities

    def verify(self, *paths: str) -> None:
        """Raise OSError if one of the paths, by default all three, is no longer the same file."""
        for path in paths or (self.path, self.wal, self.shm):
            self._compare(path, _identity(path))

    def open_wal(self) -> int:
        """Return a descriptor of the WAL. Raise OSError if it is no longer the same file."""
        descriptor = os.open(self.wal, os.O_RDWR)
        try:
            self._compare(self.wal, _identity(descriptor))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _compare(self, path: str, found: tuple[int, int]) -> None:
        if found != self._identities[path]:
            raise OSError(
                f"{path} was replaced while the server was running; restart to use the new file"
            )

    def uri(self, mode: str) -> str:
        """Return the URI that opens the database. Only mode=rwc creates a file."""
        return f"{Path(self.path).as_uri()}?{mode}"

    def sync_directory(self) -> None:
        """Make the files' names durable. Windows cannot open a directory and needs no sync."""
        if os.name == "nt":
            return
        directory = os.path.dirname(self.wal)
        try:
            with open_descriptor(directory, os.O_RDONLY) as descriptor:
                os.fsync(descriptor)
        except OSError as error:
            raise CannotOpen(f"{directory} cannot be synced: {error.strerror}") from error


def absolute_path(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as error:
        raise CannotOpen(
            f"{path}: the current directory does not exist: {error.strerror}"
        ) from error


@contextmanager
def open_descriptor(path: str, flags: int) -> Iterator[int]:
    """Open an existing file or directory and yield its descriptor."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def startup_errors(path: str) -> Iterator[None]:
    """Raise CannotOpen, with the cause in one line, if the database cannot be opened."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise CannotOpen(
            f"this Python has SQLite {sqlite3.sqlite_version}; bookings needs {oldest} or newer"
        )
    if os.path.isdir(path):
        raise CannotOpen(f"{path} is a directory; name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise CannotOpen(f"{path} is not a regular file; name another file")
    if not os.path.isdir(os.path.dirname(path)):
        raise CannotOpen(f"{path}: its directory does not exist; create it or name another file")
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise CannotOpen(f"{path}: {error}") from error


def _identity(path: str | int) -> tuple[int, int]:
    """Return the identity of the file at a path or of an open descriptor."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
