"""The store on an rqlite cluster: SQLite on several machines, replicated by Raft and spoken to over HTTP.

The same statements decide, under the same `schema.sql`: one INSERT, and only when it has lost a look that explains why.
A statement whose answer was lost may have been carried out, now or later. It is sent again, which its key makes safe,
until an answer comes or the time is up; an outcome is never guessed. What it may not know: how a client spells things,
and the HTTP that clients speak.
"""

from __future__ import annotations

import functools
import http.client
import itertools
import json
import re
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from bookings.store import (
    BY_ID,
    BY_KEY,
    COUNT,
    ENCODING,
    INSERT,
    LOST,
    PAGE,
    PING,
    TABLE_TEXT,
    TROUBLES,
    Booking,
    CannotOpen,
    Outcome,
    Page,
    Trouble,
    Unavailable,
    check_rules,
    explained,
    now,
    page,
    schema,
    selection,
    verify_copy,
)

# The level of each read. A node that was leader and has not yet noticed that it no longer is answers a "weak" read from
# its own rows, and misses what the new leader has acknowledged. "strong" goes through the log of the cluster, as a write
# does. Of the level between them, "linearizable", rqlite 8.26 knows nothing, and takes a name unknown to it for "weak".
LOOK = "strong"  # missing the row of the key would turn a 200 into a 409
LIST = "strong"  # whoever has been told 201 finds the booking in the list
CHECK = "strong"  # whether there is a table, and whether it is the right one, was decided by whoever made it
READY = "weak"  # promises no row, only that there is a leader; cheap, since it is asked every few seconds

# How long a call tries until the answer is "unreachable". The nodes elect a new leader within one to three seconds.
WAIT_SECONDS = 5.0
# How long one node may take before another is asked. A commit takes milliseconds on an idle cluster and a fraction of a
# second on a crowded one; this leaves time for a second node, and a third.
NODE_SECONDS = 2.0
# No try is begun that would have less: the time would end it, and that is told instead of what is wrong with the node.
LEAST_SECONDS = 1.0
# Between two tries, so that those who wait for an election do not keep the nodes from it.
PAUSE_SECONDS = 0.1
# A copy may take a node longer to make than anything else; it is asked for by a person, who can stop it.
COPY_SECONDS = 60.0
# Some 200 KB at a time, for those who read the whole table.
ROWS = 1000
DEFAULT_PORT = 4001
MAX_PORT = 65535

# `noparse` keeps rqlite from rewriting statements: later releases would turn the default of created_at into one moment.
# `redirect` makes a node that does not lead name the one that does, instead of passing everything on itself.
_OPTIONS = "noparse&redirect"
_EXECUTE = f"/db/execute?transaction&{_OPTIONS}"
_QUERY = f"/db/query?{_OPTIONS}&level="
# `vacuum` copies through SQLite; the file alone may lack what is in its log. The count is verified all the same.
_BACKUP = "/db/backup?vacuum&redirect"

_NAME = re.compile(r"(https?)://(?:([^:/@]*):([^/@]*)@)?([^/@?#]+)/?", re.IGNORECASE)
_NODE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")

# What reading an answer raises that is none of rqlite's.
_NONSENSE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
# How SQLite and rqlite begin to tell of a fault of the node, and not of the statement.
_FAULTS = (
    *("disk I/O error", "attempt to write a readonly database", "database disk image is malformed"),
    *("context deadline exceeded", "file is not a database", "unable to open database file"),
)

Value = TypeVar("Value")


class Refused(Exception):
    """What SQLite says against a statement, in its own words."""


class Unanswered(Exception):
    """What the last node that was asked said instead of an answer; the cause of an Unavailable."""


class Cluster:
    """The nodes of a cluster, which of them led when last heard of, and connections to that one.

    Every method may be called from any thread. Raises CannotOpen where `database` names no cluster.
    """

    def __init__(self, database: str) -> None:
        named = _NAME.fullmatch(database)
        nodes = [_NODE.fullmatch(node) for node in named[4].split(",")] if named else []
        self._nodes = [
            f"{node[1]}:{node[2] or DEFAULT_PORT}" for node in nodes if node and int(node[2] or 0) <= MAX_PORT
        ]
        if not named or len(self._nodes) < len(nodes):
            # What was given is not repeated, since it may have a password in it.
            raise CannotOpen("this is no cluster; name it like http://host:4001,host:4001")
        self.name = f"{named[1].lower()}://{','.join(self._nodes)}"
        self._leader = self._nodes[0]
        self._connect: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
        if named[1].lower() == "https":
            import ssl  # not above, since a Python may have been built without it, and gets by with http

            self._connect = functools.partial(
                http.client.HTTPSConnection, context=ssl.create_default_context()
            )
        self._headers = {"Content-Type": "application/json"}
        if named[2] is not None:
            credentials = f"{unquote(named[2])}:{unquote(named[3])}".encode()
            self._headers["Authorization"] = f"Basic {b64encode(credentials).decode()}"
        # One for each thread that was ever in a call at one time; taken and given back by whoever comes next.
        self._idle: deque[tuple[str, http.client.HTTPConnection]] = deque()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    def execute(self, statement: str, values: Sequence[str | int], deadline: float) -> dict[str, Any]:
        """What a statement that writes has done; raises Refused and Unavailable, as `query` does."""
        return self._ask(_EXECUTE, statement, values, deadline)

    def query(
        self, level: str, statement: str, values: Sequence[str | int], deadline: float
    ) -> list[list[Any]]:
        """The rows that the statement reads."""
        rows: list[list[Any]] = self._ask(_QUERY + level, statement, values, deadline).get("values", [])
        return rows

    def copy_to(self, path: str) -> None:
        """A copy of the leader's database; raises CannotOpen where the file cannot take it."""

        def read(response: http.client.HTTPResponse) -> None:
            # Without a buffer, of which closing would try to write the rest once more.
            with open(path, "wb", buffering=0) as copy:
                for part in iter(lambda: response.read(65536), b""):
                    try:
                        while part:  # of which a disk that becomes full may take some
                            part = part[copy.write(part) :]
                    except OSError as error:  # of this disk: no other node could help
                        raise CannotOpen(f"the copy cannot be made: {error.strerror}") from error

        self._send("GET", _BACKUP, None, time.monotonic() + COPY_SECONDS, COPY_SECONDS, read)

    def _ask(
        self, target: str, statement: str, values: Sequence[str | int], deadline: float
    ) -> dict[str, Any]:
        # The values travel as one JSON text: from a parameter of its own like X'41', later releases would make a blob.
        parameters = [json.dumps(values, ensure_ascii=False)] if values else []
        body = json.dumps([[_of_json(statement), *parameters]]).encode()
        result = self._send("POST", target, body, deadline, NODE_SECONDS, _result)
        if "error" in result:
            refused = Refused(result["error"])
            # The leader's alone: the others may have carried it out.
            if result["error"] in TROUBLES or result["error"].startswith(_FAULTS):
                raise Unavailable(Trouble.UNREACHABLE) from refused
            raise refused
        return result

    def _send(
        self,
        method: str,
        target: str,
        body: bytes | None,
        deadline: float,
        patience: float,
        read: Callable[[http.client.HTTPResponse], Value],
    ) -> Value:
        """What `read` makes of the leader's response. All that fails is tried again until the deadline."""
        while True:
            node = self._leader
            connection = None
            try:
                connection = self._connection(
                    node, min(patience, max(deadline - time.monotonic(), LEAST_SECONDS))
                )
                connection.request(method, target, body, self._headers)
                response = connection.getresponse()
                if response.status == http.client.OK:
                    value = read(response)
                    self._idle.append((node, connection))
                    return value
                said = f"{response.status} {response.read(200).decode('utf-8', 'replace').strip()}"
                leader = urlsplit(response.headers.get("Location", "")).netloc
            except (OSError, http.client.HTTPException, *_NONSENSE) as error:
                said, leader = str(error) or type(error).__name__, ""
            if connection:
                connection.close()
            # Another thread may have found the leader meanwhile.
            if self._leader == node:
                self._leader = leader or self._next(node)
            if time.monotonic() + PAUSE_SECONDS + LEAST_SECONDS > deadline:
                raise Unavailable(Trouble.UNREACHABLE) from Unanswered(f"{node}: {said}")
            time.sleep(PAUSE_SECONDS)

    def _connection(self, node: str, seconds: float) -> http.client.HTTPConnection:
        while True:
            try:
                connected_to, connection = self._idle.pop()
            except IndexError:
                return self._connect(node, timeout=seconds)
            if connected_to == node and connection.sock:
                connection.sock.settimeout(seconds)
                return connection
            connection.close()

    def _next(self, node: str) -> str:
        # A leader's address may be none that was named here.
        place = self._nodes.index(node) + 1 if node in self._nodes else 0
        return self._nodes[place % len(self._nodes)]


def _result(response: http.client.HTTPResponse) -> dict[str, Any]:
    """The result of the only statement; ValueError where the node could not have it carried out."""
    answer = json.loads(response.read())
    if "error" in answer:
        raise ValueError(answer["error"])
    result: dict[str, Any] = answer["results"][0]
    if not isinstance(result, dict) or not isinstance(result.get("error", ""), str):
        raise TypeError("no result")
    return result


@functools.cache
def _of_json(statement: str) -> str:
    """The statement with its values taken from a JSON array, its only parameter."""
    numbers = itertools.count()
    return re.sub(r"\?", lambda _: f"json_extract(?1, '$[{next(numbers)}]')", statement)


class RqliteStore:
    """Bookings on a cluster, as `create_on_cluster` has made them ready. It finds a leader when it is first called.

    A call raises Unavailable where the cluster cannot answer, and anything else for what nobody foresaw. Every method
    may be called from any thread and, on the same cluster, from any process on any machine.
    """

    def __init__(self, database: str) -> None:
        self._cluster = Cluster(database)

    def close(self) -> None:
        self._cluster.close()

    def book(
        self, tenant_id: str, start_time_utc: str, idempotency_key: str
    ) -> tuple[Outcome, Booking | None]:
        """Book the slot. The booking comes with CREATED and REPLAYED only; a majority of the nodes has it on disk."""
        deadline = _deadline()
        # Each node would give the column's default by its own clock.
        row = (tenant_id, start_time_utc, idempotency_key, now())
        try:
            done = self._cluster.execute(INSERT, row, deadline)
        except Refused as refused:
            if not str(refused).startswith(LOST):
                raise
        else:
            if done.get("rows_affected") != 1:
                raise RuntimeError("the INSERT was ignored, by a trigger perhaps")
            return Outcome.CREATED, Booking(done["last_insert_id"], *row)
        found = self._cluster.query(LOOK, BY_KEY, [idempotency_key], deadline)
        return explained(row, found[0] if found else None)

    def bookings_of(self, tenant_id: str, at_least: str, before: str, after: str, limit: int) -> Page:
        """A tenant's first `limit` bookings within the bounds, in order of their start times; "" is no bound."""
        deadline = _deadline()

        def read(*values: str | int) -> Any:
            return self._cluster.query(LIST, PAGE, values, deadline)[0]

        return page(read, tenant_id, at_least, before, after, limit)

    def booking_of(self, tenant_id: str, booking_id: int) -> Booking | None:
        """The booking with this id, if it is this tenant's."""
        found = self._cluster.query(LIST, BY_ID, [booking_id, tenant_id], _deadline())
        return Booking(*found[0]) if found else None

    def ping(self) -> None:
        """Read the table, to see that it can be read."""
        self._cluster.query(READY, PING, [], _deadline())


class ClusterReader:
    """The bookings on a cluster, for those who look at them beside the server."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def count(self) -> int:
        """How many bookings there are."""
        return int(self._cluster.query(LIST, COUNT, [], _deadline())[0][0])

    def bookings(self, tenant_id: str | None, at_least: str, before: str, limit: int) -> Iterator[Booking]:
        """Bookings in order of tenant and start time, read in pages; None, "" and -1 are no bounds."""
        after = ("", "")
        while limit:
            size = ROWS if limit < 0 else min(limit, ROWS)
            statement, values = selection(tenant_id, at_least, before, size, after)
            found = self._cluster.query(LIST, statement, values, _deadline())
            yield from (Booking(*row) for row in found)
            if len(found) < size:
                return
            after = (found[-1][1], found[-1][2])
            limit = limit if limit < 0 else limit - size

    def copy_to(self, path: str, progress: Callable[[int, int], None]) -> int:
        """Copy the leader's database into a file; how many bookings that has. Raises CannotOpen where it is not sound.

        The nodes tell no `progress`.
        """
        least = self.count()
        self._cluster.copy_to(path)
        return verify_copy(path, least)


@contextmanager
def reading_cluster(database: str) -> Iterator[ClusterReader]:
    """The bookings on a cluster; raises CannotOpen."""
    with _opening(database) as cluster:
        _check_table(cluster)
        yield ClusterReader(cluster)


def create_on_cluster(database: str) -> None:
    """Make the table from schema.sql, or see that it is one that can be used; raises CannotOpen."""
    with _opening(database) as cluster:
        cluster.execute(schema(), [], _deadline())
        _check_table(cluster)


def insert_on_cluster(database: str, tenant_id: str, start_time_utc: str, idempotency_key: str) -> str:
    """Insert past all of this program, save that it gives the time: "" or what SQLite says against it."""
    cluster = Cluster(database)
    try:
        cluster.execute(INSERT, (tenant_id, start_time_utc, idempotency_key, now()), _deadline())
    except (Refused, Unavailable) as error:
        return str(error)
    finally:
        cluster.close()
    return ""


@contextmanager
def _opening(database: str) -> Iterator[Cluster]:
    """The cluster, and whatever hinders using it, as one line."""
    cluster = Cluster(database)
    try:
        yield cluster
    except Refused as error:
        raise CannotOpen(f"{cluster.name}: {error}") from error
    except Unavailable as error:
        raise CannotOpen(f"{cluster.name} does not answer; last heard: {error.__cause__}") from error
    finally:
        cluster.close()


def _check_table(cluster: Cluster) -> None:
    (encoding,) = cluster.query(CHECK, ENCODING, [], _deadline())[0]
    found = cluster.query(CHECK, TABLE_TEXT, [], _deadline())
    check_rules(encoding, found[0][0] if found else None, cluster.name)


def _deadline() -> float:
    return time.monotonic() + WAIT_SECONDS
