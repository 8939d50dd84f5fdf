"""Sends the rows of a copy to a cluster, after a temporary database has judged them.

Every statement is safe to repeat, so a restore that was interrupted continues when it is repeated.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from bookings.stores import model, restoration, sql
from bookings.stores.model import CannotOpen, Restored, RowsRejected
from bookings.stores.rqlite import READ_ROWS, create_tables, open_client
from bookings.stores.rqlite_client import LEVEL_STRONG, RqliteClient

_ELEMENT = "json_extract(value, '$[{}]')"
# Safe to repeat: rows that are there already are left alone.
_INSERT_PAGE = {
    table: f"INSERT INTO {table} ({', '.join(columns)}) "
    f"SELECT {', '.join(map(_ELEMENT.format, range(len(columns))))} "
    f"FROM json_each(:rows) WHERE {_ELEMENT.format(0)} NOT IN (SELECT id FROM {table})"
    for table, columns in sql.TABLES.items()
}
# An id that was used is not used again.
_RAISE_SEQUENCE = (
    "INSERT INTO sqlite_sequence (name) SELECT 'bookings' EXCEPT SELECT name FROM sqlite_sequence",
    "UPDATE sqlite_sequence SET seq = max(ifnull(seq, 0), :seq) WHERE name = 'bookings'",
)
# SQLite's JSON functions end at a NUL. A lone surrogate stands for a byte that is not UTF-8.
_UNSENDABLE = re.compile("[\0\udc80-\udcff]")


def restore_cluster(url: str, copy: str, progress: Callable[[int, int], None]) -> Restored:
    """Send the rows of a copy, after a temporary database has judged them.

    An interrupted restore can be repeated. Raises RowsRejected, or CannotOpen if the cluster has
    rows that the copy does not have.
    """
    with restoration.temporary_database(copy) as (db, restored):
        _verify_sendable(db)
        create_tables(url)
        with open_client(url) as client:
            _count_restored(client, db)
            total = remaining = sum(restored.counts)
            for table in sql.TABLES:
                for page in _read_pages(db, table):
                    rows = json.dumps(page, ensure_ascii=False)
                    client.execute([(_INSERT_PAGE[table], {"rows": rows})])
                    remaining -= len(page)
                    progress(remaining, total)
            (sequence,) = db.execute("SELECT seq FROM sqlite_sequence").fetchone()
            client.execute([(statement, {"seq": sequence}) for statement in _RAISE_SEQUENCE])
            found = _count_restored(client, db)
            if found != total:
                raise CannotOpen(f"{client.name} has {found} of {total} rows; restore again")
    return restored


def _verify_sendable(db: sqlite3.Connection) -> None:
    """Raise RowsRejected if rows have values that JSON or SQLite's JSON functions cannot carry."""
    reasons = [
        f"{table}, id {row[0]}: a cluster cannot store a blob, a NUL or text that is not UTF-8"
        for table in sql.TABLES
        for page in _read_pages(db, table)
        for row in page
        if not all(isinstance(text, str) and not _UNSENDABLE.search(text) for text in row[1:])
    ]
    if reasons:
        raise RowsRejected(reasons[: model.MAX_REASONS], len(reasons))


def _read_pages(db: sqlite3.Connection, table: str) -> Iterator[list[Any]]:
    """Yield the rows in pages. Bytes that are not UTF-8 become lone surrogates."""
    db.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    rows = db.execute(f"SELECT {', '.join(sql.TABLES[table])} FROM {table} ORDER BY id")
    return iter(lambda: rows.fetchmany(READ_ROWS), [])


def _count_restored(client: RqliteClient, db: sqlite3.Connection) -> int:
    """Return how many rows the cluster has. Raise CannotOpen unless `db` has the same ones."""
    count = 0
    for table, columns in sql.TABLES.items():
        select = f"SELECT {', '.join(columns)} FROM {table} WHERE id > :after"
        after = 0
        while True:
            values: sql.Values = {"after": after, "limit": READ_ROWS}
            page = client.query(LEVEL_STRONG, f"{select} ORDER BY id LIMIT :limit", values)
            if not page:
                break
            bounds: sql.Values = {"after": after, "last": page[-1][0]}
            expected = set(db.execute(f"{select} AND id <= :last", bounds))
            other = [row[0] for row in page if tuple(row) not in expected]
            if other:
                raise CannotOpen(
                    f"{client.name} has other {table}, such as id {other[0]}; restore the copy "
                    "into a new cluster"
                )
            count += len(page)
            after = page[-1][0]
    return count
