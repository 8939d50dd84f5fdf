"""Serve bookings: settings from flags, then the environment, then defaults; make the database; listen; serve."""

# So that any Python, however old, can read this file and say that it is too old: imports stand below the check, types
# in comments, and there is no f-string and no print.
import sys

if sys.hexversion < 0x03090000:
    sys.exit("run.py: this is Python " + sys.version.split()[0] + "; bookings needs 3.9 or newer")

import argparse
import logging
import os
import re
import time
from typing import NoReturn  # noqa: F401 - named in a type comment

from bookings.databases import kind_of
from bookings.server import listen
from bookings.store import CannotOpen, default_database
from bookings.workers import default_count, serve


def main():
    # type: () -> int
    """Serve until a signal asks to stop; the exit status."""
    settings = read_settings()
    # A path may have characters that the terminal cannot show.
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    log_to_stderr(logging.WARNING if settings.quiet else logging.INFO)
    try:
        database = kind_of(settings.database)
        database.create(settings.database)
        try:
            listener = listen(settings.host, settings.port)
        except (OSError, UnicodeError) as error:  # the second for a host that cannot be a name
            why = getattr(error, "strerror", None) or str(error)
            return fail("cannot listen on " + address(settings.host, settings.port) + ": " + why)
        where = address(settings.host, listener.getsockname()[1])
        line = "Bookings on http://" + where + ", database " + database.shown(settings.database) + "\n"
        return serve(listener, settings.database, settings.allowed_hosts, settings.workers, lambda: say(line))
    except CannotOpen as error:
        return fail(str(error))
    except OSError as error:
        return fail("cannot start: " + (error.strerror or str(error)))


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a setting in one line."""

    def error(self, message):
        # type: (str) -> NoReturn
        self.exit(2, self.prog + ": " + message + "; --help explains the settings\n")


def read_settings():
    # type: () -> argparse.Namespace
    parser = OneLineParser(description="Serve bookings over HTTP: at most one per tenant and start time.")
    parser.add_argument(
        "--port",
        type=port_number,
        default=os.environ.get("PORT") or "3000",
        help="where to listen, 0 for any free port (environment: PORT; default: 3000)",
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("HOST") or "127.0.0.1",
        help="the address to listen on (environment: HOST; default: 127.0.0.1, reached from this machine only)",
    )
    parser.add_argument(
        "--database",
        default=default_database(),
        help="the SQLite file, made if missing, or an rqlite cluster like http://host:4001,host:4001 "
        "(environment: BOOKINGS_DB; default: bookings.db beside run.py)",
    )
    parser.add_argument(
        "--workers",
        type=worker_count,
        default=os.environ.get("WORKERS") or str(default_count()),
        help="how many processes serve (environment: WORKERS; default: one for each processor, one on Windows)",
    )
    parser.add_argument(
        "--allowed-hosts",
        type=host_names,
        default=os.environ.get("ALLOWED_HOSTS") or "",
        metavar="NAMES",
        help="the names, separated by commas, by which clients may call it, besides localhost, addresses and names "
        "without a dot (environment: ALLOWED_HOSTS; default: no others on 127.0.0.1 or ::1, and any elsewhere)",
    )
    parser.add_argument("--quiet", action="store_true", help="log faults, but no line for each request")
    return parser.parse_args()


class LogFormat(logging.Formatter):
    """The time in UTC, then the message. A line of ours starts with a digit, one that goes on with a space."""

    def format(self, record):
        # type: (logging.LogRecord) -> str
        return super().format(record).replace("\n", "\n    ")


def log_to_stderr(level):
    # type: (int) -> None
    form = LogFormat("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S")
    form.converter = time.gmtime
    handler = logging.StreamHandler()
    handler.setFormatter(form)
    logging.basicConfig(level=level, handlers=[handler])


def port_number(text):
    # type: (str) -> int
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError("not a port: " + repr(text) + "; give a number from 0 to 65535")
    return int(text)


def host_names(text):
    # type: (str) -> list[str]
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch("[A-Za-z0-9._-]+", name):
            raise argparse.ArgumentTypeError(
                "not a host name: " + repr(name) + "; give one like bookings.example, without scheme and port"
            )
    return [name.lower() for name in names]


def worker_count(text):
    # type: (str) -> int
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) > 0):
        raise argparse.ArgumentTypeError(
            "not a number of workers: " + repr(text) + "; give one from 1 to 999"
        )
    if int(text) > 1 and not hasattr(os, "fork"):
        raise argparse.ArgumentTypeError("this system cannot share a port among workers; give 1")
    return int(text)


def address(host, port):
    # type: (str, int) -> str
    return ("[" + host + "]" if ":" in host else host) + ":" + str(port)


def say(line):
    # type: (str) -> None
    try:
        sys.stdout.write(line)
        sys.stdout.flush()
    except (AttributeError, OSError):
        pass  # whoever started this has closed it or left; the server serves all the same


def fail(message):
    # type: (str) -> int
    sys.stderr.write("run.py: " + message + "\n")
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before it serves; from then on, bookings.workers sees to signals
        sys.exit(130)
