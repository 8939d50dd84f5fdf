"""openapi.json: well-formed, and held against the program in both directions.

Every response of the program is documented, and every documented status is provoked. (A
property-based tester sends one key with many tenants: 422 is an expected status for valid data.)
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from bookings import __version__, api, fields, values
from bookings.problems import PROBLEM_TYPES
from tests.helpers.clients import (
    FRAMING_ERRORS,
    badly_framed,
    closing_post,
    closing_request,
    first_response,
)
from tests.helpers.openapi import (
    ANNOTATIONS,
    DOCUMENT,
    KEYWORDS,
    OPERATIONS,
    REJECTED_TYPES,
    REQUESTS,
    assert_documented,
    each_request,
    examples_of,
    fits,
    operation_of,
    resolved,
    schema_errors,
)
from tests.helpers.servers import ROOT, SOON, Response, Server, patched
from tests.helpers.storage import FAULT
from tests.helpers.values import INSTANTS, REJECTED_TEXTS, SLOT, TEXTS, fresh_name, slot_at

# Patch for `patched()`: short deadlines, and a database that is full while the file `full` exists.
IMPATIENT = """
import os
from bookings.server import connection, server
from bookings.stores import connections
connection.HEAD_SECONDS, server.ARRIVAL_SECONDS, connections.BUSY_SECONDS = 1.0, 0.1, 0.2
connect = connections.connect
def limited(*arguments):
    db = connect(*arguments)
    if os.path.exists("full"):
        db.execute("PRAGMA max_page_count = 1")
    return db
connections.connect = limited
"""


# --- The document by itself


def _subschemas(schema: Any) -> Iterator[Any]:
    if isinstance(schema, dict):
        yield schema
        inner = [
            *schema.get("properties", {}).values(),
            schema.get("items"),
            schema.get("additionalProperties"),
        ]
        for each in inner:
            yield from _subschemas(each)


def _nodes(node: Any = DOCUMENT) -> Iterator[dict[str, Any]]:
    """Yield every object of the document except examples, which can be any JSON."""
    if isinstance(node, dict):
        yield node
        for name, value in node.items():
            if name not in ("example", "examples"):
                yield from _nodes(value)
    elif isinstance(node, list):
        for value in node:
            yield from _nodes(value)


def _schemas() -> list[Any]:
    named = [
        *DOCUMENT["components"]["schemas"].values(),
        *(node["schema"] for node in _nodes() if "schema" in node),
    ]
    return [each for schema in named for each in _subschemas(schema)]


def test_document_is_well_formed_openapi() -> None:
    assert re.fullmatch(r"3\.1\.[0-9]+", DOCUMENT["openapi"])
    assert DOCUMENT["info"]["title"] and DOCUMENT["info"]["version"]
    names = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for _, path, operation in OPERATIONS:
        parameters = [resolved(node) for node in operation.get("parameters", [])]
        assert {p["name"] for p in parameters if p["in"] == "path"} == set(
            re.findall(r"\{(\w+)\}", path)
        )
        assert all(p["required"] for p in parameters if p["in"] == "path")
        assert len({(p["in"], p["name"]) for p in parameters}) == len(parameters)
        assert operation["summary"] and all(
            resolved(r)["description"] for r in operation["responses"].values()
        )
        for response in operation["responses"].values():
            for link in resolved(response).get("links", {}).values():
                assert link["operationId"] in names


def test_every_reference_resolves_and_every_component_is_used() -> None:
    references = [node for node in _nodes() if "$ref" in node]
    assert len(references) > 50 and all(resolved(node) for node in references)
    used = {node["$ref"] for node in references}
    sections = DOCUMENT["components"].items()
    assert used == {
        f"#/components/{section}/{name}" for section, all_of in sections for name in all_of
    }


def test_every_schema_keyword_is_validated() -> None:
    used = {keyword for schema in _schemas() for keyword in schema}
    assert used - {"$ref"} <= KEYWORDS.keys() | ANNOTATIONS


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, True),
        ({"type": "integer"}, "1"),
        ({"type": "string"}, None),
        ({"type": "array", "items": {"type": "string"}}, ["a", 1]),
        ({"enum": ["a"]}, "b"),
        ({"const": "true"}, True),
        ({"type": "boolean"}, 1),
        ({"minimum": 1}, 0),
        ({"maximum": 1}, 2),
        ({"minLength": 1}, ""),
        ({"maxLength": 1}, "ab"),
        ({"maxItems": 1}, [1, 2]),
        ({"pattern": "^a$"}, "a\n"),
        ({"required": ["a"]}, {"b": 1}),
        ({"properties": {"a": {"type": "string"}}}, {"a": 1}),
        ({"properties": {"a": {}}, "additionalProperties": False}, {"b": 1}),
        ({"additionalProperties": {"type": "string"}}, {"b": 1}),
        ({"$ref": "#/components/schemas/Booking"}, {"id": 1}),
    ],
    ids=str,
)
def test_validator_finds_violation(schema: Any, value: Any) -> None:
    assert schema_errors(schema, value)


def test_examples_match_their_schemas() -> None:
    count = 0
    for schema in _schemas():
        defaults = [schema["default"]] if "default" in schema else []
        for example in [*schema.get("examples", []), *defaults]:
            assert not schema_errors(schema, example)
            count += 1
    for node in _nodes():
        if "schema" in node:
            for example in examples_of(node):
                assert not schema_errors(node["schema"], example)
                count += 1
    assert count > 30


# --- Schemas and problem types against the rules of the program

# JSON Schema does not say how a pattern treats lone surrogates.
PLAIN_TEXTS = [
    text
    for text in [*TEXTS, *(text for text, _ in REJECTED_TEXTS)]
    if not re.search("[\ud800-\udfff]", text)
]


def _accepts(validate: fields.Validator, value: str) -> bool:
    try:
        validate(value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", ["Tenant", "IdempotencyKey"])
def test_schema_of_text_matches_program(name: str) -> None:
    schema = {"$ref": f"#/components/schemas/{name}"}
    codes = [*range(0x3100), 0xFEFF, 0xFFFD, 0xFFFF, 0x10000, 0x10FFFF]
    around = [
        f"{before}{chr(code)}{after}"
        for code in codes
        for before in ("", "a")
        for after in ("", "b")
    ]
    for text in [*PLAIN_TEXTS, *around]:
        assert fits(schema, text) == _accepts(values.text, text), ascii(text)


def test_schema_of_instant_matches_program() -> None:
    instant, canonical = (
        {"$ref": f"#/components/schemas/{name}"} for name in ("Instant", "CanonicalInstant")
    )
    for sent, stored, _ in INSTANTS:
        assert fits(instant, sent) == (stored is not None), ascii(sent)
        assert fits(canonical, sent) == (sent == stored), ascii(sent)
    years = [
        *(0, 1, 4, 9, 10, 99, 100, 104, 400, 999, 1000, 1900, 1904, 1969, 1970, 1972, 1976, 1980),
        *(1992, 1996, 1999, 2000, 2024, 2026, 2100, 2400, 9996, 9999),
    ]
    for year, month, day in itertools.product(years, range(14), range(33)):
        sent = f"{year:04}-{month:02}-{day:02}T10:00:00Z"
        for schema in (instant, canonical):
            assert fits(schema, sent) == _accepts(values.instant, sent), sent
    for year in range(10_000):
        sent = f"{year:04}-02-29T10:00:00Z"
        for schema in (instant, canonical):
            assert fits(schema, sent) == _accepts(values.instant, sent), sent
    for hour, minute, second in [
        *itertools.product(range(26), range(62), [59]),
        *((9, 9, s) for s in range(62)),
    ]:
        sent = f"2026-01-01T{hour:02}:{minute:02}:{second:02}Z"
        assert fits(instant, sent) == _accepts(values.instant, sent), sent


def test_limits_match_program() -> None:
    limit = DOCUMENT["components"]["parameters"]["limit"]["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (
        1,
        fields.MAX_PAGE,
        fields.MAX_PAGE,
    )
    content = DOCUMENT["paths"]["/bookings"]["get"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"]["maxItems"] == fields.MAX_PAGE
    for name in ("Tenant", "IdempotencyKey"):
        schema = DOCUMENT["components"]["schemas"][name]
        assert (schema["minLength"], schema["maxLength"]) == (1, values.MAX_CHARACTERS)


def _example_problems() -> list[dict[str, Any]]:
    """Return the examples of problems. Their details differ."""
    problems: list[dict[str, Any]] = [
        example
        for response in DOCUMENT["components"]["responses"].values()
        for example in examples_of(response["content"]["application/problem+json"])
    ]
    assert len({problem["detail"] for problem in problems}) == len(problems)
    return problems


def _type_of(problem: dict[str, Any]) -> str:
    name: str = problem["type"].rpartition("/")[2]
    return name


def test_problem_types_match_program() -> None:
    """Each type is in the enumerations, and is an example or a row of the table in Rejected."""
    components = DOCUMENT["components"]
    assert components["schemas"]["Problem"]["properties"]["type"]["enum"] == [
        f"/problems/{name}" for name in PROBLEM_TYPES
    ]
    assert components["parameters"]["name"]["schema"]["enum"] == list(PROBLEM_TYPES)
    examples = _example_problems()
    for problem in examples:
        expected = PROBLEM_TYPES[_type_of(problem)]
        assert (problem["status"], problem["title"]) == (expected.status, expected.title)
    for name, row in REJECTED_TYPES.items():
        assert row == (PROBLEM_TYPES[name].status, PROBLEM_TYPES[name].title)
    assert {*map(_type_of, examples)} | REJECTED_TYPES.keys() == PROBLEM_TYPES.keys()


def test_examples_of_problems_have_status_of_their_response() -> None:
    for _, _, operation in OPERATIONS:
        for status, node in operation["responses"].items():
            media = resolved(node).get("content", {}).get("application/problem+json")
            examples = examples_of(media) if media else []
            if status == "default":
                assert {str(each["status"]) for each in examples}.isdisjoint(operation["responses"])
            else:
                assert {str(example["status"]) for example in examples} <= {status}
                assert (int(status) >= 400) == bool(examples)


# --- Operations against a running server


CANCELLED = ("acme", "2026-01-03T10:00:00Z", "k2")


def _target(path: str, method: str = "GET") -> str:
    """Return a target that matches the template of a path."""
    booking_id = "2" if method == "DELETE" else "1"
    return path.replace("{id}", booking_id).replace("{name}", "slot-taken")


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the booking and the cancellation that `_target` and `_valid` ask for."""
    with contextlib.closing(Server(tmp_path_factory.mktemp("documented"))) as started:
        assert started.book("acme", SLOT, "k1").json["id"] == 1
        assert started.book(*CANCELLED).json["id"] == 2
        assert started.cancel(2).status == 204
        yield started


def _valid(method: str, path: str) -> bytes:
    """Return a valid request for the operation."""
    if method == "POST":
        return closing_post("acme", SLOT, "k1")
    line = f"{method} {_target(path, method)} HTTP/1.1".encode()
    return closing_request(line, b"X-Tenant-ID: acme")


@pytest.fixture(scope="module")
def unreachable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose database has no table."""
    with contextlib.closing(Server(tmp_path_factory.mktemp("unreachable"))) as started:
        started.execute("DROP TABLE bookings")
        yield started


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose database has no space for another page."""
    base = tmp_path_factory.mktemp("full")
    with contextlib.closing(Server(base, program=patched(base, IMPATIENT))) as started:
        # More bookings of LONG than fit on one page.
        started.insert([(LONG, slot_at(number), f"{number:>0250}") for number in range(60)])
        (base / "full").touch()
        yield started


LONG = "x" * 255


def _book_on_sunday(server: Server) -> Response:
    """Return the rejection by a rule that exists meanwhile."""
    server.execute(
        "CREATE TRIGGER closed BEFORE INSERT ON bookings "
        "BEGIN SELECT RAISE(ABORT, 'closed on Sundays'); END"
    )
    response = server.book("acme", "2026-01-04T10:00:00Z", "order-3")
    server.execute("DROP TRIGGER closed")
    return response


def _book_until_full(server: Server) -> Response:
    """Book until the last page of the database is full; return the rejection."""
    for number in range(20):
        response = server.book(LONG, f"2026-01-02T00:00:{number:02}Z", f"{'x' * 250}{number}")
        if response.status != 201:
            break
    return response


def _cancel_until_full(server: Server) -> Response:
    """Cancel bookings on different pages, which frees none; return the rejection."""
    for number in range(1, 60, 6):
        response = server.cancel(number, LONG)
        if response.status != 204:
            break
    return response


def test_every_route_is_documented_and_every_path_is_routed() -> None:
    matched = []
    for path, operations in DOCUMENT["paths"].items():
        (handlers,) = [
            handlers for pattern, handlers in api._ROUTES if pattern.fullmatch(_target(path))
        ]
        assert sorted(operations) == sorted(method.lower() for method in handlers)
        matched.append(handlers)
        for method, operation in operations.items():
            known = handlers[method.upper()].parameters
            parameters = [resolved(node) for node in operation.get("parameters", [])]
            assert [p["name"] for p in parameters if p["in"] == "query"] == list(known)
    assert len(matched) == len(api._ROUTES) == len({id(handlers) for handlers in matched})


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_every_method_is_served_or_rejected_as_documented(documented: Server, path: str) -> None:
    before = documented.rows()
    operations = {method for method, documented_path in REQUESTS if documented_path == path}
    for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"):
        target = _target(path, method).encode()
        sent = _valid(method, path).replace(b"/bookings ", target + b" ", 1)
        response = first_response(documented.raw(sent))
        assert (response.status == 405) == (method not in operations)
        if response.status == 405 or method == "OPTIONS":
            assert set(response.headers["Allow"].split(", ")) == operations
        assert_documented(response, method, path)
    assert documented.rows() == before


@each_request
def test_every_status_is_documented_and_provoked(
    documented: Server, unreachable: Server, full: Server, method: str, path: str
) -> None:
    before = documented.rows()
    target = _target(path, method)

    def framing_error(status: int) -> Response:
        return first_response(documented.raw(badly_framed(status, method, target)))

    framing_errors = [framing_error(status) for status in FRAMING_ERRORS]
    assert [response.status for response in framing_errors] == list(FRAMING_ERRORS)
    unavailable = first_response(unreachable.raw(_valid(method, path)))
    # An operation that does not use the database does not notice.
    uses_database = method != "OPTIONS" and path in ("/bookings", "/bookings/{id}", "/ready")
    assert (unavailable.status == 503) == uses_database
    given = [*framing_errors, unavailable, first_response(documented.raw(_valid(method, path)))]
    if "{" in path:
        nowhere = f"{method} {path[: path.index('{')]}0 HTTP/1.1".encode()
        given.append(first_response(documented.raw(closing_request(nowhere))))
    if method == "POST":
        new = fresh_name()
        given += [
            documented.book(new, SLOT, new),
            documented.book(new, SLOT, f"{new}-2"),
            documented.book(f"{new}-2", SLOT, new),
            documented.book(*CANCELLED),
            documented.call("POST", "/bookings", b"{}", Content_Type="text/plain"),
            documented.call("POST", "/bookings", b"{}", Content_Encoding="gzip"),
            documented.call("POST", "/bookings", b"{}"),
            documented.call("POST", "/bookings", b"{"),
            first_response(documented.raw(closing_request(b"POST /bookings HTTP/1.1"))),
            _book_until_full(full),
        ]
        before = [*before, (new, SLOT, new)]
    if path == "/bookings/{id}" and method in ("GET", "HEAD"):
        given.append(documented.call(method, "/bookings/2", X_Tenant_ID="acme"))
    if method == "DELETE":
        given.append(_cancel_until_full(full))
    for response in given:
        assert_documented(response, method, path)
    specific = operation_of(method, path)["responses"].keys() - {"default"}
    assert specific <= {str(response.status) for response in given}
    assert documented.rows() == before


def test_shutdown_is_answered_as_documented(tmp_path: Path) -> None:
    """Each operation, when the last byte of its request does not arrive."""
    program = patched(tmp_path, "from bookings.server import server; server.ARRIVAL_SECONDS = 0.5")
    with (
        contextlib.closing(Server(tmp_path, program=program)) as server,
        contextlib.ExitStack() as stack,
    ):
        late = []
        for method, path in REQUESTS:
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=SOON)
            late.append(stack.enter_context(connection))
            connection.sendall(_valid(method, path)[:-1])
        assert server.stop() == 0
        for (method, path), connection in zip(REQUESTS, late):
            response = first_response(connection.recv(65536))
            assert response.status == 503 and response.headers["Retry-After"].isdigit()
            assert_documented(response, method, path)
        assert server.rows() == []


def test_fault_is_answered_as_documented(server: Server) -> None:
    server.execute(*FAULT)
    response = server.book()
    assert response.status == 500
    assert_documented(response, "POST", "/bookings")
    schema = DOCUMENT["components"]["schemas"]["Problem"]
    assert response.json.keys() - set(schema["required"]) == {"request_id"}
    assert server.rows() == []


@pytest.mark.parametrize("path", [path for path in DOCUMENT["paths"] if path != "/openapi.json"])
def test_examples_equal_responses(server: Server, path: str) -> None:
    """The example of a request gives the example of its response, and so do later reads."""
    post = DOCUMENT["paths"]["/bookings"]["post"]
    (asked,) = examples_of(post["requestBody"]["content"]["application/json"])
    made, repeated = (server.call("POST", "/bookings", asked) for _ in range(2))
    for status, response in (("201", made), ("200", repeated)):
        assert str(response.status) == status
        (example,) = examples_of(post["responses"][status]["content"]["application/json"])
        assert {**response.json, "created_at": example["created_at"]} == example

    headers = {"X_Tenant_ID": "acme"} if "/bookings" in path else {}
    got = server.call("GET", _target(path), **headers)
    assert got.status == 200
    assert_documented(got, "GET", path)
    (shown,) = examples_of(
        DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
    )
    text = json.dumps(got.json).replace(made.json["created_at"], example["created_at"])
    is_part = path == "/problems" and all(each in got.json for each in shown)
    assert shown == json.loads(text) or is_part
    assert server.rows() == [
        tuple(asked[name] for name in ("tenant_id", "start_time_utc", "idempotency_key"))
    ]


def test_examples_of_problems_equal_responses(tmp_path: Path) -> None:
    """Word for word, except for the request id of a fault. Every problem type is provoked."""
    program = patched(tmp_path, IMPATIENT)
    with contextlib.closing(Server(tmp_path, program=program)) as server:
        assert server.book("acme", SLOT, "order-1").status == 201
        assert server.cancel(server.book(*CANCELLED).json["id"]).status == 204

        def raw(line: bytes, *headers: bytes, body: bytes = b"") -> Response:
            return first_response(server.raw(closing_request(line, *headers, body=body)))

        def framing_error(status: int) -> Response:
            return first_response(server.raw(badly_framed(status, "GET", "/")))

        given = [
            *(framing_error(status) for status in FRAMING_ERRORS if status != 400),
            first_response(server.raw(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")),
            raw(b"POST /bookings HTTP/1.1"),
            raw(b"POST /bookings HTTP/1.1", b"Content-Length: 2", body=b"{}"),
            server.call("POST", "/bookings", b"{}", Content_Encoding="gzip"),
            first_response(server.raw(b"GET /")),
            server.book("acme", SLOT, "order-2"),
            server.book("acme", "2026-01-02T10:00:00Z", "order-1"),
            server.call("POST", "/bookings", b'{"tenant_id": "ac\xff"}'),
            server.call("POST", "/bookings", {"tenant_id": "acme", "idempotency_key": "order-3"}),
            server.call("DELETE", "/bookings"),
            server.call("GET", "/bookings/3", X_Tenant_ID="acme"),
            _book_on_sunday(server),
            server.call("GET", "/bookings/2", X_Tenant_ID="acme"),
            server.book(*CANCELLED),
            server.call("GET", "/nowhere"),
        ]
        with contextlib.closing(sqlite3.connect(server.database, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            given.append(server.book("acme", "2026-01-02T10:00:00Z", "order-3"))
        (tmp_path / "full").touch()
        given.append(_book_until_full(server))
        (tmp_path / "full").unlink()
        server.execute("ALTER TABLE bookings RENAME TO gone")
        given.append(server.call("GET", "/ready"))
        server.execute("ALTER TABLE gone RENAME TO bookings", *FAULT)
        given.append(server.book("acme", "2026-01-02T10:00:00Z", "order-3"))
        with socket.create_connection(("127.0.0.1", server.port), timeout=SOON) as late:
            late.sendall(b"GET /")
            assert server.stop() == 0
            given.append(first_response(late.recv(65536)))
        assert [row for row in server.rows() if row[0] == "acme"] == [("acme", SLOT, "order-1")]
    shown = _example_problems()
    (id_of_example,) = [problem["request_id"] for problem in shown if "request_id" in problem]
    found = []
    for response in given:
        text = response.body.decode().replace(response.headers["X-Request-ID"], id_of_example)
        found.append(json.loads(text))
    assert {*map(_type_of, found)} == PROBLEM_TYPES.keys()
    assert [problem for problem in shown if problem not in found] == []


def test_responses_with_every_text_and_instant_are_documented(server: Server) -> None:
    for number, text in enumerate(TEXTS):
        response = server.book(text, SLOT, f"key-{number}")
        assert_documented(response, "POST", "/bookings")
        assert_documented(server.book(text, SLOT, f"key-{number}"), "POST", "/bookings")
        assert_documented(
            server.call("GET", f"/bookings?tenant_id={quote(text, safe='')}"), "GET", "/bookings"
        )
        assert_documented(
            server.call("GET", f"/bookings/{response.json['id']}?tenant_id={quote(text, safe='')}"),
            "GET",
            "/bookings/{id}",
        )
    for number, (sent, _, _) in enumerate(INSTANTS):
        assert_documented(server.book("acme-2", sent, f"acme-{number}"), "POST", "/bookings")
    for method in ("GET", "HEAD"):
        page = server.call(method, "/bookings?limit=1", X_Tenant_ID="acme-2")
        assert page.headers["Link"]
        assert_documented(page, method, "/bookings")
    assert len(server.rows()) == len(TEXTS) + len({stored for _, stored, _ in INSTANTS if stored})


@each_request
def test_documented_alternative_is_accepted(documented: Server, method: str, path: str) -> None:
    """A header alone does what the parameter or member alone does; no operation takes another."""
    lines = {"tenant_id": b"X-Tenant-ID: acme", "idempotency_key": b"Idempotency-Key: k1"}
    operation = operation_of(method, path)
    headers = {resolved(node)["name"] for node in operation.get("x-alternatives", [])}
    members = {"tenant_id", "start_time_utc", "idempotency_key"} if method == "POST" else set()
    parameters = {resolved(node)["name"] for node in operation.get("parameters", [])}
    instead = {name: line for name, line in lines.items() if name in members | parameters}
    assert headers == {line.split(b":")[0].decode() for line in instead.values()}
    if not instead:
        return
    body = json.dumps({"start_time_utc": SLOT}).encode() if method == "POST" else b""
    framing = [b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    line = f"{method} {_target(path, method)} HTTP/1.1".encode()
    sent = closing_request(line, *framing, *instead.values(), body=body)
    assert first_response(documented.raw(sent)).status == (204 if method == "DELETE" else 200)
    for name in instead:
        others = [value for other, value in instead.items() if other != name]
        sent = closing_request(line, *framing, *others, body=body)
        response = first_response(documented.raw(sent))
        assert response.status == 400
        if method != "HEAD":
            assert [error["field"] for error in response.json["errors"]] == [name]


@each_request
def test_query_parameter_is_accepted_only_where_documented(
    documented: Server, method: str, path: str
) -> None:
    if method == "OPTIONS":  # OPTIONS ignores the query.
        return
    known = {"tenant_id": "acme", "from": SLOT, "to": SLOT, "after": SLOT, "limit": "1"}
    parameters = operation_of(method, path).get("parameters", [])
    names = {resolved(node)["name"] for node in parameters}
    for name, value in known.items():
        sent = _valid(method, path).replace(b" HTTP", f"?{name}={value} HTTP".encode(), 1)
        response = first_response(documented.raw(sent))
        accepted = 204 if method == "DELETE" else 200
        assert response.status == (accepted if name in names else 400), name
        assert_documented(response, method, path)


def test_document_is_served_with_version(shared_server: Server) -> None:
    response = shared_server.call("GET", "/openapi.json")
    assert (response.status, response.headers["Content-Type"]) == (200, "application/json")
    assert response.json["info"]["version"] == __version__
    document = (ROOT / "bookings" / "openapi.json").read_bytes()
    assert response.body == document.replace(b"{version}", __version__.encode())
    assert_documented(response, "GET", "/openapi.json")
