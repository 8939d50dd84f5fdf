"""System calls of a server, traced by strace, and the disk that a power cut would leave."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers.servers import Server, patched, until

FILES = ("bookings.db", "bookings.db-wal")


@cache
def tracer() -> tuple[str, ...]:
    """Return the command that starts strace, or nothing if it is missing or not permitted."""
    command = ("strace", "-D", "-f", "--seccomp-bpf", "-q", "-y", "-xx", "-s", "8192")
    if not shutil.which("strace"):
        return ()
    tried = subprocess.run([*command, "-o", os.devnull, "true"], capture_output=True, check=False)
    return command if tried.returncode == 0 else ()


@contextlib.contextmanager
def traced_server(
    base: Path, *flags: str, patch: str = "", trace: str = "", inject: Sequence[str] = ()
) -> Iterator[Server]:
    """Run a server after executing `patch`. `trace` lists the system calls to record.

    `inject` has arguments for strace's -e inject=.
    """
    program = patched(base, patch)
    if trace:
        if not tracer():
            pytest.skip("strace is missing or may not trace")
        faults = [argument for fault in inject for argument in ("-e", f"inject={fault}")]
        command = [*tracer(), "-o", str(base / "trace"), "-e", f"trace={trace}", *faults]
        command += [sys.executable, str(program)]
        program = base / "traced.py"
        program.write_text(f"import os, sys\nos.execvp('strace', {command!r} + sys.argv[1:])\n")
    with contextlib.closing(Server(base, *flags, program=program)) as started:
        yield started


@dataclass(frozen=True)
class Call:
    """A system call. `began` and `ended` are line numbers in the trace, which is in real order."""

    thread: str
    name: str
    file: str
    data: bytes
    number: int
    result: int
    began: int
    ended: int

    @property
    def is_sync(self) -> bool:
        return self.name in ("fdatasync", "fsync") and self.result == 0

    @property
    def is_failed_sync(self) -> bool:
        return self.name in ("fdatasync", "fsync") and self.result != 0


_LINE = re.compile(r"([0-9]+) +(?:<\.\.\. \w+ resumed>)?(.*?)( <unfinished \.\.\.>)?")
_CALL = re.compile(r'(\w+)\((?:[0-9]+<([^>]*)>)?(?:, )?(?:"([^"]*)")?(.*)\) += (-?[0-9]+).*')
_LAST_NUMBER = re.compile(r".*?([0-9]+)")


def stop_and_read_trace(server: Server) -> list[Call]:
    """Stop the server; return its system calls in the order in which they ended."""
    log = server.log.with_name("trace")
    end = re.compile(rf"^{server.process.pid} +\+\+\+ exited with 0 \+\+\+$", re.MULTILINE)
    assert server.stop() == 0
    until(lambda: end.search(log.read_text()[-2000:]))
    calls: list[Call] = []
    pending: dict[str, tuple[int, str]] = {}
    for place, line in enumerate(log.read_text().splitlines()):
        match = _LINE.fullmatch(line)
        assert match, line
        thread, text, unfinished = match.groups()
        began, begun = pending.pop(thread, (place, ""))
        if unfinished:
            pending[thread] = (place, text)
            continue
        call = _CALL.fullmatch(begun + text)
        if call:
            name, path, data, numbers, result = call.groups()
            number = _LAST_NUMBER.fullmatch(numbers)
            # The only argument of unlink is the path.
            file = _decode(path or data).decode().rpartition("/")[2]
            offset = int(number[1]) if number else 0
            content = _decode(data)
            calls.append(Call(thread, name, file, content, offset, int(result), began, place))
    return calls


def responses_in(calls: Iterable[Call]) -> Iterator[tuple[Call, int, str, Any]]:
    """Yield (call, status, request id, body) of each response. The body of a 204 is None."""
    for call in calls:
        if call.name == "sendto" and call.data.startswith(b"HTTP/1.1 "):
            head, _, body = call.data.partition(b"\r\n\r\n")
            found = re.search(rb"X-Request-ID: (\S+)", head)
            assert found
            yield call, int(head[9:12]), found[1].decode(), json.loads(body or "null")


class Disk:
    """The files after a power cut: everything synced, and by chance some of the rest.

    As on Linux, a failed sync drops the writes before it: a later sync does not write them. Linux
    reports the failure to every descriptor that was open; strace reports it to one thread only.
    `not_told` has the threads whose next sync would have failed, too.
    """

    def __init__(self) -> None:
        self.synced: dict[str, bytearray] = {}
        self.not_told: set[str] = set()
        self._pending: dict[str, list[Call]] = {}

    def follow(self, call: Call) -> None:
        if call.name == "unlink":
            self.synced.pop(call.file, None)
            self._pending.pop(call.file, None)
        elif call.name in ("pwrite64", "ftruncate"):
            self._pending.setdefault(call.file, []).append(call)
        elif (call.is_sync or call.is_failed_sync) and call.file in self._pending:
            image = self.synced.setdefault(call.file, bytearray())
            pending = self._pending[call.file]
            # A sync may miss a write that was in progress when it began.
            for each in pending:
                if each.ended < call.began and call.is_sync:
                    _apply(image, each)
            if call.is_failed_sync:
                dropped = {each.thread for each in pending if each.ended < call.began}
                self.not_told |= dropped - {call.thread}
            self._pending[call.file] = [each for each in pending if each.ended > call.began]

    def cut_power(self, folder: Path, chance: random.Random, part: float) -> Path:
        """Write database and WAL into the folder, with `part` of what was not synced."""
        for file in FILES:
            image = bytearray(self.synced.get(file, b""))
            for each in self._pending.get(file, ()):
                if chance.random() < part:
                    _apply(image, each)
            (folder / file).write_bytes(image)
        return folder / FILES[0]


class PowerCuts(NamedTuple):
    """Numbers of acknowledged bookings and cancellations, of images and of checkpoints."""

    acknowledged: int
    cancelled: int
    images: int
    # Images without an acknowledged booking, with a booking in both tables, or damaged ones.
    lossy: int
    # Images without an acknowledged cancellation.
    revived: int
    checkpoints: int


def cancel_request_id(number: int) -> str:
    """Return the X-Request-ID with which a traced client must cancel the booking with this id."""
    return f"cancel.{number}"


def replay_power_cuts(calls: list[Call], folder: Path) -> PowerCuts:
    """Cut the power at each response, and compare each image with what was acknowledged."""
    disk, chance = Disk(), random.Random(5)
    acknowledged: dict[int, tuple[Any, ...]] = {}
    cancelled: set[str] = set()
    images, lossy, revived, checkpoints = 0, 0, 0, 0
    done = {
        call: (name, body)
        for call, status, name, body in responses_in(calls)
        if status in (200, 201, 204)
    }
    # A response counts from its begin, a write from its end.
    for call in sorted(calls, key=lambda call: call.began if call in done else call.ended):
        if call not in done:
            disk.follow(call)
            checkpoints += call.name == "fdatasync" and call.file == FILES[0]
            continue
        if call.thread in disk.not_told:
            disk.not_told.remove(call.thread)
            continue
        name, body = done[call]
        if body:
            acknowledged[body["id"]] = tuple(body.values())
        else:
            cancelled.add(name)
        images += 1
        image = disk.cut_power(folder, chance, chance.choice((0.0, 0.0, 0.5, 0.9)))
        with contextlib.closing(sqlite3.connect(image)) as db:
            try:
                rows = {row[0]: row for row in db.execute("SELECT * FROM bookings")}
                ended = {row[0]: row[:5] for row in db.execute("SELECT * FROM cancellations")}
                sound = db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            except sqlite3.DatabaseError:
                rows, ended, sound = {}, {}, False
        found = {**rows, **ended}
        lossy += (
            not sound
            or len(found) < len(rows) + len(ended)
            or any(found.get(number) != row for number, row in acknowledged.items())
        )
        revived += not cancelled <= {*map(cancel_request_id, ended)}
    return PowerCuts(len(acknowledged), len(cancelled), images, lossy, revived, checkpoints)


def _apply(image: bytearray, call: Call) -> None:
    if call.name == "ftruncate":
        del image[call.number :]
        image.extend(bytes(call.number - len(image)))
    else:
        image.extend(bytes(max(0, call.number - len(image))))
        image[call.number : call.number + len(call.data)] = call.data


def _decode(hexadecimal: str | None) -> bytes:
    return bytes.fromhex((hexadecimal or "").replace("\\x", ""))
