"""A listening socket with a path, which only the users with access to the path can reach.

Every user of a machine can connect to 127.0.0.1, and the server does not authenticate clients.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import closing, suppress

PREFIX = "unix:"
# Longest path in bytes that every system accepts (sun_path has 104 bytes on macOS, 108 on Linux).
_MAX_PATH = 103


class Listener(socket.socket):
    """A listening socket that knows which file at its path is its own."""

    file: os.stat_result


def bind(path: str, backlog: int) -> Listener:
    """Return a socket that listens at `path`, with mode 0660. Raise OSError.

    A socket that a server left behind is replaced. If two servers start at the same moment, both
    may do that, and clients reach the later one.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise OSError("this system has no unix sockets; give an address")
    if not 0 < len(os.fsencode(path)) <= _MAX_PATH:
        raise OSError(f"give a path of 1 to {_MAX_PATH} bytes")
    _remove_stale(path)
    listener = Listener(socket.AF_UNIX)
    # The socket never exists with another mode.
    mask = os.umask(0o117)
    try:
        listener.bind(path)
        listener.file = os.lstat(path)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def close(listener: socket.socket) -> None:
    """Close a listening socket, and remove its file if it has one.

    Do this before any worker stops accepting: a server that starts meanwhile must not find, and
    replace, a path that is removed afterwards.
    """
    if isinstance(listener, Listener):
        path = listener.getsockname()
        with suppress(OSError):  # It is gone, or its folder is read-only now.
            # Another server may have replaced it.
            if os.path.samestat(os.lstat(path), listener.file):
                os.unlink(path)
    listener.close()


def _remove_stale(path: str) -> None:
    """Remove a socket that a server left behind. Raise OSError if anything else is there."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError("it exists and is not a socket; give another path")
    with closing(socket.socket(socket.AF_UNIX)) as probe:
        probe.setblocking(False)  # A full backlog must not delay the start.
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError("another server listens on it; give another path or stop that server")
