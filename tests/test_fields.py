"""Validation of requests: instants, texts, the places of a value, queries and Content-Type."""

from __future__ import annotations

import gzip
import json
import re
from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.clients import (
    assert_nothing_booked,
    booking_of,
    call_with_header_lines,
    closing_request,
    only_response,
    rows_with,
)
from tests.helpers.servers import Response, Server, assert_problem
from tests.helpers.values import (
    INSTANTS,
    MEMBERS,
    REJECTED_TEXTS,
    SLOT,
    TEXTS,
    VALID_BODY,
    fresh_name,
    short_id,
    utf8,
)

TENANT, KEY = "X-Tenant-ID", "Idempotency-Key"


def post_members(
    server: Server, headers: list[tuple[str, str]], members: dict[str, Any]
) -> Response:
    headers = [("Content-Type", "application/json"), *headers]
    body = json.dumps(members).encode()
    return call_with_header_lines(server, "POST", "/bookings", headers, body)


def quoted(key: str) -> str:
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


# --- Instants and texts


@pytest.mark.parametrize(("sent", "stored", "detail"), INSTANTS, ids=short_id)
def test_instant_is_stored_canonically_or_rejected(
    shared_server: Server, sent: str, stored: str | None, detail: str
) -> None:
    name = fresh_name()
    response = shared_server.book(name, sent, name)
    if stored is None:
        assert_problem(response, 400, "invalid-fields", "start_time_utc")
        assert detail in response.json["errors"][0]["detail"]
        assert_nothing_booked(shared_server, name)
        return
    assert response.status == 201
    assert response.json["start_time_utc"] == stored
    assert shared_server.book(name, stored, name).json == response.json
    conflict = shared_server.book(name, sent, f"{name}-other")
    assert_problem(conflict, 409, "slot-taken", "start_time_utc")
    assert rows_with(shared_server, name) == [(name, stored, name)]


@pytest.mark.parametrize("text", TEXTS, ids=short_id)
def test_text_is_returned_as_sent(shared_server: Server, text: str) -> None:
    name = fresh_name()
    by_tenant = shared_server.book(text, SLOT, name)
    by_key = shared_server.book(name, SLOT, text)
    assert (by_tenant.status, by_key.status) == (201, 201)
    assert [by_tenant.json[member] for member in MEMBERS] == [text, SLOT, name]
    assert [by_key.json[member] for member in MEMBERS] == [name, SLOT, text]
    assert rows_with(shared_server, name) == [(text, SLOT, name), (name, SLOT, text)]

    start = {"start_time_utc": SLOT}
    again = post_members(shared_server, [(TENANT, text), (KEY, name)], start)
    assert (again.status, again.body) == (200, by_tenant.body)
    again = post_members(shared_server, [(TENANT, name), (KEY, quoted(text))], start)
    assert (again.status, again.body) == (200, by_key.body)
    for target, headers in (
        ("/bookings", [(TENANT, text)]),
        (f"/bookings?tenant_id={quote(text, safe='')}", []),
    ):
        listed = call_with_header_lines(shared_server, "GET", target, headers)
        assert listed.json == [by_tenant.json]
    assert len(rows_with(shared_server, name)) == 2


@pytest.mark.parametrize(("text", "detail"), REJECTED_TEXTS, ids=short_id)
def test_invalid_text_is_rejected_in_every_place(
    shared_server: Server, text: str, detail: str
) -> None:
    before, name = shared_server.rows(), fresh_name()
    in_body = shared_server.book(text, SLOT, text)
    assert_problem(in_body, 400, "invalid-fields", "tenant_id", "idempotency_key")
    assert all(detail in error["detail"] for error in in_body.json["errors"])

    in_query = shared_server.call("GET", f"/bookings?tenant_id={quote(utf8(text), safe='')}")
    is_unicode = not re.search("[\ud800-\udfff]", text)
    assert_problem(in_query, 400, "invalid-fields", "tenant_id" if is_unicode else "query")

    # CR or LF would end the header line, and HTTP strips spaces and tabs around a value.
    if not re.search("[\r\n]", text):
        tenant, names = (name, MEMBERS[2:]) if text != text.strip(" \t") else (text, MEMBERS[::2])
        headers = [(TENANT, tenant), (KEY, quoted(text))]
        in_headers = post_members(shared_server, headers, {"start_time_utc": SLOT})
        if re.search("[\x00-\x08\x0a-\x1f\x7f]", text):
            assert_problem(in_headers, 400, "malformed-request")
        else:
            assert_problem(in_headers, 400, "invalid-fields", *names)
            detail = detail if is_unicode else "is not in UTF-8"
            assert all(detail in error["detail"] for error in in_headers.json["errors"])
    assert shared_server.rows() == before


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("true", "not a boolean"),
        ("false", "not a boolean"),
        ("7", "not a number"),
        ("-0", "not a number"),
        ("1.5", "not a number"),
        ("1767261600", "not a number"),
        ("1e999", "not a number"),
        # `int` rejects so many digits.
        ("9" * 5000, "not a number"),
        ("[]", "not an array"),
        ('["a"]', "not an array"),
        ("{}", "not an object"),
    ],
    ids=short_id,
)
def test_value_that_is_not_a_string_is_rejected(
    shared_server: Server, value: str, detail: str
) -> None:
    before = shared_server.rows()
    body = "{" + ", ".join(f'"{member}": {value}' for member in MEMBERS) + "}"
    response = shared_server.call("POST", "/bookings", body.encode())
    assert_problem(response, 400, "invalid-fields", *MEMBERS)
    assert all(error["detail"].endswith(detail) for error in response.json["errors"])
    assert shared_server.rows() == before


def test_null_that_comes_nowhere_else_is_missing(shared_server: Server) -> None:
    before = shared_server.rows()
    for sent in (dict.fromkeys(MEMBERS), {}):
        response = post_members(shared_server, [], sent)
        assert_problem(response, 400, "invalid-fields", *MEMBERS)
        assert all(" is missing;" in f" {error['detail']}" for error in response.json["errors"])
    response = post_members(shared_server, [(TENANT, "a"), (KEY, "a")], {"start_time_utc": None})
    assert_problem(response, 400, "invalid-fields", "start_time_utc")
    assert shared_server.rows() == before


# --- The places of a value

# The headers, the tenant and key in the body (... omits them), and the fields that errors name.
# @ is replaced with a name that is the tenant and the key of the test.
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
    ([(TENANT, "@")], None, "@", ()),
    ([(KEY, "")], "@", ..., ("idempotency_key",)),
    ([(KEY, "")], "@", "@", ("idempotency_key",)),
    ([(KEY, '""')], "@", ..., ("idempotency_key",)),
    ([(KEY, '"@')], "@", ..., ("idempotency_key",)),
    ([(KEY, '"@", "@"')], "@", ..., ("idempotency_key",)),
    ([(KEY, r'"@\x"')], "@", ..., ("idempotency_key",)),
    ([(KEY, "@")], "@", "", ("idempotency_key",)),
    ([(KEY, "@")], "@", None, ()),
    ([(TENANT, "@"), (KEY, '"@"')], None, None, ()),
    ([(TENANT, "")], None, "@", ("tenant_id",)),
    ([(TENANT, "null")], "@", "@", ("tenant_id",)),
]


@pytest.mark.parametrize(("headers", "tenant", "key", "wrong"), PLACES, ids=short_id)
def test_booking_is_accepted_if_its_places_agree(
    shared_server: Server,
    headers: list[tuple[str, str]],
    tenant: Any,
    key: Any,
    wrong: tuple[str, ...],
) -> None:
    name = fresh_name()
    headers = [(header, value.replace("@", name)) for header, value in headers]
    members = {"tenant_id": tenant, "start_time_utc": SLOT, "idempotency_key": key}
    sent = {
        member: value.replace("@", name) if isinstance(value, str) else value
        for member, value in members.items()
        if value is not ...
    }
    response = post_members(shared_server, headers, sent)
    if wrong:
        assert_problem(response, 400, "invalid-fields", *wrong)
        assert_nothing_booked(shared_server, name)
        return
    assert response.status == 201
    assert rows_with(shared_server, name) == [(name, SLOT, name)]
    assert shared_server.book(name, SLOT, name).json == response.json


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("@ with a space", "@ with a space"),
        ('"@ with a space"', "@ with a space"),
        (r'"@ \"quoted\" and \\"', '@ "quoted" and \\'),
        (r'"\"@\""', '"@"'),
        (r"@\back", r"@\back"),
        ('@"', '@"'),
        ("'@'", "'@'"),
        ("@é😀", "@é😀"),
        ('"@é😀"', "@é😀"),
    ],
)
def test_key_in_header_equals_key_in_body(shared_server: Server, header: str, key: str) -> None:
    name = fresh_name()
    header, key = header.replace("@", name), key.replace("@", name)
    members = {"tenant_id": name, "start_time_utc": SLOT}
    first = post_members(shared_server, [(KEY, header)], members)
    assert first.status == 201
    assert first.json["idempotency_key"] == key
    assert rows_with(shared_server, name) == [(name, SLOT, key)]
    again = shared_server.book(name, SLOT, key)
    assert (again.status, again.body) == (200, first.body)


@pytest.mark.parametrize("raw", [b"caf\xe9", b"\xff", b"\xed\xa0\x80"], ids=short_id)
@pytest.mark.parametrize("header", [TENANT, KEY])
def test_header_that_is_not_utf8_is_rejected(
    shared_server: Server, header: str, raw: bytes
) -> None:
    name = fresh_name()
    fields = {TENANT: "tenant_id", KEY: "idempotency_key"}
    members = {"tenant_id": name, "start_time_utc": SLOT, "idempotency_key": name}
    del members[fields[header]]
    body = json.dumps(members).encode()
    response = shared_server.call("POST", "/bookings", body, **{header: raw.decode("latin-1")})
    assert_problem(response, 400, "invalid-fields", fields[header])
    assert "is not in UTF-8" in response.json["detail"]
    assert_nothing_booked(shared_server, name)


# The tenant headers and the query of a GET or DELETE, and the fields that errors name. @ is the
# tenant.
GETS: list[tuple[list[str], str, tuple[str, ...]]] = [
    (["@"], "", ()),
    ([], "?tenant_id=@", ()),
    (["@"], "?tenant_id=@", ()),
    (["@", "@"], "", ()),
    (["@"], "?", ()),
    (["@"], "?&", ()),
    ([], "?tenant_id=@&", ()),
    ([], "?&tenant_id=@", ()),
    ([], "?&&tenant_id=@&&", ()),
    ([], "?&", ("tenant_id",)),
    ([], "?=", ("query",)),
    ([], "?tenant_id=@&tenant_id", ("query",)),
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


@pytest.mark.parametrize(("headers", "query", "wrong"), GETS, ids=short_id)
def test_tenant_of_get_and_delete_is_accepted_if_its_places_agree(
    shared_server: Server, headers: list[str], query: str, wrong: tuple[str, ...]
) -> None:
    name = fresh_name()
    other = fresh_name()
    booking = shared_server.book(name, SLOT, name).json
    assert shared_server.book(other, SLOT, other).status == 201
    assert rows_with(shared_server, name) == [(name, SLOT, name)]
    sent = [(TENANT, value.replace("@", name).replace("other", other)) for value in headers]
    query = query.replace("@", name).replace("other", other)
    for path, expected in (("/bookings", [booking]), (f"/bookings/{booking['id']}", booking)):
        response = call_with_header_lines(shared_server, "GET", path + query, sent)
        if wrong:
            assert_problem(response, 400, "invalid-fields", *wrong)
        else:
            assert (response.status, response.json) == (200, expected)
    cancelled = call_with_header_lines(shared_server, "DELETE", path + query, sent)
    if wrong:
        assert_problem(cancelled, 400, "invalid-fields", *wrong)
        assert rows_with(shared_server, name) == [(name, SLOT, name)]
    else:
        assert (cancelled.status, cancelled.body) == (204, b"")
        assert rows_with(shared_server, name) == []
    assert rows_with(shared_server, other) == [(other, SLOT, other)]


def test_post_rejects_tenant_in_query(shared_server: Server) -> None:
    name = fresh_name()
    members = {"tenant_id": name, "start_time_utc": SLOT, "idempotency_key": name}
    response = shared_server.call("POST", "/bookings?tenant_id=other", members)
    assert_problem(response, 400, "invalid-fields", "tenant_id")
    assert_nothing_booked(shared_server, name)


# --- Several errors


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
def test_rejection_names_every_wrong_field(
    shared_server: Server,
    headers: list[tuple[str, str]],
    members: dict[str, Any],
    wrong: tuple[str, ...],
) -> None:
    before = shared_server.rows()
    response = post_members(shared_server, headers, members)
    assert_problem(response, 400, "invalid-fields", *wrong)
    assert all(field in response.json["detail"] for field in wrong)
    assert shared_server.rows() == before


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in VALID_BODY.items() if name not in names}


# Body, headers, and the fields that errors name.
REJECTED_FIELDS: dict[str, tuple[Any, dict[str, str], tuple[str, ...]]] = {
    "nothing": ({}, {}, ("tenant_id", "start_time_utc", "idempotency_key")),
    "no tenant": (without("tenant_id"), {}, ("tenant_id",)),
    "no start": (without("start_time_utc"), {}, ("start_time_utc",)),
    "no key": (without("idempotency_key"), {}, ("idempotency_key",)),
    "all of the wrong type": (
        {"tenant_id": 5, "start_time_utc": None, "idempotency_key": ["k"]},
        {},
        ("tenant_id", "start_time_utc", "idempotency_key"),
    ),
    "boolean": ({**VALID_BODY, "tenant_id": True}, {}, ("tenant_id",)),
    "object": ({**VALID_BODY, "idempotency_key": {"k": "k"}}, {}, ("idempotency_key",)),
    "empty": (
        {**VALID_BODY, "tenant_id": "", "idempotency_key": ""},
        {},
        ("tenant_id", "idempotency_key"),
    ),
    "too long": ({**VALID_BODY, "tenant_id": "é" * 256}, {}, ("tenant_id",)),
    "control character": ({**VALID_BODY, "idempotency_key": "a\u0085b"}, {}, ("idempotency_key",)),
    "NUL": ({**VALID_BODY, "tenant_id": "a\x00b"}, {}, ("tenant_id",)),
    "white space at an end": ({**VALID_BODY, "tenant_id": "rejected\u00a0"}, {}, ("tenant_id",)),
    "lone surrogate": ({**VALID_BODY, "idempotency_key": "\ud800"}, {}, ("idempotency_key",)),
    "no offset": (
        {**VALID_BODY, "start_time_utc": VALID_BODY["start_time_utc"][:-1]},
        {},
        ("start_time_utc",),
    ),
    "30 February": (
        {**VALID_BODY, "start_time_utc": "2026-02-30T10:00:00Z"},
        {},
        ("start_time_utc",),
    ),
    "empty tenant header": (without("tenant_id"), {"X_Tenant_ID": ""}, ("tenant_id",)),
    "empty tenant header, valid member": (VALID_BODY, {"X_Tenant_ID": ""}, ("tenant_id",)),
    "empty quoted key": (
        without("idempotency_key"),
        {"Idempotency_Key": '""'},
        ("idempotency_key",),
    ),
    "header that is not UTF-8": (without("tenant_id"), {"X_Tenant_ID": "\xe9"}, ("tenant_id",)),
    "two tenants": (VALID_BODY, {"X_Tenant_ID": "other"}, ("tenant_id",)),
    "two keys": (VALID_BODY, {"Idempotency_Key": "other"}, ("idempotency_key",)),
    "two of each": (
        VALID_BODY,
        {"X_Tenant_ID": "x", "Idempotency_Key": '"y"'},
        ("tenant_id", "idempotency_key"),
    ),
    "wrong in both places": (
        {**VALID_BODY, "tenant_id": 5},
        {"X_Tenant_ID": ""},
        ("tenant_id", "tenant_id"),
    ),
    "one error in each": (
        {**VALID_BODY, "start_time_utc": "noon"},
        {"X_Tenant_ID": "other", "Idempotency_Key": ""},
        ("tenant_id", "start_time_utc", "idempotency_key"),
    ),
}


NOT_JSON_TYPES = [
    *("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"),
    "application/jsonp",
]


@pytest.mark.both_stores
@pytest.mark.parametrize("case", REJECTED_FIELDS)
def test_invalid_fields_are_rejected(shared_server: Server, case: str) -> None:
    body, headers, names = REJECTED_FIELDS[case]
    before = shared_server.rows()
    response = shared_server.call("POST", "/bookings", body, **headers)
    assert_problem(response, 400, "invalid-fields", *names)
    assert shared_server.rows() == before


@pytest.mark.both_stores
def test_rejection_names_errors_of_query_and_body(shared_server: Server) -> None:
    before = shared_server.rows()
    response = shared_server.call("POST", "/bookings?size=1", without("tenant_id"))
    assert_problem(response, 400, "invalid-fields", "size", "tenant_id")
    assert shared_server.rows() == before


@pytest.mark.both_stores
def test_rejected_fields_and_content_types_do_not_use_key(server: Server) -> None:
    for body, headers, _ in REJECTED_FIELDS.values():
        assert server.call("POST", "/bookings", body, **headers).status == 400
    for media_type in NOT_JSON_TYPES:
        assert server.call("POST", "/bookings", VALID_BODY, Content_Type=media_type).status == 415
    assert server.rows() == []
    assert server.call("POST", "/bookings", VALID_BODY).status == 201
    assert server.rows() == [tuple(VALID_BODY.values())]


# --- The query of a GET or DELETE


@pytest.mark.both_stores
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/bookings"), ("GET", "/bookings/1"), ("DELETE", "/bookings/1")]
)
@pytest.mark.parametrize(
    ("query", "headers", "names"),
    [
        ("", {}, {"tenant_id"}),
        ("?", {}, {"tenant_id"}),
        ("?tenant_id=", {}, {"tenant_id"}),
        ("?tenant_id=%00", {}, {"tenant_id"}),
        ("?tenant_id=a&tenant_id=a", {}, {"tenant_id"}),
        ("?tenant_id=a", {"X_Tenant_ID": "b"}, {"tenant_id"}),
        ("?tenant_id=a", {"X_Tenant_ID": ""}, {"tenant_id"}),
        ("?tenant_id=%ff", {}, {"query"}),
        ("?tenant_id=%4", {}, {"query"}),
        ("?tenant_id=a&size=1", {}, {"size"}),
        ("?tenant=a", {}, {"tenant", "tenant_id"}),
    ],
)
def test_invalid_query_is_rejected(
    shared_server: Server,
    method: str,
    path: str,
    query: str,
    headers: dict[str, str],
    names: set[str],
) -> None:
    response = shared_server.call(method, path + query, **headers)
    named = [error["field"] for error in response.json["errors"]]
    assert_problem(response, 400, "invalid-fields", *named)
    assert set(named) == names


@pytest.mark.parametrize("part", ["=", "=1", "a", "b" * 5000], ids=short_id)
def test_part_of_query_without_name_or_value_is_quoted_in_short(
    shared_server: Server, part: str
) -> None:
    response = shared_server.call("GET", f"/bookings?tenant_id=a&{part}")
    assert_problem(response, 400, "invalid-fields", "query")
    (error,) = response.json["errors"]
    assert f"'{part[:40]}" in error["detail"] and len(error["detail"]) < 200


def test_rejection_of_many_parameters_says_how_many_to_send(shared_server: Server) -> None:
    query = "&".join(["tenant_id=a"] * 17)
    response = shared_server.call("GET", f"/bookings?{query}")
    assert_problem(response, 400, "invalid-fields", "query")
    (error,) = response.json["errors"]
    assert error["detail"] == "has 17 parameters; send at most 16"


# --- Content-Type


@pytest.mark.both_stores
@pytest.mark.parametrize("media_type", NOT_JSON_TYPES)
def test_content_type_is_rejected_on_both_stores(shared_server: Server, media_type: str) -> None:
    before = shared_server.rows()
    response = shared_server.call("POST", "/bookings", VALID_BODY, Content_Type=media_type)
    assert_problem(response, 415, "not-json")
    assert response.headers["Accept"] == "application/json"
    assert shared_server.rows() == before


def test_body_without_content_type_is_rejected(shared_server: Server) -> None:
    before = shared_server.rows()
    body = json.dumps(VALID_BODY).encode()
    sent = closing_request(b"POST /bookings HTTP/1.1", b"Content-Length: %d" % len(body), body=body)
    response = only_response(shared_server.raw(sent))
    assert_problem(response, 415, "not-json")
    assert response.headers["Accept"] == "application/json"
    assert shared_server.rows() == before


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
def test_json_content_type_is_accepted(shared_server: Server, media_type: str) -> None:
    name = fresh_name()
    headers = [("Content-Type", media_type)]
    body = booking_of(name)
    response = call_with_header_lines(shared_server, "POST", "/bookings", headers, body)
    assert response.status == 201
    assert rows_with(shared_server, name) == [(name, SLOT, name)]


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
    ids=short_id,
)
def test_other_content_type_is_rejected(shared_server: Server, media_types: list[str]) -> None:
    name = fresh_name()
    for body in (booking_of(name), b"", b"tenant_id=acme"):
        headers = [("Content-Type", media_type) for media_type in media_types]
        response = call_with_header_lines(shared_server, "POST", "/bookings", headers, body)
        assert_problem(response, 415, "not-json")
        assert response.headers["Accept"] == "application/json"
    assert_nothing_booked(shared_server, name)


@pytest.mark.parametrize("coding", ["identity", "Identity, identity", "", " , "])
def test_body_without_content_coding_is_accepted(shared_server: Server, coding: str) -> None:
    name = fresh_name()
    assert shared_server.book(name, SLOT, name, Content_Encoding=coding).status == 201
    assert rows_with(shared_server, name) == [(name, SLOT, name)]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "br", "identity, gzip", "gzip;q=0", "utf-8"])
def test_content_coding_is_rejected(shared_server: Server, coding: str) -> None:
    name = fresh_name()
    body = gzip.compress(booking_of(name))
    response = shared_server.call("POST", "/bookings", body, Content_Encoding=coding)
    assert_problem(response, 415, "content-encoding")
    assert response.headers["Accept-Encoding"] == "identity"
    assert_nothing_booked(shared_server, name)
