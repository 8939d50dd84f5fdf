"""The SQLite store: it decides who gets a slot. Here is all SQL, that of the store on a cluster too.

The rules: a fresh connection for each call; one INSERT, and only when it has lost a look that explains why; no lock in
memory and no clock takes part in deciding. What it may not know: HTTP, and how a client spells things. Its arguments
are already checked, and the constraints of `schema.sql` stand behind it all the same.
"""

from __future__ import annotations

import enum
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

try:
    import fcntl
except ImportError:  # Windows has none, and gets by with SQLite's own waiting
    fcntl = None  # type: ignore[assignment]

OLDEST_SQLITE = (3, 34, 0)
# How long a statement waits for another writer before the answer is "busy". A commit takes milliseconds, so only a
# queue of hundreds, or a SQL client that sits on a transaction, lasts this long; most HTTP clients give up after 10 s.
BUSY_SECONDS = 5.0
# How much of that it may spend while others stand in line behind it: several commits by hand. Whoever holds the database
# for longer stands in no line, and is waited for outside of it, where each request gives up at a time of its own. In
# line, the last would give up after all those before it: of 200 within four bounds, one did after 2.3.
IN_LINE_SECONDS = 0.05
# How long a connection that closes for good waits for others that do: each takes the milliseconds of a checkpoint.
CLOSE_SECONDS = 1.0
# A checkpoint syncs three times while all others wait in line; SQLite's 1000 pages were 300 bookings. With a disk of 4 ms
# and 16 clients, 1.14 times the bookings of that, and p99 27 ms for 31. Where no reader keeps it from being begun anew,
# the log grows to 16 MB, for which SQLite's index of it still has one table (4062 pages).
CHECKPOINT_PAGES = 4000

_COLUMNS = "id, tenant_id, start_time_utc, idempotency_key, created_at"
INSERT = "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key, created_at) VALUES (?, ?, ?, ?)"
BY_KEY = f"SELECT {_COLUMNS} FROM bookings WHERE idempotency_key = ?"
BY_ID = f"SELECT {_COLUMNS} FROM bookings WHERE id = ? AND tenant_id = ?"
PING = "SELECT 1 FROM bookings LIMIT 1"
ENCODING = "PRAGMA encoding"
TABLE_TEXT = "SELECT sql FROM sqlite_master WHERE name = 'bookings' COLLATE NOCASE"
COUNT = "SELECT count(*) FROM bookings"
# Answered from the index of UNIQUE (tenant_id, start_time_utc), without a sort: a page costs the same in any table. As
# one row of JSON, because `sqlite3` gives up the GIL at every row: with 16 clients 2900 lists/s against 1550.
PAGE = """SELECT json_group_array(json_object('id', id, 'tenant_id', tenant_id, 'start_time_utc', start_time_utc,
        'idempotency_key', idempotency_key, 'created_at', created_at)), count(*), max(start_time_utc)
    FROM (SELECT * FROM bookings WHERE tenant_id = ? AND start_time_utc > ? AND start_time_utc < ?
        ORDER BY start_time_utc LIMIT ?)"""

# How SQLite begins to say that an INSERT has lost.
LOST = "UNIQUE constraint failed"

# Tenant, start time, key and time of creation of what is to be inserted.
Row = tuple[str, str, str, str]

# By path, the device and the inode of a file: which one it is, whatever it is called.
Files = dict[str, tuple[int, int]]

_HERE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Booking:
    """A row of the table; the fields in the order in which a client sees them."""

    id: int
    tenant_id: str
    start_time_utc: str
    idempotency_key: str
    created_at: str


@dataclass(frozen=True)
class Page:
    """Some of a tenant's bookings in order.

    `array` is a JSON array of them, `last_start` when the last one starts, and `more` whether others follow.
    """

    array: str
    last_start: str | None
    more: bool


class Outcome(enum.Enum):
    """All that can become of a request to book."""

    CREATED = "created"
    REPLAYED = "replayed"
    KEY_REUSED = "key reused"
    SLOT_TAKEN = "slot taken"


class Trouble(enum.Enum):
    """Why the database could not answer."""

    BUSY = "busy"
    FULL = "full"
    UNREACHABLE = "unreachable"


class Unavailable(Exception):
    """The database could not answer. `trouble` says why, the cause is the error of SQLite or of the system."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble


class CannotOpen(Exception):
    """The database cannot be used at all; the message is one line for the person who started the program."""


def default_database() -> str:
    """Where the bookings are when no flag says it: $BOOKINGS_DB, or `bookings.db` beside run.py."""
    return os.environ.get("BOOKINGS_DB") or str(_HERE / "bookings.db")


def now() -> str:
    """The time for `created_at`, which the program gives itself."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def page(
    read: Callable[..., Any], tenant_id: str, at_least: str, before: str, after: str, limit: int
) -> Page:
    """The page between these bounds; `read` takes the values of PAGE and answers its row."""
    # One lower bound, so that the index is entered at the page and not before it. An instant without its Z sorts
    # right before the instant itself, which makes "at least" a case of "after".
    lower, upper = max(after, at_least[:-1]), before or "~"
    array, count, last = read(tenant_id, lower, upper, limit)
    return Page(array, last, count == limit and read(tenant_id, last, upper, 1)[1] == 1)


class Store(Protocol):
    """What `api` asks of a store."""

    def book(
        self, tenant_id: str, start_time_utc: str, idempotency_key: str
    ) -> tuple[Outcome, Booking | None]: ...

    def bookings_of(self, tenant_id: str, at_least: str, before: str, after: str, limit: int) -> Page: ...

    def booking_of(self, tenant_id: str, booking_id: int) -> Booking | None: ...

    def ping(self) -> None: ...

    def close(self) -> None: ...


class SQLiteStore:
    """Bookings in one SQLite file in WAL mode, as `create_database` has made it.

    Raises CannotOpen, also for another file than `same_as`. A call raises Unavailable where the database cannot answer,
    and anything else for what nobody foresaw. Every method may be called from any thread and, on the same file, from
    any process.
    """

    def __init__(self, path: str, same_as: Files | None = None) -> None:
        self.path = _absolute(path)
        # The log and the index of it, in which SQLite has its locks: whoever opens the database makes a new one of either,
        # and those with the old one and those with the new one would write over each other.
        self._logs = _logs_of(self.path)
        self._wal = self._logs[0]
        self._uri = _uri(self.path, "mode=rw")
        with _opening(self.path):
            # Never used by a request: while one connection is open, closing the others does not checkpoint and delete
            # the WAL, which at low load was most of the cost of an insert (1187 us against 417).
            self._kept_open = _connect(self._uri)
            self._files = same_as or {self.path: _file(self.path)}
            try:
                self._check(self.path)
                _check_table(self._kept_open, self.path)
                self._files = {**files_of(self.path), **self._files}
                self._check(*self._logs)
            except OSError as error:
                self._kept_open.close()
                raise CannotOpen(str(error)) from error
        if os.name != "nt":  # where a folder cannot be opened
            # The WAL may be new, and no booking in it is on the disk before its name in the folder is.
            try:
                with _descriptor(os.path.dirname(self._wal), os.O_RDONLY) as folder:
                    os.fsync(folder)
            except OSError as error:
                self.close()
                raise CannotOpen(f"{self.path}: its folder cannot be synced: {error.strerror}") from error

    def close(self) -> None:
        with closing(self._kept_open), suppress(sqlite3.Error):
            try:
                self._check(self.path, self._wal)
                # One after the other: the last one folds the log into the database, and of two that close at one moment,
                # none is the last. Of 30 stops of two workers, 14 left a log.
                with _descriptor(self._wal, os.O_RDWR) as wal, _turn(wal, CLOSE_SECONDS):
                    self._kept_open.close()
            except OSError:
                # SQLite leaves the log as it is when its database has moved. The bookings in it belong in there, and
                # a database that is now in its place would take them for its own pages.
                self._kept_open.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def book(
        self, tenant_id: str, start_time_utc: str, idempotency_key: str
    ) -> tuple[Outcome, Booking | None]:
        """Book the slot. The booking comes with CREATED and REPLAYED only; all that it tells of is on the disk."""
        row = (tenant_id, start_time_utc, idempotency_key, now())
        began = time.monotonic()
        with _troubles(), _descriptor(self._wal, os.O_RDWR) as wal:
            with closing(_connect(self._uri)) as db:
                self._check(self.path)
                # A commit in NORMAL leaves the sync of the WAL to us. In FULL it would sync the WAL and its folder while
                # it holds the write lock: with a disk of 4 ms and 16 clients that was 107 bookings/s against 2233.
                db.executescript(
                    f"PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}; "
                    + _waiting(IN_LINE_SECONDS)
                )
                self._check(*self._logs)
                try:
                    with _turn(wal):
                        if time.monotonic() - began > IN_LINE_SECONDS:
                            db.execute(_waiting(0))
                        decided = _decide(db, row)
                except sqlite3.OperationalError as error:
                    if TROUBLES.get(str(error)) is not Trouble.BUSY:
                        raise
                    db.execute(_waiting(began + BUSY_SECONDS - time.monotonic()))
                    decided = _decide(db, row)
            # Whatever the outcome tells of was committed before, by this request or by another that may not have synced
            # yet. Here nobody waits for the disk but this request, and those that sync at the same time share the wait.
            _sync(wal)
            # Nobody would find a booking in a file that was moved away meanwhile.
            self._check(self.path, *self._logs)
        return decided

    def bookings_of(self, tenant_id: str, at_least: str, before: str, after: str, limit: int) -> Page:
        """A tenant's first `limit` bookings within the bounds, in order of their start times; "" is no bound."""
        with self._opened() as db:
            return page(
                lambda *values: db.execute(PAGE, values).fetchone(), tenant_id, at_least, before, after, limit
            )

    def booking_of(self, tenant_id: str, booking_id: int) -> Booking | None:
        """The booking with this id, if it is this tenant's."""
        with self._opened() as db:
            found = db.execute(BY_ID, (booking_id, tenant_id)).fetchone()
            return Booking(*found) if found else None

    def ping(self) -> None:
        """See that the table can be read, and that the file may be written."""
        with self._opened() as db:
            db.execute(PING).fetchone()
            if not os.access(self.path, os.W_OK):
                raise PermissionError(f"{self.path} may be read but not written")

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading; what was read from the files of the start is of use, and nothing else."""
        with _troubles(), closing(_connect(self._uri)) as db:
            self._check(self.path)
            try:
                yield db
            finally:  # also where it failed, of which this may be the cause
                self._check(*self._logs)

    def _check(self, *paths: str) -> None:
        """Refuse another file than that of the start.

        The database once `_connect` has opened it, and before the first statement, at which SQLite would take the log of the
        old one for its own, and spoil both. The log once a statement has opened it, and before anything is written.
        """
        for path in paths:
            if _file(path) != self._files[path]:
                raise OSError(f"{path} is not the file of the start; restart to use it")


def files_of(path: str) -> Files:
    """Which files the database, its log and the log's index are now; those that are there."""
    path = _absolute(path)
    return {name: _file(name) for name in (path, *_logs_of(path)) if os.path.exists(name)}


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as error:  # somebody has removed the current folder
        raise CannotOpen(f"{path}: the current folder cannot be found: {error.strerror}") from error


def _logs_of(path: str) -> tuple[str, str]:
    """The log and its index. Where the path is a link, SQLite has them beside the file that it leads to, save on Windows."""
    real = path if os.name == "nt" else os.path.realpath(path)
    return f"{real}-wal", f"{real}-shm"


def _file(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _decide(db: sqlite3.Connection, row: Row) -> tuple[Outcome, Booking | None]:
    """Insert first, and only when that has lost, look why. The look never decides."""
    try:
        cursor = db.execute(INSERT, row)
    except sqlite3.IntegrityError as error:
        # Which UNIQUE was violated cannot be read here, since SQLite names only one of two; but a CHECK or somebody's
        # trigger is no taken slot.
        if not str(error).startswith(LOST):
            raise
    else:
        if cursor.rowcount != 1 or cursor.lastrowid is None:
            raise RuntimeError("the INSERT was ignored, by a trigger perhaps")
        return Outcome.CREATED, Booking(cursor.lastrowid, *row)
    return explained(row, db.execute(BY_KEY, (row[2],)).fetchone())


def explained(row: Row, found: Sequence[Any] | None) -> tuple[Outcome, Booking | None]:
    """Why the INSERT of this row has lost, from what stands under its key."""
    if not found:
        return Outcome.SLOT_TAKEN, None
    booking = Booking(*found)
    if (booking.tenant_id, booking.start_time_utc) == row[:2]:
        return Outcome.REPLAYED, booking
    return Outcome.KEY_REUSED, None


def _waiting(seconds: float) -> str:
    """The statement that lets those after it wait so long for another writer."""
    return f"PRAGMA busy_timeout = {int(1000 * max(0.0, seconds))}"


@contextmanager
def _descriptor(path: str, flags: int) -> Iterator[int]:
    """What is at the path, opened to be synced. Nothing is made: the WAL is there while a connection is open."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _turn(descriptor: int, seconds: float = 0.0) -> Iterator[None]:
    """Wait in line for the write lock, and let the next one in when done; after `seconds`, if any are given, go on without it.

    SQLite's own waiting sleeps and polls: under 16 writers its p99 was 569 ms, in this line 12 ms. It makes waiting fair
    and decides nothing. SQLite never takes this kind of lock on the WAL.
    """
    if fcntl and not seconds:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    elif fcntl:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(0.01)
    try:
        yield
    finally:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_UN)


_sync = getattr(os, "fdatasync", os.fsync)


class Reader:
    """One snapshot of a database, opened read-only, for those who look at it beside the server."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def count(self) -> int:
        """How many bookings there are."""
        return int(self._db.execute(COUNT).fetchone()[0])

    def bookings(self, tenant_id: str | None, at_least: str, before: str, limit: int) -> Iterator[Booking]:
        """Bookings in order of tenant and start time, one by one; None, "" and -1 are no bounds."""
        return (Booking(*row) for row in self._db.execute(*selection(tenant_id, at_least, before, limit)))

    def copy_to(self, path: str, progress: Callable[[int, int], None]) -> int:
        """Copy the snapshot by SQLite's online backup, which keeps no writer waiting, into a file of its own.

        `progress` is told the pages that remain and all. How many bookings the copy has; raises CannotOpen where it is
        not a sound one.
        """
        with closing(sqlite3.connect(path, isolation_level=None)) as copy:
            try:
                self._db.backup(copy, pages=1000, progress=lambda _, left, total: progress(left, total))
            except sqlite3.DatabaseError as error:  # of either file, and more often of the new one
                raise CannotOpen(f"the copy cannot be made: {error}") from error
        return verify_copy(path, self.count())


def selection(
    tenant_id: str | None, at_least: str, before: str, limit: int, after: tuple[str, str] = ("", "")
) -> tuple[str, Sequence[str | int]]:
    """The statement that reads bookings in order of tenant and start time, and its values.

    None, "" and -1 are no bounds; `after` is the tenant and the start time behind which to go on.
    """
    chosen: list[tuple[str, Sequence[str]]] = [("(tenant_id, start_time_utc) > (?, ?)", after)]
    if tenant_id is not None:
        chosen.append(("tenant_id = ?", [tenant_id]))
    if at_least:
        chosen.append(("start_time_utc >= ?", [at_least]))
    if before:
        chosen.append(("start_time_utc < ?", [before]))
    where = " AND ".join(condition for condition, _ in chosen)
    statement = f"SELECT {_COLUMNS} FROM bookings WHERE {where} ORDER BY tenant_id, start_time_utc LIMIT ?"
    return statement, [*(value for _, values in chosen for value in values), limit]


def verify_copy(path: str, least: int) -> int:
    """How many bookings the copy has; raises CannotOpen where it is not a sound one, or has less than so many."""
    with closing(sqlite3.connect(path, isolation_level=None)) as copy:
        try:
            # One file, which can be read from a folder that cannot be written; a server turns it back.
            copy.execute("PRAGMA journal_mode = DELETE")
            found = copy.execute("PRAGMA integrity_check").fetchone()[0]
            count = Reader(copy).count()
        except sqlite3.DatabaseError as error:
            raise CannotOpen(f"the copy is not sound: {error}") from error
    if found != "ok":
        raise CannotOpen(f"the copy is not sound: {' '.join(found.split())[:200]}")
    if count < least:
        raise CannotOpen("the copy does not have all bookings")
    return count


@contextmanager
def reading(path: str) -> Iterator[Reader]:
    """A snapshot of the bookings as they are now; raises CannotOpen."""
    path = _absolute(path)
    with _opening(path):
        if not os.path.exists(path):
            raise CannotOpen(f"there is no database at {path}; python run.py makes it")
        # A reader of a WAL database makes a log where there is none, and cannot remove it. Who may write removes it below.
        # Anybody else makes none: as long as there is none, no server writes. (A log of theirs would hinder the next one.)
        wal, _ = _logs_of(path)
        own = os.access(os.path.dirname(wal), os.W_OK) and os.access(path, os.W_OK)
        mode = "mode=ro" if own or os.path.exists(wal) else "mode=ro&immutable=1"
        try:
            with closing(_connect(_uri(path, mode))) as db:
                db.execute("BEGIN")
                _check_table(db, path)
                yield Reader(db)
        finally:
            with suppress(OSError):  # a server that ends has removed it
                if own and not os.path.getsize(wal):
                    _remove_log(path)


def _remove_log(path: str) -> None:
    """SQLite removes the log when the last one closes who may write: be that one, if nobody else is."""
    with suppress(sqlite3.Error), closing(_connect(_uri(path, "mode=rw"))) as db:
        db.execute(_waiting(0))
        db.execute(PING).fetchone()


def insert_by_hand(path: str, tenant_id: str, start_time_utc: str, idempotency_key: str) -> str:
    """Insert as a person with a SQL client does, past all of this program: "" or what SQLite says against it."""
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as db:
        try:
            db.execute(
                "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES (?, ?, ?)",
                (tenant_id, start_time_utc, idempotency_key),
            )
        except sqlite3.Error as error:
            return str(error)
    return ""


def _uri(path: str, query: str) -> str:
    """The file as a URI. Only mode=rwc makes one, so that a file that has vanished is not replaced by an empty one."""
    return f"{Path(path).as_uri()}?{query}"


def _connect(uri: str) -> sqlite3.Connection:
    """A connection in autocommit."""
    db = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    # A CHECK cannot keep out every byte that is no UTF-8; one such row must not cost its tenant the whole list.
    db.text_factory = _lenient
    return db


def _lenient(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


@contextmanager
def _troubles() -> Iterator[None]:
    """What SQLite and the system report of a file that cannot be used, told as Unavailable."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except (sqlite3.DatabaseError, OSError) as error:
        raise Unavailable(TROUBLES.get(str(error), Trouble.UNREACHABLE)) from error


# Python 3.9 and 3.10 give no error code; these texts are SQLite's own for SQLITE_BUSY and SQLITE_FULL.
TROUBLES = {"database is locked": Trouble.BUSY, "database or disk is full": Trouble.FULL}


def create_database(path: str) -> None:
    """Make the database at `path` from schema.sql, or see that it is one that can be used; raises CannotOpen."""
    path = _absolute(path)
    with _opening(path):
        # SQLite would open it all the same, and let nobody write.
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise CannotOpen(f"{path}: this user may not write it")
        with closing(_connect(_uri(path, "mode=rwc"))) as db:
            # Before anything is changed, so that a database of somebody else's stays as it is.
            if _table_text(db) is not None or _encoding(db) != "UTF-8":
                _check_table(db, path)
            mode = _switch_to_wal(db)
            if mode != "wal":
                raise CannotOpen(f"{path}: cannot use a write-ahead log here (its journal mode stays {mode})")
            # In one transaction, so that two servers can start on one new file.
            db.execute("BEGIN IMMEDIATE")
            db.execute(schema())
            _check_table(db, path)
            db.execute("COMMIT")


def _switch_to_wal(db: sqlite3.Connection) -> str:
    """Switching asks for the whole file at once, and SQLite does not wait for it as it waits for a write lock."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return str(db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if TROUBLES.get(str(error)) is not Trouble.BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def _opening(path: str) -> Iterator[None]:
    """Whatever hinders opening, as one line."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise CannotOpen(f"this Python has SQLite {sqlite3.sqlite_version}; bookings needs {oldest} or newer")
    if os.path.isdir(path):
        raise CannotOpen(f"{path} is a folder; name a file in it")
    if os.path.exists(path) and not os.path.isfile(path):
        raise CannotOpen(f"{path} is not a regular file; name another")
    if not os.path.isdir(os.path.dirname(path)):
        raise CannotOpen(f"{path}: its folder does not exist")
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise CannotOpen(f"{path}: {error}") from error


def schema() -> str:
    """The statement that makes the table, without its prose.

    SQLite keeps the text of a table as it is, and reads it in every connection: without the prose, a list takes 4 % less.
    """
    try:
        return re.sub(r"\n *--.*", "", (_HERE / "schema.sql").read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotOpen(f"{error.filename}: {error.strerror}") from error


def _check_table(db: sqlite3.Connection, path: str) -> None:
    check_rules(_encoding(db), _table_text(db), path)


def check_rules(encoding: str, found: str | None, name: str) -> None:
    """Refuse a table that is not the one of schema.sql: its rules, which are in UTF-8, are the whole guarantee.

    `found` is the statement that SQLite has stored for it.
    """
    with closing(sqlite3.connect(":memory:")) as model:
        model.execute(schema())
        expected = _table_text(model)
    if encoding != "UTF-8":
        raise CannotOpen(f"{name}: its text is in {encoding}, and the rules of schema.sql are in UTF-8")
    if found is None:
        raise CannotOpen(f"{name}: there is no bookings table in it; is it another program's?")
    if _without_prose(found) != _without_prose(expected):
        raise CannotOpen(f"{name}: its bookings table is not the one of schema.sql; use another database")


def _encoding(db: sqlite3.Connection) -> str:
    return str(db.execute(ENCODING).fetchone()[0])


def _table_text(db: sqlite3.Connection) -> str | None:
    found = db.execute(TABLE_TEXT).fetchone()
    return found[0] if found else None


def _without_prose(statement: str | None) -> str:
    """The rules that SQLite has stored for the table, without prose and line breaks, which may change."""
    return " ".join(re.sub(r"--.*", "", statement or "").split())
