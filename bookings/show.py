"""python -m bookings.show: the bookings as a table, from a database opened read-only, whether the server runs or not.

What a row holds is shown so that it cannot act on the terminal. This module knows no SQL and no HTTP.
"""

from __future__ import annotations

import argparse
import os
import sys
import unicodedata
from collections.abc import Iterable

from bookings.store import Booking, CannotOpen, all_bookings, default_database


def main() -> int:
    """Print the table; the exit status, 1 where there is no database to show."""
    parser = argparse.ArgumentParser(
        prog="python -m bookings.show", description="Print the bookings as a table."
    )
    parser.add_argument(
        "--database",
        default=default_database(),
        help="the SQLite file (environment: BOOKINGS_DB; default: bookings.db beside run.py)",
    )
    settings = parser.parse_args()
    # A terminal that cannot show a character gets its number instead of a traceback.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        print_table(list(all_bookings(settings.database)))
    except CannotOpen as error:
        print(f"bookings.show: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"bookings.show: cannot print: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def print_table(bookings: list[Booking]) -> None:
    """A header, a line for each booking, and how many there are."""
    header = tuple(Booking.__dataclass_fields__)
    rows = [header] + [
        tuple(printable(str(value)) for value in vars(booking).values()) for booking in bookings
    ]
    widths = [max(map(width, column)) for column in zip(*rows)]
    rows.insert(1, tuple("-" * columns for columns in widths))
    for row in rows:
        print(aligned(row, widths))
    print(f"{len(bookings)} booking{'' if len(bookings) == 1 else 's'}")
    sys.stdout.flush()


def aligned(row: Iterable[str], widths: Iterable[int]) -> str:
    """The cells, each filled up to the width of its column."""
    return "  ".join(cell + " " * (columns - width(cell)) for cell, columns in zip(row, widths)).rstrip()


def printable(text: str) -> str:
    """The text with what is not for printing, control characters above all, as Python escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


if __name__ == "__main__":
    sys.exit(main())
