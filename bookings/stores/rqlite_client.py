"""Sends statements to an rqlite cluster over HTTP: finds the leader, repeats, reads results.

A node may execute a statement although its response is lost. The client repeats a statement until
a response arrives or the deadline passes, so every statement must be safe to repeat. This module
knows nothing about bookings.
"""

from __future__ import annotations

import functools
import http.client
import json
import re
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Optional, TypeVar
from urllib.parse import unquote, urlsplit

from bookings.stores.model import CannotOpen, FailureReason, Unavailable
from bookings.stores.sql import Values

# Read consistency levels. A former leader that has not noticed the election of another one
# serves a WEAK read from its own rows. A STRONG read goes through the Raft log, as a write does.
# rqlite 8.26 does not support "linearizable" and treats an unknown level as weak.
LEVEL_STRONG = "strong"
LEVEL_WEAK = "weak"

# Longest time a call repeats its request. The nodes elect a new leader within one to three seconds.
CALL_SECONDS = 5.0
# Longest wait for one node. A commit takes milliseconds, and a fraction of a second under load;
# this leaves time for a second and a third node.
NODE_SECONDS = 2.0
# Shortest time that an attempt needs. A shorter one would time out, and the error would report the
# timeout instead of the fault of the node.
ATTEMPT_SECONDS = 1.0
# Pause between attempts, so that waiting clients do not slow down an election.
PAUSE_SECONDS = 0.1
# Longest wait for a backup, which a person requests and can interrupt.
BACKUP_SECONDS = 60.0
DEFAULT_PORT = 4001
MAX_PORT = 65535

# `noparse` stops rqlite from rewriting statements: later releases would replace the default of
# created_at with a constant. `redirect` makes a follower name the leader instead of forwarding.
_OPTIONS = "noparse&redirect"
_EXECUTE = f"/db/execute?transaction&{_OPTIONS}"
_QUERY = f"/db/query?{_OPTIONS}&level="
# `vacuum` copies through SQLite; the database file alone may lack what is in its WAL.
_BACKUP = "/db/backup?vacuum&redirect"

_URL = re.compile(r"(https?)://(?:([^:/@]*):([^/@]*)@)?([^/@?#]+)/?", re.IGNORECASE)
_NODE = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")

# Raised when a response does not have the form of an rqlite response.
_MALFORMED_RESPONSE = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
# How an error message of SQLite or rqlite starts if the node is at fault and not the statement.
_NODE_FAULTS = (
    "database is locked",
    "database or disk is full",
    "disk I/O error",
    "attempt to write a readonly database",
    "database disk image is malformed",
    "context deadline exceeded",
    "file is not a database",
    "unable to open database file",
)

Value = TypeVar("Value")
# A statement with named parameters, and their values.
Statement = tuple[str, Optional[Values]]


class Rejected(Exception):
    """SQLite rejected a statement. The message is SQLite's."""


class Unanswered(Exception):
    """The last node's error. It becomes the cause of Unavailable."""


class RqliteClient:
    """The nodes of a cluster, the last known leader, and open connections to it.

    Any thread may call any method. Raises CannotOpen if `url` does not name a cluster.
    """

    def __init__(self, url: str) -> None:
        match = _URL.fullmatch(url)
        nodes = [_NODE.fullmatch(node) for node in match[4].split(",")] if match else []
        self._nodes = [
            f"{node[1]}:{node[2] or DEFAULT_PORT}"
            for node in nodes
            if node and int(node[2] or 0) <= MAX_PORT
        ]
        if not match or len(self._nodes) < len(nodes):
            # The message does not repeat the URL, which may contain a password.
            raise CannotOpen("not a cluster URL; expected http://host:4001,host:4001")
        self.name = f"{match[1].lower()}://{','.join(self._nodes)}"
        self._leader = self._nodes[0]
        self._connect: Callable[..., http.client.HTTPConnection] = http.client.HTTPConnection
        if match[1].lower() == "https":
            import ssl  # A Python built without ssl can still use http.

            context = ssl.create_default_context()
            self._connect = functools.partial(http.client.HTTPSConnection, context=context)
        self._headers = {"Content-Type": "application/json"}
        if match[2] is not None:
            credentials = f"{unquote(match[2])}:{unquote(match[3])}".encode()
            self._headers["Authorization"] = f"Basic {b64encode(credentials).decode()}"
        # Connections that no thread uses at the moment.
        self._idle: deque[tuple[str, http.client.HTTPConnection]] = deque()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    def execute(
        self, statements: Sequence[Statement], deadline: float | None = None
    ) -> list[dict[str, Any]]:
        """Execute statements that write, in one transaction; return rqlite's result of each.

        Raises Rejected if SQLite rejects one, and Unavailable if no node answers in time.
        """
        return self._run(_EXECUTE, statements, deadline or call_deadline())

    def query(
        self,
        level: str,
        statement: str,
        values: Values | None = None,
        deadline: float | None = None,
    ) -> list[list[Any]]:
        """Return the rows that a statement reads. Raises like `execute`."""
        statements = [(statement, values)]
        (result,) = self._run(_QUERY + level, statements, deadline or call_deadline())
        rows: list[list[Any]] = result.get("values", [])
        return rows

    def download_to(self, path: str) -> None:
        """Write a copy of the leader's database to a file. Raise CannotOpen if that fails."""

        def save(response: http.client.HTTPResponse) -> None:
            # Unbuffered: after a failed write, closing a buffered file would write again.
            with open(path, "wb", buffering=0) as copy:
                for part in iter(lambda: response.read(65536), b""):
                    try:
                        while part:  # A disk that fills up accepts part of a write.
                            part = part[copy.write(part) :]
                    except OSError as error:  # This disk failed; another node would not help.
                        raise CannotOpen(f"the copy failed: {error.strerror}") from error

        self._send("GET", _BACKUP, None, time.monotonic() + BACKUP_SECONDS, BACKUP_SECONDS, save)

    def _run(
        self, target: str, statements: Sequence[Statement], deadline: float
    ) -> list[dict[str, Any]]:
        # All values travel as one JSON text. rqlite would turn a parameter like X'41' into a blob.
        body = json.dumps(
            [
                [_with_json_values(statement), json.dumps(values, ensure_ascii=False)]
                if values
                else [statement]
                for statement, values in statements
            ]
        ).encode()
        read = functools.partial(_read_results, len(statements))
        results = self._send("POST", target, body, deadline, NODE_SECONDS, read)
        error = results[-1].get("error")
        if error:
            rejected = Rejected(error)
            if error.startswith(_NODE_FAULTS):
                # Other nodes may have executed the statement.
                raise Unavailable(FailureReason.UNREACHABLE) from rejected
            raise rejected
        return results

    def _send(
        self,
        method: str,
        target: str,
        body: bytes | None,
        deadline: float,
        node_timeout: float,
        read: Callable[[http.client.HTTPResponse], Value],
    ) -> Value:
        """Return what `read` makes of the leader's response. Repeat until the deadline."""
        while True:
            node = self._leader
            connection = None
            try:
                remaining = max(deadline - time.monotonic(), ATTEMPT_SECONDS)
                connection = self._take_connection(node, min(node_timeout, remaining))
                connection.request(method, target, body, self._headers)
                response = connection.getresponse()
                if response.status == http.client.OK:
                    value = read(response)
                    self._idle.append((node, connection))
                    return value
                text = response.read(200).decode("utf-8", "replace").strip()
                reason = f"{response.status} {text}"
                leader = urlsplit(response.headers.get("Location", "")).netloc
            except (OSError, http.client.HTTPException, *_MALFORMED_RESPONSE) as error:
                reason, leader = str(error) or type(error).__name__, ""
            if connection:
                connection.close()
            if self._leader == node:  # Another thread may have found the leader meanwhile.
                self._leader = leader or self._next_node(node)
            if time.monotonic() + PAUSE_SECONDS + ATTEMPT_SECONDS > deadline:
                unanswered = Unanswered(f"{node}: {reason}")
                raise Unavailable(FailureReason.UNREACHABLE) from unanswered
            time.sleep(PAUSE_SECONDS)

    def _take_connection(self, node: str, timeout: float) -> http.client.HTTPConnection:
        while True:
            try:
                connected_to, connection = self._idle.pop()
            except IndexError:
                return self._connect(node, timeout=timeout)
            if connected_to == node and connection.sock:
                connection.sock.settimeout(timeout)
                return connection
            connection.close()

    def _next_node(self, node: str) -> str:
        # The leader may be a node that the URL does not list.
        index = self._nodes.index(node) + 1 if node in self._nodes else 0
        return self._nodes[index % len(self._nodes)]


def call_deadline() -> float:
    """Return the deadline, on the monotonic clock, of a call that starts now."""
    return time.monotonic() + CALL_SECONDS


def _read_results(count: int, response: http.client.HTTPResponse) -> list[dict[str, Any]]:
    """Return the result of each statement; that of a rejected one is the last.

    Raises ValueError if the node did not execute them.
    """
    document = json.loads(response.read())
    if "error" in document:
        raise ValueError(document["error"])
    results: list[dict[str, Any]] = document["results"]
    if not all(isinstance(result.get("error", ""), str) for result in results):
        raise TypeError("an error is not text")
    if len(results) != count and "error" not in results[-1]:
        raise ValueError(f"{len(results)} results of {count} statements")
    return results


@functools.cache
def _with_json_values(statement: str) -> str:
    """Make a statement take its named values from one JSON object, its only parameter."""
    return re.sub(r":([a-z_]+)\b", r"json_extract(?1, '$.\1')", statement)
