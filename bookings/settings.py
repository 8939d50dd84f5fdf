"""Flags, environment variables and defaults. A flag wins over its environment variable."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from bookings import __version__
from bookings.cpus import default_workers

_DEFAULT_DATABASE = Path(__file__).resolve().parent.parent / "bookings.db"


class OneLineParser(argparse.ArgumentParser):
    """Reports a bad setting in one line instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help explains the settings\n")


def add_database(parser: argparse.ArgumentParser) -> None:
    """Add --database, which every command shares."""
    parser.add_argument(
        "--database",
        default=os.environ.get("BOOKINGS_DB") or str(_DEFAULT_DATABASE),
        help="SQLite file, or rqlite cluster as http://host:4001,host:4001 (environment: "
        "BOOKINGS_DB; default: bookings.db beside run.py)",
    )


def program_name() -> str:
    """Return how the server was started: run.py, or python -m bookings."""
    return "python -m bookings" if Path(sys.argv[0]).name == "__main__.py" else "run.py"


def parse_server_settings() -> argparse.Namespace:
    """Return port, host, database, workers, allowed_hosts and quiet. Exit with 2 for a bad one."""
    parser = OneLineParser(
        prog=program_name(),
        description="Serve bookings over HTTP: at most one per tenant and start time.",
    )
    parser.add_argument(
        "--port",
        type=port_number,
        help="port to listen on, 0 for any free port (environment: PORT; default: 3000)",
    )
    parser.add_argument(
        "--host",
        type=host_address,
        help="address to listen on, or unix:PATH for a unix socket, which ignores the port "
        "(environment: HOST; default: 127.0.0.1, which only this machine can reach)",
    )
    add_database(parser)
    parser.add_argument(
        "--workers",
        type=worker_count,
        help="number of server processes (environment: WORKERS; default: one per "
        "CPU that it may use, at most 8; one on Windows)",
    )
    parser.add_argument(
        "--allowed-hosts",
        type=host_names,
        metavar="NAMES",
        help="comma-separated Host names to accept besides localhost, IP addresses and names "
        "without a dot; .example.com includes its subdomains (environment: ALLOWED_HOSTS; "
        "default: none on loopback, any otherwise)",
    )
    parser.add_argument("--version", action="version", version=f"bookings {__version__}")
    parser.add_argument("--quiet", action="store_true", help="log faults only, not every request")
    options = parser.parse_args()
    _add_variables(options, parser)
    return options


def _add_variables(options: argparse.Namespace, parser: OneLineParser) -> None:
    """Take what no flag sets from the environment. An error names the variable, not the flag."""
    for variable, default, validate in (
        ("PORT", "3000", port_number),
        ("HOST", "127.0.0.1", host_address),
        ("WORKERS", str(default_workers()), worker_count),
        ("ALLOWED_HOSTS", "", host_names),
    ):
        if getattr(options, variable.lower()) is None:
            try:
                value = validate(os.environ.get(variable) or default)
            except argparse.ArgumentTypeError as error:
                parser.error(f"environment variable {variable}: {error}")
            setattr(options, variable.lower(), value)


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"not a port: {text!r}; give a number from 0 to 65535")
    return int(text)


def host_address(text: str) -> str:
    """Reject a URL, and an address with brackets or a port. Binding finds other errors."""
    if not text.startswith("unix:") and (re.search(r"[][/]", text) or text.count(":") == 1):
        raise argparse.ArgumentTypeError(
            f"not an address: {text!r}; give one like 127.0.0.1 or ::1, and the port with --port"
        )
    return text


def worker_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and int(text) > 0):
        raise argparse.ArgumentTypeError(
            f"not a number of workers: {text!r}; give a number from 1 to 999"
        )
    if int(text) > 1 and not hasattr(os, "fork"):
        raise argparse.ArgumentTypeError("this system cannot share a port among workers; give 1")
    return int(text)


def host_names(text: str) -> list[str]:
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        if not re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?", name):
            raise argparse.ArgumentTypeError(
                f"not a host name: {name!r}; give one like bookings.example, without a port, or "
                ".bookings.example for all its subdomains"
            )
    return [name.removesuffix(".") for name in names]
