"""The files of a SQLite database, and whether they are still the ones from startup.

This module opens and compares files. It runs no SQL.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
        self.wal, self.shm, self.journal = f"{real}-wal", f"{real}-shm", f"{real}-journal"
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

    def verify_wal(self) -> None:
        """Raise CannotOpen if the WAL belongs to another database file, which was here before.

        SQLite would replay it, or delete it if this file is empty. SQLite marks a database as being
        in WAL mode, in bytes 18 and 19 of its header, before it creates a WAL.
        """
        if not _has_content(self.wal):
            return
        header = b""
        with suppress(FileNotFoundError), open(self.path, "rb") as database:
            header = database.read(20)
        # The database may have left WAL mode in between, which deletes the WAL.
        if header[18:] in (b"\1\1", b"") and _has_content(self.wal):
            raise CannotOpen(
                f"{self.wal} was left by another database that was at {self.path}, and SQLite "
                "would replay it into this one; move it away"
            )

    def verify_permissions(self) -> None:
        """Raise CannotOpen unless this user can write the files and create a WAL beside them.

        SQLite would name the wrong file, or open a read-only one without complaint.
        """
        for path in (self.path, self.wal, self.shm):
            if os.path.exists(path) and not os.access(path, os.W_OK):
                raise CannotOpen(f"{path}: permission denied: not writable by this user")
        directory = os.path.dirname(self.wal)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise CannotOpen(
                f"{self.path}: permission denied: this user cannot create files in {directory}, "
                "where SQLite needs a WAL; in a container, mount the directory instead of the file"
            )

    def verify_readable(self) -> None:
        """Raise CannotOpen if this user cannot read the database, its WAL included."""
        for path in (self.path, self.wal):
            if os.path.exists(path) and not os.access(path, os.R_OK):
                raise CannotOpen(f"{path}: permission denied: not readable by this user")
        needs_shm = os.path.exists(self.wal) and not os.path.exists(self.shm)
        if needs_shm and not os.access(os.path.dirname(self.wal), os.W_OK | os.X_OK):
            raise CannotOpen(
                f"{self.wal}: to read it, SQLite must create {self.shm}, but this user cannot; "
                "copy both the database and its -wal to another directory"
            )

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


def _has_content(path: str) -> bool:
    try:
        return os.path.getsize(path) > 0
    except OSError:
        return False


def _identity(path: str | int) -> tuple[int, int]:
    """Return the identity of the file at a path or of an open descriptor."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
