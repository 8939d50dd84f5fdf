"""What a client may send, and that the table refuses whatever the API refuses.

Spellings of an instant, then tenants and keys: one table each, sent through the API and, the same list,
written by hand with SQL. Then the JSON around them, the places where a value may stand, and the Content-Type.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import sqlite3
from collections.abc import Iterator
from datetime import date
from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.servers import CANONICAL, ROOT, SOON, Response, Server, assert_problem
from tests.helpers.values import (
    INSTANTS,
    MEMBERS,
    REJECTED_TEXTS,
    SLOT,
    TEXTS,
    YEAR_300,
    fresh_name,
)


def _id(value: object) -> str:
    return ascii(value)[:40]


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


def _send(
    server: Server, method: str, target: str, headers: list[tuple[str, str]], body: bytes = b""
) -> Response:
    """One request with exactly these headers: `call` sends none twice, and a Content-Type with every body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
    with contextlib.closing(connection):
        connection.putrequest(method, target)
        for name, value in headers:
            connection.putheader(name, _bytes(value))
        if method == "POST":
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return Response(response.status, response.headers, response.read())


def _post(server: Server, headers: list[tuple[str, str]], members: dict[str, Any]) -> Response:
    body = json.dumps(members).encode()
    return _send(server, "POST", "/bookings", [("Content-Type", "application/json"), *headers], body)


def _quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _rows_with(server: Server, value: str) -> list[tuple[Any, ...]]:
    return [row for row in server.rows() if value in row]


def _assert_nothing_used(server: Server, name: str) -> None:
    """No row was stored for a refused request, and its key still makes a booking."""
    assert _rows_with(server, name) == []
    assert server.book(name, SLOT, name).status == 201
    assert _rows_with(server, name) == [(name, SLOT, name)]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(tmp_path_factory.mktemp("sql") / "bookings.db")) as db:
        db.executescript((ROOT / "schema.sql").read_text(encoding="utf-8"))
        yield db


@pytest.fixture
def table(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """The empty table, as a person with a SQL client has it."""
    yield database
    database.rollback()


def _insert(table: sqlite3.Connection, column: str, value: object) -> tuple[Any, ...]:
    """A hand-written INSERT with this value in one column; the type and the bytes that the table then has.

    Text goes as a cast of its bytes, since Python would refuse a lone surrogate before SQLite could.
    """
    row = {"tenant_id": "acme", "start_time_utc": SLOT, "idempotency_key": "k", column: value}
    marks = ["CAST(? AS TEXT)" if isinstance(given, str) else "?" for given in row.values()]
    table.execute(
        f"INSERT INTO bookings ({', '.join(row)}) VALUES ({', '.join(marks)})",
        [_bytes(given) if isinstance(given, str) else given for given in row.values()],
    )
    stored = table.execute(f"SELECT typeof({column}), CAST({column} AS BLOB) FROM bookings").fetchall()
    assert len(stored) == 1
    return tuple(stored[0])


def _assert_table_refuses(table: sqlite3.Connection, column: str, value: object) -> None:
    # With the column in the message, this value failed and no other. "now" fails as no CHECK may use it.
    with pytest.raises(sqlite3.DatabaseError, match=f"constraint failed.*{column}|non-deterministic use"):
        _insert(table, column, value)
    assert table.execute("SELECT count(*) FROM bookings").fetchone() == (0,)


@pytest.mark.parametrize(("sent", "stored", "said"), [*INSTANTS, *YEAR_300], ids=_id)
def test_an_instant_through_the_api(shared_server: Server, sent: str, stored: str | None, said: str) -> None:
    name = fresh_name()
    answer = shared_server.book(name, sent, name)
    if stored is None:
        assert_problem(answer, 400, "invalid-fields", "start_time_utc")
        assert said in answer.json["errors"][0]["detail"]
        _assert_nothing_used(shared_server, name)
        return
    assert answer.status == 201
    assert answer.json["start_time_utc"] == stored
    assert shared_server.book(name, stored, name).json == answer.json
    assert_problem(shared_server.book(name, sent, f"{name}-other"), 409, "slot-taken", "start_time_utc")
    assert _rows_with(shared_server, name) == [(name, stored, name)]


@pytest.mark.parametrize("column", ["start_time_utc", "created_at"])
@pytest.mark.parametrize(("sent", "stored", "said"), INSTANTS, ids=_id)
def test_only_the_stored_spelling_passes_in_sql(
    table: sqlite3.Connection, column: str, sent: str, stored: str | None, said: str
) -> None:
    if sent == stored:
        assert _insert(table, column, sent) == ("text", sent.encode())
    else:
        _assert_table_refuses(table, column, sent)


def test_the_table_has_each_day_of_the_calendar_and_no_other(table: sqlite3.Connection) -> None:
    """The ends of February in all years, and each day that can be written in four of them."""
    days = {f"{year:04}-{day}" for year in range(10_000) for day in ("02-28", "02-29", "02-30", "03-01")}
    years = ("0300", "0700", "2000", "2026")
    days |= {f"{year}-{month:02}-{day:02}" for year in years for month in range(14) for day in range(33)}
    rows = [(f"{day}T10:00:00Z", day) for day in sorted(days)]
    table.executemany(
        "INSERT OR IGNORE INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES ('acme', ?, ?)",
        rows,
    )
    real = []
    for start, day in rows:
        with contextlib.suppress(ValueError):
            date(*map(int, day.split("-")))
            real.append((start,))
    assert len(real) > 20_000
    assert table.execute("SELECT start_time_utc FROM bookings ORDER BY start_time_utc").fetchall() == real


@pytest.mark.parametrize("column", ["start_time_utc", "created_at"])
@pytest.mark.parametrize(
    "value", [SLOT.encode(), b"2026-01-01T10:00:00\xff", b"", None, 0, 2026, 1767261600, 2461041.5], ids=_id
)
def test_an_instant_in_sql_is_text(table: sqlite3.Connection, column: str, value: object) -> None:
    _assert_table_refuses(table, column, value)


def test_a_row_written_by_hand_gets_the_time_of_day(table: sqlite3.Connection) -> None:
    table.execute(
        "INSERT INTO bookings (tenant_id, start_time_utc, idempotency_key) VALUES ('acme', ?, 'k')", (SLOT,)
    )
    [(created_at, now)] = table.execute(
        "SELECT created_at, strftime('%Y-%m-%dT%H:%M:%SZ', 'now') FROM bookings"
    ).fetchall()
    assert CANONICAL.fullmatch(created_at)
    assert created_at <= now


@pytest.mark.parametrize("text", TEXTS, ids=_id)
def test_a_text_comes_back_as_it_was_sent(shared_server: Server, text: str) -> None:
    name = fresh_name()
    by_tenant = shared_server.book(text, SLOT, name)
    by_key = shared_server.book(name, SLOT, text)
    assert (by_tenant.status, by_key.status) == (201, 201)
    assert [by_tenant.json[member] for member in MEMBERS] == [text, SLOT, name]
    assert [by_key.json[member] for member in MEMBERS] == [name, SLOT, text]
    assert _rows_with(shared_server, name) == [(text, SLOT, name), (name, SLOT, text)]

    again = _post(
        shared_server,
        [("X-Tenant-ID", text), ("Idempotency-Key", name)],
        {"start_time_utc": SLOT},
    )
    assert (again.status, again.body) == (200, by_tenant.body)
    again = _post(
        shared_server,
        [("X-Tenant-ID", name), ("Idempotency-Key", _quoted(text))],
        {"start_time_utc": SLOT},
    )
    assert (again.status, again.body) == (200, by_key.body)
    for target, headers in (
        ("/bookings", [("X-Tenant-ID", text)]),
        (f"/bookings?tenant_id={quote(text, safe='')}", []),
    ):
        assert _send(shared_server, "GET", target, headers).json == [by_tenant.json]
    assert len(_rows_with(shared_server, name)) == 2


@pytest.mark.parametrize(("text", "said"), REJECTED_TEXTS, ids=_id)
def test_a_text_that_is_refused_wherever_it_is_sent(shared_server: Server, text: str, said: str) -> None:
    before, name = shared_server.rows(), fresh_name()
    in_body = shared_server.book(text, SLOT, text)
    assert_problem(in_body, 400, "invalid-fields", "tenant_id", "idempotency_key")
    assert all(said in error["detail"] for error in in_body.json["errors"])

    in_query = shared_server.call("GET", f"/bookings?tenant_id={quote(_bytes(text), safe='')}")
    is_unicode = not re.search("[\ud800-\udfff]", text)
    assert_problem(in_query, 400, "invalid-fields", "tenant_id" if is_unicode else "query")

    # HTTP ends a header's line at CR LF, and takes blanks and tabs off a value before anyone sees it.
    if not re.search("[\r\n]", text):
        tenant, names = (name, MEMBERS[2:]) if text != text.strip(" \t") else (text, MEMBERS[::2])
        headers = [("X-Tenant-ID", tenant), ("Idempotency-Key", _quoted(text))]
        in_headers = _post(shared_server, headers, {"start_time_utc": SLOT})
        if re.search("[\x00-\x08\x0a-\x1f\x7f]", text):
            assert_problem(in_headers, 400, "malformed-request")
        else:
            assert_problem(in_headers, 400, "invalid-fields", *names)
            assert all(said in error["detail"] for error in in_headers.json["errors"])
    assert shared_server.rows() == before


@pytest.mark.parametrize("column", ["tenant_id", "idempotency_key"])
@pytest.mark.parametrize("text", TEXTS, ids=_id)
def test_a_text_that_sql_may_write(table: sqlite3.Connection, column: str, text: str) -> None:
    assert _insert(table, column, text) == ("text", text.encode())


# The six bytes that older systems write for one emoji: as escapes in JSON it is the emoji, as bytes no UTF-8.
CESU_8 = "\ud83d\ude00"


@pytest.mark.parametrize("column", ["tenant_id", "idempotency_key"])
@pytest.mark.parametrize("text", [*(text for text, _ in REJECTED_TEXTS), CESU_8], ids=_id)
def test_a_text_that_sql_may_not_write(table: sqlite3.Connection, column: str, text: str) -> None:
    _assert_table_refuses(table, column, text)


@pytest.mark.parametrize("column", ["tenant_id", "idempotency_key"])
@pytest.mark.parametrize("value", [None, b"", b"acme", b"\xed\xa0\x80", b"\x00"], ids=_id)
def test_no_blob_and_no_null_is_a_text_in_sql(table: sqlite3.Connection, column: str, value: object) -> None:
    _assert_table_refuses(table, column, value)


@pytest.mark.parametrize("column", ["tenant_id", "idempotency_key"])
def test_a_lone_surrogate_spelled_in_sql(table: sqlite3.Connection, column: str) -> None:
    values = {"tenant_id": "'acme'", "idempotency_key": "'k'", column: "CAST(X'EDA080' AS TEXT)"}
    with pytest.raises(sqlite3.IntegrityError, match=column):
        table.execute(
            "INSERT INTO bookings (start_time_utc, tenant_id, idempotency_key) "
            f"VALUES ('{SLOT}', {values['tenant_id']}, {values['idempotency_key']})"
        )
    assert table.execute("SELECT count(*) FROM bookings").fetchone() == (0,)


@pytest.mark.parametrize("column", ["tenant_id", "idempotency_key"])
@pytest.mark.parametrize(("number", "stored"), [(5, b"5"), (-1, b"-1"), (5.5, b"5.5")])
def test_a_number_becomes_text_in_sql(
    table: sqlite3.Connection, column: str, number: float, stored: bytes
) -> None:
    assert _insert(table, column, number) == ("text", stored)
    # So a number and its text cannot be two tenants at one slot, nor two keys.
    with pytest.raises(sqlite3.IntegrityError, match="UNIQUE"):
        _insert(table, column, stored.decode())


# In these, @ stands for the three members of a good booking.
DIGITS = "9" * 5000
BODIES = [
    "{@}",
    " \t\r\n{ @ }\r\n",
    '{@, "note": null, "tags": ["a", {"b": [true, false, -0, 1.5e-3]}], "": "", "id": 7, "created_at": "x"}',
    '{@, "TENANT_ID": "other", "tenantId": "other", "tenant_id ": "other"}',
    '{@, "a": {"x": 1}, "b": {"x": 2}, "c": [{"x": 3}, {"x": 4}]}',
    f'{{@, "n": {DIGITS}, "m": -{DIGITS}, "f": 0.{DIGITS}}}',
    '{@, "n": 1e999, "m": -1e999, "e": 1e-999}',
    '{@, "n": "NaN", "m": "Infinity"}',
    '{@, "lone": "\\ud800", "\\udfff": 1}',
    '{@, "mark": "\ufeff"}',
    '{@, "deep": ' + "[" * 63 + "]" * 63 + "}",
    '{@, "wide": [' + ",".join(["[]"] * 500) + "]}",
    '{@, "text": "' + "[{" * 500 + '"}',
    '{@, "text": "\\"' + "[{" * 500 + '"}',
    '{@, "__proto__": {}, "constructor": null, "\\u0000": 0}',
]


def _body(template: str, name: str, encoding: str = "utf-8") -> bytes:
    members = json.dumps(dict(zip(MEMBERS, (name, SLOT, name))))[1:-1]
    return template.replace("@", members).encode(encoding, "surrogatepass")


@pytest.mark.parametrize("template", BODIES, ids=_id)
def test_a_body_that_books(shared_server: Server, template: str) -> None:
    name = fresh_name()
    answer = shared_server.call("POST", "/bookings", _body(template, name))
    assert answer.status == 201, answer.body
    assert {member: answer.json[member] for member in MEMBERS} == dict(zip(MEMBERS, (name, SLOT, name)))
    assert _rows_with(shared_server, name) == [(name, SLOT, name)]
    # What the body has beyond the three members does not make it another request.
    assert shared_server.book(name, SLOT, name).json == answer.json


def test_escapes_are_the_characters_they_stand_for(shared_server: Server) -> None:
    name = fresh_name()
    first = shared_server.book(f"{name}é😀/", SLOT, name)
    escaped = name.replace("-", "\\u002D")
    body = (
        rf'{{"tenant\u005Fid": "{name}\u00e9\ud83d\uDE00\/", '
        rf'"start_time_utc": "2026\u002d01-01T10:00:00\u005a", "idempotency_key": "{escaped}"}}'
    )
    again = shared_server.call("POST", "/bookings", body.encode())
    assert (first.status, again.status) == (201, 200)
    assert again.body == first.body
    assert _rows_with(shared_server, name) == [(f"{name}é😀/", SLOT, name)]


TWICE = "twice"
DEEP = "it is nested deeper than 64 levels"
NO_OBJECT = "it is no object"
NO_UTF8 = "it is not UTF-8 at byte "
CONSTANT = " is not JSON"

# The body, its encoding, and what the refusal says; "" where the words are the JSON reader's.
REFUSED_BODIES: list[tuple[str, str, str]] = [
    ('{@, "tenant_id": "other"}', "utf-8", "it has the member tenant_id twice"),
    ("{@, @}", "utf-8", TWICE),
    ('{"idempotency_key": "other", @}', "utf-8", "it has the member idempotency_key twice"),
    ('{@, "start_time_utc": "2026-01-01T10:00:00Z"}', "utf-8", "it has the member start_time_utc twice"),
    ('{@, "tenant\\u005fid": "other"}', "utf-8", "it has the member tenant_id twice"),
    ('{@, "\\u0074enant_id": null}', "utf-8", "it has the member tenant_id twice"),
    ('{@, "note": 1, "note": 1}', "utf-8", "it has the member note twice"),
    ('{@, "": 1, "": 1}', "utf-8", TWICE),
    ('{@, "\\ud800": 1, "\\ud800": 2}', "utf-8", TWICE),
    ('{@, "\\u001b[31m": 1, "\\u001b[31m": 2}', "utf-8", TWICE),
    ('{@, "note": {"x": 1, "x": 2}}', "utf-8", "it has the member x twice"),
    ('{@, "note": [[{"x": {"y": 1, "\\u0079": 2}}]]}', "utf-8", "it has the member y twice"),
    ('{@, "' + "n" * 5000 + '": 1, "' + "n" * 5000 + '": 2}', "utf-8", f"the member {'n' * 40}... twice"),
    ('{@, "deep": ' + "[" * 64 + "]" * 64 + "}", "utf-8", DEEP),
    ('{@, "deep": ' + '{"a":' * 64 + "1" + "}" * 65, "utf-8", DEEP),
    ('{@, "deep": ' + "[" * 8000 + "]" * 8000 + "}", "utf-8", DEEP),
    ("[" * 16000, "utf-8", DEEP),
    ('{"a":' * 3000, "utf-8", DEEP),
    ('{@, "text": "\\"", "deep": ' + "[" * 70 + "]" * 70 + "}", "utf-8", DEEP),
    ('{@, "n": NaN}', "utf-8", "NaN" + CONSTANT),
    ('{@, "n": Infinity}', "utf-8", "Infinity" + CONSTANT),
    ('{@, "n": [-Infinity]}', "utf-8", "-Infinity" + CONSTANT),
    ("NaN", "utf-8", "NaN" + CONSTANT),
    ('{@, "n": nan}', "utf-8", ""),
    ('{@, "n": -NaN}', "utf-8", ""),
    ('{@, "n": 01}', "utf-8", ""),
    ('{@, "n": +1}', "utf-8", ""),
    ('{@, "n": .5}', "utf-8", ""),
    ('{@, "n": 1.}', "utf-8", ""),
    ('{@, "n": 1_000}', "utf-8", ""),
    ('{@, "n": 0x10}', "utf-8", ""),
    ('{@, "n": ٣}', "utf-8", ""),
    ('{@, "n": 1٣}', "utf-8", ""),
    ('{@, "n": True}', "utf-8", ""),
    ("{@}", "utf-8-sig", "it begins with a byte order mark"),
    ("{@}", "utf-16", NO_UTF8 + "0"),
    ("{@}", "utf-16-le", ""),
    ("{@}", "utf-16-be", ""),
    ("{@}", "utf-32", NO_UTF8 + "0"),
    ("{@}", "utf-32-le", ""),
    ("{@}", "utf-32-be", ""),
    ('{@, "note": "café"}', "latin-1", NO_UTF8),
    ('{@, "note": "\xc0\x80"}', "latin-1", NO_UTF8),
    ('{@, "note": "\xf4\x90\x80\x80"}', "latin-1", NO_UTF8),
    ('{@, "note": "\ud800"}', "utf-8", NO_UTF8),
    ("[]", "utf-8", NO_OBJECT),
    ("[{@}]", "utf-8", NO_OBJECT),
    ('"a"', "utf-8", NO_OBJECT),
    ("7", "utf-8", NO_OBJECT),
    (DIGITS, "utf-8", NO_OBJECT),
    ("null", "utf-8", NO_OBJECT),
    ("true", "utf-8", NO_OBJECT),
    ("", "utf-8", ""),
    ("  \n", "utf-8", ""),
    ("\0", "utf-8", ""),
    ("{@", "utf-8", ""),
    ("@}", "utf-8", ""),
    ("{@}}", "utf-8", ""),
    ("{@} {@}", "utf-8", ""),
    ("{@}\0", "utf-8", ""),
    ("{@} x", "utf-8", ""),
    ("{@,}", "utf-8", ""),
    ("{,@}", "utf-8", ""),
    ('{@ "a": 1}', "utf-8", ""),
    ('{@, "a" 1}', "utf-8", ""),
    ('{@, "a": [1,]}', "utf-8", ""),
    ("{@} // comment", "utf-8", ""),
    ("{/* comment */ @}", "utf-8", ""),
    ("{@, 'a': 1}", "utf-8", ""),
    ("{@, \"a\": 'b'}", "utf-8", ""),
    ("{@, a: 1}", "utf-8", ""),
    ("{@, 1: 1}", "utf-8", ""),
    ('{@, "a": "b}', "utf-8", ""),
    ('{@, "a": "line\nbreak"}', "utf-8", ""),
    ('{@, "a": "\0"}', "utf-8", ""),
    ('{@, "a": "\\x41"}', "utf-8", ""),
    ('{@, "a": "\\u00g0"}', "utf-8", ""),
    ('{@, "a": "\\u12"}', "utf-8", ""),
    ("{\u00a0@}", "utf-8", ""),
    ("{@}\f", "utf-8", ""),
    ("tenant_id=acme&start_time_utc=2026-01-01T10:00:00Z&idempotency_key=k", "utf-8", ""),
]


@pytest.mark.parametrize(("template", "encoding", "said"), REFUSED_BODIES, ids=_id)
def test_a_body_that_is_refused(shared_server: Server, template: str, encoding: str, said: str) -> None:
    name = fresh_name()
    answer = shared_server.call("POST", "/bookings", _body(template, name, encoding))
    assert_problem(answer, 400, "malformed-json", "body")
    assert said in answer.json["errors"][0]["detail"]
    assert len(answer.body) < 1000
    _assert_nothing_used(shared_server, name)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("null", "not null"),
        ("true", "not a boolean"),
        ("false", "not a boolean"),
        ("7", "not a number"),
        ("-0", "not a number"),
        ("1.5", "not a number"),
        ("1767261600", "not a number"),
        ("1e999", "not a number"),
        (DIGITS, "not a number"),
        ("[]", "not an array"),
        ('["a"]', "not an array"),
        ("{}", "not an object"),
    ],
    ids=_id,
)
def test_no_other_type_than_a_string(shared_server: Server, value: str, said: str) -> None:
    before = shared_server.rows()
    body = "{" + ", ".join(f'"{member}": {value}' for member in MEMBERS) + "}"
    answer = shared_server.call("POST", "/bookings", body.encode())
    assert_problem(answer, 400, "invalid-fields", *MEMBERS)
    assert all(error["detail"].endswith(said) for error in answer.json["errors"])
    assert shared_server.rows() == before


@pytest.mark.parametrize(
    ("headers", "members", "wrong"),
    [
        ([], {}, MEMBERS),
        ([], {"note": "a"}, MEMBERS),
        ([], {"tenant_id": "", "start_time_utc": "", "idempotency_key": ""}, MEMBERS),
        ([], {"tenant_id": " a", "start_time_utc": "now", "idempotency_key": 7}, MEMBERS),
        ([], {"tenant_id": "a", "start_time_utc": None}, MEMBERS[1:]),
        (
            [("X-Tenant-ID", "a")],
            {"tenant_id": "b", "start_time_utc": SLOT},
            ("tenant_id", "idempotency_key"),
        ),
        ([("X-Tenant-ID", "")], {"tenant_id": 7}, ("tenant_id", *MEMBERS)),
    ],
)
def test_all_that_is_wrong_is_said_at_once(
    shared_server: Server, headers: list[tuple[str, str]], members: dict[str, Any], wrong: tuple[str, ...]
) -> None:
    before = shared_server.rows()
    answer = _post(shared_server, headers, members)
    assert_problem(answer, 400, "invalid-fields", *wrong)
    assert all(field in answer.json["detail"] for field in wrong)
    assert shared_server.rows() == before


# The headers, tenant and key in the body (left out where ...), and the fields at fault. @ stands for the name
# that is the test's tenant and its key.
TENANT, KEY = "X-Tenant-ID", "Idempotency-Key"
PLACES: list[tuple[list[tuple[str, str]], Any, Any, tuple[str, ...]]] = [
    ([(TENANT, "@")], ..., "@", ()),
    ([(TENANT, "@")], "@", "@", ()),
    ([(TENANT, "@"), (TENANT, "@")], "@", "@", ()),
    ([("x-tenant-id", "@")], ..., "@", ()),
    ([("X-TENANT-ID", " \t@\t ")], ..., "@", ()),
    ([(KEY, "@")], "@", ..., ()),
    ([(KEY, '"@"')], "@", ..., ()),
    ([(KEY, "@")], "@", "@", ()),
    ([(KEY, '"@"')], "@", "@", ()),
    ([(KEY, "@"), (KEY, '"@"')], "@", ..., ()),
    ([("idempotency-KEY", ' "@" ')], "@", "@", ()),
    ([(TENANT, "@"), (KEY, "@")], ..., ..., ()),
    ([(TENANT, "@"), (KEY, '"@"')], "@", "@", ()),
    ([], ..., "@", ("tenant_id",)),
    ([], "@", ..., ("idempotency_key",)),
    ([], ..., ..., ("tenant_id", "idempotency_key")),
    ([("X-Tenant", "@"), ("Tenant-ID", "@"), ("X_Tenant_ID", "@")], ..., "@", ("tenant_id",)),
    ([("X-Idempotency-Key", "@")], "@", ..., ("idempotency_key",)),
    ([(TENANT, "other")], "@", "@", ("tenant_id",)),
    ([(TENANT, '"@"')], "@", "@", ("tenant_id",)),
    ([(TENANT, "@A")], "@a", "@", ("tenant_id",)),
    ([(TENANT, "@caf\u00e9")], "@cafe\u0301", "@", ("tenant_id",)),
    ([(TENANT, "@, @")], "@", "@", ("tenant_id",)),
    ([(TENANT, "@"), (TENANT, "other")], ..., "@", ("tenant_id",)),
    ([(TENANT, "other"), (TENANT, "@")], "@", "@", ("tenant_id",)),
    ([(KEY, "other")], "@", "@", ("idempotency_key",)),
    ([(KEY, '"other"')], "@", "@", ("idempotency_key",)),
    ([(KEY, "@"), (KEY, "other")], "@", ..., ("idempotency_key",)),
    ([(KEY, "@")], "@", '"@"', ("idempotency_key",)),
    ([(TENANT, "other"), (KEY, "other")], "@", "@", ("tenant_id", "idempotency_key")),
    ([(TENANT, "")], ..., "@", ("tenant_id",)),
    ([(TENANT, "")], "@", "@", ("tenant_id",)),
    ([(TENANT, "@")], "", "@", ("tenant_id",)),
    ([(TENANT, "@")], None, "@", ("tenant_id",)),
    ([(KEY, "")], "@", ..., ("idempotency_key",)),
    ([(KEY, "")], "@", "@", ("idempotency_key",)),
    ([(KEY, '""')], "@", ..., ("idempotency_key",)),
    ([(KEY, '"@')], "@", ..., ("idempotency_key",)),
    ([(KEY, '"@", "@"')], "@", ..., ("idempotency_key",)),
    ([(KEY, r'"@\x"')], "@", ..., ("idempotency_key",)),
    ([(KEY, "@")], "@", "", ("idempotency_key",)),
    ([(KEY, "@")], "@", None, ("idempotency_key",)),
]


@pytest.mark.parametrize(("headers", "tenant", "key", "wrong"), PLACES, ids=_id)
def test_a_booking_with_its_values_in_any_place(
    shared_server: Server, headers: list[tuple[str, str]], tenant: Any, key: Any, wrong: tuple[str, ...]
) -> None:
    name = fresh_name()
    headers = [(header, value.replace("@", name)) for header, value in headers]
    members = {"tenant_id": tenant, "start_time_utc": SLOT, "idempotency_key": key}
    sent = {
        member: value.replace("@", name) if isinstance(value, str) else value
        for member, value in members.items()
        if value is not ...
    }
    answer = _post(shared_server, headers, sent)
    if wrong:
        assert_problem(answer, 400, "invalid-fields", *wrong)
        _assert_nothing_used(shared_server, name)
        return
    assert answer.status == 201
    assert _rows_with(shared_server, name) == [(name, SLOT, name)]
    assert shared_server.book(name, SLOT, name).json == answer.json


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("@ with a blank", "@ with a blank"),
        ('"@ with a blank"', "@ with a blank"),
        (r'"@ \"quoted\" and \\"', '@ "quoted" and \\'),
        (r'"\"@\""', '"@"'),
        (r"@\back", r"@\back"),
        ('@"', '@"'),
        ("'@'", "'@'"),
        ("@é😀", "@é😀"),
        ('"@é😀"', "@é😀"),
    ],
)
def test_a_key_in_its_header_is_the_key_in_the_body(shared_server: Server, header: str, key: str) -> None:
    name = fresh_name()
    header, key = header.replace("@", name), key.replace("@", name)
    first = _post(shared_server, [(KEY, header)], {"tenant_id": name, "start_time_utc": SLOT})
    assert first.status == 201
    assert first.json["idempotency_key"] == key
    assert _rows_with(shared_server, name) == [(name, SLOT, key)]
    again = shared_server.book(name, SLOT, key)
    assert (again.status, again.body) == (200, first.body)


@pytest.mark.parametrize("raw", [b"caf\xe9", b"\xff", b"\xed\xa0\x80"], ids=_id)
@pytest.mark.parametrize("header", [TENANT, KEY])
def test_header_bytes_that_are_no_utf8(shared_server: Server, header: str, raw: bytes) -> None:
    name = fresh_name()
    fields = {TENANT: "tenant_id", KEY: "idempotency_key"}
    members = {"tenant_id": name, "start_time_utc": SLOT, "idempotency_key": name}
    del members[fields[header]]
    body = json.dumps(members).encode()
    answer = shared_server.call("POST", "/bookings", body, **{header: raw.decode("latin-1")})
    assert_problem(answer, 400, "invalid-fields", fields[header])
    _assert_nothing_used(shared_server, name)


# The headers and the query of a GET, and the fields at fault; @ is the tenant.
GETS: list[tuple[list[str], str, tuple[str, ...]]] = [
    (["@"], "", ()),
    ([], "?tenant_id=@", ()),
    (["@"], "?tenant_id=@", ()),
    (["@", "@"], "", ()),
    (["@"], "?", ()),
    ([" @\t"], "?tenant%5Fid=@", ()),
    ([], "", ("tenant_id",)),
    ([], "?", ("tenant_id",)),
    ([""], "", ("tenant_id",)),
    ([], "?tenant_id=", ("tenant_id",)),
    ([""], "?tenant_id=@", ("tenant_id",)),
    (["@"], "?tenant_id=", ("tenant_id",)),
    (["other"], "?tenant_id=@", ("tenant_id",)),
    (["@"], "?tenant_id=other", ("tenant_id",)),
    (["@", "other"], "", ("tenant_id",)),
    ([], "?tenant_id=@&tenant_id=other", ("tenant_id",)),
    ([], "?tenant_id=other&tenant_id=@", ("tenant_id",)),
    ([], "?tenant_id", ("query",)),
    ([], "?tenant_id=@%zz", ("query",)),
    ([], "?tenant_id=@%E9", ("query",)),
    ([], "?tenant_id=@%ED%A0%80", ("query",)),
]


@pytest.mark.parametrize(("headers", "query", "wrong"), GETS, ids=_id)
def test_the_tenant_of_a_get_in_any_place(
    shared_server: Server, headers: list[str], query: str, wrong: tuple[str, ...]
) -> None:
    name = fresh_name()
    other = fresh_name()
    mine = shared_server.book(name, SLOT, name).json
    assert shared_server.book(other, SLOT, other).status == 201
    assert _rows_with(shared_server, name) == [(name, SLOT, name)]
    sent = [(TENANT, value.replace("@", name).replace("other", other)) for value in headers]
    query = query.replace("@", name).replace("other", other)
    for path, expected in (("/bookings", [mine]), (f"/bookings/{mine['id']}", mine)):
        answer = _send(shared_server, "GET", path + query, sent)
        if wrong:
            assert_problem(answer, 400, "invalid-fields", *wrong)
        else:
            assert (answer.status, answer.json) == (200, expected)


def test_a_post_takes_no_tenant_from_the_query(shared_server: Server) -> None:
    name = fresh_name()
    members = {"tenant_id": name, "start_time_utc": SLOT, "idempotency_key": name}
    answer = shared_server.call("POST", "/bookings?tenant_id=other", members)
    assert_problem(answer, 400, "invalid-fields", "tenant_id")
    _assert_nothing_used(shared_server, name)


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; charset=utf-8 ; x=y",
        "application/json;",
        "Application/JSON",
        "APPLICATION/JSON; CHARSET=UTF-8",
        " \tapplication/json ",
    ],
)
def test_a_content_type_that_is_json(shared_server: Server, media_type: str) -> None:
    name = fresh_name()
    answer = _send(shared_server, "POST", "/bookings", [("Content-Type", media_type)], _body("{@}", name))
    assert answer.status == 201
    assert _rows_with(shared_server, name) == [(name, SLOT, name)]


@pytest.mark.parametrize(
    "media_types",
    [
        [],
        [""],
        ["text/plain"],
        ["text/plain;charset=UTF-8"],
        ["text/plain; application/json"],
        ["text/json"],
        ["text/html"],
        ["application/x-www-form-urlencoded"],
        ["multipart/form-data; boundary=application/json"],
        ["application/octet-stream"],
        ["application/problem+json"],
        ["application/merge-patch+json"],
        ["application/jsonp"],
        ["application/x-json"],
        ["application"],
        ["json"],
        ["*/*"],
        ["application/json, text/plain"],
        ["application/json text/plain"],
        ["application/json", "text/plain"],
        ["text/plain", "application/json"],
        ["application / json"],
        ["application/json\u00a0"],
    ],
    ids=_id,
)
def test_a_content_type_that_is_not_json(shared_server: Server, media_types: list[str]) -> None:
    name = fresh_name()
    for body in (_body("{@}", name), b"", b"tenant_id=acme"):
        headers = [("Content-Type", media_type) for media_type in media_types]
        answer = _send(shared_server, "POST", "/bookings", headers, body)
        assert_problem(answer, 415, "not-json")
        assert answer.headers["Accept"] == "application/json"
    _assert_nothing_used(shared_server, name)
