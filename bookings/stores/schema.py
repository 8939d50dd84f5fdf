"""Reads schema.sql and verifies that a database has its rules, which are the whole guarantee."""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from bookings.stores.model import Booking, Cancellation, CannotOpen
from bookings.stores.sql import TABLES

ENCODING = "PRAGMA encoding"
# SQLite compares names without case, and reserves names that start with sqlite_ for itself.
OBJECTS = (
    "SELECT type || ' ' || lower(name), sql FROM sqlite_master "
    "WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite%'"
)

# The columns of the tables that have our names.
COLUMNS = " UNION ALL ".join(
    f"SELECT '{table}', name FROM pragma_table_info('{table}')" for table in TABLES
)

_FILE = Path(__file__).resolve().parents[2] / "schema.sql"
# A list of rules is cut to this length in a message.
_MAX_SHOWN = 300
# First words of the rules of a table that are not columns.
_CONSTRAINTS = {"", "check", "constraint", "foreign", "primary", "unique"}
# A text or a quoted name, which may contain what looks like a comment.
_QUOTED = r"""'(?:[^']|'')*'|["](?:[^"]|"")*["]"""


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


def verify_schema(
    encoding: str, objects: Iterable[tuple[str, str]], database: str, remedy: str
) -> None:
    """Raise CannotOpen, naming the differences, unless the database has all rules of schema.sql.

    `objects` are the rows of OBJECTS. Objects that schema.sql does not have are allowed. If the
    table has the columns of a booking, the message ends with `remedy`.
    """
    found = dict(objects)
    names = {_name(rule) for rule in _rules(found.get("table bookings", ""))}
    columns = names - _CONSTRAINTS
    if "table bookings" in found and not columns.issuperset(Booking._fields):
        raise CannotOpen(
            f"{database}: its table bookings ({_shorten(', '.join(sorted(columns)))}) is not the "
            "one in schema.sql; is it the database of another program?"
        )
    if encoding != "UTF-8":
        differences = [f"its encoding is {encoding}, not UTF-8"]
    else:
        expected = expected_objects().items()
        differences = [_difference(name, statement, found) for name, statement in expected]
    if any(differences):
        other = "is it the database of another program?"
        raise CannotOpen(
            f"{database}: {'; '.join(filter(None, differences))}; "
            f"{remedy if 'table bookings' in found else other}"
        )


def verify_columns(rows: Iterable[tuple[str, str]], database: str) -> bool:
    """Return whether there is a table of cancellations, in a database that is only read.

    `rows` are those of COLUMNS. Raises CannotOpen if a column of a booking is missing.
    """
    found = {(table, name.lower()) for table, name in rows}
    if not found.issuperset(("bookings", name) for name in Booking._fields):
        raise CannotOpen(
            f"{database}: it has no table bookings with the columns {', '.join(Booking._fields)}; "
            "is it the database of another program?"
        )
    return found.issuperset(("cancellations", name) for name in Cancellation._fields)


@functools.cache
def expected_objects() -> Mapping[str, str]:
    with closing(sqlite3.connect(":memory:")) as model:
        for statement in schema_statements():
            model.execute(statement)
        return dict(model.execute(OBJECTS).fetchall())


def _difference(name: str, statement: str, objects: Mapping[str, str]) -> str:
    """Describe how an object differs from the expected one; return "" if it has all its rules.

    Comments, white space and columns that an operator added do not matter.
    """
    if name not in objects:
        return f"it has no {name}"
    if objects[name] == statement:
        return ""
    expected_rules, found_rules = _rules(statement), _rules(objects[name])
    names = {_name(rule) for rule in expected_rules}
    missing = [rule for rule in expected_rules if rule not in found_rules]
    unexpected = [
        rule
        for rule in found_rules
        if rule not in expected_rules and (_name(rule) in names or not _accepts_inserts(rule))
    ]
    parts = [("missing", missing), ("unexpected", unexpected)]
    described = [f"{label}: {_shorten(' | '.join(rules))}" for label, rules in parts if rules]
    if not described and [rule for rule in found_rules if rule in expected_rules] == expected_rules:
        return ""
    detail = "; ".join(described) or "in another order"
    return f"its {name} is not the one in schema.sql ({detail})"


def _rules(statement: str) -> list[str]:
    """Split a CREATE TABLE statement into its columns, constraints and options, without line
    breaks. Any other statement is one rule.
    """
    text = " ".join(_without_comments(statement).split())
    if not text.startswith("CREATE TABLE"):
        return [text]
    rules, depth = [""], 0
    for token in re.findall(rf"{_QUOTED}|.", text):
        depth += (token == "(") - (token == ")")
        if (token, depth) == ("(", 1):
            rules = [""]  # Before it is only the name.
        elif depth == 1 and token == ",":
            rules.append("")
        elif (token, depth) == (")", 0):
            rules.append(")")  # An option such as STRICT follows, which is not a column.
        else:
            rules[-1] += token
    return [rule for rule in map(str.strip, rules) if rule not in ("", ")")]


def _name(rule: str) -> str:
    """Return the name of the column that a rule defines, or the first word of a constraint."""
    match = re.match(r"[\"`\[]?(\w+)", rule)
    return match[1].lower() if match else ""


def _accepts_inserts(rule: str) -> bool:
    """Return whether a rule is a column that an INSERT need not name, as ALTER TABLE adds it."""
    words = re.sub(_QUOTED, "", rule).upper()
    return (
        _name(rule) not in _CONSTRAINTS
        and not re.search(r"\b(UNIQUE|PRIMARY)\b", words)
        and ("NOT NULL" not in words or re.search(r"\bDEFAULT\b", words) is not None)
    )


def _without_comments(statement: str) -> str:
    return re.sub(rf"({_QUOTED})|\s*--.*", lambda match: match[1] or "", statement)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
