"""No response to a tenant contains a byte of another tenant, wherever the tenant is sent.

What belongs to another tenant is answered like what does not exist, and similar names are
different tenants.
"""

from __future__ import annotations

import itertools
import unicodedata
from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.clients import CLOSE, as_header, closing_request, sized
from tests.helpers.servers import Response, Server, assert_problem

# Method, target, body and headers, as Server.call takes them.
Request = tuple[str, str, Any, "dict[str, str]"]

SLOTS = [f"2026-03-0{day}T10:00:00Z" for day in range(1, 10)]
OWNER, STRANGER = "owner-5f1c", "stranger-a7d2"
# No response to the stranger may contain these. The slot and key of its own request may return.
SECRETS = [OWNER, "owner's key"]


def in_header(method: str, path: str, tenant: str) -> Request:
    return method, path, None, {"X_Tenant_ID": as_header(tenant)}


def in_query(method: str, path: str, tenant: str) -> Request:
    return method, f"{path}?tenant_id={quote(tenant, safe='')}", None, {}


def in_both(method: str, path: str, tenant: str) -> Request:
    headers = {"X_Tenant_ID": as_header(tenant)}
    return method, f"{path}?tenant_id={quote(tenant, safe='')}", None, headers


def in_header_with_body(method: str, path: str, tenant: str) -> Request:
    """Name another tenant in the body, which has no meaning in a GET or DELETE."""
    return method, path, {"tenant_id": OWNER}, {"X_Tenant_ID": as_header(tenant)}


READS = [in_header, in_query, in_both, in_header_with_body]


def ask(server: Server, request: Request) -> Response:
    method, target, body, headers = request
    return server.call(method, target, body, **headers)


def compared_parts(response: Response) -> tuple[Any, ...]:
    """Return all of the response except its date and request id."""
    return (
        response.status,
        [pair for pair in response.headers.items() if pair[0] not in ("Date", "X-Request-ID")],
        response.body,
    )


def book_in_body(tenant: str, start: str, key: str) -> Request:
    members = {"tenant_id": tenant, "start_time_utc": start, "idempotency_key": key}
    return "POST", "/bookings", members, {}


def book_in_headers(tenant: str, start: str, key: str) -> Request:
    headers = {"X_Tenant_ID": as_header(tenant), "Idempotency_Key": f'"{key}"'}
    return "POST", "/bookings", {"start_time_utc": start}, headers


BOOKS = [book_in_body, book_in_headers]


@pytest.fixture(scope="module")
def owned(shared_server: Server) -> Response:
    """A booking of the owner, for tests whose requests are all rejected."""
    booked = shared_server.book(OWNER, SLOTS[0], "owner's key")
    assert (booked.status, booked.location) == (201, "/bookings/1")
    return booked


@pytest.mark.both_stores
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("read", READS)
def test_id_of_another_tenant_is_answered_like_unknown_id(
    server: Server, read: Any, method: str
) -> None:
    owned = server.book(OWNER, SLOTS[0], "owner's key")
    cancelled = server.book(OWNER, SLOTS[2], "owner's cancelled key")
    assert server.cancel(cancelled.json["id"], OWNER).status == 204
    own = server.book(STRANGER, SLOTS[1], "stranger's key")
    responses = {
        name: ask(server, read(method, f"/bookings/{number}", STRANGER))
        for name, number in [
            ("foreign", owned.json["id"]),
            ("cancelled", cancelled.json["id"]),
            ("unknown", own.json["id"] + 1),
            ("own", own.json["id"]),
        ]
    }
    for name in ("foreign", "cancelled"):
        assert compared_parts(responses[name]) == compared_parts(responses["unknown"])
    assert responses["foreign"].status == 404
    assert responses["own"].status == (204 if method == "DELETE" else 200)
    if method == "GET":
        assert_problem(responses["foreign"], 404, "no-such-booking")
        assert responses["own"].body == own.body
    assert ask(server, read("GET", owned.location, OWNER)).status == 200


@pytest.mark.both_stores
@pytest.mark.parametrize("read", READS)
def test_list_has_bookings_of_its_tenant_only(server: Server, read: Any) -> None:
    for number, start in enumerate(SLOTS):
        server.book(OWNER, start, f"owner's key {number}")
    nobody = ask(server, read("GET", "/bookings", "nobody"))
    assert (nobody.status, nobody.json) == (200, [])
    get, head = (ask(server, read(method, "/bookings", STRANGER)) for method in ("GET", "HEAD"))
    assert compared_parts(get) == compared_parts(nobody)
    assert compared_parts(head)[:2] == compared_parts(nobody)[:2]
    own = server.book(STRANGER, SLOTS[0], "stranger's key")
    listed = ask(server, read("GET", "/bookings", STRANGER))
    assert listed.json == [own.json]
    assert not any(secret.encode() in listed.body for secret in SECRETS)
    assert len(ask(server, read("GET", "/bookings", OWNER)).json) == len(SLOTS)
    assert len(server.rows()) == len(SLOTS) + 1


@pytest.mark.both_stores
@pytest.mark.parametrize("book", BOOKS)
def test_key_of_another_tenant_is_answered_like_own_key(server: Server, book: Any) -> None:
    server.book(OWNER, SLOTS[0], "owner's key")
    server.book(STRANGER, SLOTS[1], "stranger's key")
    rows = server.rows()
    own = ask(server, book(STRANGER, SLOTS[2], "stranger's key"))
    assert_problem(own, 422, "key-reused", "idempotency_key")
    # The owner's slot, a free slot, and a slot that the stranger has already.
    for start in SLOTS[:3]:
        foreign = ask(server, book(STRANGER, start, "owner's key"))
        assert compared_parts(foreign) == compared_parts(own)
        assert not any(secret.encode() in foreign.body for secret in SECRETS)
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
    assert server.rows() == [
        (OWNER, SLOTS[0], "owner's key"),
        (STRANGER, SLOTS[0], "stranger's key"),
    ]


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
def test_read_for_two_tenants_or_none_is_rejected(
    shared_server: Server, owned: Response, path: str, query: str, lines: list[str]
) -> None:
    tenants = [f"X-Tenant-ID: {line}".encode() for line in lines]
    sent = closing_request(f"GET {path}{query} HTTP/1.1".encode(), *tenants)
    received = shared_server.raw(sent)
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
        # A POST does not accept a tenant in the query, and says so.
        (f"/bookings?tenant_id={OWNER}", None, []),
        (f"/bookings?tenant_id={OWNER}", OWNER, [OWNER]),
    ],
)
def test_booking_for_two_tenants_or_none_is_rejected(
    shared_server: Server, owned: Response, target: str, in_body: str | None, lines: list[str]
) -> None:
    rows = shared_server.rows()
    for start, key in [(SLOTS[0], "owner's key"), (SLOTS[1], "new key")]:
        tenant = f'"tenant_id": "{in_body}", ' if in_body else ""
        body = f'{{{tenant}"start_time_utc": "{start}", "idempotency_key": "{key}"}}'
        tenants = [f"X-Tenant-ID: {line}".encode() for line in lines]
        line = f"POST {target} HTTP/1.1".encode()
        received = shared_server.raw(sized(body.encode(), CLOSE, *tenants, line=line))
        assert received.startswith(b"HTTP/1.1 400 "), received
        assert not any(secret.encode() in received for secret in [*SECRETS, STRANGER])
    assert shared_server.rows() == rows


# --- Similar names

SIMILAR = [
    *("acme", "Acme", "ACME", "acme.", "ac me", "ac  me", "acme%20", "acme+"),
    *("acme\u200b", "acm\u0435"),
    *(unicodedata.normalize(form, "Café ﬁn Å") for form in ("NFC", "NFD", "NFKC", "NFKD")),
    *("straße", "strasse", "STRASSE", "K", "\u212a", "k", "İ", "i̇", "ı", "i"),
    *("%", "_", "a%", "a_", "ab", "*", "?", "[a-z]", "a*", "%25", "acme%", "acm_"),
    *("1", "01", "1.0", "1e0", "+1", "0x1", "１", "null", "NULL", "None", "true"),
    *("X'61'", "''", "'a'", '"a"', "' OR '1'='1", "a' OR 1=1 --", "a; DROP TABLE bookings"),
    *("a, b", "a&tenant_id=b", "a/b", "a#b", "\\u0061"),
    *("🎫", "🎫\ufe0f", "\U0010ffff", "\u202eemca", "x" * 254, "x" * 255),
]


@pytest.mark.both_stores
def test_similar_names_are_different_tenants(server: Server) -> None:
    assert len(set(SIMILAR)) == len(SIMILAR)
    booked = {}
    for number, (tenant, book) in enumerate(zip(SIMILAR, itertools.cycle(BOOKS))):
        response = ask(server, book(tenant, SLOTS[0], f"k{number}"))
        assert (response.status, response.json["tenant_id"]) == (201, tenant)
        booked[tenant] = response
    assert server.rows() == [
        (tenant, SLOTS[0], f"k{number}") for number, tenant in enumerate(SIMILAR)
    ]
    for number, tenant in enumerate(SIMILAR):
        neighbour = booked[SIMILAR[number - 1]].location
        for read in READS:
            listed = ask(server, read("GET", "/bookings", tenant))
            assert listed.json == [booked[tenant].json], (tenant, read)
            assert ask(server, read("GET", neighbour, tenant)).status == 404, (tenant, read)
        own = ask(server, in_query("GET", booked[tenant].location, tenant))
        assert own.body == booked[tenant].body


@pytest.mark.parametrize(
    "extra", [" ", "\t", "\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85", "\x00", "\x1f"]
)
@pytest.mark.parametrize("spelled", ["{0}{1}", "{1}{0}"], ids=["after", "before"])
def test_name_with_white_space_at_an_end_is_rejected(
    shared_server: Server, extra: str, spelled: str
) -> None:
    tenant = spelled.format(OWNER, extra)
    rows = shared_server.rows()
    rejected = [
        ask(shared_server, book_in_body(tenant, SLOTS[0], "owner's key")),
        ask(shared_server, in_query("GET", "/bookings", tenant)),
        ask(shared_server, in_query("GET", "/bookings/1", tenant)),
    ]
    if ord(extra) > 0x7F:
        rejected.append(ask(shared_server, in_header("GET", "/bookings", tenant)))
        rejected.append(ask(shared_server, book_in_headers(tenant, SLOTS[0], "owner's key")))
    for response in rejected:
        assert_problem(response, 400, "invalid-fields", "tenant_id")
    assert shared_server.rows() == rows


def test_white_space_around_header_value_is_ignored(server: Server) -> None:
    booked = server.book("acme", SLOTS[0], "k1")
    sent = closing_request(b"GET /bookings/1 HTTP/1.1", b"X-Tenant-ID: \t acme \t ")
    assert server.raw(sent).endswith(b"\r\n\r\n" + booked.body)


@pytest.mark.parametrize("read", [in_query, in_both])
def test_plus_in_query_is_a_space(server: Server, read: Any) -> None:
    booked = server.book("ac me", SLOTS[0], "k1")
    server.book("ac+me", SLOTS[0], "k2")
    method, target, body, headers = read("GET", "/bookings", "ac me")
    response = server.call(method, target.replace("%20", "+"), body, **headers)
    assert (response.status, response.json) == (200, [booked.json])
    assert len(server.rows()) == 2
