"""Creates a file that is either complete or does not exist."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from bookings.stores.model import CannotOpen


@contextmanager
def new_file(target: str, replace: bool, advice: str) -> Iterator[str]:
    """Yield the path of a temporary file beside `target`; at the end, sync and rename it.

    If the block raises, nothing is left behind. Without `replace` an existing file is never
    replaced; the CannotOpen then ends with `advice`. Raises OSError if the disk fails.
    """
    # In the same directory, because a rename is atomic within one file system only.
    directory, name = os.path.split(target)
    handle, partial = tempfile.mkstemp(dir=directory, prefix=f"{name}.")
    try:
        os.close(handle)
        yield partial
        _sync(partial)
        _publish(partial, target, replace, advice)
    finally:
        for leftover in (partial, f"{partial}-journal", f"{partial}-wal", f"{partial}-shm"):
            with suppress(FileNotFoundError):
                os.remove(leftover)
    if os.name != "nt":  # Windows cannot open a directory.
        with suppress(PermissionError):  # A directory may be writable but not readable.
            _sync(directory)


def _publish(partial: str, target: str, replace: bool, advice: str) -> None:
    if replace:
        os.replace(partial, target)
        return
    try:
        # rename would replace a file that was created in the meantime; link fails.
        os.link(partial, target)
    except FileExistsError:
        raise CannotOpen(f"{target} exists; {advice}") from None
    except OSError as error:
        raise CannotOpen(
            f"{target}: this file system cannot create a file without the risk of replacing one "
            f"({error.strerror}); {advice}"
        ) from error


def _sync(path: str) -> None:
    # Windows syncs only a file that is open for writing.
    handle = os.open(path, os.O_RDWR if os.path.isfile(path) else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
