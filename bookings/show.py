"""python -m bookings.show: prints the bookings of a database, whether the server runs or not.

Rows are read and printed one at a time, so memory does not depend on their number. Values are
escaped, so that a stored control character cannot act on the terminal.
"""

from __future__ import annotations

import argparse
import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from bookings import settings, values
from bookings.stores import find_database
from bookings.stores.model import Booking, Cancellation, Record
from bookings.terminal import escape, plural, run_command

_NAME = "bookings.show"


def main() -> int:
    """Print the bookings. Return the exit code."""
    options = parse_options()
    if not sys.stdout:  # The caller closed it.
        return 1
    with find_database(options.database).read() as reader:
        bounds = (options.start_from or "", options.start_before or "")
        read = partial(reader.bookings, options.tenant, *bounds, options.limit, options.cancelled)
        if options.json:
            print_json(read())
        elif options.cancelled:
            print_table(read, Cancellation._fields, "cancelled booking")
        else:
            print_table(read, Booking._fields, "booking")
        sys.stdout.flush()
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"python -m {_NAME}", description="Print the bookings.")
    settings.add_database(parser)
    parser.add_argument("--tenant", type=option(values.text), help="only this tenant's bookings")
    parser.add_argument(
        "--from",
        dest="start_from",
        type=option(values.instant),
        help="only bookings that start at this instant or later, like 2026-01-01T10:00:00Z",
    )
    parser.add_argument(
        "--to",
        dest="start_before",
        type=option(values.instant),
        help="only bookings that start before this instant",
    )
    parser.add_argument(
        "--limit", type=option(positive_number), default=-1, help="at most this many bookings"
    )
    parser.add_argument(
        "--cancelled", action="store_true", help="print the cancelled bookings instead"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    return parser.parse_args()


def option(validate: Callable[[str], object]) -> Callable[[str], object]:
    """Make argparse print the message of a validator's ValueError."""

    def validate_option(value: str) -> object:
        try:
            return validate(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{value!r} {error}") from None

    return validate_option


def positive_number(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 18 and int(value) > 0):
        raise ValueError("is not a positive number of at most 18 digits")
    return int(value)


def print_json(found: Iterable[Record]) -> None:
    """Print one object per line, in ASCII: control characters become escapes, a blob its repr."""
    for booking in found:
        print(json.dumps(booking._asdict(), default=repr).replace("\x7f", "\\u007f"))


def print_table(read: Callable[[], Iterable[Record]], columns: Sequence[str], noun: str) -> None:
    """Print aligned columns and the number of rows. Reads twice, first for the widths."""
    widths = [len(name) for name in columns]
    for booking in read():
        widths = [max(old, width(cell)) for old, cell in zip(widths, cells(booking))]
    print(align(columns, widths))
    print(align(["-" * length for length in widths], widths))
    count = 0
    for booking in read():
        print(align(cells(booking), widths))
        count += 1
    print(plural(count, noun))


def cells(booking: Record) -> list[str]:
    return [escape(str(value)) for value in booking]


def align(row: Iterable[str], widths: Iterable[int]) -> str:
    padded = (cell + " " * (columns - width(cell)) for cell, columns in zip(row, widths))
    return "  ".join(padded).rstrip()


def width(text: str) -> int:
    """Return the number of terminal columns that the text occupies."""
    return len(text) if text.isascii() else sum(map(_character_width, text))


def _character_width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):  # Combining marks.
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


if __name__ == "__main__":
    # A reader such as `head` may leave when it has seen enough.
    sys.exit(run_command(_NAME, main, broken_pipe=0))
