"""Stores decide who gets a slot.

    model          bookings, outcomes, errors and the Store protocol
    sql            the statements that both stores run
    schema         reads schema.sql and verifies tables
    files          the files of a SQLite database
    connections    opens SQLite connections and translates their errors
    creation       creates the SQLite database
    shared         state that all workers share
    write_queue    fair waiting for SQLite's write lock
    recovery       restarts from the disk after a failed sync
    decisions      one INSERT decides, and a look-up explains it
    sqlite         the store in one SQLite file
    snapshot       read-only access to that file
    new_file       creates a file completely or not at all
    restoration    makes a new database from a copy
    rqlite_client  speaks to an rqlite cluster
    rqlite         the store on a cluster
    rqlite_restore sends the rows of a copy to a cluster

No store knows about HTTP requests of clients or how a client spells a value.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import NamedTuple

from bookings.stores import (
    creation,
    files,
    recovery,
    restoration,
    rqlite,
    rqlite_client,
    rqlite_restore,
    snapshot,
    sqlite,
)
from bookings.stores.model import CannotOpen, Reader, Restored, Store
from bookings.stores.shared import SharedState


class Database(NamedTuple):
    """The database that `--database` names, and what can be done with it.

    All but `name` raise CannotOpen.
    """

    # For messages: an absolute path, or a URL without its password.
    name: str
    create: Callable[[], None]
    # Which files the database consists of now; a cluster has none.
    identify: Callable[[], files.Identities]
    # See recovery.settle. A cluster recovers its own files.
    settle: Callable[[], bool]
    # A descriptor of the WAL, which SQLite does not lock; a cluster has none.
    open_wal: Callable[[], int | None]
    open_store: Callable[[files.Identities | None, SharedState], Store]
    read: Callable[[], AbstractContextManager[Reader]]
    # Fill the database, which must be new, with the rows of the copy in a file. Reports progress
    # as `progress(remaining, total)` in rows. Raises RowsRejected, too.
    restore: Callable[[str, Callable[[int, int], None]], Restored]


def find_database(location: str) -> Database:
    """Return the database at a path or at the URL of a cluster. Raise CannotOpen for a bad one."""
    foreign = re.match(
        r"(:memory:$|file:|(?!https?:)[a-z][a-z0-9+.-]+://|[a-z0-9.-]{2,}:[0-9]+(?=,|$))",
        location.lower(),
    )
    if foreign:  # The rest may contain a password.
        raise CannotOpen(
            f"{foreign[1]} is not supported as a database; expected the path of a file, like "
            "./bookings.db, or the URL of a cluster, like http://host:4001,host:4001"
        )
    if location.lower().startswith(("http://", "https://")):
        return Database(
            rqlite_client.RqliteClient(location).name,
            partial(rqlite.create_tables, location),
            dict,
            lambda: True,
            lambda: None,
            lambda identities, shared: rqlite.RqliteStore(location),
            partial(rqlite.read_cluster, location),
            partial(rqlite_restore.restore_cluster, location),
        )
    database_files = files.DatabaseFiles(location)
    return Database(
        database_files.path,
        partial(creation.create_database, location),
        database_files.identify,
        partial(recovery.settle, database_files),
        partial(os.open, database_files.wal, os.O_RDWR),
        partial(sqlite.SQLiteStore, location),
        partial(snapshot.read_snapshot, location),
        partial(restoration.restore_file, location),
    )
