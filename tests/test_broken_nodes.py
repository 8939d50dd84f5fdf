"""What the store on a cluster makes of a node that answers nonsense: it is asked again, and never believed.

The node is a socket that says what the test gives it, and then what a good node would say.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Sequence

import pytest

from bookings.rqlite import RqliteStore
from bookings.store import Outcome, Trouble, Unavailable
from tests.helpers.servers import SOON

GOOD = json.dumps({"results": [{"last_insert_id": 7, "rows_affected": 1}]})


def _said(status: str, body: str, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", body]
    return "\r\n".join(lines).encode()


@contextlib.contextmanager
def _node(answers: Sequence[bytes]) -> Iterator[str]:
    """A node that gives these answers, one to a connection, and the last one again and again; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener is shut down
                for number in range(1000):
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(SOON)
                        connection.recv(65536)
                        connection.sendall(answers[min(number, len(answers) - 1)])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(SOON)


@pytest.mark.parametrize(
    "nonsense",
    [
        _said("301 Moved Permanently", "", "Location: http://127.0.0.1:abc/"),
        _said("301 Moved Permanently", "", "Location: ://"),
        _said("200 OK", '{"results":["x"]}'),
        _said("200 OK", '{"results":[null]}'),
        _said("200 OK", '{"results":[{"error":[]}]}'),
        _said("200 OK", "[5]"),
        _said("200 OK", "null"),
        _said("200 OK", "[" * 100_000),
        _said("200 OK", ""),
        _said("503 Service Unavailable", "leader not found"),
        b"",
        b"garbage\r\n\r\n",
    ],
    ids=lambda said: repr(said[:16] + said[-24:]),
)
def test_nonsense_is_asked_again(nonsense: bytes) -> None:
    with _node([nonsense, _said("200 OK", GOOD)]) as url, contextlib.closing(RqliteStore(url)) as store:
        outcome, booking = store.book("acme", "2026-01-01T10:00:00Z", "k1")
        assert outcome is Outcome.CREATED
        assert booking
        assert (booking.id, booking.tenant_id, booking.idempotency_key) == (7, "acme", "k1")


@pytest.mark.parametrize(
    "fault",
    [
        *("disk I/O error", "attempt to write a readonly database", "database disk image is malformed"),
        *("database is locked", "database or disk is full", "context deadline exceeded"),
    ],
)
def test_a_fault_of_the_node_is_told_as_one(fault: str) -> None:
    said = _said("200 OK", json.dumps({"results": [{"error": fault}]}))
    with _node([said]) as url, contextlib.closing(RqliteStore(url)) as store:
        with pytest.raises(Unavailable) as raised:
            store.book("acme", "2026-01-01T10:00:00Z", "k1")
        assert raised.value.trouble is Trouble.UNREACHABLE
        assert str(raised.value.__cause__) == fault
