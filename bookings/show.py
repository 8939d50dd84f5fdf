"""python -m bookings.show: the bookings as a table, from a database opened read-only, whether the server runs or not.

What a row holds is shown so that it cannot act on the terminal; rows are read and printed one by one, however many.
This module knows no SQL and no HTTP.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from bookings import fields
from bookings.databases import kind_of
from bookings.store import Booking, CannotOpen, default_database


def main() -> int:
    """Print the bookings; the exit status, 1 where there is no database to show."""
    settings = read_settings()
    if not sys.stdout:  # closed by who started this
        return 1
    # A terminal that cannot show a character gets its number instead of a traceback.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with kind_of(settings.database).reading(settings.database) as reader:

            def bookings() -> Iterator[Booking]:
                return reader.bookings(
                    settings.tenant, settings.at_least or "", settings.before or "", settings.limit
                )

            (print_json if settings.json else print_table)(bookings)
            sys.stdout.flush()
    except CannotOpen as error:
        print(f"bookings.show: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"bookings.show: cannot print: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def read_settings() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bookings.show", description="Print the bookings as a table."
    )
    parser.add_argument(
        "--database",
        default=default_database(),
        help="the SQLite file, or an rqlite cluster like http://host:4001,host:4001 "
        "(environment: BOOKINGS_DB; default: bookings.db beside run.py)",
    )
    parser.add_argument("--tenant", type=argument(fields.text), help="only this tenant's bookings")
    parser.add_argument(
        "--from",
        dest="at_least",
        type=argument(fields.instant),
        help="only those that start at this instant or later, like 2026-01-01T10:00:00Z",
    )
    parser.add_argument(
        "--to", dest="before", type=argument(fields.instant), help="only those that start before it"
    )
    parser.add_argument("--limit", type=argument(whole_number), default=-1, help="only so many")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    return parser.parse_args()


def argument(check: Callable[[str], object]) -> Callable[[str], object]:
    """A check that raises ValueError, in the form in which argparse repeats what it says."""

    def checked(value: str) -> object:
        try:
            return check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{value!r} {error}") from None

    return checked


def whole_number(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 18 and int(value) > 0):
        raise ValueError("is not a number from 1 up, of at most 18 digits")
    return int(value)


def print_json(bookings: Callable[[], Iterable[Booking]]) -> None:
    """One object a line, in ASCII: a character that could act on a terminal is an escape, a blob is as Python shows it."""
    for booking in bookings():
        print(json.dumps(vars(booking), default=repr).replace("\x7f", "\\u007f"))


def print_table(bookings: Callable[[], Iterable[Booking]]) -> None:
    """A header, a line for each booking, and how many there are; read twice, first for the widths."""
    header = tuple(Booking.__dataclass_fields__)
    widths = [len(name) for name in header]
    for booking in bookings():
        widths = [max(columns, width(cell)) for columns, cell in zip(widths, cells(booking))]
    print(aligned(header, widths))
    print(aligned(["-" * columns for columns in widths], widths))
    count = 0
    for booking in bookings():
        print(aligned(cells(booking), widths))
        count += 1
    print(f"{count} booking{'' if count == 1 else 's'}")


def cells(booking: Booking) -> list[str]:
    return [printable(str(value)) for value in vars(booking).values()]


def aligned(row: Iterable[str], widths: Iterable[int]) -> str:
    """The cells, each filled up to the width of its column."""
    return "  ".join(cell + " " * (columns - width(cell)) for cell, columns in zip(row, widths)).rstrip()


def printable(text: str) -> str:
    """The text with what is not for printing, control characters above all, as Python escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


if __name__ == "__main__":
    sys.exit(main())
