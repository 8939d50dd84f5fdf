"""No tenant ever sees a byte of another: not by key, by id or by list, in no way of sending the tenant.

What belongs to somebody else is answered exactly as what does not exist, byte for byte, and names that look
alike, to people or to SQL, are different tenants.
"""

from __future__ import annotations

import itertools
import unicodedata
from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.clients import as_header
from tests.helpers.servers import Response, Server, assert_problem

SLOTS = [f"2026-03-0{day}T10:00:00Z" for day in range(1, 10)]
OWNER, STRANGER = "owner-5f1c", "stranger-a7d2"
# What no answer to the stranger may hold; the slot and the key that it asks for are its own words.
SECRETS = [OWNER, "owner's key"]


def in_header(method: str, path: str, tenant: str) -> tuple[str, str, Any, dict[str, str]]:
    return method, path, None, {"X_Tenant_ID": as_header(tenant)}


def in_query(method: str, path: str, tenant: str) -> tuple[str, str, Any, dict[str, str]]:
    return method, f"{path}?tenant_id={quote(tenant, safe='')}", None, {}


def in_both(method: str, path: str, tenant: str) -> tuple[str, str, Any, dict[str, str]]:
    return method, f"{path}?tenant_id={quote(tenant, safe='')}", None, {"X_Tenant_ID": as_header(tenant)}


def in_header_beside_a_body(method: str, path: str, tenant: str) -> tuple[str, str, Any, dict[str, str]]:
    """The body of a GET has no meaning, so what it says of a tenant counts for nothing."""
    return method, path, {"tenant_id": OWNER}, {"X_Tenant_ID": as_header(tenant)}


READS = [in_header, in_query, in_both, in_header_beside_a_body]


def ask(server: Server, request: tuple[str, str, Any, dict[str, str]]) -> Response:
    method, target, body, headers = request
    return server.call(method, target, body, **headers)


def everything(answer: Response) -> tuple[Any, ...]:
    """The whole answer but for its date."""
    return (
        answer.status,
        [pair for pair in answer.headers.items() if pair[0] not in ("Date", "X-Request-ID")],
        answer.body,
    )


def books_in_body(tenant: str, start: str, key: str) -> tuple[str, str, Any, dict[str, str]]:
    return "POST", "/bookings", {"tenant_id": tenant, "start_time_utc": start, "idempotency_key": key}, {}


def books_in_headers(tenant: str, start: str, key: str) -> tuple[str, str, Any, dict[str, str]]:
    headers = {"X_Tenant_ID": as_header(tenant), "Idempotency_Key": f'"{key}"'}
    return "POST", "/bookings", {"start_time_utc": start}, headers


BOOKS = [books_in_body, books_in_headers]


@pytest.fixture(scope="module")
def owned(shared_server: Server) -> Response:
    """A booking of the owner's, for the tests that only ever are refused."""
    booked = shared_server.book(OWNER, SLOTS[0], "owner's key")
    assert (booked.status, booked.headers["Location"]) == (201, "/bookings/1")
    return booked


@pytest.mark.both_stores
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("read", READS)
def test_id_of_another_tenant_is_as_one_that_does_not_exist(server: Server, read: Any, method: str) -> None:
    owned = server.book(OWNER, SLOTS[0], "owner's key")
    own = server.book(STRANGER, SLOTS[1], "stranger's key")
    answers = {
        name: ask(server, read(method, f"/bookings/{number}", STRANGER))
        for name, number in [("another's", owned.json["id"]), ("nobody's", 999), ("own", own.json["id"])]
    }
    assert everything(answers["another's"]) == everything(answers["nobody's"])
    assert (answers["another's"].status, answers["own"].status) == (404, 200)
    if method == "GET":
        assert_problem(answers["another's"], 404, "no-such-booking")
        assert answers["own"].body == own.body
    assert ask(server, read(method, owned.headers["Location"], OWNER)).status == 200


@pytest.mark.both_stores
@pytest.mark.parametrize("read", READS)
def test_list_is_the_tenants_own(server: Server, read: Any) -> None:
    for number, start in enumerate(SLOTS):
        server.book(OWNER, start, f"owner's key {number}")
    nobody = ask(server, read("GET", "/bookings", "nobody"))
    assert (nobody.status, nobody.json) == (200, [])
    assert everything(ask(server, read("GET", "/bookings", STRANGER))) == everything(nobody)
    assert everything(ask(server, read("HEAD", "/bookings", STRANGER)))[:2] == everything(nobody)[:2]
    own = server.book(STRANGER, SLOTS[0], "stranger's key")
    listed = ask(server, read("GET", "/bookings", STRANGER))
    assert listed.json == [own.json]
    assert not any(secret.encode() in listed.body for secret in SECRETS)
    assert len(ask(server, read("GET", "/bookings", OWNER)).json) == len(SLOTS)
    assert len(server.rows()) == len(SLOTS) + 1


@pytest.mark.both_stores
@pytest.mark.parametrize("book", BOOKS)
def test_key_of_another_tenant_is_told_as_a_key_of_ones_own(server: Server, book: Any) -> None:
    server.book(OWNER, SLOTS[0], "owner's key")
    server.book(STRANGER, SLOTS[1], "stranger's key")
    rows = server.rows()
    own = ask(server, book(STRANGER, SLOTS[2], "stranger's key"))
    assert_problem(own, 422, "key-reused", "idempotency_key")
    # For the owner's slot, for a free one, and for one that the stranger has already.
    for start in SLOTS[:3]:
        others = ask(server, book(STRANGER, start, "owner's key"))
        assert everything(others) == everything(own)
        assert not any(secret.encode() in others.body for secret in SECRETS)
    assert server.rows() == rows


@pytest.mark.both_stores
@pytest.mark.parametrize("book", BOOKS)
def test_slot_of_another_tenant_is_free(server: Server, book: Any) -> None:
    server.book(OWNER, SLOTS[0], "owner's key")
    booked = ask(server, book(STRANGER, SLOTS[0], "stranger's key"))
    assert (booked.status, booked.json["tenant_id"]) == (201, STRANGER)
    taken = ask(server, book(STRANGER, SLOTS[0], "another key"))
    assert_problem(taken, 409, "slot-taken", "start_time_utc")
    assert not any(secret.encode() in taken.body for secret in [*SECRETS, "stranger's key"])
    assert server.rows() == [(OWNER, SLOTS[0], "owner's key"), (STRANGER, SLOTS[0], "stranger's key")]


@pytest.mark.parametrize("path", ["/bookings", "/bookings/1"])
@pytest.mark.parametrize(
    ("query", "lines"),
    [
        (f"?tenant_id={OWNER}", [STRANGER]),
        (f"?tenant_id={STRANGER}", [OWNER]),
        (f"?tenant_id={STRANGER}&tenant_id={OWNER}", []),
        (f"?tenant_id={STRANGER}&tenant%5Fid={OWNER}", []),
        (f"?tenant_id={STRANGER}&TENANT_ID={OWNER}", []),
        (f"?tenant_id={STRANGER};tenant_id={OWNER}", [STRANGER]),
        ("", [STRANGER, OWNER]),
        ("", [OWNER, STRANGER]),
        ("", [f"{STRANGER}, {OWNER}", OWNER]),
        (f"?tenant_id={OWNER}", [""]),
        ("", ["", OWNER]),
        ("", []),
    ],
)
def test_reading_for_two_tenants_or_none_is_refused(
    shared_server: Server, owned: Response, path: str, query: str, lines: list[str]
) -> None:
    head = f"GET {path}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    received = shared_server.raw(
        (head + "".join(f"X-Tenant-ID: {line}\r\n" for line in lines) + "\r\n").encode()
    )
    assert received.startswith(b"HTTP/1.1 400 "), received
    assert b"/problems/invalid-fields" in received
    assert not any(secret.encode() in received for secret in [*SECRETS, STRANGER, SLOTS[0]])


@pytest.mark.parametrize(
    ("target", "in_body", "lines"),
    [
        ("/bookings", OWNER, [STRANGER]),
        ("/bookings", STRANGER, [OWNER]),
        ("/bookings", None, [STRANGER, OWNER]),
        ("/bookings", STRANGER, [STRANGER, OWNER]),
        ("/bookings", OWNER, [""]),
        ("/bookings", None, []),
        # A POST takes no tenant from the query, and must not seem to.
        (f"/bookings?tenant_id={OWNER}", None, []),
        (f"/bookings?tenant_id={OWNER}", OWNER, [OWNER]),
    ],
)
def test_booking_for_two_tenants_or_none_is_refused(
    shared_server: Server, owned: Response, target: str, in_body: str | None, lines: list[str]
) -> None:
    rows = shared_server.rows()
    for start, key in [(SLOTS[0], "owner's key"), (SLOTS[1], "new key")]:
        tenant = f'"tenant_id": "{in_body}", ' if in_body else ""
        body = f'{{{tenant}"start_time_utc": "{start}", "idempotency_key": "{key}"}}'
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n" + "".join(f"X-Tenant-ID: {line}\r\n" for line in lines)
        received = shared_server.raw(f"{head}\r\n{body}".encode())
        assert received.startswith(b"HTTP/1.1 400 "), received
        assert not any(secret.encode() in received for secret in [*SECRETS, STRANGER])
    assert shared_server.rows() == rows


# --- Names that look alike

ALIKE = [
    *("acme", "Acme", "ACME", "acme.", "ac me", "ac  me", "acme%20", "acme+", "acme\u200b", "acm\u0435"),
    *(unicodedata.normalize(form, "Café ﬁn Å") for form in ("NFC", "NFD", "NFKC", "NFKD")),
    *("straße", "strasse", "STRASSE", "K", "\u212a", "k", "İ", "i̇", "ı", "i"),
    *("%", "_", "a%", "a_", "ab", "*", "?", "[a-z]", "a*", "%25", "acme%", "acm_"),
    *(
        "1",
        "01",
        "1.0",
        "1e0",
        "+1",
        "0x1",
        "１",
        "null",
        "NULL",
        "None",
        "true",
        "X'61'",
        "''",
        "'a'",
        '"a"',
    ),
    *(
        "' OR '1'='1",
        "a' OR 1=1 --",
        "a; DROP TABLE bookings",
        "a, b",
        "a&tenant_id=b",
        "a/b",
        "a#b",
        "\\u0061",
    ),
    *("🎫", "🎫\ufe0f", "\U0010ffff", "\u202eemca", "x" * 254, "x" * 255),
]


@pytest.mark.both_stores
def test_names_that_look_alike_are_different_tenants(server: Server) -> None:
    assert len(set(ALIKE)) == len(ALIKE)
    booked = {}
    for number, (tenant, book) in enumerate(zip(ALIKE, itertools.cycle(BOOKS))):
        answer = ask(server, book(tenant, SLOTS[0], f"k{number}"))
        assert (answer.status, answer.json["tenant_id"]) == (201, tenant)
        booked[tenant] = answer
    assert server.rows() == [(tenant, SLOTS[0], f"k{number}") for number, tenant in enumerate(ALIKE)]
    for number, tenant in enumerate(ALIKE):
        neighbour = booked[ALIKE[number - 1]].headers["Location"]
        for read in READS:
            assert ask(server, read("GET", "/bookings", tenant)).json == [booked[tenant].json], (tenant, read)
            assert ask(server, read("GET", neighbour, tenant)).status == 404, (tenant, read)
        assert (
            ask(server, in_query("GET", booked[tenant].headers["Location"], tenant)).body
            == booked[tenant].body
        )


@pytest.mark.parametrize(
    "extra", [" ", "\t", "\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85", "\x00", "\x1f"]
)
@pytest.mark.parametrize("spelled", ["{0}{1}", "{1}{0}"], ids=["after", "before"])
def test_white_space_at_an_end_makes_no_second_tenant(
    shared_server: Server, extra: str, spelled: str
) -> None:
    tenant = spelled.format(OWNER, extra)
    rows = shared_server.rows()
    refused = [
        ask(shared_server, books_in_body(tenant, SLOTS[0], "owner's key")),
        ask(shared_server, in_query("GET", "/bookings", tenant)),
        ask(shared_server, in_query("GET", "/bookings/1", tenant)),
    ]
    if ord(extra) > 0x7F:
        refused.append(ask(shared_server, in_header("GET", "/bookings", tenant)))
        refused.append(ask(shared_server, books_in_headers(tenant, SLOTS[0], "owner's key")))
    for answer in refused:
        assert_problem(answer, 400, "invalid-fields", "tenant_id")
    assert shared_server.rows() == rows


def test_white_space_around_a_header_is_not_of_its_value(server: Server) -> None:
    booked = server.book("acme", SLOTS[0], "k1")
    received = server.raw(
        b"GET /bookings/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Tenant-ID: \t acme \t \r\n\r\n"
    )
    assert received.endswith(b"\r\n\r\n" + booked.body)


@pytest.mark.parametrize("read", [in_query, in_both])
def test_plus_in_a_query_is_a_space(server: Server, read: Any) -> None:
    booked = server.book("ac me", SLOTS[0], "k1")
    server.book("ac+me", SLOTS[0], "k2")
    method, target, body, headers = read("GET", "/bookings", "ac me")
    answer = server.call(method, target.replace("%20", "+"), body, **headers)
    assert (answer.status, answer.json) == (200, [booked.json])
    assert len(server.rows()) == 2
