"""Hostile bytes: a corpus of raw requests with the expected responses, and mutants of them."""

from __future__ import annotations

import codecs
import contextlib
import random
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import Match
from typing import Any

import pytest

from tests.helpers.clients import connect, responses
from tests.helpers.servers import SOON, Response, Server, assert_problem, until
from tests.helpers.values import MEMBERS, SLOT

CORPUS = Path(__file__).parent.parent / "corpus"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Placeholders for <<pause>> and <<await>>: characters that no bytes decode to.
PAUSE, AWAIT = "\u2016", "\u2017"

# {rest} is the text after the word, and {size} its length in bytes. The tenant `reader` has no
# bookings.
WORDS = {
    "pause": PAUSE,
    "await": AWAIT,
    "host": r"Host: localhost\r\n",
    "tenant": r"X-Tenant-ID: reader\r\n",
    "json": r"Content-Type: application/json\r\n",
    "line": r"GET /bookings HTTP/1.1\r\n<<tenant>>",
    "absolute": r"GET http://localhost/bookings HTTP/1.1\r\n<<tenant>>",
    "oldget": r"GET /bookings HTTP/1.0\r\n<<tenant>>",
    "get": "<<line>><<host>>",
    "post": r"POST /bookings HTTP/1.1\r\n<<host>><<json>>",
    "oldpost": r"POST /bookings HTTP/1.0\r\n<<host>><<json>>",
    "page": r"POST /bookings HTTP/1.1\r\n<<host>>Origin: https://evil.example\r\n",
    "first": r"GET /bookings HTTP/1.1\r\n{rest}\r\n<<host>><<tenant>>\r\n",
    "last": r"<<get>>{rest}\r\n\r\n",
    "full": r"{rest}\r\n<<host>><<tenant>>\r\n",
    "target": r"GET {rest} HTTP/1.1\r\n<<host>>\r\n",
    "bare": r"{rest}\r\n\r\n",
    "body": r"Content-Length: {size}\r\n\r\n{rest}",
    "zeros": r"Content-Length: " + "0" * 30 + r"{size}\r\n\r\n{rest}",
    "coded": r"<<post>>Transfer-Encoding: chunked\r\n\r\n",
    "chunk": r"{size:x}\r\n{rest}\r\n",
    "end": r"0\r\n\r\n",
    "chunks": r"Transfer-Encoding: chunked\r\n\r\n<<chunk {rest}>><<end>>",
    "members": '"tenant_id": "{rest}", '
    f'"start_time_utc": "{SLOT}", '
    '"idempotency_key": "{rest}"',
    "booking": "<<post>><<body {{<<members {rest}>>}}>>",
    "smuggled": "<<booking smuggled>>",
}
INNERMOST_WORD = re.compile(r"<<([0-9]+|[a-z]+)(?: ((?:(?!<<|>>).)*))?>>")
CHOICE = re.compile(r"<<([a-z]+(?: or [a-z]+)+)(?= |>>)")


def unescaped(text: str) -> bytes:
    return codecs.decode(text, "unicode_escape").encode("latin-1")


def spelled_out(text: str) -> str:
    """Replace all words, the innermost first."""

    def replaced(match: Match[str]) -> str:
        word, rest = match[1], match[2] or ""
        if word.isdigit():
            return rest * int(word)
        size = len(unescaped(rest.replace(PAUSE, "").replace(AWAIT, "")))
        return WORDS[word].format(rest=rest, size=size)

    while INNERMOST_WORD.search(text):
        text = INNERMOST_WORD.sub(replaced, text)
    return text


def choices(text: str) -> list[str]:
    """Return one text for each combination of the words in `<<one or other>>`."""
    choice = CHOICE.search(text)
    if not choice:
        return [text]
    ways = [text.replace(choice[0], f"<<{word}", 1) for word in choice[1].split(" or ")]
    return [each for way in ways for each in choices(way)]


@dataclass(frozen=True)
class Entry:
    """A line of the corpus; see `read_corpus`."""

    name: str
    expected: tuple[tuple[int, str], ...]
    ending: str
    sends: tuple[bytes, ...]
    # PAUSE or AWAIT after each of the sends except the last.
    between: tuple[str, ...]

    @property
    def booked(self) -> list[tuple[str, str, str]]:
        return [(word, SLOT, word) for status, word in self.expected if status == 201]


def read_corpus() -> Iterator[Entry]:
    r"""Yield the entries of tests/corpus/. An entry is one line:

        responses, ending | name | bytes

    A line that starts with spaces continues the line before it. A response is a status, and for a
    problem its type, for a booking that is made or replayed its tenant and key, for a response to
    HEAD the word HEAD. Status 100 is 100 Continue. The endings are

        stays open            a later request on the connection gets its own response
        closes                a later booking on the connection gets no response and is not made
        client half-closes    the client sends no more, and reads
        client closes         the client closes the connection and reads nothing
        client resets         the client resets the connection and reads nothing

    The bytes are written with Python's escapes. `<<word>>` and `<<word rest>>` stand for a row of
    WORDS, `<<70000 a>>` for 70,000 times `a`; `<<one or other rest>>` makes two entries. At
    `<<pause>>` the client waits a moment, at `<<await>>` until it has received something.
    """
    for path in sorted(CORPUS.glob("*.txt")):
        lines = path.read_text(encoding="ascii")
        lines = re.sub(r"\n +(\| )?", lambda match: " | " if match[1] else "", lines)
        for line in lines.split("\n"):
            if not line or line.startswith("#"):
                continue
            # Editors remove the last space of an entry without bytes.
            said, name, text = f"{line} ".split(" | ", 2)
            *expected, ending = said.split(", ")
            for number, choice in enumerate(choices(text[:-1])):
                parts = re.split(f"([{PAUSE}{AWAIT}])", spelled_out(choice))
                yield Entry(
                    f"{path.stem}: {name}" + (f" ({number})" if number else ""),
                    tuple((int(each[:3]), each[4:]) for each in expected),
                    ending,
                    tuple(map(unescaped, parts[::2])),
                    tuple(parts[1::2]),
                )


ENTRIES = list(read_corpus())
SMUGGLED = unescaped(spelled_out("<<smuggled>>"))
# The request id identifies the response.
MARKER = unescaped(spelled_out(r"<<get>>X-Request-ID: marker\r\nConnection: close\r\n\r\n"))


def exchange(server: Server, sends: Sequence[bytes], between: Sequence[str], ending: str) -> bytes:
    """Send, and return what is received until the server closes or the client leaves."""
    with connect(server) as connection:
        received = b""
        for sent, action in zip(sends, (*between, "")):
            connection.sendall(sent)
            if action == AWAIT:
                assert select.select([connection], [], [], SOON)[0], "nothing was received"
                # Before a reset, leave the bytes unread.
                received += connection.recv(65536) if ending != "client resets" else b""
            elif action == PAUSE:
                # Usually long enough for the server to read the part alone. If not, the response
                # must be the same.
                time.sleep(0.005)
        if ending == "client resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if ending in ("client closes", "client resets"):
            return b""
        if ending == "client half-closes":
            connection.shutdown(socket.SHUT_WR)
        while True:
            more = connection.recv(65536)
            if not more:
                return received
            received += more


@dataclass(frozen=True)
class Trial:
    """One server for the whole corpus, and the rows that it must have."""

    server: Server
    rows: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    with contextlib.closing(Server(tmp_path_factory.mktemp("corpus"))) as server:
        yield Trial(server, [])


def booking_in(response: Response) -> tuple[str, ...]:
    return tuple(response.json[name] for name in MEMBERS)


def assert_response(response: Response, status: int, word: str) -> None:
    assert response.status == status, response.body
    if word == "HEAD":
        assert response.body == b""
    elif status >= 400:
        fields = [error["field"] for error in response.json["errors"]]
        assert_problem(response, status, word, *fields)
    elif word:
        assert booking_in(response) == (word, SLOT, word)
        assert ("Idempotent-Replayed" in response.headers) == (status == 200)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_corpus_entry_gets_its_responses(trial: Trial, entry: Entry) -> None:
    behind = {"stays open": MARKER, "closes": SMUGGLED}.get(entry.ending, b"")
    sends = (*entry.sends[:-1], entry.sends[-1] + behind)
    received = exchange(trial.server, sends, entry.between, entry.ending)
    expected_rows = [*trial.rows, *entry.booked]
    unread = entry.ending in ("client closes", "client resets")
    if unread:
        until(lambda: len(trial.server.rows()) >= len(expected_rows))
    # Take the rows as they are, so that a failure here does not fail all later entries.
    trial.rows[:] = trial.server.rows()
    assert trial.rows == expected_rows, received
    assert trial.server.log.read_text() == ""
    if unread:
        return

    assert received.count(CONTINUE) == entry.expected.count((100, ""))
    received = received.replace(CONTINUE, b"", 1)
    expected = [(status, word) for status, word in entry.expected if status != 100]
    found = responses(received, *(word for _, word in expected))
    ids = [response.headers["X-Request-ID"] for response in found]
    ends = ["Connection" in response.headers for response in found]
    if entry.ending == "stays open":
        marked = found.pop()
        assert (marked.status, marked.body, ids.pop()) == (200, b"[]\n", "marker")
        assert ends == [False] * len(found) + [True]
    elif entry.ending == "closes":
        assert ends == [False] * (len(found) - 1) + [True]
        assert found[-1].headers["Connection"] == "close"
    assert len(found) == len(expected)
    for response, (status, word) in zip(found, expected):
        assert_response(response, status, word)
    assert "marker" not in ids


def test_corpus_leaves_no_late_booking(trial: Trial) -> None:
    trial.server.stop()
    assert trial.server.rows() == trial.rows
    assert trial.server.log.read_text() == ""


# Bytes that affect framing, to be inserted anywhere.
FRAMING_BYTES = [
    *(bytes([byte]) for byte in b'\r\n\0 \t:,;%/?"\\{[\xff09-'),
    *b"\r\n\r\n|\r\n X: |\xc3\xa9|\xe2\x80\xa8|GET |HEAD |POST | HTTP/1.1\r\n".split(b"|"),
    *b"HTTP/1.0|Host: localhost\r\n|Content-Length: 0\r\n|Content-Length: 5\r\n".split(b"|"),
    *b"Transfer-Encoding: chunked\r\n|X-Tenant-ID: a\r\n|Connection: close\r\n".split(b"|"),
    *b"Expect: 100-continue\r\n|0\r\n\r\n|\r\n5\r\n|;a=b|0x|fffffffff".split(b"|"),
    SMUGGLED,
]
# Short enough for hundreds of mutants per second.
SEEDS = [seed for seed in (b"".join(entry.sends) for entry in ENTRIES) if 0 < len(seed) < 4000]


def span(dice: random.Random, text: bytes) -> tuple[int, int]:
    """Return start and end of a part of the text, usually a short one."""
    start = dice.randrange(len(text) + 1)
    return start, min(len(text), start + dice.choice((1, 1, 2, 4, 16, 256)))


def flip(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    flipped = bytes(byte ^ 1 << dice.randrange(8) for byte in text[start:end])
    return text[:start] + flipped + text[end:]


def insert(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text[:start] + dice.choice(FRAMING_BYTES) + text[start:]


def replace(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text[:start] + dice.choice(FRAMING_BYTES) + text[end:]


def delete(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text[:start] + text[end:]


def duplicate(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text[:end] + text[start:end] * dice.choice((1, 1, 1, 50)) + text[end:]


def cut_short(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text[:start]


def splice(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    other = dice.choice(SEEDS)
    return text[:start] + other[span(dice, other)[0] :]


def append(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text + dice.choice(SEEDS)


MUTATIONS: list[Callable[[random.Random, bytes, int, int], bytes]] = [
    *(flip, flip, insert, insert, replace, replace),
    *(delete, delete, duplicate, duplicate, splice, append, cut_short),
]


def mutants(seed: int) -> Iterator[tuple[bytes, list[bytes]]]:
    """Yield mutants forever, each whole and cut into parts."""
    dice = random.Random(seed)
    while True:
        text = dice.choice(SEEDS)
        for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 8))):
            text = dice.choice(MUTATIONS)(dice, text, *span(dice, text))[:60_000]
        cuts = sorted(dice.randrange(len(text) + 1) for _ in range(dice.randrange(1, 4)))
        yield text, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]


def chunked_length(sent: bytes) -> int:
    """Return the length of a chunked body with its trailers; without an end it is infinite."""
    end, size = 0, 1
    while size:
        first = re.compile(rb"0*([0-9A-Fa-f]{1,8})[^\n]*\n").match(sent, end)
        if not first:
            return sys.maxsize
        size = int(first[1], 16)
        end = first.end() + size + 2 * bool(size)
    trailers = re.compile(rb"(?:[^\r\n]+\r\n)*\r\n").match(sent, end)
    return trailers.end() if trailers else sys.maxsize


def framed(sent: bytes) -> tuple[list[str], int]:
    """Return the methods of the requests that a lenient server could find, and how many are whole.

    This knows only where heads and bodies end, so it accepts more than the server does. It finds
    nothing after a request whose end is uncertain.
    """
    methods: list[str] = []
    while True:
        head, end, rest = re.sub(rb"^(\r\n)+", b"", sent).partition(b"\r\n\r\n")
        if not head:
            return methods, len(methods)
        methods.append("HEAD" if head.startswith(b"HEAD ") else "")
        lengths = re.findall(rb"(?i)\r\ncontent-length:([^\r]*)", head)
        codings = re.findall(rb"(?i)\r\ntransfer-encoding:([^\r]*)", head)
        if codings and not lengths:
            length = chunked_length(rest)
        else:
            digits = re.fullmatch(rb"[ \t]*0*([0-9]{1,9})[ \t]*", lengths[0]) if lengths else None
            length = int(digits[1]) if digits else 0
        if not end or len(rest) < length or len(lengths) + len(codings) > 1:
            return methods, len(methods) - 1
        sent = rest[length:]


def assert_framing_rules(server: Server, sent: bytes, sends: Sequence[bytes]) -> list[Response]:
    """Send the parts. Assert the rules that hold for all bytes, and return the responses."""
    started = time.monotonic()
    received = exchange(server, sends, [""] * (len(sends) - 1), "client half-closes")
    received = received.replace(CONTINUE, b"")
    # After the half-close the server has nothing to wait for.
    assert time.monotonic() - started < 5
    methods, whole = framed(sent)
    found = responses(received, *methods)
    assert len(found) <= len(methods), received
    statuses = [response.status for response in found]
    assert all(status < 500 or status in (501, 505) for status in statuses), received
    ends = [response.headers["Connection"] for response in found]
    assert set(ends[:-1]) <= {None}, received
    # Unless the server announced that it closes, each whole request got a response.
    assert ends[-1:] == ["close"] or len(found) == whole, received
    return found


def outcome(found: Sequence[Response]) -> list[int]:
    """Return the statuses without what may depend on timing.

    A booking is made or replayed. At the end, either of two rejections may come first.
    """
    statuses = [200 if response.status == 201 else response.status for response in found]
    if found and found[-1].headers["Connection"] == "close" and statuses[-1] >= 400:
        statuses[-1] = 400
    return statuses


def test_mutants_of_corpus_obey_framing_rules(server: Server, pytestconfig: pytest.Config) -> None:
    """Run for longer, with other mutants:

        python -m tests -k mutants --mutate-seconds 600 --mutate-seed 7

    A failure prints seed, number and bytes of the mutant.
    """
    seed, seconds = (pytestconfig.getoption(f"--mutate-{name}") for name in ("seed", "seconds"))
    deadline = time.monotonic() + seconds
    booked: list[tuple[Any, ...]] = []
    for number, (sent, parts) in enumerate(mutants(seed)):
        if time.monotonic() > deadline:
            break
        try:
            once = assert_framing_rules(server, sent, [sent])
            again = assert_framing_rules(server, sent, parts)
            # The responses must not depend on packet boundaries.
            assert outcome(once) == outcome(again)
            created = [response for response in (*once, *again) if response.status == 201]
            booked += map(booking_in, created)
            assert server.log.read_text() == ""
        except Exception:
            lengths = [len(part) for part in parts]
            print(f"mutant {number} of seed {seed}, in parts of {lengths} bytes: {sent!r}")
            raise
    started = time.monotonic()
    assert server.call("GET", "/live").status == 200
    assert time.monotonic() - started < 1
    assert server.rows() == booked != []
