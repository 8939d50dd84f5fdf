"""python -m bookings.restore COPY: makes a new database from a backup or an older database.

The rules of schema.sql judge every row again. The new database is complete or does not exist; on a
cluster an interrupted restore continues when it is repeated. COPY is only read.
"""

from __future__ import annotations

import argparse
import os
import sys

from bookings import settings, terminal
from bookings.stores import find_database
from bookings.stores.files import absolute_path
from bookings.stores.model import CannotOpen, RowsRejected

_NAME = "bookings.restore"


def main() -> int:
    """Make the database. Return the exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {_NAME}",
        description="Make the new database that --database names from a backup, or from a database "
        "of an older version or of another program, if it has the same columns.",
    )
    parser.add_argument("copy", help="SQLite file with a table of bookings; it is only read")
    settings.add_database(parser)
    options = parser.parse_args()
    copy = absolute_path(options.copy)
    if not os.path.exists(copy):
        raise CannotOpen(
            f"{copy} does not exist; name a file that bookings.backup made, for example"
        )
    database = find_database(options.database)
    try:
        restored = database.restore(copy, terminal.progress_of("rows"))
    except RowsRejected as error:
        for reason in error.reasons:
            terminal.note(_NAME, reason)
        raise
    if restored.uncopied:
        terminal.note(_NAME, f"not copied: {terminal.escape(', '.join(restored.uncopied))}")
    if restored.rewritten:
        rewritten = terminal.plural(restored.rewritten, "booking")
        terminal.note(_NAME, f"created_at of {rewritten} was rewritten like 2026-01-01T10:00:00Z")
    terminal.print_if_possible(f"{terminal.describe(restored.counts)} restored to {database.name}")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.run_command(_NAME, main))
