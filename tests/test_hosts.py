"""Host names that the server accepts: the protection against DNS rebinding."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest

from tests.helpers.clients import CLOSE, HOST, post, statuses
from tests.helpers.servers import Server
from tests.helpers.values import SLOT

# Names that an attacker's page could have.
FOREIGN_NAMES = [
    "evil.example",
    "evil.example:3000",
    "EVIL.example.",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "a.b",
    "1.2.3.x",
]
# Names that no attacker can register.
OWN_NAMES = [
    "localhost",
    "LocalHost:3000",
    "app.localhost:1",
    "127.0.0.1",
    "127.0.0.1:3000",
    "[::1]:3000",
    "192.168.0.7",
    "bookings",
    "",
    # A trailing dot makes a name absolute; it is the same name.
    "localhost.",
    "LocalHost.:3000",
    "app.localhost.",
    "bookings.",
]


def maps_addresses() -> bool:
    """Return whether IPv6 sockets serve IPv4 clients here."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::ffff:127.0.0.1", 0))
    except OSError:
        return False
    return True


requires_mapped_addresses = pytest.mark.skipif(
    not maps_addresses(), reason="IPv6 sockets do not serve IPv4 clients here"
)


def book_as(server: Server, host: str, key: str) -> int:
    (status,) = statuses(server.raw(post(key, CLOSE).replace(HOST, b"Host: " + host.encode())))
    return status


@pytest.mark.parametrize(
    ("flags", "accepted", "rejected"),
    [
        ((), OWN_NAMES, FOREIGN_NAMES),
        (
            ("--allowed-hosts= Book.Example ,a.b",),
            ["book.example:3000", "A.B", "Book.Example.", "a.b.:3000", *OWN_NAMES],
            [*FOREIGN_NAMES[:5], "x.book.example", "x.a.b"],
        ),
        (
            ("--allowed-hosts=.book.example,a.b.",),
            ["book.example", "x.book.example:3000", "X.y.Book.Example.", "a.b", *OWN_NAMES],
            [*FOREIGN_NAMES[:5], "evilbook.example", "book.example.evil.example", "x.a.b"],
        ),
        pytest.param(
            ("--host=::ffff:127.0.0.1",), OWN_NAMES, FOREIGN_NAMES, marks=requires_mapped_addresses
        ),
        (("--host=0.0.0.0",), [*OWN_NAMES, *FOREIGN_NAMES], []),
        (("--host=0.0.0.0", "--allowed-hosts=a.b"), ["a.b:3000", *OWN_NAMES], FOREIGN_NAMES[:5]),
    ],
)
def test_host_names_are_accepted_or_rejected(
    tmp_path: Path, flags: tuple[str, ...], accepted: list[str], rejected: list[str]
) -> None:
    with contextlib.closing(Server(tmp_path, "--workers=1", *flags)) as server:
        assert all(book_as(server, host, "rejected") == 421 for host in rejected)
        assert server.rows() == []
        created, *replayed = (book_as(server, host, "booked") for host in accepted)
        assert created == 201 and set(replayed) == {200}
        assert server.rows() == [("booked", SLOT, "booked")]
