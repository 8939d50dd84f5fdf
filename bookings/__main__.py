"""Starts the server: settings, database, listening socket, workers. run.py calls it as well."""

from __future__ import annotations

import os
import sys

from bookings import __version__, settings, terminal
from bookings.server import request_log, unix_socket, workers
from bookings.server.server import listen
from bookings.stores import find_database
from bookings.stores.model import CannotOpen


def main() -> int:
    """Serve until a signal arrives. Return the exit code."""
    try:
        return _serve()
    except CannotOpen as error:
        return terminal.fail(settings.program_name(), str(error))
    except OSError as error:
        return terminal.fail(settings.program_name(), f"cannot start: {error.strerror or error}")
    except KeyboardInterrupt:  # Before the workers handle signals.
        return 130
    finally:
        request_log.close()


def _serve() -> int:
    options = settings.parse_server_settings()
    terminal.tolerate_unprintable_characters()
    request_log.configure(options.quiet, options.workers)
    database = find_database(options.database)
    database.create()
    try:
        listener = listen(options.host, options.port)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        address = _join(options.host, options.port)
        if options.host == os.environ.get("HOST"):
            reason = f"{reason}; environment variable HOST sets this address, --host overrides it"
        return terminal.fail(settings.program_name(), f"cannot listen on {address}: {reason}")
    bound = listener.getsockname()
    is_path = isinstance(bound, str)
    url = f"{unix_socket.PREFIX}{bound}" if is_path else f"http://{_join(*bound[:2])}"
    startup_line = f"Bookings {__version__} on {url}, database {database.name}"
    return workers.serve(
        listener,
        database,
        options.allowed_hosts,
        options.workers,
        lambda: terminal.print_if_possible(startup_line),
    )


def _join(host: str, port: int) -> str:
    if host.startswith(unix_socket.PREFIX):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
