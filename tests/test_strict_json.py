"""Request bodies: which JSON is accepted, and which is rejected although `json` reads it."""

from __future__ import annotations

import json

import pytest

from tests.helpers.clients import assert_nothing_booked, rows_with
from tests.helpers.servers import Server, assert_problem
from tests.helpers.values import MEMBERS, SLOT, VALID_BODY, fresh_name, short_id

# More digits than `int` accepts.
DIGITS = "9" * 5000

# In a template, @ is replaced with the members of a valid booking.
BODIES = [
    "{@}",
    " \t\r\n{ @ }\r\n",
    (
        '{@, "note": null, "tags": ["a", {"b": [true, false, -0, 1.5e-3]}], "": "", "id": 7, '
        '"created_at": "x"}'
    ),
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


def body_of(template: str, name: str, encoding: str = "utf-8") -> bytes:
    members = json.dumps(dict(zip(MEMBERS, (name, SLOT, name))))[1:-1]
    return template.replace("@", members).encode(encoding, "surrogatepass")


@pytest.mark.parametrize("template", BODIES, ids=short_id)
def test_json_body_is_booked(shared_server: Server, template: str) -> None:
    name = fresh_name()
    response = shared_server.call("POST", "/bookings", body_of(template, name))
    assert response.status == 201, response.body
    assert [response.json[member] for member in MEMBERS] == [name, SLOT, name]
    assert rows_with(shared_server, name) == [(name, SLOT, name)]
    # Unknown members do not make it a different request.
    assert shared_server.book(name, SLOT, name).json == response.json


def test_escapes_equal_the_characters_they_represent(shared_server: Server) -> None:
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
    assert rows_with(shared_server, name) == [(f"{name}é😀/", SLOT, name)]


TWICE = "twice"
DEEP = "it is nested deeper than 64 levels"
NOT_AN_OBJECT = "it is not an object"
NOT_UTF8 = "it is not UTF-8 at byte "
UTF16 = "it is UTF-16 or UTF-32; encode it in UTF-8"
EMPTY = 'it is empty; send {"tenant_id": ...'
QUOTES = "its names are not in double quotes; if a shell removed them"
CONSTANT = " is not JSON"
# The body, its encoding, and a part of the error's detail, "" if the `json` module words it.
REJECTED_BODIES: list[tuple[str, str, str]] = [
    ('{@, "tenant_id": "other"}', "utf-8", "it has the member tenant_id twice"),
    ("{@, @}", "utf-8", TWICE),
    ('{"idempotency_key": "other", @}', "utf-8", "it has the member idempotency_key twice"),
    (
        '{@, "start_time_utc": "2026-01-01T10:00:00Z"}',
        "utf-8",
        "it has the member start_time_utc twice",
    ),
    ('{@, "tenant\\u005fid": "other"}', "utf-8", "it has the member tenant_id twice"),
    ('{@, "\\u0074enant_id": null}', "utf-8", "it has the member tenant_id twice"),
    ('{@, "note": 1, "note": 1}', "utf-8", "it has the member note twice"),
    ('{@, "": 1, "": 1}', "utf-8", TWICE),
    ('{@, "\\ud800": 1, "\\ud800": 2}', "utf-8", TWICE),
    ('{@, "\\u001b[31m": 1, "\\u001b[31m": 2}', "utf-8", TWICE),
    ('{@, "note": {"x": 1, "x": 2}}', "utf-8", "it has the member x twice"),
    ('{@, "note": [[{"x": {"y": 1, "\\u0079": 2}}]]}', "utf-8", "it has the member y twice"),
    (
        '{@, "' + "n" * 5000 + '": 1, "' + "n" * 5000 + '": 2}',
        "utf-8",
        f"the member {'n' * 40}... twice",
    ),
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
    ("{@}", "utf-8-sig", "it starts with a byte order mark"),
    ("{@}", "utf-16", UTF16),
    ("{@}", "utf-16-le", UTF16),
    ("{@}", "utf-16-be", UTF16),
    ("{@}", "utf-32", UTF16),
    ("{@}", "utf-32-le", UTF16),
    ("{@}", "utf-32-be", UTF16),
    ('{@, "note": "café"}', "latin-1", NOT_UTF8),
    ('{@, "note": "\xc0\x80"}', "latin-1", NOT_UTF8),
    ('{@, "note": "\xf4\x90\x80\x80"}', "latin-1", NOT_UTF8),
    ('{@, "note": "\ud800"}', "utf-8", NOT_UTF8),
    ("[]", "utf-8", NOT_AN_OBJECT),
    ("[{@}]", "utf-8", NOT_AN_OBJECT),
    ('"a"', "utf-8", NOT_AN_OBJECT),
    ("7", "utf-8", NOT_AN_OBJECT),
    (DIGITS, "utf-8", NOT_AN_OBJECT),
    ("null", "utf-8", NOT_AN_OBJECT),
    ("true", "utf-8", NOT_AN_OBJECT),
    ("", "utf-8", EMPTY),
    ("  \n", "utf-8", EMPTY),
    ("\0", "utf-8", ""),
    # What PowerShell, cmd and POSIX shells pass on if the quotes are those of another one.
    ("{tenant_id: acme, start_time_utc: 2026-01-01T10:00:00Z}", "utf-8", QUOTES),
    ("'{tenant_id:", "utf-8", QUOTES),
    ("'{@}'", "utf-8", QUOTES),
    ("{'tenant_id': 'acme'}", "utf-8", QUOTES),
    ('{\\"tenant_id\\": \\"acme\\"}', "utf-8", QUOTES),
    (' {\n  tenant_id: "acme"}', "utf-8", QUOTES),
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


@pytest.mark.parametrize(("template", "encoding", "detail"), REJECTED_BODIES, ids=short_id)
def test_invalid_json_is_rejected(
    shared_server: Server, template: str, encoding: str, detail: str
) -> None:
    name = fresh_name()
    response = shared_server.call("POST", "/bookings", body_of(template, name, encoding))
    assert_problem(response, 400, "malformed-json", "body")
    assert detail in response.json["errors"][0]["detail"]
    assert len(response.body) < 1000
    assert_nothing_booked(shared_server, name)


# --- On both stores

VALID_JSON = json.dumps(VALID_BODY).encode()
REJECTED_JSON = {
    "empty body": b"",
    "not JSON": b"tenant_id=rejected",
    "cut short": VALID_JSON[:-1],
    "something after it": VALID_JSON + b"{}",
    "not UTF-8": VALID_JSON.replace(b"rejected", b"\xff"),
    "UTF-16": VALID_JSON.decode().encode("utf-16"),
    "an array": json.dumps([VALID_BODY]).encode(),
    "null": b"null",
    "a string": b'"x"',
    "NaN": json.dumps({**VALID_BODY, "price": float("nan")}).encode(),
    "Infinity": json.dumps({**VALID_BODY, "price": float("inf")}).encode(),
    "a member twice": VALID_JSON[:-1] + b',"tenant_id":"rejected"}',
    "an unknown member twice": VALID_JSON[:-1] + b',"x":1,"x":1}',
    "nested too deep": VALID_JSON[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}",
}


@pytest.mark.both_stores
@pytest.mark.parametrize("case", REJECTED_JSON)
def test_invalid_json_is_rejected_on_both_stores(shared_server: Server, case: str) -> None:
    before = shared_server.rows()
    response = shared_server.call("POST", "/bookings", REJECTED_JSON[case])
    assert_problem(response, 400, "malformed-json", "body")
    assert shared_server.rows() == before


@pytest.mark.both_stores
def test_rejected_json_does_not_use_key(server: Server) -> None:
    for sent in REJECTED_JSON.values():
        assert server.call("POST", "/bookings", sent).status == 400
    assert server.rows() == []
    assert server.call("POST", "/bookings", VALID_BODY).status == 201
    assert server.rows() == [tuple(VALID_BODY.values())]
