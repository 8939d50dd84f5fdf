"""Hostile bytes: a corpus of raw requests with the answer beside each, and a mutator over it.

Each file of tests/corpus/ holds one kind; each line of it is an entry, and one that begins with blanks goes on from
the line before:

    the answers, and then the connection | name | the bytes

An answer is a status and a word: of a refusal its kind, of a booking that is made or replayed its tenant and key, for
HEAD, which gets no body, HEAD. `100` is 100 Continue. Then the connection

    goes on     and a request behind these bytes gets exactly its own answer
    closes      and a booking behind these bytes is neither answered nor made
    ends        as the client sends no more
    leaves      as the client closes it, and reads nothing
    resets      as the client breaks it

The bytes have Python's escapes. `<<word>>` and `<<word rest>>` stand for a row of WORDS, `<<70000 a>>` for 70000 times
`a`, `<<one or other rest>>` makes two entries. At `<<pause>>` the rest is sent later, at `<<await>>` when something has
come back.

The mutator runs for some seconds, and as long as is wanted, with other mutants:

    python -m tests -k mutants --mutate-seconds 600 --mutate-seed 7

A mutant that breaks the rules can be had again by its seed and number, or by its bytes, which the failure prints.
"""

from __future__ import annotations

import codecs
import contextlib
import random
import re
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import Match
from typing import Any

import pytest

from tests.helpers.clients import connect, responses
from tests.helpers.servers import SOON, Response, Server, assert_problem, until

START = "2026-01-01T10:00:00Z"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Each is one character that no bytes have.
PAUSE, AWAIT = "\u2016", "\u2017"

# {rest} is what follows the word, {size} the number of its bytes. Whoever asks is the tenant `reader`, who has no bookings.
WORDS = {
    "pause": PAUSE,
    "await": AWAIT,
    "host": r"Host: localhost\r\n",
    "tenant": r"X-Tenant-ID: reader\r\n",
    "json": r"Content-Type: application/json\r\n",
    "line": r"GET /bookings HTTP/1.1\r\n<<tenant>>",
    "absolute": r"GET http://localhost/bookings HTTP/1.1\r\n<<tenant>>",
    "older": r"GET /bookings HTTP/1.0\r\n<<tenant>>",
    "get": "<<line>><<host>>",
    "post": r"POST /bookings HTTP/1.1\r\n<<host>><<json>>",
    "old": r"POST /bookings HTTP/1.0\r\n<<host>><<json>>",
    "page": r"POST /bookings HTTP/1.1\r\n<<host>>Origin: https://evil.example\r\n",
    "first": r"GET /bookings HTTP/1.1\r\n{rest}\r\n<<host>><<tenant>>\r\n",
    "last": r"<<get>>{rest}\r\n\r\n",
    "full": r"{rest}\r\n<<host>><<tenant>>\r\n",
    "asked": r"GET {rest} HTTP/1.1\r\n<<host>>\r\n",
    "bare": r"{rest}\r\n\r\n",
    "body": r"Content-Length: {size}\r\n\r\n{rest}",
    "zeros": r"Content-Length: " + "0" * 30 + r"{size}\r\n\r\n{rest}",
    "chunk": r"{size:x}\r\n{rest}\r\n0\r\n\r\n",
    "members": f'"tenant_id": "{{rest}}", "start_time_utc": "{START}", "idempotency_key": "{{rest}}"',
    "booking": "<<post>><<body {{<<members {rest}>>}}>>",
    "smuggled": "<<booking smuggled>>",
}
_INNERMOST = re.compile(r"<<([0-9]+|[a-z]+)(?: ((?:(?!<<|>>).)*))?>>")
_CHOICE = re.compile(r"<<([a-z]+(?: or [a-z]+)+)(?= |>>)")


def unescaped(text: str) -> bytes:
    return codecs.decode(text, "unicode_escape").encode("latin-1")


def spelled_out(text: str) -> str:
    """The text with all its words replaced, the innermost first."""

    def replaced(match: Match[str]) -> str:
        word, rest = match[1], match[2] or ""
        if word.isdigit():
            return rest * int(word)
        return WORDS[word].format(rest=rest, size=len(unescaped(rest.replace(PAUSE, "").replace(AWAIT, ""))))

    while _INNERMOST.search(text):
        text = _INNERMOST.sub(replaced, text)
    return text


def choices(text: str) -> list[str]:
    choice = _CHOICE.search(text)
    if not choice:
        return [text]
    ways = [text.replace(choice[0], f"<<{word}", 1) for word in choice[1].split(" or ")]
    return [each for way in ways for each in choices(way)]


@dataclass(frozen=True)
class Entry:
    name: str
    expected: tuple[tuple[int, str], ...]
    then: str
    sends: tuple[bytes, ...]
    # What comes after each of the sends but the last: PAUSE or AWAIT.
    between: tuple[str, ...]

    @property
    def booked(self) -> list[tuple[str, str, str]]:
        return [(word, START, word) for status, word in self.expected if status == 201]


def read_corpus() -> Iterator[Entry]:
    for path in sorted((Path(__file__).parent / "corpus").glob("*.txt")):
        lines = re.sub(r"\n[ ]+", "", path.read_text(encoding="ascii")).split("\n")
        for line in lines:
            if not line or line.startswith("#"):
                continue
            # Where the bytes are none, an editor may have taken the last blank away.
            said, name, text = f"{line} ".split(" | ", 2)
            *expected, then = said.split(", ")
            for number, choice in enumerate(choices(text[:-1])):
                parts = re.split(f"([{PAUSE}{AWAIT}])", spelled_out(choice))
                yield Entry(
                    f"{path.stem}: {name}" + (f" ({number})" if number else ""),
                    tuple((int(each[:3]), each[4:]) for each in expected),
                    then,
                    tuple(map(unescaped, parts[::2])),
                    tuple(parts[1::2]),
                )


ENTRIES = list(read_corpus())
SMUGGLED = unescaped(spelled_out("<<smuggled>>"))
# Its answer can be told from any other by its id.
MARKER = unescaped(spelled_out(r"<<get>>X-Request-ID: marker\r\nConnection: close\r\n\r\n"))


def exchange(server: Server, sends: Sequence[bytes], between: Sequence[str], then: str) -> bytes:
    """All that comes back for these sends until the server closes; "" where the client does not wait for it."""
    with connect(server) as connection:
        received = b""
        for sent, action in zip(sends, (*between, "")):
            connection.sendall(sent)
            if action == AWAIT:
                assert select.select([connection], [], [], SOON)[0], "nothing came back"
                # Left where it is, a reset will find it unread.
                received += connection.recv(65536) if then != "resets" else b""
            elif action == PAUSE:
                # Long enough to be read alone, mostly. The answer must be the same if it was not.
                time.sleep(0.005)
        if then == "resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if then in ("leaves", "resets"):
            return b""
        if then == "ends":
            connection.shutdown(socket.SHUT_WR)
        while True:
            more = connection.recv(65536)
            if not more:
                return received
            received += more


@dataclass(frozen=True)
class Trial:
    """One server for the whole corpus, and the rows that it must have by now."""

    server: Server
    rows: list[tuple[Any, ...]]


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    with contextlib.closing(Server(tmp_path_factory.mktemp("corpus"))) as server:
        yield Trial(server, [])


def assert_answer(answer: Response, status: int, word: str) -> None:
    assert answer.status == status, answer.body
    if word == "HEAD":
        assert answer.body == b""
    elif status >= 400:
        assert_problem(answer, status, word, *(error["field"] for error in answer.json["errors"]))
    elif word:
        booking = answer.json
        assert (booking["tenant_id"], booking["start_time_utc"], booking["idempotency_key"]) == (
            word,
            START,
            word,
        )
        assert ("Idempotent-Replayed" in answer.headers) == (status == 200)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_the_corpus(trial: Trial, entry: Entry) -> None:
    behind = {"goes on": MARKER, "closes": SMUGGLED}.get(entry.then, b"")
    sends = (*entry.sends[:-1], entry.sends[-1] + behind)
    received = exchange(trial.server, sends, entry.between, entry.then)
    expected_rows = [*trial.rows, *entry.booked]
    unread = entry.then in ("leaves", "resets")
    if unread:
        until(lambda: len(trial.server.rows()) >= len(expected_rows))
    # Taken over as they are, so that what fails here does not fail all that follows.
    trial.rows[:] = trial.server.rows()
    assert trial.rows == expected_rows, received
    assert trial.server.log.read_text() == ""
    if unread:
        return

    assert received.count(CONTINUE) == entry.expected.count((100, ""))
    received = received.replace(CONTINUE, b"", 1)
    expected = [(status, word) for status, word in entry.expected if status != 100]
    found = responses(received, *(word for _, word in expected))
    ids = [answer.headers["X-Request-ID"] for answer in found]
    ends = ["Connection" in answer.headers for answer in found]
    if entry.then == "goes on":
        marked = found.pop()
        assert (marked.status, marked.body, ids.pop()) == (200, b"[]\n", "marker")
        assert ends == [False] * len(found) + [True]
    elif entry.then == "closes":
        assert ends == [False] * (len(found) - 1) + [True]
        assert found[-1].headers["Connection"] == "close"
    assert len(found) == len(expected)
    for answer, (status, word) in zip(found, expected):
        assert_answer(answer, status, word)
    assert "marker" not in ids


def test_nothing_of_the_corpus_comes_late(trial: Trial) -> None:
    """With the server at its end, so is every connection."""
    trial.server.stop()
    assert trial.server.rows() == trial.rows
    assert trial.server.log.read_text() == ""


# What tells one framing from another, to be inserted anywhere.
TELLING = [
    *(bytes([byte]) for byte in b'\r\n\0 \t:,;%/?"\\{[\xff09-'),
    *b"\r\n\r\n|\r\n X: |\xc3\xa9|\xe2\x80\xa8|GET |HEAD |POST | HTTP/1.1\r\n|HTTP/1.0|Host: localhost\r\n".split(
        b"|"
    ),
    *b"Content-Length: 0\r\n|Content-Length: 5\r\n|Transfer-Encoding: chunked\r\n|X-Tenant-ID: a\r\n".split(
        b"|"
    ),
    *b"Connection: close\r\n|Expect: 100-continue\r\n".split(b"|"),
    SMUGGLED,
]
# Short enough for hundreds of mutants a second.
SEEDS = [seed for seed in (b"".join(entry.sends) for entry in ENTRIES) if 0 < len(seed) < 4000]


def span(dice: random.Random, text: bytes) -> tuple[int, int]:
    """Most often a short one."""
    start = dice.randrange(len(text) + 1)
    return start, min(len(text), start + dice.choice((1, 1, 2, 4, 16, 256)))


def flip(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text[:start] + bytes(byte ^ 1 << dice.randrange(8) for byte in text[start:end]) + text[end:]


def insert(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text[:start] + dice.choice(TELLING) + text[start:]


def replace(dice: random.Random, text: bytes, start: int, end: int) -> bytes:
    return text[:start] + dice.choice(TELLING) + text[end:]


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
    """Without end: a mutant, and the same in several sends."""
    dice = random.Random(seed)
    while True:
        text = dice.choice(SEEDS)
        for _ in range(dice.choice((1, 1, 1, 2, 2, 3, 8))):
            text = dice.choice(MUTATIONS)(dice, text, *span(dice, text))[:60_000]
        cuts = sorted(dice.randrange(len(text) + 1) for _ in range(dice.randrange(1, 4)))
        yield text, [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]


def framed(sent: bytes) -> tuple[list[str], int]:
    """The method of each request that anybody could read from these bytes, and how many of them are whole.

    It knows nothing but where a head and a body end, so that it takes much that the server refuses; but behind a
    request whose end is not certain there is none.
    """
    methods: list[str] = []
    while True:
        head, end, rest = re.sub(rb"^(\r\n)+", b"", sent).partition(b"\r\n\r\n")
        if not head:
            return methods, len(methods)
        methods.append("HEAD" if head.startswith(b"HEAD ") else "")
        lengths = re.findall(rb"(?i)\r\ncontent-length:([^\r]*)", head)
        digits = re.fullmatch(rb"[ \t]*0*([0-9]{1,9})[ \t]*", lengths[0]) if lengths else None
        length = int(digits[1]) if digits else 0
        uncertain = len(lengths) > 1 or re.search(rb"(?i)\r\ntransfer-encoding:", head)
        if not end or len(rest) < length or uncertain:
            return methods, len(methods) - 1
        sent = rest[length:]


def assert_lawful(server: Server, sent: bytes, sends: Sequence[bytes]) -> list[Response]:
    """What every answer to any bytes must be; all answers to these sends."""
    started = time.monotonic()
    received = exchange(server, sends, [""] * (len(sends) - 1), "ends").replace(CONTINUE, b"")
    # The client has no more to send, so that nothing is worth waiting for.
    assert time.monotonic() - started < 5
    methods, whole = framed(sent)
    found = responses(received, *methods)
    assert len(found) <= len(methods), received
    assert all(answer.status < 500 or answer.status in (501, 505) for answer in found), received
    ends = [answer.headers["Connection"] for answer in found]
    assert set(ends[:-1]) <= {None}, received
    # Where the server did not say that it closes, each request that was whole has its answer.
    assert ends[-1:] == ["close"] or len(found) == whole, received
    return found


def outcome(found: Sequence[Response]) -> list[int]:
    """The statuses, but for what may depend on time: a booking is replayed, one of two refusals at the end is first."""
    statuses = [200 if answer.status == 201 else answer.status for answer in found]
    if found and found[-1].headers["Connection"] == "close" and statuses[-1] >= 400:
        statuses[-1] = 400
    return statuses


def test_mutants_of_the_corpus(server: Server, pytestconfig: pytest.Config) -> None:
    seed, seconds = (pytestconfig.getoption(f"--mutate-{name}") for name in ("seed", "seconds"))
    deadline = time.monotonic() + seconds
    booked: list[tuple[Any, ...]] = []
    for number, (sent, parts) in enumerate(mutants(seed)):
        if time.monotonic() > deadline:
            break
        try:
            once, again = assert_lawful(server, sent, [sent]), assert_lawful(server, sent, parts)
            # Nothing may depend on where packets are cut.
            assert outcome(once) == outcome(again)
            booked += [
                (answer.json["tenant_id"], answer.json["start_time_utc"], answer.json["idempotency_key"])
                for answer in (*once, *again)
                if answer.status == 201
            ]
            assert server.log.read_text() == ""
        except Exception:
            print(
                f"mutant {number} of seed {seed}, in parts of {[len(part) for part in parts]} bytes: {sent!r}"
            )
            raise
    started = time.monotonic()
    assert server.call("GET", "/live").status == 200
    assert time.monotonic() - started < 1
    assert server.rows() == booked != []
