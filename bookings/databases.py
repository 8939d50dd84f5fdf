"""Which database a setting names: a file, or a cluster by its URL. Everybody above asks here and knows no difference."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from bookings import rqlite, store


class Kind(NamedTuple):
    """What can be done with the database that `--database` names; each takes that name first."""

    create: Callable[[str], None]
    # Which one it is now, so that another one in its place can be told from it.
    which: Callable[[str], store.Files | None]
    open: Callable[[str, store.Files | None], store.Store]
    reading: Callable[[str], AbstractContextManager[store.Reader | rqlite.ClusterReader]]
    insert_by_hand: Callable[[str, str, str, str], str]
    # To be shown: a whole path, and no password.
    shown: Callable[[str], str]


_FILE = Kind(
    store.create_database,
    store.files_of,
    store.SQLiteStore,
    store.reading,
    store.insert_by_hand,
    os.path.abspath,
)
_CLUSTER = Kind(
    rqlite.create_on_cluster,
    lambda database: None,
    lambda database, which: rqlite.RqliteStore(database),
    rqlite.reading_cluster,
    rqlite.insert_on_cluster,
    lambda database: rqlite.Cluster(database).name,
)


def kind_of(database: str) -> Kind:
    return _CLUSTER if database.lower().startswith(("http://", "https://")) else _FILE
